"""The life of one deployment and the size of a fleet, pure: records and facts in, records and numbers out.

    planned ──> starting ──> ready ──> draining ──> stopping ──> gone

Each function answers with the record as it should be, or with the very same object when the event changes nothing
(it came late, twice, or does not apply). The ledger writes the answer by compare-and-set. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tipoff_matchmaker.deployments.readiness import Arrival
from tipoff_orchestrator_client.base import Deployment
from tipoff_shared.games import Game
from tipoff_shared.messages import Transports
from tipoff_shared.records import DeploymentRecord, DeploymentState

_COMING = (DeploymentState.PLANNED, DeploymentState.STARTING)
_ENDING = (DeploymentState.STOPPING, DeploymentState.GONE)


def is_coming(record: DeploymentRecord) -> bool:
    return record.state in _COMING


def serves(record: DeploymentRecord) -> bool:
    """Whether it has arrived and its players play: the states in which a seat may count."""
    return record.state in (DeploymentState.READY, DeploymentState.DRAINING)


def is_live(record: DeploymentRecord) -> bool:
    """Whether it counts as one of the fleet: it runs, or is about to, or has not ended yet."""
    return record.state is not DeploymentState.GONE


def planned(deployment_id: str, game: Game, now: float) -> DeploymentRecord:
    """Written before the orchestrator is told anything."""
    return DeploymentRecord(
        id=deployment_id,
        state=DeploymentState.PLANNED,
        game=game.name,
        version=game.version,
        orchestrator=game.orchestrator,
        capacity=game.seats,
        created_at=now,
        deadline=now + game.start_timeout,
    )


def started(record: DeploymentRecord) -> DeploymentRecord:
    """The orchestrator has taken it. Its start deadline stays."""
    if record.state is not DeploymentState.PLANNED:
        return record
    return msgspec.structs.replace(record, state=DeploymentState.STARTING)


def placed(record: DeploymentRecord, deployment: Deployment) -> DeploymentRecord:
    """Where a reverse proxy reaches it, and which digest is its own, as its orchestrator says: the server itself has
    no say in that."""
    if record.state is DeploymentState.GONE:
        return record
    changed = msgspec.structs.replace(record, proxy=deployment.proxy, digest_key=deployment.digest_key)
    return record if changed == record else changed


def given_time(record: DeploymentRecord, deadline: float) -> DeploymentRecord:
    """Its start takes long, and its orchestrator says what it is busy with: nobody ends it before `deadline`."""
    if not is_coming(record) or record.deadline >= deadline:
        return record
    return msgspec.structs.replace(record, deadline=deadline)


def arrived(record: DeploymentRecord, arrival: Arrival, now: float) -> DeploymentRecord:
    """The server serves: planned or starting becomes ready. On a ready or draining one: its addresses, and its boot
    id when it has been restarted (the sessions of the boot before are then for the caller to end)."""
    if record.state in _ENDING:
        return record
    coming = is_coming(record)
    if not coming and record.boot_id and not arrival.boot_id:
        return record  # the server has announced itself; what its orchestrator says of it is less
    capacity = min(arrival.capacity, record.capacity) if arrival.capacity > 0 else record.capacity
    changed = msgspec.structs.replace(
        record,
        state=DeploymentState.READY if coming else record.state,
        deadline=0.0 if coming else record.deadline,
        empty_since=(record.empty_since or now) if not record.seats else 0.0,
        capacity=capacity,
        boot_id=arrival.boot_id,
        transports=arrival.transports,
        internal=list(arrival.internal),
        cert_digest=arrival.cert_digest,
        websocket_port=arrival.websocket_port,
    )
    return record if changed == record else changed


def draining(record: DeploymentRecord, reason: str, *, only_empty: bool) -> DeploymentRecord:
    """No new seats. `only_empty`: nothing changes while somebody sits there."""
    if record.state is not DeploymentState.READY or (only_empty and record.seats):
        return record
    return msgspec.structs.replace(record, state=DeploymentState.DRAINING, reason=reason)


def stopping(record: DeploymentRecord, reason: str, deadline: float) -> DeploymentRecord:
    """It ends now, whoever sits there. `deadline`: when anyone may try to stop it again."""
    if record.state in _ENDING:
        return record
    return msgspec.structs.replace(record, state=DeploymentState.STOPPING, reason=reason, deadline=deadline)


def gone(record: DeploymentRecord, reason: str) -> DeploymentRecord:
    """The orchestrator has it no more, and its sessions are closing or over."""
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
    """For a bucket that is full and takes nothing longer than what it replaces: a server that ends is written without
    what only its players need. The same object when it does not end, or has nothing to leave out."""
    if record.state not in _ENDING:
        return record
    brief = msgspec.structs.replace(
        record, transports=Transports(), internal=[], cert_digest="", reason="", empty_since=0.0
    )
    return record if brief == record else brief


def starts_wanted(game: Game, waiting: int, fleet: Iterable[DeploymentRecord]) -> int:
    """How many deployments to start now: enough for the `waiting` players and for `min_ready` ready servers
    without a player, less those on their way, never more than `max_deployments` together."""
    live = ready_free = empty = coming = 0
    for record in fleet:
        if not is_live(record):
            continue
        live += 1
        if is_coming(record):
            coming += 1
        elif record.state is DeploymentState.READY:
            ready_free += max(0, record.capacity - len(record.seats))
            empty += not record.seats
    short = max(0, waiting - ready_free)
    for_players = -(-short // game.seats)
    taken_empty = min(empty, -(-waiting // game.seats)) if waiting else 0
    spare = max(0, game.min_ready - (empty - taken_empty))
    return max(0, min(for_players + spare - coming, game.max_deployments - live))


def to_retire(game: Game | None, fleet: Iterable[DeploymentRecord], now: float) -> list[DeploymentRecord]:
    """The ready deployments that have been empty for `empty_ttl` and are more than `min_ready`, longest empty
    first. `game` None: it is no longer in games.toml, so none of its servers is kept."""
    keep, ttl = (game.min_ready, game.empty_ttl) if game is not None else (0, Game("", "").empty_ttl)
    empty = sorted(
        (r for r in fleet if r.state is DeploymentState.READY and not r.seats and r.empty_since),
        key=lambda r: r.empty_since,
    )
    surplus = max(0, len(empty) - keep)
    return [r for r in empty if now - r.empty_since >= ttl][:surplus]
