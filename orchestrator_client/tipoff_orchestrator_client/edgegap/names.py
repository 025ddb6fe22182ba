"""The names that games.toml uses: importing this costs nothing."""

from __future__ import annotations

ORCHESTRATOR = "edgegap"
SESSIONS = "edgegap-sessions"
NAMES = (ORCHESTRATOR, SESSIONS)
