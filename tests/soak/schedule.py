"""Decides which faults a soak injects, at which times: a pure function of its seed and length.

    0 ........ a third ............................ the end
    | warm-up: any fault | measured: only faults after which the measured processes are the same | quiet |

Memory is measured from the end of the warm-up on. So the processes whose memory is measured may be stopped, frozen and
cut off at any time, but killed only in the warm-up. Every stretch deals the possible faults like a shuffled deck, so
that a run sees each of them about equally often.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

WARM_UP = 1 / 3
"""Part of the run that is warm-up."""
_SETTLING = 0.25
"""Part of the warm-up, its last, in which the measured processes are no longer killed, either."""
QUIET = 20.0
"""Seconds at the end without a fault."""
FIRST = 10.0
"""Seconds from the start to the first fault."""
PAUSES = (12.0, 28.0)
"""Seconds from one fault to the next, at least and at most."""


class Kind(StrEnum):
    """What happens to the target."""

    KILL = "kill -9"
    TERMINATE = "SIGTERM"
    STOP = "SIGSTOP"
    FREEZE = "link frozen"
    """Its TCP link to NATS stays open and passes nothing; what was sent arrives late."""
    CUT = "link cut"
    """The same, and at the end every connection breaks and what was sent is lost."""


SERVER = "a game server"
"""A server of the game that comes and goes."""
LASTING_SERVER = "a lasting game server"
"""A server of the game on which players stay."""
NATS = "nats-server"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: at `at` seconds after the start, lasting `seconds`.

    `pick` (0 to 1) chooses among the game servers that live then.
    """

    at: float
    kind: Kind
    target: str
    seconds: float
    pick: float = 0.0

    @property
    def name(self) -> str:
        """What happens to what, without the number of a replica."""
        return f"{self.kind} of {self.target.rstrip('-0123456789')}"


@dataclass(frozen=True, slots=True)
class _Card:
    kind: Kind
    target: str
    seconds: tuple[float, float]
    """How long it lasts, at least and at most."""


def warm_up(seconds: float) -> float:
    """Seconds after the start at which the measured part of a run of `seconds` begins."""
    return seconds * WARM_UP


def schedule(seed: int, seconds: float, replicas: Sequence[str]) -> list[Fault]:
    """The faults of one run, in order.

    `replicas`: the names of the matchmakers and httpds. The first of each kind, launcher, nats-server and the lasting
    game servers are measured.
    """
    dice = random.Random(seed)
    faults: list[Fault] = []
    begin, end = FIRST, seconds - QUIET
    last_kill = warm_up(seconds) * (1 - _SETTLING)
    decks = {True: _dealt(_cards(replicas, kill_all=True), dice), False: _dealt(_cards(replicas), dice)}
    at = begin
    while at < end:
        card = next(decks[at < last_kill])
        lasts = dice.uniform(*card.seconds)
        faults.append(Fault(round(at, 1), card.kind, card.target, round(lasts, 1), round(dice.random(), 3)))
        at += lasts + dice.uniform(*PAUSES)
    return faults


def _dealt(cards: list[_Card], dice: random.Random) -> Iterator[_Card]:
    while True:
        yield from dice.sample(cards, len(cards))


def _cards(replicas: Sequence[str], *, kill_all: bool = False) -> list[_Card]:
    """The possible faults. `kill_all`: also those that end a measured process."""
    names = [*replicas, "launcher"]
    cards = [_Card(Kind.STOP, name, (2.0, 12.0)) for name in names]
    cards += [_Card(Kind.FREEZE, name, (2.0, 12.0)) for name in names]
    cards += [_Card(Kind.CUT, name, (0.0, 8.0)) for name in names]
    cards.append(_Card(Kind.STOP, NATS, (1.0, 8.0)))
    cards.append(_Card(Kind.STOP, SERVER, (1.0, 4.0)))
    cards.append(_Card(Kind.STOP, LASTING_SERVER, (1.0, 4.0)))
    cards += [_Card(Kind.KILL, SERVER, (0.0, 0.0))] * 3
    killed = [name for name in names if kill_all or not is_measured(name)]
    cards += [_Card(Kind.KILL, name, (0.0, 0.0)) for name in killed] * 2
    cards += [_Card(Kind.TERMINATE, name, (0.0, 0.0)) for name in killed if name != "launcher"]
    if kill_all:
        cards.append(_Card(Kind.KILL, LASTING_SERVER, (0.0, 0.0)))
        cards += [_Card(Kind.KILL, NATS, (0.5, 12.0))] * 3
    return cards


def is_measured(part: str) -> bool:
    """Whether the memory of this part is measured, so that nothing ends it after the warm-up."""
    return part.endswith("-1") or part in ("launcher", NATS)
