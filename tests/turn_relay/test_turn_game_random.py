"""Players who lose, repeat and mix up requests at random: every update arrives once and in order all the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.turn_relay.world import GameWorld
from tipoff_turn_relay import game as rules
from tipoff_turn_relay.messages import (
    Error,
    Failed,
    Updates,
)


@dataclass
class TextClient:
    """Counts up with each answer; repeats a number until it gets one. `accepted` is what the relay took from it."""

    player: int
    number: int = 0
    accepted: list[str] = field(default_factory=list)
    got: list[str] = field(default_factory=list)

    def ask(self, table: GameWorld, data: str | None, fate: str) -> None:
        """Repetitions carry other data than the first time, so that any that is taken twice would show."""
        if fate == "request lost":
            return
        before = table.game.sides[self.player].number
        answer = table.update(self.player, self.number, data)
        if table.game.sides[self.player].number != before and data is not None:
            self.accepted.append(data)
        if fate == "answer lost":
            return
        match answer:
            case Updates(updates=updates):
                self.got += updates
            case Failed(error=Error.CACHE_FULL, data="*"):
                if before != self.number:  # its update was refused: the same number later
                    return
            case Failed(error=Error.CACHE_FULL, data=old):
                self.got += old.split("|")
            case _:
                raise AssertionError(answer)
        self.number += 1


DATA = st.one_of(st.none(), st.text("abc", min_size=1, max_size=30))
FATES = st.sampled_from(["fine", "fine", "request lost", "answer lost"])
TEXT_STEPS = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 1), DATA, FATES),
    st.tuples(st.sampled_from(["stale", "ahead", "wait"]), st.integers(0, 1), st.integers(1, 3), st.just("")),
)


@settings(max_examples=400)
@given(st.lists(TEXT_STEPS, max_size=80), st.booleans())
def test_random_text_clients_get_every_update_once_and_in_order(
    steps: list[tuple[str, int, Any, str]], small: bool
) -> None:
    """Lost requests, lost answers, late copies of old requests, wrong numbers; caches that are always full."""
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(rules, "MAX_CACHE", 64)
        table, clients = GameWorld(), (TextClient(0), TextClient(1))
        for what, player, value, fate in steps:
            client = clients[player]
            if what == "ask":
                client.ask(table, value, fate)
            elif what == "wait":
                table.now += value
                for other in (0, 1):  # nobody is silent for too long: another test's subject
                    clients[other].ask(table, None, "fine")
            else:
                number = table.game.sides[player].number + (1 + value if what == "ahead" else -value)
                before = table.game
                expected = Error.AHEAD if what == "ahead" else Error.BEHIND
                assert table.update(player, number, "never") == Failed(expected)
                assert table.game is before
        for _ in range(20):
            for client in clients:
                client.ask(table, None, "fine")
    assert clients[0].got == clients[1].accepted
    assert clients[1].got == clients[0].accepted


@dataclass
class JsonClient:
    """Sends and fetches with any number of requests on their way at once, which arrive in any order, or twice."""

    player: int
    sent: list[str] = field(default_factory=list)
    acknowledged: int = 0
    got: list[str] = field(default_factory=list)

    def send(self) -> tuple[int | None, str, int | None]:
        if self.acknowledged == len(self.sent):
            self.sent.append(f"{self.player}:{len(self.sent)}")
        return self.acknowledged, self.sent[self.acknowledged], None

    def fetch(self) -> tuple[int | None, str, int | None]:
        return None, "", len(self.got)

    def both(self) -> tuple[int | None, str, int | None]:
        number, data, _ = self.send()
        return number, data, len(self.got)

    def answered(self, request: tuple[int | None, str, int | None], answer: Updates | Failed) -> None:
        number, _, after = request
        if isinstance(answer, Failed):
            assert answer.error in (Error.BEHIND, Error.CACHE_FULL)  # old copies; later again
            return
        if number is not None:
            assert answer.number >= number
            self.acknowledged = max(self.acknowledged, number + 1)
        if after == len(self.got):
            self.got += answer.updates


JSON_STEPS = st.tuples(
    st.sampled_from(
        ["send", "fetch", "both", "deliver", "deliver", "deliver again", "lose", "answer", "answer"]
    ),
    st.integers(0, 1),
    st.integers(0, 50),
)


@settings(max_examples=400)
@given(st.lists(JSON_STEPS, max_size=120), st.booleans())
def test_random_json_clients_get_every_update_once_and_in_order(
    steps: list[tuple[str, int, int]], small: bool
) -> None:
    """Requests and answers overtake each other, arrive twice or never."""
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(rules, "MAX_CACHE", 40)
        table, clients = GameWorld(), (JsonClient(0), JsonClient(1))
        requests: list[tuple[int, Any]] = []
        answers: list[tuple[int, Any, Updates | Failed]] = []

        def deliver(player: int, request: Any) -> Updates | Failed:
            number, data, after = request
            return table.exchange(player, number, data, after)

        for what, player, which in steps:
            if what in ("send", "fetch", "both"):
                requests.append((player, getattr(clients[player], what)()))
            elif what == "answer":
                if answers:
                    to, request, answer = answers.pop(which % len(answers))
                    clients[to].answered(request, answer)
            elif requests:
                at = which % len(requests)
                to, request = requests[at] if what == "deliver again" else requests.pop(at)
                if what != "lose":
                    answers.append((to, request, deliver(to, request)))
        for _ in range(20 + len(steps)):
            for client in clients:
                for request in (client.fetch(), client.both()):
                    client.answered(request, deliver(client.player, request))
        for client in clients:
            request = client.fetch()
            client.answered(request, deliver(client.player, request))
    for client, partner in (clients, clients[::-1]):
        arrived = client.got
        assert arrived == partner.sent[: len(arrived)]
        assert len(arrived) >= partner.acknowledged
