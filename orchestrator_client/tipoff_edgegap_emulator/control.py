"""Reads the requests by which another process plans faults, and sums up what the emulator has seen. Pure.

    GET  /emulator                {"deployments", "sessions", "requests", "problems", "webhooks"}: counts, and problems
    POST /emulator/misbehave      {"operation": "status", "how": "Fail", "times": 2, "status": 503, "retry_after": 1}
    POST /emulator/behave         drop every planned fault
    POST /emulator/kill/{id}      kill the server of a deployment, as a crash would

These endpoints are not part of Edgegap's API; they need the same token.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from tipoff_edgegap_emulator import fault_plan
from tipoff_edgegap_emulator.errors import Refused
from tipoff_edgegap_emulator.fault_plan import Fault, FaultPlan, Spoil

PREFIX = "/emulator"
_SHOWN = 100

_KINDS: dict[str, type[Fault]] = {
    kind.__name__: kind
    for kind in (
        fault_plan.Fail,
        fault_plan.Silent,
        fault_plan.Drip,
        fault_plan.Huge,
        fault_plan.NeverReady,
        fault_plan.GoesWrong,
        fault_plan.Dies,
        fault_plan.Vanishes,
        fault_plan.Repeat,
        fault_plan.Hold,
    )
}
_SPOILS: dict[str, Callable[[Any], Any]] = {
    change.__name__: change
    for change in (
        fault_plan.without_ports,
        fault_plan.null_address,
        fault_plan.port_70000,
        fault_plan.empty_list,
    )
}


def add_fault(plan: FaultPlan, body: bytes) -> dict[str, Any]:
    """Plan the fault that the JSON in `body` describes. Raises `Refused` 400, which names the known faults."""
    try:
        given = json.loads(body)
        operation, how, times = given.pop("operation"), given.pop("how"), given.pop("times", None)
        if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 1):
            raise ValueError("times is a whole number from 1 on")
        plan.add(operation, _fault(how, given), times)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, msgspec.ValidationError) as exc:
        known = ", ".join([*_KINDS, "Garbage", *_SPOILS])
        raise Refused(
            400,
            f'{type(exc).__name__}: {exc}; {{"operation", "how", "times", ...}} is expected, how: {known}',
        ) from exc
    return {"operation": operation, "how": how, "times": times}


def _fault(how: str, members: dict[str, Any]) -> Fault:
    if how in _SPOILS:
        return Spoil(_SPOILS[how])
    if how == "Garbage":
        return fault_plan.Garbage()
    kind = _KINDS[how]
    if unknown := set(members) - {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"{how} has no {', '.join(sorted(unknown))}")
    return msgspec.convert(members, kind)


def summary(
    operations: list[tuple[str, int]], problems: list[str], webhooks: list[int | str]
) -> dict[str, Any]:
    """Counts, and the newest problems. `operations`: (operation, status) of each request."""
    return {
        "requests": dict(Counter(operation or "unknown" for operation, _ in operations)),
        "answers": {
            str(status): count for status, count in Counter(status for _, status in operations).items()
        },
        "problems": problems[-_SHOWN:],
        "webhooks": {str(outcome): count for outcome, count in Counter(webhooks).items()},
    }
