"""Every NATS subject, bucket and stream name, under one namespace. Nothing else spells them out.

The namespace is a prefix that lets several games share one NATS; empty by default, for bevygap's names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tipoff_shared.errors import ConfigError
from tipoff_shared.names import subject_token

REQUEST_ID_HEADER = "Tipoff-Request-Id"
RETRY_AFTER_HEADER = "Retry-After"
TRACEPARENT_HEADER = "traceparent"
TIMEOUT_HEADER = "Tipoff-Timeout"
"""Seconds the asker of a play request will wait at most; the game's own limit holds anyway."""
ASK_AGAIN_HEADER = "Tipoff-Ask-Again"
"""Beside an error: this matchmaker stops, another one (or its successor) takes the same request at once."""
SERVICE_ERROR_CODE = "Nats-Service-Error-Code"
SERVICE_ERROR = "Nats-Service-Error"

_NAMESPACE = re.compile(r"[a-zA-Z0-9-]{0,24}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Subjects:
    """Names within `namespace` ("" or up to 24 letters, digits and dashes)."""

    namespace: str = ""

    def __post_init__(self) -> None:
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ConfigError(
                f"namespace {self.namespace!r}: at most 24 letters, digits and dashes are allowed"
            )

    def _subject(self, name: str) -> str:
        return f"{self.namespace}.{name}" if self.namespace else name

    def bucket(self, name: str) -> str:
        """Bucket (or stream) name: `sessions` -> `NAMESPACE_sessions`."""
        return f"{self.namespace}_{name}" if self.namespace else name

    # httpd -> matchmaker
    def request(self, game: str, version: str) -> str:
        return self._subject(f"matchmaker.request.{subject_token(game)}.{subject_token(version)}")

    @property
    def all_requests(self) -> str:
        return self._subject("matchmaker.request.>")

    def retry(self, game: str, version: str) -> str:
        """The same request once more, to every matchmaker (no queue group)."""
        return self._subject(f"matchmaker.retry.{subject_token(game)}.{subject_token(version)}")

    @property
    def all_retries(self) -> str:
        return self._subject("matchmaker.retry.>")

    @property
    def left(self) -> str:
        """To every matchmaker: a player who waited is gone. The body is what the reply inboxes of the request's
        attempts begin with."""
        return self._subject("matchmaker.left")

    @property
    def over(self) -> str:
        """To every matchmaker: a session has been ended while its player waited (`records.Kick`)."""
        return self._subject("matchmaker.over")

    @property
    def ping_matchmaker(self) -> str:
        """Queue group; answered with the instance id by a matchmaker that can serve."""
        return self._subject("matchmaker.ping")

    def alive(self, instance: str) -> str:
        return self._subject(f"matchmaker.alive.{instance}")

    def admin(self, operation: str) -> str:
        """Operators -> matchmakers: kick and drain (queue group), status (every one answers)."""
        return self._subject(f"matchmaker.admin.{operation}")

    @property
    def gensession(self) -> str:
        return self._subject("session.gensession")

    # gameserver <-> matchmaker
    @property
    def contexts(self) -> str:
        return self._subject("gameserver.contexts")

    def commands(self, deployment_id: str) -> str:
        """Matchmaker -> one gameserver: `records.Kick`, `records.Drain`."""
        return self._subject(f"gs.{deployment_id}.cmd")

    def events(self, deployment_id: str) -> str:
        """One gameserver of the isolated profile -> matchmaker: `server_events`."""
        return self._subject(f"gs.{deployment_id}.ev")

    @property
    def events_stream(self) -> str:
        """The stream that keeps those events until a matchmaker has handled them."""
        return self.bucket("GAMESERVER_EVENTS")

    def events_from(self, subject: str) -> str:
        """The deployment that a subject of `events` names."""
        return subject.split(".")[-2]

    # matchmaker -> launcher
    def launcher(self, host: str, operation: str) -> str:
        """`operation`: deploy, get, stop, list, events; `kill` in demo mode only."""
        return self._subject(f"launcher.{host}.{operation}")

    # session deletion queue (a bevygap work-queue stream)
    @property
    def delete_stream(self) -> str:
        return self.bucket("DELETE_SESSION_STREAM")

    def delete_queue(self, token: str) -> str:
        return self._subject(f"edgegap_delete_session_q.{token}")

    def webhook(self, name: str) -> str:
        return self._subject(f"webhook.{subject_token(name)}")

    @property
    def all_webhooks(self) -> str:
        return self._subject("webhook.*")
