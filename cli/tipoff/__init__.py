"""Everything a game needs, in one import: the server's side, the client's side, and every exception.

    import tipoff

    class Duel(tipoff.Game):                                     # server.py
        def on_join(self, player: tipoff.ServerPlayer) -> None:
            player.send(b"welcome")

    tipoff.GameServer(Duel(), capacity=2).main()

    async with tipoff.connect("http://localhost:3000", game="duel", version="1") as player:   # client.py
        async for message in player:
            ...

| for | names |
|---|---|
| a game server | `GameServer`, `Game`, `ServerPlayer`, `ExpectedPlayer`, `LeaveReason`, `Context`, `LeaseState`, ... |
| a client with asyncio | `connect`, `ClientPlayer`, `Progress`, `Stage`, `Ending`, `Transport`, `ConnectOptions` |
| a client with a frame loop | `connect_threaded`, `ThreadedPlayer`, and its events, see there |
| what goes wrong, client | `TipoffError` and its subclasses; `tipoff_client_sdk.errors` has the tree |
| what goes wrong, server | `ConfigError` (a setting), `GameFailed` (your game raised) |

A name is loaded when it is first used, so that a client runs without the packages of a game server, and the other way
round. When a package is missing, the error names the extra that installs it. `Player` is the older name of
`ServerPlayer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tipoff_client_sdk import (
        Closed,
        ConnectionFailed,
        ConnectionOver,
        ConnectOptions,
        Dropped,
        Ended,
        Ending,
        Event,
        Joined,
        Message,
        PlayerError,
        Progress,
        ProgressCallback,
        Refused,
        Resumed,
        ServerLost,
        Stage,
        ThreadedPlayer,
        Transport,
        connect,
        connect_threaded,
    )
    from tipoff_client_sdk import Player as ClientPlayer
    from tipoff_gameserver import (
        Context,
        Dialect,
        ExpectedPlayer,
        Game,
        GameFailed,
        GameServer,
        LeaseState,
        LeaveReason,
        Player,
        Players,
        PrivateKey,
    )
    from tipoff_gameserver import Player as ServerPlayer
    from tipoff_shared.errors import (
        ConfigError,
        Conflict,
        EmptyMessage,
        Internal,
        LoginReason,
        Malformed,
        MessageTooLarge,
        NoServerInTime,
        NotAllowed,
        NotAuthenticated,
        OrchestratorFailed,
        SlowDown,
        TipoffError,
        TooLarge,
        Unavailable,
        UnknownGame,
    )

__version__ = "0.1.0"

__all__ = [
    "ClientPlayer",
    "Closed",
    "ConfigError",
    "Conflict",
    "ConnectOptions",
    "ConnectionFailed",
    "ConnectionOver",
    "Context",
    "Dialect",
    "Dropped",
    "EmptyMessage",
    "Ended",
    "Ending",
    "Event",
    "ExpectedPlayer",
    "Game",
    "GameFailed",
    "GameServer",
    "Internal",
    "Joined",
    "LeaseState",
    "LeaveReason",
    "LoginReason",
    "Malformed",
    "Message",
    "MessageTooLarge",
    "NoServerInTime",
    "NotAllowed",
    "NotAuthenticated",
    "OrchestratorFailed",
    "Player",
    "PlayerError",
    "Players",
    "PrivateKey",
    "Progress",
    "ProgressCallback",
    "Refused",
    "Resumed",
    "ServerLost",
    "ServerPlayer",
    "SlowDown",
    "Stage",
    "ThreadedPlayer",
    "TipoffError",
    "TooLarge",
    "Transport",
    "Unavailable",
    "UnknownGame",
    "connect",
    "connect_threaded",
]

if not TYPE_CHECKING:  # a type checker sees the imports above, and that nothing else is here
    import importlib

    _RENAMED = {"ClientPlayer": "Player", "ServerPlayer": "Player"}
    _HOMES = {
        name: (module, extra)
        for module, extra, names in (
            (
                "tipoff_client_sdk",
                "client",
                "ClientPlayer Closed ConnectOptions ConnectionFailed ConnectionOver Dropped Ended Ending Event Joined "
                "Message PlayerError Progress ProgressCallback Refused Resumed ServerLost Stage ThreadedPlayer "
                "Transport "
                "connect connect_threaded",
            ),
            (
                "tipoff_gameserver",
                "gameserver",
                "Context Dialect ExpectedPlayer Game GameFailed GameServer LeaseState LeaveReason Player Players "
                "PrivateKey ServerPlayer",
            ),
            (
                "tipoff_shared.errors",
                "",
                "ConfigError Conflict EmptyMessage Internal LoginReason Malformed MessageTooLarge "
                "NoServerInTime NotAllowed NotAuthenticated "
                "OrchestratorFailed SlowDown TipoffError TooLarge Unavailable UnknownGame",
            ),
        )
        for name in names.split()
    }

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module 'tipoff' has no attribute {name!r}", name=name)
        module, extra = _HOMES[name]
        try:
            found = getattr(importlib.import_module(module), _RENAMED.get(name, name))
        except ModuleNotFoundError as exc:
            if exc.name is None or exc.name.split(".")[0].startswith("tipoff"):
                raise
            raise ImportError(
                f"tipoff.{name} needs {exc.name}, which is not installed: pip install 'tipoff[{extra}]'"
            ) from exc
        globals()[name] = found
        return found

    def __dir__():
        return sorted(__all__)
