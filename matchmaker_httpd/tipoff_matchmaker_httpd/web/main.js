// The page: Play -> a seat -> the game; when the server is lost, a new game. Start reading at `playUntilLeft`.

import { advice } from "./advice.js";
import { joinGame } from "./connection.js";
import { followEvents } from "./events.js";
import { Keys } from "./keys.js";
import { loginToken, setLoginToken } from "./login.js";
import { pause, requestSeat } from "./matchmaking.js";
import { Renderer } from "./render.js";
import { ServersPanel } from "./servers_panel.js";
import { SessionPanel } from "./session_panel.js";
import { Story } from "./story.js";
import { View } from "./view.js";
import { encodeHello, encodeInput, parse } from "./wire.js";

const HELLO_EVERY = 250, INPUT_EVERY = 100; // milliseconds
const FIRST_RETRY = 300, OVERLOAD_RETRY = 1000, LONGEST_RETRY = 8000;

const parameters = new URLSearchParams(location.search);
const game = parameters.get("game") || "arena";
const version = parameters.get("version") || "1";

const $ = (id) => document.getElementById(id);
const renderer = new Renderer($("canvas"));
const session = new SessionPanel();
const servers = new ServersPanel();
const story = new Story();
const keys = new Keys($("canvas"), () => current !== null, sendInput);

/** For tests and for the curious. */
const tipoff = (window.tipoff = {
  game, version, phase: "idle", sessionId: "", deploymentId: "", tick: 0, messages: 0, connections: 0, latency: null, error: null, me: null,
});

let leaving = null; // AbortController of the press of the button that is being served
let held = null; // {session, resume_key} of the seat in use: what a lost connection comes back to
let current = null; // {connection, view, ...} while in a game

// --- the way of one player ------------------------------------------------------------------------------------------

/** From the press of Play to Leave: one game after the other, a new request for each. */
async function playUntilLeft() {
  const { signal } = (leaving = new AbortController());
  let retry = FIRST_RETRY;
  held = null;
  let again = false; // what is said about a loss or an error stays until the next game is there
  while (!signal.aborted) {
    try {
      const ended = await playOnce(signal, again);
      again = true;
      retry = FIRST_RETRY;
      if (!ended.lost) {
        held = null;
        phase("idle", "The match is over", ended.reason || "The server said goodbye. Press play for the next one.");
        break;
      }
      story.add(`The server is lost: asking for ${held ? "the same seat" : "a new game"}`, "bad");
      phase("lost", "Server lost", "Finding you a new game");
    } catch (error) {
      if (signal.aborted) break;
      if (held && [400, 403, 409].includes(error.code)) {
        held = null; // it is gone
        continue;
      }
      const { headline, detail, passes } = advice(error);
      tipoff.error = { code: error.code ?? 0, message: error.message };
      session.local("gone");
      story.add(`${headline}: ${detail}`, "bad");
      if (!passes) {
        phase("failed", headline, detail);
        if (error.code === 401) askForLogin();
        break;
      }
      // After a loss the matchmaker may name the dead server once more: that is the same loss, not a new trouble.
      if (again && !error.code) phase("lost", "Server lost", "Finding you a new game");
      else phase("lost", headline, `${detail} Trying again.`);
      again = true;
      if (error.code) retry = Math.max(retry, OVERLOAD_RETRY);
      await pause(retry * (0.75 + Math.random() / 2), signal).catch(() => {});
      retry = Math.min(retry * 1.8, LONGEST_RETRY);
    }
  }
  if (signal.aborted) phase("idle", "You left", "Your seat is free again. Press play for another game.");
  if ($("login").hidden) controls();
  leaving = null;
}

/** One request, one game. Resolves to {lost, reason} when the game is over. */
async function playOnce(signal, again) {
  if (tipoff.phase === "lost" && tipoff.error) story.add("Asking again");
  else story.begin(again ? "Asking for a new game" : `Asking for a game of ${game} ${version}`);
  session.local("requested");
  if (!again) phase("asking", "Finding a game", "Asking the matchmaker");
  if (!again) tipoff.error = null;
  const seat = await requestSeat({
    game,
    version,
    held,
    token: loginToken(),
    signal,
    onProgress({ text, sessionId }) {
      if (sessionId) session.accepted(sessionId);
      story.add(sessionId ? `${text}: ${sessionId}` : text);
      if (!again || tipoff.error === null) $("detail").textContent = text;
    },
  });
  held = seat.resume_key ? { session: seat.session_id, resume_key: seat.resume_key } : null;
  session.local("ready", seat.session_id || "");
  servers.mine(seat.session_id || "", seat.deployment_id || "");
  story.add(`A seat on ${seat.deployment_id || `${seat.ip}:${seat.port}`}, and a token to take it`);
  if (!again) phase("dialling", "Joining", seat.deployment_id || "");

  const view = new View();
  let end;
  const over = new Promise((resolve) => (end = resolve));
  const connection = await joinGame(seat, { signal, onMessage: (data) => received(data), onEnd: end });
  const state = (current = { connection, view, seat, sequence: 0, sentAt: new Map() });
  const leave = () => end({ lost: false, reason: "" });
  signal.addEventListener("abort", leave);

  function received(data) {
    let message;
    try {
      message = parse(data);
    } catch (error) {
      connection.close();
      return end({ lost: false, reason: `${error.message}.` });
    }
    view.receive(message, performance.now());
    tipoff.messages += 1;
    if (message.kind === "welcome") renderer.setMap(message);
    else {
      tipoff.tick = view.tick;
      measure(state, message);
    }
  }

  tipoff.sessionId = seat.session_id || "";
  tipoff.deploymentId = seat.deployment_id || "";
  tipoff.connections += 1;
  tipoff.error = null;
  tipoff.tick = 0;
  session.local("active", tipoff.sessionId);
  story.add("In the game", "good");
  phase("playing");
  $("canvas").focus({ preventScroll: true });
  connection.send(encodeHello());
  const hello = setInterval(() => (view.welcome ? clearInterval(hello) : connection.send(encodeHello())), HELLO_EVERY);
  const input = setInterval(() => sendInput(keys.held), INPUT_EVERY);
  try {
    return await over;
  } finally {
    clearInterval(hello);
    clearInterval(input);
    signal.removeEventListener("abort", leave);
    connection.close();
    current = null;
    tipoff.me = null;
    session.local("gone", tipoff.sessionId);
    servers.mine("", "");
    hud();
    controls();
  }
}

function sendInput(held) {
  if (!current) return;
  current.sequence += 1;
  current.sentAt.set(current.sequence & 0xffff, performance.now());
  if (current.sentAt.size > 64) current.sentAt.delete(current.sentAt.keys().next().value);
  current.connection.send(encodeInput(current.sequence, held));
}

/** The newest of my inputs that this snapshot shows: how long from key to screen. */
function measure(state, snapshot) {
  const mine = snapshot.squares.get(state.view.welcome?.number);
  tipoff.me = mine ? { number: state.view.welcome.number, x: mine.x, y: mine.y } : null;
  const sent = mine && state.sentAt.get(mine.lastInput);
  if (sent === undefined) return;
  state.sentAt.delete(mine.lastInput);
  const sample = performance.now() - sent;
  tipoff.latency = tipoff.latency === null ? sample : tipoff.latency + (sample - tipoff.latency) / 8;
}

// --- what is to be seen -----------------------------------------------------------------------------------------------

function phase(name, headline = "", detail = "") {
  tipoff.phase = name;
  document.body.dataset.phase = name;
  document.body.dataset.connected = String(name === "playing");
  if (headline) $("headline").textContent = headline;
  $("detail").textContent = detail;
  controls();
}

function controls() {
  const waiting = ["asking", "dialling", "lost"].includes(tipoff.phase);
  $("login").hidden = true;
  $("play").hidden = waiting;
  $("play").textContent = tipoff.phase === "failed" ? "Try again" : tipoff.connections ? "Play again" : "Play";
  $("cancel").hidden = !waiting;
  $("leave").disabled = current === null;
  $("kill").disabled = current === null || !tipoff.deploymentId;
}

/** The matchmaker wants a login, or another one: why is said above. */
function askForLogin() {
  setLoginToken("");
  $("play").hidden = true;
  $("login").hidden = false;
  $("token").focus();
}

let frame = 0;
function draw(now) {
  requestAnimationFrame(draw);
  if (!current) {
    if (!tipoff.connections && frame++ % 30 === 0) renderer.drawIdle();
    return;
  }
  renderer.draw(current.view.squares(now), now);
  if (frame++ % 6 === 0) hud();
}

function hud() {
  if (!current) {
    for (const id of ["server", "players", "tick", "latency"]) $(`hud-${id}`).textContent = "–";
    return;
  }
  const squares = [...(current.view.newest?.squares.values() ?? [])];
  const bots = squares.filter((square) => square.bot).length;
  $("hud-server").textContent = tipoff.deploymentId || current.seat.ip;
  $("hud-players").textContent = `${squares.length - bots} + ${bots} ${bots === 1 ? "bot" : "bots"}`;
  $("hud-tick").textContent = `${tipoff.tick}`;
  $("hud-latency").textContent = tipoff.latency === null ? "–" : `${Math.round(tipoff.latency)} ms`;
}

async function kill() {
  const id = tipoff.deploymentId;
  $("kill").disabled = true;
  story.add(`You kill ${id}`, "bad");
  try {
    const response = await fetch(`demo/kill/${encodeURIComponent(id)}`, { method: "POST" });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    servers.dying(id);
  } catch (error) {
    story.add(`It could not be killed: ${error.message}`, "bad");
    controls();
  }
}

// --- wiring -----------------------------------------------------------------------------------------------------------

$("play").addEventListener("click", () => leaving ?? playUntilLeft());
$("play").disabled = false; // a press before this line would have been lost
history.replaceState(null, ""); // loaded: index.html counts its attempts there
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  setLoginToken($("token").value);
  $("token").value = "";
  if (!leaving) playUntilLeft();
});
$("cancel").addEventListener("click", () => leaving?.abort(new Error("left")));
$("leave").addEventListener("click", () => leaving?.abort(new Error("left")));
$("kill").addEventListener("click", kill);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) keys.release(); // nobody steers a hidden tab
});
addEventListener("pagehide", () => current?.connection.close());
if (game !== "arena") $("headline").textContent = `${game} ${version}`;

function demo(on) {
  document.body.classList.toggle("alone", !on);
  $("side").hidden = $("live").hidden = !on;
  $("kill").hidden = !on;
}
followEvents("demo/events", {
  event(name, data) {
    if (name === "snapshot") {
      session.replaceAll(data.sessions);
      servers.replaceAll(data.deployments);
      data.gameservers?.forEach((lease) => servers.lease(lease));
    } else if (name === "deployment") servers.update(data);
    else if (name === "session") session.update(data);
    else if (name === "gameserver") servers.lease(data);
  },
  live(on) {
    if (on) demo(true);
    $("live").dataset.live = String(on);
    $("live").lastElementChild.textContent = on ? "live" : "live view lost, reconnecting";
  },
  absent: () => demo(false),
});

requestAnimationFrame(draw);
