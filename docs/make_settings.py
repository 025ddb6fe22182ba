"""Writes docs/settings.md and docs/games-toml.md: `python docs/make_settings.py`. A test compares them with code."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

GAMES = (
    ("`[[game]]`", "shared/tipoff_shared/games/model.py", "Game", ""),
    ("`[game.process]`", "shared/tipoff_shared/games/model.py", "ProcessSpec", ""),
    ("`[game.docker]`", "shared/tipoff_shared/games/model.py", "DockerSpec", ""),
    ("`ports` of `[game.docker]`", "shared/tipoff_shared/games/model.py", "DockerPort", ""),
    ("`[game.edgegap]`", "shared/tipoff_shared/games/model.py", "EdgegapSpec", ""),
)
SECTIONS = (
    ("httpd", "matchmaker_httpd/tipoff_matchmaker_httpd/settings.py", "Settings", "TIPOFF_HTTPD_"),
    ("matchmaker", "matchmaker/tipoff_matchmaker/settings.py", "Settings", "TIPOFF_MATCHMAKER_"),
    ("launcher", "orchestrator_client/tipoff_launcher/settings.py", "Settings", "TIPOFF_LAUNCHER_"),
    (
        "Edgegap: the matchmaker's connection to it",
        "orchestrator_client/tipoff_orchestrator_client/edgegap/settings.py",
        "Settings",
        "TIPOFF_EDGEGAP_",
    ),
    (
        "Edgegap's emulator",
        "orchestrator_client/tipoff_edgegap_emulator/settings.py",
        "EmulatorSettings",
        "TIPOFF_EDGEGAP_EMULATOR_",
    ),
)
MODULE_TABLES = (
    ("NATS: the connection of every part", "shared/tipoff_shared/settings.py"),
    ("A game server's environment", "gameserver/tipoff_gameserver/context.py"),
)


def page() -> str:
    """Return docs/settings.md. Raises `SystemExit` for a field without a docstring."""
    parts = [
        "# Settings\n\nServices read environment variables; [games.toml](games-toml.md) describes the games. "
        "`docs/make_settings.py` writes this page\nfrom the settings classes. An error in a value names the variable."
        "\n",
        *sections(SECTIONS),
    ]
    for title, file in MODULE_TABLES:
        docstring = ast.get_docstring(ast.parse((ROOT / file).read_text())) or ""
        table = "\n".join(line for line in docstring.splitlines() if line.startswith("|"))
        parts.append(f"## {title}\n\n{table}\n")
    return "\n".join(parts)


GAMES_TOML = """\
# games.toml

The file that says which games there are, how many servers each has, and how a server is started. `tipoff up` takes
`./games.toml`, or the one that `--games` names; every matchmaker and launcher reads the same file (`TIPOFF_GAMES`).
`docs/make_settings.py` writes this page from the classes.

```toml
[[game]]                 # one for each game, and for each version of it
name = "duel"
version = "1"
seats = 2                # players one server takes
fill_rooms = true        # a match has exactly two
min_ready = 1            # servers kept ready without a player
max_deployments = 4      # servers at most

[game.process]           # of the [[game]] above: the launcher starts processes
command = ["python", "server.py"]

[[game]]
name = "duel"
version = "2"            # old and new players side by side, each on servers of their own
seats = 2
fill_rooms = true

[game.docker]            # the launcher starts containers
image = "example/duel:2"
memory = 256             # MiB
```

Every field has a default where that makes sense. `version` is a text: `version = "1"`. A file with an error is refused,
and the error names the line, the field and what is allowed. `tipoff doctor` checks it, too.
"""


def games_page() -> str:
    """Return docs/games-toml.md. Raises `SystemExit` for a field without a docstring."""
    return "\n".join([GAMES_TOML, *sections(GAMES)])


def sections(wanted: Iterable[tuple[str, str, str, str]]) -> Iterator[str]:
    """A heading and a table for each settings class."""
    for title, file, name, prefix in wanted:
        yield f"## {title}\n"
        yield "| name | default | meaning |\n|---|---|---|"
        yield "\n".join(rows(ROOT / file, name, prefix)) + "\n"


def rows(file: Path, class_name: str, prefix: str) -> list[str]:
    """The table rows of one settings class: name, default and docstring of each field."""
    tree = ast.parse(file.read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    found: list[str] = []
    pending: list[tuple[str, str]] = []
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            pending.append((_name(node, prefix), _default(node.value)))
        elif pending and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = " ".join(str(node.value.value).split()).replace("|", "\\|")
            for name, default in pending:
                found.append(f"| `{name}` | {default} | {text} |")
            pending = []
    if pending:
        raise SystemExit(f"{file}: {', '.join(name for name, _ in pending)}: no docstring")
    return found


def _name(node: ast.AnnAssign, prefix: str) -> str:
    assert isinstance(node.target, ast.Name)
    if isinstance(node.value, ast.Call):
        for keyword in node.value.keywords:
            if keyword.arg == "validation_alias" and isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
    return (prefix + node.target.id.upper()) if prefix else node.target.id


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    if isinstance(value, ast.Call):
        given = [keyword.value for keyword in value.keywords if keyword.arg == "default"] or value.args[:1]
        if not given:
            return "made at start"
        value = given[0]
        if isinstance(value, ast.Call) and value.args:
            value = value.args[0]
    if isinstance(value, ast.Tuple):
        text = ",".join(ast.unparse(element).strip("'\"") for element in value.elts)
    else:
        text = ast.unparse(value).strip("'\"")
    text = {"LEASE_TTL": "10"}.get(text, text)
    if text in ("None", "", "()", "{}", "PRIVATE_NETWORKS"):
        return {"PRIVATE_NETWORKS": "private networks"}.get(text, "none")
    return f"`{text}`"


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(page())
    (ROOT / "docs" / "games-toml.md").write_text(games_page())
    print("docs/settings.md and docs/games-toml.md written", file=sys.stderr)
