"""The page's way to a seat, `web/matchmaking.js`, run by Node with a WebSocket that does as it is told."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tipoff_matchmaker_httpd

MODULE = Path(tipoff_matchmaker_httpd.__file__).parent / "web" / "matchmaking.js"
SPEED = 20
"""The page's time runs so much faster here."""

HARNESS = """
const later = globalThis.setTimeout;
globalThis.setTimeout = (run, ms) => later(run, ms / SPEED);
globalThis.location = { href: "http://localhost/" };
const asked = [];
let open = 0;
globalThis.WebSocket = class {
  constructor() {
    this.script = scripts.shift();
    open += 1;
    later(() => this.script !== "unopened" && this.onopen?.(), 1);
  }
  send(text) {
    asked.push(JSON.parse(text).request_id);
    for (const step of this.script) {
      const data = JSON.stringify(step);
      later(() => (typeof step === "number" ? this.onclose?.({ code: step }) : this.onmessage?.({ data })), 2);
    }
  }
  close() { open -= 1; }
};
const { requestSeat } = await import("MODULE");
const began = performance.now();
const result = {};
try {
  result.seat = await requestSeat({ game: "a", version: "1", signal: new AbortController().signal, onProgress() {} });
} catch (error) {
  result.error = [error.code, error.message];
}
result.seconds = ((performance.now() - began) * SPEED) / 1000;
console.log(JSON.stringify({ ...result, asked: asked.length, ids: new Set(asked).size, open }));
process.exit(0);
"""

SEAT = ["Acknowledged", {"SessionReady": {"ip": "203.0.113.7"}}]


@pytest.mark.skipif(shutil.which("node") is None, reason="Node runs the page's module here")
@pytest.mark.parametrize(
    ("scripts", "asked", "longest"),
    [
        pytest.param([SEAT], 1, 1, id="answered"),
        pytest.param([[], SEAT], 2, 5, id="silent from the beginning"),
        pytest.param([["Acknowledged", {"ProgressReport": "soon"}], SEAT], 2, 10, id="silent later"),
        pytest.param(["unopened", SEAT], 1, 6, id="the handshake is not answered"),
        pytest.param([["Acknowledged", 1006], SEAT], 2, 2, id="broken off"),
        pytest.param([[{"Error": [503, "restarting"]}, 1012], SEAT], 2, 2, id="restarting"),
    ],
)
@pytest.mark.row(34)
def test_the_page_asks_again_with_the_same_request_id(
    scripts: list[object], asked: int, longest: float
) -> None:
    """Whatever became of the first socket; none is left open."""
    for _ in range(3):  # Node's own time counts twenty times here, and a machine may be busy
        result = run(scripts)
        if result["seconds"] < longest + 1.5:
            break
    assert result["seat"] == {"ip": "203.0.113.7"}
    assert (result["asked"], result["ids"], result["open"]) == (asked, 1, 0)
    assert result["seconds"] < longest + 1.5


@pytest.mark.skipif(shutil.which("node") is None, reason="Node runs the page's module here")
def test_a_no_is_told_to_the_player() -> None:
    """With its code, whether the close comes or not."""
    for script in ([{"Error": [404, "no such game"]}, 1000], [{"Error": [404, "no such game"]}]):
        assert run([script])["error"] == [404, "no such game"]


def run(scripts: list[object]) -> dict[str, Any]:
    code = HARNESS.replace("MODULE", MODULE.as_uri()).replace("SPEED", str(SPEED))
    source = f"const scripts = {json.dumps(scripts)};\n{code}"
    done = subprocess.run(
        ["node", "--input-type=module", "-"],  # whichever Node there is
        input=source,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
