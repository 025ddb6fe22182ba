"""`tipoff edgegap check --live` against the emulator: where each assumption holds, and where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.edgegap_emulator.emulator_account import Account, Accounts
from tests.edgegap_emulator.live_checks import (
    SESSIONS,
    check,
    nothing_is_left,
    outcomes,
    quick,
    refuted,
    run_check,
    seen,
)
from tipoff_edgegap_emulator import Dies, Fail, GoesWrong, NeverReady, Options, Silent, Spoil
from tipoff_orchestrator_client.edgegap.setup.live import judge
from tipoff_orchestrator_client.edgegap.setup.live.check import Pace, Report
from tipoff_orchestrator_client.edgegap.setup.live.judge import ASSUMPTIONS, Outcome
from tipoff_orchestrator_client.edgegap.setup.live.leftovers import MARK
from tipoff_orchestrator_client.edgegap.setup.live.listener import NO_HOOK
from tipoff_shared.settings import NatsSettings

pytestmark = [pytest.mark.slow, pytest.mark.row(87)]

OF_SESSIONS = {"sessions-v1", "session-webhooks"}
UNSEEN = {"page-size", "session-webhooks", "context-tls"}
"""What an emulator without webhooks does not show."""
LIMITLESS = {"rate-limits"}
"""What does not hold at an emulator that limits nothing, which most of these tests have to be quick."""
HELD, NOT_HELD, NOT_SEEN = Outcome.HELD, Outcome.NOT_HELD, Outcome.NOT_SEEN


async def test_what_holds_is_told_and_everything_is_removed(
    account: Accounts, settings: NatsSettings
) -> None:
    async with account(quick(), text=SESSIONS) as it:
        report = await check(it, settings)
        found = outcomes(report)
        assert {step for step, outcome in found.items() if outcome is HELD} == set(
            ASSUMPTIONS
        ) - UNSEEN - LIMITLESS
        assert {step for step, outcome in found.items() if outcome is NOT_SEEN} - LIMITLESS == UNSEEN
        await nothing_is_left(it)
        assert it.emulator.count("deploy", 202) == 1
        assert it.emulator.count("session.create", 200) == 1
        assert report.left == []
        assert [what.split()[0] for what in report.after.removed] == ["session", "deployment", "version"]


async def test_a_game_without_sessions_shows_the_rest(account: Accounts, settings: NatsSettings) -> None:
    async with account(quick()) as it:
        report = await check(it, settings)
        found = outcomes(report)
        assert {step for step, one in found.items() if one is NOT_SEEN} - LIMITLESS == UNSEEN | OF_SESSIONS
        assert "does not use sessions" in seen(report, "sessions-v1")
        assert it.emulator.count("session.create") == 0
        await nothing_is_left(it)


async def test_its_server_joins_nothing(account: Accounts, settings: NatsSettings) -> None:
    """It knows neither the game's key nor the address of NATS, and no matchmaker takes it for its own."""
    async with account(quick()) as it:
        await check(it, settings)
        (sent,) = [
            one.document for one in it.emulator.requests if one.operation == "deploy" and one.status == 202
        ]
        told = {one["key"]: one["value"] for one in sent["environment_variables"]}
        assert told["NATS_HOST"] == "127.0.0.1:1"
        assert told["TIPOFF_PRIVATE_KEY"] != it.games.private_key(it.games.all()[0]).reveal().hex()
        assert not any(tag.startswith("tipoff") for tag in sent["tags"])
        assert MARK in sent["tags"]


# Each assumption, where it does not hold.

Prepare = Callable[[Account, pytest.MonkeyPatch], None]


def nothing(it: Account, patch: pytest.MonkeyPatch) -> None:
    pass


def plan(operation: str, how: Any, times: int | None = None) -> Prepare:
    return lambda it, patch: void(it.emulator.misbehave(operation, how, times))


def void(_: object) -> None:
    pass


def many_deployments(it: Account, patch: pytest.MonkeyPatch) -> None:
    for _ in range(101):
        made, _effects = it.emulator.state.deploy(("arena-app", "v1"), now=0.0)
        made.start_at = float("inf")


def late(it: Account, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(judge, "KNOWN_WITHIN", 0.1)
    it.emulator.misbehave("status", Fail(400, "unknown"))


def sessions_without_deployment(answer: Any) -> Any:
    return answer | {"deployment": {**(answer["deployment"] or {}), "request_id": "another"}}


def sessions_with_error(answer: Any) -> Any:
    return answer | {"status": "Error", "ready": False, "error": "it does not go"}


WRONG: list[tuple[str, Options, Prepare]] = [
    ("unknown-id", quick(), plan("status", Fail(418, "teapot"), 1)),
    ("page-size", quick(max_page=50), many_deployments),
    ("page-size", quick(max_page=150), many_deployments),
    ("version-members", quick(), plan("version.create", Fail(400, "arguments: no such member"), 1)),
    ("inactive-version", quick(rules={"deploys_inactive": True}), nothing),
    ("inactive-version", quick(), plan("deploy", Fail(409, "it is inactive"), 1)),
    ("tag-length", quick(max_tag=255), nothing),
    ("tag-length", quick(max_tag=35), nothing),
    ("new-known", quick(), late),
    ("sessions-v1", quick(), plan("session.create", Fail(404, "no such endpoint"))),
    ("sessions-v1", quick(), plan("session.delete", Fail(405, "not allowed"), 1)),
    ("sessions-v1", quick(), plan("session.get", Spoil(sessions_without_deployment))),
    ("sessions-v1", quick(), plan("session.get", Spoil(sessions_with_error))),
    ("stopped-known", quick(rules={"forget_after": 0.0}), nothing),
]


@pytest.mark.parametrize(("step", "options", "prepare"), WRONG)
async def test_what_does_not_hold_is_told(
    account: Accounts,
    settings: NatsSettings,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    options: Options,
    prepare: Prepare,
) -> None:
    """And no other assumption is blamed; whatever was made is removed."""
    async with account(options, text=SESSIONS) as it:
        prepare(it, monkeypatch)
        before = set(it.emulator.state.deployments)
        report = await check(it, settings, timeout=6.0)
        assert refuted(report) - LIMITLESS == {step}, report
        for request_id in before:
            it.emulator.vanish(request_id)
        await nothing_is_left(it)
        assert report.left == []


async def test_the_real_limits_are_met_and_count_over_a_second(
    account: Accounts, settings: NatsSettings
) -> None:
    rates = {"deploy": 40, "status": 20, "list": 10}
    pace = Pace(poll=0.1, forgotten=1.0)
    async with account(quick(rates=rates), text=SESSIONS) as it:
        report = await check(it, settings, pace=pace)
        assert outcomes(report)["rate-limits"] is HELD, report
        assert refuted(report) == set()
        await nothing_is_left(it)


@pytest.mark.parametrize("rates", [{"status": 20, "list": 10}, {"status": 7, "list": 4}])
async def test_limits_that_count_over_three_seconds_are_told(
    account: Accounts, settings: NatsSettings, rates: dict[str, int]
) -> None:
    """60 and 30 in three seconds are more than we assume, 21 and 12 fewer."""
    async with account(quick(rates=rates, window=3.0)) as it:
        report = await check(it, settings, pace=Pace(poll=0.3, forgotten=1.0))
        assert refuted(report) == {"rate-limits"}, report
        await nothing_is_left(it)


async def test_a_deployment_that_stays_known_is_not_waited_for(
    account: Accounts, settings: NatsSettings
) -> None:
    async with account(quick(rules={"forget_after": 600.0}), text=SESSIONS) as it:
        report = await check(it, settings, pace=Pace(poll=0.02, forgotten=0.1, burst=0.0))
        assert outcomes(report)["stopped-known"] is HELD
        assert outcomes(report)["stopped-forgotten"] is NOT_SEEN


# Failures.


@pytest.mark.parametrize(
    ("operation", "how", "blames"),
    [
        ("deploy", Fail(422, "No location could take the deployment"), ""),
        ("deploy", Fail(500, "out of order"), ""),
        ("deploy", Fail(400, "application: what is that?"), ""),
        ("life", NeverReady(), ""),
        ("life", GoesWrong(), ""),
        ("life", Dies(), ""),
        ("session.create", Fail(500, "out of order", carried_out=True), ""),
        ("session.get", Fail(503, "out of order"), ""),
        ("version", Fail(500, "out of order"), ""),
        ("sessions", Fail(404, "no such endpoint"), ""),
        ("deploy", Silent(carried_out_after=0.3), ""),
    ],
)
async def test_a_step_that_fails_blames_nothing_and_leaves_nothing(
    account: Accounts, settings: NatsSettings, operation: str, how: Any, blames: str
) -> None:
    """What depends on it could not be seen, and says why."""
    async with account(quick(), text=SESSIONS) as it:
        planned = it.emulator.misbehave(operation, how, None if operation != "version" else 2)
        report = await check(it, settings, timeout=4.0)
        planned.cancel()
        assert refuted(report) <= LIMITLESS, report
        assert all(one.seen for one in report.conclusions)
        if report.left:  # what could not be looked for is said, and the next one removes it
            assert operation == "version"
            await check(it, settings, timeout=4.0)
        await nothing_is_left(it)


async def test_what_cannot_be_removed_is_named_and_the_next_check_removes_it(
    account: Accounts, settings: NatsSettings
) -> None:
    async with account(quick(), text=SESSIONS) as it:
        planned = it.emulator.misbehave("stop", Fail(500, "out of order"))
        report = await check(it, settings)
        (made,) = [one for one in it.emulator.deployments if MARK in one.tags]
        assert any(made.request_id in what for what in report.left)
        planned.cancel()
        again = await check(it, settings)
        assert f"deployment {made.request_id}" in again.before.removed
        assert again.left == []
        await nothing_is_left(it)


async def test_nothing_is_stopped_while_players_may_be_on_it(
    account: Accounts, settings: NatsSettings
) -> None:
    """The list of sessions cannot be read."""
    async with account(quick(), text=SESSIONS) as it:
        planned = it.emulator.misbehave("sessions", Fail(500, "out of order"))
        report = await check(it, settings)
        assert any("players may be on it" in what for what in report.left)
        assert it.emulator.count("stop") == 0
        planned.cancel()
        assert (await check(it, settings)).left == []
        await nothing_is_left(it)


async def test_a_removal_is_tried_again(account: Accounts, settings: NatsSettings) -> None:
    """Each call of it fails twice."""
    async with account(quick(), text=SESSIONS) as it:
        report = Report()
        work = asyncio.create_task(run_check(it, settings, report))
        await it.emulator.until(lambda emulator: emulator.count("session.create") == 1)
        for operation in ("list", "sessions", "session.delete", "stop", "version", "version.delete"):
            it.emulator.misbehave(operation, Fail(503, "out of order"), 2)
        work.cancel()
        await asyncio.wait((work,))
        assert report.left == []
        assert [what.split()[0] for what in report.after.removed] == ["session", "deployment", "version"]
        await nothing_is_left(it)


async def test_what_an_earlier_check_left_is_removed_first(account: Accounts, settings: NatsSettings) -> None:
    """On a plan with one deployment the check could not run otherwise."""
    async with account(quick(rules={"capacity": 1}), text=SESSIONS) as it:
        left = await it.ready(tags=[MARK, f"{MARK}-xxx"])
        session = await it.session(deployment_request_id=left, webhook_url=NO_HOOK)
        assert session.status_code == 200, session.text
        await it.client.post(
            "/v1/app/arena-app/version",
            json={
                "name": MARK,
                "docker_repository": "r",
                "docker_image": "i",
                "docker_tag": "1",
                "req_cpu": 256,
                "req_memory": 512,
            },
        )
        report = await check(it, settings)
        assert report.before.removed == [
            f"session {session.json()['session_id']}",
            f"deployment {left}",
            f"version {MARK} of arena-app",
        ]
        assert outcomes(report)["sessions-v1"] is HELD, report
        await nothing_is_left(it)


async def test_other_deployments_are_left_alone(account: Accounts, settings: NatsSettings) -> None:
    async with account(quick(), text=SESSIONS) as it:
        ours = await it.ready(tags=["tipoff", "id-arena-1"])
        session = (await it.session(deployment_request_id=ours)).json()["session_id"]
        await check(it, settings)
        assert [one.request_id for one in it.emulator.state.living()] == [ours]
        assert [one.session_id for one in it.emulator.sessions] == [session]


async def test_a_deployment_with_players_is_named_and_goes_on(
    account: Accounts, settings: NatsSettings
) -> None:
    """Edgegap fills deployments with sessions as they come: stopping it would end the players' game."""
    async with account(quick(), text=SESSIONS) as it:
        report = Report()
        work = asyncio.create_task(run_check(it, settings, report))
        await it.emulator.until(lambda emulator: emulator.count("session.create") == 1)
        assert (await it.session()).status_code == 200
        await work
        (player,) = it.emulator.sessions
        assert player.deployment_id is not None
        (left,) = report.left
        assert player.deployment_id in left
        assert "1 session(s) of players" in left
        assert [one.request_id for one in it.emulator.state.living()] == [player.deployment_id]
        await it.client.delete(f"/v1/session/{player.session_id}")
        assert (await check(it, settings)).left == []
        await nothing_is_left(it)


async def test_time_that_runs_out_is_said_and_leaves_nothing(
    account: Accounts, settings: NatsSettings
) -> None:
    async with account(quick(rules={"start_delay": 3.0}), text=SESSIONS) as it:
        report = await check(it, settings, timeout=2.0)
        assert "2 s of the check were over" in seen(report, "sessions-v1")
        assert outcomes(report)["tag-length"] is HELD
        assert report.left == []
        await nothing_is_left(it)


@pytest.mark.parametrize("wanted", [*range(1, 17), 30, 59, 60, 61, 62, 64, 66, 68])
async def test_a_check_that_is_cancelled_anywhere_leaves_nothing(
    account: Accounts, settings: NatsSettings, wanted: int
) -> None:
    """After this number of its requests: the first are those before it makes anything, the last those after its end."""
    async with account(quick(), text=SESSIONS) as it:
        report = Report()
        work = asyncio.create_task(run_check(it, settings, report))
        await it.emulator.until(lambda emulator: len(emulator.requests) >= wanted, 20)
        work.cancel()
        await asyncio.wait((work,))
        assert work.cancelled()
        await nothing_is_left(it)
        assert report.left == []


async def test_a_removal_that_is_cancelled_says_so(account: Accounts, settings: NatsSettings) -> None:
    async with account(quick(), text=SESSIONS) as it:
        report = Report()
        work = asyncio.create_task(run_check(it, settings, report))
        await it.emulator.until(lambda emulator: emulator.count("deploy", 202) == 1)
        it.emulator.misbehave("list", Silent(), 1)
        lists = it.emulator.count("list")
        work.cancel()
        await it.emulator.until(lambda emulator: emulator.count("list") > lists)
        work.cancel()
        await asyncio.wait((work,))
        assert any("not finished" in what for what in report.left)
        assert (await check(it, settings)).left == []
        await nothing_is_left(it)
