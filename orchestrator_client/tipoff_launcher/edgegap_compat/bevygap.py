"""What a server with bevygap's plugin cannot do without, beside the ARBITRIUM_* variables (arbitrium.py). Pure but for
the one file that it cannot read itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tipoff_orchestrator_client.base import NotConfigured
from tipoff_shared.games import Game, Games

PRIVATE_KEY = "LIGHTYEAR_PRIVATE_KEY"


def games_without_namespace(games: Games, namespace: str) -> list[Game]:
    """Those whose servers would speak on subjects that nobody of ours listens to."""
    return [game for game in games.all() if namespace and game.bevygap and game.ready == "context"]


def for_bevygap(environment: Mapping[str, str], key: bytes) -> dict[str, str]:
    """The variables with those changes that its plugin and lightyear's examples need. Raises `NotConfigured`.

    It takes one NATS server (others of a cluster tell it of themselves), ends without a user and a password even
    where NATS asks for none, reads the password from no file, and lightyear reads its key in decimal.
    """
    changed = dict(environment)
    changed["NATS_HOST"] = environment.get("NATS_HOST", "").split(",")[0]
    changed.setdefault("NATS_USER", "gameserver")
    if (path := changed.pop("NATS_PASSWORD_FILE", "")) and "NATS_PASSWORD" not in changed:
        try:
            changed["NATS_PASSWORD"] = Path(path).read_text().strip()
        except OSError as exc:
            raise NotConfigured(f"NATS_PASSWORD_FILE={path}: {exc.strerror}") from exc
    changed.setdefault("NATS_PASSWORD", "")
    changed.setdefault(PRIVATE_KEY, ",".join(map(str, key)))
    return changed
