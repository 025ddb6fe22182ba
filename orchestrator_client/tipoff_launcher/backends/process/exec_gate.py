"""Runs between fork and exec: waits until the launcher has recorded this process, then becomes the server.

The launcher runs this file as a script. It first records which process this is, then writes one byte to the script's
standard input; a launcher that dies in between leaves nothing behind, because the end of the input makes the script
exit. The script imports only the quickest modules of the standard library, so it starts in a few milliseconds.

    python -I -S exec_gate.py PARENT_PID|0 NICE COMMAND...
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_NOT_RELEASED = 125
_CANNOT_EXEC = 127


def main(arguments: list[str]) -> None:
    """Wait for the byte and exec COMMAND; does not return. Exits with 125 when it is not released, 127 when COMMAND
    cannot be executed."""
    parent, nice, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    if sys.platform.startswith("linux"):
        import ctypes  # takes 3 ms, so only where it is needed

        prctl = ctypes.CDLL(None).prctl
        # It outlasts exec: what the server starts, and what that starts, stays below the server (process_tree.py).
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if parent:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent and os.getppid() != parent:  # the launcher died before prctl took effect
        os._exit(_NOT_RELEASED)
    if nice:
        os.nice(nice)
    if os.read(0, 1) == b"":
        os._exit(_NOT_RELEASED)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    # Python ignores these signals, and an ignored signal stays ignored across exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as exc:
        sys.stderr.write(f"cannot start {command[0]}: {exc.strerror}\n")
        sys.stderr.flush()
        os._exit(_CANNOT_EXEC)


if __name__ == "__main__":
    main(sys.argv[1:])
