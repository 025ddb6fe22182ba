"""Limits how many deployments of a game may exist: `fleets[game.version]` lists the reservations.

Compare-and-set keeps any number of matchmakers together within `max_deployments`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from tipoff_shared.games import Game
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.names import key_token
from tipoff_shared.records import FleetRecord


def fleet_key(game: str, version: str) -> str:
    """The bucket's key. The version may hold dots; they are escaped, so the only dot is the separator."""
    return f"{key_token(game)}.{key_token(version)}"


class FleetLimit:
    """The reservations of all games. A deployment is planned only after its reservation, and the reservation ends only
    after the deployment has."""

    def __init__(self, store: Bucket[FleetRecord]) -> None:
        self._store = store

    async def read(self, game: str, version: str) -> FleetRecord:
        """The current reservations. Raises `Unavailable`."""
        entry = await self._store.get(fleet_key(game, version))
        return FleetRecord(game, version) if entry is None else entry.value

    async def add(
        self, game: Game, deployment_ids: list[str], seen: Iterable[str], now: float
    ) -> tuple[list[str], FleetRecord]:
        """Reserve as many of `deployment_ids` as `max_deployments` allows; returns those reserved, and the record.

        `seen`: the reservations the caller knew when it planned. When there are others, nothing is reserved: another
        matchmaker has planned meanwhile, so the caller must plan again. `now`: Unix seconds. Raises `Unavailable`.
        """
        seen = set(seen)

        def reserve(record: FleetRecord) -> FleetRecord:
            if not seen.issuperset(record.deployments):
                return record
            room = game.max_deployments - len(record.deployments)
            granted = deployment_ids[: max(0, room)]
            if not granted:
                return record
            return msgspec.structs.replace(
                record, deployments={**record.deployments, **dict.fromkeys(granted, now)}
            )

        record = await self._change(game.name, game.version, reserve)
        return [id for id in deployment_ids if id in record.deployments], record

    async def restore(self, game: str, version: str, deployment_id: str, at: float) -> None:
        """Write the reservation of a deployment that exists, whatever the limit; idempotent. Raises `Unavailable`."""

        def with_it(record: FleetRecord) -> FleetRecord:
            if deployment_id in record.deployments:
                return record
            return msgspec.structs.replace(record, deployments={**record.deployments, deployment_id: at})

        await self._change(game, version, with_it)

    async def remove(self, game: str, version: str, deployment_id: str) -> None:
        """End the reservation of a deployment that has ended; idempotent. Raises `Unavailable`."""

        def without(record: FleetRecord) -> FleetRecord:
            if deployment_id not in record.deployments:
                return record
            left = {id: at for id, at in record.deployments.items() if id != deployment_id}
            return msgspec.structs.replace(record, deployments=left)

        await self._change(game, version, without)

    async def begin_rollout(self, game: Game, unfinished: Callable[[float], bool], now: float) -> float:
        """Begin to replace the game's servers, or go on with a rollout that is `unfinished`; when it began. Raises
        `Unavailable`."""

        def begin(record: FleetRecord) -> FleetRecord:
            if record.rollout_at and unfinished(record.rollout_at):
                return record
            return msgspec.structs.replace(record, rollout_at=now)

        return (await self._change(game.name, game.version, begin)).rollout_at

    async def _change(
        self, game: str, version: str, change: Callable[[FleetRecord], FleetRecord]
    ) -> FleetRecord:
        empty = FleetRecord(game, version)

        def changed(record: FleetRecord | None) -> FleetRecord | None:
            before = empty if record is None else record
            after = change(before)
            return None if after is before else after

        what = f"the fleet of {game} {version}"
        entry = (await self._store.change(fleet_key(game, version), changed, what=what)).entry
        return empty if entry is None else entry.value
