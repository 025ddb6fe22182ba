"""Describes what players want and what they get: an `AllocationRequest` is answered with `Seats`."""

from __future__ import annotations

from dataclasses import dataclass

from tipoff_matchmaker.seats.unclaimed import share_address
from tipoff_shared.games import GameKey
from tipoff_shared.records import DeploymentRecord


@dataclass(frozen=True, slots=True)
class AllocationRequest:
    """Seats wanted for `members` (session ids) together on one server. `client_ips`, `regions`: where they are."""

    id: str
    members: tuple[str, ...]
    game: str
    version: str
    client_ips: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()

    @property
    def key(self) -> GameKey:
        """The game and version they want to play."""
        return (self.game, self.version)

    @property
    def address(self) -> str:
        """The address whose share they take part in; "" when they stand for themselves."""
        return share_address(self.client_ips[0]) if self.client_ips else ""


@dataclass(frozen=True, slots=True)
class Seats:
    """One seat for each member, written down on `deployment`. It counts until `until` (Unix seconds) without a
    session record. `shared`: a member sat there already, so the seat may be another matchmaker's too."""

    members: tuple[str, ...]
    deployment: DeploymentRecord
    until: float
    shared: bool = False
