"""`deploy/tipoff`, the command out of its image: what it asks of docker (here a stand-in that prints it)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def stack(tmp_path: Path, source_tree: Path) -> Path:
    """A directory like deploy/ on a server, and a `docker` that says what it was told."""
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin" / "docker"
    docker.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    docker.chmod(0o755)
    script = tmp_path / "tipoff"
    script.write_bytes((source_tree / "deploy" / "tipoff").read_bytes())
    script.chmod(0o755)
    (tmp_path / "secrets/nats").mkdir(parents=True)
    (tmp_path / "secrets/nats/operator.password").write_text("canary-password")
    return tmp_path


def asked(stack: Path, *arguments: str, **environ: str) -> list[str]:
    env = {"PATH": f"{stack / 'bin'}:{os.environ['PATH']}", **environ}
    done = subprocess.run(
        ["./tipoff", *arguments],
        cwd=stack,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_it_is_the_operator_who_asks(stack: Path) -> None:
    """By a file with the password, which is in no argument."""
    words = asked(stack, "status", "--json")
    assert words[-3:] == ["tipoff/cli:latest", "status", "--json"]
    assert "NATS_USER=operator" in words
    assert "NATS_PASSWORD_FILE=./secrets/nats/operator.password" in words
    assert "NATS_HOST=127.0.0.1:4222" in words
    assert "canary-password" not in " ".join(words)


def test_the_stacks_variables_say_where(stack: Path) -> None:
    """Tag, secrets, namespace, where NATS is published; the profile dev has no TLS."""
    (stack / ".env.local").write_text(
        "COMPOSE_PROFILES=dev\nTIPOFF_TAG=7\nTIPOFF_SECRETS=/srv/s\nTIPOFF_NAMESPACE=op\nTIPOFF_NATS_PUBLISH=0.0.0.0:14222\n"
        f"DOCKER_SOCKET={stack}/none\n"
    )
    words = asked(stack, "drain", "arena 1", NATS_USER="admin")
    assert words[-3:] == ["tipoff/cli:7", "drain", "arena 1"]
    for word in (
        "NATS_USER=admin",
        "NATS_PASSWORD_FILE=/srv/s/nats/admin.password",
        "NATS_HOST=127.0.0.1:14222",
        "NATS_INSECURE=1",
        "TIPOFF_NAMESPACE=op",
    ):
        assert word in words
    assert "--group-add" not in words


def test_it_writes_as_whoever_runs_it(stack: Path) -> None:
    """`secrets init` makes files of the operator's, in this directory."""
    words = asked(stack, "secrets", "init", "secrets")
    assert f"{os.getuid()}:{os.getgid()}" in words
    assert f"{stack}:{stack}" in words
