"""Runs `python -m tipoff_matchmaker`: one matchmaker until SIGTERM or SIGINT."""

from __future__ import annotations

from tipoff_matchmaker.service import main

if __name__ == "__main__":
    main()
