"""What nats-server asks about a connection, and what a matchmaker answers: pure, and hostile until parsed."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from tipoff_matchmaker.isolated.credentials import (
    AuthRequest,
    denied,
    granted,
    read_request,
)
from tipoff_matchmaker.isolated.open_connections import (
    MAX_CONNECTIONS,
    NodeList,
    OpenConnection,
    read_list,
    to_close,
    was_closed,
)
from tipoff_matchmaker.service import read_account_key
from tipoff_matchmaker.settings import Settings
from tipoff_shared.errors import ConfigError, Malformed
from tipoff_shared.nats.nkeys import AccountKey
from tipoff_shared.secret import Secret
from tipoff_shared.subjects import Subjects

KEY = AccountKey(bytes(range(32)))
SERVER = "N" + "A" * 55
USER = "U" + "B" * 55


def part(value: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def asked(**changes: object) -> bytes:
    """As nats-server asks."""
    nats = {
        "server_id": {"id": SERVER, "name": "n1"},
        "user_nkey": USER,
        "client_info": {"host": "127.0.0.1", "id": 8, "kind": "Client"},
        "connect_opts": {"user": "gs-arena-1", "pass": "secret", "lang": "python3"},
        "type": "authorization_request",
        "version": 2,
    }
    claims = {"aud": "nats-authorization-request", "iss": SERVER, "nats": nats | changes}
    return b".".join((part({"typ": "JWT"}), part(claims), b"c2ln"))


def claims(jwt: str) -> dict[str, object]:
    """The claims, with their signature checked."""
    head, body, signature = jwt.split(".")
    public = base64.b32decode(KEY.public + "=" * (-len(KEY.public) % 8))[1:33]
    VerifyKey(public).verify(f"{head}.{body}".encode(), base64.urlsafe_b64decode(signature + "=="))
    found: dict[str, object] = json.loads(base64.urlsafe_b64decode(body + "=="))
    assert found["iss"] == KEY.public
    return found


def test_a_request_is_read() -> None:
    request = read_request(asked())
    assert (request.user, request.host, request.deployment_id) == ("gs-arena-1", "127.0.0.1", "arena-1")
    assert request.has_password(Secret("secret"))
    assert not request.has_password(Secret("other"))
    assert "secret" not in repr(request)


@pytest.mark.parametrize(
    "user", ["", "gs-", "gs-.", "gs-a.b", "gs-A", "gameserver", "gs-a\n", "gs--a", "gs-" + "a" * 64, "gs-é"]
)
def test_only_a_deployments_user_names_a_deployment(user: str) -> None:
    assert read_request(asked(connect_opts={"user": user})).deployment_id is None


@pytest.mark.parametrize(
    "changes",
    [
        {"user_nkey": "A" + "B" * 55},
        {"user_nkey": "U" + "B" * 54 + "\n"},
        {"server_id": {"id": "gs.victim.cmd"}},
        {"server_id": None},
        {"connect_opts": {"user": 7}},
    ],
)
def test_what_nats_server_does_not_ask_is_malformed(changes: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        read_request(asked(**changes))


def test_a_request_that_is_meant_for_others_is_malformed() -> None:
    head, body, signature = asked().split(b".")
    for_others = json.loads(base64.urlsafe_b64decode(body + b"==")) | {"aud": "nats-authorization-response"}
    with pytest.raises(Malformed, match="meant for others"):
        read_request(b".".join((head, part(for_others), signature)))


@pytest.mark.row(65)
@given(st.binary(max_size=300) | st.tuples(st.binary(max_size=99), st.binary(max_size=99)).map(b".".join))
def test_any_bytes_are_a_request_or_malformed(data: bytes) -> None:
    for text in (data, b"a." + base64.urlsafe_b64encode(data).rstrip(b"=") + b".b"):
        with pytest.raises(Malformed):
            read_request(text)
    with pytest.raises(Malformed):
        read_list(b"!" + data)
    assert not was_closed(b"!" + data)
    assert not AuthRequest(SERVER, USER, "gs-a", data.decode(errors="surrogateescape"), "").has_password(
        Secret("s")
    )


def test_an_answer_lets_a_server_publish_its_own_events_alone() -> None:
    request = read_request(asked())
    answer = claims(granted(KEY, request, "arena-1", Subjects("iso")).decode())
    assert (answer["sub"], answer["aud"]) == (USER, SERVER)
    inner = answer["nats"]
    assert isinstance(inner, dict)
    user = claims(inner["jwt"])
    assert (user["sub"], user["aud"], user["name"]) == (USER, "GAMESERVERS", "gs-arena-1")
    allowed = user["nats"]
    assert isinstance(allowed, dict)
    assert allowed["pub"] == {"allow": ["iso.gs.arena-1.ev"]}
    assert allowed["sub"] == {"allow": ["iso.gs.arena-1.cmd", "_INBOX_gs-arena-1.>"]}


def test_a_refusal_says_why_and_grants_nothing() -> None:
    answer = claims(denied(KEY, read_request(asked()), "wrong").decode())
    inner = answer["nats"]
    assert isinstance(inner, dict)
    assert (inner["error"], inner.get("jwt")) == ("wrong", None)


@given(st.binary(min_size=32, max_size=32))
def test_a_seed_reads_back_as_the_same_key(seed: bytes) -> None:
    key = AccountKey(seed)
    assert (key.seed()[:2], key.public[0], len(key.seed())) == ("SA", "A", 58)
    assert AccountKey.parse(f" {key.seed()}\n").public == key.public
    assert key.seed() not in repr(key)


@given(st.text(max_size=80), st.integers(0, 57))
def test_a_damaged_seed_is_malformed(text: str, at: int) -> None:
    seed = KEY.seed()
    damaged = seed[:at] + ("A" if seed[at] != "A" else "B") + seed[at + 1 :]
    for wrong in (text, damaged, KEY.public, seed[:-1]):
        with pytest.raises(Malformed):
            AccountKey.parse(wrong)


@pytest.mark.parametrize("content", [None, "", "SAcanary", "SUAM"])
def test_a_seed_file_that_cannot_be_used_is_refused_before_anything_starts(
    tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "seed"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="TIPOFF_MATCHMAKER_SERVER_AUTH_SEED_FILE") as caught:
        read_account_key(Settings(profile="isolated", server_auth_seed_file=file))
    assert "canary" not in str(caught.value)


def listed(node: str, *found: tuple[str, int, str], total: int = 0) -> bytes:
    """As nats-server answers: user, number, since."""
    connections = [{"cid": cid, "authorized_user": user, "start": at, "ip": "::1"} for user, cid, at in found]
    data = {"server_id": node, "num_connections": len(found), "total": total, "connections": connections}
    return json.dumps({"server": {"id": node}, "data": data}).encode()


def test_a_list_names_the_connections_of_servers_with_users_of_their_own() -> None:
    answer = listed(
        "N1", ("gs-a", 7, "2026-01-01T00:00:00.5Z"), ("gameserver", 8, ""), ("gs-", 9, ""), total=9
    )
    assert read_list(answer) == NodeList(9, 3, (OpenConnection("N1", 7, "a", "2026-01-01T00:00:00.5"),))
    assert read_list(b'{"data": {"connections": null}}') == NodeList(0, 0, ())


def test_what_an_ended_server_has_open_is_closed_on_every_node_and_of_others_only_what_is_too_much() -> None:
    """The newest go, whichever node has them."""
    lists = [
        listed(
            "N1",
            ("gs-over", 1, "2026-01-01T00:00:01Z"),
            *(("gs-b", n, f"2026-01-01T00:00:0{n}Z") for n in (2, 3, 4)),
        ),
        listed(
            "N2",
            ("gs-over", 1, "2026-01-01T00:00:02Z"),
            *(("gs-b", n, f"2026-01-01T00:00:0{n}.5Z") for n in (2, 5)),
        ),
    ]
    found = [one for answer in lists for one in read_list(answer).connections]
    closing = to_close(found, lambda deployment_id: deployment_id == "over")
    assert [(one.node, one.number) for one in closing["over"]] == [("N1", 1), ("N2", 1)]
    assert [(one.node, one.number) for one in closing["b"]] == [("N2", 5)]
    assert len(found) - 2 - 1 == MAX_CONNECTIONS
    assert to_close(found[1:4], lambda _: False) == {}
