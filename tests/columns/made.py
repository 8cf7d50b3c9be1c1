"""Columns that are made to be wrong in a known way."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import pyarrow as pa

import embedreg
from embedreg.cli import corpus


def docstrings(count: int, *, words: int = 10_000, seed: int = 0) -> list[str]:
    """Return distinct docstrings of Python's library of at most so many words, the same at each call."""
    some = [text for text in _all() if len(text.split()) <= words]
    random.Random(seed).shuffle(some)
    return some[:count]


@functools.cache
def _all() -> tuple[str, ...]:
    return tuple(dict.fromkeys(doc.text for doc in corpus.collect()))


def column(texts: list[str], matrix: Any, function: Any = None, **more: Any) -> pa.Table:
    """Return a table of texts and vectors, declared as a function's if one is given."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(matrix, np.float32).ravel()), len(matrix[0]))
    table = pa.table({"text": texts, "vector": vectors, **more})
    if function is None:
        return table
    metadata = embedreg.get_registry().get_table_metadata([function.bind("text", "vector")])
    return table.replace_schema_metadata(metadata)
