"""What an engine means that would not create or start a container. Pure."""

from __future__ import annotations

from tipoff_launcher.backends.docker.engine import Refused
from tipoff_launcher.backends.interface import PortInUse
from tipoff_orchestrator_client.base import NotConfigured, OrchestratorError, OrchestratorUnavailable
from tipoff_shared.games import DockerSpec

_PORT_TAKEN = ("port is already allocated", "address already in use", "ports are not available")
_CANNOT_RUN = (
    "executable file not found",
    "no such file or directory",
    "permission denied",
    "exec format error",
)


def why_not(exc: Refused, spec: DockerSpec) -> OrchestratorError:
    """What `exc` means for the start of a container as `spec` wants it."""
    words = str(exc).lower()
    if any(text in words for text in _PORT_TAKEN):
        return PortInUse(str(exc), retryable=True)
    if exc.status == 404 and "no such image" in words:
        return OrchestratorUnavailable(f"image {spec.image!r} is gone again: {exc}", retryable=True)
    if "runtime" in words and any(text in words for text in _CANNOT_RUN):
        return NotConfigured(f"image {spec.image!r} cannot run its command: {exc}")
    if exc.status < 500 and exc.status != 409:
        return NotConfigured(str(exc))
    return OrchestratorUnavailable(str(exc), retryable=True)
