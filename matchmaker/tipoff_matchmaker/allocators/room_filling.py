"""Keeps players of games with `fill_rooms` together: nobody opens an empty room for a seat that may become free.

    Ann's room: Ann, and a seat for somebody who has not connected     Bob asks
    without: Bob gets an empty server, and both wait alone             with: Bob waits, at most the claim time

The number of those who wait and of the seats that are promised decide: as many players as there are promised seats
wait for those; one more, and an empty room is opened for them. A claim that this matchmaker hears of, and the end of a
promise, are acted on at once. What other matchmakers hear shows late here, so records of sessions are read while
somebody waits and there are others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeAlias

from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.fleet.trust import Trust
from tipoff_matchmaker.peers import Peers
from tipoff_matchmaker.seats.promised import PromisedSeats
from tipoff_matchmaker.seats.rules import is_open
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_matchmaker.settings import Settings
from tipoff_matchmaker.tokens import Tokens
from tipoff_shared.errors import Unavailable
from tipoff_shared.games import GameKey, GamesChange, SomeGames
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, SessionRecord, SessionState

log = logging.getLogger(__name__)

Listener: TypeAlias = Callable[[GameKey], None]

_LOOK = 1.0
"""Seconds between two looks at the sessions of promised seats, while somebody waits for one and other matchmakers may
hear of its claim."""
_SOONEST = 0.1
"""Seconds: many promises may end one after another."""
_CHECKED = 32
_LATE = 5.0
"""Seconds for which a seat counts beyond its claim time, unless it is freed before: it should be at any moment."""


class RoomFilling:
    """The promised seats of all `games` that fill their rooms; the others have none here."""

    def __init__(
        self,
        deployments: DeploymentStore,
        sessions: SessionStore,
        trust: Trust,
        peers: Peers,
        tokens: Tokens,
        games: SomeGames,
        tasks: Tasks,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._deployments = deployments
        self._sessions = sessions
        self._trust = trust
        self._peers = peers
        self._clock = clock
        self._tokens = tokens
        self._claim_slack = settings.claim_slack
        self._written_ahead = settings.seat_hold
        self._seats: dict[GameKey, PromisedSeats] = {}
        self._checks = SingleFlight[GameKey, None]("promised seats", begin=tasks.start)
        self._listeners: list[Listener] = []
        deployments.subscribe(self._deployment_changed)
        sessions.subscribe(self._session_changed)
        self._games_changed(GamesChange(added=tuple(games.all())))
        games.subscribe(self._games_changed)

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` when a promised seat of a game has been claimed."""
        self._listeners.append(listener)

    def fills(self, key: GameKey) -> bool:
        """Whether this game fills its rooms."""
        return key in self._seats

    def may_open(self, key: GameKey, players: int, *, staged: int) -> bool:
        """Whether an empty room may be opened when so many `players` wait, and so many seats are being written."""
        seats = self._seats.get(key)
        return seats is None or players > staged + seats.waiting(self._takes_others, self._clock())

    def next_look(self, key: GameKey) -> float:
        """Seconds after which somebody who waits for a promised seat looks again, unless an event comes before."""
        seats, now = self._seats.get(key), self._clock()
        look = math.inf if self._peers.alone else _LOOK
        return look if seats is None else min(look, max(_SOONEST, seats.next_end(now) - now))

    async def check(self, key: GameKey) -> None:
        """Read the sessions of the promised seats again. Without NATS nothing changes. Cancelling is safe."""
        if key in self._seats:
            await self._checks.run(key, lambda: self._check(self._seats[key]))

    async def _check(self, seats: PromisedSeats) -> None:
        try:
            for session_id in seats.oldest(_CHECKED, self._clock()):
                record = await self._sessions.read(session_id)
                if record is not None:  # else its seat is promised, and the record not written yet
                    self._session_changed(record)
        except Unavailable as exc:
            log.info("whether the players of promised seats have connected is unknown: %s", exc)

    def _games_changed(self, change: GamesChange) -> None:
        for game in (*change.removed, *change.changed):
            self._seats.pop(game.key, None)
        for game in change.present:
            if not game.fill_rooms:
                continue
            hold = self._tokens.hold(game) + self._claim_slack + _LATE
            self._seats[game.key] = PromisedSeats(hold=hold, written_ahead=self._written_ahead)
            for record in self._deployments.of(*game.key):  # those whose players are there show in `check`
                self._deployment_changed(None, record)

    def _takes_others(self, deployment_id: str) -> bool:
        record = self._deployments.get(deployment_id)
        return record is not None and is_open(record) and deployment_id in self._trust

    def _deployment_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        key = (after.game, after.version)
        if (seats := self._seats.get(key)) is not None:
            known = {} if before is None else before.seats
            seats.changed(after.id, known, after.seats, self._clock())

    def _session_changed(self, record: SessionRecord) -> None:
        key = (record.game, record.version)
        seats = self._seats.get(key)
        if seats is None:
            return
        if record.state is SessionState.ACTIVE:
            if seats.claimed(record.id):
                self._tell(key)
        elif record.state is not SessionState.GONE:  # a closing session's seat is about to be free
            seats.still(record.id, self._clock() + _LATE)

    def _tell(self, key: GameKey) -> None:
        for listener in self._listeners:
            listener(key)
