"""Prints every file, class and function of tipoff that a warm play and a departure pass through, and totals.

    python -m bench.trace_play             lists and totals
    python -m bench.trace_play --totals    totals only
    python -m bench.trace_play --json      one JSON object

nats-server runs in its own process. httpd, a matchmaker and the load share this process and one event loop, where
`sys.setprofile` reports every Python function that starts or resumes. The matchmaker's server is a fake; it has
free seats.

* A **play** begins when a player opens the connection that carries the request. It ends when the player has the answer.
* A **departure** begins when the record of the player's connection is deleted. It ends when a watcher sees that the
  seat is free.
* The lists, and the rows **until quiet**, include what follows (closing, acknowledging), until nothing has run for
  `QUIET` seconds. Compare these: how much of a departure precedes its end depends on which concurrent step is first.

What counts:

* **function**: a Python function of a module `tipoff_*` that starts or resumes. A comprehension belongs to the function
  around it. Generated methods, such as the `__init__` of a dataclass, do not count.
* **class**, **file**: one that holds such a function.
* **hop**: a pair of such functions in different classes or files, where the first calls the second, directly or through
  a library. A pair counts once. The function that creates a task calls the task's coroutine. A function without such a
  caller, like a callback for a received message, is an entry and no hop.
* **NATS operation**: a message that httpd or the matchmaker publishes, requests and acknowledgements included.

To keep background work out, its intervals are long here, and only what happens in each of several rounds counts.
`--without-idle` also leaves out functions that run in an idle window of the same length.
"""

from __future__ import annotations

import argparse
import asyncio
import dis
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import nats
from nats.aio.client import Client as NatsClient
from nats.js.kv import KeyValue

from bench.matchmaker import matchmaker_of
from bench.players import Player
from tipoff.up.embedded_nats import embedded_nats
from tipoff_matchmaker.settings import Settings as MatchmakerSettings
from tipoff_matchmaker_httpd.server.run import run_httpd
from tipoff_matchmaker_httpd.settings import Settings as HttpdSettings
from tipoff_shared.games import Game

PREFIX = "tipoff_"
LONG = 600.0
GAME = Game("bench", "1", seats=64, max_deployments=1, empty_ttl=LONG, orchestrator="fake")
QUIET = 0.25
"""Seconds in which no function runs before the system counts as quiet."""
PATIENCE = 5.0
"""Seconds to wait for quiet at most."""

_RESUME = dis.opmap["RESUME"]
_PUBLISH = NatsClient.publish.__code__
_COMPREHENSIONS = (
    ".<locals>.<listcomp>",
    ".<locals>.<dictcomp>",
    ".<locals>.<setcomp>",
    ".<locals>.<genexpr>",
)


class Function(NamedTuple):
    """A function of tipoff. `cls` is "" outside a class; `name` is the qualified name."""

    file: str
    cls: str
    name: str

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


class Step(NamedTuple):
    """A function that starts or resumes. `caller` is the nearest function of tipoff above one that starts."""

    function: Function
    caller: Function | None


class Recorder:
    """Records the steps of this thread, and the NATS operations of all clients but `load`."""

    def __init__(self, load: NatsClient) -> None:
        self._load = load
        self._functions: dict[CodeType, Function | None] = {}
        self._creators: WeakKeyDictionary[asyncio.Task[Any], Function] = WeakKeyDictionary()
        self.record: list[Step | str] = []
        """In order; a string is the kind of a NATS operation."""
        self._latest = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record for the time of the block."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(self._new_task)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            loop.set_task_factory(None)

    async def take(self) -> tuple[list[Step | str], int]:
        """Wait for quiet, then return what was recorded since the last call, and how much of it before the wait."""
        end = len(self.record)
        await self.quiet()
        record, self.record = self.record, []
        return record, end

    async def quiet(self) -> None:
        """Return when no function has run for `QUIET` seconds, after `PATIENCE` seconds in any case."""
        until = time.monotonic() + PATIENCE
        self._latest = time.monotonic()
        while (wait := min(self._latest + QUIET, until) - time.monotonic()) > 0:  # noqa: ASYNC110 # quiet is no event
            await asyncio.sleep(wait)

    def _new_task(
        self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, **options)
        if creator := self._nearest(sys._getframe(1)):
            self._creators[task] = creator
        return task

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code is _PUBLISH and _starts(frame):
            if frame.f_locals["self"] is not self._load:
                self.record.append(operation(frame.f_locals["subject"]))
        elif function := self._function(frame):
            self._latest = time.monotonic()
            self.record.append(Step(function, self._caller(frame) if _starts(frame) else None))

    def _function(self, frame: FrameType) -> Function | None:
        code = frame.f_code
        if code not in self._functions:
            self._functions[code] = _function(code, frame.f_globals.get("__name__", ""))
        return self._functions[code]

    def _nearest(self, frame: FrameType | None) -> Function | None:
        while frame is not None:
            if function := self._function(frame):
                return function
            frame = frame.f_back
        return None

    def _caller(self, frame: FrameType) -> Function | None:
        if caller := self._nearest(frame.f_back):
            return caller
        task = asyncio.current_task()
        if task is not None and getattr(task.get_coro(), "cr_frame", None) is frame:
            return self._creators.get(task)
        return None


def _starts(frame: FrameType) -> bool:
    """Whether the function starts, rather than resumes as a coroutine or generator: RESUME's argument tells."""
    code, at = frame.f_code.co_code, frame.f_lasti
    return code[at] == _RESUME and code[at + 1] & 3 == 0


def _function(code: CodeType, module: str) -> Function | None:
    package = module.partition(".")[0]
    if not package.startswith(PREFIX) or code.co_filename.startswith("<"):
        return None
    path = Path(code.co_filename).as_posix()
    file = path[path.rindex(f"/{package}/") + 1 :]
    name = code.co_qualname
    while name.endswith(_COMPREHENSIONS):
        name = name.rpartition(".<locals>.")[0]
    scopes = name.split(".<locals>.")
    return Function(file, next((s.rpartition(".")[0] for s in reversed(scopes) if "." in s), ""), name)


def operation(subject: str) -> str:
    """Return the kind of a NATS operation by its subject, like `write sessions`."""
    words = subject.split(".")
    if words[0] == "$KV":
        return f"write {words[1]}"
    if words[:2] == [
        "$JS",
        "ACK",
    ]:  # $JS.ACK.stream.consumer..., or with domain and account before these
        return f"acknowledge {_bucket(words[2] if len(words) <= 9 else words[4])}"
    if words[:2] == ["$JS", "API"]:
        for call, kind in (
            ("STREAM.MSG.GET", "read"),
            ("DIRECT.GET", "read"),
            ("STREAM.PURGE", "purge"),
            ("CONSUMER.MSG.NEXT", "fetch from"),
        ):
            if subject.startswith(f"$JS.API.{call}."):
                return f"{kind} {_bucket(words[2 + len(call.split('.'))])}"
        return ".".join(words[:5])
    if words[0].startswith("_INBOX"):
        return "answer"
    return "publish " + ".".join(words[:2] if words[0] == "matchmaker" else words[:1])


def _bucket(stream: str) -> str:
    return stream.removeprefix("KV_")


class Trail:
    """What all recordings of a play or departure have in common, in the order of the first, without `idle`."""

    def __init__(self, recordings: list[list[Step | str]], idle: set[Function]) -> None:
        steps = [[s for s in r if isinstance(s, Step) and s.function not in idle] for r in recordings]
        self.functions = _common([[s.function for s in r] for r in steps])
        self.hops = _common(
            [
                [
                    (s.caller, s.function)
                    for s in r
                    if s.caller is not None and s.caller[:2] != s.function[:2] and s.caller not in idle
                ]
                for r in steps
            ]
        )
        self.files = list(dict.fromkeys(f.file for f in self.functions))
        self.classes = list(dict.fromkeys((f.file, f.cls) for f in self.functions if f.cls))
        counts = [Counter(o for o in r if isinstance(o, str)) for r in recordings]
        self.operations = {kind: n for kind in counts[0] if (n := min(count[kind] for count in counts))}

    @property
    def totals(self) -> dict[str, int]:
        """How many of each kind."""
        return {
            "files": len(self.files),
            "classes": len(self.classes),
            "functions": len(self.functions),
            "hops": len(self.hops),
            "nats_operations": sum(self.operations.values()),
        }

    def as_json(self) -> dict[str, Any]:
        """Totals and lists, ready for `json.dumps`."""
        return {
            "totals": self.totals,
            "files": self.files,
            "classes": [f"{file}: {cls}" for file, cls in self.classes],
            "functions": [str(f) for f in self.functions],
            "hops": [[str(caller), str(callee)] for caller, callee in self.hops],
            "nats_operations": self.operations,
        }

    def lines(self) -> Iterator[str]:
        """Yield each file, its functions, and under each function its hops; then the NATS operations."""
        for file in self.files:
            yield f"  {file}"
            for function in (f for f in self.functions if f.file == file):
                yield f"    {function.name}"
                for caller, callee in self.hops:
                    if caller == function:
                        yield f"      -> {callee.name if callee.file == file else callee}"
        yield "  NATS operations"
        for kind, count in self.operations.items():
            yield f"    {count} {kind}"


def _common(lists: list[list[Any]]) -> list[Any]:
    """Return what all lists contain, once each, in the order of the first."""
    return [item for item in dict.fromkeys(lists[0]) if all(item in set(other) for other in lists[1:])]


class _Load:
    """A player, by WebSocket, and the game server's writes, by NATS."""

    def __init__(self, url: str, connections: KeyValue, deployments: KeyValue.KeyWatcher) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._connections = connections
        self._deployments = deployments

    async def play(self) -> dict[str, Any]:
        """Return the session of the answer. Raises `RuntimeError` for an error, `TimeoutError` after 30 s."""
        _, player = await asyncio.get_running_loop().create_connection(
            lambda: Player(f"{self._host}:{self._port}", GAME.name, GAME.version), self._host, self._port
        )
        async with asyncio.timeout(30):
            _, message = await player.done
        session = message.get("SessionReady")
        if not isinstance(session, dict):
            raise RuntimeError(f"a play failed: {message}")
        return session

    async def connect(self, session: dict[str, Any]) -> None:
        """Wait until the session has its seat, then write the record of its connection."""
        await self._until(session["session_id"], seated=True)
        await self._connections.put(session["session_id"], str(session["client_id"]).encode())

    async def leave(self, session: dict[str, Any]) -> None:
        """Delete the record of the connection, then wait until the seat is free."""
        await self._connections.delete(session["session_id"])
        await self._until(session["session_id"], seated=False)

    async def _until(self, session_id: str, *, seated: bool) -> None:
        async with asyncio.timeout(30):
            while True:
                entry = await self._deployments.updates(timeout=30)
                if (
                    entry is not None
                    and (session_id in json.loads(entry.value or b"{}").get("seats", {})) is seated
                ):
                    return


async def trace(rounds: int = 5, *, without_idle: bool = False) -> dict[str, Trail]:
    """Trace `rounds` plays and departures; return a trail for each row of the totals."""
    recordings: dict[str, list[list[Step | str]]] = {}
    longest = 0.0
    idle: set[Function] = set()

    def keep(name: str, record: list[Step | str], end: int) -> None:
        recordings.setdefault(name, []).append(record[:end])
        recordings.setdefault(f"{name} until quiet", []).append(record)

    async with _stack() as (load, recorder):
        await load.connect(await load.play())  # starts the server, and stays on it
        for _ in range(2):  # the second one finds everything warm
            session = await load.play()
            await load.connect(session)
            await load.leave(session)
        with recorder.running():
            await recorder.take()
            for _ in range(rounds):
                began = time.monotonic()
                session = await load.play()
                keep("play", *await recorder.take())
                await load.connect(session)
                await recorder.take()
                await load.leave(session)
                keep("departure", *await recorder.take())
                longest = max(longest, time.monotonic() - began)
            if without_idle:
                await asyncio.sleep(longest)
                record, _ = await recorder.take()
                idle = {step.function for step in record if isinstance(step, Step)}
    return {name: Trail(records, idle) for name, records in recordings.items()}


@asynccontextmanager
async def _stack() -> AsyncIterator[tuple[_Load, Recorder]]:
    with tempfile.TemporaryDirectory() as store:
        async with embedded_nats(Path(store)) as server:
            settings = server.settings()
            matchmaker = MatchmakerSettings(
                owner_silence=LONG,
                sweep_interval=LONG,
                reconciler_ttl=LONG,
                listing_interval=LONG,
            )
            async with (
                matchmaker_of(GAME, settings, matchmaker),
                run_httpd(HttpdSettings.load(port=0), settings) as httpd,
                await nats.connect(
                    list(settings.servers), user=settings.user, password=settings.password.reveal()
                ) as client,
            ):
                connections = await client.jetstream().key_value("active_connections")
                deployments = await (await client.jetstream().key_value("deployments")).watchall()
                yield _Load(httpd.url, connections, deployments), Recorder(client)
                await deployments.stop()


def main(arguments: list[str]) -> None:
    """The command; `--help` lists its options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.trace_play", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--totals", action="store_true", help="print totals only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="plays and departures to compare (default: 5)")
    parser.add_argument(
        "--without-idle", action="store_true", help="leave out functions that run when idle, too"
    )
    options = parser.parse_args(arguments)
    import uvloop

    trails = uvloop.run(trace(options.rounds, without_idle=options.without_idle))
    if options.json:
        print(
            json.dumps(
                {name: t.totals if options.totals else t.as_json() for name, t in trails.items()}, indent=1
            )
        )
        return
    for name, trail in trails.items():
        if not options.totals and name.endswith("until quiet"):
            print(name, *trail.lines(), "", sep="\n")
    columns = list(trails["play"].totals)
    print(" " * 24, *(f"{column:>16}" for column in columns), sep="")
    for name, trail in trails.items():
        print(f"{name:24}", *(f"{trail.totals[column]:16}" for column in columns), sep="")


if __name__ == "__main__":
    main(sys.argv[1:])
