"""Orders for an emulator in another process: how to misbehave, and what it has seen. Not of Edgegap's API.

    GET  /emulator                {"deployments", "sessions", "requests", "problems", "webhooks"}: counts, and problems
    POST /emulator/misbehave      {"operation": "status", "how": "Fail", "times": 2, "status": 503, "retry_after": 1}
    POST /emulator/behave         forget every order
    POST /emulator/kill/{id}      the server of a deployment dies, as in a crash

The token is needed as everywhere.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from tipoff_edgegap_emulator import misbehaviour
from tipoff_edgegap_emulator.misbehaviour import Misbehaviour, Plan, Spoil
from tipoff_edgegap_emulator.refused import Refused

PREFIX = "/emulator"
_SHOWN = 100

_KINDS: dict[str, type[Misbehaviour]] = {
    kind.__name__: kind
    for kind in (
        misbehaviour.Fail,
        misbehaviour.Silent,
        misbehaviour.Drip,
        misbehaviour.Huge,
        misbehaviour.NeverReady,
        misbehaviour.GoesWrong,
        misbehaviour.Dies,
        misbehaviour.Vanishes,
        misbehaviour.Repeat,
        misbehaviour.Hold,
    )
}
_SPOILS: dict[str, Callable[[Any], Any]] = {
    change.__name__: change
    for change in (
        misbehaviour.without_ports,
        misbehaviour.null_address,
        misbehaviour.port_70000,
        misbehaviour.empty_list,
    )
}


def order(plan: Plan, body: bytes) -> dict[str, Any]:
    """One order, from its JSON; raises `Refused` 400 saying what there is."""
    try:
        given = json.loads(body)
        operation, how, times = given.pop("operation"), given.pop("how"), given.pop("times", None)
        if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 1):
            raise ValueError("times is a whole number from 1 on")
        plan.add(operation, _misbehaviour(how, given), times)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, msgspec.ValidationError) as exc:
        known = ", ".join([*_KINDS, "Garbage", *_SPOILS])
        raise Refused(
            400,
            f'{type(exc).__name__}: {exc}; {{"operation", "how", "times", ...}} is expected, how: {known}',
        ) from exc
    return {"operation": operation, "how": how, "times": times}


def _misbehaviour(how: str, members: dict[str, Any]) -> Misbehaviour:
    if how in _SPOILS:
        return Spoil(_SPOILS[how])
    if how == "Garbage":
        return misbehaviour.Garbage()
    kind = _KINDS[how]
    if unknown := set(members) - {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"{how} has no {', '.join(sorted(unknown))}")
    return msgspec.convert(members, kind)


def summary(
    operations: list[tuple[str, int]], problems: list[str], webhooks: list[int | str]
) -> dict[str, Any]:
    """`operations`: (operation, status) of each request. Counts, and the newest problems."""
    return {
        "requests": dict(Counter(operation or "unknown" for operation, _ in operations)),
        "answers": {
            str(status): count for status, count in Counter(status for _, status in operations).items()
        },
        "problems": problems[-_SHOWN:],
        "webhooks": {str(outcome): count for outcome, count in Counter(webhooks).items()},
    }
