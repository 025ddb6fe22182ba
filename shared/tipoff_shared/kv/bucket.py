"""Key-value buckets on JetStream: typed values, compare-and-set, true listings, changes that survive outages.

tipoff does not use nats-py's KeyValue: its listings are wrong under concurrent writes, its watches go silent after a
server restart, `update` drops the TTL, and `create` succeeds over a delete marker in one setting and fails in another.
A bucket is a stream `KV_<bucket>` with subjects `$KV.<bucket>.<key>`.

Any write may raise `Unavailable`. Its outcome is then unknown (it may even be applied later): read again, then
compare-and-set.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec
from nats.aio.msg import Msg
from nats.js import api
from nats.js.client import JetStreamContext

from tipoff_shared.errors import Internal, Malformed, TipoffError, Unavailable
from tipoff_shared.kv.changes import Change, Changes
from tipoff_shared.kv.listing import brief_consumer, listing
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import NoAnswer, NoListener, NotFound, PermissionDenied, Refused, translated
from tipoff_shared.nats.jetstream import StoredMessage, ask
from tipoff_shared.nats.pull import pull_reader
from tipoff_shared.nats.write_health import TRIAL_TIMEOUT
from tipoff_shared.records import decode, encode

T = TypeVar("T")

PROBE_KEY = "_probe"
"""The key of `Bucket.probe`. It never has a value, and neither listings nor changes show it."""

_KEY = re.compile(r"(?!\.)[-/_=.a-zA-Z0-9]+(?<!\.)", re.ASCII)
_CATCH_UP = 0.5
"""Seconds in which a node that has just become a stream's leader has caught up with what was acknowledged."""
_WRONG_LAST_SEQUENCE = 10071
_STORE_FAILED = 10077
_NO_MESSAGE = 10037
_NO_STREAM = 10059
_LAST_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
_TTL = "Nats-TTL"
_OPERATION = "KV-Operation"
_MARKER = "Nats-Marker-Reason"
_ROLLUP = "Nats-Rollup"
_PADDING = "Tipoff-Padding"
_SERVER = "Tipoff-Server"
_LONGEST_WHY = 4000
_WHY = "Tipoff-Why"
"""Percent-encoded: a header is ASCII."""
_WHY_HEADER = re.compile(rb"^Tipoff-Why:[ \t]*([!-~]+)", re.MULTILINE)
_SERVER_HEADER = re.compile(rb"^Tipoff-Server:[ \t]*([!-~]+)", re.MULTILINE)
_MARKER_HEADER = re.compile(rb"^(?:KV-Operation|Nats-Marker-Reason):", re.MULTILINE)


def is_key(text: str) -> bool:
    """Whether a bucket may have this key."""
    return _KEY.fullmatch(text) is not None


class LostRace(TipoffError):
    """A compare-and-set found another revision: another writer was first. Read again and decide again."""

    code = 409


class Full(Unavailable):
    """The bucket has reached an operator's limit. It refuses new keys and longer values; deletes, `forget` and shorter
    values still work."""


class DoesNotWrite(Unavailable):
    """NATS is connected, but earlier writes to the bucket failed: this one was not even tried. See `write_health`."""


class Entry(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One key's value and the revision for a compare-and-set."""

    key: str
    value: T
    revision: int


class BucketAge(msgspec.Struct, frozen=True, gc=False):
    """When a bucket was made and when that was read (Unix seconds of nats-server), and the revision of its latest
    write. `replicated`: several nodes of a cluster have it."""

    created: float
    revision: int
    read_at: float = 0.0
    replicated: bool = False

    def is_made_anew(self, before: BucketAge) -> bool:
        """Whether it is not the bucket whose age was `before`. Another time of creation alone proves nothing: each node
        of a cluster may name that of its own replica, so the time changes with the node that answers, and a node that
        was replaced names a later one."""
        later = self.created > before.read_at and not self.replicated
        return self.created != before.created and (later or self.revision < before.revision)

    def has_gone_back(self, before: BucketAge) -> bool:
        """Whether it is the bucket whose age was `before`, in an older state, such as a backup."""
        return not self.is_made_anew(before) and self.revision < before.revision


class Removal(enum.Enum):
    """What a function given to `change` returns to remove the entry."""

    DELETE = enum.auto()
    """Delete it; a tombstone stays, where the bucket keeps them."""
    FORGET = enum.auto()
    """Remove it without a trace. Works also where the bucket is full."""


class Unread(enum.Enum):
    """The type of `UNREAD`."""

    UNREAD = enum.auto()


UNREAD: Final = Unread.UNREAD
"""For `change`: nothing is known of the entry yet."""


class ChangeResult(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """`entry`: what the key holds after the change (None: nothing); `written`: whether this call wrote or removed."""

    entry: Entry[T] | None
    written: bool


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """How values are written. `decode` raises `Malformed`, or returns None for a value to be treated as deleted."""

    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T | None]


def codec_of(kind: type[T]) -> Codec[T]:
    """The usual codec: `str` and `bytes` as they are, a msgspec Struct as JSON."""
    codec: Codec[Any]
    if kind is str:
        codec = Codec(str.encode, lambda data: data.decode(errors="replace"))
    elif kind is bytes:
        codec = Codec(bytes, bytes)
    else:
        codec = Codec(encode, lambda data: decode(data, kind))
    return codec


class Changeable(ABC, Generic[T]):
    """The compare-and-set loop `change`, for a `Bucket` and for its stand-ins in memory."""

    bucket: str
    """The bucket's name."""

    @abstractmethod
    async def latest(self, key: str) -> Change[T] | None:
        """The current entry or tombstone, or None."""

    @abstractmethod
    async def newer(self, key: str, revision: int) -> Change[T] | None:
        """As `latest`, or None when nothing was written after `revision`."""

    @abstractmethod
    def update(
        self, key: str, value: T, revision: int, *, ttl: float | None = None
    ) -> Coroutine[Any, Any, int]:
        """Compare-and-set; returns the new revision. Raises `LostRace`."""

    @abstractmethod
    async def delete(self, key: str, revision: int | None = None, *, why: str = "") -> None:
        """Delete the key; the tombstone says `why`."""

    @abstractmethod
    async def forget(self, key: str, up_to: int) -> None:
        """Remove the key's messages up to a revision."""

    def require_writable(self) -> None:
        """Raise `DoesNotWrite` when a write would not even be tried now. A bucket in memory never does."""

    async def change(
        self,
        key: str,
        function: Callable[[T | None], T | Removal | None],
        *,
        known: Entry[T] | Unread | None = UNREAD,
        recreate: bool = True,
        ttl: float | Callable[[T], float | None] | None = None,
        when_full: Callable[[T], T | Removal | None] | None = None,
        on_unavailable: Callable[[Unavailable], Awaitable[None]] | None = None,
        confirm_by_newer: bool = False,
        before_write: Callable[[], Awaitable[None]] | None = None,
        tries: int = 50,
        what: str = "",
        why: str = "",
    ) -> ChangeResult[T]:
        """Read, apply `function`, compare-and-set; again from a fresh reading as long as somebody else is first.

        `function` is pure: it may be called several times. It gets the current value (None: there is none) and
        returns the new one, a `Removal`, or None or the same object for "no change". What it raises, the caller gets.
        Neither "no change" nor an exception counts before the entry has been read: what was known may be old.

        * `known`: begin with this entry instead of reading (None: begin as if there were none).
        * `recreate=False`: a deleted key stays deleted, as long as its tombstone is there; `function` is not called.
        * `ttl`: seconds for which the new entry lives, or a function of the new value; None: for ever.
        * `when_full`: what to write instead of a value that the bucket has no room for (a shorter one, or a
          `Removal`). Without it, or where it returns None, or where that does not fit either, raises `Full`.
        * `on_unavailable`: called when reading or writing fails. The outcome of a write is then unknown: when it
          returns, the entry is read again, so `function` must recognize its own earlier write. What it raises, the
          caller gets. Without it raises `Unavailable`; the caller must then forget what it knows of the entry.
        * `confirm_by_newer`: read only what is `newer` than the known entry, which costs less for large values. A key
          that expired without a tombstone then looks unchanged, until a write finds out.
        * `before_write`: called before each write; what it raises, the caller gets, and nothing is written.
        * `why`: what the tombstone of a `Removal.DELETE` says.
        * After `tries` attempts raises `Unavailable`, naming `what` ("the fleet of arena 1"; by default the key).

        A write whose caller is cancelled may still be carried out.
        """
        latest: Change[T] | None = None
        if known is not UNREAD and known is not None:
            latest = Change(key, known.value, known.revision)
        must_read, has_read = known is UNREAD, False
        for _ in range(tries):
            try:
                if must_read:
                    if confirm_by_newer and latest is not None:
                        latest = await self.newer(key, latest.revision) or latest
                    else:
                        latest = await self.latest(key)
                    must_read, has_read = False, True
            except Unavailable as exc:
                if on_unavailable is None:
                    raise
                await on_unavailable(exc)
                continue
            value, revision = (None, 0) if latest is None else (latest.value, latest.revision)
            if value is None and revision and not recreate:
                return ChangeResult(None, written=False)
            try:
                after = function(value)
            except Exception:
                if has_read:
                    raise
                must_read = True
                continue
            if after is None or after is value or (value is None and isinstance(after, Removal)):
                if has_read:
                    entry = None if value is None else Entry(key, value, revision)
                    return ChangeResult(entry, written=False)
                must_read = True
                continue
            if before_write is not None:
                await before_write()
            must_read, latest = True, None  # for all that fails from here
            try:
                try:
                    written = await _replace(self, key, after, revision, ttl, why)
                except Full:
                    shorter = None if when_full is None or isinstance(after, Removal) else when_full(after)
                    if shorter is None:
                        raise
                    after = shorter
                    written = await _replace(self, key, after, revision, ttl, why)
            except LostRace:
                continue
            except Full:
                raise
            except Unavailable as exc:
                if on_unavailable is None:
                    raise
                await on_unavailable(exc)
            else:
                entry = None if isinstance(after, Removal) else Entry(key, after, written)
                return ChangeResult(entry, written=True)
        raise Unavailable(
            f"{what or f'{self.bucket}/{key}'} changes too quickly to be written", retry_after=1
        )


class Bucket(Changeable[T]):
    """One bucket of values of type `kind`, written by `codec`: by default a msgspec Struct as JSON, `str` as plain
    text (bevygap's buckets), `bytes` unchanged. `timeout`: seconds for which a read or write waits for its answer."""

    def __init__(
        self, bus: Bus, bucket: str, kind: type[T], *, codec: Codec[T] | None = None, timeout: float = 5.0
    ) -> None:
        self._bus = bus
        self._js: JetStreamContext = bus.js
        self.bucket = bus.subjects.bucket(bucket)
        self.stream = f"KV_{self.bucket}"
        self._prefix = f"$KV.{self.bucket}."
        self._codec = codec or codec_of(kind)
        self._timeout = timeout
        self._writes = bus.writes.of(self.stream)

    def _subject(self, key: str) -> str:
        if not is_key(key):
            raise Internal(f"{key!r} is not a key")
        return self._prefix + key

    @property
    def heard_since(self) -> float:
        """Unix seconds since when this process has reached NATS without a break."""
        return self._bus.heard_since

    async def wait_reachable(self, timeout: float) -> bool:
        """Wait until NATS is connected, at most `timeout` seconds; whether it is."""
        return await self._bus.wait_connected(timeout)

    async def get(self, key: str) -> Entry[T] | None:
        """The current entry, or None. Reads from the stream's leader, so a caller reads its own writes."""
        latest = await self.latest(key)
        return None if latest is None or latest.value is None else Entry(key, latest.value, latest.revision)

    async def latest(self, key: str) -> Change[T] | None:
        """As `get`, or the tombstone of a deleted key; None without either."""
        stored = await self._read({"last_by_subj": self._subject(key)})
        return None if stored is None else self._change_of(key, stored)

    async def newer(self, key: str, revision: int) -> Change[T] | None:
        """As `latest` when the key was written or deleted after `revision`, else None: cheaper when nothing changed.

        A key that expired or was purged without a tombstone since then looks unchanged.
        """
        # A bucket keeps one message for each subject, so the next one is the current one.
        stored = await self._read({"seq": revision + 1, "next_by_subj": self._subject(key)})
        return None if stored is None else self._change_of(key, stored)

    def _change_of(self, key: str, stored: StoredMessage) -> Change[T]:
        if _is_stored_marker(stored):
            said = _WHY_HEADER.search(stored.hdrs)
            return Change(key, None, stored.seq, why="" if said is None else _unquoted(said[1].decode()))
        named = _SERVER_HEADER.search(stored.hdrs)
        server = "" if named is None else named[1].decode()
        return Change(key, self._codec.decode(stored.data), stored.seq, server=server)

    async def _read(self, which: dict[str, str | int]) -> StoredMessage | None:
        """The message of the stream that `which` names, or None."""
        try:
            subject = f"$JS.API.STREAM.MSG.GET.{self.stream}"
            answer = await ask(self._bus, subject, msgspec.json.encode(which), timeout=self._timeout)
        except Unavailable as exc:
            if isinstance(exc, NotFound) and exc.err_code == _NO_MESSAGE:
                return None
            raise self._unavailable(exc) from exc
        return answer.message

    async def create(self, key: str, value: T, *, ttl: float | None = None) -> int:
        """Write a key that has no value; returns the revision. Raises `LostRace` when it has one."""
        try:
            return await self._publish(key, self._codec.encode(value), revision=0, ttl=ttl)
        except LostRace:
            stored = await self._read({"last_by_subj": self._subject(key)})
            if stored is None or not _is_stored_marker(stored):
                raise
            return await self._publish(key, self._codec.encode(value), revision=stored.seq, ttl=ttl)

    def update(
        self, key: str, value: T, revision: int, *, ttl: float | None = None
    ) -> Coroutine[Any, Any, int]:
        """Compare-and-set; returns the new revision. Raises `LostRace` when `revision` is not the current one.

        Without `ttl` (seconds, at least 1) the entry never expires, whatever TTL it had before.
        """
        return self._publish(key, self._codec.encode(value), revision=revision, ttl=ttl)

    async def put(self, key: str, value: T, *, ttl: float | None = None, server: str = "") -> int:
        """Write without a compare-and-set, for keys that have exactly one writer. `server`: the deployment that the
        entry is about, for `Change.server`, where the value does not say."""
        headers = {_SERVER: server} if server else None
        return await self._publish(key, self._codec.encode(value), revision=None, ttl=ttl, headers=headers)

    async def age(self, before: BucketAge | None = None) -> BucketAge:
        """How old the bucket is. Raises `NotFound` where there is none, and `Unavailable`. Where a replicated one seems
        older than `before`, it is asked again: a node that has just become its leader may lack the latest writes."""
        age = await self._age()
        if before is not None and age.replicated and age.revision < before.revision:
            await asyncio.sleep(_CATCH_UP)
            age = await self._age()
        return age

    async def _age(self) -> BucketAge:
        try:
            answer = await ask(self._bus, f"$JS.API.STREAM.INFO.{self.stream}", b"", timeout=self._timeout)
        except NotFound:
            raise
        except Unavailable as exc:
            raise self._unavailable(exc) from exc
        created = answer.created.timestamp() if answer.created is not None else 0.0
        read_at = answer.ts.timestamp() if answer.ts is not None else time.time()
        revision = answer.state.last_seq if answer.state is not None else 0
        return BucketAge(
            created,
            revision,
            read_at,
            replicated=answer.cluster is not None and bool(answer.cluster.replicas),
        )

    async def delete(self, key: str, revision: int | None = None, *, why: str = "") -> None:
        """Delete a key; a missing key is no error. `why`, a short text, stands in the tombstone (`Change.why`). Raises
        `LostRace` as `update` does."""
        headers = {_OPERATION: "DEL"} | ({_WHY: urllib.parse.quote(why)} if why else {})
        await self._publish(key, b"", revision=revision, headers=headers)

    async def purge(self, key: str, *, ttl: float | None = None) -> None:
        """Delete a key with its history; the marker expires after `ttl` seconds, where the bucket allows that."""
        await self._publish(key, b"", revision=None, ttl=ttl, headers={_OPERATION: "PURGE", _ROLLUP: "sub"})

    async def forget(self, key: str, up_to: int) -> None:
        """Remove the key's messages up to revision `up_to`, markers included, for buckets that keep markers for ever.

        Call it only when every durable consumer has acknowledged these messages: otherwise nats-server (2.15.1) counts
        all earlier messages as acknowledged, and messages of other keys that a dead reader held are not delivered
        again. A caller that cannot know this needs a listing as a back-up.
        """
        try:
            with translated():
                await self._js.purge_stream(self.stream, subject=self._subject(key), seq=up_to + 1)
        except Unavailable as exc:
            raise self._unavailable(exc) from exc

    async def _publish(
        self,
        key: str,
        data: bytes,
        *,
        revision: int | None,
        ttl: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:
        headers = headers or {}
        if revision is not None:
            headers[_LAST_SEQUENCE] = str(revision)
        if ttl is not None:
            headers[_TTL] = str(max(1, round(ttl)))
        self._subject(key)  # raises for what is no key
        return await self._write(key, data, headers or None, self._timeout)

    async def probe(self, *, size: int = 0) -> None:
        """Write what every write needs: a delete marker for `PROBE_KEY`, which no reader sees, with
        `size` bytes more. Raises `Unavailable` where the bucket takes no writes; one that has reached an operator's
        limit is no error."""
        headers = {_OPERATION: "DEL"}
        if size:
            headers[_PADDING] = "x" * size
        with contextlib.suppress(Full):
            await self._write(PROBE_KEY, b"", headers, TRIAL_TIMEOUT)

    def require_writable(self) -> None:
        """Raise `DoesNotWrite` when a write would not even be tried now."""
        if not self._writes.well and (wait := self._writes.wait(time.monotonic())) > 0:
            raise self._does_not_write(wait)

    def _does_not_write(self, wait: float) -> DoesNotWrite:
        error = self._writes.problem(time.monotonic())
        return DoesNotWrite(
            f"NATS does not write to {self.bucket}: {error}", retry_after=max(1.0, round(wait))
        )

    async def _write(self, key: str, data: bytes, headers: dict[str, str] | None, timeout: float) -> int:
        """Publish to the stream; the message's revision. Raises `LostRace`, `Full`, `Unavailable`."""
        writes = self._writes
        if not writes.well:
            if (wait := writes.admit(time.monotonic())) > 0:
                raise self._does_not_write(wait)
            timeout = min(timeout, TRIAL_TIMEOUT)
        try:
            answer = await ask(self._bus, self._prefix + key, data, headers, timeout=timeout)
        except Refused as exc:
            if exc.err_code == _WRONG_LAST_SEQUENCE:
                writes.undecided(time.monotonic())
                raise LostRace(f"{self.bucket}/{key} was changed by somebody else") from exc
            if exc.err_code == _STORE_FAILED and "exceeded" in exc.description:
                writes.undecided(time.monotonic())
                raise Full(f"the store {self.bucket} is full: {exc.description}", retry_after=5) from exc
            writes.failed(time.monotonic(), exc.description)
            raise self._unavailable(exc) from exc
        except (NoAnswer, NoListener) as exc:
            if self._bus.connected:
                writes.failed(time.monotonic(), exc.message)
            else:
                writes.undecided(time.monotonic())
            raise self._unavailable(exc) from exc
        except Unavailable as exc:
            writes.undecided(time.monotonic())
            raise self._unavailable(exc) from exc
        except BaseException:
            writes.undecided(time.monotonic())
            raise
        if not writes.well:
            writes.succeeded(time.monotonic())
        return answer.seq

    def _unavailable(self, exc: Unavailable) -> Unavailable:
        """The same error in this bucket's words."""
        if isinstance(exc, PermissionDenied):
            return exc.again()
        if isinstance(exc, NotFound) and exc.err_code == _NO_STREAM:
            return Unavailable(
                f"there is no store {self.bucket}: is the namespace right, has a matchmaker run here?"
            )
        return Unavailable(
            f"the store {self.bucket} is not available: {self._bus.last_error or exc}", retry_after=2
        )

    @asynccontextmanager
    async def listen(self, key: str, callback: Callable[[], None]) -> AsyncIterator[None]:
        """Call `callback` at each write of the key, within the block. A hint that needs no consumer: writes made while
        NATS is away go unheard, and one that failed may be heard. Raises `Unavailable`."""

        async def received(_: Msg) -> None:
            callback()

        subscription = await self._bus.subscribe(self._subject(key), received)
        try:
            yield
        finally:
            await subscription.unsubscribe()

    async def list(self, pattern: str = ">") -> dict[str, Entry[T]]:
        """The current entries of all keys that match (`a.*`, `>`). A key that exists during the whole call is included,
        with its value at some moment of the call. Unreadable values are left out.

        This also holds on a cluster, where a replica that is behind may serve the listing: the leader says which
        revision the listing must reach.
        """
        latest = await self.list_latest(pattern)
        return {
            key: Entry(key, change.value, change.revision)
            for key, change in latest.items()
            if change.value is not None
        }

    async def list_latest(self, pattern: str = ">") -> dict[str, Change[T]]:
        """As `list`, with the tombstones of deleted keys."""
        found: dict[str, Change[T]] = {}
        try:
            with translated():
                async with asyncio.timeout(10):
                    async for msg in listing(self._bus, self.stream, self._prefix + pattern):
                        if change := self._change(msg):
                            found[change.key] = change
        except Unavailable as exc:
            raise self._unavailable(exc) from exc
        return found

    def _change(self, msg: Msg) -> Change[T] | None:
        """The change that a message of the stream carries; None for an unreadable value and for a probe."""
        key = msg.subject[len(self._prefix) :]
        if key == PROBE_KEY:
            return None
        revision = msg.metadata.sequence.stream
        if _is_marker(msg.headers, msg.data):
            expired = bool(msg.headers and msg.headers.get(_MARKER) == "MaxAge")
            why = _unquoted(msg.headers.get(_WHY, "")) if msg.headers else ""
            return Change(key, None, revision, expired=expired, why=why)
        try:
            server = msg.headers.get(_SERVER, "") if msg.headers else ""
            return Change(key, self._codec.decode(msg.data), revision, server=server)
        except Malformed:
            return None

    @asynccontextmanager
    async def durable(self, name: str, *, ack_wait: float = 10.0) -> AsyncIterator[Changes[T]]:
        """Changes through the durable consumer `name`. Processes that use the same name share it: each change goes to
        one of them, including changes made while none of them ran. Survives restarts of NATS."""
        config = api.ConsumerConfig(
            durable_name=name,
            deliver_policy=api.DeliverPolicy.ALL,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=ack_wait,
            max_ack_pending=1000,
            filter_subject=self._prefix + ">",
        )
        try:
            with translated():
                await self._js.add_consumer(self.stream, config)
        except Unavailable as exc:
            raise self._unavailable(exc) from exc
        async with pull_reader(self._bus, self.stream, name) as reader:
            yield Changes(reader, self._change, self._unavailable)

    @asynccontextmanager
    async def watch(self, pattern: str = ">") -> AsyncIterator[Changes[T]]:
        """Current values first, then changes as they happen, for this caller only. A hint, never the truth: after an
        outage of NATS `fetch` raises `Unavailable`, and the caller starts again."""
        config = brief_consumer(self._prefix + pattern, api.AckPolicy.EXPLICIT, idle=30)
        try:
            with translated():
                info = await self._js.add_consumer(self.stream, config)
        except Unavailable as exc:
            raise self._unavailable(exc) from exc
        name = info.name or ""
        try:
            async with pull_reader(self._bus, self.stream, name) as reader:
                yield Changes(reader, self._change, self._unavailable)
        finally:
            if self._bus.connected:
                with contextlib.suppress(Unavailable), translated():
                    # Otherwise the server removes it after 30 s without a reader.
                    await self._js.delete_consumer(self.stream, name)


def _replace(
    bucket: Changeable[T],
    key: str,
    after: T | Removal,
    revision: int,
    ttl: float | Callable[[T], float | None] | None,
    why: str,
) -> Coroutine[Any, Any, int]:
    """One compare-and-set of `change`; the new revision, 0 after a removal. Raises `LostRace`, `Full`,
    `Unavailable`."""
    if isinstance(after, Removal):
        return _remove(bucket, key, after, revision, why)
    return bucket.update(key, after, revision, ttl=ttl(after) if callable(ttl) else ttl)


async def _remove(bucket: Changeable[T], key: str, how: Removal, revision: int, why: str) -> int:
    if how is Removal.DELETE:
        await bucket.delete(key, revision, why=why)
        return 0
    await bucket.forget(key, revision)
    latest = await bucket.latest(key)
    if latest is not None and latest.value is not None:
        raise LostRace(f"{bucket.bucket}/{key} was changed by somebody else")
    return 0


def _unquoted(text: str) -> str:
    """A header's text; longer ones than we write are cut."""
    return urllib.parse.unquote(text[:_LONGEST_WHY])


def _is_marker(headers: dict[str, str] | None, data: bytes) -> bool:
    """Whether a message is a delete, purge or expiry marker and not a value."""
    if data:
        return False
    return headers is not None and (_OPERATION in headers or _MARKER in headers)


def _is_stored_marker(stored: StoredMessage) -> bool:
    return not stored.data and _MARKER_HEADER.search(stored.hdrs) is not None
