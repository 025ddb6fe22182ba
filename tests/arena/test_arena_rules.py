"""The rules: nobody inside a wall, nobody faster than allowed, the same world every time."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tipoff_arena.arena_map import standard_arena
from tipoff_arena.rules import Arena, Input, Point, Rect, World, step

ARENA = standard_arena()
INPUTS = st.lists(st.integers(0, 15), min_size=1, max_size=60)
STEPS = st.floats(0.001, 1.5)


def run(world: World, held: list[int], dt: float) -> list[World]:
    worlds = [world]
    for keys in held:
        worlds.append(step(worlds[-1], dict.fromkeys(world.bodies, keys), dt))
    return worlds


@settings(max_examples=150, deadline=None)
@given(spawn=st.integers(0, 15), held=INPUTS, dt=STEPS)
def test_a_square_is_never_inside_a_wall_or_outside_the_map(spawn: int, held: list[int], dt: float) -> None:
    """Whatever is held for however long a step."""
    for world in run(World(ARENA).with_body(spawn), held, dt):
        assert ARENA.is_free(world.bodies[spawn])


@settings(max_examples=100, deadline=None)
@given(spawn=st.integers(0, 15), held=INPUTS, dt=STEPS)
def test_no_step_is_longer_than_speed_times_time(spawn: int, held: list[int], dt: float) -> None:
    """Diagonals included."""
    worlds = run(World(ARENA).with_body(spawn), held, dt)
    for before, after in itertools.pairwise(worlds):
        assert math.dist(before.bodies[spawn], after.bodies[spawn]) <= ARENA.speed * dt + 1e-9


@settings(max_examples=50, deadline=None)
@given(held=INPUTS, dt=STEPS)
def test_the_same_inputs_give_the_same_world(held: list[int], dt: float) -> None:
    """Exactly, not nearly: a replay is a proof."""
    start = World(ARENA).with_body(0).with_body(5)
    assert run(start, held, dt)[-1] == run(start, held, dt)[-1]


@settings(max_examples=50, deadline=None)
@given(dt=st.floats(0.001, 0.2))
def test_holding_a_key_in_the_open_moves_by_speed_times_time(dt: float) -> None:
    """On an empty map, to the right."""
    arena = Arena(width=60, height=20, walls=(), spawns=(Point(10, 10),))
    world = run(World(arena).with_body(0), [Input.RIGHT] * 10, dt)[-1]
    assert world.bodies[0].x == pytest.approx(10 + arena.speed * dt * 10)
    assert world.bodies[0].y == 10


def test_a_square_stops_where_it_touches_the_wall() -> None:
    """Its side at the wall's side, whatever the length of the step."""
    arena = Arena(width=40, height=20, walls=(Rect(20, 5, 21, 15),), spawns=(Point(10, 10),))
    for dt in (1 / 30, 0.7, 30.0):
        world = run(World(arena).with_body(0), [Input.RIGHT] * 200, dt)[-1]
        assert world.bodies[0] == Point(20 - arena.size / 2, 10)


def test_a_square_slides_along_a_wall() -> None:
    """Held against it at an angle, the free direction goes on."""
    arena = Arena(width=40, height=20, walls=(Rect(20, 5, 21, 15),), spawns=(Point(19.5, 10),))
    world = step(World(arena).with_body(0), {0: Input.RIGHT | Input.DOWN}, 0.1)
    assert world.bodies[0].x == 19.5
    assert world.bodies[0].y == pytest.approx(10 + arena.speed * 0.1 / math.sqrt(2))


def test_opposite_keys_cancel() -> None:
    """Left and right together go nowhere."""
    world = World(ARENA).with_body(0)
    assert step(world, {0: Input.LEFT | Input.RIGHT}, 1.0).bodies == world.bodies


def test_a_map_with_a_start_inside_a_wall_is_refused() -> None:
    """A mistake in a map is said when it is made."""
    with pytest.raises(ValueError, match="inside a wall"):
        Arena(width=10, height=10, walls=(Rect(4, 4, 6, 6),), spawns=(Point(5, 5),))
