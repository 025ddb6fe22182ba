"""docs/tutorial.md is followed word by word: with nothing but Python and a browser, from an empty directory on."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker_engine import docker, labels
from tests.tutorial.follow import Reader
from tests.tutorial.page import Browser, Change, Commands, File, steps
from tests.tutorial.terminal import PROMPT


@pytest.fixture(scope="module")
def page(source_tree: Path) -> Path:
    return source_tree / "docs/tutorial.md"


def test_every_block_of_the_tutorial_is_a_step(page: Path) -> None:
    """And every change fits the file as the steps before have left it."""
    files: dict[str, str] = {}
    taken = steps(page.read_text())
    for step in taken:
        if isinstance(step, File):
            files[step.path] = step.text
        elif isinstance(step, Change):
            files[step.path] = step.apply(files[step.path])
    for path, text in files.items():
        if path.endswith(".py"):
            compile(text, path, "exec")
    assert len([step for step in taken if isinstance(step, Commands)]) > 10


def test_every_step_in_the_browser_has_its_code(page: Path) -> None:
    named = {step.name.replace(" ", "_") for step in steps(page.read_text()) if isinstance(step, Browser)}
    there = {
        name
        for name, _ in inspect.getmembers(Reader, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert named == there


@pytest.fixture(scope="module")
def wheel(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, source_tree],
        check=True, capture_output=True,
    )  # fmt: skip
    return next(target.glob("tipoff-*.whl"))


def fetch(wheel: Path, target: Path) -> list[str]:
    """Arguments of a Python that fetch everything that the tutorial installs into the directory `target`."""
    return [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--dest",
        str(target),
        f"{wheel}[all]",
        "pytest",
        "pip",
        "setuptools",
    ]


def followed(page: Path, directory: Path, *options: str, inside: list[str]) -> None:
    """Follow the page, in the namespaces that the command `inside` enters; the files are in `directory`."""
    command = [*inside, sys.executable, "-m", "tests.tutorial.follow", str(page), str(directory), *options]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-12000:]}"


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(900)
def test_the_tutorial_is_followed_word_by_word(page: Path, wheel: Path, tmp_path: Path) -> None:
    """In an empty directory and an empty home, with Python on the path, without a network."""
    unshare = shutil.which("unshare")
    alone = [unshare or "", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if (
        not unshare
        or subprocess.run([*alone, "ip", "link", "set", "lo", "up"], capture_output=True).returncode
    ):
        pytest.skip("this machine allows no namespaces")
    python = os.path.join(sys.base_prefix, "bin", "python3")
    home, work, packages = tmp_path / "home", tmp_path / "work", tmp_path / "packages"
    for directory in (home, work):
        directory.mkdir()
    shutil.copy(wheel, work)
    subprocess.run([python, *fetch(wheel, packages)], check=True, capture_output=True)
    environment = {
        "HOME": str(home),
        "PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin",
        "PIP_NO_INDEX": "1",  # the registry is a directory here
        "PIP_FIND_LINKS": str(packages),
    }
    followed(
        page, work, "--environment", json.dumps(environment),
        inside=[*alone, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.browser
@pytest.mark.timeout(900)
def test_the_tutorial_is_followed_in_a_container_that_has_only_python(
    page: Path, wheel: Path, tmp_path: Path
) -> None:
    """Everything that it makes and starts is in the container. Chromium shares only the container's network."""
    nsenter = shutil.which("nsenter")
    if os.geteuid() != 0 or not nsenter:
        pytest.skip("only root may enter a container's network")
    work, packages = tmp_path / "work", tmp_path / "packages"
    for directory in (work, packages):
        directory.mkdir()
    shutil.copy(wheel, work)
    image = "python:3.13-slim"
    docker(
        *("run", "--rm", "--network", "host", *labels(), "--volume", f"{tmp_path}:{tmp_path}"),
        *("--volume", f"{wheel}:/{wheel.name}:ro", image, "python3", *fetch(Path("/", wheel.name), packages)),
        timeout=300,
    )
    container = docker(
        *("run", "--detach", "--init", "--network", "none", *labels(), "--workdir", "/work"),
        *("--volume", f"{work}:/work", "--volume", f"{packages}:/packages:ro", image, "sleep", "900"),
    )
    try:
        variables = {"PS1": PROMPT, "TERM": "dumb", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/packages"}
        shell = ["docker", "exec", "--interactive", "--tty"]
        shell += [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
        shell += [container, "bash", "--noprofile", "--norc", "--noediting"]
        pid = docker("inspect", "--format", "{{.State.Pid}}", container)
        followed(
            *(page, work, "--shell", shlex.join(shell)),
            *("--environment", json.dumps({"PATH": os.environ["PATH"], "HOME": str(tmp_path)})),
            inside=[nsenter, f"--net=/proc/{pid}/ns/net"],
        )
    finally:
        docker("rm", "--force", "--volumes", container)
