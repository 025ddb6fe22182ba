"""A copied state directory never touches the servers of the original; a renamed one keeps its own."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.orchestrator.launcher_world import LauncherWorld, Spec, lease
from tests.orchestrator.test_launcher_recovery import more_lines
from tests.polling import eventually
from tipoff.up.state_dir import UpInfo, read_up_info, write_up_info
from tipoff_launcher.backends.docker.backend import Containers, DockerBackend
from tipoff_launcher.backends.docker.container_config import belongs_to, container_labels, owner_labels
from tipoff_launcher.backends.docker.server import KnownContainers
from tipoff_launcher.records import Record, Records
from tipoff_launcher.settings import Settings
from tipoff_launcher.state_identity import Finding, Place, StateIdentity, claim, find
from tipoff_orchestrator_client.base import RunState
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import ConfigError
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.nats.connection import Bus

pytestmark = pytest.mark.row(80)

HERE, ELSEWHERE = Place(1, 100, "boot"), Place(1, 200, "boot")
KNOWN = StateIdentity("id", HERE, "/state")


@pytest.mark.parametrize(
    ("known", "here", "original", "servers_run", "finding"),
    [
        (None, HERE, None, True, Finding.NEW),
        (KNOWN, HERE, HERE, True, Finding.SAME),
        (KNOWN, HERE, None, True, Finding.SAME),  # renamed
        (KNOWN, Place(7, 100, "next boot"), None, True, Finding.SAME),  # device numbers change with the boot
        (KNOWN, ELSEWHERE, HERE, True, Finding.COPY),
        (KNOWN, Place(2, 100, "boot"), HERE, True, Finding.COPY),  # the same inode on another file system
        (KNOWN, ELSEWHERE, None, False, Finding.COPY),  # a backup
        (KNOWN, ELSEWHERE, ELSEWHERE, False, Finding.COPY),  # a backup, restored in the place of the original
        (KNOWN, ELSEWHERE, None, True, Finding.UNKNOWN),
        (KNOWN, ELSEWHERE, ELSEWHERE, True, Finding.UNKNOWN),
    ],
)
def test_what_a_directory_is(
    known: StateIdentity | None, here: Place, original: Place | None, servers_run: bool, finding: Finding
) -> None:
    """By where it is, where its original is, and whether a recorded server runs."""
    assert find(known, here, original, servers_run=servers_run) is finding


def copy(source: Path, target: Path, *options: str) -> Path:
    """As an operator copies: with pipes, modes and times."""
    subprocess.run(["cp", "-a", *options, str(source), str(target)], check=True)
    return target


async def test_a_copy_beside_the_original_touches_none_of_its_servers(
    launchers: LauncherWorld, nats: Bus, client: LauncherOrchestrator, spec: Spec, tmp_path: Path
) -> None:
    """Neither at its start, nor after the grace, nor when it stops all of its own. It starts servers of its own."""
    other = LauncherOrchestrator(nats, host="copy")
    wanted = spec("ticker")
    async with launchers.start() as original:
        before = await client.deploy(wanted)
        directory = copy(launchers.settings.state_dir, tmp_path / "copy")
        async with launchers.start(state_dir=directory, host="copy", adopt_grace=0.1):
            assert await other.list() == []
            known = await other.get(wanted.deployment_id)
            assert known is not None
            assert known.state is RunState.STOPPED
            assert "copied from" in known.reason
            await other.stop(wanted.deployment_id)
            assert (await other.deploy(wanted)).state is RunState.STOPPED
            assert (await other.deploy(spec())).state is RunState.RUNNING
            await asyncio.sleep(0.5)  # several times the grace
            assert not (directory / "deployments" / wanted.deployment_id / "private_key").exists()
        assert (launchers.server_directory(wanted.deployment_id) / "private_key").exists()
        assert original.supervisor.runs(wanted.deployment_id)
        assert await client.list() == [before]
        await more_lines(launchers, wanted.deployment_id)
        async with launchers.start(state_dir=directory, host="copy"):  # it is its own from now on
            assert await other.list() == []
        assert await client.list() == [before]


async def test_a_copy_made_of_hard_links_takes_no_output_of_the_original(
    launchers: LauncherWorld, client: LauncherOrchestrator, kv: Buckets, spec: Spec, tmp_path: Path
) -> None:
    """Its files are the original's own: refused while that is in use, harmless afterwards."""
    wanted = spec("ticker")
    async with launchers.start(stop_servers_on_exit=False):
        await client.deploy(wanted)
        await kv.gameservers.put(wanted.deployment_id, lease(wanted), ttl=60)
        directory = copy(launchers.settings.state_dir, tmp_path / "copy", "-l")
        with pytest.raises(ConfigError, match="in use"):
            async with launchers.start(state_dir=directory, host="copy"):
                pass
        await more_lines(launchers, wanted.deployment_id)
    async with launchers.start(state_dir=directory, host="copy"):
        await more_lines(launchers, wanted.deployment_id)
    async with launchers.start():
        await more_lines(launchers, wanted.deployment_id)
        await client.stop(wanted.deployment_id)
        numbers = [int(line) for line in launchers.log_of(wanted.deployment_id).split()]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_copied_records_without_their_directory_touch_no_server(
    launchers: LauncherWorld, nats: Bus, client: LauncherOrchestrator, spec: Spec, tmp_path: Path
) -> None:
    """Each record names its directory; whose servers those are is not clear, so the launcher refuses."""
    wanted = spec()
    async with launchers.start():
        await client.deploy(wanted)
        (tmp_path / "copy").mkdir()
        copy(launchers.settings.state_dir / "deployments", tmp_path / "copy" / "deployments")
        with pytest.raises(ConfigError, match="TIPOFF_LAUNCHER_ADOPT_COPIED"):
            async with launchers.start(state_dir=tmp_path / "copy", host="copy"):
                pass
        assert len(await client.list()) == 1
        await eventually(lambda: len(launchers.servers(wanted.deployment_id)) == 1)


async def test_a_renamed_directory_keeps_its_servers(
    launchers: LauncherWorld, client: LauncherOrchestrator, kv: Buckets, spec: Spec, tmp_path: Path
) -> None:
    """They are adopted, and their log goes on in it."""
    wanted = spec("ticker")
    async with launchers.start(stop_servers_on_exit=False):
        before = await client.deploy(wanted)
        await kv.gameservers.put(wanted.deployment_id, lease(wanted), ttl=60)
        await more_lines(launchers, wanted.deployment_id)
    launchers.settings.state_dir.rename(tmp_path / "renamed")
    async with launchers.start(state_dir=tmp_path / "renamed"):
        assert await client.list() == [before]
        log_file = tmp_path / "renamed" / "deployments" / wanted.deployment_id / "server.log"
        size = log_file.stat().st_size
        await eventually(lambda: log_file.stat().st_size > size)


async def test_where_the_original_is_gone_while_servers_run_the_operator_decides(
    launchers: LauncherWorld, client: LauncherOrchestrator, kv: Buckets, spec: Spec, tmp_path: Path
) -> None:
    """One sentence says what to do: a directory that was moved to another file system takes them over."""
    wanted = spec()
    async with launchers.start(stop_servers_on_exit=False):
        before = await client.deploy(wanted)
        await kv.gameservers.put(wanted.deployment_id, lease(wanted), ttl=60)
    moved = copy(launchers.settings.state_dir, tmp_path / "moved")
    shutil.move(launchers.settings.state_dir, tmp_path / "aside")  # so that the inode is not used again
    with pytest.raises(ConfigError, match=r"is a copy of .*TIPOFF_LAUNCHER_ADOPT_COPIED=true .* remove"):
        async with launchers.start(state_dir=moved):
            pass
    await eventually(lambda: len(launchers.servers(wanted.deployment_id)) == 1)
    async with launchers.start(state_dir=moved, adopt_copied=True):
        assert await client.list() == [before]


async def test_a_backup_whose_servers_are_gone_starts_with_an_identity_of_its_own(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec, tmp_path: Path
) -> None:
    """As on another machine: what is recorded has ended, and new servers start."""
    wanted = spec()
    async with launchers.start():
        await client.deploy(wanted)
        backup = copy(launchers.settings.state_dir, tmp_path / "backup")
    shutil.move(launchers.settings.state_dir, tmp_path / "aside")
    async with launchers.start(state_dir=backup):
        assert await client.list() == []
        known = await client.get(wanted.deployment_id)
        assert known is not None
        assert known.state is RunState.STOPPED
        assert (await client.deploy(spec())).state is RunState.RUNNING


async def test_one_directory_by_two_names_is_one(launchers: LauncherWorld, tmp_path: Path) -> None:
    """As in two containers with the same volume: the second launcher is refused while the first one runs."""
    async with launchers.start():
        (tmp_path / "volume").symlink_to(launchers.settings.state_dir)
        with pytest.raises(ConfigError, match="is in use by another launcher"):
            async with launchers.start(state_dir=tmp_path / "volume", host="another"):
                pass


def test_a_directory_of_an_older_release_becomes_ours_with_its_records(tmp_path: Path) -> None:
    """Its records name no owner."""
    Records(tmp_path).save(a_record(""))
    identity = claim(tmp_path)
    assert identity.owns(a_record(""))
    assert claim(tmp_path) == identity
    assert not identity.owns(a_record("another"))


def a_record(owner: str) -> Record:
    return Record("g-1", "", "g", "1", RunState.RUNNING, "docker", created_at=0, native_id="c-1", owner=owner)


async def test_containers_of_the_original_are_neither_adopted_nor_removed() -> None:
    """A copy with the same labels on the same engine leaves them; one that has lost its state adopts them."""
    labels = container_labels(a_record("original"), owner_labels("", "local", ""))
    assert belongs_to(labels, ("original",))
    assert not belongs_to(labels, ("another",))
    assert not belongs_to({}, ("original",))
    assert not belongs_to({"tipoff.record": "{"}, ("original",))
    engine = OneContainer(labels)
    for foreign, found in ((("original",), []), ((), ["g-1"])):
        backend = DockerBackend(
            engine,  # type: ignore[arg-type] # as much of an engine as is asked
            None,  # type: ignore[arg-type] # no image is needed
            Containers(engine, {}),  # type: ignore[arg-type]
            KnownContainers(),
            Settings(),
            "",
            {},
            foreign,
        )
        assert [record.deployment_id for record in await backend.find_unrecorded([])] == found
    assert engine.removed == []


class OneContainer:
    """An engine with one running container."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.running = True
        self.status = "running"
        self.removed: list[str] = []

    async def list(self, owner_labels: object) -> dict[str, OneContainer]:
        return {"c-1": self}

    async def remove(self, container_id: str) -> None:
        self.removed.append(container_id)


def test_the_commands_do_not_reach_the_original_by_a_copy(tmp_path: Path) -> None:
    """`up.json` holds the credentials of the running system."""
    (tmp_path / "state").mkdir()
    write_up_info(tmp_path / "state", UpInfo(1, "http://here", "nats://here", "user", "password"))
    assert read_up_info(tmp_path / "state").url == "http://here"
    copy(tmp_path / "state", tmp_path / "copy")
    with pytest.raises(ConfigError, match="is a copy"):
        read_up_info(tmp_path / "copy")
    (tmp_path / "state").rename(tmp_path / "renamed")
    assert read_up_info(tmp_path / "renamed").url == "http://here"
