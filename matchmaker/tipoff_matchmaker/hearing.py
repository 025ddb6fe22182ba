"""Holds whether this matchmaker hears its game servers, so that their silence means something.

In the trusted profile servers write their keys themselves: it is enough that NATS has been connected for two TTLs of a
lease. In the isolated profile they speak through a stream, which must also have taken and delivered events without a
break for as long (isolated/probe.py): a stream that is full, or read too slowly, makes every server look dead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tipoff_shared.nats.connection import Bus

log = logging.getLogger(__name__)

Listener: TypeAlias = Callable[[float], None]
"""Called with seconds for which nobody may be judged by silence, as long as that is so."""


@dataclass(frozen=True, slots=True)
class Position:
    """How the stream of events stands. Times are monotonic seconds. `probed_at`: when the latest probe was published
    that is not known to be read, None when there is none; `refused`: why the stream did not take the next one."""

    now: float
    messages: int
    max_messages: int
    size: int
    max_size: int
    probed_at: float | None = None
    refused: str = ""


def trouble(position: Position, *, patience: float) -> str:
    """Why game servers may not be heard now; "" when they are. A stream that is half full counts as full: it may have
    been so in between, and whoever fills it gets every place that becomes free. Pure."""
    if position.refused:
        return f"the stream of their events takes none: {position.refused}"
    for filled, most, what in (
        (position.messages, position.max_messages, "events"),
        (position.size, position.max_size, "bytes"),
    ):
        if most > 0 and 2 * filled > most:
            return f"the stream of their events is full: {filled} of {most} {what}"
    if position.probed_at is not None and position.now - position.probed_at > patience:
        return f"events are read more than {patience:g} s late"
    return ""


class Hearing:
    """`settle`: seconds without trouble after which silence means something. `by_stream`: game servers speak through
    the stream; then `heard` and `disturbed` are called about it, and nothing is settled before the first `heard`."""

    def __init__(self, bus: Bus, *, settle: float, by_stream: bool) -> None:
        self._bus = bus
        self._settle = settle
        self._by_stream = by_stream
        self._heard_since: float | None = None
        self._disturbed_at: float | None = None
        self._lost_at: float | None = None
        self._began: tuple[int, float | None] | None = None
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` again and again while the servers are not heard."""
        self._listeners.append(listener)

    @property
    def settled(self) -> bool:
        """Whether a missing lease or connection means something."""
        now = time.monotonic()
        return all(
            since is not None and now - since >= self._settle
            for since in (self._bus.connected_since, *((self._heard_since,) if self._by_stream else ()))
        ) and (self._lost_at is None or now - self._lost_at >= self._settle)

    def began(self, revision: int) -> None:
        """This process begins to listen; leases up to `revision` were there before."""
        self._began = (revision, self._bus.connected_since)

    @property
    def unbroken(self) -> bool:
        """Whether servers have been heard without a break since this process began to listen."""
        began = self._began
        return (
            began is not None
            and began[1] is not None
            and began[1] == self._bus.connected_since
            and self._lost_at is None
            and not self.deaf
        )

    def is_news(self, revision: int) -> bool:
        """Whether a lease of this revision was written since then, so that its server is connected, too."""
        return self.unbroken and self._began is not None and revision > self._began[0]

    @property
    def deaf(self) -> bool:
        """Whether game servers were not heard at some time lately although NATS was there: nothing ends for want of
        news, not even a start that takes too long."""
        if not self._by_stream:
            return False
        disturbed = self._disturbed_at
        lately = disturbed is not None and time.monotonic() - disturbed < self._settle
        return lately or self._heard_since is None

    def heard(self, at: float) -> None:
        """What servers had said until `at` has been read."""
        if self._heard_since is None:
            if self._disturbed_at is not None:
                log.warning("game servers are heard again")
            self._heard_since = at

    def lost(self) -> None:
        """NATS has lost what the servers had said; they say it again within a TTL."""
        self._lost_at = time.monotonic()

    def disturbed(self, why: str) -> None:
        """Servers may have spoken and were not heard."""
        if self._heard_since is not None or self._disturbed_at is None:
            log.error(
                "game servers are not heard, so none is ended for its silence before %g s have passed without this: "
                "%s",
                self._settle,
                why,
            )
        self._heard_since, self._disturbed_at = None, time.monotonic()
        for listener in self._listeners:
            listener(self._settle)
