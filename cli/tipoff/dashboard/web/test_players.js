// Players without a game: they take a seat as any page does, count the messages, and leave. With them a developer sees
// who waits and why, fills rooms, and has somebody to kick.

import { joinGame } from "./connection.js";
import { loginToken, setLoginToken } from "./login.js";
import { requestSeat } from "./matchmaking.js";

const MOST = 50, LONGEST_LAST = 200;

export class TestPlayers {
  /** Why a login is wanted, as the matchmaker said; null while none is. */
  wantsLogin = null;
  players = [];
  #changed;
  #numbers = 0;

  constructor(changed) {
    this.#changed = changed;
  }

  add(game, version) {
    if (this.players.length >= MOST) this.remove(this.players[0]);
    const player = { key: `test ${(this.#numbers += 1)}`, game, version, state: "requested", said: "", deployment: "", messages: 0, last: "", abort: null };
    this.players.push(player);
    this.#play(player);
  }

  remove(player) {
    player.abort?.abort(new Error("left"));
    player.connection?.close();
    this.players = this.players.filter((other) => other !== player);
    if (!this.players.some(({ code }) => code === 401)) this.wantsLogin = null;
    this.#changed();
  }

  leaveAll() {
    for (const player of [...this.players]) this.remove(player);
  }

  /** A token was given: those who were refused for want of one ask again. */
  loggedIn() {
    this.wantsLogin = null;
    for (const player of this.players.filter(({ code }) => code === 401)) this.#play(player);
  }

  async #play(player) {
    const { signal } = (player.abort = new AbortController());
    const set = (values) => {
      Object.assign(player, values);
      this.#changed();
    };
    set({ state: "requested", said: "asking the matchmaker", code: 0 });
    try {
      const seat = await requestSeat({
        game: player.game,
        version: player.version,
        name: player.key,
        token: loginToken(),
        signal,
        onProgress: ({ text }) => set({ said: text }),
      });
      set({ deployment: seat.deployment_id, said: "connecting" });
      player.connection = await joinGame(seat, {
        signal,
        onMessage: (data) => set({ messages: player.messages + 1, last: readable(data) }),
        onEnd: ({ reason }) => set({ state: "over", said: reason || "the server ended the game", last: "" }),
      });
      set({ state: "playing" });
    } catch (error) {
      if (signal.aborted) return;
      if (error.code === 401) {
        this.wantsLogin = error.message;
        setLoginToken("");
      }
      set({ state: "failed", said: error.message, code: error.code ?? 0 });
    }
  }
}

/** A message as text where it is some, else how long it is. */
function readable(data) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(data);
    if (!/[\x00-\x08\x0e-\x1f]/.test(text)) return text.length > LONGEST_LAST ? `${text.slice(0, LONGEST_LAST)}…` : text;
  } catch {
    // no text
  }
  return `${data.byteLength} bytes`;
}
