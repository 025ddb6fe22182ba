"""Makes the JSON that Edgegap answers with, its oddities included. Pure.

The oddities are documented or were seen: `Status.READY` beside `READY` and `STATUS_READY`; times without a zone; ports
and address absent or empty until ready; a list whose items say `ready` where the status says `running`, and carry no
status at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tipoff_edgegap_emulator.deployment import Deployment, Phase

LOCATION: dict[str, Any] = {
    "city": "Montreal",
    "country": "Canada",
    "continent": "North America",
    "administrative_division": "Quebec",
    "timezone": "Eastern Time",
    "latitude": 45.508888,
    "longitude": -73.561668,
}

_SPELLINGS = ("Status.{}", "{}", "STATUS_{}")


def stamp(at: float) -> str:
    """A Unix time as Edgegap writes it: `2026-04-22 12:00:46.444265`, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def spell(phase: Phase, request_id: str) -> str:
    """The phase in one of Edgegap's three spellings; which one depends on the deployment."""
    return _SPELLINGS[int(request_id, 16) % len(_SPELLINGS)].format(phase.value)


def fqdn(one: Deployment) -> str:
    """The deployment's host name at Edgegap."""
    return f"{one.request_id}.pr.edgegap.net"


def ports_document(one: Deployment) -> dict[str, Any]:
    """The deployment's ports, by name."""
    return {
        port.name: {
            "external": port.external,
            "internal": port.internal,
            "protocol": port.protocol,
            "tls_upgrade": port.tls_upgrade,
            "name": port.name,
            "link": f"{fqdn(one)}:{port.external}",
        }
        for port in one.ports.values()
    }


def status_document(one: Deployment, max_duration: int, now: float) -> dict[str, Any]:
    """`GET /v1/status/{request_id}`, and the body of a deployment's webhooks."""
    ready = one.phase is Phase.READY
    document: dict[str, Any] = {
        "request_id": one.request_id,
        "fqdn": fqdn(one),
        "app_name": one.key[0],
        "app_version": one.key[1],
        "current_status": spell(one.phase_at(now), one.request_id),
        "running": ready,
        "whitelisting_active": False,
        "start_time": stamp(one.ready_at or one.created_at),
        "removal_time": stamp(one.ended_at) if one.phase is Phase.TERMINATED else None,
        "elapsed_time": int(now - one.ready_at) if one.ready_at else 0,
        "last_status": spell(Phase.DEPLOYING, one.request_id) if ready else None,
        "error": one.phase is Phase.ERROR,
        "error_detail": one.error_detail or None,
        "ports": ports_document(one) if one.ports else None,
        "public_ip": one.public_ip,
        "sessions": [],
        "location": LOCATION,
        "tags": one.tags,
        "sockets": one.sockets or None,
        "sockets_usage": None,
        "command": "",
        "arguments": "",
        "max_duration": max_duration,
    }
    return document


def list_document(found: Sequence[Deployment], page: int, limit: int) -> dict[str, Any]:
    """`GET /v1/deployments`: one page."""
    shown = found[(page - 1) * limit : page * limit]
    data = [
        {
            "request_id": one.request_id,
            "fqdn": fqdn(one),
            "start_time": stamp(one.ready_at or one.created_at),
            "ready": one.phase is Phase.READY,
            "public_ip": one.public_ip,
            "ports": ports_document(one) if one.ports else None,
            "tags": one.tags,
            "sockets": str(one.sockets) if one.sockets else None,
            "sockets_usage": "0" if one.sockets else None,
            "is_joinable_by_session": not one.over,
        }
        for one in shown
    ]
    return page_document(data, len(found), page, limit)


def page_document(data: list[Any], total: int, page: int, limit: int) -> dict[str, Any]:
    """One page of a list of `total` items."""
    pages = max(1, math.ceil(total / limit))
    return {
        "data": data,
        "message": [],
        "total_count": total,
        "pagination": {
            "number": page,
            "next_page_number": page + 1 if page < pages else None,
            "previous_page_number": page - 1 if page > 1 else None,
            "paginator": {"num_pages": pages},
            "has_next": page < pages,
            "has_previous": page > 1,
        },
    }


SET_AND_ENCRYPTED = "This value is set and encrypted"
"""Edgegap shows this in place of a secret."""


def masked(version: Mapping[str, Any]) -> dict[str, Any]:
    """A version as Edgegap shows it: without its secrets."""
    shown = dict(version)
    shown["envs"] = [
        {**env, "value": SET_AND_ENCRYPTED} if env.get("is_secret") else env for env in version["envs"]
    ]
    if version.get("private_token"):
        shown["private_token"] = SET_AND_ENCRYPTED
    return shown


def context_document(one: Deployment, now: float) -> dict[str, Any]:
    """The answer of ARBITRIUM_CONTEXT_URL to the game server. bevygap's server expects a number in `sockets`."""
    return {
        "request_id": one.request_id,
        "public_ip": one.public_ip,
        "status": spell(one.phase_at(now), one.request_id),
        "ready": one.phase is Phase.READY,
        "whitelisting_active": False,
        "fqdn": fqdn(one),
        "ports": ports_document(one),
        "location": LOCATION,
        "tags": one.tags,
        "sockets": one.sockets,
        "sockets_usage": 0,
        "is_joinable_by_session": True,
    }


def arbitrium(one: Deployment, base_url: str) -> dict[str, str]:
    """The environment variables that Edgegap adds to a deployment's server."""
    mapping = {
        name: {"name": name, "internal": port.internal, "external": port.external, "protocol": port.protocol}
        for name, port in one.ports.items()
    }
    return {
        "ARBITRIUM_REQUEST_ID": one.request_id,
        "ARBITRIUM_PUBLIC_IP": one.public_ip,
        "ARBITRIUM_PORTS_MAPPING": json.dumps({"ports": mapping}),
        "ARBITRIUM_DEPLOYMENT_LOCATION": json.dumps(LOCATION),
        "ARBITRIUM_DELETE_URL": f"{base_url}/v1/self/stop/{one.request_id}/660",
        "ARBITRIUM_DELETE_TOKEN": one.delete_token,
        "ARBITRIUM_CONTEXT_URL": f"{base_url}/v1/context/{one.request_id}/660",
        "ARBITRIUM_CONTEXT_TOKEN": one.context_token,
    }
