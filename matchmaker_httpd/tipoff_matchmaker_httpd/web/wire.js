// The arena's messages, as examples/arena/tipoff_arena/wire.py describes them. Whatever the bytes, the outcome is a
// message or a WireError.

export const VERSION = 1;
const HELLO = 1, INPUT = 2, WELCOME = 17, SNAPSHOT = 18;
const SCALE = 1024;
const WELCOME_BYTES = 21, WALL_BYTES = 8, SNAPSHOT_BYTES = 6, SQUARE_BYTES = 9;

export const LEFT = 1, RIGHT = 2, UP = 4, DOWN = 8;

export class WireError extends Error {}

export function encodeHello() {
  return new Uint8Array([HELLO, VERSION]);
}

export function encodeInput(sequence, held) {
  const view = new DataView(new ArrayBuffer(6));
  view.setUint8(0, INPUT);
  view.setUint32(1, sequence >>> 0, true);
  view.setUint8(5, held & 15);
  return view.buffer;
}

/** An ArrayBuffer from the server -> {kind: "welcome" | "snapshot", ...}. Lengths are in units, as in the rules. */
export function parse(buffer) {
  const view = new DataView(buffer);
  if (view.byteLength === 0) throw new WireError("an empty message");
  if (view.getUint8(0) === SNAPSHOT) return parseSnapshot(view);
  if (view.getUint8(0) === WELCOME) return parseWelcome(view);
  throw new WireError(`a message of unknown kind ${view.getUint8(0)}`);
}

function parseSnapshot(view) {
  const count = view.byteLength < SNAPSHOT_BYTES ? -1 : view.getUint8(5);
  if (view.byteLength !== SNAPSHOT_BYTES + count * SQUARE_BYTES) throw new WireError("a snapshot of the wrong length");
  const squares = new Map();
  for (let at = SNAPSHOT_BYTES; at < view.byteLength; at += SQUARE_BYTES) {
    squares.set(view.getUint16(at, true), {
      x: view.getUint16(at + 2, true) / SCALE,
      y: view.getUint16(at + 4, true) / SCALE,
      lastInput: view.getUint16(at + 6, true),
      bot: (view.getUint8(at + 8) & 1) === 1,
    });
  }
  return { kind: "snapshot", tick: view.getUint32(1, true), squares };
}

function parseWelcome(view) {
  if (view.byteLength < WELCOME_BYTES) throw new WireError("a welcome cut short");
  const version = view.getUint8(1);
  if (version !== VERSION) throw new WireError(`this server speaks version ${version} of the arena, this page ${VERSION}`);
  const count = view.getUint8(20);
  if (view.byteLength !== WELCOME_BYTES + count * WALL_BYTES) throw new WireError("a welcome of the wrong length");
  const length = (at) => view.getUint16(at, true) / SCALE;
  const walls = [];
  for (let at = WELCOME_BYTES; at < view.byteLength; at += WALL_BYTES) {
    walls.push({ left: length(at), top: length(at + 2), right: length(at + 4), bottom: length(at + 6) });
  }
  const [tickRate, speed, size] = [4, 8, 12].map((at) => view.getFloat32(at, true));
  if (![tickRate, speed, size].every((value) => value > 0 && value < 1e6)) throw new WireError("a welcome without sense");
  return { kind: "welcome", number: view.getUint16(2, true), tickRate, speed, size, width: length(16), height: length(18), walls };
}
