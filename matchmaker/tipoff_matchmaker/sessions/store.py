"""The driver of `sessions.py`: reads the record, asks what becomes of it, writes by compare-and-set, tells the effects.

What this process wrote or read last of an open session is remembered, so that the usual next step needs no read; a
lost compare-and-set reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tipoff_matchmaker import failpoints
from tipoff_matchmaker.sessions.machine import Effect, Event, is_open, step
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket, Entry, Full, LostRace
from tipoff_shared.records import SessionRecord, SessionState

_TRIES = 50
_REACHED = {SessionState.REQUESTED: "F2", SessionState.READY: "F6", SessionState.CLOSING: "E1"}
"""Which fail point a record of this state, just written, means."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`record`: as it stands now (None: there is none); `changed`: whether this call wrote it."""

    record: SessionRecord | None
    changed: bool


class SessionBook:
    """`sessions[*]` as one matchmaker reads and changes it.

    `on_effect` is called for each effect of a step, after the write; `on_write` for each record written. Both are
    plain calls: what takes time is started by them as a task of its own.
    """

    def __init__(
        self,
        store: Bucket[SessionRecord],
        *,
        clock: Callable[[], float],
        gone_ttl: float,
        on_effect: Callable[[str, SessionRecord | None, Effect], None],
        on_write: Callable[[SessionRecord], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._gone_ttl = gone_ttl
        self._on_effect = on_effect
        self._on_write = on_write
        self._known: dict[str, Entry[SessionRecord]] = {}

    async def read(self, session_id: str) -> SessionRecord | None:
        """The record as it stands, from the store."""
        entry = await self._store.get(session_id)
        self._remember(session_id, entry)
        return None if entry is None else entry.value

    async def create(self, record: SessionRecord) -> None:
        """Write a new record. Raises `LostRace` when the session has one already, whatever its state."""
        try:
            revision = await self._store.create(record.id, record)
        except Unavailable:
            self._known.pop(record.id, None)
            raise
        self._remember(record.id, Entry(record.id, record, revision))
        self._written(record)

    async def apply(self, session_id: str, event: Event) -> Outcome:
        """Let `event` happen to the session. Raises `Unavailable`: then the outcome is unknown, and the same
        event may be applied again."""
        entry = self._known.get(session_id)
        remembered = entry is not None
        for _ in range(_TRIES):
            if not remembered:
                entry = await self._store.get(session_id)
                self._remember(session_id, entry)
            record = None if entry is None else entry.value
            outcome = step(record, event, self._clock())
            if outcome.record is None:
                if remembered:
                    # What we remember asks for no write, and nothing else would tell us that others have changed it:
                    # look before saying "nothing to do", or before taking a connection for that of one who plays.
                    remembered = False
                    continue
                self._tell(session_id, record, outcome.effects)
                return Outcome(record, changed=False)
            assert entry is not None  # only an existing record changes
            ttl = self._gone_ttl if outcome.record.state is SessionState.GONE else None
            try:
                revision = await self._store.update(session_id, outcome.record, entry.revision, ttl=ttl)
            except LostRace:
                remembered = False
                continue
            except Full:
                self._known.pop(session_id, None)
                if is_open(outcome.record):
                    raise
                # The record of the end is longer than that of the life. What ends must end all the same, or the
                # bucket stays full: it goes without a trace, if it is still the one we know.
                await self._store.forget(session_id, entry.revision)
                if await self._store.get(session_id) is not None:
                    remembered = False
                    continue
                self._written(outcome.record)
                self._tell(session_id, outcome.record, outcome.effects)
                return Outcome(outcome.record, changed=True)
            except Unavailable:
                self._known.pop(session_id, None)
                raise
            self._remember(session_id, Entry(session_id, outcome.record, revision))
            self._written(outcome.record)
            self._tell(session_id, outcome.record, outcome.effects)
            return Outcome(outcome.record, changed=True)
        raise Unavailable(f"session {session_id} changes too quickly to be written", retry_after=1)

    def _written(self, record: SessionRecord) -> None:
        failpoints.reach(_REACHED.get(record.state, ""))
        self._on_write(record)

    def _remember(self, session_id: str, entry: Entry[SessionRecord] | None) -> None:
        if entry is None or not (is_open(entry.value) or entry.value.state is SessionState.CLOSING):
            self._known.pop(session_id, None)
        else:
            self._known[session_id] = entry

    def forget_all_but(self, session_ids: set[str]) -> None:
        """Drop what is remembered of sessions that a listing does not have (other matchmakers ended them)."""
        for session_id in [known for known in self._known if known not in session_ids]:
            del self._known[session_id]

    def _tell(self, session_id: str, record: SessionRecord | None, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            self._on_effect(session_id, record, effect)
