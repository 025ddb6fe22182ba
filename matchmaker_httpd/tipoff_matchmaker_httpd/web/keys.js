// What the player holds down: arrow keys, W A S D, or a finger dragged over the canvas.

import { DOWN, LEFT, RIGHT, UP } from "./wire.js";

const KEYS = {
  ArrowLeft: LEFT, ArrowRight: RIGHT, ArrowUp: UP, ArrowDown: DOWN,
  KeyA: LEFT, KeyD: RIGHT, KeyW: UP, KeyS: DOWN,
};
const DEAD_ZONE = 14; // pixels

export class Keys {
  #pressed = new Set();
  #drag = null;
  #onChange;
  #last = 0;

  /** `active()` says whether the game wants keys now; `onChange(held)` is called at every change. */
  constructor(canvas, active, onChange) {
    this.#onChange = onChange;
    addEventListener("keydown", (event) => {
      if (!(event.code in KEYS) || !active() || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault(); // the page must not scroll under the game
      this.#pressed.add(event.code);
      this.#changed();
    });
    addEventListener("keyup", (event) => {
      if (this.#pressed.delete(event.code)) this.#changed();
    });
    addEventListener("blur", () => this.release());
    canvas.addEventListener("pointerdown", (event) => {
      if (!active()) return;
      canvas.setPointerCapture(event.pointerId);
      this.#drag = { id: event.pointerId, x: event.clientX, y: event.clientY, toX: event.clientX, toY: event.clientY };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.#drag?.id !== event.pointerId) return;
      this.#drag.toX = event.clientX;
      this.#drag.toY = event.clientY;
      this.#changed();
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => {
        if (this.#drag?.id !== event.pointerId) return;
        this.#drag = null;
        this.#changed();
      });
    }
  }

  get held() {
    let held = 0;
    for (const code of this.#pressed) held |= KEYS[code];
    return held | this.#dragged();
  }

  /** Let go of everything: the window lost the keyboard, or the tab is hidden. */
  release() {
    this.#pressed.clear();
    this.#drag = null;
    this.#changed();
  }

  /** Eight directions, each an eighth of the circle. */
  #dragged() {
    if (!this.#drag) return 0;
    const dx = this.#drag.toX - this.#drag.x, dy = this.#drag.toY - this.#drag.y;
    const way = Math.hypot(dx, dy);
    if (way < DEAD_ZONE) return 0;
    const slant = Math.sin(Math.PI / 8) * way;
    return (dx > slant ? RIGHT : dx < -slant ? LEFT : 0) | (dy > slant ? DOWN : dy < -slant ? UP : 0);
  }

  #changed() {
    const held = this.held;
    if (held === this.#last) return;
    this.#last = held;
    this.#onChange(held);
  }
}
