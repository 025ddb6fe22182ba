"""Decides, purely, who may sit on a deployment, and whose seat is free again.

A seat carries its own deadline. It counts while its session's record is ready or active and names this deployment,
or until that deadline; otherwise anyone may free it (`stale_seats`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from tipoff_matchmaker.errors import NoSeat
from tipoff_shared.records import DeploymentRecord, DeploymentState, SessionRecord, SessionState


def holds_seat(session: SessionRecord | None, deployment_id: str) -> bool:
    """Whether this record makes the session's seat on `deployment_id` count."""
    return (
        session is not None
        and session.deployment_id == deployment_id
        and session.state in (SessionState.READY, SessionState.ACTIVE)
    )


def is_open(record: DeploymentRecord) -> bool:
    """Whether new players may be sent there, as far as seats are free: it is ready and not locked."""
    return record.state is DeploymentState.READY and not record.locked


def free_seats(record: DeploymentRecord) -> int:
    """Seats that may be given out now; 0 unless the deployment is ready and not locked."""
    if not is_open(record):
        return 0
    return max(0, record.capacity - len(record.seats))


def take(record: DeploymentRecord | None, members: Iterable[str], until: float) -> DeploymentRecord:
    """The record with seats for all `members`; raises `NoSeat` when it cannot take them all. A member that sits here
    already keeps its one seat, also where it is locked, with the new `until`, so that the writer of the older one can
    no longer undo it (see `leave`). `until`: Unix seconds."""
    if record is None or record.state is not DeploymentState.READY:
        raise NoSeat
    seats = dict(record.seats)
    for member in members:
        seats[member] = until
    if len(seats) > len(record.seats) and (record.locked or len(seats) > record.capacity):
        raise NoSeat
    return msgspec.structs.replace(record, seats=seats, empty_since=0.0)


def keep(record: DeploymentRecord, member: str, until: float) -> DeploymentRecord:
    """The record with a seat for a member who plays there, in any state and whatever the capacity: the seat was
    lost."""
    if member in record.seats or record.state is DeploymentState.GONE:
        return record
    return msgspec.structs.replace(record, seats={**record.seats, member: until}, empty_since=0.0)


def leave(
    record: DeploymentRecord, members: Iterable[str], now: float, *, until: float | None = None
) -> DeploymentRecord:
    """The record without the members' seats. With `until`: only those seats that were written with it.

    Two matchmakers may work on one request, and meet on one deployment. The one that finds its member seated already
    shares that seat and writes its own `until`; it must not undo what it shares, and the other one's undo then finds
    another `until`. So no undo ever takes the winner's seat.
    """
    leaving = {
        member
        for member in members
        if member in record.seats and (until is None or record.seats[member] == until)
    }
    if not leaving:
        return record
    seats = {member: deadline for member, deadline in record.seats.items() if member not in leaving}
    return msgspec.structs.replace(
        record, seats=seats, empty_since=record.empty_since if seats else (record.empty_since or now)
    )


def stale_seats(
    record: DeploymentRecord, sessions: Mapping[str, SessionRecord], now: float, *, slack: float
) -> dict[str, float]:
    """The seats anyone may free: member -> its deadline. `slack` seconds are allowed for clocks that differ."""
    stale: dict[str, float] = {}
    for member, until in record.seats.items():
        session = sessions.get(member)
        if holds_seat(session, record.id):
            continue
        named_here = session is not None and session.deployment_id == record.id
        if named_here or now > until + slack:
            stale[member] = until
    return stale
