"""The matchmaker's metrics: Prometheus gets them, whoever else connects."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from tests.polling import eventually
from tipoff_matchmaker import metrics_server
from tipoff_matchmaker.metrics_server import MAX_CONNECTIONS, MAX_PER_ADDRESS

pytestmark = pytest.mark.row(89)


@pytest.fixture
def port() -> Iterator[int]:
    registry = CollectorRegistry()
    Counter("plays", "Plays", registry=registry).inc(3)
    with metrics_server.serve(registry, "127.0.0.1", 0) as port:
        yield port


def threads() -> int:
    return sum("process_request" in thread.name for thread in threading.enumerate())


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize(
    "sent", [b"", b"GET /metrics HT", b"\0\xff\r\n"], ids=["silent", "half a line", "garbage"]
)
@pytest.mark.parametrize(
    "source", ["127.0.0.2", "127.0.0.1"], ids=["another address", "the operator's address"]
)
async def test_connections_without_end_keep_the_operator_out_for_no_moment(
    port: int, sent: bytes, source: str
) -> None:
    """Nor does each of them cost a thread."""
    opened = []
    try:
        for number in range(200):
            sock = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
            opened.append(sock)
            sock.sendall(sent)
            if number % 50 == 49:
                began = time.monotonic()
                assert "plays_total 3.0" in scrape(port)
                assert time.monotonic() - began < 2
                await eventually(lambda: threads() <= MAX_CONNECTIONS, "as many threads as connections")
    finally:
        for sock in opened:
            sock.close()


def test_a_client_that_sends_nothing_is_gone_after_a_while() -> None:
    with (
        metrics_server.serve(CollectorRegistry(), "127.0.0.1", 0, timeout=0.2) as port,
        socket.create_connection(("127.0.0.1", port), timeout=5) as sock,
    ):
        assert sock.recv(10) == b""
        for thread in threading.enumerate():
            if "process_request" in thread.name:
                thread.join(5)
        assert threads() == 0


def test_one_address_holds_its_share(port: int) -> None:
    assert MAX_PER_ADDRESS < MAX_CONNECTIONS


def test_it_listens_on_ipv6_too() -> None:
    with metrics_server.serve(CollectorRegistry(), "::1", 0) as port, socket.create_connection(("::1", port)):
        pass
