"""Makes nats-server's users file for the isolated profile: untrusted game servers, in their own account.

It replaces `users.conf`. All other roles share the account TIPOFF, with their permissions of the trusted profile. The
account GAMESERVERS has no JetStream and no bucket, and imports two subjects from TIPOFF. Each server has a user of its
own there, about which nats-server asks a matchmaker (auth callout); the user `gameserver`, which all of them may share,
is for launchers and matchmakers of an earlier release:

    gs.*.ev    a service: an event goes to the stream in TIPOFF, the stream's answer comes back
    gs.*.cmd   a stream: the matchmakers' commands come in, nothing goes out

So a header or a reply subject reaches nothing else: an answer is delivered in the account that sent the request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tipoff.nats_roles.permissions import Access, Permissions, inboxes, on_stream, permissions
from tipoff.nats_roles.users import permissions_block
from tipoff_shared.event_stream import SECRET_BUCKET
from tipoff_shared.settings import ROLES
from tipoff_shared.subjects import AUTH_ANSWERS, AUTH_CALLOUT, Subjects, connections_of, kicks_at

ACCOUNT = "TIPOFF"
SERVERS_ACCOUNT = "GAMESERVERS"
SERVER_ROLE = "gameserver"
MAX_SUBSCRIPTIONS = 16
MAX_PAYLOAD = 96 * 1024
"""Limits of one connection of a game server: it has three subscriptions, and events up to `server_events.MAX_EVENT`."""
_SYSTEM = json.dumps("$SYS")
"""nats-server's own account; it lists connections, and closes them."""


def isolated_permissions(role: str, subjects: Subjects) -> Permissions:
    """The permissions of `role` within its account. Raises `KeyError` for an unknown role."""
    if role == SERVER_ROLE:
        return Permissions((subjects.events("*"),), (subjects.commands("*"), inboxes(role)))
    allowed = permissions(role, subjects)
    if role == "matchmaker":
        secret = subjects.bucket(SECRET_BUCKET)
        more = (
            *on_stream(subjects.events_stream, "", Access.MAKE | Access.CONSUMERS | Access.DURABLE),
            *on_stream(f"KV_{secret}", f"$KV.{secret}", Access.MAKE | Access.GET | Access.WRITE),
            inboxes("launcher"),  # the answers to its ping
            AUTH_ANSWERS,
            connections_of(SERVERS_ACCOUNT),
            kicks_at("*"),
            subjects.events("*"),  # probes: whether the stream takes and delivers events
        )
    elif role == "launcher":
        # A missing lease means something only while a matchmaker writes leases, so the launcher asks for one.
        more = (subjects.ping_matchmaker,)
    else:
        return allowed
    hears = (AUTH_CALLOUT,) if role == "matchmaker" else ()
    return Permissions(
        tuple(dict.fromkeys((*allowed.publish, *more))), (*allowed.subscribe, *hears), allowed.deny_publish
    )


def accounts(
    hashes: Mapping[str, str],
    subjects: Subjects,
    *,
    issuer: str = "",
    more_users: str = "",
    more_names: Sequence[str] = (),
) -> str:
    """The `accounts` block. `hashes`: role -> bcrypt hash, for every role. `more_users` is added to TIPOFF unchanged;
    `more_names` are their names. With `issuer`, the public nkey of the matchmakers, nats-server asks them about every
    user that is not in this file: each game server then has its own user."""
    users = "".join(_user(role, hashes[role], subjects) for role in ROLES if role != SERVER_ROLE)
    events, commands = json.dumps(subjects.events("*")), json.dumps(subjects.commands("*"))
    listing, kicks = json.dumps(connections_of(SERVERS_ACCOUNT)), json.dumps(kicks_at("*"))
    system = (
        f"  {_SYSTEM} {{\n"
        "    exports: [\n"  # each node of a cluster answers with its own connections
        f"      {{ service: {listing}, response_type: stream, accounts: [{ACCOUNT}] }}\n"
        f"      {{ service: {kicks}, accounts: [{ACCOUNT}] }}\n"
        "    ]\n"
        "  }\n"
    )
    imports = (
        "    imports: [\n"
        f"      {{ service: {{ account: {_SYSTEM}, subject: {listing} }} }}\n"
        f"      {{ service: {{ account: {_SYSTEM}, subject: {kicks} }} }}\n"
        "    ]\n"
    )
    return (
        "accounts {\n" + (system if issuer else "") + f"  {ACCOUNT} {{\n"
        "    jetstream: enabled\n"
        f"    users: [\n{users}{more_users}    ]\n"
        "    exports: [\n"
        f"      {{ service: {events}, accounts: [{SERVERS_ACCOUNT}] }}\n"
        f"      {{ stream: {commands}, accounts: [{SERVERS_ACCOUNT}] }}\n"
        "    ]\n" + (imports if issuer else "") + "  }\n"
        f"  {SERVERS_ACCOUNT} {{\n"
        f"    limits: {{ max_subscriptions: {MAX_SUBSCRIPTIONS}, max_payload: {MAX_PAYLOAD} }} # of each connection\n"
        f"    users: [\n{_user(SERVER_ROLE, hashes[SERVER_ROLE], subjects)}    ]\n"
        "    imports: [\n"
        f"      {{ service: {{ account: {ACCOUNT}, subject: {events} }} }}\n"
        f"      {{ stream: {{ account: {ACCOUNT}, subject: {commands} }} }}\n"
        "    ]\n"
        "  }\n"
        "}\n" + (_callout(issuer, (*ROLES, *more_names)) if issuer else "")
    )


def _callout(issuer: str, known: Sequence[str]) -> str:
    """The block by which nats-server asks the matchmakers about all users but the `known` ones."""
    return (
        "authorization {\n"
        "  timeout: 5\n"
        "  auth_callout {\n"
        f"    issuer: {json.dumps(issuer)}\n"
        f"    account: {ACCOUNT}\n"
        f"    auth_users: {json.dumps(list(known))}\n"
        "  }\n"
        "}\n"
    )


def _user(role: str, password_hash: str, subjects: Subjects) -> str:
    return (
        "      {\n"
        f"        user: {json.dumps(role)}\n"
        f"        password: {json.dumps(password_hash)}\n"
        f"{permissions_block(isolated_permissions(role, subjects), '        ')}"
        "      }\n"
    )
