"""NAME_OF_THE_GAME, the server: two players, a ball, and a rematch.

The server moves everything. A client says only where its paddle should go, so it cannot cheat.
"""

import json
import math
import random

import tipoff

WIDTH, HEIGHT, PADDLE, GOALS = 640, 400, 80, 5  # a paddle is 80 high; five goals win
BALL_SPEED, PADDLE_SPEED = 320, 400  # units per second


class Side:
    """One of the two players: left (0) or right (1)."""

    def __init__(self, player):
        self.player = player
        self.y = self.to = HEIGHT / 2  # the middle of the paddle, and where it should go
        self.goals = 0
        self.again = False  # wants a rematch


class Game:
    def __init__(self):
        self.sides = [None, None]
        self.phase = "waiting"  # then playing, then over
        self.serve(random.choice((0, 1)))

    def on_start(self, server):
        self.server = server

    def on_join(self, player):
        number = self.sides.index(None)
        self.sides[number] = Side(player)
        player.send(json.dumps({"you": number}).encode(), reliable=True)
        if None not in self.sides:
            self.server.lock()  # nobody joins a duel that has begun
            self.begin()

    def on_resume(self, player):  # its connection was lost, and it is back: the ball has waited
        player.send(json.dumps({"you": self.number_of(player)}).encode(), reliable=True)

    def on_leave(self, player, reason):
        self.sides = [side if side and side.player is not player else None for side in self.sides]
        self.phase = "waiting"
        self.server.unlock()  # the one who stays gets another opponent

    def on_message(self, player, data):
        """{"to": y}: where the paddle should go; {"again": true}: a rematch, please. Anything else is ignored."""
        side = self.sides[self.number_of(player)]
        try:
            said = json.loads(data)
            if said.get("again") is True:
                side.again = True
            else:
                side.to = max(0, min(HEIGHT, int(said["to"])))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return
        if self.phase == "over" and all(each and each.again for each in self.sides):
            self.begin()

    def tick(self, server, dt):
        for side in self.sides:
            if side:
                way = side.to - side.y
                side.y += math.copysign(min(abs(way), PADDLE_SPEED * dt), way)
        if self.phase == "playing" and not any(side.player.dropped for side in self.sides):
            self.move_ball(dt)
        # A lost one does no harm: the next one is newer.
        server.broadcast(json.dumps(self.state(), ensure_ascii=False).encode())

    def number_of(self, player):
        return next(number for number, side in enumerate(self.sides) if side and side.player is player)

    def begin(self):
        self.phase = "playing"
        for side in self.sides:
            side.goals, side.again = 0, False
        self.serve(random.choice((0, 1)))

    def serve(self, to):
        """The ball starts in the middle, towards side `to`."""
        self.x, self.y = WIDTH / 2, HEIGHT / 2
        self.turn(to, random.uniform(-0.8, 0.8))

    def turn(self, to, angle):
        self.dx = BALL_SPEED * math.cos(angle) * (-1 if to == 0 else 1)
        self.dy = BALL_SPEED * math.sin(angle)

    def move_ball(self, dt):
        self.x += self.dx * dt
        self.y += self.dy * dt
        if not 0 <= self.y <= HEIGHT:
            self.y = max(0, min(HEIGHT, self.y))
            self.dy = -self.dy
        if 0 <= self.x <= WIDTH:
            return
        number = 0 if self.x < 0 else 1
        off = (self.y - self.sides[number].y) / (PADDLE / 2)  # -1 to 1: on the paddle
        if abs(off) <= 1:
            self.x = max(0, min(WIDTH, self.x))
            self.turn(1 - number, 0.9 * off)
            return
        winner = self.sides[1 - number]
        winner.goals += 1
        if winner.goals == GOALS:
            self.phase = "over"
        self.serve(number)

    def state(self):
        return {
            "phase": self.phase,
            "coming": len(self.server.expected),  # players who are on their way
            "ball": [round(self.x), round(self.y)],
            "paddles": [round(side.y) if side else None for side in self.sides],
            "goals": [side.goals if side else 0 for side in self.sides],
            "names": [side.player.name if side else "" for side in self.sides],
            "again": [bool(side and side.again) for side in self.sides],
        }


if __name__ == "__main__":
    # Started by tipoff it finds its orders in the environment; started by hand it stands alone.
    tipoff.GameServer(Game(), tick_rate=30).main()
