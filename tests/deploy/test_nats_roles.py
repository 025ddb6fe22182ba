"""Roles on NATS: each does what it must and nothing else. The expectations are written down here a second time."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from nats.js.errors import KeyNotFoundError

from tests.deploy.deployed_nats import DeployedNats
from tipoff.nats_roles import permissions
from tipoff.operate.admin import kick
from tipoff.operate.status import read_status
from tipoff.operate.watch import watch_changes
from tipoff_matchmaker import presence_reader
from tipoff_matchmaker.bevygap import delete_queue
from tipoff_shared.kv.buckets import buckets, create_buckets, declarations
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.settings import ROLES
from tipoff_shared.subjects import Subjects

OWN = "make info get consumer durable write purge"
FOLLOW = "info get consumer"
_FOLLOWED = {"operator": FOLLOW, "admin": FOLLOW}

BUCKETS: dict[str, dict[str, str]] = {
    "sessions": {"matchmaker": OWN, "httpd": FOLLOW, **_FOLLOWED},
    "deployments": {"matchmaker": OWN, "httpd": FOLLOW, **_FOLLOWED},
    "fleets": {"matchmaker": OWN, **_FOLLOWED},
    "gameservers": {
        "matchmaker": OWN,
        "httpd": FOLLOW,
        "launcher": "info get",
        "gameserver": "info get write",
        **_FOLLOWED,
    },
    "connect_tokens": {"matchmaker": OWN},
    "matchmakers": {"matchmaker": OWN, **_FOLLOWED},
    "active_connections": {"matchmaker": OWN, "gameserver": "make info get write", **_FOLLOWED},
    "unclaimed_sessions": {"matchmaker": OWN, "gameserver": "make info", **_FOLLOWED},
    "cert_digests": {"matchmaker": OWN, "gameserver": "make info get write", **_FOLLOWED},
    "sessions_ly2eg": {"matchmaker": OWN, "gameserver": "make info get", **_FOLLOWED},
    "sessions_eg2ly": {"matchmaker": OWN, "gameserver": "make info", **_FOLLOWED},
    "bans": {"matchmaker": OWN, "httpd": FOLLOW, **_FOLLOWED},
    "games": {
        "matchmaker": "make info get consumer",
        "launcher": FOLLOW,
        "operator": FOLLOW,
        "admin": "info get consumer write",
    },
    "edgegap_orders": {"matchmaker": OWN, **_FOLLOWED},
    "edgegap_sessions": {"matchmaker": OWN, **_FOLLOWED},
    "turn_pairing": {"httpd": "make info get write hear", **_FOLLOWED},
    "turn_games": {"httpd": "make info get write hear", **_FOLLOWED},
}
"""Bucket -> role -> what it may do there."""

_NOBODY: tuple[str, ...] = ()
_ASKED = ("matchmaker",)
_ASKS = ("httpd",)
CORE: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "request": (("arena", "1"), _ASKS, _ASKED),
    "retry": (("arena", "1"), _ASKS, _ASKED),
    "left": (_NOBODY, _ASKS, _ASKED),
    "over": (_NOBODY, ("matchmaker",), _ASKED),
    "ping_matchmaker": (_NOBODY, ("httpd", "operator", "admin"), _ASKED),
    "alive": (("m1",), ("matchmaker",), ("matchmaker", "operator", "admin")),
    "admin kick": (("kick",), ("admin",), _ASKED),
    "admin drain": (("drain",), ("admin",), _ASKED),
    "admin ban": (("ban",), ("admin",), _ASKED),
    "admin status": (("status",), ("operator", "admin"), _ASKED),
    "gensession": (_NOBODY, _ASKS, _ASKED),
    "known_bans": (_NOBODY, _ASKS, _ASKED),
    "contexts": (_NOBODY, ("gameserver",), _ASKED),
    "commands": (("arena-1",), ("matchmaker",), ("gameserver",)),
    "launcher deploy": (("local", "deploy"), ("matchmaker",), ("launcher",)),
    "launcher get": (("local", "get"), ("matchmaker",), ("launcher",)),
    "launcher stop": (("local", "stop"), ("matchmaker",), ("launcher",)),
    "launcher list": (("local", "list"), ("matchmaker", "launcher"), ("launcher",)),
    "launcher logs": (("local", "logs"), ("operator", "admin"), ("launcher",)),
    "launcher games": (("local", "games"), ("operator", "admin"), ("launcher",)),
    "launcher kill": (("local", "kill"), ("httpd",), ("launcher",)),
    "launcher events": (("local", "events"), ("launcher",), ("matchmaker", "operator", "admin")),
    "delete_queue": (("s1",), ("matchmaker",), _NOBODY),
    "webhook": (("ready",), ("httpd",), ("matchmaker",)),
}
"""Name in `Subjects` (and which) -> its arguments, who publishes, who subscribes."""

NOT_SUBJECTS = {"namespace", "bucket", "delete_stream", "events_stream", "events_from"}
PATTERNS = {"all_requests", "all_retries", "all_webhooks"}
"""Of subjects that stand in the table."""
ISOLATED = {"events"}
"""Of the other profile alone."""


pytestmark = pytest.mark.row(84)


@pytest.fixture
def subjects(roles: DeployedNats) -> Subjects:
    return Subjects(roles.namespace)


def on_bucket(name: str) -> dict[str, list[str]]:
    """What is published for each kind of access; `never`: what nobody of ours may do."""
    stream, keys, api = f"KV_{name}", f"$KV.{name}", "$JS.API"
    return {
        "make": [f"{api}.STREAM.CREATE.{stream}"],
        "info": [f"{api}.STREAM.INFO.{stream}"],
        "get": [
            f"{api}.STREAM.MSG.GET.{stream}",
            f"{api}.DIRECT.GET.{stream}",
            f"{api}.DIRECT.GET.{stream}.{keys}.probe",
        ],
        "consumer": [
            f"{api}.CONSUMER.CREATE.{stream}",
            f"{api}.CONSUMER.CREATE.{stream}.probe.{keys}.probe",
            f"{api}.CONSUMER.MSG.NEXT.{stream}.probe",
            f"{api}.CONSUMER.DELETE.{stream}.probe",
            f"{api}.CONSUMER.INFO.{stream}.probe",
            f"$JS.ACK.{stream}.probe.1.1.1.1.0",
            f"$JS.FC.{stream}.probe",
            f"$JS.ACK._.hash.{stream}.probe.1.1.1.1.0",
            f"$JS.FC._.hash.{stream}.probe",
        ],
        "durable": [f"{api}.CONSUMER.DURABLE.CREATE.{stream}.probe"],
        "write": [f"{keys}.probe", f"{keys}.probe.deeper"],
        "purge": [f"{api}.STREAM.PURGE.{stream}"],
        "never": [
            f"{api}.STREAM.UPDATE.{stream}",
            f"{api}.STREAM.DELETE.{stream}",
            f"{api}.STREAM.MSG.DELETE.{stream}",
            f"{api}.STREAM.SNAPSHOT.{stream}",
            f"{api}.STREAM.RESTORE.{stream}",
            f"{api}.STREAM.LEADER.STEPDOWN.{stream}",
        ],
    }


def core_subject(subjects: Subjects, name: str) -> str:
    found = getattr(subjects, name.split()[0])
    return found if isinstance(found, str) else str(found(*CORE[name][0]))


def may_and_must_not(role: str, subjects: Subjects) -> tuple[list[str], list[str]]:
    """What `role` may publish, and everything else that there is."""
    may: list[str] = []
    must_not: list[str] = []
    for bucket, who in BUCKETS.items():
        words = who.get(role, "").split()
        for word, published in on_bucket(subjects.bucket(bucket)).items():
            (may if word in words else must_not).extend(published)
    streams = {
        f"KV_{subjects.bucket(bucket)}": "consumer" in who.get(role, "") for bucket, who in BUCKETS.items()
    }
    must_not += [  # a stream that it may not read, in the place of a domain or an account
        f"$JS.ACK.{other}.probe.{own}.1.1.1.0"
        for own, reads in streams.items()
        for other, reads_other in streams.items()
        if reads and not reads_other
    ]
    for name, (_, publishers, _) in CORE.items():
        (may if role in publishers else must_not).append(core_subject(subjects, name))
    queue = subjects.delete_stream
    (may if role in ("matchmaker", "gameserver") else must_not).append(f"$JS.API.STREAM.CREATE.{queue}")
    (may if role == "matchmaker" else must_not).append(
        f"$JS.API.CONSUMER.MSG.NEXT.{queue}.{delete_queue.DURABLE}"
    )
    if role != "matchmaker":
        must_not += durables(subjects)
    answers = {
        "matchmaker": ("httpd", "operator", "admin"),
        "launcher": ("matchmaker", "httpd", "launcher", "operator", "admin"),
    }
    for other in ROLES:
        (may if other in answers.get(role, ()) else must_not).append(f"_INBOX_{other}.probe")
    blue = Subjects("blue")
    must_not += [core_subject(blue, name) for name in CORE]
    must_not += [f"$KV.{blue.bucket(bucket)}.probe" for bucket in BUCKETS]
    must_not += [f"$KV.{bucket}.probe" for bucket in BUCKETS]  # those without a namespace
    must_not += [
        "$SYS.REQ.SERVER.PING",
        "$JS.API.STREAM.CREATE.anything",
        "$JS.API.ACCOUNT.PURGE.x",
        "anything",
    ]
    return may, must_not


def durables(subjects: Subjects) -> list[str]:
    """What would take messages away from the matchmakers."""
    found: list[str] = []
    for stream, name in (
        (f"KV_{subjects.bucket('active_connections')}", presence_reader.CONNECTIONS),
        (f"KV_{subjects.bucket('gameservers')}", presence_reader.LEASES),
        (subjects.delete_stream, delete_queue.DURABLE),
    ):
        found += [
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}",
            f"$JS.API.CONSUMER.DELETE.{stream}.{name}",
            f"$JS.API.CONSUMER.CREATE.{stream}.{name}.$KV.x",
            f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{name}",
            f"$JS.ACK.{stream}.{name}.1.1.1.1.0",
            f"$JS.ACK._.hash.{stream}.{name}.1.1.1.1.0",
        ]
    return found


@asynccontextmanager
async def a_role(roles: DeployedNats, role: str) -> AsyncIterator[tuple[Bus, list[PermissionDenied]]]:
    """Connected as that user; what NATS denies it comes into the list."""
    async with connect(roles.settings(role), name=f"test {role}") as bus:
        denied: list[PermissionDenied] = []
        bus.on_denied(denied.append)
        yield bus, denied


async def _try_all(bus: Bus, denied: list[PermissionDenied], published: Iterable[str]) -> set[str]:
    """Publish on each; those that were not denied."""
    tried = list(dict.fromkeys(published))
    for subject in tried:
        await bus.nc.publish(subject, b'{"probe": true}', reply=bus.nc.new_inbox())
    await bus.flush(20)
    refused = {exc.subject.lower() for exc in denied}
    return {subject for subject in tried if subject.lower() not in refused}


@pytest.mark.row(56)
@pytest.mark.parametrize("role", ROLES)
async def test_a_role_publishes_nothing_that_is_another_s(
    roles: DeployedNats, subjects: Subjects, role: str
) -> None:
    """Every subject and every operation on every bucket that is not its own: denied, and nothing is written."""
    async with connect(roles.settings("matchmaker"), name="owner") as owner:
        kv = await create_buckets(owner)
        for store in (kv.cert_digests, kv.connect_tokens, kv.active_connections):
            await store.put("probe", "as it was")
    before = await roles.stored()
    async with a_role(roles, role) as (bus, denied):
        assert await _try_all(bus, denied, may_and_must_not(role, subjects)[1]) == set()
    assert await roles.stored() == before


@pytest.mark.row(56)
@pytest.mark.parametrize("role", ROLES)
async def test_a_role_hears_nothing_that_is_another_s(
    roles: DeployedNats, subjects: Subjects, role: str
) -> None:
    """Inboxes of others, writes to buckets, requests: no subscription but those of its own work."""
    foreign = [core_subject(subjects, name) for name, (_, _, who) in CORE.items() if role not in who]
    foreign += [f"_INBOX_{other}.>" for other in ROLES if other != role]
    foreign += [">", "*.>", "$KV.>", "$JS.>", "$SYS.>", "*.probe", "gs.>"]
    if role != "gameserver":  # bevygap's programs know no other inboxes
        foreign.append("_INBOX.>")
    for bucket, who in BUCKETS.items():
        if "hear" not in who.get(role, ""):
            foreign += [f"$KV.{subjects.bucket(bucket)}.>", f"$KV.{subjects.bucket(bucket)}.probe"]
    async with a_role(roles, role) as (bus, denied):
        for subject in foreign:
            await bus.nc.subscribe(subject)
        with pytest.raises(PermissionDenied):
            await bus.flush(20)
        refused = {exc.subject for exc in denied}
    assert set(foreign) - refused == set()


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_do_its_own_work(roles: DeployedNats, subjects: Subjects, role: str) -> None:
    """Nothing that it needs is denied."""
    may = may_and_must_not(role, subjects)[0]
    async with a_role(roles, role) as (bus, denied):
        await _try_all(bus, denied, may)
        for name, (_, _, who) in CORE.items():
            if role in who:
                await bus.nc.subscribe(core_subject(subjects, name))
        await bus.flush(20)
        assert [str(exc) for exc in denied] == []


async def test_every_subject_and_every_bucket_stands_in_the_tables(roles: DeployedNats) -> None:
    """Whoever adds one says here who may use it."""
    public = {name for name in dir(Subjects) if not name.startswith("_")}
    assert {name.split()[0] for name in CORE} == public - NOT_SUBJECTS - PATTERNS - ISOLATED
    assert set(BUCKETS) == {*permissions.BUCKETS, *permissions.TURN_BUCKETS}
    async with connect(roles.settings("matchmaker"), name="owner") as bus:
        made = {config.name for config in declarations(bus)}
    assert made >= {f"KV_{Subjects(roles.namespace).bucket(name)}" for name in permissions.BUCKETS}


@pytest.mark.row(56)
async def test_connect_tokens_are_the_matchmaker_s_alone(roles: DeployedNats) -> None:
    """What all others get is the denial, at once: by get, by listing, by watch, by nats-py's own ways."""
    async with connect(roles.settings("matchmaker"), name="owner") as owner:
        await (await create_buckets(owner)).connect_tokens.put("probe", "canary-token")
    for role in set(ROLES) - {"matchmaker"}:
        async with a_role(roles, role) as (bus, _):
            tokens = buckets(bus).connect_tokens
            with pytest.raises(PermissionDenied):
                await tokens.get("probe")
            with pytest.raises(PermissionDenied):
                await tokens.list()
            with pytest.raises(PermissionDenied):
                async with tokens.watch():
                    pass
            with pytest.raises(PermissionDenied):
                await bus.js.key_value(tokens.bucket)


async def test_a_bevygap_server_makes_its_buckets_and_works_with_them(
    tmp_path: Path, source_tree: Path
) -> None:
    """As its plugin does at its start, before any matchmaker, with the only inboxes it knows; our matchmaker takes the
    buckets as they are."""
    server = DeployedNats(tmp_path, source_tree, "dev.conf")
    server.start()
    try:
        bevygap = dataclasses.replace(server.settings("gameserver"), inbox_prefix="_INBOX")
        async with connect(bevygap, name="bevygap") as bus:
            denied: list[PermissionDenied] = []
            bus.on_denied(denied.append)
            await bus.js.account_info()
            made = {f"KV_{name}" for name in permissions.BEVYGAP_BUCKETS} | {bus.subjects.delete_stream}
            for config in declarations(bus):
                if config.name in made:
                    await bus.js.add_stream(config)
            async with connect(server.settings("matchmaker"), name="owner") as owner:
                await (await create_buckets(owner)).sessions_ly2eg.put("17", "s1")
            assert (await (await bus.js.key_value("sessions_ly2eg")).get("17")).value == b"s1"
            active = await bus.js.key_value("active_connections")
            await active.put("s1", b"17")
            await active.delete("s1")
            await (await bus.js.key_value("cert_digests")).put("203.0.113.7", b"e3:76")
            await bus.nc.publish(bus.subjects.contexts, b"{}")
            await bus.nc.subscribe(bus.subjects.commands("arena-1"))
            await bus.flush()
            assert denied == []
    finally:
        server.stop()


async def test_an_operator_reads_as_the_nats_program_does(roles: DeployedNats) -> None:
    """Bind, get, history, keys and a watch of nats-py's own (push consumers, flow control): on every bucket."""
    async with connect(roles.settings("matchmaker"), name="owner") as owner:
        kv = await create_buckets(owner)
        await kv.cert_digests.put("probe", "digest")
    async with a_role(roles, "operator") as (bus, denied):
        names = {info.config.name for info in await bus.js.streams_info()}
        assert f"KV_{bus.subjects.bucket('cert_digests')}" in names
        for bucket in permissions.BUCKETS:
            if bucket == permissions.SECRET_BUCKET:
                continue
            bound = await bus.js.key_value(bus.subjects.bucket(bucket))
            await bound.status()
            with suppress(KeyNotFoundError):
                await bound.get("probe")
            watcher = await bound.watchall()
            async with asyncio.timeout(5):
                if bucket == "cert_digests":
                    assert (await watcher.updates()).key.startswith("probe")
            await watcher.stop()
        assert [str(exc) for exc in denied] == []


async def test_status_works_for_an_operator(roles: DeployedNats) -> None:
    async with connect(roles.settings("matchmaker"), name="owner") as owner:
        await create_buckets(owner)
    async with a_role(roles, "operator") as (bus, denied):
        assert "sessions" in await read_status(bus)
        assert denied == []


async def test_watch_shows_an_operator_all_but_the_tokens(roles: DeployedNats) -> None:
    """The bucket that it may not read is left out, once and said so; the others are followed."""
    async with connect(roles.settings("matchmaker"), name="owner") as owner:
        kv = await create_buckets(owner)
        async with a_role(roles, "operator") as (bus, _):
            shown: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            watching = asyncio.create_task(watch_changes(bus, shown.put_nowait))
            try:
                await kv.connect_tokens.put("watched", "canary-token")
                await kv.cert_digests.put("watched", "digest")
                async with asyncio.timeout(5):
                    while (item := await shown.get())["key"] != "watched":
                        pass
                assert item["value"] == "digest"
                assert not watching.done()
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)


async def test_an_operator_may_not_kick(roles: DeployedNats) -> None:
    """Told at once, with what to do, and not as a time-out."""
    async with a_role(roles, "operator") as (bus, _):
        async with asyncio.timeout(2):
            with pytest.raises(PermissionDenied, match=r"operator.*matchmaker\.admin\.kick"):
                await kick(bus, "s" + "0" * 26)
