"""What the HTTP ways to a seat have in common: the request read, the call begun, a client that leaves noticed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from fastapi import Request

from tipoff_matchmaker_httpd.matchmaker.feedback import Call
from tipoff_matchmaker_httpd.routes.play_ws import parse_request
from tipoff_matchmaker_httpd.state import Httpd, traceparent
from tipoff_shared.admission.client_address import player_address, scope_address
from tipoff_shared.errors import Malformed
from tipoff_shared.messages import PlayRequest


async def read_request(http: Request, game: str, version: str, client_ip: str | None) -> PlayRequest:
    """The request in path, query and body; raises `Malformed`. The protocol bounds the body at 4 KB."""
    body = await http.body()
    members: dict[str, Any] = {}
    if body.strip():
        try:
            members = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            raise Malformed(f"the body is not a JSON object: {exc}") from exc
    members |= {"game": game, "version": version}
    if members.get("client_ip") is None:
        members["client_ip"] = client_ip
    try:
        return parse_request(json.dumps(members))
    except (RecursionError, ValueError) as exc:
        raise Malformed(f"the body cannot be read: {exc}") from exc


def begin_call(httpd: Httpd, http: Request, play: PlayRequest) -> tuple[Call, str]:
    """The call (not asked yet) and the place it takes; give back both. Raises typed errors."""
    address = scope_address(http.scope, httpd.addresses)
    resolved = player_address(address, play.client_ip, httpd.addresses)
    place = httpd.admit(address)
    try:
        return httpd.call(play, resolved, traceparent(http.scope["headers"])), place
    except BaseException:
        httpd.limits.leave(place)
        raise
