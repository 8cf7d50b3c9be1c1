"""Quantised columns in LanceDB tables: which there are, and their ranges.

LanceDB 0.40 keeps columns of int8, and refuses to search them. It compares columns of uint8 by the Hamming distance of
their bits, whatever they hold. So "ubinary" is searched by the engine, "int8" and "binary" are kept, and "uint8" is
refused, since its searches would find wrong rows.

The ranges that the table's newest version records are what all writers use. They are recorded by a commit of their own
before the first rows that use them. Lance refuses one of two such commits that are based on one version, and that
writer takes the other's ranges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from embedreg.arrow.quantized import Ranges
from embedreg.declaration import codec
from embedreg.declaration.quantization import KEY, quantizer_of, record_of
from embedreg.errors import ConfigError, SchemaError, StorageError
from embedreg.support.display import first_line, plain

__all__ = ["SEARCHED", "agreed", "not_searched"]

SEARCHED = "ubinary"

_TRIES = 10
_WAIT_S = 0.01


def not_searched(dtype: str) -> ConfigError:
    """Return the error for a search of quantised values that the engine cannot compare."""
    return ConfigError(
        f"LanceDB does not search {dtype} vectors.",
        "`embedreg search DB_DIR/NAME.lance 'text'` does; dtype='ubinary' is searched by LanceDB",
    ).for_shell("`embedreg search DB_DIR/NAME.lance 'text'` does; --dtype ubinary is searched by LanceDB")


def agreed(newest: Callable[[], Any], name: str, learnt: Mapping[str, Ranges]) -> Mapping[str, Ranges]:
    """Record ranges in a table where it has none, and return those that it has then.

    Args:
        newest: opens the newest version as pylance's dataset.
        name: of the table, for messages.
        learnt: vector column -> ranges.
    Raises:
        SchemaError: a column no longer declares such values. StorageError: they cannot be recorded.
    """
    left = _TRIES
    while True:
        left -= 1
        dataset = newest()
        entries = codec.entries(dataset.schema.metadata)
        found: dict[str, Ranges] = {}
        for entry in entries:
            how = quantizer_of(entry.reserved) if entry.vector_column in learnt else None
            if how is not None:
                found[entry.vector_column] = how.ranges or learnt[entry.vector_column]
        if missing := [column for column in learnt if column not in found]:
            raise SchemaError(
                f"column {plain(missing[0])!r} of table {plain(name)!r} is no longer declared as quantised.",
                "open the table again",
            )
        changed = [
            each.recording({KEY: record_of(found[each.vector_column])})
            if each.vector_column in found and KEY not in each.reserved
            else each
            for each in entries
        ]
        if changed == entries:
            return found
        try:
            dataset.update_schema_metadata({codec.KEY: f"[{', '.join(each.raw for each in changed)}]"})
        except (OSError, RuntimeError, ValueError) as exc:
            if not left or int(newest().version) == int(dataset.version):
                raise StorageError(
                    f"the ranges of table {plain(name)!r} cannot be recorded: {first_line(exc)[:300]}",
                    "no row was added; try again, or declare them: Vector(fn.ndims(), 'int8', ranges=...)",
                ) from exc
            time.sleep(_WAIT_S)
        else:
            return found
