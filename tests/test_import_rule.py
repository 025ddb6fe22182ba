"""Imports run one way: between packages, between the subpackages of a package, and without circles of modules.

Each table lists groups from left to right; a module may import its own group and every group left of it.
`TYPE_CHECKING` imports count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

HOMES = {
    "tipoff_shared": "shared",
    "tipoff_turn_relay": "matchmaker_httpd",
    "tipoff_matchmaker_httpd": "matchmaker_httpd",
    "tipoff_orchestrator_client": "orchestrator_client",
    "tipoff_launcher": "orchestrator_client",
    "tipoff_edgegap_emulator": "orchestrator_client",
    "tipoff_matchmaker": "matchmaker",
    "tipoff_gameserver": "gameserver",
    "tipoff_client_sdk": "client_sdk",
    "tipoff_arena": "examples/arena",
    "tipoff": "cli",
}

ALLOWED = {
    "tipoff_shared": set[str](),
    "tipoff_turn_relay": {"tipoff_shared"},
    "tipoff_matchmaker_httpd": {"tipoff_shared", "tipoff_turn_relay"},
    "tipoff_orchestrator_client": {"tipoff_shared"},
    "tipoff_launcher": {"tipoff_shared", "tipoff_orchestrator_client"},
    "tipoff_edgegap_emulator": {"tipoff_shared", "tipoff_orchestrator_client", "tipoff_launcher"},
    "tipoff_matchmaker": {"tipoff_shared", "tipoff_orchestrator_client"},
    "tipoff_gameserver": {"tipoff_shared"},
    "tipoff_client_sdk": {"tipoff_shared"},
    # A game is what users write: it uses the two SDKs and `import tipoff`.
    "tipoff_arena": {"tipoff_shared", "tipoff_gameserver", "tipoff_client_sdk", "tipoff"},
    "tipoff": set(HOMES),
}

ORDER = {
    "tipoff_shared": """
        errors primitives secret netcode state_home
        udp_sockets framing
        names messages
        games
        records subjects settings user_data admin hooks server_events session_end
        disk_space file_limit health_report http_exchange
        nats
        kv
        event_stream
        admission
        ban_list
        ban_follower games_follower
        log_writer
        health log telemetry
        service
        """,
    "tipoff_matchmaker": """
        settings tokens failpoints peers hearing bucket_ages mappings event_secret errors orchestrators
        metrics_server
        metrics
        seats
        deployments
        sessions
        fleet
        bevygap
        bans
        allocators
        queue
        isolated
        reconciler presence_reader
        requests
        service_health playable
        admin
        compose
        service
        __main__
        """,
    "tipoff_matchmaker_httpd": """
        settings metrics
        admission
        login
        matchmaker
        state
        routes
        app
        compose
        server
        __main__
        """,
    "tipoff_turn_relay": """
        keys messages
        game pairing text
        store admission
        games pairing_list
        relay
        text_endpoint json_routes
        service
        """,
    "tipoff_launcher": """
        settings records
        backends
        edgegap_compat
        state_identity
        environment registry
        start
        supervisor
        recovery
        service
        compose
        __main__
        """,
    "tipoff_orchestrator_client": """
        base
        events wire launcher fake
        edgegap
        registry
        """,
    "tipoff_orchestrator_client.edgegap": """
        api
        naming settings
        environment orders poller setup
        orchestrator session_servers
        """,
    "tipoff_gameserver": """
        context
        edgegap presence
        lock
        players
        failures patience blocked stand_alone
        transports
        clock listeners shutdown
        running
        server
        sidecar
        """,
}
"""package -> its groups from left to right, one line each. A module that no line names is a leaf: it imports leaves
only, and every module of the package may import it."""

NETCODE = {"nats", "fastapi", "websockets", "structlog", "pydantic"}


def modules(source_tree: Path) -> dict[str, Path]:
    """Dotted name -> file, of every module of ours; the templates of new games are none."""
    found: dict[str, Path] = {}
    for package, home in HOMES.items():
        for path in sorted((source_tree / home / package).rglob("*.py")):
            if "templates" in path.parts:
                continue
            parts = path.relative_to(source_tree / home).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    """The modules of ours that a module imports, wherever in the file the import stands."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names}
    return {target for target in found if target in known and target != name}


@pytest.fixture(scope="module")
def graph(source_tree: Path) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""
    known = modules(source_tree)
    return {name: imports(name, path, known) for name, path in known.items()}


def wrong_packages(graph: Mapping[str, set[str]]) -> Iterable[str]:
    """Imports across packages that the table does not allow."""
    for name, targets in graph.items():
        package = name.split(".")[0]
        for target in targets:
            other = target.split(".")[0]
            if other != package and other not in ALLOWED[package]:
                yield f"{name} imports {target}: {package} must not import {other}"


def wrong_subpackages(graph: Mapping[str, set[str]]) -> Iterable[str]:
    """Imports within a package that run from left to right."""
    for package, text in ORDER.items():
        place = {
            part: number for number, line in enumerate(text.strip().splitlines(), 1) for part in line.split()
        }
        for name, targets in graph.items():
            if not name.startswith(package + "."):
                continue
            own = name.removeprefix(package + ".").split(".")[0]
            for target in targets:
                if not target.startswith(package + "."):
                    continue
                other = target.removeprefix(package + ".").split(".")[0]
                if place.get(other, 0) > place.get(own, 0):
                    yield f"{name} imports {target}: {other} stands right of {own}"


def circles(graph: Mapping[str, set[str]]) -> Iterable[str]:
    """Groups of modules that import each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[str] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            circle: list[str] = []
            while not circle or circle[-1] != name:
                circle.append(stack.pop())
            if len(circle) > 1:
                found.append("circle: " + ", ".join(sorted(circle)))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def test_imports_run_one_way(graph: Mapping[str, set[str]]) -> None:
    """Between packages, between subpackages, and without circles."""
    wrong = {*wrong_packages(graph), *wrong_subpackages(graph), *circles(graph)}
    assert sorted(wrong) == []


def test_every_package_has_its_place_in_the_order(source_tree: Path) -> None:
    """A new package must be given its place in the tables."""
    found = {
        path.parent.name
        for home in set(HOMES.values())
        for path in (source_tree / home).glob("tipoff*/__init__.py")
    }
    assert found == set(HOMES) == set(ALLOWED)


def test_netcode_imports_nothing_outside_itself(graph: Mapping[str, set[str]], source_tree: Path) -> None:
    """A client imports it without NATS and without the rest of tipoff."""
    for path in (source_tree / "shared/tipoff_shared/netcode").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & NETCODE, path
    outside = {
        f"{name} imports {target}"
        for name, targets in graph.items()
        if name.startswith("tipoff_shared.netcode")
        for target in targets
        if not target.startswith("tipoff_shared.netcode")
    }
    assert sorted(outside) == []
