"""What NAME_OF_THE_GAME promises. Run it with `pytest`: it plays for real, with nothing else around."""

import asyncio
import json

import server as duel

import tipoff


async def until(player, wanted):
    """The first state for which `wanted(state)` is true."""
    async with asyncio.timeout(20):
        async for message in player:
            state = json.loads(message)
            if "phase" in state and wanted(state):
                return state
    raise AssertionError("the connection ended before")


async def two_players(play):
    """Call `play(game, ann, bob)` with both connected."""
    game = duel.Game()
    async with tipoff.GameServer(game, tick_rate=60, stand_alone=True, listen="127.0.0.1:0") as server:
        where = {"game": "NAME_OF_THE_GAME", "version": "1"}
        async with tipoff.connect(server.url, **where, name="Ann") as ann:
            await until(ann, lambda state: state["phase"] == "waiting")
            async with tipoff.connect(server.url, **where, name="Bob") as bob:
                await until(bob, lambda state: state["phase"] == "playing")
                await play(game, ann, bob)


def test_who_sees_the_last_goal_may_play_again():
    async def play(game, ann, bob):
        game.sides[0].goals = game.sides[1].goals = duel.GOALS - 1
        for player in (ann, bob):
            await player.send(b'{"to": 0}')  # both leave the middle
        game.dx, game.dy = 0.0, 0.0
        await until(ann, lambda state: state["paddles"] == [0, 0])
        game.turn(1, 0.0)  # and the ball goes straight
        over = await until(ann, lambda state: state["phase"] == "over")
        assert over["goals"] == [duel.GOALS, duel.GOALS - 1]
        await ann.send(b'{"again": true}', reliable=True)
        await until(bob, lambda state: any(state["again"]))
        await bob.send(b'{"again": true}', reliable=True)
        assert (await until(bob, lambda state: state["phase"] == "playing"))["goals"] == [0, 0]

    asyncio.run(two_players(play))


def test_a_paddle_sends_the_ball_back():
    async def play(game, ann, bob):
        game.turn(0, 0.0)
        await until(ann, lambda state: state["ball"][0] < 100)
        await until(ann, lambda state: state["ball"][0] > 200)
        assert game.sides[1].goals == 0

    asyncio.run(two_players(play))


def test_whoever_stays_waits_for_another_opponent():
    async def play(game, ann, bob):
        await bob.close()
        state = await until(ann, lambda state: state["phase"] == "waiting")
        assert state["paddles"].count(None) == 1

    asyncio.run(two_players(play))


def test_nonsense_is_ignored():
    async def play(game, ann, bob):
        for nonsense in (b"\xff", b"[]", b"1e999", b'{"to": "x"}', b'{"to": 1e999}', b"{}"):
            await ann.send(nonsense)
        await ann.send(b'{"to": 9999}')
        await until(bob, lambda state: duel.HEIGHT in state["paddles"])

    asyncio.run(two_players(play))
