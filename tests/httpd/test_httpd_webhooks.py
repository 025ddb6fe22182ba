"""`POST /hook/{name}.{token}`: who is let in, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from nats.aio.msg import Msg

from tipoff_matchmaker_httpd.server.run import RunningHttpd
from tipoff_shared.errors import ConfigError
from tipoff_shared.hooks import HookKey, load_hook_key
from tipoff_shared.nats.connection import Bus

KEY = "a hook key that nobody else has"
Start = Callable[..., Awaitable[RunningHttpd]]


@pytest.fixture
async def httpd(start: Start) -> RunningHttpd:
    return await start(hook_key=KEY)


@pytest.fixture
async def heard(nats: Bus) -> AsyncIterator[asyncio.Queue[Msg]]:
    """What is published on `webhook.*`."""
    queue: asyncio.Queue[Msg] = asyncio.Queue()

    async def received(msg: Msg) -> None:
        queue.put_nowait(msg)

    subscription = await nats.nc.subscribe(nats.subjects.all_webhooks, cb=received)
    await nats.flush()
    yield queue
    await subscription.unsubscribe()


@pytest.fixture
def key(namespace: str) -> HookKey:
    return HookKey(KEY, namespace)


async def post(httpd: RunningHttpd, path_name: str, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{httpd.port}") as client:
        return await client.post(f"/hook/{path_name}", **{"json": {"running": True}} | more)


async def test_a_call_with_the_right_token_is_passed_on(
    httpd: RunningHttpd, heard: asyncio.Queue[Msg], key: HookKey, nats: Bus
) -> None:
    """Under the name only: the token stays out of NATS."""
    assert (await post(httpd, key.path_name("arena-1"))).status_code == 204
    msg = await asyncio.wait_for(heard.get(), 5)
    assert msg.subject == nats.subjects.webhook("arena-1")
    assert msg.data == b'{"running":true}'


@pytest.mark.row(43)
@pytest.mark.parametrize(
    "path_name",
    ["arena-1", "arena-1.", "arena-1." + "0" * 32, ".", "a.b.c", "arena-1.\u00e4", "%2e", "*." + "0" * 32],
)
async def test_a_forged_call_is_heard_by_nobody(
    httpd: RunningHttpd, heard: asyncio.Queue[Msg], key: HookKey, path_name: str
) -> None:
    """404 as if there were nothing; nothing is published."""
    assert (await post(httpd, path_name)).status_code == 404
    await post(httpd, key.path_name("arena-2"))
    assert (await asyncio.wait_for(heard.get(), 5)).subject.endswith("arena-2"), "the first that is heard"


async def test_a_token_is_good_for_its_own_name_and_namespace(key: HookKey) -> None:
    """Neither another deployment's nor another namespace's."""
    token = key.path_name("arena-1").rpartition(".")[2]
    assert key.check(f"arena-1.{token}") == "arena-1"
    assert key.check(f"arena-2.{token}") is None
    assert HookKey(KEY, "elsewhere").check(f"arena-1.{token}") is None
    assert HookKey(KEY + "!", "").check(f"arena-1.{token}") is None


async def test_without_a_key_nobody_is_let_in(start: Start, key: HookKey) -> None:
    """No key is no key, not an empty one."""
    assert (await post(await start(), key.path_name("arena-1"))).status_code == 404


async def test_a_body_is_four_kilobytes_at_most(httpd: RunningHttpd, key: HookKey) -> None:
    """413, before anything is published."""
    name = key.path_name("arena-1")
    assert (await post(httpd, name, json=None, content=b"x" * 4096)).status_code == 204
    assert (await post(httpd, name, json=None, content=b"x" * 4097)).status_code == 413


async def test_one_deployment_cannot_fill_nats(httpd: RunningHttpd, key: HookKey) -> None:
    """It has a few webhooks in its life; after twenty at once it gets 429. Others do not."""
    name = key.path_name("arena-1")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{httpd.port}") as client:
        answers = [(await client.post(f"/hook/{name}")).status_code for _ in range(30)]
        assert answers[:20] == [204] * 20
        assert 429 in answers
        assert (await client.post(f"/hook/{key.path_name('arena-2')}")).status_code == 204


async def test_callers_that_are_no_browsers_need_no_origin(start: Start, key: HookKey) -> None:
    """Also where players do: the token is the credential."""
    httpd = await start(hook_key=KEY, allow_missing_origin=False)
    assert (await post(httpd, key.path_name("arena-1"))).status_code == 204


def test_a_key_may_stand_in_a_file_and_must_be_long(tmp_path: Path) -> None:
    """The error says what is wrong, without the key."""
    file = tmp_path / "hook.key"
    file.write_text(KEY + "\n")
    loaded = load_hook_key("", file, "")
    assert loaded is not None
    assert loaded.check(HookKey(KEY).path_name("x")) == "x"
    assert load_hook_key("", None, "") is None
    with pytest.raises(ConfigError, match="at least 16"):
        load_hook_key("short-secret", None, "")
    with pytest.raises(ConfigError, match="hook key"):
        load_hook_key("", tmp_path / "nowhere", "")
    assert KEY not in repr(loaded)
