"""The pairing list: who is paired with whom, and what everybody is told, whatever is lost or repeated."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.turn_relay.world import PairingWorld
from tipoff_turn_relay import pairing
from tipoff_turn_relay.messages import (
    LONG_PATIENCE,
    Error,
    Failed,
    MapInit,
    MapReady,
    Register,
    RequestPair,
    Start,
    Unregister,
)
from tipoff_turn_relay.pairing import PairingList, Stage
from tipoff_turn_relay.text import encode_answer


@pytest.fixture
def world() -> PairingWorld:
    return PairingWorld()


def test_two_who_want_anybody_are_paired_and_the_later_is_the_server(world: PairingWorld) -> None:
    ada, bob = world.register("Ada"), world.register("Bob")
    assert world.say(RequestPair(ada)) == "0/3/Bob"  # whoever asks first finds the other
    assert world.say(RequestPair(bob)) == "0/4/Ada"
    assert world.say(RequestPair(ada)) == "0/3/Bob"  # its answer was lost


def test_the_first_in_the_list_is_served_first(world: PairingWorld) -> None:
    first, second = world.register("first"), world.register("second", "nobody")
    third = world.register("third")
    assert world.say(RequestPair(second)) == "0/2/*"
    assert world.say(RequestPair(third)) == "0/3/first"
    assert world.say(RequestPair(first)) == "0/4/third"


def test_two_who_name_each_other_are_paired_only_with_each_other(world: PairingWorld) -> None:
    anybody = world.register("Eve")
    ada = world.register("Ada", "Bob")
    wrong = world.register("Bob", "Eve")
    for key in (ada, anybody, wrong):
        assert world.say(RequestPair(key)) == "0/2/*"
    bob = world.register("Bob", "Ada")
    assert world.say(RequestPair(bob)) == "0/3/Ada"
    assert world.say(RequestPair(ada)) == "0/4/Bob"
    assert world.say(RequestPair(anybody)) == "0/2/*"


def test_the_way_into_a_game(world: PairingWorld) -> None:
    ada, bob = world.register("Ada"), world.register("Bob")
    assert world.say(RequestPair(bob)) == "0/3/Ada"
    assert world.say(RequestPair(ada)) == "0/4/Bob"
    assert world.say(MapInit(ada)) == "0/6/"
    assert world.say(MapInit(bob)) == "0/5/"
    assert world.say(MapReady(ada)) == "0/7/*"
    last = world.ask(MapReady(bob))
    first = world.ask(MapReady(ada))
    assert isinstance(last, Start)
    assert isinstance(first, Start)
    assert (last.player, first.player) == (0, 1)  # 0 is whoever completes the pair
    assert last.game_id == first.game_id
    assert last.names == first.names == ("Bob", "Ada")
    assert last.pairing_keys == first.pairing_keys == (bob, ada)


def test_every_answer_comes_again_when_it_is_asked_again(world: PairingWorld) -> None:
    ada, bob = world.register("Ada"), world.register("Bob")
    for request in (
        RequestPair(ada),
        RequestPair(bob),
        MapInit(ada),
        MapInit(bob),
        MapReady(ada),
        MapReady(bob),
    ):
        answer = world.ask(request)
        assert world.ask(request) == answer


def test_a_request_that_arrives_late_does_no_harm(world: PairingWorld) -> None:
    """A copy of an earlier request reaches the relay after later ones."""
    ada, bob = world.register("Ada"), world.register("Bob")
    world.ask(RequestPair(ada))
    world.load(ada, bob)
    assert world.say(RequestPair(bob)) == "0/4/Ada"
    world.ask(MapReady(ada))
    assert world.say(MapInit(ada)) == "0/5/"
    start = world.ask(MapReady(bob))
    assert isinstance(start, Start)
    assert world.say(RequestPair(ada)) == "0/3/Bob"
    assert world.say(MapInit(bob)) == "0/6/"
    assert isinstance(world.ask(MapReady(ada)), Start)


@pytest.mark.parametrize(("patience", "long"), [(25.0, False), (LONG_PATIENCE, True)])
def test_a_player_is_dropped_after_its_patience(world: PairingWorld, patience: float, long: bool) -> None:
    ada = world.register("Ada", patience=patience)
    world.now += patience
    assert world.say(RequestPair(ada)) == "0/2/*"
    world.now += patience + 0.1
    assert world.say(RequestPair(ada)) == "5/*/*"
    assert long or world.state.players == {}


def test_a_poll_is_a_sign_of_life_and_mostly_no_write(world: PairingWorld) -> None:
    ada = world.register("Ada")
    before = world.state
    writes = 0
    for _ in range(100):
        world.now += 0.2
        assert world.say(RequestPair(ada)) == "0/2/*"
        writes += world.state is not before
        before = world.state
    assert writes <= 100 * 0.2 / pairing.REFRESH + 1


def test_silence_is_counted_only_while_the_relay_could_be_reached(world: PairingWorld) -> None:
    ada = world.register("Ada")
    world.now += 300
    world.heard_since = world.now - 5
    assert world.say(RequestPair(ada)) == "0/2/*"


@pytest.mark.parametrize("stage", ["paired", "loading", "ready"])
@pytest.mark.parametrize("by", ["silence", "unregistering"])
def test_who_loses_its_partner_is_back_in_the_list_and_never_gets_the_same_again(
    world: PairingWorld, stage: str, by: str
) -> None:
    ada, bob = world.register("Ada"), world.register("Bob")
    world.ask(RequestPair(ada))
    if stage != "paired":
        world.load(ada, bob)
    if stage == "ready":
        world.ask(MapReady(ada))
    asks = {"paired": RequestPair(ada), "loading": MapInit(ada), "ready": MapReady(ada)}[stage]
    if by == "silence":
        world.now += 20
        world.ask(asks)
        world.now += 10
    else:
        assert world.say(Unregister(bob)) == "0/1/*"
    assert world.say(asks) == "9/2/*"
    if stage != "paired":
        assert world.say(asks) == "9/2/*"  # the answer was lost
    assert world.say(RequestPair(ada)) == "0/2/*"
    bob = world.register("Bob")
    assert world.say(RequestPair(bob)) == "0/2/*"
    eve = world.register("Eve")
    assert world.say(RequestPair(eve)) == "0/3/Ada"


def test_who_does_not_know_of_the_drop_yet_is_told_before_a_new_partner(world: PairingWorld) -> None:
    ada, bob = world.register("Ada"), world.register("Bob")
    world.ask(RequestPair(ada))
    world.load(ada, bob)
    world.ask(Unregister(bob))
    world.ask(MapReady(ada))  # 9/2, and lost
    eve = world.register("Eve")
    assert world.say(RequestPair(eve)) == "0/3/Ada"
    assert world.say(MapReady(ada)) == "9/2/*"
    assert world.say(MapInit(ada)) == "9/2/*"
    assert world.say(RequestPair(ada)) == "0/4/Eve"
    assert world.say(MapInit(ada)) == "0/6/"


def test_who_named_its_partner_and_loses_it_has_to_register_again(world: PairingWorld) -> None:
    ada, bob = world.register("Ada", "Bob"), world.register("Bob", "Ada")
    world.ask(RequestPair(ada))
    world.ask(Unregister(bob))
    assert world.say(RequestPair(ada)) == "17/*/*"
    assert world.say(RequestPair(ada)) == "5/*/*"


@pytest.mark.parametrize("request_type", [MapInit, MapReady])
def test_who_skips_a_step_is_dropped(world: PairingWorld, request_type: Any) -> None:
    ada = world.register("Ada")
    assert world.say(request_type(ada)) == "10/*/*"
    assert world.say(request_type(ada)) == "5/*/*"


def test_ready_without_loading_is_dropped_and_the_partner_told(world: PairingWorld) -> None:
    ada, bob = world.register("Ada"), world.register("Bob")
    world.ask(RequestPair(ada))
    assert world.say(MapReady(ada)) == "10/*/*"
    assert world.say(RequestPair(bob)) == "9/2/*"


def test_a_full_list_refuses_and_empties_by_itself(
    world: PairingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "MAX_PLAYERS", 2)
    world.register("Ada", "nobody")
    world.register("Bob", "nobody")
    assert world.say(Register("Eve")) == "11/*/*"
    world.now += 26
    assert world.say(Register("Eve")).startswith("0/0/")


def test_a_registration_repeated_with_the_same_random_bits_is_the_same(world: PairingWorld) -> None:
    """What a driver does after a write whose outcome it does not know."""
    one = world.ask(Register("Ada"), random_bits=5)
    assert world.ask(Register("Ada"), random_bits=5) == one
    assert len(world.state.players) == 1


def test_no_room_for_another_game_drops_both(world: PairingWorld) -> None:
    ada, bob = world.register("Ada"), world.register("Bob")
    world.ask(RequestPair(ada))
    world.load(ada, bob)
    world.ask(MapReady(ada))
    world.ask(MapReady(bob))
    world.state, answer = pairing.games_full(world.state, bob)
    assert encode_answer(answer) == "12/*/*"
    assert world.say(MapReady(ada)) == "5/*/*"


def test_the_start_of_a_game_is_forgotten_in_the_end(world: PairingWorld) -> None:
    ada, bob = world.register("Ada", patience=180), world.register("Bob", patience=180)
    world.ask(RequestPair(ada))
    world.load(ada, bob)
    world.ask(MapReady(ada))
    world.ask(MapReady(bob))
    for _ in range(6):
        world.now += 5
        last = world.say(MapReady(ada))
    assert last == "5/*/*"


NAMES = ["Ada", "Bob", "Eve"]
STEPS = st.one_of(
    st.tuples(st.just("register"), st.sampled_from(NAMES), st.sampled_from(["", "", "Ada", "Bob"])),
    st.tuples(st.sampled_from(["pair", "init", "ready", "unregister"]), st.integers(0, 9), st.just("")),
    st.tuples(st.just("wait"), st.sampled_from([0.3, 2, 12, 26]), st.just("")),
)


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=60))
def test_random_players_never_see_the_list_contradict_itself(steps: list[tuple[str, Any, str]]) -> None:
    """Whatever players do in whatever order: partners are mutual, wishes are kept, games have two players."""
    world, keys = PairingWorld(), []
    games: dict[int, dict[int, str]] = {}
    requests = {"pair": RequestPair, "init": MapInit, "ready": MapReady, "unregister": Unregister}
    for what, which, partner in steps:
        if what == "register":
            keys.append(world.register(which, partner))
        elif what == "wait":
            world.now += which
        elif keys:
            key = keys[which % len(keys)]
            before = world.state
            answer = world.ask(requests[what](key))
            if isinstance(answer, Start):
                assert games.setdefault(answer.game_id, {}).setdefault(answer.player, key) == key
                assert answer.pairing_keys[answer.player] == key
            if isinstance(answer, Failed):
                assert encode_answer(answer) in ("5/*/*", "9/2/*", "10/*/*", "17/*/*")
                if world.say(RequestPair(key)) == "5/*/*":
                    assert key not in world.state.players
            elif world.state is before:
                assert world.ask(requests[what](key)) == answer
        _is_consistent(world.state)
    assert all(set(players) <= {0, 1} for players in games.values())
    players = [key for game in games.values() for key in game.values()]
    assert len(players) == len(set(players))


def _is_consistent(state: PairingList) -> None:
    for key, player in state.players.items():
        partner = state.players.get(player.partner)
        if player.stage is Stage.WAITING:
            assert player.partner == ""
        elif partner is not None and partner.partner == key:
            assert player.server != partner.server
            assert player.partner_name == partner.name
            assert (player.wanted, partner.wanted) in (("", ""), (partner.name, player.name))
            assert partner.name not in player.avoid
            assert (player.stage is Stage.PLAYING) == (partner.stage is Stage.PLAYING)
            if player.stage is Stage.PLAYING:
                assert player.game_id == partner.game_id
                assert {player.player, partner.player} == {0, 1}


FULL = Failed(Error.LIST_FULL)


@pytest.mark.row(89)
def test_one_address_has_a_share_of_the_list(world: PairingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may register again when one of its own has left, dropped or begun to play; others are not asked to wait."""
    monkeypatch.setattr(pairing, "MAX_PER_ADDRESS", 3)
    first, second, _ = [world.register(f"A{n}", "nobody", origin="a") for n in range(3)]
    assert world.ask(Register("A3", "nobody", origin="a")) == FULL
    world.register("B", origin="b")
    for _ in range(9):
        world.register("no address")  # of an earlier release's httpd
    world.ask(Unregister(first))
    world.register("A4", "nobody", origin="a")
    assert world.ask(Register("A5", "nobody", origin="a")) == FULL
    world.now += 20
    world.ask(RequestPair(second))
    world.now += 20
    world.register("A6", "nobody", origin="a")


@pytest.mark.row(89)
def test_a_full_list_makes_room_at_the_cost_of_whoever_has_most(
    world: PairingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its registrations without a partner the oldest goes. Between equals, who is there stays."""
    monkeypatch.setattr(pairing, "MAX_PLAYERS", 6)
    paired = [world.register(name, origin="greedy") for name in ("Ada", "Bob")]
    assert world.say(RequestPair(paired[0])) == "0/3/Bob"
    waiting = [world.register(f"G{n}", "nobody", origin="greedy") for n in range(4)]
    assert world.ask(Register("G4", "nobody", origin="greedy")) == FULL
    world.register("other", origin="other")
    assert waiting[0] not in world.state.players
    assert set(paired) <= world.state.players.keys()
    world.register("third", origin="third")
    world.register("fourth", origin="other")
    assert waiting[2] not in world.state.players
    assert world.ask(Register("fifth", origin="other")) == FULL


@pytest.mark.row(89)
def test_who_lost_a_partner_still_counts_under_its_address(
    world: PairingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "MAX_PER_ADDRESS", 1)
    ada, bob = world.register("Ada", origin="a"), world.register("Bob", origin="b")
    assert world.say(RequestPair(ada)) == "0/3/Bob"
    world.ask(Unregister(bob))
    world.say(RequestPair(ada))
    assert world.state.players[ada].stage is Stage.WAITING
    assert world.ask(Register("A", origin="a")) == FULL
