"""Says whether this system can give players seats, as all matchmakers together know it.

Each matchmaker tells the others in its heartbeats what it knows: only the one that reconciles asks the orchestrators,
and each knows only the servers that it has started itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from tipoff_matchmaker.fleet.planner import Planner
from tipoff_matchmaker.orchestrators.resilient import ResilientOrchestrator
from tipoff_matchmaker.peers import Peers
from tipoff_shared.ban_follower import BanFollower
from tipoff_shared.games import SomeGames
from tipoff_shared.games_follower import GamesFollower
from tipoff_shared.health_report import NOTHING, Report, decode_report, encode_report
from tipoff_shared.kv.write_probe import WriteProbe


class ServiceHealth:
    """What one matchmaker knows. `games`: those whose servers its orchestrators run, of `all_games`."""

    def __init__(
        self,
        write_probe: WriteProbe,
        orchestrators: Mapping[str, ResilientOrchestrator],
        planner: Planner,
        games: SomeGames,
        all_games: SomeGames,
        peers: Peers,
        bans: BanFollower,
        published: GamesFollower,
    ) -> None:
        self._write_probe = write_probe
        self._orchestrators = orchestrators
        self._planner = planner
        self._games = games
        self._all_games = all_games
        self._peers = peers
        self._bans = bans
        self._published = published

    def own(self) -> Report:
        """What this matchmaker knows itself."""
        writes = self._write_probe.problem
        down = {name: said for name, one in self._orchestrators.items() if (said := one.outage())}
        full = {
            name: said
            for name, one in self._orchestrators.items()
            if (said := "; ".join(one.problems) or one.starts_nothing())
        }
        crashing = {
            game.key: said for game in self._games.all() if (said := self._planner.crashing(game.key))
        }
        orchestrators = [f"orchestrator {name}: {said}" for name, said in down.items()]
        games = [f"game {name} {version}: {said}" for (name, version), said in crashing.items()]
        blocking = [writes] if writes else []
        degraded: list[str] = []
        for found, of_how_many in ((orchestrators, len(self._orchestrators)), (games, len(self._all_games))):
            (blocking if found and len(found) == of_how_many else degraded).extend(found)
        degraded += [f"orchestrator {name} starts no servers: {said}" for name, said in full.items()]
        if lost := self._bans.problem:
            degraded.append(lost)
        degraded += self._published.problems
        return Report(tuple(blocking), tuple(degraded)).shortened()

    def beat(self) -> bytes:
        """What the heartbeat says: nothing while nothing is wrong."""
        own = self.own()
        return b"" if own == NOTHING else encode_report(own)

    def report(self) -> Report:
        """What all matchmakers know that are alive."""
        reports = [self.own(), *map(decode_report, self._peers.said())]
        blocking = dict.fromkeys(text for report in reports for text in report.blocking)
        degraded = dict.fromkeys(text for report in reports for text in report.degraded)
        return Report(tuple(blocking), tuple(text for text in degraded if text not in blocking))
