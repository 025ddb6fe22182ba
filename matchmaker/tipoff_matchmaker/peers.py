"""Tracks which matchmakers are alive: each publishes heartbeats, and each listens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from nats.aio.msg import Msg

from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks

_KNOWS_OWN_KEYS = b"own-keys"
"""What the body of a heartbeat begins with; it is empty in an earlier release. What it `says` follows."""
_LONGEST = 20_000
"""Bytes read of a heartbeat."""


class Peers:
    """The matchmakers heard of lately. `is_alive` is a hint: a take-over is a compare-and-set."""

    def __init__(self, bus: Bus, instance: str, *, silent_after: float) -> None:
        self._bus = bus
        self._silent_after = silent_after
        self._instance = instance
        self._heard: dict[str, float] = {}
        self._said: dict[str, bytes] = {}
        """What their latest heartbeats say of the service's health, where they say anything."""
        self._earlier: set[str] = set()
        """Those among them whose heartbeats do not say that they know servers with their own netcode key."""
        self._listening_since = time.monotonic()

    @property
    def know_own_keys(self) -> bool:
        """Whether no matchmaker has been heard lately that issues all tokens under the game's key, as those of an
        earlier release do: its players would be refused by a server with its own netcode key."""
        return not any(self.is_alive(instance) for instance in self._earlier)

    def is_alive(self, instance: str) -> bool:
        """Whether `instance` has been heard of lately ("" never was); True while we have not listened for long enough
        to know."""
        if not instance:
            return False
        now = time.monotonic()
        return now - self._heard.get(instance, self._listening_since) < self._silent_after

    @property
    def alone(self) -> bool:
        """Whether no other matchmaker has been heard of lately."""
        return not any(self.is_alive(instance) for instance in self._heard if instance != self._instance)

    def said(self) -> list[bytes]:
        """What the heartbeats of the other matchmakers alive say, those that say anything."""
        return [data for name, data in self._said.items() if name != self._instance and self.is_alive(name)]

    async def falls_silent(self, instance: str) -> bool:
        """Whether `instance` is silent, or becomes so within one period of silence; waits until that is known."""
        end = time.monotonic() + self._silent_after
        while instance:
            silent_at = self._heard.get(instance, self._listening_since) + self._silent_after
            if silent_at > end:
                return False
            if (wait := silent_at - time.monotonic()) <= 0:
                return True
            await asyncio.sleep(wait)
        return True

    @asynccontextmanager
    async def listening(self, tasks: Tasks, says: Callable[[], bytes]) -> AsyncIterator[None]:
        """Publish heartbeats and listen, for the time of the block. `says`: what each is to say; the others get it from
        `said`. Raises `Unavailable`."""
        prefix = self._bus.subjects.alive("")

        async def heard(msg: Msg) -> None:
            now = time.monotonic()
            instance = msg.subject[len(prefix) :][:64]
            self._heard[instance] = now
            if msg.data.startswith(_KNOWS_OWN_KEYS):
                self._earlier.discard(instance)
            else:
                self._earlier.add(instance)
            if said := msg.data[len(_KNOWS_OWN_KEYS) : _LONGEST]:
                self._said[instance] = said
            else:
                self._said.pop(instance, None)
            if len(self._heard) > 1000:
                self._heard = {name: at for name, at in self._heard.items() if now - at < self._silent_after}
                self._earlier &= self._heard.keys()
                self._said = {name: said for name, said in self._said.items() if name in self._heard}

        subscription = await self._bus.subscribe(self._bus.subjects.alive("*"), heard)
        self._listening_since = time.monotonic()
        self._bus.on_reconnect(self._deaf_until_now)
        beat = tasks.start(self._beat(says), "alive")
        try:
            yield
        finally:
            beat.cancel()
            await subscription.unsubscribe()

    def _deaf_until_now(self) -> None:
        self._listening_since = time.monotonic()
        self._heard.clear()
        self._earlier.clear()
        self._said.clear()

    async def _beat(self, says: Callable[[], bytes]) -> None:
        while True:
            with suppress(Unavailable):  # NATS is away: no heartbeat arrives anywhere
                await self._bus.publish(self._bus.subjects.alive(self._instance), _KNOWS_OWN_KEYS + says())
            await asyncio.sleep(self._silent_after / 3)
