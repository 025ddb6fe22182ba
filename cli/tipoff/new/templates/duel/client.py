"""NAME_OF_THE_GAME, an opponent: follows the ball, and always wants a rematch.

python client.py [URL] [SECONDS]      URL: http://127.0.0.1:3000 (tipoff up) or http://127.0.0.1:7777 (server.py alone)
"""

import asyncio
import json
import sys
import time

import tipoff


async def main(url, seconds):
    connecting = tipoff.connect(url, game="NAME_OF_THE_GAME", version="1", name="Bot", progress=print)
    async with connecting as player:
        print("connected by", player.transport)
        until = time.monotonic() + seconds
        told = None
        async for message in player:
            state = json.loads(message)
            if "you" in state:
                continue  # which side we have does not matter: the ball is at the same height for both
            if (state["phase"], state["goals"]) != told:
                told = (state["phase"], state["goals"])
                print(*told)
            if state["phase"] == "over":
                await player.send(b'{"again": true}', reliable=True)
            else:
                await player.send(json.dumps({"to": state["ball"][1]}).encode())
            if time.monotonic() > until:
                break


if __name__ == "__main__":
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000"
    try:
        asyncio.run(main(url, float(sys.argv[2]) if len(sys.argv) > 2 else 600))
    except tipoff.TipoffError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        print("left the game")
