"""`GET /internal/gs/{deployment_id}`: the question of the reverse proxy that stands before the game servers.

204 with `X-Tipoff-Upstream: host:port` for a live deployment of ours with a WebSocket listener, else 404. Caddy asks by
`forward_auth`, nginx by `auth_request` (deploy/ has both), and connects the player to that address itself.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tipoff_matchmaker_httpd.routes.gs_upstreams import Upstreams
from tipoff_matchmaker_httpd.state import Httpd, header
from tipoff_shared.admission.client_address import parse_address, within
from tipoff_shared.errors import NotAllowed
from tipoff_shared.names import DEPLOYMENT_ID

UPSTREAM_HEADER = "X-Tipoff-Upstream"


def gs_routes(httpd: Httpd, upstreams: Upstreams) -> APIRouter:
    router = APIRouter()

    @router.head("/internal/gs/{deployment_id}", include_in_schema=False)
    @router.get("/internal/gs/{deployment_id}", include_in_schema=False)
    async def gs(deployment_id: str, http: Request) -> Response:
        headers = http.scope["headers"]
        _check_peer(httpd, http)
        if header(headers, UPSTREAM_HEADER.lower().encode()) is not None:
            raise NotAllowed(f"{UPSTREAM_HEADER} is the answer's: the proxy must strip it from requests")
        secure = http.scope["scheme"] == "https"
        if not httpd.origins.allows(header(headers, b"origin"), header(headers, b"host"), secure):
            raise NotAllowed(
                "pages of this origin may not play here; TIPOFF_HTTPD_ORIGINS lists those that may"
            )
        if not DEPLOYMENT_ID.fullmatch(deployment_id):
            raise HTTPException(404, "there is no such game server")
        upstream = await upstreams.find(deployment_id)
        if upstream is None:
            raise HTTPException(404, "there is no such game server")
        answer = Response(status_code=204, headers={UPSTREAM_HEADER: upstream, "Cache-Control": "no-store"})
        if header(headers, b"upgrade") is not None:
            answer.headers["Connection"] = (
                "close"  # the parser reads nothing after a head that asks for another protocol
            )
        return answer

    return router


def _check_peer(httpd: Httpd, http: Request) -> None:
    """The proxy itself must ask, from a network of the operator's: players have no business with addresses in here."""
    if http.client is None:  # a Unix socket
        return
    peer = parse_address(http.client.host)
    if peer is None or not within(peer, httpd.settings.internal_networks):
        raise NotAllowed(
            "this is for the reverse proxy, in one of the networks in TIPOFF_HTTPD_INTERNAL_NETWORKS"
        )
