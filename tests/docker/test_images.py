"""The images: each has what its role needs, runs without privileges and secrets, and is built from locked sources."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.docker.image_builds import ROLES, build
from tests.docker_engine import CommandFailed, docker, labels
from tests.polling import eventually

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(300), pytest.mark.row(59)]

LOCKED_UP = (
    "--read-only",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges:true",
    "--network",
    "none",
)
"""How compose.yaml and the launcher run them."""

CANARY = "c4n4ry-5ecret-7f3b9e"


def config(image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("image", "inspect", image))[0]["Config"]
    return found


@pytest.fixture
def container() -> Iterator[list[str]]:
    """A list of container ids that are removed at the end."""
    ids: list[str] = []
    yield ids
    if ids:
        docker("rm", "-fv", *ids, check=False)


@pytest.mark.parametrize("role", ROLES)
def test_an_image_is_made_for_one_role(images: Mapping[str, str], role: str) -> None:
    """It does not run as root, has a health check if it serves, has labels, and holds little beside Python."""
    found = config(images[role])
    assert found["User"] == "10001:10001"
    assert (found["Healthcheck"]["Test"][0] == "NONE") is (role == "cli")
    assert found["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert role.removesuffix("server") in found["Labels"]["org.opencontainers.image.title"] or role == "cli"
    size = int(docker("image", "inspect", "-f", "{{.Size}}", images[role]))
    base = int(docker("image", "inspect", "-f", "{{.Size}}", "python:3.13-slim"))
    print(f"{role}: {(size - base) / 1e6:.0f} MB on top of the base")
    assert size - base < 140e6


@pytest.mark.parametrize("role", ROLES)
def test_an_image_runs_without_power(images: Mapping[str, str], role: str) -> None:
    """Read-only, without capabilities and new privileges: its dependencies can be imported, nothing can be written."""
    program = (
        "import os, sys, tipoff_shared.health, msgspec, nacl.bindings\n"
        "status = dict(line.split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)\n"
        "written = 'no'\n"
        "try: open('/opt/tipoff/x', 'w'); written = 'yes'\n"
        "except OSError: pass\n"
        "print(os.getuid(), os.getgid(), *(status[n].strip() for n in ('CapEff', 'CapBnd', 'NoNewPrivs')), written, "
        "os.path.exists('/var/run/docker.sock'))"
    )
    said = docker(
        *("run", "--rm", *labels(), *LOCKED_UP, "--entrypoint", "python", images[role], "-c", program)
    )
    assert said == "10001 10001 0000000000000000 0000000000000000 1 no False"


@pytest.mark.parametrize(
    ("role", "packages"),
    [
        ("matchmaker", ["tipoff_matchmaker", "tipoff_orchestrator_client"]),
        ("httpd", ["tipoff_matchmaker_httpd"]),
        ("launcher", ["tipoff_launcher"]),
        ("gameserver", ["tipoff_gameserver", "tipoff_arena.server", "tipoff_client_sdk"]),
        ("cli", ["tipoff"]),
    ],
)
def test_an_image_has_what_its_role_imports(
    images: Mapping[str, str], role: str, packages: list[str]
) -> None:
    """Every module of its packages, those imported late included, from bytecode made at build time, because a read-only
    container cannot write any."""
    program = f"""
import importlib, os, pkgutil
for name in {packages!r}:
    modules = [importlib.import_module(name)]
    for found in pkgutil.walk_packages(getattr(modules[0], "__path__", []), name + "."):
        if "__main__" not in found.name and ".templates" not in found.name:
            modules.append(importlib.import_module(found.name))
    for module in modules:
        assert os.path.exists(module.__cached__), module
print("all")
"""
    said = docker(
        *("run", "--rm", *labels(), *LOCKED_UP, "--entrypoint", "python", images[role], "-c", program)
    )
    assert said == "all"


async def test_a_game_server_locked_up_is_healthy(images: Mapping[str, str], container: list[str]) -> None:
    """The arena in stand-alone mode, without privileges and network: its health check says that it ticks."""
    container.append(
        docker(
            *("run", "-d", *labels(), *LOCKED_UP, "--health-interval", "500ms", "--env", "ARENA_BOTS=0"),
            images["gameserver"],
        )
    )

    async def healthy() -> bool:
        return docker("inspect", "-f", "{{.State.Health.Status}}", container[0]) == "healthy"

    await eventually(healthy, "a healthy game server", 20, unready=(Exception,))
    docker("stop", "-t", "10", container[0])
    assert docker("inspect", "-f", "{{.State.ExitCode}}", container[0]) == "0"


def test_the_command_says_which_version_it_is(images: Mapping[str, str]) -> None:
    """`docker run tipoff/cli --version`, without privileges."""
    assert docker("run", "--rm", *labels(), *LOCKED_UP, images["cli"], "--version") == "tipoff 0.1.0"


def test_secrets_beside_the_sources_do_not_get_into_an_image(
    images: Mapping[str, str], sources: tuple[Path, str], tmp_path: Path
) -> None:
    """Not into a layer (even one that a later layer hides), the history or the environment."""
    tree = tmp_path / "tree"
    shutil.copytree(sources[0], tree)
    for place in (
        ".env.local",
        "deploy/.env.local",
        "deploy/secrets/nats/matchmaker.password",
        "secrets/netcode/arena.1.key",
        "cli/tipoff/.env",
        "examples/arena/private.key",
        "matchmaker/secrets/token",
        "shared/server.pem",
        ".git/config",
    ):
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        (tree / place).write_text(f"password={CANARY}\n")
    tag = "tipoff/cli:test-canary"
    build(tree, "cli", tag)
    try:
        told = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", tag) + json.dumps(config(tag))
        assert CANARY not in told
        assert not re.search(r"(?i)(password|token|secret)\w*=\S", told)
        held = layers_hold(tag, CANARY.encode(), b"console_scripts")
        assert held == [False, True], "the canary is not there; what is there is found"
    finally:
        docker("rmi", tag, check=False)


def layers_hold(image: str, *wanted: bytes) -> list[bool]:
    """Whether each of these occurs anywhere in the layers of `docker save`."""
    found, tail = [False] * len(wanted), b""
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saving:
        assert saving.stdout is not None
        while chunk := saving.stdout.read(1 << 22):
            window = tail + chunk
            found = [before or needle in window for before, needle in zip(found, wanted, strict=True)]
            tail = window[-64:]
    assert saving.returncode == 0
    return found


def test_a_dependency_that_is_not_the_locked_one_is_refused(
    sources: tuple[Path, str], tmp_path: Path
) -> None:
    """If a hash of uv.lock is changed, the build fails and says why."""
    tree = tmp_path / "tree"
    shutil.copytree(sources[0], tree)
    lock = (tree / "uv.lock").read_text()
    entry = re.search(r'\[\[package\]\]\nname = "msgspec"\n.*?(?=\n\[\[package\]\])', lock, re.DOTALL)
    assert entry is not None
    wrong = re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, entry[0])
    (tree / "uv.lock").write_text(lock.replace(entry[0], wrong))
    with pytest.raises(CommandFailed, match=r"(?s)sha256:0{64}.*Computed"):
        build(tree, "build", "tipoff/build:test-wrong-hash")


def test_everything_installed_is_locked_by_hash(source_tree: Path) -> None:
    """Each package of uv.lock and of the build requirements has the SHA-256 of its files, and every install checks
    them."""
    for package in tomllib.loads((source_tree / "uv.lock").read_text())["package"]:
        if "registry" not in package["source"]:
            continue
        for file in [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]:
            assert file["hash"].startswith("sha256:"), package["name"]
    text = (source_tree / "deploy/build-requirements.txt").read_text()
    pins = re.findall(r"^\S+==\S+", text, re.MULTILINE)
    assert pins
    assert all("--hash=sha256:" in text.split(pin, 1)[1].split("==", 1)[0] for pin in pins)
    dockerfile = (source_tree / "deploy/Dockerfile").read_text()
    installs = re.findall(r"pip install .*", dockerfile.split("FROM ${PYTHON_IMAGE} AS runtime")[0])
    assert len(installs) == 3
    assert all("--require-hashes" in line or ("--no-deps" in line and "/wheel/" in line) for line in installs)
