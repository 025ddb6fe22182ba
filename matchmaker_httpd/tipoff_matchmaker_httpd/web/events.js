// Server-sent events by fetch. EventSource would hide the status, and 404 means something here: no demo, no live view.

const FIRST_PAUSE = 500, LONGEST_PAUSE = 10_000, SILENCE = 45_000;

/**
 * Follows `url` for ever, with back-off between connections. `on.event(name, data)` gets each event, its data parsed;
 * `on.live(boolean)` whether the stream is up; `on.absent()` is called, once, when there is no such stream here, and
 * `on.refused()`, if there is one, when it may not be read. `headers` go with each request.
 */
export async function followEvents(url, on, headers = {}) {
  let wait = FIRST_PAUSE;
  for (;;) {
    const abort = new AbortController();
    try {
      const response = await fetch(url, { headers: { Accept: "text/event-stream", ...headers }, cache: "no-store", signal: abort.signal });
      if (response.status === 404) return on.absent();
      if (response.status === 403 && on.refused) return on.refused();
      if (!response.ok || !response.body) throw new Error(`HTTP ${response.status}`);
      on.live(true);
      wait = FIRST_PAUSE;
      await read(response.body, abort, on.event);
    } catch {
      // broken off, or not reachable: said by live(false), tried again below
    }
    abort.abort();
    on.live(false);
    await new Promise((resolve) => setTimeout(resolve, wait * (0.75 + Math.random() / 2)));
    wait = Math.min(wait * 2, LONGEST_PAUSE);
  }
}

/** The lines of the event stream format (WHATWG HTML, 9.2.6), of which `event`, `data` and comments occur here. */
async function read(body, abort, onEvent) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", name = "message", data = [];
  for (;;) {
    const silence = setTimeout(() => abort.abort(), SILENCE); // the server sends comments in between
    const { value, done } = await reader.read().finally(() => clearTimeout(silence));
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n|\r/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length) onEvent(name, JSON.parse(data.join("\n")));
        name = "message";
        data = [];
      } else if (line.startsWith("event:")) name = line.slice(6).trim();
      else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    }
  }
}
