"""Serves `/docs`: the API as one HTML page without scripts or other hosts, made from the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
code, pre { font-family: ui-monospace, monospace; background: #f3f3f3; border-radius: 4px; padding: .1em .3em }
h2 { margin-top: 2.2rem; font-size: 1.1rem } h2 b { color: #0a6 } table { border-collapse: collapse }
td { padding: .15rem .8rem .15rem 0; vertical-align: top } .quiet { color: #666 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } code, pre { background: #2a2a2a } }
"""


def docs_routes(openapi: Callable[[], dict[str, Any]]) -> APIRouter:
    """The route of the page. `openapi` returns the document."""
    router = APIRouter()

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(openapi()))

    return router


def docs_page(api: dict[str, Any]) -> str:
    """The page for `api`, an OpenAPI 3 document; everything in it is escaped."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>{escape(api['info']['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{escape(api['info']['title'])}</h1>",
        *(f"<p>{_text(paragraph)}</p>" for paragraph in api["info"]["description"].strip().split("\n\n")),
        "<p>The same for programs: <a href=openapi.json>openapi.json</a></p>",
        "<h2><b>GET</b> <code>/matchmaker/ws</code> (WebSocket)</h2>",
        "<p>Send within 10 s:</p><pre>{&quot;game&quot;: &quot;arena&quot;, &quot;version&quot;: &quot;1&quot;}</pre>",
    ]
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            parts.extend(_operation(path, method, operation))
    return "\n".join(parts)


def _operation(path: str, method: str, operation: dict[str, Any]) -> list[str]:
    parts = [
        f"<h2><b>{escape(method.upper())}</b> <code>{escape(path)}</code></h2>",
        f"<p>{_text(operation.get('summary', ''))}</p>",
    ]
    if description := operation.get("description"):
        parts.append(f"<p class=quiet>{_text(description)}</p>")
    rows = [
        f"<tr><td><code>{escape(parameter['name'])}</code><td>{escape(parameter['in'])}"
        f"{', required' if parameter.get('required') else ''}"
        for parameter in operation.get("parameters", [])
    ]
    rows += [
        f"<tr><td><code>{escape(code)}</code><td>{_text(response.get('description', ''))}"
        for code, response in operation.get("responses", {}).items()
    ]
    return [*parts, "<table>", *rows, "</table>"]


def _text(text: str) -> str:
    """`text` escaped; what stands between back quotes becomes code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
