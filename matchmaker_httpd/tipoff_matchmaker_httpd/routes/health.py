"""Serves what operators and load balancers ask: `/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tipoff_matchmaker_httpd.metrics import CONTENT_TYPE
from tipoff_matchmaker_httpd.state import HttpdState
from tipoff_shared.admission.client_address import scope_address, within
from tipoff_shared.errors import NotAllowed, Unavailable
from tipoff_shared.health_report import NOTHING, decode_report
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.subjects import HEALTH_HEADER


@dataclass(frozen=True, slots=True)
class Readiness:
    """Texts for people: what is missing to serve players, and what does not work though players are served."""

    missing: list[str] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)


def health_routes(state: HttpdState, checks: SingleFlight[str, Readiness]) -> APIRouter:
    """The routes. `checks` is theirs: callers at the same time share one readiness check."""
    router = APIRouter()

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", summary="Is the process alive?")
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @router.head("/readyz", include_in_schema=False)
    @router.get(
        "/readyz",
        summary="Can players be served?",
        description="200 when NATS is connected and takes writes, a matchmaker answers within a second, an "
        "orchestrator works and a game's servers stay up; else 503, and `missing` names what is missing. `degraded` "
        "names what does not work for some players: one of several orchestrators or games.",
        responses={503: {"description": "Something is missing"}},
    )
    async def readyz() -> Response:
        found = await checks.run("readyz", lambda: readiness(state))
        body = {"ready": not found.missing, "missing": found.missing}
        if found.degraded:
            body["degraded"] = found.degraded
        return JSONResponse(body, status_code=503 if found.missing else 200)

    @router.get(
        "/metrics", summary="Prometheus metrics", description="For the networks that the operator allows."
    )
    async def metrics(http: Request) -> Response:
        peer = scope_address(http.scope, state.addresses)
        if not peer.is_unspecified and not within(peer, state.settings.metrics_networks):
            raise NotAllowed("metrics are for the networks in TIPOFF_HTTPD_METRICS_NETWORKS")
        return Response(state.metrics.render(), media_type=CONTENT_TYPE)

    return router


async def readiness(state: HttpdState) -> Readiness:
    """Ask a matchmaker, which knows NATS's writes, the orchestrators and the games."""
    if state.draining.is_set():
        return Readiness(["httpd: it is stopping"])
    bus = state.bus
    if not bus.connected:
        return Readiness(["nats: not connected" + (f" ({bus.last_error})" if bus.last_error else "")])
    try:
        answer = await bus.request(bus.subjects.ping_matchmaker, b"", timeout=1)
    except Unavailable as exc:
        return Readiness([f"matchmaker: {exc.message}"])
    text = (answer.headers or {}).get(HEALTH_HEADER)
    report = decode_report(text) if text else NOTHING
    found = Readiness(list(report.blocking), list(report.degraded))
    if problem := bus.writes.problem(time.monotonic()):  # of the turn relay
        found.degraded.append(f"turn relay: {problem}")
    return found
