"""The table of kinds of vectors: dense, multi (late interaction) and sparse.

`Traits(vectors=...)` names a row of this table. Everything that depends on the kind is in its row
(`embedreg.arrow.kind.VectorKind`); no other module compares names of kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from embedreg.arrow.kind import VectorKind
from embedreg.arrow.multi import MULTI
from embedreg.arrow.sparse import SPARSE
from embedreg.arrow.vectors import DENSE
from embedreg.errors import ConfigError, MetadataError

if TYPE_CHECKING:
    import pyarrow as pa

    from embedreg.core.configured import Configured

__all__ = ["KEY", "KINDS", "kind_of", "kind_of_type", "kind_recorded", "refusal", "written"]

KEY = "vectors"
"""The key of `model.embedreg` that names the kind; absent for dense vectors."""

KINDS: dict[str, VectorKind] = {each.name: each for each in (DENSE, MULTI, SPARSE)}


def kind_of(function: Configured) -> VectorKind:
    """Return the kind of a function's vectors.

    It is the one that its class names, or the first of several, unless the instance has a field `vectors` that names
    another of them.

    Raises:
        ConfigError: its class names an unknown kind.
    """
    cls: type[Any] = type(function)
    text = cls.traits.vectors
    found = KINDS.get(text) if isinstance(text, str) else None
    if found is not None:
        return found
    names = [name.strip() for name in str(text).split("+")]
    if unknown := [name for name in names if name not in KINDS]:
        raise ConfigError(
            f"{cls.__name__} returns {unknown[0]!r}, an unknown kind of vectors; known: {', '.join(KINDS)}.",
            "traits = embedreg.Traits(vectors='dense')",
        )
    chosen = getattr(function, KEY, None)
    return KINDS[chosen if chosen in names else names[0]]


def kind_recorded(reserved: Mapping[str, Any]) -> VectorKind:
    """Return the kind that the recorded properties of a column name.

    Raises:
        MetadataError: an unknown one, such as that of a later version.
    """
    name = reserved.get(KEY)
    found = DENSE if name is None else KINDS.get(name) if isinstance(name, str) else None
    if found is None:
        raise MetadataError(
            f"the declaration is of {repr(name)[:40]}, an unknown kind of vectors; known: {', '.join(KINDS)}.",
            "update embedreg, or look at the declaration: embedreg inspect",
        )
    return found


def written(kind: VectorKind) -> dict[str, str]:
    """Return what a declaration records of the kind: nothing for dense vectors."""
    return {} if kind is DENSE else {KEY: kind.name}


def kind_of_type(kind: pa.DataType) -> VectorKind | None:
    """Return the kind of vectors that a column of an Arrow type holds; None if it holds none."""
    return next((each for each in (MULTI, SPARSE, DENSE) if each.holds(kind)), None)


def refusal(function: Configured, place: str, why: str) -> ConfigError:
    """Return the error for a kind that something does not support.

    Args:
        place: what does not support it.
        why: the reason.
    """
    kind = kind_of(function)
    return ConfigError(
        f"{type(function).__name__} returns {kind.plural}, which {place} does not take: {why}.",
        "embed the column with embedreg.embed_table or embedreg.embed, and search it with `embedreg search`",
    ).for_shell("embedreg embed SRC DST, and embedreg search DST")
