"""Holds the account's applications and their versions. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tipoff_edgegap_emulator.deployment import AppKey
from tipoff_edgegap_emulator.documents import stamp
from tipoff_edgegap_emulator.errors import Refused


class Catalogue:
    """What can be deployed. Methods raise `Refused`: 404 for an unknown name, 409 for one that exists already."""

    def __init__(self) -> None:
        self.applications: dict[str, dict[str, Any]] = {}
        self.versions: dict[AppKey, dict[str, Any]] = {}

    def add_application(self, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        """Add one from the body of its request; returns it as stored."""
        if body["name"] in self.applications:
            raise Refused(409, f"Application {body['name']} already exists")
        made = {**body, "create_time": stamp(now), "last_updated": stamp(now)}
        self.applications[body["name"]] = made
        return made

    def application(self, name: str) -> dict[str, Any]:
        """The application of this name."""
        try:
            return self.applications[name]
        except KeyError:
            raise Refused(404, f"Application {name} not found") from None

    def add_version(self, app: str, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        """Add one from the body of its request, with Edgegap's defaults; returns it as stored."""
        self.application(app)
        if (app, body["name"]) in self.versions:
            raise Refused(409, f"Version {body['name']} already exists")
        defaults: dict[str, Any] = {
            "is_active": True,
            "req_video": 0,
            "verify_image": False,
            "force_cache": False,
            "time_to_deploy": 120,
            "max_duration": 1440,
            "restart_policy": "always",
            "termination_grace_period_seconds": 5,
            "ports": [],
            "envs": [],
            "arguments": None,
        }
        made = defaults | dict(body) | {"create_time": stamp(now), "last_updated": stamp(now)}
        self.versions[app, body["name"]] = made
        return made

    def version(self, app: str, name: str) -> dict[str, Any]:
        """The version of this name."""
        self.application(app)
        try:
            return self.versions[app, name]
        except KeyError:
            raise Refused(404, f"Version {name} of application {app} not found") from None

    def newest_version(self, app: str) -> str:
        """The version created last: a session that names none gets it."""
        self.application(app)
        names = [name for of, name in self.versions if of == app]
        if not names:
            raise Refused(400, f"Application {app} has no version")
        return names[-1]

    def change_version(self, app: str, name: str, changes: Mapping[str, Any], now: float) -> dict[str, Any]:
        """Replace the members in `changes`; lists are replaced whole."""
        version = self.version(app, name)
        version |= dict(changes) | {"last_updated": stamp(now)}
        if (new := changes.get("name", name)) != name:
            self.versions[app, new] = self.versions.pop((app, name))
        return version

    def delete_version(self, app: str, name: str) -> None:
        """Remove it."""
        self.version(app, name)
        del self.versions[app, name]

    def deployable(self, key: AppKey, *, inactive: bool = False) -> dict[str, Any]:
        """The version. Raises `Refused` 400 (A: inactive-version) for an unknown one, and unless `inactive` for an
        inactive one."""
        app, name = key
        if app not in self.applications or key not in self.versions:
            raise Refused(400, f"Application {app} or version {name} does not exist")
        version = self.versions[key]
        if not inactive and not (self.applications[app]["is_active"] and version["is_active"]):
            raise Refused(400, f"Application {app} or version {name} is not active")
        return version
