"""`Settings`: a configuration from a model's files, read strictly: an ignored setting would change vectors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from embedreg.errors import EmbedregError

__all__ = ["Settings", "Unsupported"]

_MOST = 2**31  # larger than any size in a configuration


class Unsupported(EmbedregError, ValueError):
    """The light back end cannot run a model with the same vectors as its library; the message is the reason."""


class Settings:
    """The values of a JSON object.

    Args:
        values: of the file, which is untrusted.
        where: the file's name, for messages.
    Every method raises Unsupported for a value that it does not expect.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values, self.where = values, where

    def size(self, name: str, default: int | None = None) -> int:
        """Return a positive whole number."""
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _MOST:
            raise Unsupported(f"{name} of its {self.where} is {_shown(value)}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a positive number."""
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise Unsupported(f"{name} of its {self.where} is {_shown(value)}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise Unsupported(f"{name} of its {self.where} is {_shown(value)}")
        return value

    def choice(self, name: str, allowed: Collection[str], default: str | None = None) -> str:
        """Return one of some texts."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or value not in allowed:
            raise Unsupported(f"{name} of its {self.where} is {_shown(value)}")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse a value that is set to anything other than some values; an absent one is accepted."""
        value = self.values.get(name)
        if value is not None and value not in allowed:
            raise Unsupported(f"{name} of its {self.where} is {_shown(value)}")


def _shown(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, bool | int | float) else repr(str(value)[:60])
