"""`tipoff kick` and `tipoff drain`: what an operator may do to a session and to a game server.

Both ask a matchmaker, which does it the usual way; asking again is harmless.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
import nats.errors
import typer

from tipoff.where import Namespace, NatsUrl, StateDir, nats_settings
from tipoff_shared.admin import DrainDeployment, Drained, Kicked, KickSession, decode_reply, encode
from tipoff_shared.errors import NoServerInTime, Unavailable
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.records import DeploymentRecord, DeploymentState

T = TypeVar("T")

_ANSWER = 5.0
_OVER = ("closing", "gone")


async def kick(bus: Bus, session_id: str, reason: str = "") -> Kicked:
    """End a session. Raises a `TipoffError`: 404 when there is no such."""
    return await _ask(bus, "kick", KickSession(session_id, reason), Kicked)


async def drain(bus: Bus, deployment_id: str, reason: str = "", *, now: bool = False) -> Drained:
    """No new players on a server; it ends with its last one (`now`: at once). Raises a `TipoffError`."""
    return await _ask(bus, "drain", DrainDeployment(deployment_id, reason, now), Drained)


async def _ask(bus: Bus, operation: str, question: msgspec.Struct, kind: type[T]) -> T:
    try:
        msg = await bus.request(bus.subjects.admin(operation), encode(question), timeout=_ANSWER)
    except Unavailable as exc:
        if isinstance(exc.__cause__, nats.errors.NoRespondersError):
            raise Unavailable(
                "no matchmaker runs here; `tipoff up` or `tipoff serve matchmaker` starts one"
            ) from exc
        raise
    return decode_reply(msg.data, kind)


async def until_gone(
    bus: Bus, deployment_id: str, *, timeout: float | None, on_change: Callable[[DeploymentRecord], None]
) -> None:
    """Until the server has ended; raises `NoServerInTime` after `timeout` seconds. Goes on through an outage of NATS.

    `on_change` is called for each state and number of seats it passes.
    """
    store = buckets(bus).deployments
    seen: tuple[DeploymentState, int] | None = None

    def gone(record: DeploymentRecord | None) -> bool:
        nonlocal seen
        if record is None or record.state is DeploymentState.GONE:
            return True
        now = (record.state, len(record.seats))
        if now != seen:
            seen = now
            on_change(record)
        return False

    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    async with store.watch(deployment_id) as changes:
                        entry = await store.get(deployment_id)
                        if gone(None if entry is None else entry.value):
                            return
                        while True:
                            for change, ack in await changes.fetch():
                                await ack()
                                if gone(change.value):
                                    return
                except Unavailable:
                    await asyncio.sleep(1)  # NATS is away; nobody can tell before it is back
    except TimeoutError:
        state, seats = seen or ("unknown", 0)
        raise NoServerInTime(
            f"{deployment_id} has not ended within {timeout:g} s: it is {state}, {seats} seat(s) are taken; "
            "`--now` ends it with its players"
        ) from None


Reason = Annotated[str, typer.Option(help="What players and the records are told.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


def kick_command(
    session: Annotated[str, typer.Argument(help="Id of the session, as `tipoff status` shows it.")],
    reason: Reason = "",
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """End one player's session: the connection ends, the seat is free again."""

    async def work() -> None:
        async with connect(nats_settings(state_dir, nats, namespace), name="tipoff kick") as bus:
            done = await kick(bus, session, reason)
        if as_json:
            print(json.dumps(msgspec.to_builtins(done)))
        elif done.state in _OVER:
            print(f"session {session} had ended already: {done.reason}")
        else:
            where = f" on {done.deployment_id}" if done.deployment_id else ""
            print(f"session {session} was {done.state}{where} and is ended: {done.reason}")

    asyncio.run(work())


def drain_command(
    deployment: Annotated[str, typer.Argument(help="Id of the game server, as `tipoff status` shows it.")],
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(help="With --wait: seconds to wait at most.", min=0, show_default="no limit"),
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="End it at once, with its players.")] = False,
    reason: Reason = "",
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Let nobody new onto a game server, and end it when its last player has left."""

    async def work() -> None:
        began = time.monotonic()
        async with connect(nats_settings(state_dir, nats, namespace), name="tipoff drain") as bus:
            done = await drain(bus, deployment, reason, now=now)
            if as_json:
                if wait:
                    await until_gone(bus, deployment, timeout=timeout, on_change=lambda record: None)
                    done = Drained(deployment, DeploymentState.GONE.value, 0, done.reason)
                print(json.dumps(msgspec.to_builtins(done)))
            elif wait:
                await until_gone(bus, deployment, timeout=timeout, on_change=_say)
                print(f"{deployment} has ended ({time.monotonic() - began:.1f} s)")
            else:
                print(_describe(deployment, done.state, done.seats))

    asyncio.run(work())


def _say(record: DeploymentRecord) -> None:
    print(_describe(record.id, record.state, len(record.seats)), flush=True)


def _describe(deployment_id: str, state: str, seats: int) -> str:
    if state == DeploymentState.DRAINING and seats:
        return f"{deployment_id} lets nobody in any more and ends with the last of {seats} seat(s)"
    return f"{deployment_id} is {state}" + (f", {seats} seat(s) are taken" if seats else "")
