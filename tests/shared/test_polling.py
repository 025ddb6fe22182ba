"""The tests' polling: what it returns, what it raises, what it lets through."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests import polling
from tests.polling import eventually, eventually_sync


async def test_the_first_true_result_is_returned() -> None:
    """Of a plain function and of a coroutine function."""
    results = iter([0, "", "there"])
    assert await eventually(lambda: next(results)) == "there"

    async def probe() -> list[str]:
        await asyncio.sleep(0)
        return ["found"]

    assert await eventually(probe) == ["found"]
    assert eventually_sync(lambda: 7) == 7


async def test_a_condition_that_stays_false_fails_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the timeout times the scale, and a probe that hangs is cancelled."""
    monkeypatch.setattr(polling, "SCALE", 2.0)
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"not within 0\.1 s: the door is open"):
        await eventually(lambda: False, "the door is open", 0.05)
    assert time.monotonic() - began >= 0.1
    with pytest.raises(AssertionError, match="an answer"):
        await eventually(asyncio.Event().wait, "an answer", 0.05)
    with pytest.raises(AssertionError, match="the door is open"):
        eventually_sync(lambda: False, "the door is open", 0.05)


async def test_only_the_exceptions_named_count_as_not_yet() -> None:
    """Another one goes to the caller; a time-out of the probe's own is no end of the waiting."""

    def refused() -> bool:
        raise ConnectionRefusedError("nobody listens")

    with pytest.raises(AssertionError, match="nobody listens"):
        await eventually(refused, "a listener", 0.05, unready=(OSError,))
    with pytest.raises(ConnectionRefusedError):
        await eventually(refused, "a listener", 0.05)
    with pytest.raises(AssertionError, match="nobody listens"):
        eventually_sync(refused, "a listener", 0.05, unready=(OSError,))

    async def own_timeout() -> bool:
        raise TimeoutError("the probe's")

    with pytest.raises(TimeoutError, match="the probe's"):
        await eventually(own_timeout, "an answer", 5)
