"""A server with our SDK and without our variables: it knows only what Edgegap, or our launcher, tells any server."""

from __future__ import annotations

import os

for name in [name for name in os.environ if name.startswith("TIPOFF_") and name != "TIPOFF_PROTOCOL_ID"]:
    del os.environ[name]

import tipoff  # noqa: E402  # after its environment is as wanted


class Echo:
    def on_message(self, player: tipoff.Player, data: bytes) -> None:
        player.send(data)


if __name__ == "__main__":
    tipoff.GameServer(Echo()).main()
