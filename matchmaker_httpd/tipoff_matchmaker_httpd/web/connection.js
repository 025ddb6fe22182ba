// The game's WebSocket: the connect token first, the server's answer, then one binary message each.

export class ConnectionError extends Error {
  /** `refused`: the server's own no, with its `code`; otherwise nobody was reached. */
  constructor(message, { code = 0, refused = false } = {}) {
    super(message);
    this.code = code;
    this.refused = refused;
  }
}

const OPEN_WITHIN = 6_000;
const GOODBYES = new Set([1000, 1001, 1008, 1012, 1013]); // and the game's own, from 4000 on

/**
 * Resolves to a GameConnection once the server has admitted the token of `seat` (the content of SessionReady).
 * Rejects with ConnectionError, or with `signal.reason` when aborted.
 */
export function joinGame(seat, { signal, onMessage, onEnd }) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const url = seat.transports?.websocket?.url;
    if (!url) return reject(new ConnectionError("This game has no WebSocket listener, so a browser cannot play it."));
    if (location.protocol === "https:" && url.startsWith("ws:")) {
      return reject(new ConnectionError("This page came over https, but the game's WebSocket has no TLS: give it a certificate."));
    }
    const token = Uint8Array.from(atob(seat.token), (char) => char.charCodeAt(0));
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    const timer = setTimeout(() => fail(new ConnectionError(`Nothing comes back from ${url}`)), OPEN_WITHIN);
    const aborted = () => fail(signal.reason);
    signal.addEventListener("abort", aborted);
    function settle() {
      clearTimeout(timer);
      signal.removeEventListener("abort", aborted);
    }
    function fail(error) {
      settle();
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
      reject(error);
    }
    socket.onopen = () => socket.send(token);
    socket.onclose = () => fail(new ConnectionError(`Nobody answers at ${url}`));
    socket.onmessage = ({ data }) => {
      let answer = {};
      try {
        answer = JSON.parse(data);
      } catch {
        // not an answer: said below
      }
      if (answer.Refused) {
        const [code, reason] = answer.Refused;
        return fail(new ConnectionError(`The server refused: ${reason}`, { code, refused: true }));
      }
      if (!answer.Admitted) return fail(new ConnectionError("The server's answer to the token cannot be read."));
      settle();
      resolve(new GameConnection(socket, onMessage, onEnd));
    };
  });
}

class GameConnection {
  #socket;
  constructor(socket, onMessage, onEnd) {
    this.#socket = socket;
    socket.onmessage = ({ data }) => {
      if (data instanceof ArrayBuffer) onMessage(data);
    };
    // A server that says goodbye ended the match; one that vanishes was lost.
    socket.onclose = ({ code, reason }) => onEnd({ lost: !GOODBYES.has(code) && code < 4000, reason });
  }

  /** Drops the message when much is unsent already: an old input is worth nothing. */
  send(message) {
    if (this.#socket.readyState === WebSocket.OPEN && this.#socket.bufferedAmount < 4096) this.#socket.send(message);
  }

  close() {
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close(1000);
  }
}
