"""Opens the login that the settings choose. PyJWT and httpx are imported only where one is chosen."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from tipoff_matchmaker_httpd.login.interface import Login
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.admission.client_address import parse_address

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_login(settings: Settings) -> AsyncIterator[Login | None]:
    """The login for the time of the block; None without one. Raises `ConfigError` for a key that cannot be used."""
    if settings.auth == "http":
        from tipoff_matchmaker_httpd.login.own_url import open_url_login

        _warn_of_plain_http("TIPOFF_HTTPD_AUTH_URL", settings.auth_url)
        async with open_url_login(
            settings.auth_url,
            timeout=settings.auth_timeout,
            calls=settings.auth_calls,
            calls_per_address=settings.auth_calls_per_address,
            ttl=settings.auth_cache_ttl,
        ) as url_login:
            yield url_login
    elif settings.auth == "jwt":
        from tipoff_matchmaker_httpd.login.jwt_login import JwtLogin, JwtRules, read_key_file
        from tipoff_matchmaker_httpd.login.web_keys import open_web_keys

        rules = JwtRules(
            settings.auth_issuer,
            settings.auth_audience,
            settings.auth_algorithms,
            settings.auth_user_claim,
            settings.auth_name_claim,
        )
        if settings.auth_jwks_url:
            _warn_of_plain_http("TIPOFF_HTTPD_AUTH_JWKS_URL", settings.auth_jwks_url)
            async with open_web_keys(settings.auth_jwks_url, timeout=settings.auth_timeout) as keys:
                yield JwtLogin(rules, keys)
        else:
            assert settings.auth_key_file is not None  # or `Settings.load` had refused them
            yield JwtLogin(rules, read_key_file(settings.auth_key_file, settings.auth_algorithms))
    else:
        yield None


def _warn_of_plain_http(variable: str, url: str) -> None:
    parts = urlsplit(url)
    address = parse_address(parts.hostname or "")
    local = parts.hostname == "localhost" or (address is not None and address.is_loopback)
    if parts.scheme == "http" and not local:
        log.warning("%s is plain http: whoever is on the way decides who logs in; use https", variable)
