// The strip of your session: requested -> ready -> active -> gone, as the matchmaker's records say it.

const STEPS = ["requested", "ready", "active", "gone"];
const KEPT = 3;

export class SessionPanel {
  #strip = document.getElementById("session-strip");
  #line = this.#strip.querySelector("ol");
  #title = document.getElementById("session-id");
  #past = document.getElementById("past-sessions");
  #records = new Map(); // session id -> record, as the live view told
  #id = "";
  #local = "none";

  /** What this page itself knows: asked for a seat, got it, is in. The matchmaker's record wins as soon as there is one. */
  local(state, id = this.#id) {
    if (state === "requested" && this.#id) this.#remember();
    this.#local = state;
    this.#id = state === "requested" ? "" : id;
    this.#show();
  }

  /** The id became known. */
  accepted(id) {
    this.#id = id;
    this.#show();
  }

  replaceAll(records) {
    const missing = [...this.#records.keys()].filter((id) => !records.some((record) => record.id === id));
    for (const id of missing) this.#records.set(id, { ...this.#records.get(id), state: "gone" });
    for (const record of records) this.#records.set(record.id, record);
    this.#show();
  }

  update(record) {
    this.#records.set(record.id, record);
    if (this.#records.size > 500) this.#records.delete(this.#records.keys().next().value);
    this.#show();
  }

  get state() {
    return this.#records.get(this.#id)?.state ?? this.#local;
  }

  #show() {
    const state = this.state;
    this.#strip.dataset.state = this.#line.dataset.state = state;
    this.#title.textContent = this.#id ? short(this.#id) : "";
    this.#title.title = this.#id;
    const now = STEPS.indexOf(state === "closing" ? "gone" : state);
    for (const step of this.#line.children) {
      const place = STEPS.indexOf(step.dataset.step);
      step.dataset.is = place < now ? "done" : place === now ? "now" : "todo";
      if (place === now) step.setAttribute("aria-current", "step");
      else step.removeAttribute("aria-current");
    }
    for (const item of this.#past.children) this.#describe(item);
  }

  #remember() {
    const item = document.createElement("li");
    item.dataset.session = this.#id;
    item.append(document.createElement("code"), document.createElement("span"));
    this.#past.prepend(item);
    while (this.#past.children.length > KEPT) this.#past.lastChild.remove();
  }

  #describe(item) {
    const record = this.#records.get(item.dataset.session);
    const state = record?.state ?? "gone";
    item.dataset.state = state;
    item.firstChild.textContent = short(item.dataset.session);
    // What follows the first clause is for operators: a server's last words.
    const reason = (record?.reason ?? "").split(/[;\n]/)[0];
    item.lastChild.textContent = item.lastChild.title = state === "gone" && reason ? `gone: ${reason}` : state;
  }
}

export function short(id) {
  return id.length > 12 ? `${id.slice(0, 10)}…` : id;
}
