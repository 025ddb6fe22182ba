"""Edgegap: game servers near the players, by our own deployments (`edgegap`) or by Edgegap's sessions.

The constants are the orchestrators' names in games.toml. Importing them loads nothing else.
"""

ORCHESTRATOR = "edgegap"
SESSIONS = "edgegap-sessions"
NAMES = (ORCHESTRATOR, SESSIONS)
