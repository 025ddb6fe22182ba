"""Says, purely, which published games this matchmaker can serve."""

from __future__ import annotations

from collections.abc import Collection

from tipoff_matchmaker.isolated import rules
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client import edgegap
from tipoff_shared.games import Game


class Playable:
    """What this matchmaker has for games: its profile, and the `orchestrators` that it opened at its start."""

    def __init__(self, settings: Settings, orchestrators: Collection[str]) -> None:
        self._isolated = settings.profile == "isolated"
        self._orchestrators = orchestrators

    def complaint(self, game: Game) -> str:
        """Why no server of the game could be had here, for the operator; "" when one can."""
        if game.orchestrator not in self._orchestrators:
            known = ", ".join(self._orchestrators)
            return (
                f"its orchestrator {game.orchestrator!r} is not open here, but {known}; start this matchmaker again "
                "with a games.toml that has a game of that orchestrator"
            )
        if game.orchestrator in edgegap.NAMES and game.edgegap is None:
            return "the games.toml of this matchmaker has no [game.edgegap] with its application and version"
        return rules.complaint_about(game) if self._isolated else ""
