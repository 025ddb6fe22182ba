"""Engines and images for one test: a dockerd to restart, a link to cut, a slow registry."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.polling import eventually_sync

PROGRAMS = ("/bin/sh", "/bin/sleep", "/bin/cat")


def tiny_root(*, padding: int = 0) -> bytes:
    """A root file system as a tar: this machine's shell and sleep with their libraries, and `padding` random bytes."""
    files: set[str] = set()
    for program in PROGRAMS:
        files.add(program)
        told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True, timeout=10).stdout
        files.update(re.findall(r"(/\S+) \(0x", told))
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for directory in ("tmp", "run", "run/tipoff", "proc", "sys", "dev", "etc"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for file in sorted(files):
            content = Path(file).read_bytes()
            entry = tarfile.TarInfo(file.lstrip("/"))
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
        if padding:
            entry = tarfile.TarInfo("padding")
            entry.size = padding
            archive.addfile(entry, io.BytesIO(os.urandom(padding)))
    return target.getvalue()


class OwnEngine:
    """A dockerd for one test, with `image` in it. Its containers use the network `host`: this machine's when `bridge`
    names a bridge (dockerd needs one, though nothing uses it), else a network that leads nowhere."""

    image = "tiny:1"

    def __init__(self, directory: Path, *options: str, bridge: str = "") -> None:
        self._directory = directory
        # With --bridge=none a dockerd removes the bridge docker0, which belongs to the machine's engine: so it gets
        # its own network namespace.
        alone = ["unshare", "--net", "dockerd", "--bridge=none"]
        self._command = ["dockerd", f"--bridge={bridge}"] if bridge else alone
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.host = f"unix://{directory}/docker.sock"

    def start(self) -> None:
        here = self._directory
        (here / "docker.pid").unlink(missing_ok=True)
        with (here / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(*self._command, "--iptables=false", "--ip6tables=false"),
                    *("--data-root", str(here / "data"), "--exec-root", str(here / "exec")),
                    *("--host", self.host, "--pidfile", str(here / "docker.pid")),
                    *self._options,
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def answers() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, (here / "dockerd.log").read_text()[-2000:]
            return self.docker("version", check=False).returncode == 0

        eventually_sync(answers, "dockerd answers", 30)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def load(self, image: str) -> None:
        """Copy an image from the machine's engine."""
        saving = ["docker", "save", image]
        with subprocess.Popen(saving, stdout=subprocess.PIPE) as saved:
            loading = ["docker", "-H", self.host, "load"]
            subprocess.run(loading, stdin=saved.stdout, check=True, capture_output=True, timeout=120)
        assert saved.returncode == 0, saving

    def docker(
        self, *arguments: str, check: bool = True, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["docker", "-H", self.host, *arguments], capture_output=True, input=stdin, timeout=60, check=False
        )
        found = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode().strip(), done.stderr.decode()
        )
        assert not check or not found.returncode, found.stderr
        return found


@contextmanager
def a_bridge() -> Iterator[str]:
    """An unused bridge of this machine, for `own_engine`; skips where this user may not create one."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("a bridge of the test's own needs root and the program ip")
    name = f"tipoff{os.getpid() % 100_000}"
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True, timeout=10)
    try:
        subprocess.run(["ip", "addr", "add", "198.51.100.129/30", "dev", name], check=True, timeout=10)
        subprocess.run(["ip", "link", "set", name, "up"], check=True, timeout=10)
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name], check=True, timeout=10)


@contextmanager
def own_engine(*options: str, bridge: str = "") -> Iterator[OwnEngine]:
    """A running `OwnEngine`; skips where this user may not run one."""
    if os.geteuid() or shutil.which("dockerd") is None or shutil.which("unshare") is None:
        pytest.skip("a dockerd of the test's own needs root and the programs dockerd and unshare")
    directory = Path(tempfile.mkdtemp(prefix="tipoff-engine-"))  # its sockets need a short path
    engine = OwnEngine(directory, *options, bridge=bridge)
    try:
        engine.start()
        engine.docker("import", "-", engine.image, stdin=tiny_root())
        yield engine
        if left := engine.docker("ps", "-aq").stdout.split():
            engine.docker("rm", "-fv", *left, check=False)
    finally:
        engine.stop()
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for path in reversed([path for path in mounted if path.startswith(f"{directory}/")]):
            subprocess.run(["umount", path], capture_output=True, check=False, timeout=10)
        shutil.rmtree(directory, ignore_errors=True)


class Link:
    """A connection between a launcher and the engine's socket that can be cut."""

    def __init__(self, path: Path, target: str) -> None:
        self._path = path
        self._target = target
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.host = f"unix://{path}"

    async def restore(self) -> None:
        self._server = await asyncio.start_unix_server(self._connected, self._path)

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._path.unlink(missing_ok=True)
        for writer in list(self._open):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(self._target)
        self._open |= {writer, there_writer}
        with contextlib.suppress(OSError):
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        for each in (writer, there_writer):
            self._open.discard(each)
            each.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


@asynccontextmanager
async def link_to(target: str, directory: Path) -> AsyncIterator[Link]:
    link = Link(directory / "link.sock", target)
    await link.restore()
    try:
        yield link
    finally:
        await link.cut()


class SlowRegistry:
    """A registry with one image, whose layer it sends in small pieces; it implements only what the engine uses.
    `login`: the USER:PASSWORD that it demands."""

    def __init__(self, padding: int, pause: float, *, login: str = "") -> None:
        self._login = base64.b64encode(login.encode()).decode()
        root = tiny_root(padding=padding)
        self._layer = gzip.compress(root, 1)
        self._pause = pause
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(root)]},
        }
        self._config = json.dumps(config).encode()
        kind = "application/vnd.docker.{}"
        self._manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": kind.format("distribution.manifest.v2+json"),
                "config": _blob(kind.format("container.image.v1+json"), self._config),
                "layers": [_blob(kind.format("image.rootfs.diff.tar.gzip"), self._layer)],
            }
        ).encode()
        self.image = ""
        self.asked: list[str] = []
        """The requested paths, in order."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[SlowRegistry]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.image = f"127.0.0.1:{port}/game:1"
        try:
            yield self
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                first = await reader.readexactly(1)
                if first == b"\x16":
                    break  # TLS, which the engine tries first
                head = (first + await reader.readuntil(b"\r\n\r\n")).decode()
                method, path = head.split(" ", 2)[:2]
                if self._login and f"basic {self._login}".lower() not in head.lower():
                    writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n")
                    writer.write(b'Www-Authenticate: Basic realm="games"\r\n\r\n')
                    continue
                self.asked.append(path)
                await self._answer(writer, method, path)
        writer.transport.abort()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, path: str) -> None:
        name = path.rpartition("/")[2]
        found = {
            "": b"{}",
            "1": self._manifest,
            _digest(self._manifest): self._manifest,
            _digest(self._config): self._config,
            _digest(self._layer): self._layer,
        }.get(name)
        if found is None or (path != "/v2/" and not path.startswith("/v2/game/")):
            body = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            return
        kind = (
            json.loads(found).get("mediaType", "application/json")
            if found is not self._layer
            else "application/gzip"
        )
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(found)}\r\n".encode())
        writer.write(f"Docker-Content-Digest: {_digest(found)}\r\n\r\n".encode())
        if method == "HEAD":
            return
        piece = max(1, len(found) // 30) if found is self._layer else len(found)
        for start in range(0, len(found), piece):
            writer.write(found[start : start + piece])
            await writer.drain()
            if found is self._layer:
                await asyncio.sleep(self._pause)  # a slow registry is what is tested


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _blob(kind: str, data: bytes) -> dict[str, object]:
    return {"mediaType": kind, "size": len(data), "digest": _digest(data)}
