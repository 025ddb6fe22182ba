"""Runs a service's process: event loop, signals, settings from the environment, exit codes.

    exit code   0   it was told to stop, and has stopped
                1   it failed; its log says how, and a supervisor starts it again
                2   it cannot be set up: standard error names each setting that cannot be used
              130   Ctrl-C before it listened to signals

structlog and pydantic are imported where they are used: game servers and clients run without them.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args

from tipoff_shared.errors import ConfigError, TipoffError
from tipoff_shared.primitives.orphans import reap_as_process_1
from tipoff_shared.primitives.text import one_line
from tipoff_shared.primitives.waiting import wait_for_any

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_settings import BaseSettings

    SettingsT = TypeVar("SettingsT", bound=BaseSettings)

T = TypeVar("T")

log = logging.getLogger(__name__)

DONE, FAILED, CONFIGURATION, INTERRUPTED = 0, 1, 2, 130

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SECRET_TYPES = ("Secret", "SecretStr", "SecretBytes")
_TYPO = 0.8
"""How like a setting's name another one is that is taken for a typing error, from 0 to 1."""
_SECRET_NAME = re.compile(r"(token|password|secret|hook_key)$")


def run_service(
    name: str,
    main: Callable[[asyncio.Event], Coroutine[Any, Any, int | None]],
    *,
    reap_orphans: bool = True,
) -> NoReturn:
    """Run `main(stop)` to its end as the process of the service `name`, then exit. As process 1 of a container it also
    reaps orphans, unless `main` does (`reap_orphans`).

    Sets up logging. SIGTERM and SIGINT set `stop`; `main` then ends in its own time (`wait_until_stopped` waits for
    that). It returns its exit code, or None for 0. `ConfigError` exits with 2 and its lines on standard error, each
    after `tipoff NAME: `; any `TipoffError` exits with 1 and one line in the log. Whatever else it raises is a fault:
    a traceback and 1.
    """
    from tipoff_shared.log import configure

    configure(name)
    if reap_orphans:
        reap_as_process_1()

    async def work() -> int | None:
        stop = asyncio.Event()
        with signals(lambda _: stop.set()):
            return await main(stop)

    sys.exit(exit_code_of(work, prefix=f"tipoff {name}: "))


def exit_code_of(work: Callable[[], Coroutine[Any, Any, int | None]], *, prefix: str) -> int:
    """Run `work` in its own event loop; the process's exit code, as above. For `main`s with signals and logging
    of their own; `prefix` begins each line on standard error."""
    try:
        return run(work()) or DONE
    except ConfigError as exc:
        for line in str(exc).splitlines():
            sys.stderr.write(f"{prefix}{line}\n")
        return CONFIGURATION
    except TipoffError as exc:
        log.critical("%s", exc)  # says what to do; a traceback would not
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def run(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, run in its own event loop: uvloop's where it is installed."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(work)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop; None, which means the standard one, where it is not installed."""
    try:
        import uvloop
    except ImportError:  # not on every platform
        return None
    return uvloop.new_event_loop


async def wait_until_stopped(stop: asyncio.Event, *failures: asyncio.Event) -> int:
    """Wait until `stop` or one of `failures` is set; the exit code, 0 where it was told to stop."""
    await wait_for_any(stop, *failures)
    return DONE if stop.is_set() else FAILED


@contextmanager
def signals(on_signal: Callable[[str], None]) -> Iterator[None]:
    """Call `on_signal(name)` in the running event loop for each SIGTERM or SIGINT during the block.

    Works on Windows too, where event loops know no signals. Does nothing outside the main thread, where Python allows
    no signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    undo: list[Callable[[], object]] = []
    for number in _SIGNALS:
        name = number.name
        try:
            loop.add_signal_handler(number, on_signal, name)
            undo.append(lambda number=number: loop.remove_signal_handler(number))  # type: ignore[misc]  # binds it now
        except NotImplementedError:  # Windows

            def handler(_number: int, _frame: FrameType | None, name: str = name) -> None:
                loop.call_soon_threadsafe(on_signal, name)

            before = signal.signal(number, handler)
            undo.append(lambda number=number, before=before: signal.signal(number, before))  # type: ignore[misc]
    try:
        yield
    finally:
        for step in undo:
            step()


def load_settings(kind: type[SettingsT], **given: Any) -> SettingsT:
    """Settings of the pydantic class `kind`, from the environment and `given`.

    Raises `ConfigError` with one line for each setting that cannot be used: the variable, what is allowed, and its
    value where that is no secret. A class with `hide_input_in_errors` in its `model_config` shows no value at all: its
    user may have put a secret into the wrong variable. A variable whose name is almost that of a setting, and is none,
    is warned of.
    """
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    for variable, meant in _misspelled(kind, os.environ):
        log.warning("%s is no setting and is ignored; do you mean %s?", variable, meant)
    try:
        return kind(**given)
    except ValidationError as exc:
        raise ConfigError("\n".join(_lines(kind, exc))) from None  # the cause would quote secrets
    except SettingsError as exc:  # a list or an object that is not the JSON it should be
        found = re.search(r'field "(\w+)"', str(exc))
        name = _variables(kind).get(found[1], found[1]) if found else kind.__name__
        raise ConfigError(f"{name}: JSON is expected") from None


def _lines(kind: type[BaseSettings], error: ValidationError) -> Iterator[str]:
    """One line for each setting: the first of its errors."""
    variables = _variables(kind)
    hide_all = kind.model_config.get("hide_input_in_errors", False)
    secret = {
        variables[name] for name, field in kind.model_fields.items() if _is_secret(name, field.annotation)
    }
    told: set[str] = set()
    for problem in error.errors(include_url=False):
        where = str(problem["loc"][0]) if problem["loc"] else ""
        variable = variables.get(where) or f"{kind.model_config.get('env_prefix', '')}{where.upper() or '*'}"
        if variable in told:
            continue
        told.add(variable)
        text = re.sub(r"^(Value error, |Assertion failed, )", "", problem["msg"])
        text = re.sub(r"^(Input|String|Value|List|Tuple|URL) should ", "must ", text)
        value = problem["input"]
        if variable in secret or (hide_all and problem["type"] in ("value_error", "assertion_error")):
            # A validator may quote what it refuses.
            text = text.replace(str(value), "***") if str(value) else text
        elif hide_all:
            pass
        elif where and problem["type"] not in ("missing", "extra_forbidden"):
            text = f"{text} (it is {one_line(repr(value), 80)})"
        yield f"{variable}: {one_line(_without_credentials(text), 400)}"


def _variables(kind: type[BaseSettings]) -> dict[str, str]:
    """Name of a field, or its alias, -> the environment variable that sets it."""
    prefix = kind.model_config.get("env_prefix", "")
    found: dict[str, str] = {}
    for name, field in kind.model_fields.items():
        alias = field.validation_alias
        variable = alias if isinstance(alias, str) else f"{prefix}{name.upper()}"
        found |= {name: variable, variable: variable, variable.lower(): variable}
    return found


def _misspelled(kind: type[BaseSettings], environment: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Variables with the prefix of `kind` that are close to one of its settings, each with that one. Others may be
    somebody else's."""
    prefix = kind.model_config.get("env_prefix", "")
    known = {name.upper() for name in _variables(kind).values()}
    if not prefix:
        return
    settings = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
    for variable in sorted(environment):
        name = variable.upper()
        if name.startswith(prefix) and name not in known:
            close = difflib.get_close_matches(name.removeprefix(prefix), settings, n=1, cutoff=_TYPO)
            if close:
                yield variable[:100], prefix + close[0]


def _is_secret(name: str, annotation: Any) -> bool:
    return (
        getattr(annotation, "__name__", "") in _SECRET_TYPES
        or any(_is_secret("", part) for part in get_args(annotation))
        or _SECRET_NAME.search(name) is not None
    )


def _without_credentials(text: str) -> str:
    """URLs without their `user:password@`."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)
