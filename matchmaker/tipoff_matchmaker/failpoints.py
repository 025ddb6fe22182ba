"""Fail points: the steps after which a test lets this process die, to see that another one can go on from there.

`FAILPOINT=F5` in the environment ends the process, without any goodbye, the first time it gets to `reach("F5")`.
Without it `reach` does nothing. The steps, in their order:

    F1 request decoded            F4 the orchestrator's answer recorded   F7 mapping and token written
    F2 record created, requested  F5 seat written                         F8 answer sent
    F3 orchestrator told          F6 record ready
    E1 record closing             E2 seat freed                           E3 orchestrator told to stop
"""

from __future__ import annotations

import os
from collections.abc import Callable

NAMES = ("F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "E1", "E2", "E3")
ARMED = os.environ.get("FAILPOINT", "")
"""The one at which this process dies; "" for none."""


def _pass(name: str) -> None:
    pass


def _die(name: str) -> None:
    if name == ARMED:
        os._exit(137)


reach: Callable[[str], None] = _die if ARMED else _pass
