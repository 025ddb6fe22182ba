"""`POST /hook/{name}.{token}`: somebody who starts servers for us (Edgegap) calls to say that something has changed.

The caller does not sign what it sends, so all of it is hearsay: the address must hold the right token, the body is of
at most 4 KB and is passed on as it is, and whoever hears `webhook.{name}` takes it as "look now".
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from tipoff_matchmaker_httpd.state import Httpd
from tipoff_shared.admission.client_address import scope_address
from tipoff_shared.admission.limits import RateLimit, address_key
from tipoff_shared.errors import Malformed, SlowDown
from tipoff_shared.hooks import HookKey

PREFIX = "/hook/"
_PER_NAME = 2.0
_NAME_BURST = 20.0
"""A deployment is told of three times in its life; the rest is somebody's mistake."""


def webhook_routes(httpd: Httpd, key: HookKey | None) -> APIRouter:
    """`key` None: nobody is expected to call, and nobody is let in."""
    router = APIRouter()
    per_second = httpd.settings.hooks_per_second
    addresses = RateLimit(per_second, 2 * per_second)
    names = RateLimit(_PER_NAME, _NAME_BURST)

    @router.post(PREFIX + "{path_name}", include_in_schema=False)
    async def hook(path_name: str, http: Request) -> Response:
        now = time.monotonic()
        peer = scope_address(http.scope, httpd.addresses)
        if wait := addresses.take(address_key(peer), now):
            raise SlowDown("too many webhooks from your address", retry_after=max(1.0, wait))
        name = key.check(path_name) if key is not None else None
        if name is None:
            raise HTTPException(404, "there is no such webhook")
        if wait := names.take(name, now):
            raise SlowDown("too many calls of this webhook", retry_after=max(1.0, wait))
        try:
            body = await http.body()
        except ClientDisconnect:
            raise Malformed("the caller has gone before its body was read") from None
        bus = httpd.bus
        await bus.publish(bus.subjects.webhook(name), body)
        return Response(status_code=204)

    return router
