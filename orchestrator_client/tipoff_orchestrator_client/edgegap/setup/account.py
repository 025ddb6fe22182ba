"""Reads and writes an account's applications and versions, for `tipoff edgegap`. The matchmaker only reads them."""

from __future__ import annotations

from types import TracebackType
from urllib.parse import quote

from tipoff_orchestrator_client.edgegap.api.answers import Json
from tipoff_orchestrator_client.edgegap.api.errors import Gone
from tipoff_orchestrator_client.edgegap.api.http import Http
from tipoff_orchestrator_client.edgegap.api.rates import LOOK_UP, Rate
from tipoff_shared.secret import Secret

_PATIENCE = 10.0
"""Seconds that a call may wait for its turn."""
# One transparent pixel: an application must have a picture.
_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


class AccountApi:
    """One account at the API at `url`. Every call raises `OrchestratorError` only. `timeout`: seconds for one call."""

    def __init__(self, url: str, token: Secret, *, timeout: float = 15.0) -> None:
        self._http = Http(url, token, timeout=timeout)
        self._rate = Rate("look-up", LOOK_UP, 1.0)

    async def __aenter__(self) -> AccountApi:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def application(self, name: str) -> Json | None:
        """The application as Edgegap shows it; None for an unknown one."""
        return await self._find(_app(name))

    async def create_application(self, name: str) -> None:
        """Create an active application."""
        await self._write("POST", "/v1/app", {"name": name, "is_active": True, "image": _PICTURE})

    async def version(self, application: str, name: str) -> Json | None:
        """The version as Edgegap shows it, its secrets masked; None for an unknown one."""
        return await self._find(f"{_app(application)}/version/{quote(name, safe='')}")

    async def create_version(self, application: str, body: Json) -> None:
        """Create the version that `body` describes."""
        await self._write("POST", f"{_app(application)}/version", body)

    async def change_version(self, application: str, name: str, body: Json) -> None:
        """Change the members in `body`; lists are replaced whole."""
        await self._write("PATCH", f"{_app(application)}/version/{quote(name, safe='')}", body)

    async def delete_version(self, application: str, name: str) -> None:
        """Delete the version; one that is gone already is a success. Edgegap refuses while deployments of it run."""
        path = f"{_app(application)}/version/{quote(name, safe='')}"
        try:
            await self._http.call("DELETE", path, rate=self._rate, longest_wait=_PATIENCE)
        except Gone:
            return

    async def deployments_total(self) -> int:
        """How many deployments the account has now."""
        answer = await self._http.call(
            "GET", "/v1/deployments", query={"page": 1, "limit": 1}, rate=self._rate, longest_wait=_PATIENCE
        )
        total = answer.get("total_count")
        return total if isinstance(total, int) else 0

    async def _find(self, path: str) -> Json | None:
        try:
            return await self._http.call("GET", path, rate=self._rate, longest_wait=_PATIENCE)
        except Gone:
            return None

    async def _write(self, method: str, path: str, body: Json) -> None:
        await self._http.call(
            method, path, body=body, rate=self._rate, longest_wait=_PATIENCE, repeatable=False
        )


def _app(name: str) -> str:
    return f"/v1/app/{quote(name, safe='')}"
