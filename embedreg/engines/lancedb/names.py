"""Names and texts in Lance's SQL: how they are quoted, and which names cannot be."""

from __future__ import annotations

from embedreg.errors import ConfigError

__all__ = ["literal", "problem_of", "quoted", "refuse_name"]

_ODD = {
    "`": "a backtick, which Lance's SQL cannot quote",
    ".": "a full stop, which separates nested fields in Lance",
    '"': "a double quote, with which Lance does not find the column in conditions",
}


def quoted(name: str) -> str:
    """Quote a column name for Lance's SQL."""
    return f"`{name}`"


def literal(text: str) -> str:
    """Quote a text for Lance's SQL."""
    return f"'{text.replace(chr(39), 2 * chr(39))}'"


def problem_of(name: str, odd: str = "`") -> str | None:
    """Return what a name holds that Lance cannot work with; None for nothing.

    Args:
        odd: the characters to look for: a backtick for a column that exists, also a full stop for a new one.
    """
    return next((_ODD[char] for char in odd if char in name), None)


def refuse_name(name: str, *others: str) -> None:
    """Raise `ConfigError` for the name of a new column, or of one that it is made of, with which Lance cannot work."""
    if (why := problem_of(name, "`.") if name else "no character") is not None:
        raise ConfigError(f"the name of the new column, {name!r}, holds {why}.", "choose another name")
    for other in others:
        if (why := problem_of(other)) is not None:
            raise ConfigError(f"the name of column {other!r} holds {why}.", "rename the column")
