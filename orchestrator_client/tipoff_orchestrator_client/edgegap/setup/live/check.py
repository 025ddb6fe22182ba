"""Makes a deployment and a session at Edgegap, looks, and removes both, for `tipoff edgegap check --live`.

live_check ─ removes what an earlier check left (leftovers.py)
           ─ LiveCheck.look: one step after another, each writes what it saw into `Evidence`
           ─ removes what it made, also when a step failed or the check was cancelled
           ─ `judge` says which assumptions hold
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tipoff_orchestrator_client.base import OrchestratorError, OrchestratorUnavailable
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_orchestrator_client.edgegap.api.answers import parse_page
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.api.errors import Gone, NoRoom, RateLimited, Rejected
from tipoff_orchestrator_client.edgegap.api.http import Http
from tipoff_orchestrator_client.edgegap.api.rates import LIST, STATUS, Rate
from tipoff_orchestrator_client.edgegap.environment import Variable
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_orchestrator_client.edgegap.setup.account import AccountApi
from tipoff_orchestrator_client.edgegap.setup.app_version import objects
from tipoff_orchestrator_client.edgegap.setup.live.evidence import (
    Burst,
    Call,
    Evidence,
    Hit,
    PageSeen,
    ScratchVersion,
    SessionSeen,
    StoppedSeen,
)
from tipoff_orchestrator_client.edgegap.setup.live.judge import (
    ASSUMPTIONS,
    KNOWN_WITHIN,
    MAX_TAG,
    OUR_LONGEST_TAG,
    PAGE,
    WINDOW,
    Conclusion,
    judge,
)
from tipoff_orchestrator_client.edgegap.setup.live.leftovers import (
    MARK,
    Removal,
    players_on,
    remove_marked,
    sessions_of,
)
from tipoff_orchestrator_client.edgegap.setup.live.listener import Listener, Say, listening
from tipoff_shared.errors import TipoffError
from tipoff_shared.games import EdgegapSpec, Game
from tipoff_shared.primitives.waiting import gather_then_raise
from tipoff_shared.settings import NatsSettings

_UNLIMITED = 10_000.0
"""Calls a second of a burst, which is to meet Edgegap's limit, not ours."""
_NEVER = "0123456789ab"
"""An id that no deployment has."""
_ADDRESS = "8.8.8.8"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take, in seconds. `poll`: between two looks; `known`, `session`, `forgotten`: until a
    deployment is known, a session is ready or gone, and a stopped deployment is unknown; `clean_up`: for the removal,
    after the time of the check itself; `late`: until an order whose answer was lost shows in the list; `told`: between
    two words to the user while it waits; `burst`: between a burst and the call that must be taken again."""

    poll: float = 0.5
    known: float = KNOWN_WITHIN + 2.0
    session: float = 30.0
    forgotten: float = 60.0
    clean_up: float = 60.0
    late: float = 10.0
    told: float = 5.0
    burst: float = WINDOW + 0.1


@dataclass(slots=True)
class Report:
    """What a live check came to; filled while it runs, so that an interrupted one can be reported, too. `before`: what
    an earlier one had left; `after`: what this one made. `failure`: why there was no deployment to look at, or ""."""

    before: Removal = field(default_factory=Removal)
    after: Removal = field(default_factory=Removal)
    conclusions: list[Conclusion] = field(default_factory=list)
    failure: str = ""

    @property
    def left(self) -> list[str]:
        """What is still at Edgegap and may cost money."""
        return list(dict.fromkeys(self.after.left))


async def live_check(
    settings: Settings,
    nats: NatsSettings,
    game: Game,
    report: Report,
    *,
    timeout: float,
    say: Say,
    pace: Pace | None = None,
) -> None:
    """Check the assumptions with one deployment of `game`, which must have [game.edgegap]; `report` is the result.

    Takes at most `timeout` seconds and `pace.clean_up` for each of two removals. Cancelling is safe: what was made is
    removed first; cancelling again stops that, and the next check removes the rest. Raises `ConfigError` for settings
    without a token; what Edgegap does wrong is in the report.
    """
    assert game.edgegap is not None
    pace = pace or Pace()
    token = settings.api_token()
    async with (
        EdgegapClient(settings.url, token, timeout=settings.timeout) as client,
        AccountApi(settings.url, token) as account,
        Http(settings.url, token, timeout=settings.timeout) as http,
        listening(settings, nats, leases=game.orchestrator == SESSIONS, say=say) as listener,
    ):
        say("looking for what an earlier check has left")
        await _remove(report.before, client, account, game.edgegap.application, (), pace)
        for what in report.before.removed:
            say(f"removed what an earlier check had left: {what}")
        check = LiveCheck(client, account, http, listener, game, game.edgegap, pace, say)
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                await check.look()
        except TimeoutError:
            if not deadline.expired():
                raise
            check.not_seen(f"the {timeout:g} s of the check were over")
        finally:
            say("removing what the check has made")
            await _clean_up(report, check, client, account, game.edgegap.application, pace)
            report.after.removed[:0] = check.removed
            report.failure = check.failure
            report.conclusions = judge(check.seen)


async def _clean_up(
    report: Report, check: LiveCheck, client: EdgegapClient, account: AccountApi, application: str, pace: Pace
) -> None:
    await _remove(report.after, client, account, application, check.made, pace)
    if check.unknown_outcomes:
        # An order whose answer was lost may be carried out late.
        check.say("an order's answer was lost: looking once more for what it made")
        await asyncio.sleep(pace.late)
        again = Removal()
        await _remove(again, client, account, application, (), pace)
        report.after.removed += [what for what in again.removed if what not in report.after.removed]
        report.after.left += again.left


async def _remove(
    into: Removal,
    client: EdgegapClient,
    account: AccountApi,
    application: str,
    made: Iterable[str],
    pace: Pace,
) -> None:
    """Fill `into`; after `pace.clean_up` seconds, or when it is cancelled, it says that something may be left."""
    unsure = (
        f"the removal was not finished: whatever carries the mark {MARK} is removed by the next live check"
    )
    into.left.append(unsure)
    try:
        async with asyncio.timeout(pace.clean_up):
            done = await remove_marked(client, account, application, made, first_pause=pace.poll)
    except TimeoutError:
        return
    into.left.remove(unsure)
    into.removed += done.removed
    into.left += done.left


class LiveCheck:
    """One check: `look` fills `seen`. `made`: request ids of its deployments."""

    def __init__(
        self,
        client: EdgegapClient,
        account: AccountApi,
        http: Http,
        listener: Listener,
        game: Game,
        spec: EdgegapSpec,
        pace: Pace,
        say: Say,
    ) -> None:
        self.seen = Evidence(hooks=listener.seen)
        self.made: list[str] = []
        self.removed: list[str] = []
        """What a step has removed."""
        self.failure = ""
        self.unknown_outcomes = 0
        """Requests that may have made something although no answer says so."""
        self.say = say
        self._client = client
        self._account = account
        self._http = http
        self._listener = listener
        self._game = game
        self._app, self._version, self._env = spec.application, spec.version, dict(spec.env)
        self._pace = pace
        self._shown: Mapping[str, Any] = {}
        self._session_id = ""

    def not_seen(self, why: str, *steps: str) -> None:
        """Note why `steps` (none: all that have no reason yet) could not be seen; the first reason stays."""
        for step in steps or ASSUMPTIONS:
            self.seen.unseen.setdefault(step, why)

    async def look(self) -> None:
        """Every step; one that fails leaves out what depends on it."""
        if self._listener.deaf:
            self.not_seen(self._listener.deaf, "session-webhooks")
        await self._step("asking for an id that does not exist", self._ask_unknown(), "unknown-id")
        await self._step(
            f"creating the version {MARK}, and ordering it while it is inactive",
            self._try_version(),
            *("version-members", "inactive-version"),
        )
        await self._step("ordering one deployment", self._order(), "tag-length")
        if not self.seen.request_id:
            self.failure = f"no deployment could be made: {self._last_order()}"
            self.not_seen(self.failure)
            return
        ordered = _now()
        await self._step("waiting until its status is known", self._wait_known(ordered), "new-known")
        await self._step(
            "creating a session on it", self._create_session(), "sessions-v1", "session-webhooks"
        )
        await self._step("reading pages of the list", self._read_pages(), "page-size")
        await self._step("meeting the rate limits", self._meet_limits(), "rate-limits")
        await self._step("waiting until it is ready", self._wait_ready(), "sessions-v1", "context-tls")
        await self._step("looking at the server's own address", self._look_at_address(), "context-tls")
        await self._step(
            "waiting for the session, then deleting it",
            self._end_session(),
            "sessions-v1",
            "session-webhooks",
        )
        await self._step(
            "stopping the deployment, and asking for it afterwards",
            self._stop(),
            *("stopped-known", "stopped-forgotten"),
        )

    async def _step(self, what: str, work: Awaitable[None], *steps: str) -> None:
        self.say(what)
        try:
            await work
        except (OrchestratorError, TipoffError) as exc:
            self.not_seen(f"{what}: {exc}", *steps)

    # What needs no deployment.

    async def _ask_unknown(self) -> None:
        rate = Rate("probe", _UNLIMITED)
        path = f"/v1/status/{_NEVER}"
        self.seen.unknown_id = await _try(self._http.call("GET", path, rate=rate, longest_wait=1.0))

    async def _try_version(self) -> None:
        shown = await self._account.version(self._app, self._version)
        if shown is None:
            raise Gone(f"application {self._app} has no version {self._version}")
        self._shown = shown
        body: dict[str, Any] = {
            "name": MARK,
            "is_active": False,
            "req_cpu": 256,
            "req_memory": 512,
            **{name: shown.get(name) for name in ("docker_repository", "docker_image", "docker_tag")},
        }
        more = {
            "arguments": f"--{MARK}",
            "session_config": {"kind": "Seat", "sockets": 1, "autodeploy": False, "empty_ttl": 1},
        }
        full = await _try(self._account.create_version(self._app, body | more))
        plain = (
            await _try(self._account.create_version(self._app, body))
            if not full.ok and full.refused
            else None
        )
        visible = await self._account.version(self._app, MARK) if full.ok else None
        self.seen.scratch = ScratchVersion(full, plain, visible)
        if not self.seen.scratch.exists:
            self.not_seen(f"no inactive version could be created: {plain or full}", "inactive-version")
            return
        self.seen.order_of_inactive = await self._try_order(MARK)
        self.seen.order_of_unknown = await self._try_order(f"{MARK}-none")
        for request_id in self.made:  # wrongly accepted: a plan may allow one deployment at a time
            await self._client.stop(request_id)

    # The deployment.

    async def _order(self) -> None:
        """The order with the longest tag that Edgegap takes is the check's deployment."""
        for size in (MAX_TAG + 1, MAX_TAG, OUR_LONGEST_TAG):
            before = len(self.made)
            call = self.seen.orders[size] = await self._try_order(self._version, size)
            if call.ok:
                self.seen.request_id = self.made[before]
            if not call.refused:
                return

    def _last_order(self) -> str:
        return str(list(self.seen.orders.values())[-1]) if self.seen.orders else "nothing was ordered"

    async def _try_order(self, version: str, tag: int = OUR_LONGEST_TAG) -> Call:
        self.unknown_outcomes += 1
        try:
            request_id = await self._client.create(
                self._app,
                version,
                near=(_ADDRESS,),
                environment=self._environment(),
                tags=(MARK, f"{MARK}-".ljust(tag, "x")),
            )
        except NoRoom as exc:
            if exc.request_id:
                self.made.append(exc.request_id)  # it exists, in error
            self.unknown_outcomes -= 1
            return Call(exc)
        except OrchestratorError as exc:
            self.unknown_outcomes -= not exc.may_have_started
            return Call(exc)
        self.made.append(request_id)
        self.unknown_outcomes -= 1
        return Call()

    def _environment(self) -> list[Variable]:
        """Where Edgegap itself counts seats, its servers have their environment from the version, and so has this one:
        players whom Edgegap puts there can play. Else the server joins nothing, and no player comes to it: its key is
        random, and where NATS should be is nothing."""
        if self._game.orchestrator == SESSIONS:
            return []
        values = {
            name: value for name, value in self._env.items() if not name.startswith(("NATS_", "TIPOFF_"))
        }
        values |= {
            "TIPOFF_DEPLOYMENT_ID": MARK,
            "TIPOFF_GAME": self._game.name,
            "TIPOFF_VERSION": self._game.version,
            "NATS_HOST": "127.0.0.1:1",
            "NATS_INSECURE": "1",
        }
        key = secrets.token_hex(32)
        return [(name, value, False) for name, value in values.items()] + [("TIPOFF_PRIVATE_KEY", key, True)]

    async def _wait_known(self, ordered: float) -> None:
        async def known() -> bool:
            self.seen.unknown_for = _now() - ordered
            if await self._client.status(self.seen.request_id) is None:
                return False
            self.seen.known_after = _now() - ordered
            return True

        await self._until(known, self._pace.known)

    async def _wait_ready(self) -> None:
        """Also looks at the session meanwhile: one that waits for its server has two webhooks."""

        async def ready() -> bool:
            await self._look_at_session()
            return await self._runs() or bool(self.seen.ended)

        await self._until(ready, None)
        if self.seen.ended:
            return
        if self.seen.session is not None and self.seen.session.created.refused:
            await self._create_session()  # perhaps only a deployment that is ready takes sessions

    async def _runs(self) -> bool:
        """Whether the deployment runs now; notes its end."""
        server = await self._client.status(self.seen.request_id)
        if server is None and self.seen.known_after is not None:
            self._ended("Edgegap no longer knows it")
        elif server is not None and server.ended:
            self._ended(server.reason or "ended")
        return server is not None and server.running

    def _ended(self, why: str) -> None:
        self.seen.ended = self.seen.ended or why
        self.not_seen(f"the deployment ended by itself: {self.seen.ended}")

    async def _meet_limits(self) -> None:
        status = f"/v1/status/{self.seen.request_id}"
        self.seen.bursts.append(await self._burst("status", STATUS, status))
        one = {"page": 1, "limit": 1}
        self.seen.bursts.append(await self._burst("list", LIST, "/v1/deployments", one))

    async def _burst(
        self, what: str, rate: float, path: str, query: Mapping[str, int] | None = None
    ) -> Burst:
        unlimited = Rate(what, _UNLIMITED)

        async def call(turns: Rate) -> Hit:
            sent, limited = _now(), False
            try:
                await self._http.call("GET", path, query=query, rate=turns, longest_wait=1.0)
            except RateLimited:
                limited = True
            except (Gone, Rejected):
                pass  # an answer, too: the deployment may not be known yet
            return Hit(sent, _now(), limited)

        hits = tuple(await gather_then_raise(*(call(unlimited) for _ in range(int(rate * 1.25) + 2))))
        last = max(hit.answered for hit in hits)
        await asyncio.sleep(self._pace.burst)
        later = await call(Rate(what, _UNLIMITED))
        if later.limited:
            await asyncio.sleep(self._pace.burst)  # the next step is to find its calls taken again
        return Burst(what, int(rate), hits, later.sent - last, later.limited)

    async def _read_pages(self) -> None:
        self.seen.page = await self._page(PAGE)
        if self.seen.page.total > PAGE:
            self.seen.large_page = await self._page(2 * PAGE)

    async def _page(self, asked: int) -> PageSeen:
        rate = Rate("list", LIST)
        try:
            answer = await self._http.call(
                "GET", "/v1/deployments", query={"page": 1, "limit": asked}, rate=rate, longest_wait=3.0
            )
        except OrchestratorError as exc:
            return PageSeen(asked, Call(exc))
        rows = len(parse_page(answer, seen=0).rows)
        total = answer.get("total_count")
        return PageSeen(asked, Call(), rows, total if isinstance(total, int) else rows)

    async def _look_at_address(self) -> None:
        """The server reads its context, which only it can, and announces the name in it."""
        if self.seen.ended:
            return None
        if not any(port.get("tls_upgrade") is True for port in objects(self._shown.get("ports"))):
            return self.not_seen("no port of the version has tls_upgrade", "context-tls")
        if self._game.orchestrator != SESSIONS:
            return self.not_seen(
                "only a server reads its context, and this check's joins no NATS; take a game of edgegap-sessions",
                "context-tls",
            )
        if self._listener.no_nats:
            return self.not_seen(self._listener.no_nats, "context-tls")

        async def announced() -> bool:
            self.seen.announced_url = await self._listener.announced_url(self.seen.request_id)
            return self.seen.announced_url is not None

        await self._until(announced, self._pace.session)
        return self.not_seen("the server announced itself nowhere in this NATS", "context-tls")

    # The session.

    async def _create_session(self) -> None:
        config = self._shown.get("session_config")
        kind = str(config.get("kind", "")).lower() if isinstance(config, dict) else ""
        if self._game.orchestrator != SESSIONS and kind in ("", "default"):
            return self.not_seen(
                f"version {self._version} of {self._app} does not use sessions; take a game of edgegap-sessions",
                *("sessions-v1", "session-webhooks"),
            )
        self.unknown_outcomes += 1
        try:
            self._session_id = await self._client.create_session(
                self._app,
                self._version,
                addresses=(_ADDRESS,),
                deployment_request_id=self.seen.request_id,
                webhook_url=self._listener.url,
            )
        except OrchestratorError as exc:
            self.unknown_outcomes -= not exc.may_have_started
            self.seen.session = SessionSeen(Call(exc))
            return self.not_seen(f"the session could not be created: {exc}", "session-webhooks")
        self.unknown_outcomes -= 1
        self.seen.session = SessionSeen(Call())
        return await self._look_at_session()

    async def _look_at_session(self) -> None:
        seen = self.seen.session
        if seen is None or not self._session_id:
            return
        session = await self._client.session(self._session_id)
        if session is None:
            return
        seen.linked_to = session.request_id or seen.linked_to
        seen.failed = session.failed
        if seen.linked_to and seen.linked_to not in (self.seen.request_id, *self.made):
            self.made.append(seen.linked_to)  # which Edgegap started for it
        if session.request_id and not session.ready:
            seen.waited = True
        server = session.server
        seen.usable = (
            session.ready and server is not None and bool((server.ip or server.fqdn) and server.ports)
        )

    async def _end_session(self) -> None:
        seen = self.seen.session
        if seen is None or not self._session_id:
            return

        async def settled() -> bool:
            await self._look_at_session()
            return seen.usable or bool(seen.failed)

        await self._until(settled, self._pace.session)
        if not seen.usable:
            await self._runs()
            self.not_seen(f"the session was not ready within {self._pace.session:g} s", "sessions-v1")
        if seen.usable and self._listener.seen.proved:

            async def told() -> bool:
                return any(is_ready for _, is_ready in self._listener.seen.states)

            await self._until(told, self._pace.session)
        seen.deleted = await _try(self._client.delete_session(self._session_id))
        if not seen.deleted.ok:
            self.not_seen(f"the session could not be deleted: {seen.deleted}", "sessions-v1")
            return
        self.removed.append(f"session {self._session_id}")

        async def gone() -> bool:
            seen.gone = await self._client.session(self._session_id) is None
            return seen.gone

        await self._until(gone, self._pace.session)
        server = await self._client.status(self.seen.request_id)
        seen.deployment_runs = server is not None and not server.ended

    # The end.

    async def _stop(self) -> None:
        if count := players_on(self.seen.request_id, await sessions_of(self._client)):
            self.not_seen(
                f"Edgegap has put {count} session(s) of players on it: it is not stopped",
                *("stopped-known", "stopped-forgotten"),
            )
            return
        if not await self._runs() and self.seen.ended:
            return
        await self._client.stop(self.seen.request_id)
        stopped = _now()

        async def forgotten() -> bool:
            known = await self._client.status(self.seen.request_id) is not None
            self.seen.stopped.append(StoppedSeen(_now() - stopped, known))
            return not known

        await self._until(forgotten, self._pace.forgotten)

    async def _until(self, probe: Callable[[], Awaitable[bool]], seconds: float | None) -> None:
        """Probe again and again until it holds, at most `seconds` (None: as long as the check). A call that Edgegap
        does not answer properly is made again."""
        began = told = _now()
        while True:
            try:
                if await probe():
                    return
            except OrchestratorUnavailable as exc:
                self.say(f"  {exc}")
            now = _now()
            if seconds is not None and now - began >= seconds:
                return
            if now - told >= self._pace.told:
                told = now
                self.say(f"  ... {now - began:.0f} s")
            await asyncio.sleep(self._pace.poll)


async def _try(work: Awaitable[object]) -> Call:
    try:
        await work
    except OrchestratorError as exc:
        return Call(exc)
    return Call()


def _now() -> float:
    return asyncio.get_running_loop().time()
