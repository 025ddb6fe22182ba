"""Edgegap's API as typed calls. Facts: https://docs.edgegap.com/api (v2 deployments, v1 status, lists and sessions)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from tipoff_orchestrator_client.edgegap.api.answers import (
    Json,
    Server,
    Session,
    Version,
    identifier,
    is_id,
    parse_page,
    parse_server,
    parse_session,
    parse_version,
)
from tipoff_orchestrator_client.edgegap.api.errors import Gone, Rejected, Unreachable, Unreadable
from tipoff_orchestrator_client.edgegap.api.http import Http
from tipoff_orchestrator_client.edgegap.api.rates import CREATE, LIST, LOOK_UP, STATUS, STOP, Rate
from tipoff_shared.secret import Secret

PAGE = 100
MAX_PAGES = 100
_LOOK_UPS = 60.0
"""Seconds: at start all games are looked up at once, and nobody waits for that yet."""
MAX_USERS = 10
"""Players' addresses that one request names: a server's place is decided by some, and bodies stay small."""


class EdgegapClient:
    """One per process: its rate limits are shared by all who use it. Every call raises `OrchestratorError` only, and
    may be cancelled. `share`: the part of the account's limits that is this process's."""

    def __init__(
        self,
        url: str,
        token: Secret,
        *,
        timeout: float = 8.0,
        share: float = 1.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = Http(url, token, timeout=timeout, transport=transport)
        self._timeout = timeout
        self._creates = Rate("create", CREATE, share)
        self._statuses = Rate("status", STATUS, share)
        self._lists = Rate("list", LIST, share)
        self._stops = Rate("stop", STOP, share)
        self._look_ups = Rate("look-up", LOOK_UP, share)

    def __repr__(self) -> str:
        return "EdgegapClient(...)"

    async def __aenter__(self) -> EdgegapClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.close()

    @property
    def status_is_free(self) -> bool:
        """Whether a status could be asked for right now, without waiting for others."""
        return self._statuses.free()

    # Deployments.

    async def create(
        self,
        application: str,
        version: str,
        *,
        near: Iterable[str],
        environment: Iterable[tuple[str, str, bool]],
        tags: Iterable[str],
        webhook_url: str = "",
        longest_wait: float = 12.0,
    ) -> str:
        """Order a deployment: its request id. Not idempotent at Edgegap: after an error with `may_have_started` it
        may come to be all the same. `environment`: (name, value, hidden)."""
        body: Json = {
            "application": application,
            "version": version,
            "users": [
                {"user_type": "ip_address", "user_data": {"ip_address": address}}
                for address in list(near)[:MAX_USERS]
            ],
            "environment_variables": [
                {"key": name, "value": value, "is_hidden": hidden} for name, value, hidden in environment
            ],
            "tags": list(tags),
        }
        if webhook_url:
            for occasion in ("ready", "error", "terminated"):
                body[f"webhook_on_{occasion}"] = {"url": webhook_url}
        return identifier(await self._create("/v2/deployments", body, longest_wait), "request_id")

    async def status(self, request_id: str, *, longest_wait: float = 3.0) -> Server | None:
        """None when there is no such deployment."""
        answer = await self._look(f"/v1/status/{_path_id(request_id)}", longest_wait)
        if answer is None:
            return None
        server = parse_server(answer, strict=True)
        if server.request_id != request_id:
            raise Unreadable(f"Edgegap's status of {request_id} is about {server.request_id}")
        return server

    async def stop(self, request_id: str, *, longest_wait: float = 8.0) -> None:
        """Returns when Edgegap has taken it; already gone is success."""
        await self._remove(f"/v1/stop/{_path_id(request_id)}", longest_wait, partial(self.status, request_id))

    async def deployments(self) -> list[Server]:
        """Every deployment of the account, each once. One whose address cannot be used has a `problem`."""
        found: dict[str, Server] = {}
        for row in await self._all("/v1/deployments"):
            server = parse_server(row, strict=False)
            found[server.request_id] = server
        return list(found.values())

    # Applications.

    async def application(self, application: str) -> Json:
        """As it is; raises `Gone` when there is none."""
        return await self._http.call(
            "GET", f"/v1/app/{quote(application, safe='')}", rate=self._look_ups, longest_wait=_LOOK_UPS
        )

    async def version(self, application: str, version: str) -> Version:
        """Raises `Gone` when there is no such version."""
        path = f"/v1/app/{quote(application, safe='')}/version/{quote(version, safe='')}"
        return parse_version(
            await self._http.call("GET", path, rate=self._look_ups, longest_wait=_LOOK_UPS), version
        )

    # Sessions (v1).

    async def create_session(
        self,
        application: str,
        version: str,
        *,
        addresses: Iterable[str],
        deployment_request_id: str = "",
        webhook_url: str = "",
        longest_wait: float = 12.0,
    ) -> str:
        """A session for players at these addresses: its id. Neither idempotent nor tagged: what becomes of it after
        an `Unreachable` with `sent` is not known."""
        body: Json = {
            "app_name": application,
            "version_name": version,
            "ip_list": list(addresses),
        }
        if deployment_request_id:
            body["deployment_request_id"] = deployment_request_id
        if webhook_url:
            body["webhook_url"] = webhook_url
        return identifier(await self._create("/v1/session", body, longest_wait), "session_id")

    async def session(self, session_id: str, *, longest_wait: float = 10.0) -> Session | None:
        """None when there is no such session (any more)."""
        answer = await self._look(f"/v1/session/{_path_id(session_id)}", longest_wait)
        if answer is None:
            return None
        session = parse_session(answer)
        if session.ready and not session.request_id:
            raise Unreadable(f"Edgegap's session {session_id} is ready and has no deployment")
        if session.session_id != session_id:
            raise Unreadable(f"Edgegap's session {session_id} is about {session.session_id}")
        return session

    async def delete_session(self, session_id: str, *, longest_wait: float = 8.0) -> None:
        """Already gone is success. Its deployment goes on."""
        path = f"/v1/session/{_path_id(session_id)}"
        await self._remove(path, longest_wait, partial(self.session, session_id))

    async def sessions(self) -> list[Session]:
        """Every session of the account, each once; it may lack what the session's own page tells. Of one that cannot be
        read (anybody's: the list is the account's) it is only said that it is there, as `ready` without a place."""
        found: dict[str, Session] = {}
        for row in await self._all("/v1/sessions"):
            try:
                session = parse_session(row)
            except Unreadable:
                try:
                    session = Session(identifier(row, "session_id"), ready=True)
                except Unreadable:
                    continue  # none of ours: those have an id that can be read
            found[session.session_id] = session
        return list(found.values())

    # What deployments and sessions share.

    async def _create(self, path: str, body: Json, longest_wait: float) -> Json:
        return await self._http.call(
            "POST",
            path,
            body=body,
            rate=self._creates,
            longest_wait=longest_wait,
            repeatable=False,
            timeout=self._timeout * 1.5,
        )

    async def _look(self, path: str, longest_wait: float) -> Json | None:
        """None when there is nothing: 404 and 410; the live API says 400."""
        try:
            return await self._http.call("GET", path, rate=self._statuses, longest_wait=longest_wait)
        except Gone:
            return None
        except Rejected as exc:
            if exc.status != 400:
                raise
            return None

    async def _remove(self, path: str, longest_wait: float, look: Callable[[], Awaitable[object]]) -> None:
        try:
            await self._http.call("DELETE", path, rate=self._stops, longest_wait=longest_wait)
        except Gone:
            return
        except Rejected as exc:
            # As when one looks, it may say 400 where there is nothing (any more); so look.
            if exc.status != 400 or await look() is not None:
                raise

    async def _all(self, path: str) -> list[Mapping[str, Any]]:
        """The rows of all pages. Never a part of them: what cannot be read to its end is an error."""
        rows: list[Mapping[str, Any]] = []
        for number in range(1, MAX_PAGES + 1):
            answer = await self._http.call(
                "GET", path, query={"page": number, "limit": PAGE}, rate=self._lists, longest_wait=3.0
            )
            page = parse_page(answer, seen=len(rows))
            rows += page.rows
            if not page.more:
                return rows
        raise Unreachable(f"Edgegap's list has over {MAX_PAGES} pages", sent=False)


def _path_id(value: str) -> str:
    if not is_id(value):
        raise Rejected(f"{value[:40]!r} is no id of Edgegap's", status=400)
    return value
