"""Carries out the operation of each endpoint, for requests that were authorised and checked."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from tipoff_edgegap_emulator.deployment import Deployment
from tipoff_edgegap_emulator.documents import (
    context_document,
    list_document,
    masked,
    page_document,
    status_document,
)
from tipoff_edgegap_emulator.effect_runner import EffectRunner
from tipoff_edgegap_emulator.errors import Refused, RefusedDeployment
from tipoff_edgegap_emulator.http import Answer, Request
from tipoff_edgegap_emulator.sessions import Sessions, session_document, session_webhook
from tipoff_edgegap_emulator.state import EmulatorState

_DEFAULT_LIMIT = 10


class Operations:
    """The operations of one account: changes `state` and `sessions`, and has `runner` carry out the effects.
    `max_page`: items of a page of a list (A: page-size)."""

    def __init__(self, state: EmulatorState, sessions: Sessions, runner: EffectRunner, max_page: int) -> None:
        self._state = state
        self._max_page = max_page
        self._sessions = sessions
        self._runner = runner

    def perform(
        self, operation: str, parts: Mapping[str, str], request: Request, body: Any, now: float
    ) -> Answer:
        """The answer of `operation` at `now` (Unix seconds). `parts` come from the path, `body` is its checked JSON."""
        try:
            status, document = self._do(operation, parts, request, body, now)
        except RefusedDeployment as refused:
            self._runner.apply(refused.effects)
            return Answer(refused.status, refused.body)
        except Refused as refused:
            return Answer(refused.status, refused.body)
        finally:
            self._runner.settle()
        return Answer(status, document)

    def _do(
        self, operation: str, parts: Mapping[str, str], request: Request, body: Any, now: float
    ) -> tuple[int, Any]:
        state = self._state
        match operation:
            case "deploy":
                return 202, {"request_id": self._deploy(body, now).request_id}
            case "status":
                # Edgegap's description says 404; the live API answers 400.
                return 200, self._status(self._known(parts["id"], 400), now)
            case "stop":
                return self._stop(self._known(parts["id"], 404), now)
            case "self-stop":
                one = self._known(parts["id"], 404)
                _check_own_token(request, one.delete_token)
                return self._stop(one, now)
            case "context":
                one = self._known(parts["id"], 404)
                _check_own_token(request, one.context_token)
                return 200, context_document(one, now)
            case "list":
                return 200, list_document(state.active(), *self._page(request))
            case "application.create":
                return 200, state.catalogue.add_application(body, now)
            case "application":
                return 200, state.catalogue.application(parts["app"])
            case "version.create":
                return 200, {
                    "success": True,
                    "version": masked(state.catalogue.add_version(parts["app"], body, now)),
                }
            case "version":
                return 200, masked(state.catalogue.version(parts["app"], parts["version"]))
            case "version.change":
                changed = state.catalogue.change_version(parts["app"], parts["version"], body, now)
                return 200, {"success": True, "version": masked(changed)}
            case "version.delete":
                self._delete_version(parts["app"], parts["version"])
                return 204, None
            case "session.create":
                return 200, self._create_session(body, now)
            case "session.get":
                return 200, self._session(parts["id"], now)
            case "session.delete":
                self._sessions.delete(parts["id"], now)
                text = f"The session {parts['id']} has been deleted"
                return 200, {"message": text, "session_id": parts["id"]}
            case "sessions":
                page, limit = self._page(request)
                found = [session_webhook(one) for one in self._sessions.all.values()]
                return 200, page_document(found[(page - 1) * limit : page * limit], len(found), page, limit)
        raise AssertionError(operation)

    def _deploy(self, body: Any, now: float) -> Deployment:
        made, effects = self._state.deploy(
            (body["application"], body["version"]),
            now=now,
            environment={one["key"]: one["value"] for one in body.get("environment_variables", [])},
            tags=body.get("tags", []),
            users=body["users"],
            webhooks={
                event: body[f"webhook_on_{event}"]["url"]
                for event in ("ready", "error", "terminated")
                if f"webhook_on_{event}" in body
            },
        )
        self._runner.begin_life(made)
        self._runner.apply(effects)
        return made

    def _known(self, request_id: str, status: int) -> Deployment:
        if (one := self._state.find(request_id)) is None:
            raise Refused(status, f"Deployment {request_id} not found")
        return one

    def _status(self, one: Deployment, now: float) -> dict[str, Any]:
        return status_document(one, self._state.max_duration(one), now)

    def _stop(self, one: Deployment, now: float) -> tuple[int, Any]:
        status, effects = self._state.stop(one, now)
        self._runner.apply(effects)
        answer: dict[str, Any] = {"message": f"{one.request_id} - Delete request will be processed soon"}
        if status == 200:
            answer["deployment_summary"] = self._status(one, now)
        return status, answer

    def _create_session(self, body: Any, now: float) -> dict[str, Any]:
        before = set(self._state.deployments)
        session, effects = self._sessions.create(body, now)
        for request_id in set(self._state.deployments) - before:
            self._runner.begin_life(self._state.deployments[request_id])
        self._runner.apply(effects)
        return {
            "session_id": session.session_id,
            "custom_id": None,
            "app": session.key[0],
            "version": session.key[1],
            "deployment_request_id": session.deployment_id,
            "selectors": None,
            "webhook_url": session.webhook_url,
        }

    def _session(self, session_id: str, now: float) -> dict[str, Any]:
        self._runner.settle()  # its status follows the deployment's
        session = self._sessions.find(session_id)
        one = self._state.find(session.deployment_id) if session.deployment_id else None
        return session_document(session, one, self._sessions.used(one) if one else 0, now)

    def _delete_version(self, app: str, name: str) -> None:
        if any(one.key == (app, name) for one in self._state.living()):
            raise Refused(409, f"Version {name} of application {app} has deployments")
        self._state.catalogue.delete_version(app, name)

    def _page(self, request: Request) -> tuple[int, int]:
        limit = int(request.query.get("limit", _DEFAULT_LIMIT))
        return int(request.query.get("page", "1")), min(self._max_page, limit)


def _check_own_token(request: Request, token: str) -> None:
    if not hmac.compare_digest(request.authorization.encode(), token.encode()):
        raise Refused(401, "Unauthorized")
