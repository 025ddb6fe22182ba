"""Serves what operators and load balancers ask: `/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tipoff_matchmaker_httpd.metrics import CONTENT_TYPE
from tipoff_matchmaker_httpd.state import HttpdState
from tipoff_shared.admission.client_address import scope_address, within
from tipoff_shared.errors import NotAllowed, Unavailable
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.subjects import SERVICE_ERROR


def health_routes(state: HttpdState, checks: SingleFlight[str, list[str]]) -> APIRouter:
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
        description="200 when NATS is connected and takes writes, and a matchmaker answers within a second; else "
        "503, and `missing` names what is missing.",
        responses={503: {"description": "Something is missing"}},
    )
    async def readyz() -> Response:
        missing = await checks.run("readyz", lambda: missing_to_serve(state))
        return JSONResponse({"ready": not missing, "missing": missing}, status_code=503 if missing else 200)

    @router.get(
        "/metrics", summary="Prometheus metrics", description="For the networks that the operator allows."
    )
    async def metrics(http: Request) -> Response:
        peer = scope_address(http.scope, state.addresses)
        if not peer.is_unspecified and not within(peer, state.settings.metrics_networks):
            raise NotAllowed("metrics are for the networks in TIPOFF_HTTPD_METRICS_NETWORKS")
        return Response(state.metrics.render(), media_type=CONTENT_TYPE)

    return router


async def missing_to_serve(state: HttpdState) -> list[str]:
    """What is missing to serve players, for people; empty when nothing is."""
    if state.draining.is_set():
        return ["httpd: it is stopping"]
    bus = state.bus
    if not bus.connected:
        return ["nats: not connected" + (f" ({bus.last_error})" if bus.last_error else "")]
    try:
        answer = await bus.request(bus.subjects.ping_matchmaker, b"", timeout=1)
    except Unavailable as exc:
        return [f"matchmaker: {exc.message}"]
    missing = []
    if problem := (answer.headers or {}).get(SERVICE_ERROR):
        missing.append(f"matchmaker: {problem}")
    if problem := bus.writes.problem(time.monotonic()):  # of the turn relay
        missing.append(f"httpd: {problem}")
    return missing
