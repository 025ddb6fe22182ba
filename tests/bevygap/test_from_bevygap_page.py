"""docs/from-bevygap.md is true; the Docker test plays its games.toml."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.bevygap.games_of_the_page import PORT, games_of_the_page
from tests.bevygap.stand_in import ARBITRIUM, PROTOCOL_ID, STREAMS
from tests.matchmaker.world import KEY
from tipoff.up.embedded_nats import EmbeddedNats
from tipoff_launcher.edgegap_compat.arbitrium import Arbitrium, ServerTokens
from tipoff_launcher.edgegap_compat.host_info import HostInfo
from tipoff_shared.kv.buckets import declarations
from tipoff_shared.nats.connection import connect


@pytest.fixture
def page(source_tree: Path) -> str:
    return (source_tree / "docs" / "from-bevygap.md").read_text()


def test_its_games_toml_is_one(source_tree: Path, tmp_path: Path) -> None:
    """With the key in bevygap's form."""
    games = games_of_the_page(source_tree, tmp_path)
    (game,) = games.all()
    assert games.private_key(game) == KEY
    assert (game.dialect, game.ready, game.primary, game.bevygap) == (
        "lightyear",
        "context",
        "webtransport",
        True,
    )
    assert game.netcode_protocol_id == PROTOCOL_ID
    assert game.docker is not None
    assert game.docker.ports["webtransport"].internal == PORT


def test_every_setting_it_names_exists(page: str, source_tree: Path) -> None:
    settings = "".join((source_tree / "docs" / name).read_text() for name in ("settings.md", "games-toml.md"))
    known = set(re.findall(r"(?:TIPOFF|NATS)_[A-Z_]+", settings)) | {
        "TIPOFF_LOG",
        "TIPOFF_LOG_LEVEL",
        "NATS_PASS",
    }
    named = {name.rstrip("_") for name in re.findall(r"(?:TIPOFF|NATS)_[A-Z_]+", page)}
    assert named - known == set()


def test_it_names_all_that_bevygap_has(page: str) -> None:
    """Variables, buckets and flags of its programs."""
    variables = {name for name in ARBITRIUM if not name.endswith("_TOKEN")}
    buckets = {str(stream["name"]).removeprefix("KV_") for stream in STREAMS}
    flags = {"--app-name", "--app-version", "--lightyear-private-key", "--lightyear-protocol-id"}
    flags |= {"--session-webhook-url", "--cors", "--bind", "--fake-ip", "--ca_contents"}
    assert {name for name in variables | buckets | flags if name not in page} == set()


def test_the_launcher_sets_what_the_plugin_demands() -> None:
    """The very eight that the stand-in, as the plugin, reads at its start."""
    host = HostInfo("http://127.0.0.1:1", "127.0.0.1", "localhost", "", "")
    assert set(Arbitrium(host, ServerTokens(b"x" * 32)).variables("d-1", {})) == set(ARBITRIUM)


@pytest.mark.parametrize("ours_first", [True, False])
async def test_both_sides_make_the_same_buckets(own_nats: EmbeddedNats, ours_first: bool) -> None:
    """In either order: JetStream refuses a second create that differs."""
    async with connect(own_nats.settings(), name="test") as bus:

        async def ours() -> None:
            for config in declarations(bus):
                await bus.js.add_stream(config)

        async def theirs() -> None:
            for stream in STREAMS:
                subject = f"$JS.API.STREAM.CREATE.{stream['name']}"
                answer = json.loads((await bus.request(subject, json.dumps(stream).encode(), timeout=5)).data)
                assert "error" not in answer, answer

        for create in (ours, theirs) if ours_first else (theirs, ours):
            await create()
