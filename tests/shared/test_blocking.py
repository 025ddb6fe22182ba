"""The guard against blocked event loops finds what it should, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from blockbuster import BlockingError

from tests import blocking
from tipoff_shared.primitives.waiting import gather_then_raise


async def in_our_code(call: Callable[[], object]) -> None:
    """`call` on the event loop, below a function of one of our packages."""

    async def work() -> None:
        call()

    await gather_then_raise(work(), at_once=1)


def takes_a_held_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=0.001)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: time.sleep(0.001), r"time\.sleep"),  # what is refused
        (takes_a_held_lock, "acquire"),
        (lambda: Path("/proc/self/stat").read_text(), "read"),
        (lambda: Path("/").exists(), r"os\.stat"),
    ],
)
async def test_our_code_may_not_block(call: Callable[[], object], name: str) -> None:
    """It raises, and stays recorded where our code catches it."""
    with pytest.raises(BlockingError, match=name):
        await in_our_code(call)
    assert len(blocking.blocked) == 1
    assert "waiting.py" in blocking.blocked[0]
    blocking.blocked.clear()


async def test_a_test_may_block() -> None:
    """So may our code without an event loop."""
    time.sleep(0.001)  # noqa: ASYNC251 # what is allowed
    assert Path("/").exists()  # noqa: ASYNC240
    assert blocking.blocked == []


def test_the_list_of_exceptions_names_code_that_exists() -> None:
    """A file or function that is renamed would otherwise leave a hole, or a stale line."""
    own = [(files, functions) for files, functions in blocking.FILES if str(files).startswith("tipoff_")]
    assert own
    for file, functions in own:
        package = next(one for one in blocking.PACKAGES if one.__name__ == file.split("/")[0])
        text = (Path(package.__path__[0]).parent / file).read_text()
        if "any other" in functions:
            continue  # every function of the file
        assert [name for name in functions if f"def {name}(" not in text] == []
