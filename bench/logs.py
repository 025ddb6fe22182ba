"""A game server that floods its log, and what that costs another one: `python -m bench.logs [SECONDS]`.

The victim prints a line every 10 ms and measures how long each call takes; the attacker prints as fast as it can, into
the log of another server. Both write into the same log writer (tipoff_shared/log_writer).
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from tipoff_shared.log_writer.client import LogWriter

VICTIM = """
import sys, time
took = []
until = time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    began = time.perf_counter()
    print("a line of a game server that says what it does", flush=True)
    took.append(time.perf_counter() - began)
    time.sleep(0.01)
took.sort()
sys.stderr.write(f"{len(took)} {took[int(len(took) * 0.99)] * 1e6:.0f} {took[-1] * 1e6:.0f}")
"""

ATTACKER = """
import os, sys, time
piece = b"0123456789" * 6553 + b"\\n"
sent, until = 0, time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    sent += os.write(1, piece)
sys.stderr.write(f"{sent / 1e6:.0f}")
"""


async def run(script: str, seconds: float, output: int) -> str:
    """Run the script with this output; what it says on standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(seconds), stdout=output, stderr=asyncio.subprocess.PIPE
    )
    os.close(output)
    _, said = await process.communicate()
    return said.decode()


def used_by(pid: int) -> tuple[float, float]:
    """Seconds of processor time of a process so far, and its memory in MB (PSS: its share of shared pages)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pss = next(
        line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:")
    )
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(pss.split()[1]) / 1000


def size_of(root: Path, name: str) -> int:
    """Bytes of all files whose names begin with `name`."""
    return sum(path.stat().st_size for path in root.glob(f"{name}*"))


async def measure(seconds: float, *, attack: bool) -> None:
    """One run, with or without the attacker."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        async with LogWriter(root) as logs:
            works = [run(VICTIM, seconds, logs.open(root / "victim.log"))]
            if attack:
                works.append(run(ATTACKER, seconds, logs.open(root / "attacker.log")))
            said = await asyncio.gather(*works)
            await logs.finished(root / "victim.log")
            await logs.finished(root / "attacker.log")
            assert logs.pid is not None
            cpu, memory = used_by(logs.pid)
        calls, p99, worst = said[0].split()
        lines = (root / "victim.log").read_bytes().count(b"\n")
        print(
            f"{'with' if attack else 'without'} the flood: {calls} lines, {lines} in the log; "
            f"print() p99 {p99} us, worst {worst} us; writer: {cpu / seconds:.0%} of a processor, {memory:.1f} MB"
        )
        if attack:
            kept = size_of(root, "attacker")
            print(f"  the flood: {said[1]} MB written, {kept / 1e6:.1f} MB on the disk")


async def main() -> None:
    """Both runs."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    await measure(seconds, attack=False)
    await measure(seconds, attack=True)


if __name__ == "__main__":
    asyncio.run(main())
