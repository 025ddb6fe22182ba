"""How a part is told its way to NATS: by variables, the password by a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tipoff_shared.errors import ConfigError
from tipoff_shared.settings import ROLES, NatsSettings


def test_the_password_file_beats_the_variable(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from-file\n")
    settings = NatsSettings.from_environment(
        {"NATS_PASSWORD": "from-variable", "NATS_PASSWORD_FILE": str(tmp_path / "password")}
    )
    assert settings.password.reveal() == "from-file"


@pytest.mark.parametrize("content", [None, "", "\n", b"\xff\xfe"])
def test_a_password_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | bytes | None) -> None:
    """Missing, empty (a crash while it was written), or no text at all."""
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match="NATS_PASSWORD_FILE"):
        NatsSettings.from_environment({"NATS_PASSWORD_FILE": str(path)})


@pytest.mark.parametrize("role", ROLES)
def test_a_role_has_inboxes_of_its_own(role: str) -> None:
    """Without being told so: the variable is for users of other names."""
    assert NatsSettings.from_environment({"NATS_USER": role}).inbox_prefix == f"_INBOX_{role}"
    chosen = NatsSettings.from_environment({"NATS_USER": role, "NATS_INBOX_PREFIX": "_INBOX"})
    assert chosen.inbox_prefix == "_INBOX"
    assert NatsSettings.from_environment({"NATS_USER": "somebody"}).inbox_prefix == "_INBOX"


@pytest.mark.parametrize("prefix", ["", "_INBOX", "_INBOX_else"])
@pytest.mark.parametrize("user", ["", "matchmaker", "somebody"])
def test_a_child_process_gets_the_same_settings(user: str, prefix: str) -> None:
    environ = {
        "NATS_USER": user,
        "NATS_PASSWORD": "canary",
        "NATS_INBOX_PREFIX": prefix,
        "NATS_HOST": "nats:4222",
    }
    settings = NatsSettings.from_environment(environ)
    child = NatsSettings.from_environment(settings.to_environment())
    assert (child.user, child.inbox_prefix, child.servers) == (user, settings.inbox_prefix, settings.servers)
    assert "canary" not in repr(settings)


@pytest.mark.parametrize("host", ["nats://me:swordfish@nats:4222", "nats:4222,me:swordfish@nats-b:4222"])
def test_credentials_in_an_address_are_refused_and_not_repeated(host: str) -> None:
    """Addresses are logged, and stand in the environment of game servers."""
    with pytest.raises(ConfigError, match="NATS_USER") as caught:
        NatsSettings.from_environment({"NATS_HOST": host})
    assert "swordfish" not in str(caught.value)
