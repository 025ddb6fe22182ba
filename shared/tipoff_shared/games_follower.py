"""Follows the published revision of games.toml: keeps a process's `Games` as the bucket `games` and its own file say.

The published revision wins over the public settings of the process's own file (games/revision.py says which those are);
without one, the file is what counts. The watch is a hint that comes at once; a reading every half minute is the truth.
What cannot be read changes nothing: while NATS is away, has lost the bucket, or the own file is broken, the games stay
as they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from tipoff_shared.errors import ConfigError, Malformed, Unavailable
from tipoff_shared.games import Game, GameKey, Games
from tipoff_shared.games.revision import GamesRevision, differences, merge, published
from tipoff_shared.kv.bucket import Bucket, Entry
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.primitives.retry import Backoff, run_forever

log = logging.getLogger(__name__)

CURRENT = "current"
"""The key of the published revision."""
READ_INTERVAL = 30.0
_READ_INTERVAL_WITH_PROBLEMS = 5.0
"""The own file may be mended at any moment, and nobody says so."""
_TOLD = 5
"""Differences that a log names."""


class GamesFollower:
    """Keeps `games` up to date. `run` must run. `complaint(game)`: why this process cannot serve a game, "" when it
    can. `needs_keys`: it cannot without the game's private key."""

    def __init__(
        self,
        bucket: Bucket[GamesRevision],
        games: Games,
        complaint: Callable[[Game], str] = lambda _: "",
        *,
        needs_keys: bool = True,
    ) -> None:
        self.revision = 0
        """The revision that the games are of; 0: none was published, so they are those of the file."""
        self._bucket = bucket
        self._games = games
        self._complaint = complaint
        self._needs_keys = needs_keys
        self._lock = asyncio.Lock()
        self._problems: tuple[str, ...] = ()
        self._unusable: Mapping[GameKey, str] = {}
        self._lost = ""
        self._unread = ""

    @property
    def problems(self) -> list[str]:
        """What keeps this process from serving the published games, for operators."""
        return [*self._problems, *(text for text in (self._lost, self._unread) if text)]

    def why_not(self, name: str, version: str) -> str:
        """Why this process cannot serve a published game, for the operator; "" when it can, or none is published."""
        return self._unusable.get((name, version), "")

    async def refresh(self) -> None:
        """Read the published revision and the own file, and bring the games up to date. Raises `Unavailable` when NATS
        does not tell the revision; then nothing has changed. Cancelling is safe."""
        async with self._lock:
            try:
                entry = await self._bucket.get(CURRENT)
            except Malformed as exc:
                self._unread = f"the published games cannot be read: {exc}"
                return
            self._unread = ""
            if entry is None:
                self._none()
            elif entry.revision != self.revision or self._problems:
                await self._take(entry)
            else:
                self._lost = ""

    async def catch_up(self, revision: int) -> None:
        """As `refresh`, when the games are older than `revision`, which another part has seen."""
        if revision > self.revision:
            await self.refresh()

    async def run(self) -> None:
        """Follow the bucket until cancelled."""
        await run_forever(self._follow, first_pause=0.2, retry_on=Unavailable, on_failure=self._failed)

    async def _follow(self, pauses: Backoff) -> None:
        loop = asyncio.get_running_loop()
        async with self._bucket.watch(CURRENT) as changes:
            while True:
                await self.refresh()
                pauses.reset()
                end = loop.time() + (_READ_INTERVAL_WITH_PROBLEMS if self._problems else READ_INTERVAL)
                while (left := end - loop.time()) > 0:
                    batch = await changes.fetch(timeout=min(left + 0.1, 5.0))
                    for _, ack in batch:
                        await ack()
                    if any(change.revision != self.revision for change, _ in batch):
                        break

    def _failed(self, failures: int, exc: Exception) -> None:
        if isinstance(exc, PermissionDenied) and not self._unread:
            self._unread = f"published games cannot be followed: {exc}"
            log.error("%s", self._unread)
        log.debug("following the published games: %s; again soon", exc)

    def _none(self) -> None:
        if self.revision and not self._lost:
            self._lost = (
                f"NATS has lost the published games; revision {self.revision} stays in effect here: "
                "`tipoff reload` publishes them again"
            )
            log.error("%s", self._lost)

    async def _take(self, entry: Entry[GamesRevision]) -> None:
        first, new = not self.revision, entry.revision != self.revision
        read, _ = published(entry.value)
        broken: tuple[str, ...] = ()
        try:
            own = await asyncio.to_thread(self._games.read_own, read.values())
        except ConfigError as exc:
            # A game that is there keeps its own part; what is published of it counts in any case.
            own = self._games.as_own()
            broken = (f"its own games.toml cannot be read, so what it knew before stays in effect: {exc}",)
        merged = merge(entry.value, own, self._complaint, needs_keys=self._needs_keys)
        problems = (*broken, *merged.problems)
        self.revision, self._lost = entry.revision, ""
        for problem in problems:
            if problem not in self._problems:
                log.error("published games, revision %d: %s", entry.revision, problem)
        self._problems, self._unusable = problems, merged.unusable
        change = self._games.replace(merged.games, merged.keys)
        if new:
            log.info(
                "games of revision %d: %d new, %d changed, %d removed",
                entry.revision,
                len(change.added),
                len(change.changed),
                len(change.removed),
            )
        if first and not broken and (different := differences(entry.value, own.games)):
            log.warning(
                "the published games (revision %d) count, and the file says otherwise: %s; "
                "`tipoff reload` publishes a file",
                entry.revision,
                "; ".join(different[:_TOLD]) + ("; ..." if len(different) > _TOLD else ""),
            )
