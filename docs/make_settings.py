"""Writes docs/settings.md from the settings classes: `python docs/make_settings.py`. A test compares them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

SECTIONS = (
    ("games.toml: `[[game]]`", "shared/tipoff_shared/games/model.py", "Game", ""),
    ("games.toml: `[game.process]`", "shared/tipoff_shared/games/model.py", "ProcessSpec", ""),
    ("games.toml: `[game.docker]`", "shared/tipoff_shared/games/model.py", "DockerSpec", ""),
    ("games.toml: `ports` of `[game.docker]`", "shared/tipoff_shared/games/model.py", "DockerPort", ""),
    ("games.toml: `[game.edgegap]`", "shared/tipoff_shared/games/model.py", "EdgegapSpec", ""),
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
    """Return the whole page. Raises `SystemExit` for a field without a docstring."""
    parts = [
        "# Settings\n\nServices read environment variables; games.toml describes the games. `docs/make_settings.py` "
        "writes this page\nfrom the settings classes. An error in a value names the variable, or the line of "
        "games.toml.\n",
    ]
    for title, file, name, prefix in SECTIONS:
        parts.append(f"## {title}\n")
        parts.append("| name | default | meaning |\n|---|---|---|")
        parts.append("\n".join(rows(ROOT / file, name, prefix)) + "\n")
    for title, file in MODULE_TABLES:
        docstring = ast.get_docstring(ast.parse((ROOT / file).read_text())) or ""
        table = "\n".join(line for line in docstring.splitlines() if line.startswith("|"))
        parts.append(f"## {title}\n\n{table}\n")
    return "\n".join(parts)


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
    print("docs/settings.md written", file=sys.stderr)
