"""Stands in for a game server with bevygap's server plugin (0.2): it demands the same things in the same order, and
ends as soon as anything is missing. Of our code it uses only the netcode library.

    python stand_in.py [--port N] [--ca_contents PEM]

`--port` is the port of a game that always listens on the same; without it the one of ARBITRIUM_PORTS_MAPPING named
`webtransport`. It echoes payloads, except `who` (its request id and digest) and `end` (it asks for its own end by
ARBITRIUM_DELETE_URL). Netcode runs on bare UDP instead of WebTransport's datagrams.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import ssl
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

import nats
import nats.errors
from nats.aio.client import Client as Nats

from tipoff.interop.udp_driver import UdpDriver, bind_udp
from tipoff_shared.netcode import (
    Address,
    Connected,
    Dialect,
    Disconnected,
    Payload,
    PrivateKey,
    Server,
    ServerEvent,
)

PROTOCOL_ID = 80085
ARBITRIUM = (
    "ARBITRIUM_REQUEST_ID",
    "ARBITRIUM_DELETE_URL",
    "ARBITRIUM_DELETE_TOKEN",
    "ARBITRIUM_DEPLOYMENT_LOCATION",
    "ARBITRIUM_CONTEXT_URL",
    "ARBITRIUM_CONTEXT_TOKEN",
    "ARBITRIUM_PUBLIC_IP",
    "ARBITRIUM_PORTS_MAPPING",
)
SECOND = 1_000_000_000


def bucket(name: str, description: str = "", *, max_age: int = 0, max_value_size: int = 0) -> dict[str, Any]:
    """What async-nats sends for `create_key_value`: zeros where nothing is configured."""
    return {
        "name": f"KV_{name}",
        "description": description,
        "subjects": [f"$KV.{name}.>"],
        "retention": "limits",
        "max_consumers": 0,
        "max_msgs": 0,
        "max_msgs_per_subject": 1,
        "max_bytes": 0,
        "discard": "new",
        "max_age": max_age,
        "max_msg_size": max_value_size,
        "storage": "file",
        "num_replicas": 1,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
    }


STREAMS = (
    bucket(
        "sessions_eg2ly",
        "Maps Edgegap Session IDs to Lightyear Client IDs",
        max_age=30 * SECOND,
        max_value_size=1024,
    ),
    bucket(
        "sessions_ly2eg",
        "Maps Lightyear Client IDs to Edgegap Session IDs",
        max_age=30 * SECOND,
        max_value_size=1024,
    ),
    bucket("active_connections"),
    bucket(
        "cert_digests",
        "Maps server public ip to their self-signed cert digests",
        max_age=14 * 86400 * SECOND,
        max_value_size=1024,
    ),
    bucket(
        "unclaimed_sessions",
        "Any session ids we get from the API are stored here, and if they key age gets too big, we delete the "
        "session via the API.",
        max_value_size=1024,
    ),
    {
        "name": "DELETE_SESSION_STREAM",
        "subjects": ["edgegap_delete_session_q.*"],
        "retention": "workqueue",
        "discard": "old",
        "storage": "file",
    },
)


def panic(message: str) -> NoReturn:
    """A panic in any task ends the process, and everybody's game with it."""
    print(f"panicked: {message}", flush=True)
    os._exit(1)


def say(message: str) -> None:
    print(message, flush=True)


async def connect_to_nats() -> Nats:
    """As bevygap_shared does: TLS unless NATS_INSECURE is set to anything; one host; a user and a password."""
    missing = [name for name in ("NATS_HOST", "NATS_USER", "NATS_PASSWORD") if name not in os.environ]
    if missing:
        panic(f"Missing {missing[0]} env")
    host = os.environ["NATS_HOST"]
    if "," in host:
        panic(f"{host} is not the address of one server")
    insecure = "NATS_INSECURE" in os.environ
    authority = os.environ.get("NATS_CA")
    if authority is None and "NATS_CA_CONTENTS" in os.environ:
        file = Path(tempfile.gettempdir()) / "rootCA-bevygap_server_plugin.pem"
        file.write_text(os.environ["NATS_CA_CONTENTS"])
        authority = str(file)

    async def on_error(exc: Exception) -> None:
        say(f"NATS: {str(exc) or type(exc).__name__}")

    return await nats.connect(
        host if "://" in host else f"{'nats' if insecure else 'tls'}://{host}",
        name="bevygap_server_plugin",
        user=os.environ["NATS_USER"],
        password=os.environ["NATS_PASSWORD"],
        tls=None if insecure else ssl.create_default_context(cafile=authority),
        connect_timeout=5,
        allow_reconnect=False,
        error_cb=on_error,
    )


async def ask(nc: Nats, subject: str, question: object) -> dict[str, Any]:
    """JetStream's answer. Any error is the end."""
    payload = question if isinstance(question, bytes) else json.dumps(question).encode()
    try:
        answer = json.loads((await nc.request(subject, payload, timeout=5)).data)
    except (TimeoutError, nats.errors.Error) as exc:
        panic(f"{subject}: {str(exc) or type(exc).__name__}")
    if "error" in answer:
        panic(f"{subject}: {answer['error']}")
    assert isinstance(answer, dict)
    return answer


class Kv:
    """What async-nats does for a bucket: direct gets, puts with an acknowledgement, deletes by a marker."""

    def __init__(self, nc: Nats, name: str) -> None:
        self._nc = nc
        self._name = name

    async def get(self, key: str) -> str | None:
        try:
            found = await self._nc.request(
                f"$JS.API.DIRECT.GET.KV_{self._name}.$KV.{self._name}.{key}", b"", timeout=5
            )
        except (TimeoutError, nats.errors.Error) as exc:
            panic(f"Failed to get {key} from {self._name}: {str(exc) or type(exc).__name__}")
        headers = found.headers or {}
        if headers.get("Status") or headers.get("KV-Operation"):
            return None
        return found.data.decode()

    async def put(self, key: str, value: str) -> None:
        await ask(self._nc, f"$KV.{self._name}.{key}", value.encode())

    async def delete(self, key: str) -> None:
        try:
            await self._nc.request(f"$KV.{self._name}.{key}", b"", timeout=5, headers={"KV-Operation": "DEL"})
        except (TimeoutError, nats.errors.Error) as exc:
            panic(f"Failed to del {key} in {self._name}: {str(exc) or type(exc).__name__}")


def fetch(method: str, url: str, token: str) -> bytes:
    request = urllib.request.Request(
        url, method=method, headers={"authorization": token, "user-agent": "bevy_edgegap_gameserver"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        body: bytes = response.read()
        return body


async def fetch_context() -> dict[str, Any]:
    url = os.environ["ARBITRIUM_CONTEXT_URL"]
    request_id, number = url.split("/")[-2:]
    if request_id != os.environ["ARBITRIUM_REQUEST_ID"] or not 0 <= int(number) < 2**31:
        panic(f"{url} does not end in the request id and an i32")
    try:
        body = await asyncio.to_thread(fetch, "GET", url, os.environ["ARBITRIUM_CONTEXT_TOKEN"])
        context = json.loads(body)
    except (OSError, ValueError) as exc:
        panic(f"Failed to fetch context: {exc}")
    if not isinstance(context, dict):
        panic("Context is not an object")
    for key in ("request_id", "public_ip", "fqdn"):
        if not isinstance(context.get(key), str):
            panic(f"Missing {key} key in context")
    if not isinstance(context.get("sockets"), int) or context["sockets"] < 0:
        panic("Sockets is not a number!")
    location = context.get("location")
    if not isinstance(location, dict) or not {"city", "country"} <= location.keys():
        panic("Missing location key in context")
    return context


def private_key() -> PrivateKey:
    """As lightyear's examples read it: decimal numbers, perhaps in brackets."""
    text = os.environ.get("LIGHTYEAR_PRIVATE_KEY")
    if text is None:
        panic("no LIGHTYEAR_PRIVATE_KEY")
    numbers = "".join(c for c in text if c.isdigit() or c == ",").split(",")
    return PrivateKey(bytes(int(number) for number in numbers))


class Game:
    """The netcode server, and what the plugin does when somebody comes or goes: one after the other, as it does."""

    def __init__(self, nc: Nats, request_id: str, digest: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._sessions: dict[int, str] = {}
        self._events: asyncio.Queue[Connected | Disconnected] = asyncio.Queue()
        self._mappings = Kv(nc, "sessions_ly2eg")
        self._connections = Kv(nc, "active_connections")
        self._nc = nc
        self._who = f"{request_id} {digest}".encode()
        self._deleting: asyncio.Task[bytes] | None = None
        self._server = Server(
            private_key=private_key(),
            protocol_id=PROTOCOL_ID,
            addresses=(),
            max_clients=16,
            dialect=Dialect.LIGHTYEAR,
        )

    async def run(self, port: int) -> None:
        driver = UdpDriver(self._server, self._happened)
        await driver.open([bind_udp(Address("0.0.0.0", port))])
        say(f"listening on {port}")
        while True:
            await self._follow(await self._events.get())

    def _happened(self, event: ServerEvent) -> None:
        if isinstance(event, Connected | Disconnected):
            self._events.put_nowait(event)
        elif isinstance(event, Payload):
            answer = self._who if event.data == b"who" else event.data
            self._server.send(event.index, answer, self._loop.time())
            if event.data == b"end" and self._deleting is None:
                url, token = os.environ["ARBITRIUM_DELETE_URL"], os.environ["ARBITRIUM_DELETE_TOKEN"]
                self._deleting = self._loop.create_task(asyncio.to_thread(fetch, "DELETE", url, token))

    async def _follow(self, event: Connected | Disconnected) -> None:
        client_id = event.client_id
        if isinstance(event, Connected):
            session_id = await self._mappings.get(str(client_id))
            if session_id is None:
                panic("Client ID is not mapped to a session id! wtf.")
            self._sessions[client_id] = session_id
            await self._connections.put(session_id, str(client_id))
            say(f"client {client_id} is session {session_id}")
        elif client_id in self._sessions:
            await self._connections.delete(self._sessions[client_id])
            say(f"client {client_id} is gone")
        await self._nc.flush()


async def main(arguments: list[str]) -> None:
    missing = [name for name in ARBITRIUM if name not in os.environ]
    if missing:
        panic(f"Failed to read Arbitrium ENVs: {', '.join(missing)}")
    if "--ca_contents" in arguments:
        os.environ["NATS_CA_CONTENTS"] = arguments[arguments.index("--ca_contents") + 1]
    certificate = secrets.token_bytes(500)
    digest = hashlib.sha256(certificate).digest().hex(":")
    nc = await connect_to_nats()
    for stream in STREAMS:
        await ask(nc, f"$JS.API.STREAM.CREATE.{stream['name']}", stream)
    context = await fetch_context()
    await Kv(nc, "cert_digests").put(context["public_ip"], digest)
    await nc.flush()
    await nc.publish("gameserver.contexts", json.dumps(context).encode())
    await nc.flush()
    say(f"context of {context['request_id']} at {context['public_ip']} published")
    if "--port" in arguments:
        port = int(arguments[arguments.index("--port") + 1])
    else:
        port = json.loads(os.environ["ARBITRIUM_PORTS_MAPPING"])["ports"]["webtransport"]["internal"]
    await Game(nc, context["request_id"], digest).run(port)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1:]))
    except Exception as error:
        panic(f"{type(error).__name__}: {error}")
