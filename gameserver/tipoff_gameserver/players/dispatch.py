"""Calls the game: finds its callbacks and runs them one at a time, in the order of what happened.

A plain function is called at once, from the event that caused it. A coroutine function's call is awaited before the
next callback begins; what happens meanwhile queues up. A callback that raises is reported to `on_error` and is over;
the game goes on for everybody else.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

MAX_QUEUED = 10_000
"""Calls that may wait while an async callback runs; messages beyond that are dropped."""

Call = tuple[str, Callable[..., Any], tuple[Any, ...], float]
"""Its label, the callback, the arguments, and when it was due."""

_ARGUMENTS = {
    "on_start": ("server",),
    "on_join": ("player",),
    "on_message": ("player", "data"),
    "on_drop": ("player",),
    "on_resume": ("player",),
    "on_leave": ("player", "reason"),
    "tick": ("server", "dt"),
    "on_stop": ("server",),
}


def _nothing(*_: Any) -> None:
    return None


class Callbacks:
    """The methods of one game, looked up once. Methods inherited unchanged from `base` do nothing and are not called.

    Raises `TypeError` if the game is a class or has no such method, or a method does not take the arguments it gets.
    """

    def __init__(self, game: object, base: type) -> None:
        if isinstance(game, type):
            raise TypeError(f"GameServer wants a game, not its class: GameServer({game.__name__}(), ...)")
        if not isinstance(game, base) and not any(
            name in _ARGUMENTS or name.startswith("on_") for name in dir(game)
        ):
            raise TypeError(
                f"GameServer({game!r:.80}): this {type(game).__name__} has none of the methods of a game, which are "
                f"{', '.join(_ARGUMENTS)}"
            )
        self.on_start = _find(game, base, "on_start")
        self.on_join = _find(game, base, "on_join")
        self.on_message = _find(game, base, "on_message")
        self.on_drop = _find(game, base, "on_drop")
        self.on_resume = _find(game, base, "on_resume")
        self.on_leave = _find(game, base, "on_leave")
        self.tick = _find(game, base, "tick")
        self.on_stop = _find(game, base, "on_stop")
        for name in dir(game):
            if name.startswith("on_") and name not in _ARGUMENTS:
                meant = difflib.get_close_matches(name, _ARGUMENTS, n=1)
                hint = f"; did you mean {meant[0]}?" if meant else ""
                log.warning("%s.%s is never called%s", type(game).__name__, name, hint)


def _find(game: object, base: type, name: str) -> Callable[..., Any]:
    method = getattr(game, name, None)
    if method is None or getattr(type(game), name, None) is getattr(base, name):
        return _nothing
    arguments = _ARGUMENTS[name]
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError:
        given = ", ".join(arguments)
        raise TypeError(
            f"{type(game).__name__}.{name} is called as {name}({given}); write def {name}(self, {given})"
        ) from None
    except ValueError:
        pass  # a built-in that has no signature to look at
    return method  # type: ignore[no-any-return]  # getattr knows no types


class Late(NamedTuple):
    """An async callback is being awaited, and all others wait for it."""

    label: str
    awaited: float
    """Seconds since it was called."""
    behind: float
    """Seconds since the oldest call that is not over was due: this one, or the next in the queue."""

    def why(self) -> str:
        """What is wrong, in one line."""
        if self.awaited > self.behind / 2:
            return f"the game's {self.label} has not returned for {self.awaited:.0f} s"
        return f"the game is {self.behind:.0f} s behind with its callbacks"


class Dispatcher:
    """Runs callbacks one at a time; `on_error(label, args, exc)` is called for each that raised. `clock` returns
    seconds."""

    def __init__(
        self,
        tasks: Tasks,
        on_error: Callable[[str, tuple[Any, ...], BaseException], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._tasks = tasks
        self._on_error = on_error
        self._queue: deque[Call] = deque()
        self._running = False
        self._awaiting: tuple[str, float] | None = None
        """Its label, and when it was called."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def full(self) -> bool:
        """Whether messages must be dropped: `MAX_QUEUED` calls wait."""
        return len(self._queue) >= MAX_QUEUED

    def late(self) -> Late | None:
        """The async callback that is being awaited; None when the game waits for nothing."""
        if self._awaiting is None:
            return None
        label, called = self._awaiting
        now = self._clock()
        oldest = min(called, self._queue[0][3]) if self._queue else called
        return Late(label, now - called, now - oldest)

    def post(self, label: str, call: Callable[..., Any], *args: Any) -> None:
        """Call `call(*args)` when its turn has come, which may be now."""
        self._queue.append((label, call, args, self._clock()))
        if not self._running:
            self._run()

    async def idle(self) -> None:
        """Wait until nothing is queued or running. Not to be awaited from within a callback."""
        await self._idle.wait()

    def _run(self) -> None:
        self._running = True
        queue = self._queue
        while queue:
            label, call, args, _ = queue.popleft()
            try:
                result = call(*args)
            except Exception as exc:
                self._on_error(label, args, exc)
                continue
            if result is not None and inspect.isawaitable(result):
                self._idle.clear()
                self._awaiting = (label, self._clock())
                self._tasks.start(self._finish(label, args, result), label)
                return
        self._running = False
        self._idle.set()

    async def _finish(self, label: str, args: tuple[Any, ...], result: Awaitable[Any]) -> None:
        try:
            await result
        except Exception as exc:
            self._on_error(label, args, exc)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._on_error(label, args, exc)  # something the game awaited was cancelled, not we
        finally:
            self._awaiting = None
        self._run()
