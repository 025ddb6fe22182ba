// The dashboard: what `tipoff up` runs, as its events say, and the buttons. Start reading at `followEvents` at the end.
// Everything that came from elsewhere is set as text, never as HTML.

import { followEvents } from "./events.js";
import { setLoginToken } from "./login.js";
import { TestPlayers } from "./test_players.js";

const SHOWN_LINES = 1000, SHOWN_NOTES = 100, SURE_FOR = 4000, SAID_FOR = 8000;
const $ = (id) => document.getElementById(id);
const secret = { "X-Tipoff-Dashboard": document.querySelector('meta[name="dashboard-token"]').content };

let system = {}, games = [], status = {}, clockAhead = 0;
const servers = new Map(), leases = new Map(), sessions = new Map(), errors = new Map();
let dismissed = new Map(); // number of an error -> its count when it was cleared
let lines = [], notes = [];

// --- elements -----------------------------------------------------------------------------------------------------------

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Keeps one card for each item, so that focus and half-pressed buttons survive an update. */
class Cards {
  #box;
  #cards = new Map();
  constructor(box) {
    this.#box = box;
  }

  show(items) {
    const wanted = new Set(items.map(({ key }) => key));
    for (const [key, card] of this.#cards) {
      if (wanted.has(key)) continue;
      card.element.remove();
      this.#cards.delete(key);
    }
    items.forEach((item, place) => {
      const card = this.#cards.get(item.key) ?? this.#make(item);
      if (this.#box.children[place] !== card.element) this.#box.insertBefore(card.element, this.#box.children[place] ?? null);
      card.element.dataset.state = item.state;
      setText(card.title, item.title);
      setText(card.state, item.label ?? item.state);
      setText(card.text, item.text);
      for (const [place, text] of [[card.why, item.why], [card.wrong, item.wrong]]) {
        setText(place, text || "");
        place.hidden = !text;
      }
      for (const [name, button] of card.buttons) button.hidden = !item.buttons[name]?.shown;
    });
  }

  #make(item) {
    const [title, state] = [element("span"), element("b")];
    const text = element("p"), why = element("p", { className: "why" }), wrong = element("p", { className: "wrong" });
    const row = element("div", { className: "buttons" });
    const buttons = Object.entries(item.buttons).map(([name, { label, act, sure, href }]) => {
      const made = href ? element("a", { className: "button", href, target: "_blank", rel: "noopener" }, label) : button(label, act, sure);
      made.dataset.action = name;
      row.append(made);
      return [name, made];
    });
    const card = { element: element("article", { className: "card" }, element("h3", {}, title, state), text, why, wrong, row), title, state, text, why, wrong, buttons };
    card.element.dataset.key = item.key;
    this.#cards.set(item.key, card);
    return card;
  }
}

/** A button whose `sure` (a question, or "" for none) is asked in the button itself. */
function button(label, act, sure = () => "") {
  const made = element("button", { type: "button" }, label);
  let timer = 0;
  const back = () => {
    clearTimeout(timer);
    made.classList.remove("sure");
    made.textContent = label;
  };
  made.addEventListener("click", async () => {
    const question = made.classList.contains("sure") ? "" : sure();
    if (question) {
      made.classList.add("sure");
      made.textContent = question;
      timer = setTimeout(back, SURE_FOR);
      return;
    }
    back();
    made.disabled = true;
    try {
      await act();
    } finally {
      made.disabled = false;
    }
  });
  return made;
}

let saidTimer = 0;
function say(text) {
  $("said").replaceChildren(element("span", {}, text));
  clearTimeout(saidTimer);
  saidTimer = setTimeout(() => $("said").replaceChildren(), SAID_FOR);
}

/** What a button does. `tell` makes a sentence of the answer. */
async function act(operation, body, tell) {
  try {
    const answer = await fetch(`_tipoff/do/${operation}`, {
      method: "POST",
      headers: { ...secret, "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(10_000),
    });
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(said.Error?.[1] ?? `HTTP ${answer.status}`);
    say(tell(said));
  } catch (error) {
    say(`That did not work: ${error.name === "TimeoutError" ? "no answer came in 10 s" : error.message}`);
  }
}

// --- what is shown ------------------------------------------------------------------------------------------------------

const cards = { games: new Cards($("games")), servers: new Cards($("servers")), sessions: new Cards($("sessions")), tests: new Cards($("tests")) };
const testPlayers = new TestPlayers(draw);
const LIVE = new Set(["planned", "starting", "ready", "draining", "stopping"]);
const OPEN = new Set(["requested", "ready", "active", "closing"]);
const now = () => Date.now() / 1000 + clockAhead;

function age(since) {
  const seconds = Math.max(0, Math.floor(now() - since));
  if (seconds < 100) return `${seconds} s`;
  if (seconds < 6000) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86_400)} d`;
}

const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
const of = (record) => `${record.game} ${record.version}`;
const liveServers = () => [...servers.values()].filter((server) => LIVE.has(server.state)).sort((a, b) => a.created_at - b.created_at);
const openSessions = () => [...sessions.values()].filter((session) => OPEN.has(session.state)).sort((a, b) => a.created_at - b.created_at);

function drawGames() {
  const known = new Map(games.map((game) => [`${game.name} ${game.version}`, game]));
  for (const server of liveServers()) {
    if (!known.has(of(server))) known.set(of(server), { name: server.game, version: server.version, min_ready: 0 });
  }
  cards.games.show([...known].map(([key, game]) => {
    const mine = liveServers().filter((server) => of(server) === key);
    const ready = mine.filter((server) => server.state === "ready").length;
    const all = openSessions().filter((session) => of(session) === key);
    const playing = all.filter((session) => session.state === "active").length;
    const waiting = all.filter((session) => session.state === "requested").length;
    const lacks = game.min_ready > 0 && ready === 0;
    return {
      key,
      state: lacks ? "starting" : ready ? "ready" : "idle",
      label: lacks ? "no server is ready yet" : ready ? "ready" : "no server",
      title: key,
      text: [
        `${plural(mine.length, "server")}${game.max_deployments ? ` of at most ${game.max_deployments}` : ""}`,
        game.seats ? `${game.seats} seats each` : "",
        plural(playing, "player"),
        waiting ? `${waiting} waiting` : "",
      ].filter(Boolean).join(" · "),
      buttons: {
        play: { shown: system.page, label: "Play", href: "./" },
        test: { shown: true, label: "Add a test player", act: () => testPlayers.add(game.name, game.version) },
        restart: {
          shown: true,
          label: "Restart",
          sure: () => (playersOf(key) ? `End ${plural(playersOf(key), "player")}' game?` : ""),
          act: () => act("restart", { game: game.name, version: game.version }, ({ servers: ended }) => `${key} restarts (${plural(ended.length, "server")})`),
        },
      },
    };
  }));
}

const playersOf = (key) => openSessions().filter((session) => of(session) === key && session.state === "active").length;

function ports(transports = {}) {
  const found = [];
  for (const [name, at] of Object.entries(transports)) {
    if (!at) continue;
    found.push(at.url ? `${name} ${at.url}` : `${name} ${at.host}:${at.port}`);
  }
  return found.join(" · ");
}

function drawServers() {
  const shown = liveServers();
  cards.servers.show(shown.map((server) => {
    const id = server.id, lease = leases.get(id);
    const seats = Object.keys(server.seats ?? {}).length;
    const connected = openSessions().filter((session) => session.deployment_id === id && session.state === "active").length;
    const draining = server.state === "draining" || server.state === "stopping";
    return {
      key: id,
      state: server.state,
      label: server.locked ? `${server.state}, locked` : server.state,
      title: id,
      text: [
        of(server),
        `${seats} of ${server.capacity} seats`,
        plural(connected, "player"),
        lease?.tick_rate ? `${lease.tick_ms.toFixed(1)} ms a tick` : "",
        lease?.pid ? `pid ${lease.pid}` : "",
        age(server.created_at),
        ports(server.transports),
      ].filter(Boolean).join(" · "),
      why: server.state === "planned" || server.state === "starting" ? "has not announced itself yet" : "",
      wrong: draining ? server.reason : "",
      buttons: {
        logs: { shown: true, label: "Logs", act: () => selectLogs(id) },
        drain: {
          shown: !draining,
          label: "Drain",
          act: () => act("drain", { deployment_id: id, now: false }, (done) => `${id} is ${done.state}${done.seats ? `, ${plural(done.seats, "seat")} still taken` : ""}`),
        },
        stop: {
          shown: server.state !== "stopping",
          label: "Stop",
          sure: () => (Object.keys(servers.get(id)?.seats ?? {}).length ? "End its players' game?" : ""),
          act: () => act("drain", { deployment_id: id, now: true }, (done) => `${id} is ${done.state}`),
        },
      },
    };
  }));
  setText($("servers-count"), shown.length ? String(shown.length) : "");
  $("no-servers").hidden = shown.length > 0;
}

const WAITS = { requested: "waits", ready: "has a seat, not connected yet", active: "plays", closing: "ends" };

/** As the matchmaker tells the player, as far as the records say it (matchmaker/tipoff_matchmaker/fleet/progress.py). */
function whyItWaits(session) {
  const fleet = liveServers().filter((server) => of(server) === of(session));
  const game = games.find(({ name, version }) => `${name} ${version}` === of(session));
  if (fleet.some(({ state }) => state === "planned" || state === "starting")) return "a server is starting";
  if (fleet.length && fleet.length >= (game?.max_deployments ?? Infinity)) {
    return `all servers are full${fleet.some(({ locked }) => locked) ? " or closed to new players" : ""}; it waits for a seat`;
  }
  return fleet.length ? "it is about to get a seat, or a server starts" : "no server runs; one is to start";
}

function drawSessions() {
  const shown = openSessions();
  cards.sessions.show(shown.map((session) => {
    const who = session.name && session.user_id ? `${session.name} (${session.user_id})` : session.name || session.user_id || session.id;
    return {
      key: session.id,
      state: session.state,
      label: WAITS[session.state],
      title: who,
      text: [who === session.id ? "" : session.id, of(session), session.deployment_id, age(session.created_at)].filter(Boolean).join(" · "),
      why: session.state === "requested" ? whyItWaits(session) : "",
      wrong: session.state === "closing" ? session.reason : "",
      buttons: {
        kick: {
          shown: session.state !== "closing",
          label: "Kick",
          act: () => act("kick", { session_id: session.id }, () => `${who} is kicked`),
        },
      },
    };
  }));
  const waiting = shown.filter((session) => session.state === "requested").length;
  setText($("sessions-count"), shown.length ? `${shown.length}${waiting ? `, ${waiting} waiting` : ""}` : "");
  $("no-sessions").hidden = shown.length > 0;
}

function drawTests() {
  const players = testPlayers.players;
  $("tests-section").hidden = players.length === 0 && $("login").hidden;
  cards.tests.show(players.map((player) => ({
    key: player.key,
    state: player.state,
    title: `${player.game} ${player.version}`,
    text: [player.deployment, player.state === "playing" ? plural(player.messages, "message") : "", player.last].filter(Boolean).join(" · "),
    why: player.state === "requested" ? player.said : "",
    wrong: player.state === "failed" || player.state === "over" ? player.said : "",
    buttons: { leave: { shown: true, label: player.state === "playing" ? "Leave" : "Remove", act: () => testPlayers.remove(player) } },
  })));
  $("login").hidden = testPlayers.wantsLogin === null;
  setText($("login-why"), testPlayers.wantsLogin ?? "");
}

function drawErrors() {
  const shown = [...errors.values()].filter((error) => (dismissed.get(error.number) ?? 0) < error.count).reverse();
  $("errors").hidden = shown.length === 0;
  $("errors-list").replaceChildren(...shown.slice(0, 10).map((error) => {
    const parts = [`${error.game} ${error.version}`, error.deployment_id, clock(error.at), error.count > 1 ? `${error.count} times` : ""];
    const item = element("li", {}, element("p", { className: "text" }, error.text), element("p", { className: "where" }, parts.filter(Boolean).join(" · ")));
    if (error.traceback) item.append(element("pre", { tabIndex: 0 }, error.traceback));
    return item;
  }));
}

function drawProblems() {
  const found = new Set(status.problem ? [status.problem] : []);
  if (!status.problem && status.matchmakers?.length === 0) found.add("no matchmaker answers");
  for (const one of status.matchmakers ?? []) {
    for (const problem of one.problems ?? []) found.add(problem);
    for (const orchestrator of one.orchestrators ?? []) {
      for (const problem of orchestrator.problems ?? []) found.add(`${orchestrator.name}: ${problem}`);
      for (const failing of orchestrator.failing ?? []) found.add(`${orchestrator.name}: ${failing.operation} fails: ${failing.error}`);
    }
  }
  $("problems").hidden = found.size === 0;
  $("problems").replaceChildren(...[...found].map((text) => element("li", {}, text)));
}

const clock = (at) => (at ? new Date(at * 1000).toTimeString().slice(0, 8) : "");

function selected(line) {
  const wanted = $("log-select").value;
  return (!line.routine || $("log-routine").checked) && (!wanted || wanted === line.deployment_id || wanted === `game ${of(line)}`);
}

function lineElement(line) {
  const made = element("div", { className: line.level });
  if (line.at) made.append(element("time", {}, clock(line.at)), " ");
  made.append(element("span", { className: "server" }, line.deployment_id), "  ", line.text);
  if (line.traceback) made.append(element("pre", {}, line.traceback));
  return made;
}

function drawLogs() {
  $("logs").replaceChildren(...lines.filter(selected).map(lineElement));
  follow();
}

function follow() {
  if ($("log-follow").checked) $("logs").scrollTop = $("logs").scrollHeight;
}

let fresh = []; // lines that came since the last frame
function appendLines() {
  const found = fresh.filter(selected);
  fresh = [];
  if (!found.length) return;
  $("logs").append(...found.slice(-SHOWN_LINES).map(lineElement));
  while ($("logs").childElementCount > SHOWN_LINES) $("logs").firstElementChild.remove();
  follow();
}

function drawChoices() {
  const select = $("log-select"), before = select.value;
  const named = new Map([["", "all servers"]]);
  for (const game of games) named.set(`game ${game.name} ${game.version}`, `${game.name} ${game.version}`);
  for (const { deployment_id: id } of lines) named.set(id, id);
  for (const { id } of liveServers()) named.set(id, id);
  const wanted = [...named.keys()].join("\n");
  if (select.dataset.choices === wanted) return;
  select.dataset.choices = wanted;
  select.replaceChildren(...[...named].map(([value, text]) => element("option", { value }, text)));
  select.value = named.has(before) ? before : "";
}

function selectLogs(id) {
  drawChoices();
  $("log-select").value = id;
  drawLogs();
  $("logs").focus();
  $("logs").scrollIntoView({ block: "nearest" });
}

function drawNotes() {
  $("no-notes").hidden = notes.length > 0;
  $("notes").replaceChildren(...notes.toReversed().map(({ at, text }) => element("li", {}, element("time", {}, clock(at)), " ", text)));
}

let asked = false;
function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    for (const part of [drawGames, drawServers, drawSessions, drawTests, drawErrors, drawProblems, drawChoices, drawNotes, appendLines]) part();
  });
}

// --- events -------------------------------------------------------------------------------------------------------------

function replaceAll(map, records, key) {
  map.clear();
  for (const record of records) map.set(record[key], record);
}

function change(map, record, key) {
  if (record.state === "gone") map.delete(record[key]);
  else map.set(record[key], record);
}

const on = {
  snapshot(data) {
    ({ system, games, status, lines, notes } = data);
    clockAhead = system.now - Date.now() / 1000;
    setText($("project"), [system.project.split("/").at(-1), system.nats].filter(Boolean).join("  "));
    $("project").title = system.project;
    replaceAll(servers, data.deployments, "id");
    replaceAll(sessions, data.sessions, "id");
    replaceAll(leases, data.gameservers, "deployment_id");
    replaceAll(errors, data.errors, "number");
    fresh = [];
    drawLogs();
  },
  deployment: (data) => change(servers, data, "id"),
  session: (data) => change(sessions, data, "id"),
  gameserver: (data) => change(leases, data, "deployment_id"),
  error(data) {
    errors.delete(data.number);
    errors.set(data.number, data);
  },
  line(data) {
    lines.push(data);
    fresh.push(data);
    if (lines.length > 2 * SHOWN_LINES) lines = lines.slice(-SHOWN_LINES);
    if (fresh.length > SHOWN_LINES) fresh = fresh.slice(-SHOWN_LINES); // a hidden tab draws nothing
  },
  note(data) {
    notes.push(data);
    if (notes.length > SHOWN_NOTES) notes.shift();
  },
  status: (data) => (status = data),
};

$("clear-errors").addEventListener("click", () => {
  dismissed = new Map([...errors.values()].map(({ number, count }) => [number, count]));
  draw();
});
for (const id of ["log-select", "log-routine"]) $(id).addEventListener("change", drawLogs);
$("log-follow").addEventListener("change", follow);
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  setLoginToken($("token").value);
  $("token").value = "";
  testPlayers.loggedIn();
});
addEventListener("pagehide", () => testPlayers.leaveAll());
setInterval(() => document.hidden || draw(), 1000); // ages

followEvents("_tipoff/events", {
  event(name, data) {
    on[name]?.(data);
    draw();
  },
  live(up) {
    document.body.dataset.live = String(up);
    setText($("live"), up ? "live" : "`tipoff up` does not answer; trying again");
  },
  absent: () => setText($("live"), "this `tipoff up` has no dashboard"),
  refused: () => location.reload(), // another `tipoff up`, whose page has another secret
}, secret);
