"""Connect tokens: which addresses they name, what they carry, and the message that hands one to a player.

Names are resolved when a server becomes ready, to IPv4 where they have it, so that no player waits for DNS.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import secrets
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from tipoff_shared.errors import OrchestratorFailed
from tipoff_shared.games import Game, Games
from tipoff_shared.kv.buckets import MAPPING_TTL
from tipoff_shared.messages import SessionReady, Transports, WebSocketAddress
from tipoff_shared.netcode import Address, Dialect, NetcodeError, PrivateKey, issue_token
from tipoff_shared.primitives.text import describe
from tipoff_shared.records import DeploymentRecord, SessionRecord
from tipoff_shared.user_data import TokenUserData

BEVYGAP_LIFETIME = 15
"""bevygap's mappings live 30 s, and a handshake may finish `token_timeout` seconds after the token expired."""

_MAX_ADDRESSES = 32
_DNS_TIMEOUT = 3.0
_DEFAULT_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}


def new_client_id() -> int:
    """A netcode client id: random, not zero, below 2^63 (signed in many a game's code)."""
    return secrets.randbelow(2**63 - 1) + 1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the players of one deployment go: `ip` and `port` are those of the game's primary transport."""

    ip: str
    port: int
    public: tuple[Address, ...]
    internal: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Issued:
    """A token on its way to a player: base64 text (a secret), and until when it may lead to a connection."""

    text: str
    claim_deadline: float

    def __repr__(self) -> str:
        return f"Issued(text=..., claim_deadline={self.claim_deadline})"


def host_and_port(transports: Transports, name: str) -> tuple[str, int] | None:
    """Host (name or literal) and port of one open transport."""
    if name in ("udp", "tcp"):
        plain = transports.udp if name == "udp" else transports.tcp
        return None if plain is None else (plain.host, plain.port)
    web = transports.websocket if name == "websocket" else transports.webtransport
    if web is None:
        return None
    try:
        parts = urlsplit(web.url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname and port else None


def transports_told(gs_proxy_url: str, deployment: DeploymentRecord) -> Transports:
    """What a player of this deployment is told: its own transports, but its WebSocket listener by way of the reverse
    proxy where its orchestrator says how the proxy reaches it. A server elsewhere (Edgegap) is dialled directly.

    A page on https may open only `wss`, and game servers come and go, so they have no certificates: one proxy in front
    of them has one, and asks httpd for each server by its deployment id. `gs_proxy_url`: "" without such a proxy.
    """
    transports = deployment.transports
    if not gs_proxy_url or not deployment.proxy or transports.websocket is None:
        return transports
    return msgspec.structs.replace(transports, websocket=WebSocketAddress(f"{gs_proxy_url}{deployment.id}"))


class Tokens:
    """Issues the tokens of all games. Private keys stay within."""

    def __init__(self, games: Games, gs_proxy_url: str = "") -> None:
        self._games = games
        self._gs_proxy_url = gs_proxy_url
        self._endpoints: dict[str, tuple[str, Transports, Endpoint]] = {}

    def lifetime(self, game: Game) -> int:
        """Seconds a token of this game may be used, and its seat waits for the player."""
        if not game.bevygap:
            return game.claim_time
        return max(1, min(game.claim_time, BEVYGAP_LIFETIME, MAPPING_TTL - game.token_timeout))

    def hold(self, game: Game) -> float:
        """Seconds for which a seat is held for its player at most, from the token's issue. Our servers end a handshake
        when its token expires; bevygap's may finish one `token_timeout` later, and take no kick."""
        return self.lifetime(game) + self._handshake(game)

    def resume_ttl(self, game: Game) -> int:
        """Seconds for which a player's seat is held after a lost connection; 0: not at all."""
        return 0 if game.bevygap else game.resume_ttl

    def proves(self, game: Game, session_id: str, resume_key: str) -> bool:
        """Whether `resume_key` is the session's, in constant time. It is computed from the game's key, so nothing of it
        is stored."""
        return hmac.compare_digest(self._games.private_key(game).resume_key(session_id), resume_key)

    def _handshake(self, game: Game) -> int:
        return game.token_timeout if game.bevygap else 0

    async def endpoint(self, game: Game, deployment: DeploymentRecord) -> Endpoint:
        """Where to send players; remembered until the deployment's addresses change. Raises
        `OrchestratorFailed` when they cannot be used."""
        known = self._endpoints.get(deployment.id)
        if known is not None and known[0] == deployment.boot_id and known[1] == deployment.transports:
            return known[2]
        endpoint = await _endpoint(game, deployment)
        self._endpoints[deployment.id] = (deployment.boot_id, deployment.transports, endpoint)
        return endpoint

    def forget(self, deployment_id: str) -> None:
        """Forget the endpoint of a deployment that is gone; idempotent."""
        self._endpoints.pop(deployment_id, None)

    def issue(
        self,
        game: Game,
        session: SessionRecord,
        endpoint: Endpoint,
        *,
        own_key: bool = False,
        now: float,
        slack: float,
        hold_factor: float = 1.0,
    ) -> Issued:
        """A fresh token for the session's client id on the session's deployment, which has its own netcode key or
        (`own_key` False) the game's. `hold_factor`: the part of its usual lifetime that it gets; how long a connection
        may be silent stays as it is. `slack`: seconds that the seat waits beyond the token's end."""
        lifetime = max(1, round(self.lifetime(game) * hold_factor))
        user_data = b""
        if not game.bevygap:
            user_data = TokenUserData(
                session.id,
                session.deployment_id,
                session.boot_id,
                session.generation,
                session.user_id,
                session.name,
                self.resume_ttl(game),
            ).encode()
        token = issue_token(
            self.key(game, session.deployment_id, own_key=own_key),
            protocol_id=game.netcode_protocol_id,
            client_id=int(session.client_id),
            public_addresses=endpoint.public,
            internal_addresses=endpoint.internal,
            user_data=user_data,
            lifetime=lifetime,
            timeout=game.token_timeout,
            now=now,
            dialect=Dialect(game.dialect),
        )
        return Issued(
            base64.b64encode(token.encode()).decode(),
            claim_deadline=token.expire_timestamp + self._handshake(game) + slack,
        )

    def ready(
        self,
        game: Game,
        session: SessionRecord,
        deployment: DeploymentRecord,
        endpoint: Endpoint,
        issued: Issued,
    ) -> SessionReady:
        """The answer to the player."""
        resume_ttl = self.resume_ttl(game)
        return SessionReady(
            token=issued.text,
            ip=endpoint.ip,
            port=endpoint.port,
            cert_digest=deployment.cert_digest,
            session_id=session.id,
            client_id=session.client_id,
            deployment_id=deployment.id,
            transports=transports_told(self._gs_proxy_url, deployment),
            resume_key=self._games.private_key(game).resume_key(session.id) if resume_ttl else msgspec.UNSET,
            resume_ttl=resume_ttl or msgspec.UNSET,
        )

    def key(self, game: Game, deployment_id: str, *, own_key: bool) -> PrivateKey:
        """The netcode key of one deployment of `game`."""
        key = self._games.private_key(game)
        return key.of_deployment(deployment_id) if own_key else key


async def _endpoint(game: Game, deployment: DeploymentRecord) -> Endpoint:
    transports = deployment.transports
    where = None
    for name in (game.primary, "udp", "websocket", "webtransport", "tcp"):
        if (where := host_and_port(transports, name)) is not None:
            break
    if where is None:
        raise OrchestratorFailed(f"server {deployment.id} announces no address that players could dial")
    try:
        ipv6 = not game.bevygap
        primary = Address(await _literal(where[0], ipv6=ipv6), where[1])
        public = [primary]
        # A netcode client dials the list in order, by UDP: so the UDP address comes first. bevygap's list has the
        # primary one alone.
        if not game.bevygap and (udp := host_and_port(transports, "udp")) is not None:
            public = [Address(await _literal(udp[0], ipv6=ipv6), udp[1])]
            if primary not in public:
                public.append(primary)
        internal = [Address.parse(text) for text in deployment.internal][:_MAX_ADDRESSES]
    except NetcodeError as exc:
        raise OrchestratorFailed(f"server {deployment.id} announces an unusable address: {exc}") from exc
    return Endpoint(primary.host, primary.port, tuple(public), tuple(internal or public))


async def _literal(host: str, *, ipv6: bool) -> str:
    """The address of `host`, an IPv4 one where it has one. Raises `OrchestratorFailed` when it has none that players
    can dial; without `ipv6` they know only IPv4."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        if address.is_unspecified:
            raise OrchestratorFailed(
                f"{host} means every interface, and is no address that players can dial: set TIPOFF_PUBLIC_HOST"
            )
        if address.version == 6 and not ipv6:
            raise OrchestratorFailed(
                f"{host} is IPv6, and bevygap's clients know only IPv4: give the server an IPv4 address"
            )
        return str(address)
    try:
        async with asyncio.timeout(_DNS_TIMEOUT):
            found = await asyncio.get_running_loop().getaddrinfo(
                host, None, family=0 if ipv6 else socket.AF_INET, type=socket.SOCK_DGRAM
            )
    except (OSError, TimeoutError) as exc:
        kind = "address" if ipv6 else "IPv4 address"
        raise OrchestratorFailed(f"the server's name {host} has no {kind}: {describe(exc)}") from exc
    best = min(found, key=lambda info: info[0] != socket.AF_INET)
    return str(best[4][0])
