"""`tipoff up` by IPv6, by `localhost` and by a name with a certificate: players play by both transports."""

from __future__ import annotations

import ssl
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.arena_servers import arena_toml
from tests.certificates import self_signed
from tests.docker.compose_stack import free_range
from tests.e2e.steps import tipoff_json
from tipoff.testing import running_up

pytestmark = [pytest.mark.row(83), pytest.mark.slow]


@pytest.fixture
def games(tmp_path: Path) -> Path:
    path = tmp_path / "games.toml"
    path.write_text(arena_toml(seats=4, min_ready=1, max_deployments=1))
    return path


def status_of(url: str, context: ssl.SSLContext | None = None) -> int:
    with urllib.request.urlopen(url, timeout=5, context=context) as answer:
        status: int = answer.status
        return status


@pytest.mark.parametrize("transport", ["udp", "websocket"])
async def test_players_play_by_ipv6(tmp_path: Path, games: Path, transport: str) -> None:
    """HTTP, WebSocket and UDP: a connect token holds IPv6 addresses."""
    async with running_up(tmp_path / "state", games=games, arguments=("--host", "::1")) as up:
        assert up.url.startswith("http://[::1]:")
        report = await tipoff_json(
            "play", "--url", up.url, "--transport", transport, "--seconds", "0.5", "--json"
        )
        assert report["connected"] is True
        assert report["transport"] == transport
        assert "[::1]" in report["server"]


async def test_game_servers_keep_to_the_ports_that_a_firewall_opens(tmp_path: Path, games: Path) -> None:
    """`--ports`; `tipoff doctor` looks at these, and knows the games of the system that runs."""
    first = free_range(8)
    arguments = ("--ports", f"{first}-{first + 7}")
    async with running_up(tmp_path / "state", games=games, arguments=arguments) as up:
        for transport in ("udp", "websocket"):
            asked = ("play", "--url", up.url, "--transport", transport, "--seconds", "0.2", "--json")
            server = (await tipoff_json(*asked))["server"]
            assert first <= (urlsplit(f"//{server}").port or urlsplit(server).port or 0) < first + 8, server
        report = await tipoff_json("doctor", "--state-dir", str(tmp_path / "state"), "--json")
        said = {finding["check"]: finding["said"] for finding in report["findings"]}
        assert f"UDP ports {first}-{first + 7}: 7 of 8 free" in said["ports"]
        assert "arena" in said["games"]


async def test_localhost_is_answered_on_both_loopback_addresses(tmp_path: Path, games: Path) -> None:
    async with running_up(tmp_path / "state", games=games) as up:
        port = urlsplit(up.url).port
        for host in ("127.0.0.1", "[::1]"):
            assert status_of(f"http://{host}:{port}/healthz") == 200


async def test_a_name_with_a_certificate_is_what_browsers_dial(
    tmp_path: Path, games: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page and the game server's WebSocket go by the name, which the certificate is for."""
    certificate, key = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    arguments = ("--host", "localhost", "--tls-cert", str(certificate), "--tls-key", str(key))
    async with running_up(tmp_path / "state", games=games, arguments=arguments) as up:
        assert up.url.startswith("https://localhost:")
        report = await tipoff_json(
            "play", "--url", up.url, "--transport", "websocket", "--seconds", "0.5", "--json"
        )
        assert report["connected"] is True
        assert report["server"].startswith("wss://localhost:")
        report = await tipoff_json(
            "play", "--url", up.url, "--transport", "udp", "--seconds", "0.5", "--json"
        )
        assert report["connected"] is True
