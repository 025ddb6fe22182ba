"""Records by compare-and-set: what the drivers need of a store, and JetStream as one.

`tipoff_shared.kv.bucket` serves typed records that are written now and then. Here every request of a player is one
write, so this module reads and writes bytes, uses one inbox for all acknowledgements, and fails pending writes at once
when NATS goes away, instead of after their time-out.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import api

from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import PermissionDenied

PAIRING_BUCKET, GAMES_BUCKET = BUCKETS = ("turn_pairing", "turn_games")
MAX_GAMES = 10_000
"""Records in the bucket of the games, also of those that ended in the last minute."""
MAX_RECORD = 1 << 20
"""Bytes; a game with all its caches full is 540 KB."""
LIFETIME = 600.0
"""Seconds after which a record goes that nobody writes any more: outlives an outage."""
ANSWER_WITHIN = 2.0
"""Seconds for one read or write."""

_WRONG_LAST_SEQUENCE = 10071
_STORE_FULL = 10077
_NO_MESSAGE = 10037
_LAST_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
_TTL = "Nats-TTL"


class StoreFull(Unavailable):
    """The bucket has as many records as it may have."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as it was read. `revision` is what the next write names; 0 where there never was one."""

    value: bytes | None
    revision: int


class RecordStore(Protocol):
    """One bucket. Any call may raise `Unavailable`; a write's outcome is then unknown: read again."""

    async def get(self, key: str) -> Stored:
        """The record as it is now, never an older one."""
        ...

    async def newer(self, key: str, revision: int) -> Stored | None:
        """The record, if it is another than that of `revision` (which must have been read or written): cheaper than
        `get` when it is not."""
        ...

    async def set(self, key: str, value: bytes, revision: int, *, ttl: float | None = None) -> int:
        """Write if `revision` is still the present one; the new revision. Raises `LostRace` when it is not, and
        `StoreFull`. The record goes `LIFETIME` seconds after its last write, or after `ttl` if that is sooner."""
        ...

    def changes(self, key: str, told: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Call `told` when somebody writes the record, now and then once too often: a hint."""
        ...

    @property
    def heard_since(self) -> float:
        """Unix seconds since when this process reaches the store without a break."""
        ...

    async def available(self, timeout: float) -> bool:
        """Wait until the store can be reached; False when it cannot after `timeout` seconds."""
        ...


PAUSE = 0.05
"""Seconds between two tries while NATS is connected and its JetStream is not ready yet."""

Abandoned = Callable[[], Awaitable[bool]]
"""Whether the client has gone away, so that nobody would get the answer."""


class ClientGone(Exception):
    """The client left before its request was carried out; nothing was changed for it."""


class Patience:
    """Of one request: its tries after failures of the store, up to `seconds` from the first."""

    def __init__(self, store: RecordStore, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._until: float | None = None
        self.tried = 0

    async def after(self, failure: Unavailable) -> None:
        """Return when it is worth another try; raise `failure` when time is up."""
        now = asyncio.get_running_loop().time()
        if self._until is None:
            self._until = now + self._seconds
        self.tried += 1
        left = self._until - now
        if left <= 0 or not await self._store.available(left):
            raise failure
        if self.tried > 1:
            await asyncio.sleep(PAUSE)  # connected but failing: a stream that elects its leader tells nobody


class MemoryRecords:
    """Revisions count up over all keys, as a stream's do. Records of the past go when somebody asks for them."""

    def __init__(self, max_records: int = 1_000_000) -> None:
        self._records: dict[str, tuple[bytes, int, float]] = {}
        self._told: defaultdict[str, list[Callable[[], None]]] = defaultdict(list)
        self._revision = 0
        self._max_records = max_records
        self.heard_since = time.time()

    async def get(self, key: str) -> Stored:
        value, revision, expires = self._records.get(key, (None, 0, 0.0))
        return Stored(value, revision) if expires > time.time() else Stored(None, 0)

    async def newer(self, key: str, revision: int) -> Stored | None:
        stored = await self.get(key)
        return stored if stored.revision > revision else None

    async def set(self, key: str, value: bytes, revision: int, *, ttl: float | None = None) -> int:
        present = await self.get(key)
        if present.revision != revision:
            raise LostRace(f"{key} was changed by somebody else")
        if present.value is None and len(self._records) >= self._max_records:
            raise StoreFull("maximum messages exceeded", retry_after=5)
        self._revision += 1
        self._records[key] = (value, self._revision, time.time() + (ttl or LIFETIME))
        for told in self._told.get(key, ()):
            told()
        return self._revision

    @asynccontextmanager
    async def changes(self, key: str, told: Callable[[], None]) -> AsyncIterator[None]:
        self._told[key].append(told)
        try:
            yield
        finally:
            self._told[key].remove(told)
            if not self._told[key]:
                del self._told[key]

    async def available(self, timeout: float) -> bool:
        del timeout
        return True


class _ApiError(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _RawMessage(msgspec.Struct):
    seq: int
    data: bytes = b""
    hdrs: bytes = b""


class _Answer(msgspec.Struct):
    """An acknowledgement (`seq`) or an answer to a read (`message`), or what went wrong."""

    seq: int = 0
    message: _RawMessage | None = None
    error: _ApiError | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class Inbox:
    """One wildcard inbox for every question to JetStream; a question costs a future and no task."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._prefix = bus.nc.new_inbox()
        self._waiting: dict[str, tuple[asyncio.Future[bytes], float, str]] = {}
        """Inbox of each question -> its answer, until when it may come, the subject that was asked."""
        self._count = 0
        self._loop = asyncio.get_running_loop()
        self._sweep: asyncio.TimerHandle | None = None
        self._open = True
        self._reachable = asyncio.Event()
        if bus.connected:
            self._reachable.set()
        bus.on_disconnect(self._lost)
        bus.on_denied(self._denied)
        bus.on_reconnect(self._reachable.set)

    async def subscribe(self) -> None:
        await self._bus.nc.subscribe(f"{self._prefix}.*", cb=self._received)

    async def ask(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> _Answer:
        """Raises `Unavailable`, with what NATS said. Cancelling is safe; a write may still be carried out."""
        if not self._open:
            raise Unavailable("this server is going away; ask again", retry_after=1)
        self._count += 1
        inbox = f"{self._prefix}.{self._count}"
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[inbox] = (future, self._loop.time() + ANSWER_WITHIN, subject)
        if self._sweep is None:
            self._sweep = self._loop.call_later(ANSWER_WITHIN / 4, self._expire)
        try:
            await self._bus.nc.publish(subject, payload, inbox, headers)
            answer = _decode(await future)
        except PermissionDenied as exc:
            raise exc.again() from exc
        except (nats.errors.Error, msgspec.DecodeError) as exc:
            raise self._unavailable(str(exc) or type(exc).__name__) from exc
        finally:
            self._waiting.pop(inbox, None)
        return answer

    async def _received(self, msg: Msg) -> None:
        waiting = self._waiting.pop(msg.subject, None)
        if waiting is None or waiting[0].done():
            return
        if msg.data:
            waiting[0].set_result(msg.data)
        else:  # a status without a body: nobody listens there
            waiting[0].set_exception(self._unavailable("JetStream does not answer"))

    def _expire(self) -> None:
        self._sweep = None
        now = self._loop.time()
        for future, deadline, _ in list(self._waiting.values()):
            if deadline <= now and not future.done():
                future.set_exception(self._unavailable(f"no answer within {ANSWER_WITHIN:g} s"))
        if self._waiting:
            self._sweep = self._loop.call_later(ANSWER_WITHIN / 4, self._expire)

    def _lost(self) -> None:
        """The connection is gone, and with it the answers to all that was asked on it."""
        self._reachable.clear()
        for future, _, _ in list(self._waiting.values()):
            if not future.done():
                future.set_exception(self._unavailable("the connection was lost"))

    def _denied(self, denied: PermissionDenied) -> None:
        for future, _, subject in list(self._waiting.values()):
            if not future.done() and not denied.subscription and denied.concerns(subject):
                future.set_exception(denied.again())

    def _unavailable(self, said: str) -> Unavailable:
        return Unavailable(
            f"the turn relay's store is not available: {self._bus.last_error or said}", retry_after=1
        )

    async def available(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._reachable.wait()
        except TimeoutError:
            return False
        return self._open

    def close(self) -> None:
        """Whatever still waits fails with `Unavailable`."""
        self._open = False
        self._lost()
        self._reachable.set()
        if self._sweep is not None:
            self._sweep.cancel()


class NatsRecords:
    """`RecordStore` on a JetStream bucket. Reads go to the stream's leader: one reads what was written."""

    def __init__(self, bus: Bus, bucket: str, inbox: Inbox) -> None:
        self._bus = bus
        self._inbox = inbox
        self.bucket = bus.subjects.bucket(bucket)
        self._prefix = f"$KV.{self.bucket}."
        self._read = f"$JS.API.STREAM.MSG.GET.KV_{self.bucket}"

    @property
    def heard_since(self) -> float:
        since = self._bus.connected_since
        return time.time() - (0.0 if since is None else time.monotonic() - since)

    async def get(self, key: str) -> Stored:
        return await self._get({"last_by_subj": self._prefix + key}) or Stored(None, 0)

    async def newer(self, key: str, revision: int) -> Stored | None:
        # A bucket keeps one message for each subject, so the next one is the present one.
        return await self._get({"seq": revision + 1, "next_by_subj": self._prefix + key})

    async def _get(self, question: dict[str, str | int]) -> Stored | None:
        answer = await self._inbox.ask(self._read, msgspec.json.encode(question))
        if answer.error is not None:
            if answer.error.err_code == _NO_MESSAGE:
                return None
            raise Unavailable(f"{self.bucket}: {answer.error.description}", retry_after=1)
        if answer.message is None:
            raise Unavailable(f"{self.bucket}: an answer without a message", retry_after=1)
        return Stored(answer.message.data or None, answer.message.seq)  # without data: a delete marker

    async def set(self, key: str, value: bytes, revision: int, *, ttl: float | None = None) -> int:
        headers = {_LAST_SEQUENCE: str(revision)}
        if ttl is not None:
            headers[_TTL] = str(max(1, round(ttl)))
        answer = await self._inbox.ask(self._prefix + key, value, headers)
        if answer.error is not None:
            if answer.error.err_code == _WRONG_LAST_SEQUENCE:
                raise LostRace(f"{self.bucket}/{key} was changed by somebody else")
            if answer.error.err_code == _STORE_FULL:
                raise StoreFull(f"{self.bucket}: {answer.error.description}", retry_after=5)
            raise Unavailable(f"{self.bucket}: {answer.error.description}", retry_after=1)
        return answer.seq

    @asynccontextmanager
    async def changes(self, key: str, told: Callable[[], None]) -> AsyncIterator[None]:
        async def received(_: Msg) -> None:
            told()

        try:
            subscription = await self._bus.nc.subscribe(self._prefix + key, cb=received)
        except nats.errors.Error as exc:
            raise Unavailable(f"{self.bucket}: {str(exc) or type(exc).__name__}", retry_after=1) from exc
        try:
            yield
        finally:
            if self._bus.connected:
                await subscription.unsubscribe()

    async def available(self, timeout: float) -> bool:
        return await self._inbox.available(timeout)

    async def create_bucket(self, description: str, max_records: int) -> None:
        """Make the bucket if it is not there; one that is stays as it is, an operator may have set its limits."""
        config = api.StreamConfig(
            name=f"KV_{self.bucket}",
            description=description,
            subjects=[f"{self._prefix}>"],
            allow_direct=False,
            deny_delete=True,
            allow_rollup_hdrs=True,
            discard=api.DiscardPolicy.NEW,
            max_msg_size=MAX_RECORD,
            max_msgs_per_subject=1,
            max_msgs=max_records,
            max_age=LIFETIME,
            max_bytes=-1,
            max_consumers=-1,
            num_replicas=self._bus.settings.replicas,
            storage=api.StorageType.FILE,
            allow_msg_ttl=True,
        )
        try:
            await self._bus.js.add_stream(config)
        except nats.js.errors.APIError as exc:
            if exc.err_code == 10058:  # in use with a different configuration
                return
            said = exc.description or str(exc)
        except (TimeoutError, nats.errors.Error) as exc:
            said = self._bus.last_error or str(exc) or "no answer; is JetStream enabled?"
        else:
            return
        raise Unavailable(
            f"the turn relay cannot make its bucket {self.bucket}: {said}. docs/turn-relay.md lists the permissions it "
            "needs; TIPOFF_HTTPD_TURN_RELAY=0 goes without it"
        )
