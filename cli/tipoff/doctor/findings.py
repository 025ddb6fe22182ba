"""What a check found, and all checks at once, each with its own deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

log = logging.getLogger(__name__)


class Status(StrEnum):
    """`warn`: it works, and something is not as it should be, or cannot be known from here. `skip`: not looked at."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """`said` is what was found, `todo` what to do about it ("" where nothing is to be done); both for people."""

    check: str
    status: Status
    said: str
    todo: str = ""


def ok(check: str, said: str) -> Finding:
    return Finding(check, Status.OK, said)


def warn(check: str, said: str, todo: str) -> Finding:
    return Finding(check, Status.WARN, said, todo)


def fail(check: str, said: str, todo: str) -> Finding:
    return Finding(check, Status.FAIL, said, todo)


def skip(check: str, said: str, todo: str = "") -> Finding:
    return Finding(check, Status.SKIP, said, todo)


Check = Callable[[], Awaitable[Sequence[Finding]]]


async def run_checks(checks: Mapping[str, Check], deadline: float) -> list[Finding]:
    """All of them at once; a check that takes longer than `deadline` seconds, or breaks, is a finding, too. In the
    order of `checks`."""

    async def one(name: str, check: Check) -> Sequence[Finding]:
        try:
            async with asyncio.timeout(deadline):
                return await check()
        except TimeoutError:
            return [
                fail(
                    name,
                    f"no result within {deadline:g} s",
                    "Look whether the network drops packets; --timeout gives it longer.",
                )
            ]
        except Exception as exc:
            log.debug("check %s failed", name, exc_info=exc)
            return [
                fail(
                    name,
                    f"the check itself broke: {type(exc).__name__}: {exc}",
                    "Report this: it is a mistake of tipoff's.",
                )
            ]

    results = await asyncio.gather(*(one(name, check) for name, check in checks.items()))
    return [finding for result in results for finding in result]
