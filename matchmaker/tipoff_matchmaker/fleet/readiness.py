"""Makes servers ready: what their leases, their orchestrators or their contexts say is written into their records.

A server's addresses are looked up before its record becomes ready, so that no player waits for DNS. A server that was
restarted loses the sessions of its boot before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.readiness import ReadyServer, from_lease, from_orchestrator
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.errors import NoRecord
from tipoff_matchmaker.fleet.stop import Stopper
from tipoff_matchmaker.fleet.trust import Trust
from tipoff_matchmaker.sessions.server_gone import SessionEnder
from tipoff_matchmaker.tokens import Tokens
from tipoff_orchestrator_client.base import Deployment, RunState
from tipoff_shared.errors import OrchestratorFailed
from tipoff_shared.games import Games
from tipoff_shared.primitives.text import one_line
from tipoff_shared.records import DeploymentRecord, DeploymentState, GameserverLease, LeaseState

log = logging.getLogger(__name__)


class Readiness:
    """Called by everything that hears of a server which serves."""

    def __init__(
        self,
        games: Games,
        deployments: DeploymentStore,
        tokens: Tokens,
        trust: Trust,
        ender: SessionEnder,
        stopper: Stopper,
        clock: Callable[[], float],
    ) -> None:
        self._games = games
        self._deployments = deployments
        self._tokens = tokens
        self._trust = trust
        self._ender = ender
        self._stopper = stopper
        self._clock = clock
        deployments.subscribe_states(self._state_changed)

    async def lease_seen(self, lease: GameserverLease) -> None:
        """Make the record follow a current lease. Raises `Unavailable`."""
        deployment_id = lease.deployment_id
        record = self._deployments.get(deployment_id) or await self._deployments.fetch(deployment_id)
        if record is None or not state_machine.is_live(record):
            return
        if (record.game, record.version) != (lease.game, lease.version):
            log.warning(
                "server %s says it is %s %s, and was started as %s %s; it gets no players",
                deployment_id,
                lease.game,
                lease.version,
                record.game,
                record.version,
            )
            return
        if lease.state is LeaseState.ENDED:
            self._trust.remove(deployment_id)
            self._stopper.stop(deployment_id, one_line(lease.reason) or "the match is over")
        elif not await self._serves(record, from_lease(lease, self._has_own_key(record, lease))):
            return
        elif lease.state is LeaseState.DRAINING:
            await self._stopper.drain(
                deployment_id, one_line(lease.reason) or "the server no longer admits players"
            )
        else:
            self._trust.add(deployment_id)

    def _has_own_key(self, record: DeploymentRecord, lease: GameserverLease) -> bool | None:
        """Whether the server has its own netcode key, or its game's; None when its lease does not say."""
        game = self._games.get(record.game, record.version)
        if game is None or not lease.key:
            return None
        for own_key in (True, False):
            if self._tokens.key(game, record.id, own_key=own_key).fingerprint == lease.key:
                return own_key
        log.warning(
            "server %s has another netcode key (%s) than %s %s has here: it will refuse its players; give the "
            "orchestrator and the matchmakers the same key",
            record.id,
            lease.key,
            game.name,
            game.version,
        )
        return None

    async def runs(self, deployment: Deployment, cert_digest: str = "") -> None:
        """Make a server ready because it runs and its orchestrator says where. One that has ended is stopped: what said
        that it is ready came late. Raises `Unavailable`."""
        record = self._deployments.get(deployment.deployment_id)
        if record is not None and deployment.state is RunState.STOPPED:
            self._stopper.stop(record.id, one_line(deployment.reason) or "it has ended")
        elif record is not None and await self._serves(record, from_orchestrator(deployment, cert_digest)):
            self._trust.add(record.id)

    async def _serves(self, before: DeploymentRecord, server: ReadyServer) -> bool:
        """Write it into the record; returns whether the server can be used."""
        now = self._clock()
        game = self._games.get(before.game, before.version)
        if game is not None:
            try:
                await self._tokens.endpoint(game, state_machine.ready(before, server, now))
            except OrchestratorFailed as exc:
                log.warning("server %s cannot be used: %s", before.id, exc)
                self._stopper.stop(before.id, str(exc))
                return False
        try:
            now = self._clock()  # a name may have taken long to resolve
            await self._deployments.change(before.id, lambda record: state_machine.ready(record, server, now))
        except NoRecord:
            pass  # its sessions end all the same
        if before.boot_id and server.boot_id != before.boot_id:
            log.warning("server %s was restarted; the sessions of its earlier boot end", before.id)
            await self._ender.end_sessions(before, "the server was restarted", living_boot=server.boot_id)
        return True

    def _state_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        if after.state is DeploymentState.GONE:
            self._tokens.forget(after.id)
