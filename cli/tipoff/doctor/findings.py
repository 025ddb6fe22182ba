"""Holds what a check found, and runs all checks at once, each with its own deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

log = logging.getLogger(__name__)


class Status(StrEnum):
    """How a check ended. `warn`: it works, but something is wrong or cannot be known from here. `skip`: not checked."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result. `said` is what was found, `todo` what to do about it, "" for nothing; both are for people."""

    check: str
    status: Status
    said: str
    todo: str = ""


def ok(check: str, said: str) -> Finding:
    """A finding that needs no action."""
    return Finding(check, Status.OK, said)


def warn(check: str, said: str, todo: str) -> Finding:
    """A finding to look at."""
    return Finding(check, Status.WARN, said, todo)


def fail(check: str, said: str, todo: str) -> Finding:
    """A finding that keeps the installation from working."""
    return Finding(check, Status.FAIL, said, todo)


def skip(check: str, said: str, todo: str = "") -> Finding:
    """A check that was not made, and why."""
    return Finding(check, Status.SKIP, said, todo)


Check = Callable[[], Awaitable[Sequence[Finding]]]


async def run_checks(checks: Mapping[str, Check], deadline: float) -> list[Finding]:
    """Run all checks at once; their findings in the order of `checks`. A check that fails, or takes longer than
    `deadline` seconds, becomes a finding."""

    async def one(name: str, check: Check) -> Sequence[Finding]:
        try:
            async with asyncio.timeout(deadline):
                return await check()
        except TimeoutError:
            return [
                fail(
                    name,
                    f"no result within {deadline:g} s",
                    "Check whether the network drops packets; --timeout gives it more time.",
                )
            ]
        except Exception as exc:
            log.debug("check %s failed", name, exc_info=exc)
            return [
                fail(
                    name,
                    f"the check itself failed: {type(exc).__name__}: {exc}",
                    "Please report this: it is a bug in tipoff.",
                )
            ]

    results = await asyncio.gather(*(one(name, check) for name, check in checks.items()))
    return [finding for result in results for finding in result]
