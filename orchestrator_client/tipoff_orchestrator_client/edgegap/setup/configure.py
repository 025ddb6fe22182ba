"""Configures a game's application and version for `tipoff edgegap configure-app`: creates or changes what differs."""

from __future__ import annotations

from dataclasses import dataclass

from tipoff_orchestrator_client.edgegap.setup.account import AccountApi
from tipoff_orchestrator_client.edgegap.setup.app_version import Change, Wishes, changes, wanted_version
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game

_CPU, _MEMORY, _MAX_DURATION = 512, 1024, 1440
_LEAST_MEMORY = 256


@dataclass(frozen=True, slots=True)
class Configured:
    """What was changed, or would be in a dry run. `created`: which of `application` and `version` were missing."""

    application: str
    version: str
    created: list[str]
    changes: list[Change]


async def configure(
    account: AccountApi, game: Game, wishes: Wishes, *, create: bool, dry_run: bool
) -> Configured:
    """Make the version of `game`, which must have [game.edgegap], hold what the game and `wishes` need.

    Creates what is missing only with `create`; `dry_run` writes nothing. Raises `ConfigError`, which says what to do,
    and `OrchestratorError`.
    """
    assert game.edgegap is not None
    application, name = game.edgegap.application, game.edgegap.version
    done = Configured(application, name, [], [])
    wanted = wanted_version(game, wishes)
    found = await account.application(application)
    if found is None:
        _may_create(create, f"Edgegap has no application {application!r}")
        done.created.append("application")
        done.changes.append(Change("application", "missing", application))
    current = None if found is None else await account.version(application, name)
    if current is None:
        _may_create(create, f"application {application!r} has no version {name!r}")
        if wishes.image is None:
            raise ConfigError("a new version needs its image: --image REGISTRY/NAME:TAG")
        wanted = {
            "req_cpu": _CPU,
            "req_memory": _MEMORY,
            "max_duration": _MAX_DURATION,
            "name": name,
        } | wanted
        done.created.append("version")
    _check_size({**(current or {}), **wanted})
    body, told = changes(current or {}, wanted)
    done.changes.extend(told)
    if not dry_run:
        if found is None:
            await account.create_application(application)
        if current is None:
            await account.create_version(application, body)
        elif body:
            await account.change_version(application, name, body)
    return done


def _may_create(create: bool, what: str) -> None:
    if not create:
        raise ConfigError(f"{what}; --create creates it")


def _check_size(version: dict[str, object]) -> None:
    """Raises `ConfigError`: Edgegap allows at most two MB for each of a vCPU's 1024 units."""
    cpu, memory = version.get("req_cpu"), version.get("req_memory")
    if isinstance(cpu, int) and isinstance(memory, int) and not _LEAST_MEMORY <= memory <= 2 * cpu:
        raise ConfigError(
            f"{memory} MB with {cpu / 1024:g} vCPU: Edgegap allows {_LEAST_MEMORY} MB to {2 * cpu} MB with that many"
        )
