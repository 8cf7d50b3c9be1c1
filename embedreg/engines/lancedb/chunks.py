"""A child of chunks in a Lance table: each group of parents is one commit, which a reader sees whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from embedreg.chunks.child import Child, digests_of
from embedreg.chunks.settings import CHUNK, KEY, PARENT_DIGEST
from embedreg.declaration import codec
from embedreg.declaration.quantization import refuse_in_lance
from embedreg.engines.lancedb.columns.commits import lance, lance_errors, write_metadata
from embedreg.engines.lancedb.columns.place import Place
from embedreg.engines.lancedb.names import literal, problem_of, quoted
from embedreg.errors import InputError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LanceChild"]

_KEYS = 5000  # in one condition
_RETRIES = 20


class LanceChild(Child):
    """A table of chunks on a local disk."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._broken: set[Any] = set()  # parents with duplicate or missing rows
        self.shown, self.folder = f"table {place.name!r}", str(place.path.parent)

    def _exists(self) -> bool:
        return self._place.path.exists()

    def schema(self) -> pa.Schema | None:
        return self._place.newest().schema if self._exists() else None

    @contextlib.contextmanager
    def locked(self, *, resume: bool) -> Iterator[None]:
        with self._place.locked():
            if self._place.kept.record() is not None:
                raise StorageError(
                    f"a column of {self.shown} is being added or migrated.", "finish or abandon that first"
                )
            yield

    def begin(self, schema: pa.Schema) -> None:
        own = self.schema()
        if own is None:
            _refuse_key(schema.names[0])
            for entry in codec.entries(schema.metadata):
                refuse_in_lance(entry.reserved.get("dtype"), entry.vector_column)
            self._place.path.parent.mkdir(parents=True, exist_ok=True)
            with lance_errors(f"{self.shown} cannot be created"):
                lance().write_dataset(schema.empty_table(), str(self._place.path), schema=schema)
            return
        text = schema.metadata[KEY.encode()].decode()
        write_metadata(
            self._place,
            lambda newest: None if (newest.schema.metadata or {}).get(KEY.encode()) == text.encode() else {KEY: text},
        )

    def parents(self, key: str) -> dict[Any, str | None]:
        with lance_errors(f"{self.shown} cannot be read"):
            found = digests_of(self._place.newest().to_table(columns=[key, CHUNK, PARENT_DIGEST]), key)
        self._broken = {parent for parent, digest in found.items() if digest is None}
        return found

    def rows(self, key: str, keys: Sequence[Any], columns: Sequence[str]) -> pa.Table:
        import pyarrow as pa

        with lance_errors(f"{self.shown} cannot be read"):
            dataset = self._place.newest()
            parts = [dataset.to_table(columns=list(columns), filter=condition) for condition in _conditions(key, keys)]
        return pa.concat_tables(parts)

    def count(self) -> int:
        return int(self._place.newest().count_rows()) if self._exists() else 0

    def write(self, key: str, keys: Sequence[Any], made: pa.Table, *, known: bool) -> None:
        if broken := [each for each in keys if each in self._broken]:
            self.remove(key, broken)  # a merge would keep both of two equal rows
        with lance_errors(f"{self.shown} cannot be written"):
            dataset = self._place.newest()
            made = made.replace_schema_metadata(dataset.schema.metadata)
            if not known:
                if len(made):
                    lance().write_dataset(made, str(self._place.path), mode="append")
                return
            if not len(made):
                self.remove(key, keys)
                return
            (condition,) = _conditions(key, keys)
            (
                dataset.merge_insert([key, CHUNK])
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(condition)
                .conflict_retries(_RETRIES)
                .execute(made)
            )

    def remove(self, key: str, keys: Sequence[Any]) -> None:
        for condition in _conditions(key, keys):
            with lance_errors(f"{self.shown} cannot be written"):
                self._place.newest().delete(condition)

    def finish(self) -> None:
        pass  # each group is published by its commit


def _conditions(key: str, keys: Sequence[Any]) -> list[str]:
    """Return SQL conditions that together select the rows of some parents, a few thousand each."""
    _refuse_key(key)
    given = [each for each in keys if each is not None]
    return [f"{quoted(key)} is null"] * (len(given) < len(keys)) + [
        f"{quoted(key)} in ({', '.join(map(_literal, given[start : start + _KEYS]))})"
        for start in range(0, len(given), _KEYS)
    ]


def _refuse_key(key: str) -> None:
    """Raise `InputError` for a name that Lance does not store, or does not find again in conditions."""
    if (why := problem_of(key, '`".')) is not None:
        raise InputError(f"the name of the key column {key!r} holds {why}.", "rename it")


def _literal(value: Any) -> str:
    return str(value) if isinstance(value, int) else literal(value)
