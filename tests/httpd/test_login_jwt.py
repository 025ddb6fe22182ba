"""Logins by JSON Web Token: what is believed of one, and how the issuer's keys are kept."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tests.httpd.login_server import AUDIENCE, ISSUER, Issuer, LoginServer, answer, jwk
from tests.polling import eventually
from tipoff_matchmaker_httpd.login.interface import Identity, bearer_token
from tipoff_matchmaker_httpd.login.jwt_login import (
    JwtLogin,
    JwtRules,
    OneKey,
    TokenHeader,
    read_header,
    read_key_file,
    token_in,
    verify,
)
from tipoff_matchmaker_httpd.login.key_set import (
    MAX_KEY_SET,
    MAX_KEYS,
    UnusableKeys,
    VerifyKey,
    algorithms_of,
    choose_key,
    read_key_set,
)
from tipoff_matchmaker_httpd.login.web_keys import LONGEST_USE, REFRESH, UNKNOWN_EVERY, open_web_keys
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.errors import ConfigError, LoginReason, NotAuthenticated, TipoffError, Unavailable
from tipoff_shared.secret import Secret

RULES = JwtRules(ISSUER, (AUDIENCE, "other game"), ("RS256", "ES256", "EdDSA"))
ADDRESS = ip_address("203.0.113.7")
SECRET = "a secret of more than thirty-two bytes"


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    made = Issuer()
    for kid, kind in (("ec", "EC"), ("rsa", "RSA"), ("ed", "OKP")):
        made.add(kid, kind)
    return made


class GivenKeys:
    """The keys of a set that is at hand."""

    def __init__(self, issuer: Issuer) -> None:
        self.keys = read_key_set(json.dumps(issuer.key_set()).encode())

    async def key(self, kid: str | None, algorithm: str) -> VerifyKey:
        found = choose_key(self.keys, kid, algorithm)
        assert found is not None
        return found


@pytest.fixture
def login(issuer: Issuer) -> JwtLogin:
    return JwtLogin(RULES, GivenKeys(issuer))


async def reason_of(login: JwtLogin, token: object) -> LoginReason | None:
    with pytest.raises(NotAuthenticated) as caught:
        await login.identify({"token": token}, ADDRESS)
    if len(str(token)) > 40:
        assert str(token)[-20:] not in repr(caught.value), "no text holds the credential"
    return caught.value.reason


@pytest.mark.row(93)
@pytest.mark.parametrize(("kid", "algorithm"), [("ec", "ES256"), ("rsa", "RS256"), ("ed", "EdDSA")])
async def test_a_token_of_the_issuer_says_who_plays(
    login: JwtLogin, issuer: Issuer, kid: str, algorithm: str
) -> None:
    assert await login.identify({"token": issuer.token(kid, algorithm)}, ADDRESS) == Identity("ann-1", "Ann")
    several = issuer.token(kid, algorithm, aud=["x", "other game"], name=None, sub="b" * 64)
    assert await login.identify({"token": several}, ADDRESS) == Identity("b" * 64)


@pytest.mark.row(93)
@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": 1}, LoginReason.EXPIRED),
        ({"exp": None}, LoginReason.MALFORMED),
        ({"exp": "soon"}, LoginReason.MALFORMED),
        ({"exp": [1]}, LoginReason.MALFORMED),
        ({"nbf": time.time() + 3600}, LoginReason.NOT_YET_VALID),
        ({"iat": time.time() + 3600}, LoginReason.NOT_YET_VALID),
        ({"iss": "https://evil.example/"}, LoginReason.ISSUER),
        ({"iss": ISSUER[:-1]}, LoginReason.ISSUER),
        ({"iss": None}, LoginReason.ISSUER),
        ({"aud": "bank"}, LoginReason.AUDIENCE),
        ({"aud": []}, LoginReason.AUDIENCE),
        ({"aud": None}, LoginReason.AUDIENCE),
        ({"sub": None}, LoginReason.USER_ID),
        ({"sub": ""}, LoginReason.USER_ID),
        ({"sub": "b" * 65}, LoginReason.USER_ID),
        ({"sub": "\u00e9" * 33}, LoginReason.USER_ID),
        ({"sub": "a\nb"}, LoginReason.USER_ID),
        ({"sub": {"id": 1}}, LoginReason.USER_ID),
        ({"sub": True}, LoginReason.USER_ID),
    ],
)
async def test_claims_that_are_not_believed(
    login: JwtLogin, issuer: Issuer, claims: dict[str, Any], reason: LoginReason
) -> None:
    """Each has its reason, in the first word of the message."""
    assert await reason_of(login, issuer.token("ec", **claims)) is reason


async def test_a_clock_that_differs_a_little_is_forgiven(login: JwtLogin, issuer: Issuer) -> None:
    """By half a minute, before and after."""
    now = time.time()
    token = issuer.token("ec", exp=now - 15, nbf=now - 20)
    assert (await login.identify({"token": token}, ADDRESS)).user_id == "ann-1"
    assert (await login.identify({"token": issuer.token("ec", nbf=now + 15)}, ADDRESS)).user_id == "ann-1"


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


CLAIMS = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 3600, "sub": "root"}


@pytest.mark.row(93)
async def test_no_token_chooses_its_own_algorithm(login: JwtLogin, issuer: Issuer) -> None:
    """`none`, and a public key taken for the secret of an HMAC; neither with another spelling."""
    for name in ("none", "None", "NONE", "", "HS256", "hs256", "RS256 ", None, 5, ["ES256"]):
        assert await reason_of(login, f"{part({'alg': name})}.{part(CLAIMS)}.") is LoginReason.ALGORITHM
    public = issuer.keys["rsa"].public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{part({'alg': 'HS256', 'kid': 'rsa'})}.{part(CLAIMS)}"
    mac = base64.urlsafe_b64encode(hmac.digest(pem, signed.encode(), hashlib.sha256)).rstrip(b"=").decode()
    assert await reason_of(login, f"{signed}.{mac}") is LoginReason.ALGORITHM
    both = JwtRules(ISSUER, (AUDIENCE,), ("HS256", "RS256"))  # even where settings allowed both
    with pytest.raises(NotAuthenticated):
        verify(f"{signed}.{mac}", TokenHeader("HS256", "rsa"), public, both)


@pytest.mark.row(93)
async def test_a_token_brings_no_key_and_no_extension(login: JwtLogin, issuer: Issuer) -> None:
    """Keys in its header are ignored, and nothing is fetched for it; `crit` is refused."""
    stranger = Issuer()
    stranger.add("ec")
    header = {
        "jwk": jwk(stranger.keys["ec"].public_key()),
        "jku": "http://127.0.0.1:1/",
        "x5u": "http://127.0.0.1:1/",
    }
    assert await reason_of(login, stranger.token("ec", header=header)) is LoginReason.SIGNATURE
    assert await reason_of(login, issuer.token("ec", header={"crit": ["b64"]})) is LoginReason.MALFORMED
    good = issuer.token("ec")
    head, body, signature = good.split(".")
    forged = part(CLAIMS)
    assert await reason_of(login, f"{head}.{forged}.{signature}") is LoginReason.SIGNATURE
    assert await reason_of(login, f"{head}.{body}.") is LoginReason.SIGNATURE


@pytest.mark.parametrize("token", ["", ".", "..", "a.b", "a.b.c.d", "x" * 5000, "é.é.é", 5, None, ["x"]])
async def test_what_is_no_token(login: JwtLogin, token: object) -> None:
    assert await reason_of(login, token) is LoginReason.MALFORMED


def test_a_request_without_a_credential() -> None:
    for auth in (None, {}):
        with pytest.raises(NotAuthenticated, match=r"^missing: ") as caught:
            token_in(auth)
        assert caught.value.reason is LoginReason.MISSING
    assert bearer_token("bearer  x ") == "x"
    assert [bearer_token(text) for text in (None, "", "Basic eA==", "Bearer", "Bearer " + "x" * 5000)] == [
        None
    ] * 5


# Untrusted bytes.


@given(
    st.text(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["alg", "kid", "crit"]), inner)
        ),
        max_leaves=5,
    ).map(lambda value: f"{part(value)}.e30.x")
)
def test_any_header_is_read_or_refused(token: str) -> None:
    with suppress(NotAuthenticated):
        assert read_header(token, RULES.algorithms).algorithm in RULES.algorithms


def test_a_deep_header_is_refused() -> None:
    """As deep as 4 KB allow."""
    for deep in (b"[" * 3000, b'{"a":' * 600, b'{"alg":' + b"[" * 2900, b'{"alg":' + b"9" * 2900 + b"}"):
        token = base64.urlsafe_b64encode(deep).decode().rstrip("=") + ".e30.x"
        with pytest.raises(NotAuthenticated):
            read_header(token, RULES.algorithms)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(["kty", "kid", "use", "alg", "n", "e", "crv", "x", "y", "d", "k"])
VALUES = JSON | st.sampled_from(["RSA", "EC", "OKP", "oct", "sig", "P-256", "Ed25519", "AQAB", "RS256"])
SIGNED = st.dictionaries(
    st.sampled_from(["iss", "aud", "exp", "nbf", "iat", "sub", "name", "jti"]), JSON, max_size=8
)


@given(
    st.binary(max_size=200)
    | st.lists(st.dictionaries(NAMES, VALUES)).map(lambda k: json.dumps({"keys": k}).encode())
)
def test_any_key_set_is_read_or_refused(body: bytes) -> None:
    try:
        keys = read_key_set(body)
    except UnusableKeys:
        return
    assert all(key.algorithms for key in keys)


@given(SIGNED, st.booleans())
def test_any_claims_are_read_or_refused(claims: dict[str, Any], valid: bool) -> None:
    """Signed by the issuer, with whatever it may have written."""
    body = (CLAIMS | claims) if valid else claims
    head, payload = part({"alg": "HS256"}), base64.urlsafe_b64encode(json.dumps(body).encode()).rstrip(b"=")
    signed = f"{head}.{payload.decode()}"
    mac = (
        base64.urlsafe_b64encode(hmac.digest(SECRET.encode(), signed.encode(), "sha256"))
        .rstrip(b"=")
        .decode()
    )
    with suppress(NotAuthenticated):
        found = verify(f"{signed}.{mac}", TokenHeader("HS256", None), SECRET, RULES)
        assert 1 <= len(found.user_id.encode()) <= 64
        assert len(found.name.encode()) <= 48


def test_keys_that_are_weak_private_or_for_something_else(issuer: Issuer) -> None:
    """They are left out; a set of nothing else cannot be used."""
    good = jwk(issuer.keys["ec"].public_key()) | {"kid": "good"}
    weak = jwk(rsa.generate_private_key(65537, 1024).public_key()) | {"kid": "weak"}  # that is the point
    bad = [
        weak,
        good | {"use": "enc"},
        good | {"alg": "RS256"},
        good | {"alg": 5},
        good | {"kid": 5},
        good | {"kid": "x" * 300},
        good | {"x": "AAAA"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
        {"kty": "RSA", "n": "A" * 5000, "e": "AQAB"},
        "text",
        None,
    ]
    for entry in bad:
        with pytest.raises(UnusableKeys):
            read_key_set(json.dumps({"keys": [entry]}).encode())
    keys = read_key_set(json.dumps({"keys": [*bad, good | {"d": "private"}]}).encode())
    assert [(key.kid, key.algorithms) for key in keys] == [("good", {"ES256"})]
    assert not hasattr(keys[0].key, "private_numbers")
    many = read_key_set(json.dumps({"keys": [good] * 500}).encode())
    assert len(many) == MAX_KEYS
    with pytest.raises(UnusableKeys, match="at most"):
        read_key_set(b" " * (MAX_KEY_SET + 1))
    assert algorithms_of(object()) == frozenset()


def test_a_token_without_a_key_id_fits_only_one_key(issuer: Issuer) -> None:
    keys = read_key_set(json.dumps(issuer.key_set()).encode())
    chosen = choose_key(keys, None, "ES256")
    assert chosen is not None
    assert chosen.kid == "ec"
    assert choose_key((*keys, chosen), None, "ES256") is None
    assert choose_key(keys, "ec", "RS256") is None, "the name of a key of another kind"


# The key in a file.


def test_a_key_file_is_read_or_refused_in_a_sentence(tmp_path: Path, issuer: Issuer) -> None:
    def kept(data: bytes) -> Path:
        (tmp_path / "key").write_bytes(data)
        return tmp_path / "key"

    pem = issuer.keys["rsa"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert isinstance(read_key_file(kept(pem), ("RS256",)), OneKey)
    secret = read_key_file(kept(f"{SECRET}\n".encode()), ("HS256",))
    assert isinstance(secret, Secret)
    assert secret.reveal() == SECRET
    assert SECRET not in repr(JwtLogin(RULES, secret).__dict__)
    for data, algorithms, text in (
        (pem, ("ES256",), "is for PS256"),
        (pem, ("HS256",), "no public key"),
        (b"short", ("HS256",), "at least 32 bytes"),
        (b"\xff" * 40, ("HS256",), "a secret text"),
        (b"x", ("RS256",), "a public key in PEM"),
    ):
        with pytest.raises(ConfigError, match=text):
            read_key_file(kept(data), algorithms)
    with pytest.raises(ConfigError, match="No such file"):
        read_key_file(tmp_path / "none", ("RS256",))


async def test_a_shared_secret_signs_logins(issuer: Issuer) -> None:
    """For a developer's own accounts; another secret does not."""
    rules = JwtRules(ISSUER, (AUDIENCE,), ("HS256",), user_claim="uid", name_claim="nick")
    login = JwtLogin(rules, Secret(SECRET))
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 60, "uid": 1234, "nick": "Zed"}
    assert await login.identify({"token": jwt.encode(claims, SECRET, "HS256")}, ADDRESS) == Identity(
        "1234", "Zed"
    )
    assert await reason_of(login, jwt.encode(claims, SECRET[::-1], "HS256")) is LoginReason.SIGNATURE


URL = "https://login.example/keys"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"auth": "http"}, "AUTH_URL: a URL"),
        ({"auth": "http", "auth_url": "https://a:b@login.example/"}, "holds credentials"),
        ({"auth": "http", "auth_url": "ftp://login.example/"}, "a URL like https"),
        ({"auth": "http", "auth_url": "https://login.example:x/"}, "a URL like https"),
        ({"auth": "jwt"}, "wants TIPOFF_HTTPD_AUTH_ISSUER"),
        ({"auth": "jwt", "auth_issuer": ISSUER, "auth_jwks_url": URL}, "_AUDIENCE"),
        ({"auth": "jwt", "auth_issuer": ISSUER, "auth_audience": "x"}, "one of TIPOFF_HTTPD_AUTH_JWKS_URL"),
        (
            {
                "auth": "jwt",
                "auth_issuer": ISSUER,
                "auth_audience": "x",
                "auth_jwks_url": URL,
                "auth_key_file": "k",
            },
            "one of",
        ),
        (
            {"auth": "jwt", "auth_issuer": ISSUER, "auth_audience": "x", "auth_jwks_url": URL}
            | {"auth_algorithms": "RS256,none"},
            "are allowed",
        ),
        (
            {"auth": "jwt", "auth_issuer": ISSUER, "auth_audience": "x", "auth_jwks_url": URL}
            | {"auth_algorithms": "HS256"},
            "taken for a secret",
        ),
        (
            {"auth": "jwt", "auth_issuer": ISSUER, "auth_audience": "x", "auth_key_file": "k"}
            | {"auth_algorithms": "RS256,HS256"},
            "taken for a secret",
        ),
        ({"auth": "jtw"}, "none.*jwt.*http"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){text}"):
        Settings.load(**given)


# The keys at a URL.


class Clock:
    """A clock that tests move. It begins where monotonic clocks may."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def server(issuer: Issuer) -> AsyncIterator[LoginServer]:
    made = LoginServer()
    made.script = lambda _: answer(issuer.key_set())
    async with made.running():
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_keys(server: LoginServer, clock: Clock) -> Callable[..., AbstractAsyncContextManager[Any]]:
    return lambda timeout=20.0: open_web_keys(server.url, timeout=timeout, clock=clock)


@pytest.mark.row(93)
async def test_players_at_once_share_one_fetch(open_keys: Any, server: LoginServer, issuer: Issuer) -> None:
    """The first one that the start begins, and later ones none at all."""
    async with open_keys() as keys:
        login = JwtLogin(RULES, keys)
        tokens = [issuer.token("ec", sub=f"user-{number}") for number in range(50)]
        found = await asyncio.gather(*(login.identify({"token": token}, ADDRESS) for token in tokens))
        assert {identity.user_id for identity in found} == {f"user-{number}" for number in range(50)}
        assert len(server.requests) == 1
    assert b"accept-encoding: identity" in server.heads[0].lower()


@pytest.mark.row(93)
async def test_a_new_key_is_fetched_when_a_token_names_it(
    open_keys: Any, server: LoginServer, clock: Clock
) -> None:
    """Keys rotate: the new one works at once, the old one until it is withdrawn."""
    rotating = Issuer()
    rotating.add("old")
    server.script = lambda _: answer(rotating.key_set())
    async with open_keys() as keys:
        login = JwtLogin(RULES, keys)
        old = rotating.token("old")
        await login.identify({"token": old}, ADDRESS)
        rotating.add("new")
        await login.identify({"token": rotating.token("new")}, ADDRESS)
        await login.identify({"token": old}, ADDRESS)
        assert len(server.requests) == 2
        del rotating.keys["old"]
        clock.now += REFRESH + 1
        await login.identify({"token": old}, ADDRESS)  # this one fetches beside
        await eventually(lambda: len(server.requests) == 3, "fetched again", timeout=20)
        clock.now += UNKNOWN_EVERY + 1

        async def withdrawn() -> bool:
            try:
                await login.identify({"token": old}, ADDRESS)
            except NotAuthenticated as exc:
                return exc.reason is LoginReason.UNKNOWN_KEY
            return False

        await eventually(withdrawn, "the old key counts no longer", timeout=20)


@pytest.mark.row(93)
async def test_tokens_of_unknown_keys_cause_few_fetches(
    open_keys: Any, server: LoginServer, issuer: Issuer, clock: Clock
) -> None:
    """One in five seconds for all of them together; players with known keys go on."""
    stranger = Issuer()
    async with open_keys() as keys:
        login = JwtLogin(RULES, keys)
        await login.identify({"token": issuer.token("ec")}, ADDRESS)
        for number in range(30):
            stranger.add(f"x{number}")
            assert await reason_of(login, stranger.token(f"x{number}")) is LoginReason.UNKNOWN_KEY
            await login.identify({"token": issuer.token("ec")}, ADDRESS)
            clock.now += 0.5
        assert 2 <= len(server.requests) <= 1 + 1 + 15 / UNKNOWN_EVERY


@pytest.mark.row(93)
@pytest.mark.parametrize(
    "wrong",
    [
        answer({}, 500),
        answer({}, 404),
        answer(b"<html>"),
        answer({"keys": []}),
        answer({"keys": "x"}),
        answer(b" " * (MAX_KEY_SET + 1)),
        answer({}, 302, location="http://127.0.0.1:1/"),
        answer(b"x", content_encoding="gzip"),
        b"nonsense\r\n\r\n",
        b"",
    ],
    ids=["500", "404", "html", "none", "text", "huge", "redirect", "compressed", "no http", "closed"],
)
async def test_an_issuer_that_answers_nonsense(
    open_keys: Any, server: LoginServer, issuer: Issuer, clock: Clock, wrong: bytes
) -> None:
    """503 with a time to come again, few calls; known keys stay in use; when it is well again, players get in."""
    well = server.script

    async def script(body: bytes) -> bytes:
        if wrong:
            return wrong
        raise ConnectionError

    server.script = script
    async with open_keys() as keys:
        login = JwtLogin(RULES, keys)
        token = issuer.token("ec")
        for _ in range(20):
            with pytest.raises(Unavailable) as caught:
                await login.identify({"token": token}, ADDRESS)
            assert caught.value.retry_after
        assert keys.fetches <= 4, "a breaker spares it"
        server.script = well
        clock.now += 60
        assert (await login.identify({"token": token}, ADDRESS)).user_id == "ann-1"
        server.script = script
        clock.now += LONGEST_USE - 1
        assert (await login.identify({"token": token}, ADDRESS)).user_id == "ann-1"
        clock.now += 2
        with pytest.raises(TipoffError):
            await login.identify({"token": token}, ADDRESS)


@pytest.mark.row(93)
async def test_an_issuer_that_does_not_answer_holds_nobody_up(
    open_keys: Any, server: LoginServer, issuer: Issuer, clock: Clock
) -> None:
    """Players with known keys do not wait for it; one with an unknown key waits for the deadline only."""
    async with open_keys(timeout=1.0) as keys:
        login = JwtLogin(RULES, keys)
        token = issuer.token("ec")
        await login.identify({"token": token}, ADDRESS)
        server.script = server.held
        clock.now += REFRESH + 1
        await login.identify({"token": token}, ADDRESS)
        await eventually(lambda: server.waiting == 1, "a fetch beside that hangs", timeout=20)
        await login.identify({"token": token}, ADDRESS)
        stranger = Issuer()
        stranger.add("x")
        with pytest.raises(Unavailable):
            await login.identify({"token": stranger.token("x")}, ADDRESS)


async def test_a_dead_issuer_is_tried_again_after_a_pause(
    server: LoginServer, issuer: Issuer, clock: Clock
) -> None:
    """Nothing listens there, and then it does."""
    port = server.port
    unused = LoginServer()
    async with unused.running():
        pass
    async with open_web_keys(unused.url, timeout=20, clock=clock) as keys:
        login = JwtLogin(RULES, keys)
        for _ in range(5):
            with pytest.raises(Unavailable):
                await login.identify({"token": issuer.token("ec")}, ADDRESS)
        assert unused.port != port
        unused.script = server.script
        async with unused.running():
            clock.now += 60
            assert (await login.identify({"token": issuer.token("ec")}, ADDRESS)).user_id == "ann-1"
