"""Turns away clients that connect too often before their connection costs anything: no parser, no timer, no place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import cast

from tipoff_matchmaker_httpd.admission.places import Places
from tipoff_matchmaker_httpd.server.connection import refusal

_answer = lru_cache(maxsize=16)(refusal)
"""Each listener refuses with one and the same error."""


class Gate(asyncio.Protocol):
    """The protocol of a socket just accepted, without TLS: makes way for the real one (`make`), or closes it."""

    __slots__ = ("_make", "_places")

    def __init__(self, places: Places, make: Callable[[], asyncio.Protocol]) -> None:
        self._places = places
        self._make = make

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        peer = transport.get_extra_info("peername")
        error = self._places.refusal(peer[0] if isinstance(peer, tuple) else None)
        if error is not None:
            transport.write(_answer(error))  # a client that has sent nothing yet reads it
            transport.close()
            return
        protocol = self._make()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
