"""Caddy and nginx in front of an httpd, with the configurations that deploy/ has, changed in names and ports alone."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.certificates import self_signed
from tests.polling import eventually
from tipoff_shared.errors import Unavailable

PROGRAMS = ("caddy", "nginx")


def program(name: str) -> str | None:
    """Where it is: on the PATH, in Debian's /usr/sbin, or what `TIPOFF_TEST_CADDY`, `TIPOFF_TEST_NGINX` names."""
    return (
        os.environ.get(f"TIPOFF_TEST_{name.upper()}")
        or shutil.which(name)
        or shutil.which(name, path="/usr/sbin")
    )


@dataclass(frozen=True, slots=True)
class Door:
    """`url`: where players go; `tls`: trusts its certificate."""

    name: str
    url: str
    tls: ssl.SSLContext

    @property
    def ws_url(self) -> str:
        return self.url.replace("https", "wss", 1)


@asynccontextmanager
async def door(name: str, directory: Path, deploy: Path, port: int, httpd_port: int) -> AsyncIterator[Door]:
    """`https://localhost:port`, which leads to the httpd on `httpd_port`; until the block ends."""
    binary = program(name)
    assert binary is not None
    directory.mkdir()  # noqa: ASYNC240 # a test's own directory
    write = _caddy if name == "caddy" else _nginx
    command, authority = write(binary, directory, deploy, port, httpd_port)
    log = directory / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, env=os.environ | _environment(directory, port), stdout=output, stderr=output
        )
    try:
        await _listens(process, port, authority, log)
        yield Door(name, f"https://localhost:{port}", ssl.create_default_context(cafile=str(authority)))
    finally:
        process.terminate()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _environment(directory: Path, port: int) -> dict[str, str]:
    return {
        "TIPOFF_HOST": f"https://localhost:{port}",
        "TIPOFF_TLS": "internal",
        "XDG_DATA_HOME": str(directory),
        "XDG_CONFIG_HOME": str(directory),
    }


def _caddy(binary: str, directory: Path, deploy: Path, port: int, httpd_port: int) -> tuple[list[str], Path]:
    del port
    text = (deploy / "Caddyfile").read_text()
    assert "httpd-a:3000 httpd-b:3000" in text
    text = text.replace("httpd-a:3000 httpd-b:3000", f"127.0.0.1:{httpd_port}")
    text = text.replace(
        "skip_install_trust", "skip_install_trust\n\tadmin off\n\tauto_https disable_redirects"
    )
    path = directory / "Caddyfile"
    path.write_text(text)
    command = [binary, "run", "--config", str(path), "--adapter", "caddyfile"]
    return command, directory / "caddy/pki/authorities/local/root.crt"


def _nginx(binary: str, directory: Path, deploy: Path, port: int, httpd_port: int) -> tuple[list[str], Path]:
    certificate, key = self_signed(directory)
    text = (deploy / "nginx/tipoff.conf").read_text()
    for old, new in (
        ("server 127.0.0.1:3000;", f"server 127.0.0.1:{httpd_port};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("server_name play.example.org;", "server_name localhost;"),
        ("/etc/letsencrypt/live/play.example.org/fullchain.pem", str(certificate)),
        ("/etc/letsencrypt/live/play.example.org/privkey.pem", str(key)),
    ):
        assert old in text
        text = text.replace(old, new)
    return _nginx_command(binary, directory, text), certificate


def _nginx_command(binary: str, directory: Path, site: str) -> list[str]:
    (directory / "site.conf").write_text(site)
    temporary = "\n".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/pid; error_log stderr; worker_processes 1;\nevents {{}}\n"
        f"http {{ access_log off;\n{temporary}\ninclude {directory}/site.conf;\n}}\n"
    )
    return [binary, "-p", str(directory), "-c", str(directory / "nginx.conf")]


@asynccontextmanager
async def under_a_path(directory: Path, port: int, httpd_port: int) -> AsyncIterator[str]:
    """`http://localhost:port/arcade/`, which an nginx leads to the root of httpd; until the block ends."""
    binary = program("nginx")
    assert binary is not None
    directory.mkdir()  # noqa: ASYNC240 # a test's own directory
    site = f"""
        server {{
            listen 127.0.0.1:{port};
            location /arcade/ {{
                proxy_pass http://127.0.0.1:{httpd_port}/;
                proxy_http_version 1.1;
                proxy_set_header Host $http_host;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection upgrade;
                proxy_buffering off;
            }}
        }}
    """
    log = directory / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *_nginx_command(binary, directory, site), stdout=output, stderr=output
        )

    async def listens() -> bool:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
        return True

    try:
        await eventually(listens, "nginx listens", 15, unready=(OSError,))
        yield f"http://localhost:{port}/arcade/"
    finally:
        process.terminate()
        await process.wait()


async def _listens(process: asyncio.subprocess.Process, port: int, authority: Path, log: Path) -> None:
    async def listens() -> bool:
        if process.returncode is not None:
            raise Unavailable(f"the proxy ended: {_end_of(log)}")
        tls = ssl.create_default_context(cafile=str(authority))
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="localhost")
        writer.close()
        await writer.wait_closed()
        return True

    try:
        await eventually(listens, "the proxy listens", 15, unready=(OSError,))
    except AssertionError as exc:
        raise Unavailable(f"{exc}: {_end_of(log)}") from None


def _end_of(log: Path) -> str:
    return log.read_text()[-500:]
