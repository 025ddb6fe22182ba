"""What deploy/compose.yaml says, without an engine: every variable is explained, and none is a secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.fixture
def compose(source_tree: Path) -> str:
    return (source_tree / "deploy/compose.yaml").read_text()


@pytest.fixture
def example(source_tree: Path) -> dict[str, str]:
    """Variable -> value, of deploy/.env.example."""
    lines = (source_tree / "deploy/.env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_every_variable_is_explained_and_used(compose: str, example: dict[str, str]) -> None:
    """`.env.example` has those that compose.yaml reads, and no other; COMPOSE_PROFILES is compose's own."""
    used = set(re.findall(r"\$\{(\w+)", compose))
    assert set(example) - {"COMPOSE_PROFILES"} == used


def test_the_example_says_what_holds_without_it(compose: str, example: dict[str, str]) -> None:
    """A value in `.env.example` is the default: leaving a line out changes nothing."""
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", compose))
    assert {name: value for name, value in example.items() if defaults.get(name, value) != value} == {}


def test_every_variable_is_preceded_by_words(source_tree: Path) -> None:
    """A comment stands above each, or above the few that belong together."""
    said = False
    for line in (source_tree / "deploy/.env.example").read_text().splitlines():
        if line.startswith("#") and not line.startswith("# ---"):
            said = True
        elif not line:
            said = False
        else:
            assert said or line.startswith("# ---"), line


def test_no_password_is_a_variable(compose: str, example: dict[str, str]) -> None:
    """They are files: a variable shows in `docker inspect` and in the environment of whoever calls compose."""
    for name in (*example, *re.findall(r"^\s+([A-Z_]+):", compose, re.MULTILINE)):
        assert not re.search(r"(PASSWORD|TOKEN|SECRET|KEY)$", name), name


def test_the_engine_s_socket_is_for_launchers_alone(compose: str) -> None:
    """Row 59, before anything runs."""
    services = re.split(r"\n  (?=[a-z-]+:)", compose.split("\nservices:")[1].split("\nnetworks:")[0])
    with_socket = {text.split(":")[0].strip() for text in services if "docker.sock}:" in text}
    assert with_socket == {"launcher", "launcher-dev"}
    assert "docker.sock}:" not in compose.split("\nservices:")[0]


def test_everything_is_locked_up(compose: str) -> None:
    """Every service stands on the common part, which takes all power away."""
    common = compose.split("x-build:")[0]
    for words in ("read_only: true", "cap_drop: [ALL]", "no-new-privileges:true", "max-size", "restart:"):
        assert words in common
    for block in re.findall(r"^x-(?:nats|matchmaker|httpd|launcher): .*\n  (.*)", compose, re.MULTILINE):
        assert block == "<<: *restart"
