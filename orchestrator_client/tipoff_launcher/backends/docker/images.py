"""Fetches images, with progress for players and credentials for private registries.

There is one fetch per image at a time, shared by all starts that wait for it. It continues when they have given up, so
the next start finds it further along.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import fnmatch
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tipoff_launcher.backends.docker.engine import Engine, EngineError, EngineUnavailable
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import GameUnavailable, NotConfigured, OrchestratorError
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.primitives.single_flight import SingleFlight

log = logging.getLogger(__name__)

_PROGRESS_EVERY = 1.0
_UNAVAILABLE = (
    *("denied", "not found", "manifest unknown", "does not exist"),
    *(
        "unauthorized",
        "no basic auth credentials",
        "authentication required",
        "incorrect username or password",
    ),
)
"""Words of engines and registries after which fetching again does not help."""
_MB = 1_000_000
_DOCKER_HUB = "https://index.docker.io/v1/"

Progress = Callable[[str], None]


def is_allowed(image: str, patterns: str) -> bool:
    """Whether `patterns`, separated by commas, allow an image. Without patterns all in games.toml are allowed."""
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    return not wanted or any(fnmatch.fnmatchcase(image, pattern) for pattern in wanted)


class _Fetch:
    """What the starts that wait for one image are told."""

    def __init__(self) -> None:
        self._waiting: set[Progress] = set()
        self._text = ""

    @contextmanager
    def reported_to(self, progress: Progress) -> Iterator[None]:
        """For the time of the block `progress` gets every text, beginning with the last one."""
        self._waiting.add(progress)
        try:
            if self._text:
                progress(self._text)
            yield
        finally:
            self._waiting.discard(progress)

    def report(self, text: str) -> None:
        self._text = text
        for progress in self._waiting:
            progress(text)


class Images:
    """Makes sure that an image is present before a start, as the `docker_pull...` settings say.

    Use it in `async with`; leaving cancels the fetches.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._policy = settings.docker_pull
        self._config = settings.docker_config
        self._timeout = settings.docker_pull_timeout
        self._fetching: dict[str, _Fetch] = {}
        self._flights = SingleFlight[str, None]("fetch")

    async def __aenter__(self) -> Images:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._flights.close()

    async def ensure(self, image: str, progress: Progress) -> None:
        """Return when the engine has the image; `progress` gets texts meanwhile. Raises `OrchestratorError`.
        Cancelling is safe and does not stop the fetch."""
        if self._policy != "always" and await self._engine.has_image(image):
            return
        if self._policy == "never":
            raise NotConfigured(
                f"the engine has no image {image!r}, and TIPOFF_LAUNCHER_DOCKER_PULL=never forbids fetching it"
            )
        fetch = self._fetching.setdefault(image, _Fetch())
        with fetch.reported_to(progress):
            try:
                await self._flights.run(image, lambda: self._fetch(image, fetch))
            except Unavailable as exc:
                raise EngineUnavailable("the launcher is ending", retryable=True) from exc

    async def prefetch(self, images: Iterable[str]) -> None:
        """Fetch images before a start needs them. Failures are only logged: the start will raise them."""
        for image in images:
            try:
                await self.ensure(image, lambda text: None)
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
            raise GameUnavailable(
                f"image {image!r} was not fetched within {self._timeout:.0f} s", retryable=True
            ) from None
        finally:
            del self._fetching[image]
        log.info("image %s is fetched", image)

    async def _pull(self, image: str, fetch: _Fetch) -> None:
        pull = PullProgress()
        loop = asyncio.get_running_loop()
        reported_at = 0.0
        try:
            auth = credentials(self._config, image) if "/" in image else None
            async for line in self._engine.pull(image, auth):
                text, now = pull.feed(line), loop.time()
                if now - reported_at >= _PROGRESS_EVERY:
                    reported_at = now
                    fetch.report(text)
        except ConfigError as exc:
            raise NotConfigured(str(exc)) from exc
        except EngineError as exc:
            if exc.status in (401, 403, 404) or any(text in str(exc).lower() for text in _UNAVAILABLE):
                raise NotConfigured(f"image {image!r} cannot be fetched: {exc}") from exc
            raise GameUnavailable(f"image {image!r} cannot be fetched: {exc}", retryable=True) from exc


class PullProgress:
    """Turns the engine's progress messages into one line for the players who wait. Pure."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[float, float]] = {}
        self._unpacking = False

    def feed(self, line: Mapping[str, Any]) -> str:
        """Take one message and return the new text. Any shape of message is accepted: engines differ."""
        layer, status = str(line.get("id", "")), str(line.get("status", ""))
        detail = line.get("progressDetail")
        current, total = (
            (_number(detail.get("current")), _number(detail.get("total")))
            if isinstance(detail, Mapping)
            else (0, 0)
        )
        if status == "Downloading" and total > 0:
            self._layers[layer] = (min(current, total), total)
        elif status in ("Download complete", "Pull complete") and layer in self._layers:
            total = self._layers[layer][1]
            self._layers[layer] = (total, total)
        elif status == "Extracting":
            self._unpacking = True
        return self.text

    @property
    def text(self) -> str:
        """The progress, for people who know nothing about images."""
        fetched = sum(current for current, _ in self._layers.values())
        total = sum(total for _, total in self._layers.values())
        if total and fetched < total:
            return f"Fetching the game server's image: {fetched / _MB:.0f} of {total / _MB:.0f} MB"
        return "Unpacking the game server's image" if self._unpacking else "Fetching the game server's image"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def registry_of(image: str) -> str:
    """The registry of an image: what stands before the first `/`, where that looks like a host, or Docker Hub."""
    first, slash, _ = image.partition("/")
    if first in ("docker.io", "index.docker.io"):
        return _DOCKER_HUB
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first
    return _DOCKER_HUB


def credentials(config: Path | None, image: str) -> dict[str, str] | None:
    """The credentials for `image` in a `config.json` as `docker login` writes it, or None. Raises `ConfigError`."""
    if config is None:
        return None
    try:
        auths: Any = json.loads(config.read_text()).get("auths") or {}
        found = auths.get(registry_of(image))
        if found is None:
            return None
        if token := found.get("identitytoken"):
            return {"identitytoken": token}
        user, _, password = base64.b64decode(found["auth"], validate=True).decode().partition(":")
    except OSError as exc:
        raise ConfigError(f"TIPOFF_LAUNCHER_DOCKER_CONFIG={config}: {exc.strerror}") from exc
    except (ValueError, KeyError, AttributeError, TypeError, binascii.Error):
        raise ConfigError(  # without the cause, which may quote a password
            f"TIPOFF_LAUNCHER_DOCKER_CONFIG={config}: a config.json as `docker login` writes it is expected"
        ) from None
    return {"username": user, "password": password}
