"""The import rule: no folder imports a sibling but shared; the matchmaker also orchestrator_client."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HOMES = {
    "tipoff_shared": "shared",
    "tipoff_matchmaker_httpd": "matchmaker_httpd",
    "tipoff_turn_relay": "matchmaker_httpd",
    "tipoff_matchmaker": "matchmaker",
    "tipoff_orchestrator_client": "orchestrator_client",
    "tipoff_launcher": "orchestrator_client",
    "tipoff_edgegap_emulator": "orchestrator_client",
    "tipoff_gameserver": "gameserver",
    "tipoff_client_sdk": "client_sdk",
    "tipoff": "cli",
    "tipoff_arena": "examples/arena",
}
ALLOWED = {
    "shared": set[str](),
    "matchmaker_httpd": {"shared"},
    "matchmaker": {"shared", "orchestrator_client"},
    "orchestrator_client": {"shared"},
    "gameserver": {"shared"},
    "client_sdk": {"shared"},
    "cli": set(HOMES.values()),
    # A game is what our users write: it stands on the two SDKs and the front door.
    "examples/arena": {"shared", "gameserver", "client_sdk", "cli"},
}


def imports(path: Path) -> set[str]:
    """Top-level names of every module that the file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_folder_imports_only_what_it_may(source_tree: Path, folder: str) -> None:
    wrong = [
        f"{path.relative_to(source_tree)} imports {name}"
        for path in (source_tree / folder).rglob("*.py")
        for name in imports(path)
        if name in HOMES and HOMES[name] != folder and HOMES[name] not in ALLOWED[folder]
    ]
    assert wrong == []


def test_netcode_needs_no_nats(source_tree: Path) -> None:
    """It is importable by a client that has neither NATS nor anything of ours around it."""
    for path in (source_tree / "shared/tipoff_shared/netcode").rglob("*.py"):
        assert not imports(path) & {"nats", "fastapi", "websockets", "structlog"}, path
