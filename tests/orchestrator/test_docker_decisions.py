"""The docker back end without an engine: what goes into a container, which images may run, what is removed."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tipoff_launcher.backends.docker.backend import Containers, DockerBackend
from tipoff_launcher.backends.docker.container_config import (
    configuration,
    container_environment,
    container_labels,
    container_name,
    owner_labels,
    record_of,
)
from tipoff_launcher.backends.docker.container_log import ContainerLogs
from tipoff_launcher.backends.docker.engine import ContainerState, EngineError, open_engine
from tipoff_launcher.backends.docker.images import PullProgress, credentials, is_allowed
from tipoff_launcher.backends.docker.server import DockerServer, KnownContainers
from tipoff_launcher.backends.docker.watch import ContainerWatch
from tipoff_launcher.records import Record
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import Port, RunState
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import DockerSpec

# Secrets and files.

HOST = {
    "TIPOFF_PRIVATE_KEY_FILE": "/state/key",
    "NATS_CA": "/secrets/ca.pem",
    "NATS_PASSWORD": "swordfish",
    "TIPOFF_EVENT_KEY": "ab12",
    "NATS_HOST": "nats://127.0.0.1:4222",
    "LIGHTYEAR_PRIVATE_KEY": "1,2,3",
    "TIPOFF_GAME": "g",
}
FILES = {"/state/key": b"00ff", "/secrets/ca.pem": b"PEM"}


def test_secrets_and_named_files_become_files_of_the_container() -> None:
    """No variable holds a secret, and every path exists in the container."""
    variables, files = container_environment(
        HOST, own=(), secrets="file", nats_host="", read=FILES.__getitem__
    )
    assert files == {
        "private_key": b"00ff",
        "nats_ca.pem": b"PEM",
        "nats_password": b"swordfish",
        "event_key": b"ab12",
    }
    assert variables == {
        "TIPOFF_PRIVATE_KEY_FILE": "/run/tipoff/private_key",
        "NATS_CA": "/run/tipoff/nats_ca.pem",
        "NATS_PASSWORD_FILE": "/run/tipoff/nats_password",
        "TIPOFF_EVENT_KEY_FILE": "/run/tipoff/event_key",
        "NATS_HOST": "nats://127.0.0.1:4222",
        "TIPOFF_GAME": "g",
    }


def test_images_that_know_variables_alone_get_variables() -> None:
    """For images like bevygap's: with `secrets = "environment"` the key and the password are variables."""
    variables, files = container_environment(
        HOST, own=(), secrets="environment", nats_host="nats:4222", read=FILES.__getitem__
    )
    assert files == {"nats_ca.pem": b"PEM"}
    assert (variables["TIPOFF_PRIVATE_KEY"], variables["NATS_PASSWORD"]) == ("00ff", "swordfish")
    assert (variables["LIGHTYEAR_PRIVATE_KEY"], variables["NATS_HOST"]) == ("1,2,3", "nats:4222")
    assert "TIPOFF_PRIVATE_KEY_FILE" not in variables


def test_a_path_that_games_toml_names_is_the_images_own() -> None:
    """Such a file is not read on this host; the key's file is, whatever games.toml says."""
    variables, files = container_environment(
        HOST, own=("NATS_CA", "TIPOFF_PRIVATE_KEY_FILE"), secrets="file", nats_host="", read=FILES.__getitem__
    )
    assert variables["NATS_CA"] == "/secrets/ca.pem"
    assert set(files) == {"private_key", "nats_password", "event_key"}


# The container.

RECORD = Record(
    "g-1",
    "space",
    "g",
    "1.0",
    RunState.STARTING,
    "docker",
    created_at=12.5,
    host="192.0.2.1",
    ports={"udp": Port(30000, 30000, "udp"), "query": Port(5000, 30001, "tcp")},
    reason="on its way",
)


def config(spec: DockerSpec, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "owner_labels": owner_labels("", "local", "games"),
        "network": "",
        "publish_on": "127.0.0.1",
        "init": True,
        "max_log_bytes": 1000,
        "files": True,
    }
    variables = changes.pop("variables", {"A": "1"})
    return configuration(spec, RECORD, variables, **(given | changes))


def test_a_container_may_do_nothing_that_a_game_server_does_not_need() -> None:
    """Its root is read-only except /tmp, it has no capabilities, and every resource is limited."""
    host = config(DockerSpec("image", cpus=0.5, memory=100, pids=20, writable=["/var/game"]))["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Privileged"] is False
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"]) == (500_000_000, 100 << 20, 100 << 20)
    assert host["PidsLimit"] == 20
    assert set(host["Tmpfs"]) == {"/tmp", "/var/game"}
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["LogConfig"]["Config"] == {"max-size": "1000", "max-file": "2"}
    assert "Binds" not in host  # nothing of the host, above all no docker.sock
    assert {mount["Type"] for mount in host["Mounts"]} == {"volume"}


def test_ports_are_published_on_the_hosts_addresses_unless_it_is_on_the_hosts_network() -> None:
    """The port that players dial, and the port that the server listens on."""
    found = config(DockerSpec("image"), publish_on="127.0.0.1,10.0.0.1")
    assert found["HostConfig"]["PortBindings"] == {
        "30000/udp": [
            {"HostIp": "127.0.0.1", "HostPort": "30000"},
            {"HostIp": "10.0.0.1", "HostPort": "30000"},
        ],
        "5000/tcp": [
            {"HostIp": "127.0.0.1", "HostPort": "30001"},
            {"HostIp": "10.0.0.1", "HostPort": "30001"},
        ],
    }
    on_host = config(DockerSpec("image"), network="host")
    assert (on_host["HostConfig"]["NetworkMode"], on_host["HostConfig"]["PortBindings"]) == ("host", {})


def test_the_engines_host_has_a_name_only_for_those_who_are_told_it() -> None:
    """It is needed where NATS or the context endpoint is on the host itself."""
    assert "ExtraHosts" not in config(DockerSpec("image"))["HostConfig"]
    found = config(DockerSpec("image"), variables={"NATS_HOST": "nats://host.docker.internal:4222"})
    assert found["HostConfig"]["ExtraHosts"] == ["host.docker.internal:host-gateway"]


def test_the_images_own_command_and_user_stay_unless_games_toml_names_others() -> None:
    """An unset value does not override the image's."""
    plain = config(DockerSpec("image"))
    assert "Cmd" not in plain
    assert "User" not in plain
    other = config(DockerSpec("image", command=["a", "b"], user="1:2"))
    assert (other["Cmd"], other["User"]) == (["a", "b"], "1:2")


def test_a_record_can_be_read_from_the_labels() -> None:
    """A container is enough to restore a server's record; labels that contradict each other are ignored."""
    found = container_labels(RECORD, owner_labels(RECORD.namespace, "local", "games"))
    running = msgspec.structs.replace(RECORD, state=RunState.RUNNING, native_id="abc", reason="")
    assert record_of("abc", found) == running
    assert record_of("abc", {**found, "tipoff.deployment": "g-2"}) is None
    assert record_of("abc", {**found, "tipoff.namespace": "elsewhere"}) is None
    for broken in ("", "{}", "[" * 5000, '{"deployment_id": "../../etc"}'):
        assert record_of("abc", {**found, "tipoff.record": broken}) is None
    assert record_of("abc", {}) is None


def test_containers_are_named_after_their_deployment() -> None:
    """The name includes the namespace, if there is one."""
    assert container_name("", "arena-1") == "tipoff-arena-1"
    assert container_name("blue team", "arena-1") == "tipoff-blue-team-arena-1"
    assert container_name("Blue", "arena-1") == "tipoff-blue-arena-1"


def test_a_containers_name_is_a_label_in_dns_whatever_its_deployment_is_called() -> None:
    """A reverse proxy resolves it, so it has at most 63 characters; names of different servers differ."""
    ids = ["a" * 63, "a" * 62 + "b", "a" * 24 + "-" * 38 + "b", "a" * 32]
    names = {container_name("N" * 24, id) for id in ids}
    assert len(names) == len(ids)
    assert all(re.fullmatch(r"tipoff-[a-z0-9-]{1,55}[a-z0-9]", name) for name in names)


# Images.


def test_an_allow_list_holds_patterns() -> None:
    """Without patterns, games.toml itself is the list."""
    assert is_allowed("anything:1", "")
    assert is_allowed("tipoff/gameserver:1", "other, tipoff/*")
    assert not is_allowed("evil/tipoff/gameserver", "tipoff/*")


def test_players_are_told_how_far_the_image_is() -> None:
    """Progress is in megabytes over all layers, whatever else the engine sends."""
    progress = PullProgress()
    assert progress.feed({"status": "Pulling from game", "id": "1"}) == "Fetching the game server's image"
    down = {"status": "Downloading", "id": "a", "progressDetail": {"current": 1_000_000, "total": 4_000_000}}
    assert progress.feed(down) == "Fetching the game server's image: 1 of 4 MB"
    down = {"status": "Downloading", "id": "b", "progressDetail": {"current": 2_000_000, "total": 6_000_000}}
    assert progress.feed(down) == "Fetching the game server's image: 3 of 10 MB"
    progress.feed({"status": "Download complete", "id": "a"})
    assert progress.feed({"status": "Pull complete", "id": "b"}) == "Fetching the game server's image"
    assert progress.feed({"status": "Extracting", "id": "a"}) == "Unpacking the game server's image"
    for odd in ({}, {"progressDetail": None}, {"status": "Downloading", "progressDetail": {"total": "x"}}):
        assert progress.feed(odd)


def test_credentials_come_from_what_docker_login_wrote(tmp_path: Path) -> None:
    """They are found by registry; the error for an unreadable file names it without quoting its content."""
    config = tmp_path / "config.json"
    auth = base64.b64encode(b"me:pass:word").decode()
    config.write_text(json.dumps({"auths": {"registry.example.org": {"auth": auth}}}))
    assert credentials(config, "registry.example.org/game:1") == {"username": "me", "password": "pass:word"}
    assert credentials(config, "tipoff/gameserver") is None
    config.write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": auth}}}))
    for image in ("me/game", "docker.io/me/game", "index.docker.io/me/game:1"):
        assert credentials(config, image) == {"username": "me", "password": "pass:word"}
    assert credentials(None, "registry.example.org/game:1") is None
    config.write_text('{"auths": {"registry.example.org": {"auth": "se cret"}}}')
    with pytest.raises(ConfigError) as caught:
        credentials(config, "registry.example.org/game:1")
    assert "se cret" not in str(caught.value)


# The engine.


@pytest.mark.parametrize("host", ["nonsense", "ftp://somewhere", "ssh://me@engine"])
async def test_an_address_that_no_engine_has_is_named(host: str) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigError, match=f"TIPOFF_LAUNCHER_DOCKER_HOST.*{host}"):
        async with open_engine(host):
            raise AssertionError


# Orphans.


class ListedContainers:
    """A fake engine: lists containers and volumes, and removes them."""

    def __init__(self, *ids: str, volumes: tuple[str, ...] = (), stuck: tuple[str, ...] = ()) -> None:
        self.ids = list(ids)
        self.volumes = set(volumes)
        self.stuck = stuck
        self.signals: list[str] = []

    async def list(self, labels: dict[str, str]) -> dict[str, ContainerState]:
        return {
            id: ContainerState(id, "running", id != "ended", 0, False, "", labels, "SIGTERM")
            for id in self.ids
        }

    async def remove(self, id: str) -> None:
        if id in self.stuck:
            raise EngineError(500, "device or resource busy")
        self.ids.remove(id)

    async def unused_volumes(self, labels: dict[str, str]) -> set[str]:
        return set(self.volumes)

    async def remove_volume(self, name: str) -> None:
        self.volumes.remove(name)

    async def inspect(self, id: str) -> ContainerState | None:
        known = ContainerState(id, "running", True, 0, False, "", {}, "SIGRTMIN+99")
        return known if id in self.ids else None

    async def signal(self, id: str, signal: str) -> None:
        self.signals.append(signal)
        if signal != "SIGKILL":
            raise EngineError(400, f"Invalid signal: {signal}")
        self.ids.remove(id)

    async def output(self, id: str, *, since: str, follow: bool) -> AsyncGenerator[bytes]:
        await asyncio.Event().wait()
        yield b""


def container_logs(engine: Any) -> ContainerLogs:
    return ContainerLogs(engine, max_bytes=1000, rate=1000)


def recovered() -> KnownContainers:
    """The containers of a launcher that has recovered and starts nothing."""
    known = KnownContainers()
    known.recovered = True
    return known


async def test_an_orphaned_container_is_removed_at_the_second_look(tmp_path: Path) -> None:
    """Not at the first, since its creation may be under way. Known containers and those being created stay."""
    engine: Any = ListedContainers("known", "making", "orphan")
    known = recovered()
    known.add(DockerServer(engine, "known", tmp_path / "log", container_logs(engine), known))
    watch = ContainerWatch(engine, {"tipoff.namespace": "x"}, known, interval=0.01)
    with known.creating("making"):
        await watch.look()
        assert engine.ids == ["known", "making", "orphan"]
        await asyncio.sleep(0.02)  # longer than the interval of looks
        await watch.look()
        assert engine.ids == ["known", "making"]
    assert known.is_orphan("making")
    assert not KnownContainers().is_orphan(
        "making"
    )  # before recovery, an earlier launcher's containers are unknown


async def test_a_container_that_cannot_be_removed_is_in_nobodys_way() -> None:
    """If the engine fails to remove one, the others are still removed and the watch continues."""
    engine: Any = ListedContainers("stuck", "orphan", stuck=("stuck",))
    watch = ContainerWatch(engine, {}, recovered(), interval=0)
    await watch.look()
    assert engine.ids == ["stuck"]
    await watch.look()


async def test_a_launcher_starts_although_a_dead_container_cannot_be_removed() -> None:
    """It is removed later; without a launcher no one could play here."""
    engine: Any = ListedContainers("ended", "orphan", stuck=("ended", "orphan"))
    unused: Any = None
    backend = DockerBackend(engine, unused, Containers(engine, {}), KnownContainers(), Settings(), "", {})
    assert await backend.find_unrecorded([]) == []
    await backend.clean_up("ended", "")
    assert engine.ids == ["ended", "orphan"]


async def test_a_volume_that_a_container_left_behind_is_removed() -> None:
    """Removing a container by hand leaves its volume, which holds the game's key. It is removed at the second look."""
    engine: Any = ListedContainers(volumes=("left",))
    watch = ContainerWatch(engine, {}, recovered(), interval=0.01)
    await watch.look()
    assert engine.volumes == {"left"}
    await asyncio.sleep(0.02)  # longer than the interval of looks
    await watch.look()
    assert engine.volumes == set()


async def test_an_engine_that_tells_of_no_volumes_is_listened_to_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So it is behind a proxy that forwards only what a launcher needs."""

    async def forbidden(self: ListedContainers, labels: dict[str, str]) -> set[str]:
        raise EngineError(403, "forbidden")

    monkeypatch.setattr(ListedContainers, "unused_volumes", forbidden)
    engine: Any = ListedContainers("orphan")
    await ContainerWatch(engine, {}, recovered(), interval=0).look()
    assert engine.ids == []


async def test_a_server_is_killed_although_its_engine_refused_the_first_signal(tmp_path: Path) -> None:
    """Whatever stop signal its image names, SIGKILL follows after the grace."""
    engine: Any = ListedContainers("stubborn")
    server = DockerServer(engine, "stubborn", tmp_path / "log", container_logs(engine), KnownContainers())
    server.terminate(0.05)
    async with asyncio.timeout(5):
        await server.wait()
    assert engine.signals == ["SIGRTMIN+99", "SIGKILL"]


async def test_a_look_wakes_the_servers_whose_containers_have_ended(tmp_path: Path) -> None:
    """Servers whose container was removed are woken too: no event may have reported their end."""
    engine: Any = ListedContainers("ended", "lives")
    woken: list[str] = []

    class Server(DockerServer):
        def wake(self) -> None:
            woken.append(self.native_id)

    known = KnownContainers()
    for id in ("ended", "lives", "missing"):
        known.add(Server(engine, id, tmp_path / "log", container_logs(engine), known))
    await ContainerWatch(engine, {}, known).look()
    assert woken == ["ended", "missing"]
