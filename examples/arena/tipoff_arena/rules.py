"""Defines the rules of the arena, pure: a world and all inputs in, the next world out.

Squares of one size move at one speed (units per second, the same in every direction) and stop where they touch
a wall. There is no clock, socket or random source here: the same world and inputs always give the same
next world, so that the server decides and every client can check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntFlag
from typing import NamedTuple

SIZE = 1.0
"""Side of a square, units."""
SPEED = 9.0
"""Units per second."""


class Point(NamedTuple):
    """A place on the map, in units."""

    x: float
    y: float


class Rect(NamedTuple):
    """A wall; `top` is smaller than `bottom`, as on a screen."""

    left: float
    top: float
    right: float
    bottom: float


class Input(IntFlag):
    """The keys that a player holds. Opposite directions cancel each other."""

    NONE = 0
    LEFT = 1
    RIGHT = 2
    UP = 4
    DOWN = 8


def _direction(held: int) -> Point:
    """The unit vector of the keys held, (0, 0) for none."""
    dx = bool(held & Input.RIGHT) - bool(held & Input.LEFT)
    dy = bool(held & Input.DOWN) - bool(held & Input.UP)
    length = math.hypot(dx, dy)
    return Point(dx / length, dy / length) if length else Point(0.0, 0.0)


DIRECTIONS: tuple[Point, ...] = tuple(_direction(held) for held in range(16))
"""Unit vector of every `Input`, by its number."""


@dataclass(frozen=True)
class Arena:
    """The map. A square's middle may be anywhere its sides do not reach into a wall or over the edge.

    `blocked` are the walls grown by half a square: what the middle of a square may touch but not enter, which
    turns square against wall into point against rectangle.
    """

    width: float
    height: float
    walls: tuple[Rect, ...]
    spawns: tuple[Point, ...]
    size: float = SIZE
    speed: float = SPEED
    blocked: tuple[Rect, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        half = self.size / 2
        grown = tuple(Rect(w.left - half, w.top - half, w.right + half, w.bottom + half) for w in self.walls)
        object.__setattr__(self, "blocked", grown)
        for spawn in self.spawns:
            if not self.is_free(spawn):
                raise ValueError(f"the map's starting place {spawn} is inside a wall")

    def is_free(self, at: Point) -> bool:
        """Whether a square may have its middle there. Touching a wall is allowed."""
        half = self.size / 2
        if not (half <= at.x <= self.width - half and half <= at.y <= self.height - half):
            return False
        return not any(r.left < at.x < r.right and r.top < at.y < r.bottom for r in self.blocked)

    def spawn(self, number: int) -> Point:
        """Where the square with this number starts."""
        return self.spawns[number % len(self.spawns)]


@dataclass(frozen=True)
class World:
    """One moment: `bodies` is where the middle of each square is, by the square's number."""

    arena: Arena
    tick: int = 0
    bodies: Mapping[int, Point] = field(default_factory=dict)

    def with_body(self, number: int) -> World:
        """The same moment with one more square, at its starting place."""
        return replace(self, bodies={**self.bodies, number: self.arena.spawn(number)})

    def without_body(self, number: int) -> World:
        """The same moment without this square."""
        return replace(self, bodies={n: body for n, body in self.bodies.items() if n != number})


def step(world: World, inputs: Mapping[int, int], dt: float) -> World:
    """The world `dt` seconds later. `inputs` are `Input` values by square number; absent means none held."""
    distance = world.arena.speed * dt
    bodies = dict(world.bodies)
    for number, held in inputs.items():
        direction = DIRECTIONS[held & 15]
        if number in bodies and (direction.x or direction.y):
            bodies[number] = move(world.arena, bodies[number], direction.x * distance, direction.y * distance)
    return World(world.arena, world.tick + 1, bodies)


def move(arena: Arena, at: Point, dx: float, dy: float) -> Point:
    """Where a square ends that moves by (dx, dy): first sideways, then up or down, each until it touches a wall.

    The path is swept, so no step is long enough to jump over a wall; a square that meets one at an angle slides along
    it.
    """
    x, y = at
    half = arena.size / 2
    if dx > 0:
        goal = min(x + dx, arena.width - half)
        for r in arena.blocked:
            if x <= r.left < goal and r.top < y < r.bottom:
                goal = r.left
        x = goal
    elif dx < 0:
        goal = max(x + dx, half)
        for r in arena.blocked:
            if goal < r.right <= x and r.top < y < r.bottom:
                goal = r.right
        x = goal
    if dy > 0:
        goal = min(y + dy, arena.height - half)
        for r in arena.blocked:
            if y <= r.top < goal and r.left < x < r.right:
                goal = r.top
        y = goal
    elif dy < 0:
        goal = max(y + dy, half)
        for r in arena.blocked:
            if goal < r.bottom <= y and r.left < x < r.right:
                goal = r.bottom
        y = goal
    return Point(x, y)
