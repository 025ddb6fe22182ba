"""How orchestrators are found by the names in games.toml."""

from __future__ import annotations

import importlib.metadata

import pytest

from tipoff_orchestrator_client import registry
from tipoff_orchestrator_client.base import Orchestrator
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_orchestrator_client.registry import open_orchestrators, orchestrator_names
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game
from tipoff_shared.nats.connection import Bus

MADE: list[FakeOrchestrator] = []


def make_cloud(bus: Bus) -> Orchestrator:
    MADE.append(FakeOrchestrator("cloud"))
    return MADE[-1]


async def make_slowly(bus: Bus) -> Orchestrator:
    return make_cloud(bus)


def make_nonsense(bus: Bus) -> object:
    return "nonsense"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points as if packages had brought them."""
    points = [
        importlib.metadata.EntryPoint(name, f"{__name__}:{attribute}", registry.ENTRY_POINTS)
        for name, attribute in (
            ("cloud", "make_cloud"),
            ("slow", "make_slowly"),
            ("nonsense", "make_nonsense"),
            ("broken", "not_there"),
        )
    ]

    def entry_points(*, group: str, name: str | None = None) -> list[importlib.metadata.EntryPoint]:
        assert group == "tipoff.orchestrators"
        return [point for point in points if name in (None, point.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("sys").modules[__name__])


def test_the_names_are_those_of_the_games_each_once() -> None:
    """In the order of games.toml."""
    games = {
        (name, "1"): Game(name, "1", orchestrator=orchestrator)
        for name, orchestrator in (("a", "launcher"), ("b", "cloud"), ("c", "launcher"))
    }
    assert orchestrator_names(games.values()) == ["launcher", "cloud"]


async def test_the_launcher_is_built_in(nats: Bus) -> None:
    """Without any entry point."""
    async with open_orchestrators(["launcher", "launcher"], nats) as opened:
        assert list(opened) == ["launcher"]
        assert isinstance(opened["launcher"], LauncherOrchestrator)


@pytest.mark.usefixtures("installed")
async def test_an_unknown_name_says_which_are_known(nats: Bus) -> None:
    """The fake is not among them, unless it is allowed."""
    known = "known are broken, cloud, edgegap, edgegap-sessions, launcher"
    with pytest.raises(ConfigError, match=f"'fake' is not known here; {known}"):
        async with open_orchestrators(["fake"], nats):
            pass
    async with open_orchestrators(["fake"], nats, allow_fake=True) as opened:
        assert isinstance(opened["fake"], FakeOrchestrator)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["cloud", "slow"])
async def test_a_package_adds_an_orchestrator(nats: Bus, name: str) -> None:
    """By an entry point: a function or a coroutine function; leaving closes it."""
    async with open_orchestrators([name], nats) as opened:
        assert opened[name].name == "cloud"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "complaint"), [("broken", "cannot be loaded"), ("nonsense", "makes a str, which lacks")]
)
async def test_an_entry_point_that_cannot_be_used_says_why(nats: Bus, name: str, complaint: str) -> None:
    """At the start, naming the package's part."""
    with pytest.raises(ConfigError, match=complaint):
        async with open_orchestrators([name], nats):
            pass
