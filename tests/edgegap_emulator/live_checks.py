"""Live checks of an emulated account, quick ones; what they report, and what they leave."""

from __future__ import annotations

from typing import Any

from tests.edgegap_emulator.emulator_account import GAMES, Account
from tests.polling import eventually
from tipoff_edgegap_emulator import Options, Rules
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_orchestrator_client.edgegap.setup.live.check import Pace, Report, live_check
from tipoff_orchestrator_client.edgegap.setup.live.judge import Outcome
from tipoff_shared.settings import NatsSettings

SESSIONS = GAMES.replace('"edgegap"', '"edgegap-sessions"')
FAST = Pace(poll=0.02, known=0.4, session=0.5, forgotten=2.0, clean_up=10.0, late=0.6, told=60.0, burst=0.01)


def quick(**members: Any) -> Options:
    """No rate limits; the deployment is ready 0.15 s after its order, and forgotten 0.8 s after its end."""
    rules = {"start_delay": 0.1, "ready_delay": 0.05, "forget_after": 0.8} | members.pop("rules", {})
    return Options(**({"rates": {}, "rules": Rules(**rules)} | members))


async def check(it: Account, nats: NatsSettings, *, timeout: float = 20.0, pace: Pace = FAST) -> Report:
    report = Report()
    await run_check(it, nats, report, timeout=timeout, pace=pace)
    return report


async def run_check(
    it: Account, nats: NatsSettings, report: Report, *, timeout: float = 20.0, pace: Pace = FAST
) -> None:
    settings = Settings(url=it.emulator.url, token=it.emulator.token, timeout=2.0)
    (game,) = it.games.all()
    await live_check(settings, nats, game, report, timeout=timeout, say=lambda _: None, pace=pace)


def outcomes(report: Report) -> dict[str, Outcome]:
    return {one.step: one.outcome for one in report.conclusions}


def refuted(report: Report) -> set[str]:
    return {step for step, outcome in outcomes(report).items() if outcome is Outcome.NOT_HELD}


def seen(report: Report, step: str) -> str:
    return next(one.seen for one in report.conclusions if one.step == step)


async def nothing_is_left(it: Account) -> None:
    """Deployments end as soon as they have started."""

    def gone() -> bool:
        return all(one.stop_wanted for one in it.emulator.state.living())

    await eventually(gone, "no deployment runs")
    assert it.emulator.sessions == []
    assert [name for _, name in it.emulator.state.catalogue.versions] == ["v1"]
