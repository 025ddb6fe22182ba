"""A hostile game server as its own process, so that its work is not its victims': it knows NATS's address and the
credentials of one deployment, and speaks to NATS without a client library.

    python -m tests.isolated.attacker idle|connect|subscribe|flood PORT USER     the password and the subject on stdin

It attacks until its standard input ends, and then prints as JSON what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
import time
from asyncio import StreamReader, StreamWriter

AT_ONCE = 100
IDLE = TRIES = 4300


async def enter(port: int, user: str, password: str) -> tuple[StreamReader, StreamWriter] | None:
    """A connection, None when NATS keeps it out."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    options = {"verbose": False, "pedantic": False, "user": user, "pass": password, "headers": True}
    try:
        await reader.readline()  # INFO
        writer.write(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
        while line := await reader.readline():
            if line.startswith(b"PONG"):
                return reader, writer
            if line.startswith(b"-ERR"):
                break
    except ConnectionError:
        pass
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return None


async def connect(port: int, user: str, password: str, subject: str, over: asyncio.Event) -> dict[str, float]:
    """Try to connect again and again, at least `TRIES` times, and keep every connection."""
    kept: list[StreamWriter] = []
    tries = 0

    async def try_on() -> None:
        nonlocal tries
        while not over.is_set() or tries < TRIES:
            tries += 1
            try:
                found = await enter(port, user, password)
            except OSError:
                continue
            if found is not None:
                kept.append(found[1])

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(try_on())
    open_now = sum(not writer.is_closing() for writer in kept)
    for writer in kept:
        writer.close()
    return {"tries": tries, "came_in": len(kept), "open": open_now}


async def idle(port: int, user: str, password: str, subject: str, over: asyncio.Event) -> dict[str, float]:
    """Hold thousands of sockets without a word; those that NATS closes are opened anew."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    most = 0
    held: list[StreamWriter] = []
    while not over.is_set():
        held = [writer for writer in held if not writer.is_closing()]
        for _ in range(min(AT_ONCE, IDLE - len(held))):
            try:
                held.append((await asyncio.open_connection("127.0.0.1", port))[1])
            except OSError:
                break
        most = max(most, len(held))
        await asyncio.sleep(0)
    for writer in held:
        writer.close()
    return {"open": most}


async def send(port: int, user: str, password: str, block: bytes, over: asyncio.Event) -> dict[str, float]:
    """Send `block` for ever; a connection that NATS ends is made anew."""
    blocks = refused = 0
    while not over.is_set():
        found = await enter(port, user, password)
        if found is None:
            refused += 1
            await asyncio.sleep(0.05)  # the attack's own rhythm
            continue
        reader, writer = found

        async def answer(reader: StreamReader = reader, writer: StreamWriter = writer) -> int:
            errors = 0
            while line := await reader.readline():
                errors += line.startswith(b"-ERR")
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
            return errors

        answers = asyncio.create_task(answer())
        try:
            while not over.is_set() and not answers.done():
                writer.write(block)
                blocks += 1
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        writer.close()
        try:
            refused += await answers
        except ConnectionError:
            refused += 1
    return {"blocks": blocks, "refused": refused}


async def subscribe(
    port: int, user: str, password: str, subject: str, over: asyncio.Event
) -> dict[str, float]:
    """`subject` is a prefix: half a million subscriptions below it, a thousand at a time."""
    block = b"".join(f"SUB {subject}.{n} {n}\r\n".encode() for n in range(1, 1001))
    return await send(port, user, password, block, over)


async def flood(port: int, user: str, password: str, subject: str, over: asyncio.Event) -> dict[str, float]:
    """Garbage on `subject`, five hundred messages at a time."""
    return await send(port, user, password, f"PUB {subject} 7\r\ngarbage\r\n".encode() * 500, over)


async def main() -> None:
    mode, port, user = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    password, subject = (sys.stdin.readline().strip() for _ in range(2))
    over = asyncio.Event()
    began = time.monotonic()

    async def until_the_end() -> None:
        await asyncio.to_thread(sys.stdin.read)
        over.set()

    end = asyncio.create_task(until_the_end())
    print("attacking", flush=True)
    result = await {"idle": idle, "connect": connect, "subscribe": subscribe, "flood": flood}[mode](
        port, user, password, subject, over
    )
    await end
    print(json.dumps(result | {"seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
