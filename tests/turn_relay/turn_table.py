"""One game of the turn relay without a relay, for tests of its rules."""

from __future__ import annotations

from tipoff_turn_relay import game as rules
from tipoff_turn_relay.game import Game
from tipoff_turn_relay.messages import (
    Exchange,
    Failed,
    GameUpdate,
    Start,
    Updates,
)
from tipoff_turn_relay.text import encode_answer

START = Start(7, (11, 22), ("Ada", "Bob"), ("1", "2"), 0)


class Table:
    """One game, a clock that tests move, and what it was written."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.heard_since = 0.0
        self.game = rules.new_game(START, self.now)
        self.writes = 0

    def _keep(self, game: Game) -> None:
        self.writes += game is not self.game
        self.game = game

    def update(self, player: int, number: int, data: str | None = None) -> Updates | Failed:
        request = GameUpdate("", player, number, data)
        game, answer = rules.update(self.game, player, request, self.now, heard_since=self.heard_since)
        self._keep(game)
        return answer

    def say(self, player: int, number: int, data: str | None = None) -> str:
        return encode_answer(self.update(player, number, data))

    def exchange(
        self, player: int, number: int | None = None, data: str = "", after: int | None = None
    ) -> Updates | Failed:
        request = Exchange("", number, data, after)
        game, answer = rules.exchange(self.game, player, request, self.now, heard_since=self.heard_since)
        self._keep(game)
        return answer

    def leave(self, player: int) -> str:
        game, answer = rules.leave(self.game, player, self.now, heard_since=self.heard_since)
        self._keep(game)
        return encode_answer(answer)
