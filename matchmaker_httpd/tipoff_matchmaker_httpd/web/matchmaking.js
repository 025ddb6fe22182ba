// Asking for a seat over /matchmaker/ws. The same request id is asked again when the socket breaks before the answer, or
// says nothing (a stopped process keeps its sockets open), so that one press of the button never takes two seats.

export class MatchmakingError extends Error {
  /** `code` is the project's error code: 404 unknown game, 503 no room or nobody there ... */
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

const ATTEMPTS = 8;
const OPEN_WITHIN = 4_000;
const ANSWER_WITHIN = 70_000; // for all attempts together
const FIRST_WORD = 3_000, LONGEST_WORD = 12_000; // until "Acknowledged": twice as long at each attempt
const SILENCE = 8_000; // between two words to one who waits; he is told something every two seconds
const GOODBYE = 1_000, RESTARTS = 1012;

/** 128 random bits: whoever knows a request id can ask for its token. */
function newRequestId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function matchmakerUrl() {
  const url = new URL("matchmaker/ws", location.href); // relative: the page may be under a path of a proxy
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

/**
 * Resolves to the content of SessionReady. `held`: {session, resume_key} of the seat that a lost connection had, to have
 * it again; `onProgress({stage, text, sessionId})` tells what happens meanwhile.
 * Rejects with MatchmakingError, or with `signal.reason` when aborted.
 */
export async function requestSeat({ game, version, name, token, held, signal, onProgress }) {
  const auth = token ? { token } : undefined; // the player's login
  const request = JSON.stringify({ game, version, name, auth, ...(held || { request_id: newRequestId() }) });
  const giveUp = performance.now() + ANSWER_WITHIN;
  for (let attempt = 1; ; attempt++) {
    const patience = Math.min(FIRST_WORD * 2 ** (attempt - 1), LONGEST_WORD);
    try {
      return await askOnce(request, patience, signal, onProgress);
    } catch (error) {
      if (!(error instanceof Broken)) throw error;
      if (performance.now() >= giveUp) throw new MatchmakingError(408, "no answer came in time");
      if (attempt >= ATTEMPTS) throw new MatchmakingError(503, error.asked ? "the matchmaker broke off" : "no matchmaker answers");
      await pause(Math.min(200 * 2 ** attempt, 3000), signal);
    }
  }
}

class Broken extends Error {
  constructor(asked) {
    super("the socket broke");
    this.asked = asked;
  }
}

function askOnce(request, patience, signal, onProgress) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const socket = new WebSocket(matchmakerUrl());
    let asked = false;
    let timer = setTimeout(() => finish(reject, new Broken(false)), OPEN_WITHIN);
    const aborted = () => finish(reject, signal.reason);
    function finish(settle, value) {
      clearTimeout(timer);
      signal.removeEventListener("abort", aborted);
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
      settle(value);
    }
    signal.addEventListener("abort", aborted);
    socket.onopen = () => {
      asked = true;
      listen(patience);
      socket.send(request);
    };
    function listen(within) {
      clearTimeout(timer);
      timer = setTimeout(() => finish(reject, new Broken(true)), within);
    }
    // Why comes first, and the close code after it says whether the next one takes over.
    function turnedAway(error) {
      clearTimeout(timer);
      timer = setTimeout(() => finish(reject, error), GOODBYE);
      socket.onmessage = null;
      socket.onclose = ({ code }) => finish(reject, code === RESTARTS ? new Broken(true) : error);
    }
    socket.onclose = () => finish(reject, new Broken(asked));
    socket.onmessage = ({ data }) => {
      listen(SILENCE);
      let message;
      try {
        message = JSON.parse(data);
      } catch {
        return finish(reject, new MatchmakingError(500, "the matchmaker's answer cannot be read"));
      }
      if (message === "Acknowledged") onProgress({ stage: "acknowledged", text: "A matchmaker has the request" });
      else if ("SessionRequestAccepted" in message) {
        onProgress({ stage: "accepted", text: "Session opened", sessionId: String(message.SessionRequestAccepted) });
      } else if ("ProgressReport" in message) onProgress({ stage: "waiting", text: String(message.ProgressReport) });
      else if ("SessionReady" in message) finish(resolve, message.SessionReady);
      else if ("Error" in message) turnedAway(new MatchmakingError(Number(message.Error[0]), String(message.Error[1])));
    };
  });
}

/** Waits `ms`; rejects with `signal.reason` when aborted. */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const aborted = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", aborted);
      resolve();
    }, ms);
    signal.addEventListener("abort", aborted, { once: true });
  });
}
