"""bevygap's mappings: client id -> session id and back, for as long as a token may still lead to a connection.

A bevygap server looks up who connects and exits, with everybody's game, when the mapping is not there. A mapping lives
`MAPPING_TTL` from its put; a handshake may finish `timeout` seconds after the token's expiry, by the server's clock. So
mappings are put again in time, whatever has become of the session: its token is good all the same. Should this process
die, what it has put last is enough for tokens of `Tokens.lifetime` where the clocks agree.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from tipoff_shared.errors import TipoffError
from tipoff_shared.kv.buckets import MAPPING_TTL, Buckets
from tipoff_shared.primitives.waiting import wait_for_event

log = logging.getLogger(__name__)

CLOCKS_APART = 10.0
"""Seconds by which a server's clock may be behind ours."""
_AGAIN = 1.0
_MOST = 100_000
_AT_ONCE = 100


@dataclass(frozen=True, slots=True, order=True)
class _Kept:
    due: float
    until: float
    session_id: str
    client_id: str


class Mappings:
    """`put` writes one and keeps it; `run` puts again what is due. Times are seconds of `clock`, which is monotonic."""

    def __init__(
        self,
        buckets: Buckets,
        *,
        clock: Callable[[], float] = time.monotonic,
        renew_after: float = MAPPING_TTL / 2,
    ) -> None:
        self._buckets = buckets
        self._clock = clock
        self.renew_after = renew_after
        """Seconds from a put to the next one."""
        self._kept: list[_Kept] = []
        self._changed = asyncio.Event()

    async def put(self, session_id: str, client_id: str, *, needed_for: float) -> None:
        """Write the mapping; it stays for `needed_for` seconds and the difference of clocks. Raises `Unavailable`."""
        until = self._clock() + needed_for + CLOCKS_APART
        await self._write(session_id, client_id)
        self._keep(_Kept(self._clock() + self.renew_after, until, session_id, client_id))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            wait = self._kept[0].due - self._clock() if self._kept else None
            if wait is None or wait > 0:
                await wait_for_event(self._changed, wait)
                continue
            await self.put_due()

    async def put_due(self) -> None:
        """Those whose turn it is, a bounded number at once."""
        due: list[_Kept] = []
        while self._kept and self._kept[0].due <= self._clock() and len(due) < _AT_ONCE:
            due.append(heapq.heappop(self._kept))
        await self._put_again(due)

    async def put_all_again(self) -> None:
        """Before this process ends, so that what others will not put again lives as long as it can."""
        kept, self._kept = self._kept, []
        for start in range(0, len(kept), _AT_ONCE):
            await self._put_again(kept[start : start + _AT_ONCE])
        self._kept = []

    def _keep(self, kept: _Kept) -> None:
        if kept.due - self.renew_after + MAPPING_TTL >= kept.until:
            return  # what is written lives long enough
        if len(self._kept) >= _MOST:
            log.warning("over %d mappings are kept: that of session %s is not", _MOST, kept.session_id)
            return
        heapq.heappush(self._kept, kept)
        if self._kept[0] is kept:
            self._changed.set()

    async def _put_again(self, due: list[_Kept]) -> None:
        results = await asyncio.gather(
            *(self._write(kept.session_id, kept.client_id) for kept in due), return_exceptions=True
        )
        now = self._clock()
        for kept, result in zip(due, results, strict=True):
            if isinstance(result, TipoffError):
                log.warning("the mapping of session %s is not put again yet: %s", kept.session_id, result)
                if now < kept.until:
                    again = _Kept(now + _AGAIN, kept.until, kept.session_id, kept.client_id)
                    heapq.heappush(self._kept, again)
            elif isinstance(result, BaseException):
                raise result
            else:
                self._keep(_Kept(now + self.renew_after, kept.until, kept.session_id, kept.client_id))

    async def _write(self, session_id: str, client_id: str) -> None:
        await asyncio.gather(
            self._buckets.sessions_ly2eg.put(client_id, session_id),
            self._buckets.sessions_eg2ly.put(session_id, client_id),
        )
