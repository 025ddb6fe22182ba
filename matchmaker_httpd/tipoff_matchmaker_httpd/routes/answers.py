"""HTTP answers for typed errors."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from tipoff_shared.errors import TipoffError
from tipoff_shared.messages import Failed, encode_feedback


def error_response(error: TipoffError) -> Response:
    """`{"Error": [code, reason]}` with the code as the status, and Retry-After where it is known."""
    return failed_response(error.code, error.message, retry_headers(error))


def failed_response(code: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """The same for a status that only HTTP knows, like 405."""
    body = encode_feedback(Failed(code, message))
    return Response(body, status_code=code, media_type="application/json", headers=headers)


def retry_headers(error: TipoffError) -> dict[str, str]:
    return {"Retry-After": str(max(1, round(error.retry_after)))} if error.retry_after else {}
