// What happened, a line each, with the time since the button was pressed.

const KEPT = 60;

export class Story {
  #list = document.getElementById("progress");
  #start = 0;

  /** A new request: times count from here. */
  begin(text) {
    this.#start = performance.now();
    this.add(text, "first");
  }

  /** `mood`: "good", "bad", "first" or nothing. A repeated last line is not written twice. */
  add(text, mood = "") {
    this.#list.querySelector(".empty")?.remove();
    if (this.#list.lastElementChild?.dataset.text === text) return;
    const item = document.createElement("li");
    item.className = mood;
    item.dataset.text = text;
    const time = document.createElement("time");
    const ms = performance.now() - this.#start;
    time.textContent = ms < 10_000 ? `${Math.round(ms)} ms` : ms < 600_000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 60_000)} min`;
    const words = document.createElement("span");
    words.textContent = text;
    item.append(time, words);
    this.#list.append(item);
    while (this.#list.children.length > KEPT) this.#list.firstElementChild.remove();
    this.#list.scrollTop = this.#list.scrollHeight;
  }
}
