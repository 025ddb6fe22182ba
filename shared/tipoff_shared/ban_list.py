"""Decides, purely, who is banned: by address or network, by user, or by client id; until a time or for good.

    address   an IP address or a network (CIDR): the player's, as httpd, the matchmaker or the game server sees it
    user      the user id of a login at httpd, which the request, the session and the connect token carry
    client    the client id in the connect token: for tokens of programs that give each player one of its own. The
              matchmaker draws a new one for every session

Times are Unix seconds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_network

from tipoff_shared.admission.client_address import Network, parse_address
from tipoff_shared.errors import Malformed, NotAllowed
from tipoff_shared.records import Ban, BanKind

MAX_BANS = 10_000
"""Bans in force at one time."""
MAX_REASON = 200
_CLIENT = re.compile(r"0|[1-9][0-9]{0,19}", re.ASCII)
_MAX_USER = 200
_YEAR_9999 = 253_000_000_000.0


def new_ban(kind: str, subject: str, *, until: float = 0.0, reason: str = "", now: float = 0.0) -> Ban:
    """A ban in its normal form: a network without host bits, an IPv4 address also where it was written as IPv6. Raises
    `Malformed` naming the field and what is allowed. `until` 0: for good."""
    try:
        known = BanKind(kind)
    except ValueError:
        raise Malformed(f"kind: {', '.join(BanKind)} are allowed") from None
    if len(reason) > MAX_REASON or not reason.isprintable():
        raise Malformed(f"reason: one line of at most {MAX_REASON} characters is allowed")
    if not 0 <= until < _YEAR_9999:
        raise Malformed("until: Unix seconds, or 0 for good, are expected")
    return Ban(known, _subject(known, subject), until=until, reason=reason, created_at=now)


def _subject(kind: BanKind, text: str) -> str:
    if kind is BanKind.ADDRESS:
        return str(_network(text))
    if kind is BanKind.CLIENT:
        if not _CLIENT.fullmatch(text) or int(text) >= 2**64:
            raise Malformed("client: a number from 0 to 2^64 - 1 is expected")
        return text
    if not text or len(text.encode(errors="replace")) > _MAX_USER or not text.isprintable():
        raise Malformed(f"user: 1 to {_MAX_USER} bytes on one line are expected")
    return text


def _network(text: str) -> Network:
    try:
        network = ip_network(text.strip(), strict=False)
    except ValueError:
        raise Malformed(
            "address: an IP address or a network like 203.0.113.0/24 or 2001:db8::/64 is expected"
        ) from None
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def ban_key(ban: Ban) -> str:
    """The key of the bucket `bans`: one for each kind and subject."""
    digest = hashlib.blake2b(ban.subject.encode(), digest_size=16, person=b"tipoff ban").hexdigest()
    return f"{ban.kind}.{digest}"


def is_over(ban: Ban, now: float) -> bool:
    """Whether it has expired, or was lifted."""
    return 0 < ban.until <= now


def text_of(ban: Ban) -> str:
    """What a banned player is told."""
    why = f": {ban.reason}" if ban.reason else ""
    if not ban.until:
        return f"you are banned{why}"
    return f"you are banned until {datetime.fromtimestamp(ban.until, UTC):%Y-%m-%d %H:%M} UTC{why}"


class BanList:
    """The bans that one process knows. Finding one takes a look for each length of network in use."""

    def __init__(self) -> None:
        self._bans: dict[str, Ban] = {}
        self._networks: dict[tuple[int, int], dict[int, str]] = {}
        """(IP version, prefix length) -> first bits -> the ban's key."""
        self._subjects: dict[tuple[BanKind, str], str] = {}

    def __len__(self) -> int:
        return len(self._bans)

    def all(self) -> Mapping[str, Ban]:
        """Every ban by its key, those that are over included."""
        return self._bans

    def put(self, key: str, ban: Ban) -> None:
        """Add a ban, or replace the one of this key. One whose subject cannot be read is ignored: another release may
        know it."""
        self.drop(key)
        try:
            if ban.kind is BanKind.ADDRESS:
                network = _network(ban.subject)
                self._networks.setdefault((network.version, network.prefixlen), {})[_first_bits(network)] = (
                    key
                )
        except Malformed:
            return
        if ban.kind is not BanKind.ADDRESS:
            self._subjects[ban.kind, ban.subject] = key
        self._bans[key] = ban

    def drop(self, key: str) -> None:
        """Remove the ban of this key; idempotent."""
        ban = self._bans.pop(key, None)
        if ban is None:
            return
        if ban.kind is BanKind.ADDRESS:
            network = _network(ban.subject)
            place = (network.version, network.prefixlen)
            networks = self._networks[place]
            networks.pop(_first_bits(network), None)
            if not networks:
                del self._networks[place]
        else:
            self._subjects.pop((ban.kind, ban.subject), None)

    def replace(self, bans: Mapping[str, Ban]) -> None:
        """Know exactly these."""
        for key in [key for key in self._bans if key not in bans]:
            self.drop(key)
        for key, ban in bans.items():
            if self._bans.get(key) != ban:
                self.put(key, ban)

    def find(
        self, now: float, *, address: str = "", user: str = "", client_id: int | None = None
    ) -> Ban | None:
        """The ban that keeps this player out now: the one that lasts longest."""
        if not self._bans:
            return None
        keys = [
            self._subjects.get((BanKind.USER, user)) if user else None,
            None if client_id is None else self._subjects.get((BanKind.CLIENT, str(client_id))),
            *self._of_address(address),
        ]
        found = [self._bans[key] for key in keys if key is not None]
        return max(
            (ban for ban in found if not is_over(ban, now)),
            key=lambda ban: ban.until or float("inf"),
            default=None,
        )

    def check(self, now: float, *, address: str, user: str = "") -> None:
        """Raises `NotAllowed`, with the reason and the end of the ban, when players at `address` or this user are
        banned now."""
        if (ban := self.find(now, address=address, user=user)) is not None:
            raise NotAllowed(text_of(ban))

    def _of_address(self, text: str) -> list[str | None]:
        address = parse_address(text) if text and self._networks else None
        if address is None:
            return []
        bits, number = address.max_prefixlen, int(address)
        return [
            networks.get(number >> (bits - length))
            for (version, length), networks in self._networks.items()
            if version == address.version
        ]


def _first_bits(network: Network) -> int:
    return int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
