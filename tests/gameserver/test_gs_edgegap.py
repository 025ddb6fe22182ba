"""At Edgegap a server asks, while it starts, for the name by which browsers reach it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_gameserver.context import Port, deployed_context
from tipoff_gameserver.edgegap import secure_url, with_secure_url
from tipoff_shared.errors import Malformed

FQDN = "abc123.pr.edgegap.net"


def document(*, tls: bool = True, **changes: object) -> bytes:
    port = {"external": 31001, "internal": 30001, "protocol": "WS", "tls_upgrade": tls, "link": "x"}
    return json.dumps({"request_id": "abc123", "fqdn": FQDN, "ports": {"web": port}, **changes}).encode()


PORT = Port(30001, 31001, "WS", "web")


def test_where_edgegap_speaks_tls_browsers_dial_its_name() -> None:
    """As the context says, or the mapping the server was started with."""
    assert secure_url(document(), PORT) == f"wss://{FQDN}:31001/"
    told = Port(30001, 31001, "WS", "web", tls_upgrade=True)
    assert secure_url(document(ports=None), told) == f"wss://{FQDN}:31001/"


@pytest.mark.parametrize("said", [document(tls=False), document(ports={}), document(ports=None)])
def test_without_tls_there_is_no_such_name(said: bytes) -> None:
    assert secure_url(said, PORT) == ""


@given(
    st.binary()
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda v: document(fqdn=v))
)
def test_an_answer_is_a_url_or_malformed(said: bytes) -> None:
    """Whatever it is: nothing else comes out."""
    try:
        url = secure_url(said, PORT)
    except Malformed:
        return
    assert url == "" or url.startswith("wss://")


class Edgegap(HTTPServer):
    """Answers with `document()`, after so many failures, to whoever has the token."""

    failures = 0
    asked: list[str | None]


@pytest.fixture
def edgegap() -> Iterator[Edgegap]:
    class Handler(BaseHTTPRequestHandler):
        server: Edgegap

        def do_GET(self) -> None:  # the library's name
            self.server.asked.append(self.headers["authorization"])
            self.server.failures -= 1
            self.send_response(503 if self.server.failures >= 0 else 200)
            self.end_headers()
            self.wfile.write(document())

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with Edgegap(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def environment(edgegap: Edgegap, **more: str) -> dict[str, str]:
    mapping = {"ports": {"web": {"name": "web", "internal": 0, "external": 31001, "protocol": "WS"}}}
    return {
        "TIPOFF_DEPLOYMENT_ID": "arena-1",
        "TIPOFF_PRIVATE_KEY": "01" * 32,
        "ARBITRIUM_REQUEST_ID": "abc123",
        "ARBITRIUM_PUBLIC_IP": "203.0.113.9",
        "ARBITRIUM_PORTS_MAPPING": json.dumps(mapping),
        "ARBITRIUM_CONTEXT_URL": f"http://127.0.0.1:{edgegap.server_port}/v1/context/abc123/1",
        "ARBITRIUM_CONTEXT_TOKEN": "the token",
        **more,
    }


async def test_a_server_asks_with_its_token_until_it_is_answered(edgegap: Edgegap) -> None:
    edgegap.failures = 1
    mapping = {"ports": {"web": {"name": "web", "internal": 30001, "external": 31001, "protocol": "WS"}}}
    context = await with_secure_url(
        deployed_context(environment(edgegap, ARBITRIUM_PORTS_MAPPING=json.dumps(mapping)))
    )
    assert context.websocket_url == f"wss://{FQDN}:31001/"
    assert context.plain_websocket_allowed  # Edgegap's TLS ends before it
    assert edgegap.asked == ["the token", "the token"]


async def test_a_server_that_is_not_answered_starts_without(edgegap: Edgegap) -> None:
    """Native clients play there; nobody waits for ever."""
    edgegap.failures = 100
    context = await with_secure_url(deployed_context(environment(edgegap)))
    assert context.websocket_url == ""
    assert len(edgegap.asked) == 3


@pytest.mark.parametrize(
    "more",
    [
        {"TIPOFF_DEPLOYMENT_ID": "abc123"},  # our launcher's: it sets the same variables for others' servers
        {"ARBITRIUM_PORTS_MAPPING": ""},
        {"TIPOFF_WEBSOCKET_URL": "wss://play.example.org/gs/arena-1"},
        {"ARBITRIUM_CONTEXT_URL": "file:///etc/passwd"},
    ],
)
async def test_nothing_is_asked_where_nothing_can_be_learnt(edgegap: Edgegap, more: dict[str, str]) -> None:
    context = deployed_context(environment(edgegap, **more))
    assert await with_secure_url(context) is context
    assert edgegap.asked == []
