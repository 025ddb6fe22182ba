// The servers with their seats, each seat a small square. Records come as the matchmaker wrote them.

const SHOWN_SEATS = 64;
const GOODBYE = 1500; // milliseconds a gone server stays, fading

export class ServersPanel {
  #box = document.getElementById("servers");
  #count = document.getElementById("servers-count");
  #empty = this.#box.querySelector(".empty");
  #cards = new Map(); // deployment id -> {element, places: [session id or ""]}
  #mySession = "";
  #myDeployment = "";

  /** Which seat and server are yours ("" for none). */
  mine(sessionId, deploymentId) {
    this.#mySession = sessionId;
    this.#myDeployment = deploymentId;
    for (const [id, card] of this.#cards) this.#paint(id, card);
  }

  replaceAll(records) {
    const named = new Set(records.map((record) => record.id));
    for (const [id, card] of this.#cards) {
      if (!named.has(id)) this.update({ ...card.record, state: "gone", seats: {} });
    }
    for (const record of records) this.update(record);
  }

  update(record) {
    let card = this.#cards.get(record.id);
    if (!card) {
      if (record.state === "gone") return;
      card = this.#newCard(record);
    }
    card.record = record;
    this.#seat(card, Object.keys(record.seats ?? {}));
    this.#paint(record.id, card);
    if (record.state === "gone") {
      this.#cards.delete(record.id);
      setTimeout(() => {
        card.element.remove();
        this.#summary();
      }, GOODBYE);
    }
    this.#summary();
  }

  /** A gameserver's heartbeat, where the live view has it: how long its ticks take. */
  lease(lease) {
    const card = this.#cards.get(lease.deployment_id);
    if (!card) return;
    card.tick = lease.tick_rate ? `${lease.tick_ms.toFixed(1)} ms a tick` : "";
    this.#paint(lease.deployment_id, card);
  }

  /** The button was pressed: the server is dead before the matchmaker has noticed. */
  dying(deploymentId) {
    this.#cards.get(deploymentId)?.element.classList.add("dying");
  }

  #newCard(record) {
    const element = document.createElement("article");
    element.className = "server";
    element.dataset.deployment = record.id;
    const title = document.createElement("h3");
    title.append(document.createElement("span"), document.createElement("b"));
    const seats = document.createElement("div");
    seats.className = "seats";
    const text = document.createElement("p");
    element.append(title, seats, text);
    this.#box.append(element);
    const card = { element, title, seats, text, places: Array(Math.max(record.capacity, 1)).fill(""), record };
    this.#cards.set(record.id, card);
    return card;
  }

  /** A session keeps its little square for as long as it has the seat. */
  #seat(card, sessions) {
    const now = new Set(sessions);
    card.left = new Set();
    card.places.forEach((session, place) => {
      if (session && !now.has(session)) {
        card.places[place] = "";
        card.left.add(place);
      }
      now.delete(session);
    });
    for (const session of now) {
      const free = card.places.indexOf("");
      if (free === -1) card.places.push(session);
      else card.places[free] = session;
      card.left.delete(free);
    }
  }

  #paint(id, card) {
    const { record, places } = card;
    card.element.dataset.state = record.state;
    card.element.classList.toggle("home", id === this.#myDeployment);
    card.title.firstChild.textContent = id;
    card.title.lastChild.textContent = record.state;
    const shown = places.slice(0, SHOWN_SEATS);
    while (card.seats.children.length < shown.length) {
      card.seats.append(Object.assign(document.createElement("span"), { className: "seat" }));
    }
    shown.forEach((session, place) => {
      const seat = card.seats.children[place];
      seat.classList.toggle("taken", session !== "");
      seat.classList.toggle("mine", session !== "" && session === this.#mySession);
      seat.dataset.session = session;
      seat.title = session ? (session === this.#mySession ? "your seat" : `seat of ${session}`) : "free";
      if (card.left?.has(place)) vanish(seat);
    });
    card.left = null;
    const taken = places.filter(Boolean).length;
    const rest = places.length > SHOWN_SEATS ? `, ${places.length - SHOWN_SEATS} seats not drawn` : "";
    const parts = [`${record.game} ${record.version}`, `${taken} of ${record.capacity} taken${rest}`];
    if (record.locked) parts.push("closed to new players");
    if (id === this.#myDeployment) parts.push("you are here");
    else if (card.tick && record.state === "ready") parts.push(card.tick);
    card.text.textContent = parts.join(" · ");
  }

  #summary() {
    const servers = this.#box.querySelectorAll(".server:not([data-state=gone])").length;
    this.#count.textContent = servers ? String(servers) : "";
    this.#empty.hidden = this.#box.querySelector(".server") !== null;
  }
}

function vanish(seat) {
  seat.classList.remove("left");
  void seat.offsetWidth; // starts the animation anew
  seat.classList.add("left");
  seat.addEventListener("animationend", () => seat.classList.remove("left"), { once: true });
}
