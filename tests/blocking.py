"""Fails a test in which one of our packages blocks an event loop: a sleep, a blocking socket, a lock that another
thread holds, a file.

blockbuster wraps the blocking calls of the standard library and raises `BlockingError` from those that our code makes
while an event loop runs in its thread. Our code may catch that, so each one is recorded, too. Calls made by tests
themselves are allowed, as is what `ALLOWED` lists.
"""

from __future__ import annotations

import traceback
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import blockbuster.blockbuster
from blockbuster import BlockBuster, BlockingError

import tipoff
import tipoff_arena
import tipoff_client_sdk
import tipoff_edgegap_emulator
import tipoff_gameserver
import tipoff_launcher
import tipoff_matchmaker
import tipoff_matchmaker_httpd
import tipoff_orchestrator_client
import tipoff_shared
import tipoff_turn_relay

PACKAGES = (
    tipoff,
    tipoff_arena,
    tipoff_client_sdk,
    tipoff_edgegap_emulator,
    tipoff_gameserver,
    tipoff_launcher,
    tipoff_matchmaker,
    tipoff_matchmaker_httpd,
    tipoff_orchestrator_client,
    tipoff_shared,
    tipoff_turn_relay,
)


class _Any(Container[str]):
    """Every function of a file."""

    def __contains__(self, name: object) -> bool:
        return True


def _modules(package: object) -> tuple[str, ...]:
    (directory,) = package.__path__  # type: ignore[attr-defined]
    return tuple(str(path) for path in Path(directory).rglob("*.py"))


FILES = (
    # Local files of a few kilobytes: records are written before the act they record, /proc is no disk, and a launcher
    # serves its matchmakers, not players.
    (_modules(tipoff_launcher), _Any()),
    # It is a tool for development, and runs servers as the launcher does.
    (_modules(tipoff_edgegap_emulator), _Any()),
    # Commands: their event loop serves the one user who waits for them.
    (_modules(tipoff), _Any()),
    # Named pipes and small files of the launcher and of `tipoff up`.
    ("tipoff_shared/log_writer/client.py", _Any()),
    # Read once, before the service serves anybody.
    ("tipoff_shared/games/toml.py", {"load_games", "read_games"}),
    ("tipoff_shared/settings.py", {"from_environment"}),
    ("tipoff_shared/primitives/server_certificate.py", {"__init__"}),
    ("tipoff_matchmaker_httpd/routes/demo.py", {"web_directory", "demo_routes"}),
    # FastAPI looks for the endpoint's source file at each request, for its error texts: one stat of a known path.
    ("fastapi/routing.py", {"_extract_endpoint_context"}),
    # prometheus-client reads /proc, which is no disk.
    ("tipoff_matchmaker_httpd/metrics.py", {"render"}),
    # The table of media types is read once.
    ("mimetypes.py", {"init"}),
    # A log line goes to standard error or to a local file.
    ("logging/__init__.py", {"emit", "flush"}),
    # The first import of a module, which a service makes before it serves anybody.
    ("<frozen importlib._bootstrap>", {"_find_and_load"}),
)
"""(files, functions) that may read and write files on the event loop, or call what does, and why."""

blocked: list[str] = []
"""What blocked an event loop since `reset`: the call, and where it was made."""


class _Recorded(BlockingError):
    def __init__(self, func: str) -> None:
        super().__init__(func)
        places = traceback.extract_stack()[:-2]
        blocked.append(f"{func}\n" + "".join(traceback.format_list(places[-12:])))


@contextmanager
def blocking_raises() -> Iterator[None]:
    """Within the block, blocking calls of our packages on an event loop raise and are recorded."""
    # The module's global, by which blockbuster 1.5 raises.
    blockbuster.blockbuster.BlockingError = _Recorded  # type: ignore[misc]
    guard = BlockBuster(list(PACKAGES))
    for name, function in guard.functions.items():
        if name.startswith(("os.", "io.")):
            function.can_block_functions.extend(FILES)
    guard.activate()
    try:
        yield
    finally:
        guard.deactivate()
        blockbuster.blockbuster.BlockingError = BlockingError  # type: ignore[misc]
