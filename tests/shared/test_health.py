"""The sign of life that a container's health check asks for."""

from __future__ import annotations

import asyncio
import http.server
import threading
from pathlib import Path

import pytest

from tipoff_shared.health import STALE, VARIABLE, HealthFile, check


def test_a_touched_file_is_well_until_it_is_stale(tmp_path: Path) -> None:
    """By the age of the file alone: whoever asks needs no connection to anything."""
    environ = {VARIABLE: str(tmp_path / "alive")}
    assert "no sign of life" in check([], environ, 0.0)
    HealthFile(environ).touch()
    touched = (tmp_path / "alive").stat().st_mtime
    assert check([], environ, touched + 1) == ""
    assert "old" in check([], environ, touched + STALE + 1)


def test_without_a_file_nothing_is_written_and_nothing_is_well(tmp_path: Path) -> None:
    """A part outside a container has no variable; a check of it is a mistake that is told."""
    HealthFile({}).touch()
    assert VARIABLE in check([], {}, 0.0)


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The part goes on: it is the check that fails."""
    file = HealthFile({VARIABLE: str(tmp_path / "no such directory" / "alive")})
    file.touch()
    file.touch()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_it_beats_only_while_all_is_well(tmp_path: Path) -> None:
    """A part that has lost NATS shows no sign of life."""
    path = tmp_path / "alive"
    file = HealthFile({VARIABLE: str(path)})
    asked = asyncio.Event()

    def not_well() -> bool:
        asked.set()
        return False

    beating = asyncio.create_task(file.beat(not_well))
    await asyncio.wait_for(asked.wait(), 2)
    beating.cancel()
    assert not path.exists()


@pytest.mark.parametrize(("status", "well"), [(200, True), (503, False)])
def test_a_url_is_well_when_it_answers_200(status: int, well: bool) -> None:
    """httpd is asked at /healthz."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        wrong = check([f"http://127.0.0.1:{server.server_port}/healthz"], {}, 0.0)
        thread.join(5)
    assert (wrong == "") is well


def test_a_url_where_nobody_listens_is_not_well() -> None:
    """Refused connections are an answer, too."""
    assert "refused" in check(["http://127.0.0.1:1/healthz"], {}, 0.0)
    assert "expected" in check(["ftp://127.0.0.1/"], {}, 0.0)
