// Draws the map and the squares on the canvas. Knows nothing of the network.

const TRAIL = 14; // drawn places of a moving square that stay visible for a moment

export class Renderer {
  #canvas;
  #pen;
  #map = null;
  #floor = null;
  #trails = new Map();

  constructor(canvas) {
    this.#canvas = canvas;
    this.#pen = canvas.getContext("2d");
    new ResizeObserver(() => this.#fit()).observe(canvas);
    this.#fit();
  }

  /** `map`: width, height, size and walls, in units. */
  setMap(map) {
    this.#map = map;
    this.#floor = null;
    this.#trails.clear();
  }

  #fit() {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const width = Math.round(this.#canvas.clientWidth * ratio), height = Math.round(this.#canvas.clientHeight * ratio);
    if (!width || !height || (width === this.#canvas.width && height === this.#canvas.height)) return;
    this.#canvas.width = width;
    this.#canvas.height = height;
    this.#floor = null;
  }

  draw(squares, now) {
    const map = this.#map ?? IDLE_MAP;
    const pen = this.#pen, canvas = this.#canvas;
    const scale = Math.min(canvas.width / map.width, canvas.height / map.height);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    this.#floor ??= paintFloor(map, canvas.width, canvas.height, scale);
    pen.drawImage(this.#floor, 0, 0);
    pen.setTransform(scale, 0, 0, scale, (canvas.width - map.width * scale) / 2, (canvas.height - map.height * scale) / 2);
    for (const number of this.#trails.keys()) {
      if (!squares.some((square) => square.number === number)) this.#trails.delete(number);
    }
    const ordered = [...squares].sort((a, b) => a.mine - b.mine || b.bot - a.bot);
    for (const square of ordered) this.#drawTrail(square, map.size);
    for (const square of ordered) drawSquare(pen, square, map, now);
  }

  /** The picture before the first game. */
  drawIdle() {
    this.draw(IDLE_SQUARES, 1000);
  }

  #drawTrail(square, size) {
    let trail = this.#trails.get(square.number);
    if (!trail) this.#trails.set(square.number, (trail = []));
    trail.push([square.x, square.y]);
    if (trail.length > TRAIL) trail.shift();
    const pen = this.#pen;
    pen.fillStyle = colour(square);
    for (let n = 0; n < trail.length - 1; n++) {
      pen.globalAlpha = (n / trail.length) ** 2 * (square.mine ? 0.16 : 0.08);
      const side = size * (0.45 + 0.5 * (n / trail.length));
      box(pen, trail[n][0] - side / 2, trail[n][1] - side / 2, side, side, side * 0.25);
      pen.fill();
    }
    pen.globalAlpha = 1;
  }
}

const wall = (left, top, right, bottom) => ({ left, top, right, bottom });
const mirrored = ({ left, top, right, bottom }) => [
  wall(left, top, right, bottom), wall(48 - right, top, 48 - left, bottom),
  wall(left, 27 - bottom, right, 27 - top), wall(48 - right, 27 - bottom, 48 - left, 27 - top),
];
// Only a picture: the map that is played on comes from the server.
const IDLE_MAP = {
  width: 48, height: 27, size: 1,
  walls: [wall(6, 5, 13, 6), wall(6, 5, 7, 10), wall(17, 2.5, 18, 6.5)].flatMap(mirrored),
};
const IDLE_SQUARES = [[10, 8.5, 3], [38.5, 3.5, 5], [37.5, 18.3, 8], [4.5, 19.6, 11], [33.5, 23.5, 14], [22, 3.2, 2]].map(
  ([x, y, number], place) => ({ number, x, y, dx: place % 2 ? 0.1 : -0.1, dy: 0.05, bot: place !== 0, mine: place === 0 }),
);

/** The golden angle keeps neighbours in number apart in hue; amber is left to you. */
export function colour({ number, bot, mine }) {
  if (mine) return "#ffb547";
  const hue = Math.round(150 + ((number * 137.5) % 190));
  return bot ? `hsl(${hue} 22% 52%)` : `hsl(${hue} 80% 64%)`;
}

function drawSquare(pen, square, map, now) {
  const size = map.size;
  const { x, y, dx, dy, mine } = square;
  const speed = Math.hypot(dx, dy);
  const half = size / 2;
  pen.save();
  pen.translate(x, y);
  if (mine) {
    pen.shadowColor = "#ffb547";
    pen.shadowBlur = 26;
  }
  pen.fillStyle = colour(square);
  box(pen, -half, -half, size, size, size * 0.24);
  pen.fill();
  pen.shadowBlur = 0;
  pen.fillStyle = "#ffffff26";
  box(pen, -half, -half, size, size * 0.42, size * 0.24);
  pen.fill();
  // Eyes look where it goes; they blink now and then, each square in its own time.
  const lookX = speed ? (dx / speed) * 0.14 : 0, lookY = speed ? (dy / speed) * 0.12 : 0;
  const open = (now / 1000 + square.number * 0.7) % 4 < 0.12 ? 0.2 : 1;
  pen.fillStyle = square.bot ? "#0f1521aa" : "#121722";
  for (const side of [-1, 1]) {
    pen.beginPath();
    pen.ellipse(side * size * 0.17 + lookX, lookY, size * 0.085, size * 0.13 * open, 0, 0, Math.PI * 2);
    pen.fill();
  }
  if (mine) {
    pen.fillStyle = "#ffd79a";
    pen.font = "600 0.72px system-ui, sans-serif";
    pen.textAlign = "center";
    const aside = Math.min(0, map.width - 0.9 - x) + Math.max(0, 0.9 - x);
    pen.fillText("you", aside, y < 2 ? half + 0.85 : -half - 0.32);
  }
  pen.restore();
}

/** Painted once for each size: the floor's grid and the walls. */
function paintFloor(map, width, height, scale) {
  const floor = document.createElement("canvas");
  floor.width = width;
  floor.height = height;
  const pen = floor.getContext("2d");
  pen.fillStyle = "#0a0e15";
  pen.fillRect(0, 0, width, height);
  pen.setTransform(scale, 0, 0, scale, (width - map.width * scale) / 2, (height - map.height * scale) / 2);
  const light = pen.createRadialGradient(map.width / 2, map.height / 2, 2, map.width / 2, map.height / 2, map.width * 0.6);
  light.addColorStop(0, "#172031");
  light.addColorStop(1, "#0d131d");
  pen.fillStyle = light;
  pen.fillRect(0, 0, map.width, map.height);
  pen.fillStyle = "#ffffff0b";
  for (let x = 1.5; x < map.width; x += 1.5) {
    for (let y = 1.5; y < map.height; y += 1.5) {
      pen.beginPath();
      pen.arc(x, y, 0.05, 0, Math.PI * 2);
      pen.fill();
    }
  }
  for (const wall of map.walls) {
    pen.fillStyle = "#00000066";
    box(pen, wall.left + 0.12, wall.top + 0.22, wall.right - wall.left, wall.bottom - wall.top, 0.22);
    pen.fill();
  }
  for (const wall of map.walls) {
    pen.fillStyle = "#34435f";
    box(pen, wall.left, wall.top, wall.right - wall.left, wall.bottom - wall.top, 0.22);
    pen.fill();
  }
  for (const wall of map.walls) {
    pen.fillStyle = "#4a5c80";
    box(pen, wall.left + 0.08, wall.top + 0.07, wall.right - wall.left - 0.16, 0.12, 0.06);
    pen.fill();
  }
  pen.strokeStyle = "#2b3850";
  pen.lineWidth = 0.16;
  pen.strokeRect(0.08, 0.08, map.width - 0.16, map.height - 0.16);
  return floor;
}

function box(pen, x, y, width, height, radius) {
  pen.beginPath();
  pen.roundRect(x, y, width, height, radius);
}
