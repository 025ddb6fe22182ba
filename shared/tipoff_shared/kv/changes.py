"""Changes of a bucket's keys; each is delivered again until it is acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeAlias, TypeVar

import msgspec
from nats.aio.msg import Msg

from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.errors import translated
from tipoff_shared.nats.pull import PullReader

T = TypeVar("T")

_Unavailable: TypeAlias = Callable[[Unavailable], Unavailable]
"""Rewords an error of NATS for one bucket."""


class Change(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One change of a key. `value` is None for a tombstone: the key was deleted, or its TTL ended (`expired`).
    `server`: the deployment that it is about, `why`: the reason for a deletion; "" where its writer did not say."""

    key: str
    value: T | None
    revision: int
    expired: bool = False
    server: str = ""
    why: str = ""


class Ack(Protocol):
    """Acknowledges a handled change, so that it is not delivered again. Both calls raise `Unavailable` while NATS is
    away; the change may then come again."""

    async def __call__(self) -> None:
        """Send the acknowledgement and do not wait."""
        ...

    async def confirmed(self) -> None:
        """Send the acknowledgement and return when the server has it."""
        ...


class Changes(Generic[T]):
    """Reads changes in batches; the caller acknowledges each after it has handled it."""

    def __init__(
        self,
        reader: PullReader,
        read: Callable[[Msg], Change[T] | None],
        unavailable: _Unavailable,
    ) -> None:
        self._reader = reader
        self._read = read
        self._unavailable = unavailable

    async def fetch(self, *, batch: int = 100, timeout: float = 5.0) -> list[tuple[Change[T], Ack]]:
        """Up to `batch` changes, as soon as there is one; an empty list after `timeout` seconds without any.

        Raises `Unavailable` when NATS goes away, and while it is (durable: call again later and nothing is lost).
        """
        try:
            messages = await self._reader.fetch(batch, timeout)
        except Unavailable as exc:
            raise self._unavailable(exc) from exc
        changes: list[tuple[Change[T], Ack]] = []
        for msg in messages:
            change = self._read(msg)
            if change is None:  # a value nobody can read must not come again for ever
                await _MsgAck(msg, self._unavailable)()
            else:
                changes.append((change, _MsgAck(msg, self._unavailable)))
        return changes


class _MsgAck:
    def __init__(self, msg: Msg, unavailable: _Unavailable) -> None:
        self._msg = msg
        self._unavailable = unavailable

    async def __call__(self) -> None:
        try:
            with translated():
                await self._msg.ack()
        except Unavailable as exc:
            raise self._unavailable(exc) from exc

    async def confirmed(self) -> None:
        try:
            with translated():
                await self._msg.ack_sync(timeout=2)
        except Unavailable as exc:
            raise self._unavailable(exc) from exc
