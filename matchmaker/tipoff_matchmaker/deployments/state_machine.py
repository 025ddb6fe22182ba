"""Decides the life of one deployment and the size of a fleet, purely: records and facts in, records and numbers out.

    planned ──> starting ──> ready ──> draining ──> stopping ──> gone

Each function returns the record as it should be, or the very same object when the event changes nothing (it came
late, twice, or does not apply). The deployment store writes the result by compare-and-set. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from tipoff_matchmaker.deployments.readiness import ReadyServer
from tipoff_matchmaker.seats.rules import is_open
from tipoff_orchestrator_client.base import Deployment
from tipoff_shared.games import Game
from tipoff_shared.messages import Transports
from tipoff_shared.records import DeploymentRecord, DeploymentState

_COMING = (DeploymentState.PLANNED, DeploymentState.STARTING)
_OVER = (DeploymentState.STOPPING, DeploymentState.GONE)


def is_coming(record: DeploymentRecord) -> bool:
    """Whether it is planned or starts, and was never ready."""
    return record.state in _COMING


def serves(record: DeploymentRecord) -> bool:
    """Whether it is or was ready and its players play: the states in which a seat may count."""
    return record.state in (DeploymentState.READY, DeploymentState.DRAINING)


def is_live(record: DeploymentRecord) -> bool:
    """Whether it counts in the fleet: it runs, is about to run, or has not ended yet."""
    return record.state is not DeploymentState.GONE


def planned(deployment_id: str, game: Game, now: float, *, own_key: bool = False) -> DeploymentRecord:
    """A new record, written before the orchestrator is called. `own_key`: it will be asked to give the server a netcode
    key of its own."""
    return DeploymentRecord(
        id=deployment_id,
        state=DeploymentState.PLANNED,
        game=game.name,
        version=game.version,
        orchestrator=game.orchestrator,
        capacity=game.seats,
        created_at=now,
        deadline=now + game.start_timeout,
        own_key=own_key,
    )


def rebuilt(
    deployment: Deployment, game: Game, seats: Mapping[str, float], now: float, created_at: float
) -> DeploymentRecord:
    """The record of a server that runs and whose record is lost; its lease or its orchestrator makes it ready again.
    `seats` as in the record."""
    record = DeploymentRecord(
        id=deployment.deployment_id,
        state=DeploymentState.STARTING,
        game=game.name,
        version=game.version,
        orchestrator=game.orchestrator,
        capacity=game.seats,
        created_at=created_at,
        deadline=now + game.start_timeout,
        seats=dict(seats),
    )
    return placed(record, deployment)


def started(record: DeploymentRecord) -> DeploymentRecord:
    """The orchestrator has accepted it. Its start deadline stays."""
    if record.state is not DeploymentState.PLANNED:
        return record
    return msgspec.structs.replace(record, state=DeploymentState.STARTING)


def placed(
    record: DeploymentRecord, deployment: Deployment, *, just_started: bool = False
) -> DeploymentRecord:
    """Where a reverse proxy reaches it, and which digest key is its own, as its orchestrator says: the server itself
    cannot claim either. Which netcode key it has, the orchestrator says until its lease does. `just_started`: this is
    the answer to `deploy`; one that says nothing of a key (an earlier release's launcher) means the game's key."""
    if record.state is DeploymentState.GONE:
        return record
    own_key = record.own_key
    if just_started:
        own_key = bool(deployment.own_key)
    elif is_coming(record) and deployment.own_key is not None:
        own_key = deployment.own_key
    changed = msgspec.structs.replace(
        record, proxy=deployment.proxy, digest_key=deployment.digest_key, own_key=own_key
    )
    return record if changed == record else changed


def given_time(record: DeploymentRecord, deadline: float) -> DeploymentRecord:
    """Its start takes long, and its orchestrator says what it is doing: nobody stops it before `deadline`."""
    if not is_coming(record) or record.deadline >= deadline:
        return record
    return msgspec.structs.replace(record, deadline=deadline)


def ready(record: DeploymentRecord, server: ReadyServer, now: float) -> DeploymentRecord:
    """The server serves: planned or starting becomes ready. On a ready or draining one: its addresses, and its boot
    id when it has been restarted (the caller must then end the sessions of the boot before)."""
    if record.state in _OVER:
        return record
    coming = is_coming(record)
    if not coming and record.boot_id and not server.boot_id:
        return record  # the server has announced itself; its orchestrator knows less
    capacity = min(server.capacity, record.capacity) if server.capacity > 0 else record.capacity
    changed = msgspec.structs.replace(
        record,
        state=DeploymentState.READY if coming else record.state,
        deadline=0.0 if coming else record.deadline,
        empty_since=(record.empty_since or now) if not record.seats else 0.0,
        capacity=capacity,
        boot_id=server.boot_id,
        transports=server.transports,
        internal=list(server.internal),
        cert_digest=server.cert_digest,
        websocket_port=server.websocket_port,
        own_key=record.own_key if server.own_key is None else server.own_key,
        locked=record.locked if server.locked is None else server.locked,
        expects=record.expects if server.expects is None else server.expects,
    )
    return record if changed == record else changed


def draining(record: DeploymentRecord, reason: str, *, only_empty: bool) -> DeploymentRecord:
    """No new seats. `only_empty`: nothing changes while somebody sits there."""
    if record.state is not DeploymentState.READY or (only_empty and record.seats):
        return record
    return msgspec.structs.replace(record, state=DeploymentState.DRAINING, reason=reason)


def stopping(record: DeploymentRecord, reason: str, deadline: float) -> DeploymentRecord:
    """It stops now, also with players on it. `deadline`: when anyone may try to stop it again."""
    if record.state in _OVER:
        return record
    return msgspec.structs.replace(record, state=DeploymentState.STOPPING, reason=reason, deadline=deadline)


def gone(record: DeploymentRecord, reason: str) -> DeploymentRecord:
    """The orchestrator no longer runs it, and its sessions are closing or over."""
    if record.state is DeploymentState.GONE:
        return record
    return msgspec.structs.replace(
        record,
        state=DeploymentState.GONE,
        seats={},
        empty_since=0.0,
        deadline=0.0,
        reason=record.reason or reason,
    )


def in_brief(record: DeploymentRecord) -> DeploymentRecord:
    """A record that fits a full bucket, which takes nothing longer than what it replaces: a stopping server is written
    without what only its players need. The same object when it does not stop, or has nothing to leave out."""
    if record.state not in _OVER:
        return record
    brief = msgspec.structs.replace(
        record, transports=Transports(), internal=[], cert_digest="", reason="", empty_since=0.0
    )
    return record if brief == record else brief


def starts_wanted(game: Game, waiting: int, fleet: Iterable[DeploymentRecord]) -> int:
    """How many deployments to start now: enough for the `waiting` players and for `min_ready` ready servers
    without a player, less those on their way, never more than `max_deployments` together. A locked server takes no
    new players, so it counts only for that limit."""
    live = ready_free = empty = coming = 0
    for record in fleet:
        if not is_live(record):
            continue
        live += 1
        if is_coming(record):
            coming += 1
        elif is_open(record):
            ready_free += max(0, record.capacity - len(record.seats))
            empty += not record.seats
    short = max(0, waiting - ready_free)
    for_players = -(-short // game.seats)
    taken_empty = min(empty, -(-waiting // game.seats)) if waiting else 0
    spare = max(0, game.min_ready - (empty - taken_empty))
    return max(0, min(for_players + spare - coming, game.max_deployments - live))


def to_retire(game: Game | None, fleet: Iterable[DeploymentRecord], now: float) -> list[DeploymentRecord]:
    """The ready deployments that have been empty for `empty_ttl` and are more than `min_ready`, longest empty
    first. A locked one is nobody's reserve: it does not count there, and goes first. `game` None: it was removed from
    games.toml, so none of its servers is kept."""
    keep, ttl = (game.min_ready, game.empty_ttl) if game is not None else (0, Game("", "").empty_ttl)
    empty = [r for r in fleet if r.state is DeploymentState.READY and not r.seats and r.empty_since]
    due = sorted((r for r in empty if now - r.empty_since >= ttl), key=lambda r: r.empty_since)
    surplus = max(0, sum(not r.locked for r in empty) - keep)
    return [r for r in due if r.locked] + [r for r in due if not r.locked][:surplus]
