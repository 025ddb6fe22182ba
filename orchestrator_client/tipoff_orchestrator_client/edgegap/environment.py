"""Makes the environment of a deployment at Edgegap. No value is over 255 bytes.

Edgegap adds `ARBITRIUM_*`, with address and ports. A certificate authority is longer than a variable may be, so it is
passed in parts (`NATS_CA_CONTENTS_1`, ...), which our SDK joins. bevygap's servers read it from the argument
`--ca_contents` instead, which belongs to the application's version.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from tipoff_orchestrator_client.base import DeploySpec, environment_of
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game, Games
from tipoff_shared.games.limits import EDGEGAP_VALUE_LIMIT
from tipoff_shared.settings import NatsSettings, server_credentials

Variable: TypeAlias = tuple[str, str, bool]
"""(name, value, hidden)."""

_HIDDEN = frozenset({"TIPOFF_PRIVATE_KEY", "LIGHTYEAR_PRIVATE_KEY", "NATS_PASSWORD", "TIPOFF_EVENT_KEY"})
_LEAST_CUT = 16


class Environment:
    """The environments of all games. Made once at the start, so that a bad setting raises `ConfigError` before anything
    is started."""

    def __init__(self, settings: Settings, nats: NatsSettings, games: Games) -> None:
        self._games = games
        self._namespace = nats.namespace
        self._nats = _nats(settings, nats) if settings.pass_nats else {}
        self._ca = _authority(settings, nats) if settings.pass_nats else ""

    def of(self, spec: DeploySpec, game: Game) -> list[Variable]:
        """The variables of one deployment. Raises `ConfigError`, which names a variable that is too long."""
        own = dict(game.edgegap.env) if game.edgegap is not None else {}
        variables = self._nats | own | dict(spec.environment)
        if self._ca and "NATS_CA_CONTENTS_1" not in own and not game.bevygap:
            variables |= _in_parts("NATS_CA_CONTENTS", self._ca)
        key = self._games.private_key(game)
        if spec.own_key:
            key = key.of_deployment(spec.deployment_id)
        variables |= {
            "TIPOFF_DEPLOYMENT_ID": spec.deployment_id,
            "TIPOFF_GAME": game.name,
            "TIPOFF_VERSION": game.version,
            "TIPOFF_CAPACITY": str(spec.capacity),
            "TIPOFF_PROTOCOL_ID": str(game.netcode_protocol_id),
            "TIPOFF_DIALECT": game.dialect,
            "TIPOFF_NAMESPACE": self._namespace,
            "TIPOFF_PRIVATE_KEY": key.reveal().hex(),
            **environment_of(spec.event_key),
        }
        if spec.nats_password and self._nats and "NATS_USER" not in own:
            variables |= server_credentials(spec.deployment_id, spec.nats_password)
        if game.bevygap:
            variables |= _for_bevygap(variables, key.reveal())
        for name, value in variables.items():
            if (size := len(value.encode())) > EDGEGAP_VALUE_LIMIT:
                raise ConfigError(
                    f"{name} has {size} bytes; Edgegap takes {EDGEGAP_VALUE_LIMIT}: "
                    f"put it into the version's environment or the image of {game.name!r}"
                )
        return [(name, value, name in _HIDDEN) for name, value in variables.items() if value]

    def of_version(self, game: Game) -> list[Variable]:
        """What a version holds for servers that Edgegap starts itself: as `of`, without a deployment's id."""
        return self.of(DeploySpec("", game.name, game.version, game.seats), game)


def _for_bevygap(variables: Mapping[str, str], key: bytes) -> dict[str, str]:
    """bevygap's plugin takes one NATS server, and exits without a user and a password even where NATS needs none;
    lightyear reads its key in decimal."""
    changed = {"TIPOFF_BEVYGAP": "1", "LIGHTYEAR_PRIVATE_KEY": ",".join(map(str, key))}
    if host := variables.get("NATS_HOST", ""):
        changed["NATS_HOST"] = host.split(",")[0]
        changed["NATS_USER"] = variables.get("NATS_USER", "gameserver")
        changed["NATS_PASSWORD"] = variables.get("NATS_PASSWORD", "none")
    return changed


def _nats(settings: Settings, nats: NatsSettings) -> dict[str, str]:
    """How game servers reach NATS: with their own credentials, never the matchmaker's."""
    user, password = settings.nats_user, settings.servers_password()
    if not user and nats.user:
        raise ConfigError(
            "game servers at Edgegap need their own NATS user: set TIPOFF_EDGEGAP_NATS_USER and "
            "TIPOFF_EDGEGAP_NATS_PASSWORD_FILE; or TIPOFF_EDGEGAP_PASS_NATS=0 where the application's version "
            "holds them in its environment"
        )
    variables = {"NATS_HOST": settings.nats_host or ",".join(nats.servers)}
    if user:
        variables |= {"NATS_USER": user, "NATS_PASSWORD": password}
    if nats.insecure:
        variables["NATS_INSECURE"] = "1"
    if nats.replicas != 1:
        variables["TIPOFF_NATS_REPLICAS"] = str(nats.replicas)
    if nats.bevygap_replicas != 1:
        variables["TIPOFF_NATS_BEVYGAP_REPLICAS"] = str(nats.bevygap_replicas)
    return variables


def _authority(settings: Settings, nats: NatsSettings) -> str:
    if nats.insecure:
        return ""
    file = settings.nats_ca_file or (Path(nats.ca_file) if nats.ca_file else None)
    if file is None:
        return nats.ca_contents
    try:
        return file.read_text()
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"the certificate authority of NATS: {exc}") from exc


def _in_parts(name: str, value: str) -> Mapping[str, str]:
    """`NAME_1`, `NAME_2`, ...: never cut beside white space, which some shells and dashboards strip."""
    parts: dict[str, str] = {}
    while value:
        cut = min(EDGEGAP_VALUE_LIMIT, len(value))
        while _LEAST_CUT < cut < len(value) and (value[cut - 1].isspace() or value[cut].isspace()):
            cut -= 1
        parts[f"{name}_{len(parts) + 1}"] = value[:cut]
        value = value[cut:]
    return parts
