"""Logging for every service, to standard error: key=value for people, JSON for machines.

`TIPOFF_LOG=json` or `text` (default: text on a terminal and off it), `TIPOFF_LOG_LEVEL` (INFO).
The SDKs only use `logging.getLogger`; a service calls `configure()` once.
"""

from __future__ import annotations

import logging
import os
import sys


def configure(service: str, *, level: str | None = None, style: str | None = None) -> None:
    """Set up structlog and the standard library's logging alike. Needs structlog (every service role has it)."""
    import structlog

    style = style or os.environ.get("TIPOFF_LOG", "text")
    level = (level or os.environ.get("TIPOFF_LOG_LEVEL", "INFO")).upper()
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.types.Processor
    if style == "json":
        renderer = structlog.processors.JSONRenderer()
    elif sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        renderer = structlog.dev.ConsoleRenderer(colors=True)
    else:
        renderer = structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "logger", "event"], bool_as_flag=False
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "httpcore", "websockets", "nats"):
        logging.getLogger(noisy).setLevel(max(logging.getLevelName(level), logging.WARNING))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    logging.getLogger("tipoff").debug("logging as %s", service)
