"""NAME_OF_THE_GAME, the server: everybody is a dot; the server moves the dots and tells everybody where they are."""

import json

import tipoff

WIDTH, HEIGHT, SPEED = 640, 400, 200  # SPEED in units per second


class Game:
    def __init__(self):
        self.dots = {}  # player id -> [x, y, wish to go in x, in y]

    def on_join(self, player):
        self.dots[player.id] = [WIDTH / 2, HEIGHT / 2, 0, 0]
        print(player.name or "somebody without a name", "joined")  # `tipoff up` shows it

    def on_leave(self, player, reason):
        del self.dots[player.id]

    def on_message(self, player, data):
        """A client says where it would like to go, and nothing it says can do more than that."""
        try:
            wish = json.loads(data)
            dx, dy = float(wish["dx"]), float(wish["dy"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        self.dots[player.id][2:] = [max(-1, min(1, dx)), max(-1, min(1, dy))]

    def tick(self, server, dt):
        for dot in self.dots.values():
            dot[0] = max(0, min(WIDTH, dot[0] + dot[2] * SPEED * dt))
            dot[1] = max(0, min(HEIGHT, dot[1] + dot[3] * SPEED * dt))
        where = {number: [round(x), round(y)] for number, (x, y, _, _) in self.dots.items()}
        server.broadcast(json.dumps(where).encode())  # at most 1200 bytes


if __name__ == "__main__":
    # Started by tipoff it finds its orders in the environment; started by hand it stands alone.
    tipoff.GameServer(Game(), tick_rate=20).main()
