"""Arguments that several calls share, and the errors for columns that are missing or exist already."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from embedreg.core.base import EmbeddingFunction
from embedreg.core.kinds import kind_of
from embedreg.core.lancedb_hooks import unwrap
from embedreg.errors import ConfigError, InputError, MissingColumnError, SchemaError, in_shell
from embedreg.security.sensitive import holds_credentials
from embedreg.support.display import plain
from embedreg.support.imports import did_you_mean

__all__ = [
    "a_function",
    "already_there",
    "no_column",
    "no_declarations",
    "on_object_store",
    "one_vector",
    "refuse_count",
    "texts_there",
    "undeclared",
]


def a_function(given: Any) -> EmbeddingFunction:
    """Return the given function unchanged.

    Raises:
        InputError: it is not an embedding function.
    """
    function = unwrap(given)
    if not isinstance(function, EmbeddingFunction):
        raise InputError(f"a function is needed, not a {type(given).__name__}.", "embedreg.get(...).create(...)")
    return function


def one_vector(function: EmbeddingFunction, what: str) -> EmbeddingFunction:
    """Return a given function unchanged if it returns one vector a row.

    Args:
        what: what the function is for, for the message.
    Raises:
        ConfigError: it returns multi-vectors or sparse ones.
    """
    kind = kind_of(function)
    if not kind.one_size:
        raise ConfigError(
            f"{type(function).__name__} returns {kind.plural}; {what} one vector a row.",
            "a function of dense vectors: embedreg.get('hashing').create()",
        ).for_shell("name a function of dense vectors; `embedreg functions` lists what is installed")
    return function


def refuse_count(name: str, value: Any, example: int) -> None:
    """Raise `ConfigError` for what is not a number of rows."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"invalid {name}={value!r}; expected a number of rows, 1 or more.", f"{name}={example}")


def undeclared(shown: str, vector: str, declared: Iterable[str], hint: str | None = None) -> MissingColumnError:
    """Return the error for a column that no function is declared for.

    Args:
        shown: the data.
        declared: the columns that have one.
        hint: what helps; by default the declared columns.
    """
    names = list(declared)
    helps = f"declared: {', '.join(names) or 'none'}" if hint is None else hint
    close = did_you_mean(vector, names)
    error = MissingColumnError(f"{shown} declares no function for column {vector!r}.", f"{close}{helps}")
    return error.for_shell(f"{close}{in_shell(helps)}")


def no_declarations(shown: str, hint: str) -> MissingColumnError:
    """Return the error for data without declarations."""
    return MissingColumnError(f"{shown} declares no embedding function.", hint)


def no_column(shown: str, name: str, names: Iterable[str]) -> MissingColumnError:
    """Return the error for a column that the data does not have.

    Args:
        names: the columns that it has.
    """
    known = list(names)
    return MissingColumnError(
        f"{shown} has no column {name!r}.", f"{did_you_mean(name, known)}columns: {', '.join(known)}"
    )


def texts_there(shown: str, source: str, vector: str) -> SchemaError:
    """Return the error for data that has a column where the texts of a template would go."""
    return SchemaError(
        f"{shown} has a column {source!r} already, where the texts of the template would go.",
        f"drop it, or embed it as it is: fn.bind({source!r}, {vector!r})",
    ).for_shell(f"drop it, or embed it as it is: --source {source}")


def on_object_store(uri: str) -> ConfigError:
    """Return the error for data on an object store.

    A change of a column is published by renames, or by links into a table's folder, and held by a lock; an object store
    has none of the three, so that a reader could see half of a switch.
    """
    shown = "this URI" if holds_credentials(uri) else repr(plain(uri, 200))
    copy = "copy it to a local disk, change it there, and copy it back"
    return ConfigError(
        f"{shown} is on an object store: columns are described and changed on a local disk only, since an object store "
        "has no renames to publish a change by.",
        f"{copy}; embedreg.embed(source, 's3://bucket/new') embeds it again to another place",
    ).for_shell(f"{copy}; `embedreg embed SRC s3://bucket/new` embeds it again to another place")


def already_there(shown: str, vector: str) -> SchemaError:
    """Return the error for a new column whose name is taken."""
    return SchemaError(
        f"{shown} has a column {vector!r} already.", "fill it, or migrate it to another function"
    ).for_shell("embedreg column fill or migrate; --vector NAME adds another column")
