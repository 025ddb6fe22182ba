"""A player's user id and name reach the game server, in both profiles and on each transport, also between releases."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.compat.mixed_releases import OLD, MixedSystem, echoes, who_is
from tipoff.operate.admin import ban
from tipoff_client_sdk import Transport
from tipoff_shared.ban_list import new_ban
from tipoff_shared.errors import LoginReason, NotAllowed, NotAuthenticated

ISSUER, AUDIENCE, SECRET = "https://login.example/", "echo", "a secret of more than thirty-two bytes"


@pytest.fixture
def login(tmp_path: Path) -> dict[str, str]:
    """Settings of an httpd that wants tokens of our own."""
    (tmp_path / "secret").write_text(SECRET)
    return {
        "TIPOFF_HTTPD_AUTH": "jwt",
        "TIPOFF_HTTPD_AUTH_ISSUER": ISSUER,
        "TIPOFF_HTTPD_AUTH_AUDIENCE": AUDIENCE,
        "TIPOFF_HTTPD_AUTH_ALGORITHMS": "HS256",
        "TIPOFF_HTTPD_AUTH_KEY_FILE": str(tmp_path / "secret"),
    }


def token(**claims: Any) -> str:
    body = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 300, "sub": "ann-1", "name": "Ann"} | claims
    return jwt.encode(body, SECRET, "HS256")


@pytest.mark.slow
@pytest.mark.row(93)
async def test_a_game_server_knows_who_plays(system: MixedSystem, login: dict[str, str]) -> None:
    """The login's user id and name on both transports, also where an operator looks; then the user is banned."""
    await knows_who_plays(system, login)


@pytest.mark.slow
@pytest.mark.row(93)
async def test_a_game_server_of_the_isolated_profile_knows_who_plays(
    isolated_system: MixedSystem, login: dict[str, str]
) -> None:
    """The same."""
    await knows_who_plays(isolated_system, login)


async def knows_who_plays(system: MixedSystem, login: dict[str, str]) -> None:
    await system.start(httpd_settings=login)
    transports: tuple[Transport, ...] = ("udp", "websocket")
    for transport in transports:
        async with system.play(auth=token(), name="Mallory", transports=(transport,)) as player:
            assert await who_is(player) == "ann-1/Ann"
            await system.eventually(
                partial(_is_shown, system, player.session_id), "an operator sees who plays"
            )
    longest = {"sub": "\u00e9" * 32, "name": "\u00e4" * 24}
    async with system.play(auth=token(**longest)) as player:
        assert await who_is(player) == f"{longest['sub']}/{longest['name']}"
    with pytest.raises(NotAuthenticated) as caught:
        await system.play(name="Mallory").__aenter__()
    assert caught.value.reason is LoginReason.MISSING
    async with system.play(auth=token()) as player, system.play(auth=token(sub="bob")) as other:
        await who_is(player)
        await ban(system.bus, new_ban("user", "ann-1", reason="aimbot"))
        await player.ended()
        await echoes(other)

    async def refused() -> bool:
        try:
            async with system.play(auth=token()):
                return False
        except NotAllowed as exc:
            return "aimbot" in str(exc)

    await system.eventually(refused, "the user is refused")


async def _is_shown(system: MixedSystem, session_id: str) -> bool:
    sessions = {session["id"]: session for session in (await system.status())["sessions"]}
    shown = sessions.get(session_id, {})
    return (shown.get("user_id"), shown.get("name")) == ("ann-1", "Ann")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("releases", "seen"),
    [
        ({"gameserver": OLD}, "/ann-1"),  # its `name` is the first of the two
        ({"matchmaker": OLD}, "/"),
        ({"launcher": OLD}, "ann-1/Ann"),
        ({"matchmaker": OLD, "gameserver": OLD}, "/"),
    ],
    ids=lambda value: "old " + "+".join(value) if isinstance(value, dict) else None,
)
async def test_logins_work_between_releases(
    system: MixedSystem, login: dict[str, str], releases: dict[str, str], seen: str
) -> None:
    """Everybody plays; a service of the previous release knows what it can."""
    await system.start(httpd_settings=login, **releases)
    async with system.play(auth=token()) as player:
        assert await who_is(player) == seen


@pytest.mark.slow
async def test_an_old_httpd_passes_on_no_user_id(system: MixedSystem) -> None:
    """It knows of none, so a player cannot make one up there either; nor a name."""
    await system.start(httpd=OLD)
    async with system.play(auth={"token": token()}, name="Ann") as player:
        assert await who_is(player) == "/"
