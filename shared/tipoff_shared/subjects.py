"""Every NATS subject, bucket and stream name. No other module spells them out.

The namespace is a prefix that lets several installations share one NATS. It is empty by default, as in bevygap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tipoff_shared.errors import ConfigError
from tipoff_shared.names import subject_token

REQUEST_ID_HEADER = "Tipoff-Request-Id"
RESUME = "resume"
"""In place of a request id: the request is for the seat of a session that exists. A matchmaker of an earlier release
refuses it as malformed, where it would otherwise give another seat."""
RESUME_KEY_HEADER = "Tipoff-Resume-Key"
"""The key of that session, a secret of its player's."""
RETRY_AFTER_HEADER = "Retry-After"
TRACEPARENT_HEADER = "traceparent"
TIMEOUT_HEADER = "Tipoff-Timeout"
"""Seconds for which the client of a play request waits; the game's own limit applies too."""
ASK_AGAIN_HEADER = "Tipoff-Ask-Again"
"""Beside an error: this matchmaker is stopping; repeat the request at once, another one takes it."""
DEAF_HEADER = "Tipoff-Deaf"
"""In the answer to a ping: this matchmaker does not hear isolated game servers, so it writes no leases."""
HEALTH_HEADER = "Tipoff-Health"
"""In a matchmaker's answer to a ping, while something does not work: a `health_report`."""
SERVICE_ERROR_CODE = "Nats-Service-Error-Code"
SERVICE_ERROR = "Nats-Service-Error"

AUTH_CALLOUT = "$SYS.REQ.USER.AUTH"
"""nats-server -> matchmaker (queue group): may this user connect?"""
AUTH_ANSWERS = "$SYS._INBOX.>"
"""Matchmaker -> nats-server: the answers."""


def connections_of(account: str) -> str:
    """Matchmaker -> nats-server: the connections of an account."""
    return f"$SYS.REQ.ACCOUNT.{account}.CONNZ"


def kicks_at(server_id: str) -> str:
    """Matchmaker -> one nats-server: close a connection. `server_id`: its id, or `*` for all."""
    return f"$SYS.REQ.SERVER.{server_id}.KICK"


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
        """Play requests for one game and version (queue group)."""
        return self._subject(f"matchmaker.request.{subject_token(game)}.{subject_token(version)}")

    @property
    def all_requests(self) -> str:
        """Play requests for every game."""
        return self._subject("matchmaker.request.>")

    def retry(self, game: str, version: str) -> str:
        """A repeated play request, to every matchmaker (no queue group)."""
        return self._subject(f"matchmaker.retry.{subject_token(game)}.{subject_token(version)}")

    @property
    def all_retries(self) -> str:
        """Repeated play requests for every game."""
        return self._subject("matchmaker.retry.>")

    @property
    def left(self) -> str:
        """To every matchmaker: a waiting player has disconnected. The body is the prefix of the reply inboxes of the
        request's attempts."""
        return self._subject("matchmaker.left")

    @property
    def over(self) -> str:
        """To every matchmaker: a session was ended while its player waited (`records.Kick`)."""
        return self._subject("matchmaker.over")

    @property
    def ping_matchmaker(self) -> str:
        """A matchmaker that can serve answers with its instance id (queue group)."""
        return self._subject("matchmaker.ping")

    def alive(self, instance: str) -> str:
        """Heartbeats of one matchmaker."""
        return self._subject(f"matchmaker.alive.{instance}")

    def admin(self, operation: str) -> str:
        """Operators -> matchmakers: kick and drain (queue group), status (every matchmaker answers)."""
        return self._subject(f"matchmaker.admin.{operation}")

    @property
    def gensession(self) -> str:
        """bevygap's micro service: one blocking request for a seat."""
        return self._subject("session.gensession")

    @property
    def known_bans(self) -> str:
        """httpd -> matchmaker (queue group): `records.Bans` that NATS has lost and the httpd still knows."""
        return self._subject("bans.known")

    # gameserver <-> matchmaker
    @property
    def contexts(self) -> str:
        """bevygap's game servers announce themselves here."""
        return self._subject("gameserver.contexts")

    def commands(self, deployment_id: str) -> str:
        """Matchmaker -> one game server: `records.Kick`, `records.Drain`."""
        return self._subject(f"gs.{deployment_id}.cmd")

    def events(self, deployment_id: str) -> str:
        """One game server of the isolated profile -> matchmaker: `server_events`."""
        return self._subject(f"gs.{deployment_id}.ev")

    @property
    def events_stream(self) -> str:
        """The stream that keeps events of game servers until a matchmaker has handled them."""
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
        """The work queue behind `delete_queue`."""
        return self.bucket("DELETE_SESSION_STREAM")

    def delete_queue(self, token: str) -> str:
        """Sessions that are to be deleted; `token` is any subject token."""
        return self._subject(f"edgegap_delete_session_q.{token}")

    def webhook(self, name: str) -> str:
        """httpd -> orchestrators: the webhook `name` was called."""
        return self._subject(f"webhook.{subject_token(name)}")

    @property
    def all_webhooks(self) -> str:
        """Every webhook."""
        return self._subject("webhook.*")
