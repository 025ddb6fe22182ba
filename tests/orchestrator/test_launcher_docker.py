"""The docker back end with a real engine: how containers start and end, what they may do, and that nothing is left."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.docker_engine import docker
from tests.orchestrator.launcher_world import KEY, LauncherWorld, Spec, docker_game, docker_games
from tests.polling import eventually
from tipoff_launcher.backends.docker.backend import DockerBackend
from tipoff_launcher.backends.docker.container_config import owner_labels
from tipoff_launcher.backends.docker.engine import Engine, open_engine
from tipoff_launcher.backends.docker.server import KnownContainers
from tipoff_launcher.backends.docker.watch import ContainerWatch
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    RunState,
)
from tipoff_orchestrator_client.launcher import LauncherOrchestrator

pytestmark = [pytest.mark.slow, pytest.mark.docker]

ECHO = (
    "import json, os, socket\n"
    "port = json.loads(os.environ['TIPOFF_PORTS'])['udp']\n"
    "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "sock.bind((os.environ['TIPOFF_BIND_HOST'], port['internal']))\n"
    "while True:\n"
    "    data, peer = sock.recvfrom(100)\n"
    "    sock.sendto(data + os.environ['TIPOFF_DEPLOYMENT_ID'].encode(), peer)\n"
)


def volumes(namespace: str, spec: DeploySpec) -> list[str]:
    """The volumes of a server's container."""
    filters = (f"label=tipoff.namespace={namespace}", f"label=tipoff.deployment={spec.deployment_id}")
    return docker("volume", "ls", "-q", *[part for text in filters for part in ("--filter", text)]).split()


async def ended(client: LauncherOrchestrator, id: str, timeout: float = 15) -> Deployment:
    """Wait for a deployment to end, and return it."""

    async def stopped() -> Deployment | None:
        known = await client.get(id)
        return known if known is not None and known.state is RunState.STOPPED else None

    found = await eventually(stopped, f"{id} ends", timeout)
    assert found is not None
    return found


# What a container may do, and what it gets.


async def test_secrets_are_files_that_only_the_server_finds(
    launchers: LauncherWorld,
    tmp_path: Path,
    client: LauncherOrchestrator,
    spec: Spec,
    namespace: str,
) -> None:
    """Neither the key nor the password shows in `docker inspect`; the server has both."""
    games = docker_games(
        launchers.directory,
        reader='sha256sum < "$TIPOFF_PRIVATE_KEY_FILE"; sha256sum < "$NATS_PASSWORD_FILE"; '
        "rm -f /run/tipoff/* ; echo x > /run/tipoff/new; ls /run/tipoff; exec sleep 300",
    )
    password = tmp_path / "gs.password"
    password.write_text("canary-password")
    async with launchers.start_docker(games, server_nats_user="gs", server_nats_password_file=str(password)):
        wanted = spec("reader")
        await client.deploy(wanted)
        (container,) = launchers.containers(wanted.deployment_id)
        inspected = docker("inspect", container)
        assert KEY.reveal().hex() not in inspected
        assert "canary-password" not in inspected
        await eventually(lambda: "nats_password\nprivate_key" in docker("logs", container))
        said = docker("logs", container)
        assert hashlib.sha256(KEY.reveal().hex().encode()).hexdigest() in said
        assert hashlib.sha256(b"canary-password").hexdigest() in said
        assert len(volumes(namespace, wanted)) == 1
        await client.stop(wanted.deployment_id)
    assert not volumes(namespace, wanted)


@pytest.mark.row(59)
async def test_a_server_cannot_leave_what_it_was_given(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Seen from inside, it has no capabilities, cannot get any, and can write only to /tmp."""
    games = docker_games(
        launchers.directory,
        curious="grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; touch /x /etc/x /run/tipoff/x; "
        "touch /tmp/x && echo tmp-ok; ls /var/run/docker.sock; exit 5",
    )
    async with launchers.start_docker(games):
        wanted = spec("curious")
        await client.deploy(wanted)
        known = await ended(client, wanted.deployment_id)
        assert "code 5" in known.reason
        said = launchers.log_of(wanted.deployment_id)
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "tmp-ok"):
        assert line in said
    assert said.count("Read-only file system") == 2
    assert "'/run/tipoff/x': Permission denied" in said
    assert "cannot access '/var/run/docker.sock'" in said


async def test_servers_are_reached_at_ports_of_the_range(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Two servers have their own ports, as the launcher says; players dial the port that the server binds."""
    games = docker_games(launchers.directory, docker_game("echo", "", command=["python", "-c", ECHO]))
    async with launchers.start_docker(games, port_range="31200-31220"):
        deployments = [await client.deploy(spec("echo")) for _ in range(2)]
        ports = [each.ports["udp"] for each in deployments]
        assert all(port.internal == port.external and 31200 <= port.external <= 31220 for port in ports)
        for each in deployments:
            answer = await ask(each.host, each.ports["udp"].external)
            assert answer == b"hello " + each.deployment_id.encode()


async def test_an_image_with_a_port_of_its_own_is_reached_at_one_of_the_range(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """`internal` stays what the image listens on."""
    from tipoff_shared.games import DockerPort

    games = docker_games(
        launchers.directory,
        docker_game("echo", "", command=["python", "-c", ECHO], ports={"udp": DockerPort(5000)}),
    )
    async with launchers.start_docker(games, port_range="31221-31240"):
        deployment = await client.deploy(spec("echo"))
        port = deployment.ports["udp"]
        assert (port.internal, port.external in range(31221, 31241)) == (5000, True)
        assert (await ask(deployment.host, port.external)).startswith(b"hello ")


async def ask(host: str, port: int) -> bytes:
    """Ask an echo server until it answers."""
    loop = asyncio.get_running_loop()
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.setblocking(False)
        sock.connect((host, port))

        async def answer() -> bytes:
            await loop.sock_sendall(sock, b"hello ")
            async with asyncio.timeout(0.2):
                return await loop.sock_recv(sock, 200)

        return await eventually(answer, "it answers", 10, unready=(ConnectionRefusedError, TimeoutError))


# What goes wrong.


async def test_a_port_that_somebody_else_has_is_left_to_them(
    launchers: LauncherWorld,
    client: LauncherOrchestrator,
    spec: Spec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the engine's attempt shows that it is taken, as where the launcher is a container: it tries another."""
    monkeypatch.setattr(DockerBackend, "port_is_free", lambda *_: True)
    with ExitStack() as stack:
        for port in (31300, 31301):
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                sock = stack.enter_context(closing(socket.socket(socket.AF_INET, kind)))
                sock.bind(("127.0.0.1", port))
                if kind is socket.SOCK_STREAM:
                    sock.listen()
        async with launchers.start_docker(
            docker_games(launchers.directory, sleeper="exec sleep 300"), port_range="31300-31303"
        ):
            wanted = spec()
            deployment = await client.deploy(wanted)
            assert {port.external for port in deployment.ports.values()} == {31302, 31303}
            full = spec()
            with pytest.raises(NoCapacity, match="TIPOFF_LAUNCHER_PORT_RANGE") as caught:
                await client.deploy(full)
            assert caught.value.retryable
            assert launchers.containers(full.deployment_id, all=True) == []
            assert len(launchers.containers(wanted.deployment_id, all=True)) == 1


async def test_what_cannot_be_started_is_not_configured_and_leaves_nothing(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """A missing image or program, and an image or size that is not allowed: each error says what to do."""
    games = docker_games(
        launchers.directory,
        docker_game("no-image", "", image="python:never-made"),
        docker_game("no-program", "", command=["/no/such/program"]),
        docker_game("not-allowed", "", image="alpine:3"),
        docker_game("too-big", "", memory=2000),
    )
    words = {
        "no-image": "TIPOFF_LAUNCHER_DOCKER_PULL",
        "no-program": "cannot run its command",
        "not-allowed": "TIPOFF_LAUNCHER_DOCKER_IMAGES",
        "too-big": "TIPOFF_LAUNCHER_DOCKER_MAX_MEMORY",
    }
    limits = {"docker_images": "python:*", "docker_max_memory": 1000, "docker_init": False}
    async with launchers.start_docker(games, **limits) as launcher:
        for name, text in words.items():
            wanted = spec(name)
            with pytest.raises(NotConfigured, match=text) as caught:
                await client.deploy(wanted)
            assert not caught.value.retryable
            assert launchers.containers(wanted.deployment_id, all=True) == []
        assert not list(launcher.settings.state_dir.glob("deployments/*/private_key"))


async def test_a_container_that_exits_at_once_leaves_its_log_and_nothing_else(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Its reason quotes the end of its log without secrets."""
    async with launchers.start_docker():
        wanted, blab = spec("crash"), spec("blab")
        await client.deploy(wanted)
        await client.deploy(blab)
        known = await ended(client, wanted.deployment_id)
        assert known.reason.startswith("exited with code 3; its last words: ")
        assert "no map called dust2" in known.reason
        assert "no map called dust2" in launchers.log_of(wanted.deployment_id)
        assert KEY.reveal().hex() not in (await ended(client, blab.deployment_id)).reason
        assert launchers.containers(wanted.deployment_id, all=True) == []


async def test_a_server_that_takes_too_much_memory_is_told_so(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """The reason explains why the kernel killed it."""
    games = docker_games(
        launchers.directory,
        docker_game("hog", "", command=["python", "-c", "x = bytearray(500_000_000)"], memory=32),
    )
    async with launchers.start_docker(games):
        wanted = spec("hog")
        await client.deploy(wanted)
        assert "[game.docker] memory" in (await ended(client, wanted.deployment_id)).reason


async def test_a_log_is_bounded_on_the_engines_disk_and_on_ours(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """The newest part of the log is kept."""
    games = docker_games(launchers.directory, chatty="seq 1 100000; exit 3")
    async with launchers.start_docker(games, max_log_bytes=20_000):
        wanted = spec("chatty")
        await client.deploy(wanted)
        assert "100000" in (await ended(client, wanted.deployment_id)).reason
        directory = launchers.server_directory(wanted.deployment_id)
        assert sum(file.stat().st_size for file in directory.glob("server.log*")) <= 60_000


async def test_a_container_that_somebody_removed_is_told_as_ended(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """`docker rm -f` by hand is a crash like any other."""
    async with launchers.start_docker():
        wanted = spec()
        await client.deploy(wanted)
        docker("rm", "-fv", *launchers.containers(wanted.deployment_id))
        assert (await ended(client, wanted.deployment_id)).reason


async def test_the_secrets_of_a_container_that_somebody_removed_go_too(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec, namespace: str
) -> None:
    """`docker rm -f` leaves the volume with the key: it is removed, and volumes of running servers are not."""
    async with launchers.start_docker():
        gone, plays = spec(), spec()
        for wanted in (gone, plays):
            await client.deploy(wanted)
        docker("rm", "-f", *launchers.containers(gone.deployment_id))
        await ended(client, gone.deployment_id)
        async with open_engine() as engine:  # the launcher's own watch would take 30 s
            labels = owner_labels(namespace, "local", "")
            await ContainerWatch(engine, labels, KnownContainers(), interval=0).look()
        for wanted, count in ((gone, 0), (plays, 1)):
            assert len(volumes(namespace, wanted)) == count


async def test_what_a_broken_start_left_is_in_nobodys_way(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec, namespace: str
) -> None:
    """An orphaned container of the same name is replaced; a stranger's is not touched, and the error names it."""
    async with launchers.start_docker():
        ours, theirs = spec(), spec()
        marks = {**owner_labels(namespace, "local", ""), "tipoff.deployment": ours.deployment_id}
        left = [part for name, value in marks.items() for part in ("--label", f"{name}={value}")]
        name = f"tipoff-{namespace}-"
        docker("create", "--name", name + ours.deployment_id, *left, "python:3.13-slim", "true")
        stranger = docker("create", "--name", name + theirs.deployment_id, "python:3.13-slim", "true")
        try:
            await client.deploy(ours)
            assert len(launchers.containers(ours.deployment_id)) == 1
            with pytest.raises(OrchestratorError, match="remove it"):
                await client.deploy(theirs)
            assert docker("inspect", "-f", "{{.State.Status}}", stranger) == "created"
        finally:
            docker("rm", stranger)


async def test_kill_ends_the_container_as_a_crash_would(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """So it is in demo mode."""
    async with launchers.start_docker(demo=True):
        wanted = spec()
        await client.deploy(wanted)
        await client.kill(wanted.deployment_id)
        assert "SIGKILL" in (await ended(client, wanted.deployment_id)).reason


async def test_environment_says_who_and_where_the_server_is(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """The launcher's own variables are not passed on; labels help operators find the container."""
    async with launchers.start_docker(docker_nats_host="host.docker.internal:4222"):
        wanted = spec()
        await client.deploy(wanted)
        (found,) = json.loads(docker("inspect", *launchers.containers(wanted.deployment_id)))
        variables = dict(line.split("=", 1) for line in found["Config"]["Env"])
        assert variables["TIPOFF_DEPLOYMENT_ID"] == wanted.deployment_id
        assert variables["NATS_HOST"] == "host.docker.internal:4222"
        assert variables["TIPOFF_BIND_HOST"] == "0.0.0.0"
        assert "HOME" not in variables
        assert found["HostConfig"]["ExtraHosts"] == ["host.docker.internal:host-gateway"]
        labels = found["Config"]["Labels"]
        assert (labels["tipoff.game"], labels["tipoff.version"]) == ("sleeper", "1")


async def test_a_launcher_that_ends_while_it_starts_servers_leaves_none_half_made(
    launchers: LauncherWorld,
    client: LauncherOrchestrator,
    spec: Spec,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The start is cancelled while the engine creates the container, which it completes: the container is removed."""
    create = Engine.create
    making = asyncio.Event()

    async def slowly(self: Engine, name: str, config: Any) -> str:
        making.set()
        await asyncio.sleep(0.5)  # a slow engine is what is tested
        return await create(self, name, config)

    monkeypatch.setattr(Engine, "create", slowly)
    async with launchers.start_docker(stop_servers_on_exit=False) as launcher:
        deploying = asyncio.create_task(launcher.supervisor.deploy(spec()))
        await making.wait()
    await asyncio.wait([deploying])
    assert isinstance(deploying.exception(), OrchestratorError)
    assert not docker("ps", "-aq", "--filter", f"label=tipoff.namespace={namespace}")
