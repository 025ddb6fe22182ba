"""Counts players (kind Seat) or matches (kind Match) on deployments, as Edgegap's v1 sessions do. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tipoff_edgegap_emulator.deployment import AppKey, Deployment, Effect, Phase, SendWebhook
from tipoff_edgegap_emulator.documents import (
    LOCATION,
    fqdn,
    ports_document,
    spell,
    stamp,
)
from tipoff_edgegap_emulator.errors import Refused, RefusedDeployment
from tipoff_edgegap_emulator.state import EmulatorState


class SessionStatus(StrEnum):
    """A session's status, in Edgegap's words."""

    SEEKING = "SEEKING"
    LINKED = "LINKED"
    READY = "READY"
    UNPROCESSABLE = "UNPROCESSABLE"
    ERROR = "ERROR"


@dataclass(slots=True, eq=False)
class Session:
    """`users` are IP addresses. `deployment_id`: the request id of the deployment it is linked to."""

    session_id: str
    key: AppKey
    kind: str
    users: list[str]
    created_at: float
    webhook_url: str | None = field(default=None, repr=False)
    deployment_id: str | None = None
    status: SessionStatus = SessionStatus.SEEKING
    error: str | None = None

    @property
    def sockets(self) -> int:
        """Sockets that it takes: one for each player, or one for the match."""
        return 1 if self.kind == "Match" else max(1, len(self.users))


class Sessions:
    """The sessions of one account. Call `due` after every change of `state`."""

    def __init__(self, state: EmulatorState) -> None:
        self._state = state
        self.all: dict[str, Session] = {}

    def create(self, body: Mapping[str, Any], now: float) -> tuple[Session, list[Effect]]:
        """Add a session and link it to a deployment with room, or a new one. Without either it is unprocessable.
        Raises `Refused` for a request that Edgegap would refuse."""
        app = body["app_name"]
        self._state.catalogue.application(app)
        name = body.get("version_name") or self._state.catalogue.newest_version(app)
        version = self._state.catalogue.version(app, name)
        config = version.get("session_config") or {}
        kind = config.get("kind", "Default")
        if kind == "Default":
            raise Refused(400, f"Version {name} of application {app} does not use sessions")
        users = body.get("ip_list") or [one["ip"] for one in body.get("geo_ip_list") or []]
        if not users:
            raise Refused(400, "ip_list or geo_ip_list is required")
        made = Session(
            f"{secrets.token_hex(6)}-S", (app, name), kind, list(users), now, body.get("webhook_url")
        )
        wanted = body.get("deployment_request_id")
        if wanted and not self._joinable(self._state.find(wanted), made):
            raise Refused(409, f"Deployment {wanted} takes no such session")
        self.all[made.session_id] = made
        effects: list[Effect] = []
        if wanted:
            made.deployment_id = wanted
        elif (place := self._place(made)) is not None:
            made.deployment_id = place.request_id
        elif config.get("autodeploy", True):
            try:
                deployed, effects = self._state.deploy(made.key, now=now, users=list(users))
                made.deployment_id = deployed.request_id
            except RefusedDeployment as refused:
                effects = self._over(made, SessionStatus.UNPROCESSABLE, str(refused))
        else:
            effects = self._over(made, SessionStatus.UNPROCESSABLE, "No deployment has enough open sockets")
        return made, effects

    def delete(self, session_id: str, now: float) -> Session:
        """Free its sockets; its deployment goes on. Raises `Refused` 404."""
        session = self.find(session_id)
        del self.all[session_id]
        if session.deployment_id and (one := self._state.find(session.deployment_id)) and not self.on(one):
            one.empty_since = now
        return session

    def find(self, session_id: str) -> Session:
        """Raises `Refused` 404."""
        try:
            return self.all[session_id]
        except KeyError:
            raise Refused(404, f"Session {session_id} not found") from None

    def on(self, one: Deployment) -> list[Session]:
        """The sessions linked to this deployment."""
        return [session for session in self.all.values() if session.deployment_id == one.request_id]

    def used(self, one: Deployment) -> int:
        """Sockets of this deployment that are taken."""
        return sum(session.sockets for session in self.on(one))

    def due(self, now: float) -> list[Effect]:
        """Let sessions follow their deployments, and stop deployments that were empty for the version's `empty_ttl`."""
        effects: list[Effect] = []
        for session in self.all.values():
            effects += self._follow(session)
        for one in self._state.living():
            if (ttl := self._empty_ttl(one)) is None or self.on(one) or one.phase is not Phase.READY:
                continue
            if now >= one.empty_since + ttl:
                effects += self._state.stop(one, now)[1]
        return effects

    def next_due(self) -> float | None:
        """When an empty deployment is next to be stopped; None: never."""
        times = [
            one.empty_since + ttl
            for one in self._state.living()
            if one.phase is Phase.READY and not self.on(one) and (ttl := self._empty_ttl(one)) is not None
        ]
        return min(times, default=None)

    def _follow(self, session: Session) -> list[Effect]:
        if session.deployment_id is None:
            return []
        one = self._state.find(session.deployment_id)
        if one is None or one.over:
            if session.status is SessionStatus.ERROR:
                return []
            return self._over(session, SessionStatus.ERROR, "Its deployment is gone")
        status = SessionStatus.READY if one.phase is Phase.READY else SessionStatus.LINKED
        if session.status is status:
            return []
        session.status = status
        return self._webhook(session)  # (A: session-webhooks)

    def _over(self, session: Session, status: SessionStatus, error: str) -> list[Effect]:
        session.status, session.error = status, error
        return self._webhook(session)

    def _webhook(self, session: Session) -> list[Effect]:
        return (
            [SendWebhook(session.webhook_url, session.session_id, "session")] if session.webhook_url else []
        )

    def _joinable(self, one: Deployment | None, session: Session) -> bool:
        return (
            one is not None
            and not one.over
            and not one.stop_wanted
            and one.key == session.key
            and one.kind == session.kind
            and self.used(one) + session.sockets <= one.sockets
        )

    def _place(self, session: Session) -> Deployment | None:
        """The fullest deployment with room, so that others may empty."""
        places = [one for one in self._state.living() if self._joinable(one, session)]
        return max(places, key=lambda one: (one.phase is Phase.READY, self.used(one)), default=None)

    def _empty_ttl(self, one: Deployment) -> float | None:
        config = self._state.catalogue.versions.get(one.key, {}).get("session_config") or {}
        minutes = config.get("empty_ttl")
        return minutes * 60.0 if one.kind != "Default" and minutes else None


def session_document(session: Session, one: Deployment | None, used: int, now: float) -> dict[str, Any]:
    """`GET /v1/session/{id}`. The deployment's part carries `status` where v1's status has `current_status`."""
    document: dict[str, Any] = {
        "session_id": session.session_id,
        "custom_id": None,
        "status": session.status.capitalize(),
        "ready": session.status is SessionStatus.READY,
        "linked": session.deployment_id is not None,
        "kind": session.kind,
        "user_count": len(session.users),
        "app_version": 1,
        "create_time": stamp(session.created_at),
        "elapsed": int(now - session.created_at),
        "error": session.error,
        "session_users": [{"ip": ip, "latitude": 45.5, "longitude": -73.5} for ip in session.users],
        "session_ips": [{"ip": ip, "latitude": 45.5, "longitude": -73.5} for ip in session.users],
        "deployment": None,
        "webhook_url": session.webhook_url,
    }
    if one is not None:
        ready = one.phase is Phase.READY
        document["deployment"] = {
            "request_id": one.request_id,
            "public_ip": one.public_ip,
            "status": spell(one.phase_at(now), one.request_id),
            "ready": ready,
            "whitelisting_active": False,
            "fqdn": fqdn(one),
            "ports": ports_document(one) if ready else None,
            "location": LOCATION,
            "tags": one.tags,
            "sockets": one.sockets,
            "sockets_usage": used,
            "is_joinable_by_session": not one.over,
        }
    return document


def session_webhook(session: Session) -> dict[str, Any]:
    """The body that a session's webhook carries."""
    return {
        "session_id": session.session_id,
        "custom_id": None,
        "status": session.status.capitalize(),
        "ready": session.status is SessionStatus.READY,
        "linked": session.deployment_id is not None,
        "kind": session.kind,
        "user_count": len(session.users),
        "deployment_request_id": session.deployment_id,
        "webhook_url": session.webhook_url,
    }
