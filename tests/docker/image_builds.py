"""Builds the images of a source tree for the tests."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.docker_engine import docker

ROLES = ("matchmaker", "httpd", "launcher", "gameserver", "cli")
SOURCE = "org.tipoff.source"
"""An image's label with the digest of everything it was built from."""

INPUTS = (
    "pyproject.toml",
    "uv.lock",
    "README.md",
    "LICENSE",
    "hatch_links.py",
    ".dockerignore",
    "deploy/Dockerfile",
    "deploy/build-requirements.txt",
    "shared",
    "matchmaker_httpd",
    "matchmaker",
    "orchestrator_client",
    "gameserver",
    "client_sdk",
    "cli",
    "examples/arena",
)
"""Everything that goes into the images."""


def snapshot(tree: Path, target: Path) -> str:
    """Copy the inputs to `target`, so that all images have one state; return the digest of the copy and of the base
    image."""
    for name in INPUTS:
        source, copy = tree / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(source, copy)
    digest = hashlib.sha256(
        docker("image", "inspect", "-f", "{{.Id}}", "python:3.13-slim", check=False).encode()
    )
    for file in sorted(target.rglob("*")):
        if file.is_file():
            digest.update(str(file.relative_to(target)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:24]


def built_images(snapshot_of_source: Path, digest: str) -> Mapping[str, str]:
    """role -> image, `tipoff/ROLE:test`; builds those that are missing or outdated."""
    tags = {role: f"tipoff/{role}:test" for role in ROLES}
    with (Path(tempfile.gettempdir()) / "tipoff-images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes build one at a time
        inspect = f'{{{{.Id}}}} {{{{index .Config.Labels "{SOURCE}"}}}}'
        for role, tag in tags.items():
            before = docker("image", "inspect", "-f", inspect, tag, check=False)
            if before.endswith(digest):
                continue
            build(snapshot_of_source, role, tag, "--label", f"{SOURCE}={digest}")
            if before:
                docker("rmi", before.split()[0], check=False)  # stays while a container has it
    return tags


def build(tree: Path, role: str, tag: str, *options: str) -> None:
    """Build one target with `docker build`, on this machine's network, which pip needs. Raises `CommandFailed` with
    the end of the build's output."""
    docker(
        *("build", "--force-rm", "--network", "host", "--file", "deploy/Dockerfile"),
        *("--target", role, "--tag", tag, *options, "."),
        timeout=600,
        cwd=tree,
    )
