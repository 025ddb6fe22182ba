// What one player knows of the arena, and where to draw it now: between two snapshots, a little in the past, so that
// squares glide though the server ticks only so often. Pure: times come in as milliseconds.

const DELAY_TICKS = 1.6;
const JUMP = 4; // units: further than that between two ticks is a new place, not a way

export class View {
  welcome = null;
  tick = 0;
  #snapshots = [];
  #offset = Infinity; // local time minus the server's tick time, of the fastest snapshots

  receive(message, now) {
    if (message.kind === "welcome") {
      this.welcome = message;
      return;
    }
    if (this.#snapshots.length && message.tick <= this.tick) return;
    this.tick = message.tick;
    this.#snapshots.push(message);
    if (this.#snapshots.length > 8) this.#snapshots.shift();
    const offset = now - message.tick * this.#tickMs;
    // Down at once, up slowly: a late snapshot says little, an early one much.
    this.#offset = offset < this.#offset || offset - this.#offset > 1000 ? offset : this.#offset + (offset - this.#offset) * 0.02;
  }

  get #tickMs() {
    return 1000 / (this.welcome?.tickRate ?? 30);
  }

  get newest() {
    return this.#snapshots.at(-1) ?? null;
  }

  /** [{number, x, y, dx, dy, bot, mine}] at local time `now`; (dx, dy) is the way it goes, in units per tick. */
  squares(now) {
    const shots = this.#snapshots;
    if (!shots.length) return [];
    const at = (now - this.#offset) / this.#tickMs - DELAY_TICKS;
    let after = shots.findIndex((shot) => shot.tick > at);
    if (after === -1) after = shots.length - 1;
    const to = shots[after];
    const from = shots[Math.max(0, after - 1)];
    const span = to.tick - from.tick;
    const part = span ? Math.min(1, Math.max(0, (at - from.tick) / span)) : 1;
    const squares = [];
    for (const [number, end] of to.squares) {
      let start = from.squares.get(number) ?? end;
      if (Math.hypot(end.x - start.x, end.y - start.y) > JUMP) start = end;
      squares.push({
        number,
        x: start.x + (end.x - start.x) * part,
        y: start.y + (end.y - start.y) * part,
        dx: span ? (end.x - start.x) / span : 0,
        dy: span ? (end.y - start.y) / span : 0,
        bot: end.bot,
        mine: number === this.welcome?.number,
      });
    }
    return squares;
  }
}
