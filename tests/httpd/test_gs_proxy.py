"""`/internal/gs/{deployment_id}`: where a reverse proxy may send players, and nowhere else."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_matchmaker_httpd.routes import gs_proxy
from tipoff_matchmaker_httpd.routes.gs_proxy import Upstreams, upstream_of
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket, Entry
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.messages import Transports, UdpAddress, WebSocketAddress
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import DeploymentRecord, DeploymentState, GameserverLease, LeaseState

WEB = Transports(websocket=WebSocketAddress("ws://10.0.0.7:31000/"))
LIVE = (DeploymentState.READY, DeploymentState.DRAINING)


def record(**changes: object) -> DeploymentRecord:
    plain = DeploymentRecord(
        "arena-1",
        DeploymentState.READY,
        "arena",
        "1",
        "launcher",
        4,
        created_at=0.0,
        boot_id="b",
        transports=WEB,
        proxy="tipoff-arena-1:30007",
    )
    return msgspec.structs.replace(plain, **changes)


def lease(**changes: object) -> GameserverLease:
    plain = GameserverLease("arena-1", "b", "arena", "1", LeaseState.READY, WEB, 4, websocket_port=30007)
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture
async def kv(nats: Bus) -> Buckets:
    return await create_buckets(nats)


# The rule.


@pytest.mark.parametrize("state", list(DeploymentState))
def test_only_a_live_deployment_has_an_upstream(state: DeploymentState) -> None:
    """Ready, or draining (its players may reconnect)."""
    expected = "tipoff-arena-1:30007" if state in LIVE else None
    assert upstream_of(record(state=state)) == expected


def test_a_port_that_the_launcher_did_not_pick_is_the_servers() -> None:
    """In its own container it may listen where it likes; the host is never its to say."""
    assert upstream_of(record(proxy="127.0.0.1", websocket_port=41234)) == "127.0.0.1:41234"
    assert upstream_of(record(websocket_port=4222)) == "tipoff-arena-1:30007"


@pytest.mark.parametrize(
    "changes",
    [
        {"proxy": ""},
        {"proxy": "127.0.0.1"},
        {"proxy": "127.0.0.1", "websocket_port": 70000},
        {"proxy": "host:0"},
        {"proxy": "host:99999"},
        {"proxy": "host:80/path"},
        {"proxy": "user@host:80"},
        {"proxy": "host:80\r\nX: y"},
        {"proxy": "-host:80"},
        {"proxy": "http://host:80"},
        {"transports": Transports(udp=UdpAddress("10.0.0.7", 31000))},
    ],
)
def test_without_a_usable_address_or_listener_there_is_no_upstream(changes: dict[str, object]) -> None:
    """A server elsewhere, one without WebSocket, an address that no proxy should dial."""
    assert upstream_of(record(**changes)) is None


@given(st.text(max_size=80), st.integers(-5, 70000))
def test_an_upstream_is_host_and_port_whatever_the_record_says(proxy: str, port: int) -> None:
    """No text of a record gets out of the shape."""
    upstream = upstream_of(record(proxy=proxy, websocket_port=port))
    if upstream is not None:
        host, _, digits = upstream.rpartition(":")
        assert host.isascii() and host.replace("-", "").replace(".", "").isalnum()
        assert 1 <= int(digits) <= 65535


# The answers.


async def test_a_live_server_is_told_to_the_proxy(http: Any, kv: Buckets) -> None:
    """204, the address in the header, nothing to be stored."""
    await kv.deployments.create("arena-1", record())
    answer = await http.get("/internal/gs/arena-1")
    assert answer.status_code == 204
    assert answer.headers["x-tipoff-upstream"] == "tipoff-arena-1:30007"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "name", ["arena-2", "ARENA-1", "a.b", "a%2Fb", "%2e%2e", "a" * 64, "a*", "a>", "-a", "a%0d%0aX:y"]
)
async def test_any_other_is_not_found(http: Any, kv: Buckets, name: str) -> None:
    """Unknown, or no id at all: nothing of it reaches a subject."""
    answer = await http.get(f"/internal/gs/{name}")
    assert answer.status_code == 404
    assert "x-tipoff-upstream" not in answer.headers


async def test_an_ended_server_is_not_found(http: Any, kv: Buckets) -> None:
    """Its record stays for a while; no player is sent there."""
    await kv.deployments.create("arena-1", record(state=DeploymentState.STOPPING))
    assert (await http.get("/internal/gs/arena-1")).status_code == 404


async def test_a_record_nobody_can_read_is_not_found(http: Any, kv: Buckets, nats: Bus) -> None:
    """And does no harm to the next question."""
    await nats.js.publish(f"$KV.{nats.subjects.bucket('deployments')}.arena-1", b"{}")
    assert (await http.get("/internal/gs/arena-1")).status_code == 404


async def test_a_smuggled_upstream_is_refused(http: Any, kv: Buckets) -> None:
    """A player's own header, let through by a proxy that does not strip it."""
    await kv.deployments.create("arena-1", record())
    answer = await http.get("/internal/gs/arena-1", headers={"X-Tipoff-Upstream": "169.254.169.254:80"})
    assert answer.status_code == 403


async def test_pages_of_foreign_origins_may_not_play(http: Any, kv: Buckets) -> None:
    """The rule of `/matchmaker/ws`: the same origin, or one on the operator's list."""
    await kv.deployments.create("arena-1", record())
    same = {"Host": "play.example", "Origin": "https://play.example"}
    other = {"Host": "play.example", "Origin": "https://evil.example"}
    assert (await http.get("/internal/gs/arena-1", headers=same)).status_code == 204
    assert (await http.get("/internal/gs/arena-1", headers=other)).status_code == 403


async def test_only_the_operators_networks_may_ask(start: Any, kv: Buckets) -> None:
    """By the socket's peer: X-Forwarded-For does not help."""
    import httpx

    httpd = await start(internal_networks="192.0.2.0/24", trusted_proxies="127.0.0.1")
    async with httpx.AsyncClient(base_url=httpd.url, trust_env=False) as client:
        answer = await client.get("/internal/gs/arena-1", headers={"X-Forwarded-For": "192.0.2.1"})
    assert answer.status_code == 403


async def test_a_question_with_the_players_upgrade_headers_is_answered(
    httpd: Any, raw: Any, kv: Buckets
) -> None:
    """As Caddy and nginx pass them on; the connection is closed after it."""
    await kv.deployments.create("arena-1", record())
    async with raw(httpd) as connection:
        connection.send(
            b"GET /internal/gs/arena-1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        async with asyncio.timeout(3):
            answer = await connection.reader.read()
    assert answer.startswith(b"HTTP/1.1 204")
    assert b"x-tipoff-upstream: tipoff-arena-1:30007" in answer.lower()


async def test_without_nats_an_answer_given_before_stays_good(
    http: Any, kv: Buckets, monkeypatch: Any
) -> None:
    """Players reconnect to games that go on; what was never asked is 503 with Retry-After."""
    await kv.deployments.create("arena-1", record())
    assert (await http.get("/internal/gs/arena-1")).status_code == 204
    monkeypatch.setattr(gs_proxy, "FRESH", 0.0)

    async def away(*_: object) -> None:
        raise Unavailable("NATS is away", retry_after=2)

    monkeypatch.setattr(Bucket, "get", away)
    assert (await http.get("/internal/gs/arena-1")).status_code == 204
    unknown = await http.get("/internal/gs/arena-2")
    assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "2")


# The cache.


class Counted:
    """A `deployments` bucket that counts its reads and can hold them back. `found`: the upstream of all it knows."""

    def __init__(self) -> None:
        self.found: str | None = "host:1"
        self.reads = 0
        self.asked = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def get(self, key: str) -> Entry[DeploymentRecord] | None:
        self.reads += 1
        self.asked.set()
        found = self.found
        await self.go.wait()
        return Entry(key, record(proxy=found), 1) if found else None


@pytest.fixture
def counted() -> Counted:
    return Counted()


async def test_a_storm_asks_nats_once(kv: Buckets, counted: Counted) -> None:
    """A thousand players of one server, all at one moment, and again a moment later."""
    upstreams = Upstreams(counted)
    async with upstreams.running(kv.gameservers):
        for _ in range(2):
            found = await asyncio.gather(*(upstreams.find("arena-1") for _ in range(1000)))
            assert set(found) == {"host:1"}
    assert counted.reads == 1


async def test_an_answer_lives_for_seconds(kv: Buckets, counted: Counted) -> None:
    """Then NATS is asked again; a refusal lives for one second."""
    now = [100.0]
    upstreams = Upstreams(counted, lambda: now[0])
    async with upstreams.running(kv.gameservers):
        await upstreams.find("arena-1")
        counted.found = None
        now[0] += gs_proxy.FRESH - 0.1
        assert await upstreams.find("arena-1") == "host:1"
        now[0] += 0.2
        assert await upstreams.find("arena-1") is None
        counted.found = "host:2"
        now[0] += gs_proxy.FRESH_REFUSAL
        assert await upstreams.find("arena-1") == "host:2"


async def test_a_lease_that_goes_ends_an_answer_at_once(kv: Buckets, counted: Counted) -> None:
    """The watch drops it; a heartbeat does not."""
    upstreams = Upstreams(counted)
    upstreams.hint("arena-1", lease())
    async with upstreams.running(kv.gameservers):
        await upstreams.find("arena-1")
        upstreams.hint("arena-1", lease(players=3))
        assert await upstreams.find("arena-1") == "host:1"
        assert counted.reads == 1
        counted.found = None
        upstreams.hint("arena-1", None)
        assert await upstreams.find("arena-1") is None


async def test_what_changes_while_it_is_read_is_read_again(kv: Buckets, counted: Counted) -> None:
    """An answer from before the change is not kept."""
    upstreams = Upstreams(counted)
    async with upstreams.running(kv.gameservers):
        counted.go.clear()
        asking = asyncio.create_task(upstreams.find("arena-1"))
        await counted.asked.wait()
        upstreams.hint("arena-1", lease())
        counted.go.set()
        assert await asking == "host:1"
        counted.found = "host:2"
        assert await upstreams.find("arena-1") == "host:2"


async def test_the_watch_hears_of_leases(kv: Buckets, eventually: Any) -> None:
    """On real NATS: put, then gone."""
    upstreams = Upstreams(kv.deployments)
    async with upstreams.running(kv.gameservers):
        await kv.gameservers.put("arena-1", lease())
        await eventually(lambda: "arena-1" in upstreams.servers)
        await kv.gameservers.delete("arena-1")
        await eventually(lambda: "arena-1" not in upstreams.servers)


async def test_names_that_do_not_exist_take_no_memory_without_end(
    kv: Buckets, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest answers go."""
    monkeypatch.setattr(gs_proxy, "KEPT", 10)
    counted.found = None
    upstreams = Upstreams(counted)
    async with upstreams.running(kv.gameservers):
        for number in range(30):
            await upstreams.find(f"arena-{number}")
    assert upstreams.kept == 10


async def test_a_nats_that_does_not_answer_is_503(
    kv: Buckets, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within its patience; and when httpd ends, every waiter gets an error."""
    monkeypatch.setattr(gs_proxy, "PATIENCE", 0.05)
    counted.go.clear()
    upstreams = Upstreams(counted)
    async with upstreams.running(kv.gameservers):
        with pytest.raises(Unavailable):
            await upstreams.find("arena-1")
        monkeypatch.setattr(gs_proxy, "PATIENCE", 30)
        counted.asked.clear()
        asking = asyncio.create_task(upstreams.find("arena-1"))
        await counted.asked.wait()
    with pytest.raises(Unavailable, match="stopping"):
        await asking
