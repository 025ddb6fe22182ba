"""Runs the arena as a game of the game server SDK: players' inputs in, one snapshot for all players each tick."""

from __future__ import annotations

from tipoff_arena import wire
from tipoff_arena.arena_map import standard_arena
from tipoff_arena.bots import Wanderer
from tipoff_arena.rules import Arena, World, step
from tipoff_gameserver import Game, GameServer, LeaveReason, Player

FIRST_BOT = 60_000
"""The lowest number of a bot; players' numbers are below."""


class ArenaGame(Game):
    """The game, with a square per player and `bots` wandering squares, which take no seat.

    Without a player nothing moves and nothing is sent, so that an empty server costs next to no CPU.
    """

    tick_rate = 30.0

    def __init__(self, *, bots: int = 0, arena: Arena | None = None, tick_rate: float = 30.0) -> None:
        if not 0 <= bots <= wire.MAX_SQUARES:
            raise ValueError(f"{bots} bots: 0 to {wire.MAX_SQUARES} are possible")
        self.tick_rate = tick_rate
        self._world = World(arena or standard_arena())
        self._held: dict[int, int] = {}
        self._last_input: dict[int, int] = {}
        self._numbers: dict[Player, int] = {}
        self._next_number = 1
        self._bots: dict[int, Wanderer] = {}
        for index in range(bots):
            self._bots[FIRST_BOT + index] = Wanderer(seed=index)
            self._world = self._world.with_body(FIRST_BOT + index)

    def on_join(self, player: Player) -> None:
        """Add a square at a starting place; a bot makes room if a snapshot would become too large."""
        if len(self._world.bodies) >= wire.MAX_SQUARES:
            if not self._bots:
                player.kick(f"the arena is full: it shows {wire.MAX_SQUARES} squares")
                return
            number, _ = self._bots.popitem()
            self._remove(number)
        number = self._free_number()
        self._numbers[player] = number
        self._world = self._world.with_body(number)
        self._send_welcome(player)

    def on_drop(self, player: Player) -> None:
        """The player's connection is lost: its square stands still until it is back or gone."""
        self._held.pop(self._numbers.get(player, 0), None)

    def on_resume(self, player: Player) -> None:
        """The player is back, perhaps as a client that counts its inputs anew."""
        if (number := self._numbers.get(player)) is not None:
            self._last_input.pop(number, None)
            self._send_welcome(player)

    def on_leave(self, player: Player, reason: LeaveReason) -> None:
        """Remove the player's square."""
        number = self._numbers.pop(player, None)
        if number is not None:
            self._remove(number)

    def on_message(self, player: Player, data: bytes) -> None:
        """Take in an input or a HELLO. Inputs older than the newest are late datagrams and are ignored."""
        number = self._numbers.get(player)
        if number is None:
            return
        try:
            message = wire.parse_client(data)
        except wire.WireError as exc:
            player.kick(
                f"not understood: {exc}"
            )  # packets are authenticated, so this is another program's client
            return
        if isinstance(message, wire.HelloMessage):
            self._send_welcome(player)
        elif message.sequence > self._last_input.get(number, -1):
            self._last_input[number] = message.sequence
            self._held[number] = message.held

    def tick(self, server: GameServer, dt: float) -> None:
        """Advance the world and send its snapshot, if anybody plays."""
        if not self._numbers:
            return
        for number, bot in self._bots.items():
            self._held[number] = bot.held(self._world.bodies[number])
        self._world = step(self._world, self._held, dt)
        server.broadcast(self._snapshot())

    @property
    def world(self) -> World:
        """The present moment."""
        return self._world

    def _snapshot(self) -> bytes:
        bots, last_input = self._bots, self._last_input
        return wire.encode_snapshot(
            self._world.tick,
            [
                wire.Square(number, x, y, last_input.get(number, 0), wire.BOT if number in bots else 0)
                for number, (x, y) in self._world.bodies.items()
            ],
        )

    def _send_welcome(self, player: Player) -> None:
        player.send(wire.encode_welcome(self._numbers[player], self._world.arena, self.tick_rate))

    def _free_number(self) -> int:
        """The next number in turn: snapshots under way may still show one that was just freed."""
        while True:
            number = self._next_number
            self._next_number = number % (FIRST_BOT - 1) + 1
            if number not in self._world.bodies:
                return number

    def _remove(self, number: int) -> None:
        self._world = self._world.without_body(number)
        self._held.pop(number, None)
        self._last_input.pop(number, None)
