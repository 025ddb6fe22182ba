"""What the documentation says is true: settings are all there, links lead somewhere, the template is the example."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import tipoff
from tipoff.new.commands import write_game
from tipoff_shared.games.toml import parse_games

HEADINGS = [
    "tipoff",
    "Features",
    "Play in 60 seconds",
    "Your own game in ten minutes",
    "Compared with others",
    "Which setup is yours",
    "Documentation",
    "Status and limits",
    "Contributing",
    "Licence",
]


@pytest.mark.parametrize(
    ("page", "maker", "function"),
    [
        ("settings.md", "make_settings", "page"),
        ("games-toml.md", "make_settings", "games_page"),
        ("cli.md", "make_cli", "page"),
    ],
)
def test_a_generated_page_is_what_the_code_says(
    source_tree: Path, page: str, maker: str, function: str
) -> None:
    """Run `python docs/make_settings.py` or `python docs/make_cli.py` when this fails."""
    if maker == "make_cli" and tuple(map(int, version("typer").split(".")[:2])) < (0, 29):
        pytest.skip("docs/make_cli.py reads what typer has from 0.29 on; the page is held with newer ones")
    code = f"import {maker}, sys; sys.stdout.write({maker}.{function}())"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=source_tree / "docs", capture_output=True, text=True, check=True
    ).stdout
    assert made == (source_tree / "docs" / page).read_text()


def test_the_example_of_games_toml_is_one(source_tree: Path) -> None:
    """The block that docs/games-toml.md begins with."""
    example = re.findall(r"```toml\n(.*?)```", (source_tree / "docs/games-toml.md").read_text(), re.DOTALL)
    old, new = parse_games(example[0])
    assert (old.key, old.seats, old.process is not None) == (("duel", "1"), 2, True)
    assert (new.key, new.seats, new.docker is not None) == (("duel", "2"), 2, True)


def test_the_api_page_has_every_public_name(source_tree: Path) -> None:
    """`tipoff.connect` stands there by the place of its definition: the package has a module of that name, too."""
    page = (
        (source_tree / "docs/api.md")
        .read_text()
        .replace("tipoff_client_sdk.connect.connect", "tipoff.connect")
    )
    named = re.findall(r"^::: tipoff\.(\w+)$", page, re.MULTILINE)
    assert sorted(named) == sorted(set(tipoff.__all__) - {"Player"})


def test_the_readme_has_its_headings(source_tree: Path) -> None:
    text = (source_tree / "README.md").read_text()
    assert re.findall(r"^#{1,2} (.*)$", text, re.MULTILINE) == HEADINGS


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_commands_that_install_can_be_pasted(source_tree: Path, page: str) -> None:
    """No dots or words in capitals to be replaced first; the wheel's name is found by the shell."""
    commands = re.findall(r"pip install [^`\n]+", (source_tree / page).read_text())
    assert commands
    for command in commands:
        assert not re.search(r"\.\.\.|…|[A-Z]{4,}|<", command), command


def test_links_between_pages_lead_somewhere(source_tree: Path) -> None:
    broken = [
        f"{page.relative_to(source_tree)}: {target}"
        for page in [
            *source_tree.glob("*.md"),
            *source_tree.glob("*/*.md"),
            *source_tree.glob("docs/*/*.md"),
        ]
        if ".venv" not in page.parts
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.parametrize(
    "folder",
    [
        "shared",
        "matchmaker_httpd",
        "matchmaker",
        "orchestrator_client",
        "gameserver",
        "client_sdk",
        "cli",
        "bench",
        "tests",
        "docs",
        "examples/arena",
        "examples/hello",
    ],
)
def test_every_folder_has_a_readme(source_tree: Path, folder: str) -> None:
    assert len((source_tree / folder / "README.md").read_text().splitlines()) >= 4


def test_the_hello_example_is_what_new_writes(source_tree: Path, tmp_path: Path) -> None:
    """Run `tipoff new hello --in examples` (after removing the old one) when this fails."""
    made = write_game("hello", tmp_path)
    kept = source_tree / "examples/hello"
    assert {p.relative_to(made): p.read_text() for p in made.rglob("*") if p.is_file()} == {
        p.relative_to(kept): p.read_text()
        for p in kept.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }


def test_the_files_that_the_architecture_names_exist(source_tree: Path) -> None:
    """The walk through a play and a departure follows the code."""
    named = re.findall(r"`([\w/]+\.py)`", (source_tree / "docs/architecture.md").read_text())
    assert len(named) > 30
    assert [path for path in named if path != "compose.py" and not (source_tree / path).exists()] == []
