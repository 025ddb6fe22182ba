"""How an operation is refused.

Refused                    an error status with a body
└── RefusedDeployment      422: the deployment exists all the same, in error
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tipoff_edgegap_emulator.deployment import Deployment, Effect


class Refused(Exception):
    """The request gets the answer `status`. `body` replaces the usual `{"message": ...}`."""

    def __init__(self, status: int, message: str, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = dict(body) if body is not None else {"message": message}


class RefusedDeployment(Refused):
    """No location took the deployment; `made` stays behind in error. The caller carries out `effects`."""

    def __init__(self, made: Deployment, effects: Sequence[Effect]) -> None:
        message = made.error_detail
        super().__init__(422, message, {"request_id": made.request_id, "message": message})
        self.effects = list(effects)
