// Errors for people: what it means, what to do, and whether trying again by itself makes sense.

const BY_CODE = {
  0: ["The server cannot be reached", "Another one is asked for.", true], // seen by this page itself
  400: ["The request was not understood", "Check game and version in the address of this page.", false],
  401: ["You have to log in first", "Give the token that your login made for you.", false],
  403: ["Not allowed", "This matchmaker does not let you play from here.", false],
  404: ["No such game here", "Check game and version in the address of this page: ?game=arena&version=1", false],
  408: ["No server became ready in time", "It may be starting still. Trying again often helps.", true],
  409: ["The session is over already", "A new one is asked for.", true],
  413: ["The request was too large", "Please report this.", false],
  429: ["Slow down a little", "Too many requests came from here, or too many players from here have seats and have not connected yet.", true],
  500: ["Something broke on our side", "Trying again may help; the operator finds the reason in the log.", true],
  502: ["The server could not be started", "The orchestrator failed; its log says why.", true],
  503: ["No room right now", "All servers are full, or no matchmaker is running.", true],
};

/** {headline, detail, passes}: `passes` when it may pass by itself, so that asking again makes sense. */
export function advice(error) {
  const [headline, hint, passes] = BY_CODE[error.code] ?? ["That did not work", "", true];
  const said = error.message ? `${error.message.replace(/[.\s]+$/, "")}. ` : "";
  return { headline, detail: said + hint, passes };
}
