"""Makes the answers of all requests, also of repeated ones and of players who come back: a token for a written seat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tipoff_matchmaker.bucket_ages import BucketAges
from tipoff_matchmaker.deployments.state_machine import serves
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.mappings import Mappings
from tipoff_matchmaker.sessions.claim_limit import ClaimLimit
from tipoff_matchmaker.sessions.expected import ExpectedSeats
from tipoff_matchmaker.settings import Settings
from tipoff_matchmaker.tokens import Endpoint, Issued, Tokens
from tipoff_shared.errors import Conflict, Unavailable
from tipoff_shared.games import Game
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import DeploymentRecord, SessionRecord, SessionState


class Answers:
    """The tokens and answers of one matchmaker. `clock`: Unix seconds."""

    def __init__(
        self,
        ages: BucketAges,
        buckets: Buckets,
        deployments: DeploymentStore,
        claims: ClaimLimit,
        expected: ExpectedSeats,
        tokens: Tokens,
        mappings: Mappings,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._ages = ages
        self._buckets = buckets
        self._deployments = deployments
        self._claims = claims
        self._expected = expected
        self._tokens = tokens
        self._mappings = mappings
        self._claim_slack = settings.claim_slack
        self._clock = clock

    async def seat_of(self, game: Game, record: SessionRecord) -> tuple[DeploymentRecord, Endpoint]:
        """The server on which the session has its seat. Raises `Conflict` when that has ended."""
        deployment = self._deployments.get(record.deployment_id)
        if not _has_seat_on(deployment, record):
            # What we know may be older than the session's record, which another matchmaker wrote: read it.
            deployment = await self._deployments.fetch(record.deployment_id)
        if deployment is None and await self._ages.may_have_lost("deployments"):
            raise Unavailable("the record of this request's server is lost, and is being rebuilt")
        if deployment is None or not _has_seat_on(deployment, record):
            raise Conflict("the server of this request has ended; ask with a new request id")
        return deployment, await self._tokens.endpoint(game, deployment)

    def issue(
        self, game: Game, record: SessionRecord, deployment: DeploymentRecord, endpoint: Endpoint
    ) -> Issued:
        """A fresh token for the seat."""
        return self._tokens.issue(
            game,
            record,
            endpoint,
            own_key=deployment.own_key,
            now=self._clock(),
            slack=self._claim_slack,
            hold_factor=self._claims.hold_factor(record.client_ip, self._tokens.lifetime(game)),
        )

    def check_repetition(self, game: Game, record: SessionRecord, issued: Issued) -> None:
        """Raises `Conflict` when a further token would hold an unclaimed seat for more than twice the usual time:
        whoever asks for one for ever would keep the seat for ever."""
        if record.state is not SessionState.READY:
            return
        latest = record.created_at + game.request_timeout + 2 * self._tokens.hold(game)
        if issued.claim_deadline > latest + self._claim_slack:
            raise Conflict("you have not connected with this request's token; ask with a new request id")

    async def hand_out(self, game: Game, record: SessionRecord, issued: Issued) -> None:
        """Write what belongs to the record: the token, and for bevygap's servers the mappings they look up."""
        ttl = self._tokens.lifetime(game)
        put_token = self._buckets.connect_tokens.put(record.id, issued.text, ttl=ttl)
        if not game.bevygap:
            await put_token
            return
        await asyncio.gather(
            put_token,
            self._mappings.put(record.id, record.client_id, needed_for=ttl + game.token_timeout),
            self._buckets.unclaimed_sessions.put(record.id, record.id),
        )

    async def ready(
        self,
        game: Game,
        record: SessionRecord,
        deployment: DeploymentRecord,
        endpoint: Endpoint,
        issued: Issued,
    ) -> SessionReady:
        """The answer to the player. The server hears that a seat waits, unless it is one on which somebody plays."""
        if record.state is not SessionState.ACTIVE:
            await self._expected.tell(record, deployment, issued.claim_deadline)
        return self._tokens.ready(game, record, deployment, endpoint, issued)


def _has_seat_on(deployment: DeploymentRecord | None, record: SessionRecord) -> bool:
    """Whether the session's seat is on this deployment, in its current boot."""
    return (
        deployment is not None
        and serves(deployment)
        and (not record.boot_id or deployment.boot_id == record.boot_id)
    )
