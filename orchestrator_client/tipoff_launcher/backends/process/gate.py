"""Run as a script by the launcher, between its fork and the server: wait for the word, then become the server.

The launcher first writes down which process this is, then lets it through; a launcher that dies in between leaves
nothing behind. Standing alone (no imports but the standard library's quickest), it starts in a few milliseconds.

    python -I -S gate.py PARENT_PID|0 NICE COMMAND...        standard input: one byte is the word, the end is "go home"
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_NOT_LET_THROUGH = 125
_CANNOT_START = 127


def main(arguments: list[str]) -> None:
    parent, nice, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    if parent:
        if sys.platform.startswith("linux"):
            import ctypes  # 3 ms, only where it is needed

            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(_NOT_LET_THROUGH)
    if nice:
        os.nice(nice)
    if os.read(0, 1) == b"":
        os._exit(_NOT_LET_THROUGH)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    # Python ignores these and an ignored signal stays ignored through exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as exc:
        sys.stderr.write(f"cannot start {command[0]}: {exc.strerror}\n")
        sys.stderr.flush()
        os._exit(_CANNOT_START)


if __name__ == "__main__":
    main(sys.argv[1:])
