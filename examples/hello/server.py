"""hello, the server: everybody is a dot; the server moves the dots and tells everybody where they are."""

import json

import tipoff

WIDTH, HEIGHT, SPEED = 640, 400, 200  # SPEED in units per second


class Dot:
    def __init__(self, name):
        self.name = name
        self.x, self.y = WIDTH / 2, HEIGHT / 2
        self.dx = self.dy = 0.0  # where the player wishes to go


class Game:
    def __init__(self):
        self.dots = {}  # player -> its dot

    def on_join(self, player):
        self.dots[player] = Dot(player.name)
        print(player.name or "somebody without a name", "joined")  # `tipoff up` shows it

    def on_leave(self, player, reason):
        self.dots.pop(player, None)

    def on_message(self, player, data):
        """A client says where it would like to go, and nothing it says can do more than that."""
        try:
            wish = json.loads(data)
            dx, dy = float(wish["dx"]), float(wish["dy"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        dot = self.dots[player]
        dot.dx, dot.dy = max(-1, min(1, dx)), max(-1, min(1, dy))

    def tick(self, server, dt):
        for dot in self.dots.values():
            dot.x = max(0, min(WIDTH, dot.x + dot.dx * SPEED * dt))
            dot.y = max(0, min(HEIGHT, dot.y + dot.dy * SPEED * dt))
        dots = [{"x": round(dot.x), "y": round(dot.y), "name": dot.name} for dot in self.dots.values()]
        server.broadcast(json.dumps(dots, ensure_ascii=False).encode())  # at most 65536 bytes


if __name__ == "__main__":
    # Started by tipoff it finds its orders in the environment; started by hand it stands alone.
    tipoff.GameServer(Game(), tick_rate=20).main()
