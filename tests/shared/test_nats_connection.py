"""The connection: fails fast and says why, survives a restart, refuses writes while NATS is away."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from tests.polling import eventually
from tests.timing import quickest
from tipoff.up.embedded_nats import embedded_nats
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.buckets import buckets, create_buckets
from tipoff_shared.nats import connection as nats_connection
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.nats.errors import NoAnswer
from tipoff_shared.primitives.tasks import BoundedHandlers
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings


async def test_nobody_listening_is_said_at_once() -> None:
    """A refused port is an error with a reason, not an endless loop."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = NatsSettings(servers=(f"nats://127.0.0.1:{port}",), insecure=True)
    with pytest.raises(Unavailable, match="cannot connect to NATS"):
        async with connect(settings, name="test", timeout=1):
            pass


async def test_a_wrong_password_is_said(settings: NatsSettings) -> None:
    wrong = dataclasses.replace(settings, password=Secret("canary-password"))
    with pytest.raises(Unavailable) as caught:
        async with connect(wrong, name="test", timeout=1):
            pass
    assert "refuses the user or password" in str(caught.value)
    assert "canary" not in str(caught.value)


async def test_a_password_never_travels_in_clear_unless_told_so(settings: NatsSettings) -> None:
    """A server that asks for no TLS gets nothing from a client that was not told NATS_INSECURE."""
    heard: list[bytes] = []

    async def plain_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576,"auth_required":true}\r\n'
        )
        heard.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(plain_server, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for scheme in ("tls", "nats"):
        careful = dataclasses.replace(
            settings, servers=(f"{scheme}://127.0.0.1:{port}",), password=Secret("canary"), insecure=False
        )
        with pytest.raises(Unavailable, match="NATS_INSECURE"):
            async with connect(careful, name="test", timeout=3):
                pass
    server.close()
    await server.wait_closed()
    assert not any(b"canary" in said for said in heard)


async def test_no_responder_is_told_within_100_ms(nats: Bus) -> None:
    async def ask() -> None:
        with pytest.raises(Unavailable):
            await nats.request("nobody.here", b"", timeout=5)

    assert await quickest(ask) < 0.1


async def test_all_who_answer_are_heard(nats: Bus) -> None:
    """Each once; nobody is an empty list at once."""
    assert await nats.request_all("several", b"", first=5, each=5, most=9) == []

    async def answer(msg: Msg) -> None:
        await nats.publish(msg.reply, msg.data)

    for _ in range(3):
        await nats.subscribe("several", answer)
    for most, expected in ((9, 3), (2, 2)):
        answers = await nats.request_all("several", b"hello", first=2, each=0.2, most=most)
        assert [msg.data for msg in answers] == [b"hello"] * expected


async def test_it_comes_back_after_a_restart_and_refuses_meanwhile(tmp_path: Path) -> None:
    """kill -9 of NATS: writes fail at once while it is away, and work when it is back."""
    async with embedded_nats(tmp_path) as server, connect(server.settings(), name="test") as bus:
        back = asyncio.Event()
        bus.on_reconnect(back.set)
        server.process.kill()
        await server.process.wait()
        await eventually(lambda: bus.connected_since is None, "NATS is away", 5)
        with pytest.raises(Unavailable):
            await bus.publish("x", b"")
        assert not bus.connected
        await server.start()
        async with asyncio.timeout(10):
            await back.wait()
        await bus.publish("x", b"")
        assert bus.connected_since is not None


async def test_a_cancelled_flush_harms_nothing(nats: Bus) -> None:
    """nats-py's reader dies of a pong whose flush was cancelled; ours lives on."""
    for _ in range(20):
        flush = asyncio.create_task(nats.flush())
        await asyncio.sleep(0)
        flush.cancel()
        await asyncio.gather(flush, return_exceptions=True)
    await nats.flush(timeout=2)
    with pytest.raises(Unavailable, match="nobody listens"):
        await nats.request("nobody.here", b"", timeout=2)


async def test_a_pong_for_a_flush_that_was_given_up_harms_nothing(nats: Bus) -> None:
    """nats-py's own flush, as nats-py itself calls it while it reconnects."""
    for _ in range(20):
        flush = asyncio.create_task(nats.nc.flush())
        await asyncio.sleep(0)
        flush.cancel()
        await asyncio.gather(flush, return_exceptions=True)
    await nats.flush(timeout=2)
    inbox = await nats.nc.subscribe("here")
    await nats.publish("here", b"heard")
    assert (await inbox.next_msg(timeout=2)).data == b"heard"


async def test_requests_are_served_at_the_same_time(nats: Bus) -> None:
    """Handlers do not wait for each other (nats-py's callbacks do), up to a bound; then `busy` answers."""
    handlers = BoundedHandlers("test", limit=3)
    gate = asyncio.Event()

    async def slow(msg: object) -> None:
        await gate.wait()
        await nats.publish(msg.reply, b"done")  # type: ignore[attr-defined] # a nats Msg

    async def busy(msg: object) -> None:
        await nats.publish(msg.reply, b"busy")  # type: ignore[attr-defined] # a nats Msg

    await nats.serve("slow", slow, handlers=handlers, busy=busy)
    asks = [asyncio.create_task(nats.request("slow", b"", timeout=5)) for _ in range(4)]
    done, _ = await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result().data for task in done] == [b"busy"]
    gate.set()
    answers = sorted(msg.data for msg in await asyncio.gather(*asks))
    assert answers == [b"busy", b"done", b"done", b"done"]
    await handlers.drain(1)


def test_a_secret_does_not_show() -> None:
    """Not in a repr, not formatted, not in the settings around it."""
    settings = NatsSettings(password=Secret("canary"))
    assert "canary" not in f"{settings} {settings!r} {settings.password}"


class FakeServer:
    """Speaks as much NATS as a client needs to be connected, and knows which connections are open."""

    def __init__(self) -> None:
        self.open: set[asyncio.StreamWriter] = set()
        self.nobody = asyncio.Event()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        self.nobody.clear()
        try:
            writer.write(b'INFO {"server_id":"x","max_payload":1048576}\r\n')
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
        except ConnectionError:
            pass
        finally:
            self.open.discard(writer)
            writer.transport.abort()
            if not self.open:
                self.nobody.set()


async def test_who_leaves_while_it_reconnects_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever moment: nothing connects afterwards, and what was opened is closed."""
    monkeypatch.setattr(nats_connection, "RECONNECT_WAIT", 0.01)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    fake = FakeServer()
    server = await asyncio.start_server(fake.connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = NatsSettings(servers=(f"nats://127.0.0.1:{port}",), insecure=True)
    for _ in range(60):
        async with connect(settings, name="test"):
            for writer in list(fake.open):
                writer.transport.abort()
            await asyncio.sleep(dice.uniform(0, 0.03))  # the moment is what is tested
    await asyncio.wait_for(fake.nobody.wait(), 2)
    server.close()
    await server.wait_closed()


async def _until_away(bus: Bus) -> None:
    await eventually(lambda: not bus.connected, "NATS is away", 5)


async def test_a_subscription_that_ended_while_nats_was_away_stays_ended(tmp_path: Path) -> None:
    """nats-py subscribes again, after a reconnect, to all that it still knows."""
    async with embedded_nats(tmp_path) as server, connect(server.settings(), name="test") as bus:
        heard: list[str] = []

        async def received(msg: Msg) -> None:
            heard.append(msg.subject)

        ended = [await bus.subscribe(subject, received) for subject in ("unsubscribed", "drained")]
        await bus.subscribe("kept", received)
        back = asyncio.Event()
        bus.on_reconnect(back.set)
        await server.kill()
        await _until_away(bus)
        await ended[0].unsubscribe()
        await ended[1].drain(1)
        await server.start()
        async with asyncio.timeout(10):
            await back.wait()
        for subject in ("unsubscribed", "drained", "kept"):
            await bus.publish(subject, b"")
        await bus.flush()
        await eventually(lambda: "kept" in heard, "the last one is heard", 5)
        assert heard == ["kept"]


async def _no_message(_: Msg) -> None:
    pass


async def _watch(bus: Bus) -> None:
    async with buckets(bus).sessions.watch():
        await _break(bus)


async def _durable(bus: Bus) -> None:
    async with buckets(bus).sessions.durable("reader"):
        await _break(bus)


async def _listen(bus: Bus) -> None:
    async with buckets(bus).sessions.listen("key", lambda: None):
        await _break(bus)


async def _unsubscribe(bus: Bus) -> None:
    subscription = await bus.subscribe("subject", _no_message)
    await _break(bus)
    await subscription.unsubscribe()


async def _drain(bus: Bus) -> None:
    subscription = await bus.subscribe("subject", _no_message)
    await _break(bus)
    await subscription.drain(1)


async def _break(bus: Bus) -> None:
    """The state of nats-py (2.16) after a reconnect whose connection broke again at once: it calls itself connected,
    nothing writes what is queued, and each caller writes to the socket by itself."""
    flusher: asyncio.Task[None] = bus.nc._flusher_task  # type: ignore[assignment]
    flusher.cancel()
    await asyncio.gather(flusher, return_exceptions=True)

    async def drain() -> None:
        raise ConnectionResetError("Connection lost")

    bus.nc._transport.drain = drain  # type: ignore[method-assign,union-attr]
    assert bus.connected


@pytest.mark.row(63)
@pytest.mark.parametrize("end", [_watch, _durable, _listen, _unsubscribe, _drain])
async def test_ending_a_reader_never_fails_of_a_socket_that_broke_before_nats_py_noticed(
    settings: NatsSettings, end: Callable[[Bus], Awaitable[None]]
) -> None:
    async with connect(settings, name="test") as bus:
        await create_buckets(bus)
        before = set(bus.nc.subscriptions)
        await end(bus)
        assert set(bus.nc.subscriptions) - before == set()


_OPERATIONS: dict[str, Callable[[Bus], Awaitable[object]]] = {
    "publish": lambda bus: bus.publish("subject", b""),
    "subscribe": lambda bus: bus.subscribe("subject", _no_message),
    "request": lambda bus: bus.request("subject", b"", timeout=1),
    "get": lambda bus: buckets(bus).sessions.get("key"),
    "delete": lambda bus: buckets(bus).sessions.delete("key"),
    "list": lambda bus: buckets(bus).sessions.list(),
    "create": create_buckets,
    "watch": lambda bus: buckets(bus).sessions.watch().__aenter__(),
    "durable": lambda bus: buckets(bus).sessions.durable("reader").__aenter__(),
    "listen": lambda bus: buckets(bus).sessions.listen("key", lambda: None).__aenter__(),
}


@pytest.mark.row(63)
@pytest.mark.parametrize("operation", _OPERATIONS.values(), ids=_OPERATIONS)
async def test_a_socket_that_broke_before_nats_py_noticed_is_unavailable(
    settings: NatsSettings, operation: Callable[[Bus], Awaitable[object]]
) -> None:
    async with connect(settings, name="test") as bus:
        await create_buckets(bus)
        await _break(bus)
        with pytest.raises(Unavailable):
            await operation(bus)


@pytest.mark.row(97)
async def test_what_is_written_to_a_lost_connection_harms_no_socket_that_gets_its_number(
    settings: NatsSettings,
) -> None:
    async with connect(settings, name="test") as bus:
        for _ in range(5):
            assert await bus.wait_connected(5)
            bus.nc.abort()
            await bus.publish("subject", b"")  # nats-py has not noticed, and gives it to the flusher
            await eventually(lambda: not bus.connected)
            pairs = [socket.socketpair() for _ in range(10)]
            for ours, theirs in pairs:
                _, writer = await asyncio.open_connection(sock=ours)
                writer.close()
                await writer.wait_closed()
                theirs.close()


async def test_nobody_who_answers_requests_can_guess_where_jetstream_answers(nats: Bus) -> None:
    """A launcher may publish to all inboxes of the matchmaker, and sees one with each request."""
    seen: list[str] = []

    async def answer(msg: Msg) -> None:
        seen.append(msg.reply)
        await nats.publish(msg.reply, b"answer")

    async def quiet(_: Msg) -> None:
        pass

    await nats.subscribe("launcher", answer)
    await nats.subscribe("jetstream", quiet)
    await nats.request("launcher", b"", timeout=5)
    question = asyncio.create_task(nats.nc.ask("jetstream", b"", timeout=1))
    await nats.flush()
    inbox = seen[0].rpartition(".")[0]
    for guess in range(1000):
        await nats.publish(f"{inbox}.{guess}", b"forged")
    with pytest.raises(NoAnswer):
        await question
