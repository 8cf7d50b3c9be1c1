"""Lance tables by the path of their folder: their schema, a sample of their rows, their declarations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.declaration import codec
from embedreg.declaration.entries import Entry
from embedreg.errors import StorageError
from embedreg.support.display import first_line
from embedreg.support.imports import attempt_import_or_raise, importable

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Table", "dataset_at", "declare_at", "schema_at"]


def schema_at(path: Path) -> pa.Schema:
    """Return the schema of the table in a `.lance` folder.

    Raises:
        StorageError: it is not a table.
    """
    if importable("lance"):  # in a fifth of the time
        schema: pa.Schema = dataset_at(path).schema
        return schema
    lancedb = attempt_import_or_raise("lancedb", extra="lancedb")
    try:
        schema = lancedb.connect(path.parent).open_table(path.stem).schema
    except (OSError, RuntimeError, ValueError) as exc:
        raise StorageError(f"{str(path)!r} is not a Lance table: {first_line(exc)}", "check the path") from exc
    return schema


def dataset_at(path: Path) -> Any:
    """Open the table in a `.lance` folder as pylance's dataset, whose rows can be taken by number.

    Raises:
        StorageError: it is not a table.
    """
    lance = attempt_import_or_raise("lance", "pylance", extra="lancedb")
    try:
        return lance.dataset(str(path))
    except (OSError, RuntimeError, ValueError) as exc:
        raise StorageError(f"{str(path)!r} is not a Lance table: {first_line(exc)}", "check the path") from exc


def declare_at(dataset: Any, text: bytes) -> None:
    """Write the declarations of a dataset that `dataset_at` opened; its rows stay as they are.

    Raises:
        StorageError: they cannot be written.
    """
    try:
        dataset.update_schema_metadata({codec.KEY: text.decode()})
    except (OSError, RuntimeError, ValueError) as exc:
        raise StorageError(f"the table's metadata cannot be written: {first_line(exc)}", "try again") from exc


class Table:
    """A Lance table: the declarations are in its schema; writing them makes a new version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._dataset = dataset_at(path)
        self.schema: pa.Schema = self._dataset.schema
        self.rows = int(self._dataset.count_rows())

    def sample(self, columns: list[str], rows: int, seed: int) -> Iterator[pa.Table]:
        import numpy as np

        if not self.rows:
            return
        edges = np.linspace(0, self.rows, min(self.rows, 4 * rows) + 1).astype(int)  # some may have no vector
        places = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
        yield self._dataset.take(places.tolist(), columns=columns)

    def declared(self) -> list[Entry]:
        return codec.entries(self.schema.metadata)

    def declare(self, text: bytes) -> Path:
        declare_at(self._dataset, text)
        return self.path
