"""Faults are tested with what the other areas' tests stand on: their worlds and players can be imported here."""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = Path(__file__).parent.parent
for _area in ("matchmaker", "gameserver", "orchestrator", "e2e", "faults"):
    if str(_TESTS / _area) not in sys.path:
        sys.path.insert(0, str(_TESTS / _area))
