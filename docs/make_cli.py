"""Writes docs/cli.md from the `tipoff` command: `python docs/make_cli.py`. A test compares them."""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from tipoff.app import app

ROOT = Path(__file__).parent.parent


def page() -> str:
    """Return the whole page. Raises `SystemExit` for a command or an option without help."""
    top = typer.main.get_command(app)
    parts = [
        "# The `tipoff` command\n\nEvery command with its arguments and options. `docs/make_cli.py` writes this page "
        "from the command itself, so it says what\n`tipoff COMMAND --help` says. Where an option names an environment "
        "variable, the option on the command line wins.\n\n"
        "`tipoff --version` prints the version. `tipoff --install-completion` completes commands in your shell. "
        "Exit codes: 0 is success,\n1 a failure that the message explains, 2 a command line that cannot be used.\n",
    ]
    for words, command in commands("tipoff", top):
        parts.append(section(words, command))
    return "\n".join(parts)


def commands(words: str, group: Any) -> Iterator[tuple[str, Any]]:
    """Each command below `group` with the words that call it, in the order of the help."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if getattr(command, "commands", None):
            yield from commands(f"{words} {name}", command)
        else:
            yield f"{words} {name}", command


def section(words: str, command: Any) -> str:
    """Heading, usage, help and tables of one command."""
    if not command.help:
        raise SystemExit(f"{words}: no help")
    arguments = [p for p in command.params if p.param_type_name == "argument" and not p.hidden]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join([words, *(argument_usage(p) for p in arguments), *(["[OPTIONS]"] if options else [])])
    paragraphs = [plain(paragraph) + "\n" for paragraph in command.help.split("\n\n")]
    lines = [f"## `{words}`\n", f"    {usage}\n", *paragraphs]
    for title, params in (("argument", arguments), ("option", options)):
        if params:
            lines.append(f"| {title} | default | meaning |\n|---|---|---|")
            lines.append("\n".join(row(words, p) for p in params) + "\n")
    return "\n".join(lines)


def argument_usage(param: Any) -> str:
    """An argument as the usage line shows it: `NAME`, `[NAME]`, `NAME...`."""
    name = param.metavar or param.name.upper()
    name += "..." if param.nargs == -1 else ""
    return name if param.required or name.startswith("[") else f"[{name}]"


def row(words: str, param: Any) -> str:
    """The table row of one argument or option."""
    if not param.help:
        raise SystemExit(f"{words} {param.name}: no help")
    if param.param_type_name == "argument":
        name = f"`{argument_usage(param)}`".replace("|", "\\|")
    else:
        value = "" if param.is_flag else f" {value_name(param)}"
        names = [f"`{option}{value}`" for option in (*param.opts, *param.secondary_opts)]
        name = ", ".join(names)
    meaning = plain(param.help)
    if param.envvar:
        variables = [param.envvar] if isinstance(param.envvar, str) else param.envvar
        meaning += " Or " + ", ".join(f"`{variable}`" for variable in variables) + "."
    return f"| {name} | {default(param)} | {meaning} |".replace("  ", " ")


def value_name(param: Any) -> str:
    """What stands for an option's value: its metavar, the choices, or the type."""
    if param.metavar:
        return str(param.metavar).replace("|", "\\|")
    annotation = param.type_descriptor.annotation
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "\\|".join(str(choice.value) for choice in annotation)
    names = {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "PATH"}
    return names.get(annotation, str(getattr(annotation, "__name__", annotation)).upper())


def default(param: Any) -> str:
    """The default: what the help shows for it, or the value."""
    if param.required:
        return "required"
    if isinstance(param.show_default, str):
        return param.show_default
    value = param.default() if callable(param.default) else param.default
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or value is False or value == "" or value == () or value == []:
        return "none" if value is not False else "off"
    if value is True:
        return "on"
    return f"`{value}`"


def plain(text: str) -> str:
    """Help as one line of Markdown, without rich's markup, for a table cell."""
    text = re.sub(r"\[/?(?:bold|dim|italic)\]", "", text).replace("\\[", "[")
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    (ROOT / "docs" / "cli.md").write_text(page())
    print("docs/cli.md written", file=sys.stderr)
