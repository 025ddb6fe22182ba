"""Calls Edgegap's API: v2 deployments, v1 status, lists and sessions. Facts: https://docs.edgegap.com/api."""

from __future__ import annotations

import ipaddress
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
"""Items of a page of a list (A: page-size)."""
MAX_PAGES = 100
_LOOK_UPS = 60.0
"""Seconds that a look-up may wait for its turn: at the start all games are looked up at once."""
MAX_USERS = 10
"""Players' addresses in one request: a few decide a server's place, and bodies stay small."""


class EdgegapClient:
    """One client for each process and account, because it keeps to Edgegap's rate limits; `share` is this process's
    part of them. Every call raises `OrchestratorError` only. Cancelling a call is safe.

    `timeout`: seconds for one call. `longest_wait`: seconds that a call waits for its turn, beyond which it raises
    `Busy`.
    """

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
        """Close the connections. Idempotent."""
        await self._http.close()

    @property
    def status_is_free(self) -> bool:
        """Whether a status call would go out now, without waiting for its turn."""
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
        """Create a deployment; its request id. Not idempotent: after an error with `may_have_started` the deployment
        may appear all the same. `environment`: (name, value, hidden)."""
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
        """The state of a deployment; None for an unknown one."""
        answer = await self._look(f"/v1/status/{_path_id(request_id)}", longest_wait)
        if answer is None:
            return None
        server = parse_server(answer, strict=True)
        if server.request_id != request_id:
            raise Unreadable(f"Edgegap's status of {request_id} is about {server.request_id}")
        return server

    async def stop(self, request_id: str, *, longest_wait: float = 8.0) -> None:
        """Stop a deployment. Returns when Edgegap has accepted the request; one that is gone already is a success."""
        await self._remove(f"/v1/stop/{_path_id(request_id)}", longest_wait, partial(self.status, request_id))

    async def deployments(self) -> list[Server]:
        """Every deployment of the account, once. One with an unusable address has a `problem`."""
        found: dict[str, Server] = {}
        for row in await self._all("/v1/deployments"):
            server = parse_server(row, strict=False)
            found[server.request_id] = server
        return list(found.values())

    # Applications.

    async def application(self, application: str) -> Json:
        """The application as Edgegap shows it. Raises `Gone` for an unknown one."""
        return await self._http.call(
            "GET", f"/v1/app/{quote(application, safe='')}", rate=self._look_ups, longest_wait=_LOOK_UPS
        )

    async def version(self, application: str, version: str) -> Version:
        """A version of an application. Raises `Gone` for an unknown one."""
        path = f"/v1/app/{quote(application, safe='')}/version/{quote(version, safe='')}"
        return parse_version(
            await self._http.call("GET", path, rate=self._look_ups, longest_wait=_LOOK_UPS), version
        )

    # Sessions (A: sessions-v1).

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
        """Create a session for players at these addresses; its id. Neither idempotent nor tagged: after an error with
        `may_have_started` it may exist, and cannot be found."""
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
        """The state of a session; None for an unknown or deleted one."""
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
        """Delete a session; its deployment goes on. One that is gone already is a success."""
        path = f"/v1/session/{_path_id(session_id)}"
        await self._remove(path, longest_wait, partial(self.session, session_id))

    async def sessions(self) -> list[Session]:
        """Every session of the account, once; members that only `session` returns may be missing. A session that cannot
        be parsed (the list also holds other projects' sessions) is returned as `ready` without a deployment."""
        found: dict[str, Session] = {}
        for row in await self._all("/v1/sessions"):
            try:
                session = parse_session(row)
            except Unreadable:
                try:
                    session = Session(identifier(row, "session_id"), ready=True)
                except Unreadable:
                    continue  # not ours: our sessions have ids that can be parsed
            found[session.session_id] = session
        return list(found.values())

    # Common to deployments and sessions.

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
        """None for an unknown id: 404 and 410, or 400 as the live API answers (A: unknown-id)."""
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
            # Edgegap may answer 400 for an unknown id, as `_look` knows.
            if exc.status != 400 or await look() is not None:
                raise

    async def _all(self, path: str) -> list[Mapping[str, Any]]:
        """The rows of all pages. A list that cannot be read to its end is an error, never a part of it."""
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


def public_addresses(near: Iterable[str], default: Iterable[str]) -> list[str]:
    """The public IP addresses among `near`, each once, in order; without any, `default`.

    Names of regions are left out: Edgegap places a v2 deployment only by addresses.
    """
    found: dict[str, None] = {}
    for text in near:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        if address.is_global and not address.is_multicast:
            found[str(address)] = None
    return list(found) or list(dict.fromkeys(default))


def _path_id(value: str) -> str:
    if not is_id(value):
        raise Rejected(f"{value[:40]!r} is no id of Edgegap's", status=400)
    return value
