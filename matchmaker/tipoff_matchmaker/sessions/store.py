"""Stores session records: the pure state_machine.py decides, a compare-and-set writes, effects are published.

What this process wrote or read last of an open session is remembered, so that the usual next step needs no read; a
lost compare-and-set reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tipoff_matchmaker import failpoints
from tipoff_matchmaker.sessions.state_machine import Effect, Event, Step, is_open, step
from tipoff_matchmaker.settings import Settings
from tipoff_shared.errors import Internal, Unavailable
from tipoff_shared.kv.bucket import UNREAD, Bucket, Entry, Removal
from tipoff_shared.records import SessionRecord, SessionState

EffectHandler: TypeAlias = Callable[[str, SessionRecord | None], None]
"""Takes the session's id and record (None: there is none). A plain call: what takes time is started as a task."""

Listener: TypeAlias = Callable[[SessionRecord], None]

_REACHED = {SessionState.REQUESTED: "F2", SessionState.READY: "F6", SessionState.CLOSING: "E1"}
"""Which fail point a record of this state, just written, means."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`record`: the current one (None: there is none); `changed`: whether this call wrote it."""

    record: SessionRecord | None
    changed: bool


class SessionStore:
    """The bucket `sessions` as one matchmaker reads and changes it.

    Every record written or listed is published to the listeners, then each effect of the step goes to its only handler.
    """

    def __init__(self, store: Bucket[SessionRecord], settings: Settings, clock: Callable[[], float]) -> None:
        self._store = store
        self._gone_ttl = settings.gone_ttl
        self._clock = clock
        self._known: dict[str, Entry[SessionRecord]] = {}
        self._listeners: list[Listener] = []
        self._on_end: list[Listener] = []
        self._handlers: dict[Effect, EffectHandler] = {}

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` for every record that this process writes or lists."""
        self._listeners.append(listener)

    def subscribe_ends(self, listener: Listener) -> None:
        """Call `listener` for every session whose end this process writes."""
        self._on_end.append(listener)

    def handle(self, handlers: Mapping[Effect, EffectHandler]) -> None:
        """Name the handler of each effect, once. Raises `Internal` when one has none: a seat would be kept."""
        if missing := [effect.value for effect in Effect if effect not in handlers]:
            raise Internal(f"session effects without a handler: {', '.join(missing)}")
        if self._handlers:
            raise Internal("session effects have their handlers already")
        self._handlers = dict(handlers)

    async def read(self, session_id: str) -> SessionRecord | None:
        """Read the current record from the bucket. Raises `Unavailable`."""
        entry = await self._store.get(session_id)
        self._remember(session_id, entry)
        return None if entry is None else entry.value

    async def create(self, record: SessionRecord) -> None:
        """Write a new record. Raises `LostRace` when the session has one already, whatever its state, and
        `Unavailable`."""
        try:
            revision = await self._store.create(record.id, record)
        except Unavailable:
            self._known.pop(record.id, None)
            raise
        self._remember(record.id, Entry(record.id, record, revision))
        self._written(record)

    async def apply(self, session_id: str, event: Event) -> Outcome:
        """Apply `event` to the session. Raises `Unavailable`: then the outcome is unknown, and the same event may be
        applied again."""
        decided = Step()

        def decide(record: SessionRecord | None) -> SessionRecord | None:
            nonlocal decided
            decided = step(record, event, self._clock())
            return decided.record

        try:
            result = await self._store.change(
                session_id,
                decide,
                # What we remember may ask for no write because others have changed it. `change` then reads before it
                # says so, or a connection of a living session would be taken for one without a session.
                known=self._known.get(session_id, UNREAD),
                ttl=lambda record: self._gone_ttl if record.state is SessionState.GONE else None,
                # The record of an ended session is longer than that of an open one. It must end all the same, or the
                # bucket stays full: the key is removed, if it is still the one we know.
                when_full=lambda record: None if is_open(record) else Removal.FORGET,
                what=f"session {session_id}",
            )
        except Unavailable:
            self._known.pop(session_id, None)
            raise
        self._remember(session_id, result.entry)
        if result.written and decided.record is not None:
            record: SessionRecord | None = decided.record
            self._written(decided.record)
            if decided.record.state is SessionState.CLOSING:
                for listener in self._on_end:
                    listener(decided.record)
        else:
            record = None if result.entry is None else result.entry.value
        for effect in decided.effects:
            self._handlers[effect](session_id, record)
        return Outcome(record, result.written)

    def listed(self, entries: Mapping[str, Entry[SessionRecord]]) -> None:
        """Learn a listing of all sessions; forget those that other matchmakers have ended."""
        for entry in entries.values():
            for listener in self._listeners:
                listener(entry.value)
        self._known = {
            session_id: known
            for session_id, known in self._known.items()
            if session_id in entries and is_open(entries[session_id].value)
        }

    def forget_all(self) -> None:
        """Forget what is remembered: the bucket was lost, and revisions begin anew."""
        self._known.clear()

    def _written(self, record: SessionRecord) -> None:
        failpoints.reach(_REACHED.get(record.state, ""))
        for listener in self._listeners:
            listener(record)

    def _remember(self, session_id: str, entry: Entry[SessionRecord] | None) -> None:
        if entry is None or not (is_open(entry.value) or entry.value.state is SessionState.CLOSING):
            self._known.pop(session_id, None)
        else:
            self._known[session_id] = entry
