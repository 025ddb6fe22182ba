"""Holds what all routes of one httpd share: settings, admission rules, counters and the way to the matchmakers."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping

from tipoff_matchmaker_httpd.admission.origin import OriginRule
from tipoff_matchmaker_httpd.admission.places import MAX_REFUSED, Places
from tipoff_matchmaker_httpd.login.interface import Login, bearer_token
from tipoff_matchmaker_httpd.matchmaker.client import MatchmakerClient, PendingRequest
from tipoff_matchmaker_httpd.metrics import Metrics
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.admission.client_address import Address
from tipoff_shared.admission.limits import ConcurrencyLimit, RateLimit
from tipoff_shared.ban_follower import BanFollower
from tipoff_shared.errors import NotAllowed, NotAuthenticated, SlowDown, TipoffError, Unavailable
from tipoff_shared.file_limit import RESERVED, file_limit, within_file_limit
from tipoff_shared.messages import PlayRequest
from tipoff_shared.names import check_resume, clean_player_name, new_request_id
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.throttled_log import ThrottledLog
from tipoff_shared.subjects import REQUEST_ID_HEADER, RESUME, RESUME_KEY_HEADER, TRACEPARENT_HEADER

log = logging.getLogger(__name__)

_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, version 00."""


class HttpdState:
    """Built by `compose` for each httpd; the routes and the server's protocols read it."""

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        client: MatchmakerClient,
        limits: ConcurrencyLimit,
        metrics: Metrics,
        bans: BanFollower,
        body_limits: Mapping[bytes, int],
        login: Login | None = None,
    ) -> None:
        """`body_limits`: path, or prefix of paths ending in `/` -> most bytes of a body there, where it differs from
        the limit of all other paths. `login`: None where everybody may ask."""
        self.settings = settings
        self.bus = bus
        self.client = client
        self.limits = limits
        self.metrics = metrics
        self.bans = bans
        self.addresses = settings.address_rule
        self.origins = OriginRule.from_settings(settings)
        self.draining = asyncio.Event()
        """Set when the process is about to stop: it begins nothing new."""
        self.log = ThrottledLog(log)
        """For what strangers cause: each kind at most once every few seconds, with its number."""
        setting = "TIPOFF_HTTPD_MAX_CONNECTIONS"
        files = file_limit()
        self.places = Places(
            within_file_limit(
                settings.max_connections,
                f"connections ({setting})",
                # Where few files are allowed, a third of them is for players all the same.
                reserved=min(RESERVED + 2 * MAX_REFUSED, (files or 0) * 2 // 3),
            ),
            settings.max_connections_per_address,
            settings.address_rule,
            metrics.refused,
            self.log,
            setting,
            settings.connections_per_second,
            most_refused=MAX_REFUSED if files is None else max(1, min(MAX_REFUSED, files // 12)),
        )
        """The open sockets of players."""
        self._body_limits = body_limits
        self._login = login
        self._rate = RateLimit(settings.requests_per_second, settings.request_burst)
        self._on_drain: list[Callable[[], None]] = []
        metrics.observe(
            in_flight=lambda: limits.inside, connections=lambda: self.connections, nats=lambda: bus.connected
        )

    @property
    def connections(self) -> int:
        """Open sockets of players."""
        return len(self.places)

    def admit(self, address: Address) -> str:
        """Take a place for a player's request; `limits.leave` gives it back. Raises `Unavailable` when the process is
        full, `SlowDown` when the address asks too often or has too many places; both say when to ask again. Raises
        `NotAllowed` when the address is banned; it says until when."""
        try:
            self.bans.check(str(address))
        except NotAllowed:
            self.metrics.refused("ban")
            raise
        place = self.limits.enter(address)
        if wait := self._rate.take(place, time.monotonic()):
            self.limits.leave(place)
            raise SlowDown(
                "too many requests from your address; try again in a moment", retry_after=max(1.0, wait)
            )
        return place

    async def log_in(self, play: PlayRequest, address: Address, authorization: str | None = None) -> None:
        """Replace what a player at `address` says of itself by what its login says. The credential is the request's
        `auth`, else the token of its Authorization header; it ends here.

        Raises `NotAuthenticated`, `NotAllowed` when the user is banned, `SlowDown` and `Unavailable`. Cancelling is
        safe.
        """
        proposed = clean_player_name(play.name)
        play.user_id, play.name = "", proposed
        if self._login is None:
            return
        auth, play.auth = play.auth, None
        if auth is None and (token := bearer_token(authorization)) is not None:
            auth = {"token": token}
        try:
            identity = await self._login.identify(auth, address)
        except TipoffError as exc:
            reason = exc.reason if isinstance(exc, NotAuthenticated) else None
            self.metrics.login(reason or str(exc.code))
            raise
        self.metrics.login("ok")
        play.user_id, play.name = identity.user_id, identity.name or proposed
        try:
            self.bans.check("", identity.user_id)
        except NotAllowed:
            self.metrics.refused("ban")
            raise

    async def request(
        self, play: PlayRequest, client: Address, address: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> PendingRequest:
        """A request to the matchmakers for a player at `client`, of which they hear as `address` (resolved), with the
        headers that it sent; not asked yet.

        The request id and the resume key, secrets of the player's, travel in headers only: payloads are logged and
        shown. Raises what `log_in` raises, `Unavailable` while draining, `Malformed` when the request cannot be passed
        on.
        """
        if self.draining.is_set():
            raise Unavailable("this server is stopping; ask again", retry_after=1)
        resume = None
        if play.session is not None or play.resume_key is not None:
            # The key is the credential: a login may have expired since, and a ban is asked for by the matchmaker.
            resume = check_resume(play.session, play.resume_key)
            play.auth, play.user_id, play.name = None, "", ""
        else:
            await self.log_in(play, client, header(headers, b"authorization"))
        if self.draining.is_set():
            raise Unavailable("this server is stopping; ask again", retry_after=1)
        passed_on = {
            REQUEST_ID_HEADER: play.request_id or new_request_id(),
            TRACEPARENT_HEADER: traceparent(headers)
            or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
        }
        if resume is not None:
            passed_on |= {REQUEST_ID_HEADER: RESUME, RESUME_KEY_HEADER: resume[1]}
        play.client_ip = address
        play.request_id = play.resume_key = None
        return self.client.request(play, passed_on)

    def on_drain(self, callback: Callable[[], None]) -> None:
        """Call `callback` when draining begins."""
        self._on_drain.append(callback)

    def drain(self) -> None:
        """Begin nothing new and end every wait for a client; requests in flight go on. Idempotent."""
        if self.draining.is_set():
            return
        self.draining.set()
        for callback in self._on_drain:
            callback()

    def max_body(self, url: bytes, otherwise: int) -> int:
        """Most bytes of a request body at `url`; `otherwise` where the path has no limit of its own."""
        path = url.partition(b"?")[0]
        for place, limit in self._body_limits.items():
            if path == place or (place.endswith(b"/") and path.startswith(place)):
                return limit
        return otherwise


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The value of the first header with that name (in lower case)."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


def traceparent(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The client's trace, when it is well formed."""
    for key, value in headers:
        if key == b"traceparent" and _TRACEPARENT.fullmatch(value):
            return value.decode("ascii")
    return None
