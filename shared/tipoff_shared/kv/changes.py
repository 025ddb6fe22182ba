"""Changes of a bucket's keys, as they are read: each comes again until it is acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import nats.errors
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext

from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.connection import Bus

T = TypeVar("T")

_Unavailable: TypeAlias = Callable[[BaseException], Unavailable]
"""Says an error of NATS in the bucket's words."""


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One change of a key: `value` is None when it was deleted or expired (`expired` tells which). What is left of a
    deleted key is its tombstone: a change without a value."""

    key: str
    value: T | None
    revision: int
    expired: bool = False


class Ack(Protocol):
    """The change is handled, and is not to come again."""

    async def __call__(self) -> None:
        """Say so."""
        ...

    async def confirmed(self) -> None:
        """Say so, and return when the server knows. Raises `Unavailable`: then it may come again."""
        ...


class Changes(Generic[T]):
    """`fetch` a batch at a time; each change is acknowledged after its handling."""

    def __init__(
        self,
        bus: Bus,
        sub: JetStreamContext.PullSubscription,
        read: Callable[[Msg], Change[T] | None],
        unavailable: _Unavailable,
    ) -> None:
        self._bus = bus
        self._sub = sub
        self._read = read
        self._unavailable = unavailable

    async def fetch(self, *, batch: int = 100, timeout: float = 5.0) -> list[tuple[Change[T], Ack]]:
        """Up to `batch` changes, as soon as there is one; an empty list after `timeout` seconds without any.

        Raises `Unavailable` while NATS is away (durable: call again later and nothing is lost).
        """
        try:
            messages = await self._sub.fetch(batch, timeout=timeout)
        except (TimeoutError, nats.errors.TimeoutError):
            if not self._bus.connected:
                raise self._unavailable(nats.errors.StaleConnectionError()) from None
            return []
        except nats.errors.Error as exc:
            raise self._unavailable(exc) from exc
        changes: list[tuple[Change[T], Ack]] = []
        for msg in messages:
            change = self._read(msg)
            if change is None:  # a value nobody can read must not come again for ever
                await msg.ack()
            else:
                changes.append((change, _MsgAck(msg, self._unavailable)))
        return changes


class _MsgAck:
    def __init__(self, msg: Msg, unavailable: _Unavailable) -> None:
        self._msg = msg
        self._unavailable = unavailable

    async def __call__(self) -> None:
        await self._msg.ack()

    async def confirmed(self) -> None:
        try:
            await self._msg.ack_sync(timeout=2)
        except (TimeoutError, nats.errors.Error) as exc:
            raise self._unavailable(exc) from exc
