"""The secret from which event keys and NATS passwords of game servers are made: one for all matchmakers, made by the
first, kept in a bucket that only their role reads. So there is no file to distribute: a game server gets its own key
and password at its start."""

from __future__ import annotations

import hashlib
import secrets

from tipoff_shared.errors import Internal
from tipoff_shared.event_stream import SECRET_KEY, create_event_stream, secret_store
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.nats.connection import Bus
from tipoff_shared.secret import Secret
from tipoff_shared.server_events import EventKey


class EventSecret:
    """The secret as this matchmaker knows it; call `ensure` before `key_of`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._namespace = bus.subjects.namespace
        self._secret: Secret | None = None

    async def ensure(self) -> None:
        """Stream, bucket and secret are there, also where NATS has lost its data. Raises `Unavailable`, or
        `LostRace` where somebody deletes the secret at this moment."""
        await create_event_stream(self._bus)
        store = secret_store(self._bus)
        mine = self._secret or Secret(secrets.token_hex(32))
        try:
            await store.create(SECRET_KEY, mine.reveal())
            self._secret = mine
        except LostRace:
            entry = await store.get(SECRET_KEY)
            if entry is None:
                raise  # deleted just now
            if entry.value != mine.reveal():
                self._secret = Secret(entry.value)

    def password_of(self, deployment_id: str) -> Secret:
        """The password with which this deployment's server connects to NATS. Raises `Internal` before `ensure`."""
        if self._secret is None:
            raise Internal("the event secret has not been read")
        name = f"{self._namespace}/{deployment_id}".encode()
        key = bytes.fromhex(self._secret.reveal())
        return Secret(hashlib.blake2b(name, key=key, digest_size=32, person=b"tipoff nats").hexdigest())

    def key_of(self, deployment_id: str) -> EventKey:
        """The key that this deployment's events are sealed with. Raises `Internal` before `ensure`."""
        if self._secret is None:
            raise Internal("the event secret has not been read")
        return EventKey.derive(self._secret, self._namespace, deployment_id)
