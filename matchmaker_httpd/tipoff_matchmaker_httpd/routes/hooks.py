"""Serves `POST /hook/{name}.{token}`: Edgegap, which starts servers for us, calls it when something has changed.

The caller does not sign what it sends, so nothing of it is believed: the URL must hold the right token, the body is
passed on unchanged (4 KB at most), and a listener of `webhook.{name}` takes it as "look now".
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from tipoff_matchmaker_httpd.state import HttpdState
from tipoff_shared.admission.client_address import scope_address
from tipoff_shared.admission.limits import RateLimit, address_key
from tipoff_shared.errors import Malformed, SlowDown
from tipoff_shared.hooks import HookKey
from tipoff_shared.primitives.token_bucket import TokenBuckets

PREFIX = "/hook/"
_PER_NAME = 2.0
_NAME_BURST = 20.0
"""A deployment has about three webhooks in its life; more is a mistake of the caller's."""


def webhook_routes(state: HttpdState, key: HookKey | None) -> APIRouter:
    """The route of all webhooks. Without a `key` every one gets 404."""
    router = APIRouter()
    per_second = state.settings.hooks_per_second
    addresses = RateLimit(per_second, 2 * per_second)
    names = TokenBuckets[str](_PER_NAME, _NAME_BURST)

    @router.post(PREFIX + "{path_name}", include_in_schema=False)
    async def hook(path_name: str, http: Request) -> Response:
        now = time.monotonic()
        if wait := addresses.take(address_key(scope_address(http.scope, state.addresses)), now):
            raise SlowDown("too many webhooks from your address", retry_after=max(1.0, wait))
        name = key.check(path_name) if key is not None else None
        if name is None:
            raise HTTPException(404, "there is no such webhook")
        if wait := names.take(name, now):
            raise SlowDown("too many calls of this webhook", retry_after=max(1.0, wait))
        try:
            body = await http.body()
        except ClientDisconnect:
            raise Malformed("the caller disconnected before its body was read") from None
        await state.bus.publish(state.bus.subjects.webhook(name), body)
        return Response(status_code=204)

    return router
