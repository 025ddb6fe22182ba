"""Images: which may be run, which must be fetched. One fetch at a time for each, shared by all who wait for it.

A fetch goes on when those who waited for it have given up: the next one finds it further on.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from tipoff_launcher.backends.docker.credentials import credentials
from tipoff_launcher.backends.docker.engine import Engine, EngineUnavailable, Refused
from tipoff_launcher.backends.docker.progress import PullProgress
from tipoff_orchestrator_client.base import GameUnavailable, NotConfigured, OrchestratorError
from tipoff_shared.errors import ConfigError
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

_TELL_EVERY = 1.0
_NOT_THERE = (
    *("denied", "not found", "manifest unknown", "does not exist"),
    *(
        "unauthorized",
        "no basic auth credentials",
        "authentication required",
        "incorrect username or password",
    ),
)
"""Words of engines and registries after which asking again does not help."""

Tell = Callable[[str], None]


def is_allowed(image: str, patterns: str) -> bool:
    """`patterns` are separated by commas; none at all means that games.toml itself is the list."""
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    return not wanted or any(fnmatch.fnmatchcase(image, pattern) for pattern in wanted)


class Images:
    """`config`: a config.json with credentials. `timeout`: seconds for one fetch."""

    def __init__(
        self,
        engine: Engine,
        tasks: Tasks,
        *,
        policy: Literal["missing", "always", "never"],
        config: Path | None,
        timeout: float,
    ) -> None:
        self._engine = engine
        self._tasks = tasks
        self._policy = policy
        self._config = config
        self._timeout = timeout
        self._fetches: dict[str, _Fetch] = {}

    async def have(self, image: str, tell: Tell) -> None:
        """Returns when the engine has it. `tell` hears how far it is. Raises `OrchestratorError`."""
        if self._policy != "always" and await self._engine.has_image(image):
            return
        if self._policy == "never":
            raise NotConfigured(
                f"the engine has no image {image!r}, and TIPOFF_LAUNCHER_DOCKER_PULL=never forbids to fetch it"
            )
        fetch = self._fetches.get(image)
        if fetch is None:
            fetch = self._fetches[image] = _Fetch()
            self._tasks.start(self._fetch(image, fetch), f"fetch {image}")
        await fetch.wait(tell)

    async def have_all(self, images: Iterable[str]) -> None:
        """Before anybody waits for them; what cannot be had is told again when it is needed."""
        for image in images:
            try:
                await self.have(image, lambda text: None)
            except OrchestratorError as exc:
                log.warning("image %s: %s", image, exc)

    async def _fetch(self, image: str, fetch: _Fetch) -> None:
        log.info("fetching image %s", image)
        try:
            async with asyncio.timeout(self._timeout):
                await self._pull(image, fetch)
                if not await self._engine.has_image(image):
                    raise EngineUnavailable(f"fetching image {image!r} broke off", retryable=True)
        except TimeoutError:
            fetch.fail(
                GameUnavailable(f"image {image!r} was not there after {self._timeout:.0f} s", retryable=True)
            )
        except OrchestratorError as exc:
            fetch.fail(exc)
        except BaseException:
            fetch.fail(EngineUnavailable("the launcher is ending", retryable=True))
            raise
        else:
            log.info("image %s is there", image)
            fetch.done()
        finally:
            del self._fetches[image]

    async def _pull(self, image: str, fetch: _Fetch) -> None:
        progress = PullProgress()
        loop = asyncio.get_running_loop()
        told_at = 0.0
        try:
            auth = credentials(self._config, image) if "/" in image else None
            async for line in self._engine.pull(image, auth):
                text, now = progress.feed(line), loop.time()
                if now - told_at >= _TELL_EVERY:
                    told_at = now
                    fetch.tell(text)
        except ConfigError as exc:
            raise NotConfigured(str(exc)) from exc
        except Refused as exc:
            if exc.status in (401, 403, 404) or any(text in str(exc).lower() for text in _NOT_THERE):
                raise NotConfigured(f"image {image!r} cannot be fetched: {exc}") from exc
            raise GameUnavailable(f"image {image!r} cannot be fetched: {exc}", retryable=True) from exc


class _Fetch:
    """One image on its way, and who waits for it."""

    def __init__(self) -> None:
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listeners: set[Tell] = set()
        self._text = ""

    async def wait(self, tell: Tell) -> None:
        self._listeners.add(tell)
        try:
            if self._text:
                tell(self._text)
            await asyncio.shield(self._over)
        finally:
            self._listeners.discard(tell)

    def tell(self, text: str) -> None:
        self._text = text
        for listener in self._listeners:
            listener(text)

    def done(self) -> None:
        self._over.set_result(None)

    def fail(self, error: OrchestratorError) -> None:
        self._over.set_exception(error)
        self._over.exception()  # perhaps nobody waits any more
