"""Whether an orchestrator's answer can be used: it came from elsewhere, whatever its types say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tipoff_orchestrator_client.base import Deployment, OrchestratorUnavailable, Port

MAX_PORTS = 64
MAX_HOST = 255
MAX_REASON = 2000


def usable(deployment: Deployment, deployment_id: str) -> Deployment:
    """`deployment`, with a reason of bounded length. Raises `OrchestratorUnavailable` when it is not the one asked
    for, or its host or ports cannot be those of a server."""
    if deployment.deployment_id != deployment_id:
        raise _unusable(f"it is about {deployment.deployment_id[:80]!r}")
    if problem := _address_problem(deployment):
        raise _unusable(problem)
    return _short(deployment)


def usable_list(deployments: Iterable[Deployment]) -> list[Deployment]:
    """All of them: each runs, which is what a list is for. One whose address cannot be used loses the address."""
    return [
        _short(replace(deployment, host="", ports={}) if _address_problem(deployment) else deployment)
        for deployment in deployments
    ]


def _address_problem(deployment: Deployment) -> str:
    host = deployment.host
    if len(host) > MAX_HOST or not host.isprintable() or any(c.isspace() or c in "/@?#" for c in host):
        return "its host is no address and no name"
    if len(deployment.ports) > MAX_PORTS:
        return f"it has over {MAX_PORTS} ports"
    for name, port in deployment.ports.items():
        if not _is_port(port):
            return f"port {name[:40]!r} is {port.internal} inside, {port.external} outside; 1 to 65535 is possible"
    return ""


def _is_port(port: Port) -> bool:
    return 0 <= port.internal <= 65535 and 1 <= port.external <= 65535


def _short(deployment: Deployment) -> Deployment:
    if len(deployment.reason) <= MAX_REASON:
        return deployment
    return replace(deployment, reason=deployment.reason[: MAX_REASON - 1] + "…")


def _unusable(why: str) -> OrchestratorUnavailable:
    return OrchestratorUnavailable(f"the answer cannot be used: {why}", retryable=True, may_have_started=True)
