"""hello, a client: goes right for a while, then left, and prints where everybody is.

python client.py [URL] [SECONDS]      URL: http://127.0.0.1:3000 (tipoff up) or http://127.0.0.1:7777 (server.py alone)
"""

import asyncio
import json
import sys
import time

import tipoff


async def main(url, seconds):
    wanted = {"game": "hello", "version": "1", "name": "Python"}
    async with tipoff.connect(url, **wanted, progress=print) as player:
        print("connected by", player.transport)
        began = time.monotonic()
        wish = None
        where = []
        async for message in player:
            where = json.loads(message)
            left = seconds - (time.monotonic() - began)
            if left <= 0:
                break
            if wish != (1 if left > seconds / 2 else -1):
                wish = 1 if left > seconds / 2 else -1
                await player.send(json.dumps({"dx": wish, "dy": 0}).encode())
                print(where)
        print("at the end", where)


if __name__ == "__main__":
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000"
    try:
        asyncio.run(main(url, float(sys.argv[2]) if len(sys.argv) > 2 else 5))
    except tipoff.TipoffError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        print("left the game")
