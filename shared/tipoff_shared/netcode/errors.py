"""Defines the exceptions of netcode.

    NetcodeError
    ├── InvalidKey          text or bytes that are not a usable private key (also ValueError)
    ├── InvalidAddress      text that is not "ip:port" (also ValueError)
    ├── InvalidTokenField   issue_token got a value that a token cannot hold (also ValueError)
    ├── InvalidPayload      send() was given nothing, or more than 1200 bytes (also ValueError)
    └── InvalidToken        a connect token that cannot be used
        ├── WrongProtocol   made for another protocol id
        ├── TokenExpired    its time is over
        ├── WrongKey        its private part does not open: another private key, another protocol, or damaged
        └── WrongServer     it names other servers than this one

Received datagrams raise none of these: an invalid datagram is dropped silently.
"""


class NetcodeError(Exception):
    """Base of all exceptions of this package."""


class InvalidKey(NetcodeError, ValueError):
    """Not a private key. The message never contains the key."""


class InvalidAddress(NetcodeError, ValueError):
    """Not an address of the form ``1.2.3.4:5`` or ``[::1]:5``."""


class InvalidTokenField(NetcodeError, ValueError):
    """A field does not fit into a connect token."""


class InvalidPayload(NetcodeError, ValueError):
    """A payload is empty or longer than 1200 bytes."""


class InvalidToken(NetcodeError):
    """The token cannot be used; ``str()`` says why."""


class WrongProtocol(InvalidToken):
    """The token was made for another protocol id."""

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(f"the token is for protocol id {found}, this side speaks {expected}")
        self.expected = expected
        self.found = found


class TokenExpired(InvalidToken):
    """The token's expire timestamp is now or in the past (by this machine's clock)."""

    def __init__(self, expire_timestamp: int, unix_now: float) -> None:
        late = unix_now - expire_timestamp
        super().__init__(
            f"the token expired {late:.0f} s ago by this machine's clock; ask for a new one"
            " (if it was just issued, compare the clocks of both machines)"
        )
        self.expire_timestamp = expire_timestamp
        self.unix_now = unix_now


class WrongKey(InvalidToken):
    """The private part does not authenticate."""

    def __init__(self) -> None:
        super().__init__(
            "the token's private part does not open: it was made with another private key, or its"
            " protocol id, expiry or bytes were changed"
        )


class WrongServer(InvalidToken):
    """None of the token's addresses is this server's."""
