"""Why a server ended, in words for people."""

from __future__ import annotations

import signal

from tipoff_launcher.backends.interface import Exit


def describe(how: Exit, *, stopped: bool, last_words: str) -> str:
    """`stopped`: somebody asked for it. `last_words` are quoted where they may explain something."""
    if stopped:
        return "stopped, by force" if how.code == -signal.SIGKILL else "stopped"
    if how.note:
        text = how.note
    elif how.code is None:
        text = "ended (with which code is not known: an earlier launcher started it)"
    elif how.code < 0:
        try:
            text = f"killed by signal {-how.code} ({signal.Signals(-how.code).name})"
        except ValueError:
            text = f"killed by signal {-how.code}"
    else:
        text = f"exited with code {how.code}"
    return f"{text}; its last words: {last_words}" if last_words and how.code != 0 else text
