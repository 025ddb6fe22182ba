"""WebSocket by way of a reverse proxy: the URL that players are told, pure.

A page on https may open `wss` alone, and game servers come and go, so they have no certificates: one proxy in front of
them has one, and finds each by its deployment id (it asks httpd, see gs.py there). `base` is the setting
`gs_proxy_url`; "" means that no such proxy stands there.
"""

from __future__ import annotations

import re

import msgspec

from tipoff_shared.messages import Transports, WebSocketAddress
from tipoff_shared.records import DeploymentRecord

BASE = re.compile(r"(wss?://[a-zA-Z0-9.-]{1,253}(:[0-9]{1,5})?/([a-zA-Z0-9._-]+/)*)?", re.ASCII)


def websocket_url(base: str, deployment_id: str) -> str:
    """What browsers dial for this deployment; "" without a proxy."""
    return f"{base}{deployment_id}" if base else ""


def transports_told(base: str, deployment: DeploymentRecord) -> Transports:
    """What a player of this deployment is told: its own transports, but its WebSocket listener by way of the proxy
    where its orchestrator says how the proxy reaches it. A server elsewhere (Edgegap) is dialled directly."""
    transports = deployment.transports
    if not base or not deployment.proxy or transports.websocket is None:
        return transports
    return msgspec.structs.replace(transports, websocket=WebSocketAddress(websocket_url(base, deployment.id)))
