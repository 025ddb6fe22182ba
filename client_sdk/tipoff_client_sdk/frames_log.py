"""The logger given to the websockets library, which writes frames at DEBUG: ours hold tokens."""

from __future__ import annotations

import logging

frames_log = logging.getLogger("tipoff_client_sdk.frames")
frames_log.setLevel(logging.INFO)
