"""Tells game servers which seats wait for their players, so that a game knows who is on the way.

One small message for each seat, without a round trip, and none that takes it back: the server counts the time itself,
and the command that ends a session (kicker.py) says the same. A message that is lost costs the game only the knowledge.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from tipoff_shared.errors import TipoffError
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import DeploymentRecord, Expect, SessionRecord, encode

log = logging.getLogger(__name__)


class ExpectedSeats:
    """Sends `Expect` to servers whose lease says that they want it. `clock`: Unix seconds."""

    def __init__(self, bus: Bus, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._clock = clock

    async def tell(self, session: SessionRecord, server: DeploymentRecord, until: float) -> None:
        """The session's seat on `server` waits for its player until `until` (Unix seconds)."""
        if not server.expects:
            return
        command = Expect(session.id, max(0.0, round(until - self._clock(), 1)))
        try:
            await self._bus.publish(self._bus.subjects.commands(server.id), encode(command))
        except TipoffError as exc:
            log.info("server %s does not hear of a promised seat: %s", server.id, exc)
