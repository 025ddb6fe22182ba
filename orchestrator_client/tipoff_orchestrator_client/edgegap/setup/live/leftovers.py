"""Removes what a live check has made: deployments, sessions and a version, each of which carries `MARK`.

So the next check removes what a check that died has left, whoever ran it. Only one check may run on an account.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.edgegap.api.answers import Server, Session
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.api.errors import Gone, Rejected
from tipoff_orchestrator_client.edgegap.setup.account import AccountApi
from tipoff_shared.primitives.retry import retry

T = TypeVar("T")

MARK = "live-check-by-tipoff"
"""A tag of its deployments, a part of its sessions' webhook URL, and the name of its version. It is no namespace's tag
(naming.py), so no matchmaker takes these deployments for its own."""


_TRIES = 5


@dataclass(slots=True)
class Removal:
    """What was removed, and what is left at Edgegap, for people."""

    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


async def remove_marked(
    client: EdgegapClient,
    account: AccountApi,
    application: str,
    made: Iterable[str] = (),
    *,
    first_pause: float = 0.5,
) -> Removal:
    """Remove everything that carries `MARK`, and the deployments `made`. Never raises `OrchestratorError`: what could
    not be removed, or looked for, in five tries is in `left`. Cancelling is safe; the next call removes the rest.

    A deployment on which Edgegap has meanwhile put the sessions of players goes on, until Edgegap or the next check
    ends it. `first_pause`: seconds between the first two tries.
    """
    done = Removal()

    async def attempt(what: str, call: Callable[[], Awaitable[T]], default: T) -> T:
        """`default` where it fails, which `left` then says of `what`."""
        try:
            return await retry(call, tries=_TRIES, first_pause=first_pause, retry_if=_may_pass)
        except OrchestratorError as exc:
            done.left.append(f"{what}: {exc}")
            return default

    async def remove(what: str, call: Callable[[], Awaitable[None]]) -> None:
        async def removed() -> bool:
            await call()
            return True

        if await attempt(what, removed, False):
            done.removed.append(what)

    nothing: list[Server] = []
    servers = await attempt(
        f"deployments with the tag {MARK} were not looked for", client.deployments, nothing
    )
    deployments = dict.fromkeys([*made, *(one.request_id for one in servers if MARK in one.tags)])
    unknown: list[Session] | None = None
    sessions = await attempt("sessions were not looked for", lambda: _maybe_sessions(client), unknown)
    for session in sessions or ():
        if MARK in session.webhook_url:
            id = session.session_id
            await remove(f"session {id}", partial(client.delete_session, id))
    for request_id in deployments:
        if sessions is None:
            done.left.append(f"deployment {request_id}: not stopped, because players may be on it")
        elif count := players_on(request_id, sessions):
            done.left.append(
                f"deployment {request_id}: Edgegap has put {count} session(s) of players on it; stop it in the "
                "dashboard, or by another live check when they are gone"
            )
        else:
            await remove(f"deployment {request_id}", partial(client.stop, request_id))
    what = f"version {MARK} of {application}"
    if (
        await attempt(f"{what} was not looked for", lambda: account.version(application, MARK), None)
        is not None
    ):
        await remove(what, lambda: account.delete_version(application, MARK))
    return done


async def _maybe_sessions(client: EdgegapClient) -> list[Session] | None:
    return await sessions_of(client)


def _may_pass(exc: Exception) -> bool:
    return isinstance(exc, OrchestratorError) and exc.retryable


def players_on(request_id: str, sessions: Iterable[Session]) -> int:
    """How many sessions on this deployment are not the check's. Pure."""
    return sum(one.request_id == request_id and MARK not in one.webhook_url for one in sessions)


async def sessions_of(client: EdgegapClient) -> list[Session]:
    """The account's sessions; none where Edgegap has no v1 sessions. Raises `OrchestratorError`."""
    try:
        return await client.sessions()
    except (Gone, Rejected):
        return []
