"""Removes what a live check has made: deployments, sessions and a version, each of which carries `MARK`.

So the next check removes what a check that died has left, whoever ran it. Only one check may run on an account.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field

from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.edgegap.api.answers import Session
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.api.errors import Gone, Rejected
from tipoff_orchestrator_client.edgegap.setup.account import AccountApi

MARK = "live-check-by-tipoff"
"""A tag of its deployments, a part of its sessions' webhook URL, and the name of its version. It is no namespace's tag
(naming.py), so no matchmaker takes these deployments for its own."""


@dataclass(slots=True)
class Removal:
    """What was removed, and what is left at Edgegap, for people."""

    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    async def try_to(self, what: str, remove: Awaitable[object]) -> None:
        """Remove one thing, and note what came of it."""
        try:
            await remove
        except OrchestratorError as exc:
            self.left.append(f"{what}: {exc}")
        else:
            self.removed.append(what)


async def remove_marked(
    client: EdgegapClient, account: AccountApi, application: str, made: Iterable[str] = ()
) -> Removal:
    """Remove everything that carries `MARK`, and the deployments `made`. Never raises `OrchestratorError`: what could
    not be removed, or looked for, is in `left`. Cancelling is safe; the next call removes the rest.

    A deployment on which Edgegap has meanwhile put the sessions of players goes on, until Edgegap or the next check
    ends it.
    """
    done = Removal()
    deployments = dict.fromkeys(made)
    try:
        deployments |= {one.request_id: None for one in await client.deployments() if MARK in one.tags}
    except OrchestratorError as exc:
        done.left.append(f"deployments with the tag {MARK} were not looked for: {exc}")
    sessions: list[Session] = []
    try:
        sessions = await sessions_of(client)
    except OrchestratorError as exc:
        done.left.append(f"sessions were not looked for: {exc}")
    for session in sessions:
        if MARK in session.webhook_url:
            await done.try_to(f"session {session.session_id}", client.delete_session(session.session_id))
    for request_id in deployments:
        if count := players_on(request_id, sessions):
            done.left.append(
                f"deployment {request_id}: Edgegap has put {count} session(s) of players on it; stop it in the "
                "dashboard, or by another live check when they are gone"
            )
        else:
            await done.try_to(f"deployment {request_id}", client.stop(request_id))
    try:
        if await account.version(application, MARK) is not None:
            what = f"version {MARK} of {application}"
            await done.try_to(what, account.delete_version(application, MARK))
    except OrchestratorError as exc:
        done.left.append(f"version {MARK} of {application} was not looked for: {exc}")
    return done


def players_on(request_id: str, sessions: Iterable[Session]) -> int:
    """How many sessions on this deployment are not the check's. Pure."""
    return sum(one.request_id == request_id and MARK not in one.webhook_url for one in sessions)


async def sessions_of(client: EdgegapClient) -> list[Session]:
    """The account's sessions; none where Edgegap has no v1 sessions. Raises `OrchestratorError`."""
    try:
        return await client.sessions()
    except (Gone, Rejected):
        return []
