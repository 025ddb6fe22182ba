"""A value that never appears in a repr, a log line, an f-string or a pickle."""

from __future__ import annotations


class Secret:
    """Holds a secret text; only `reveal()` returns it. Compares by identity, so that comparing leaks nothing."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret text."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not serialised")
