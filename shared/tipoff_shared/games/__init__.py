"""games.toml: which games and versions there are, how their servers are started, how many may run.

    [[game]]
    name = "arena"
    version = "1"
    seats = 16                # players one server takes
    min_ready = 1             # servers kept ready without a player
    max_deployments = 4
    empty_ttl = 30            # seconds an empty server lives beyond min_ready

    [game.process]            # how the launcher's process back end starts one
    command = ["python", "-m", "tipoff_arena.server"]

    [game.docker]             # how its docker back end starts one
    image = "tipoff/gameserver"

    [game.edgegap]            # what Edgegap starts (orchestrator = "edgegap" or "edgegap-sessions")
    application = "arena"
    version = "1.0.3"

Everything else has a default; see `Game` (model.py). toml.py reads the file, limits.py says what is allowed.
current.py holds the games that there are now, which change when an operator publishes a revision (revision.py).
"""

from tipoff_shared.games.current import Games, GamesChange, SomeGames
from tipoff_shared.games.model import DockerPort, DockerSpec, EdgegapSpec, Game, GameKey, ProcessSpec

__all__ = [
    "DockerPort",
    "DockerSpec",
    "EdgegapSpec",
    "Game",
    "GameKey",
    "Games",
    "GamesChange",
    "ProcessSpec",
    "SomeGames",
]
