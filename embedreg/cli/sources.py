"""Reading rows in bounded memory: Parquet, JSON lines and CSV as a stream of Arrow batches."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.cli.places import Place, parquet_files
from embedreg.errors import InputError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

__all__ = ["Source", "open_source"]

_CHUNK_BYTES = 8 << 20  # of text, parsed at a time


@dataclass(frozen=True)
class Source:
    """Rows that can be read more than once.

    Attributes:
        place: where they are.
        schema: their Arrow schema, metadata included.
        rows: how many, or None where only reading them all would tell.
    """

    place: Place
    schema: pa.Schema
    rows: int | None

    def batches(
        self, columns: list[str] | None = None, batch_rows: int = 8192, where: pc.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Read the rows from the start.

        Args:
            columns: the ones to read; all for None.
            batch_rows: the most rows of one batch.
            where: only the rows that meet this condition; for Parquet.
        Raises:
            StorageError: the data is corrupt.
        """
        import pyarrow as pa

        path = self.place.path
        if self.place.kind == "parquet":
            read = _read_parquet(path, columns, batch_rows, where)
        else:
            read = {"jsonl": _read_jsonl, "csv": _read_csv}[self.place.kind](path, self.schema, columns)
        try:
            for batch in read:
                for start in range(0, batch.num_rows, batch_rows):
                    yield batch.slice(start, batch_rows)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as exc:
            if isinstance(exc, StorageError):
                raise
            if where is not None and isinstance(exc, pa.ArrowNotImplementedError):
                hint = "compare texts with 'texts' and numbers with numbers; embedreg inspect shows the types"
                raise InputError(f"--where cannot be computed: {exc}.", hint) from exc
            raise _unreadable(self.place, exc) from exc

    def reader(self, batch_rows: int = 8192) -> pa.RecordBatchReader:
        """Return the rows as a reader, for a consumer of Arrow streams."""
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(self.schema, self.batches(batch_rows=batch_rows))


def open_source(place: Place) -> Source:
    """Look at the data: its schema, and its number of rows where that is cheap.

    Raises:
        StorageError: it is corrupt, empty, or not what its name says.
    """
    import pyarrow as pa

    opener = {"parquet": _open_parquet, "jsonl": _open_jsonl, "csv": _open_csv}[place.kind]
    try:
        schema, rows = opener(place.path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as exc:
        if isinstance(exc, StorageError):
            raise
        raise _unreadable(place, exc) from exc
    return Source(place, schema, rows)


def _unreadable(place: Place, exc: Exception) -> StorageError:
    if isinstance(exc, OSError) and exc.strerror:
        return StorageError(f"{place.path} cannot be read: {exc.strerror}.", "check the path and its permissions")
    first = str(exc).splitlines()[0].rstrip(".") if str(exc) else type(exc).__name__
    return StorageError(
        f"{place.path} is no readable {place.kind}: {first}.", "write it again, or check that the copy is complete"
    )


# Parquet


def _dataset(path: Path) -> Any:
    import pyarrow.dataset as ds

    return ds.dataset([str(file) for file in parquet_files(path)] if path.is_dir() else str(path), format="parquet")


def _open_parquet(path: Path) -> tuple[pa.Schema, int | None]:
    dataset = _dataset(path)
    return dataset.schema, dataset.count_rows()


def _read_parquet(
    path: Path, columns: list[str] | None, batch_rows: int, where: pc.Expression | None
) -> Iterator[pa.RecordBatch]:
    # Arrow's own read-ahead (16 batches of 4 files) is for speed; ours is for bounded memory.
    scan = _dataset(path).scanner(
        columns=columns, filter=where, batch_size=batch_rows, batch_readahead=2, fragment_readahead=1
    )
    yield from scan.to_batches()


# JSON lines: Arrow infers the types of one block only, so the file is read twice, once for its schema


def _chunks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines)."""
    line, rest = 1, b""
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":  # a byte order mark, which Windows programs write
            file.seek(0)
        while block := file.read(_CHUNK_BYTES):
            head, newline, tail = (rest + block).rpartition(b"\n")
            if newline:
                yield line, head + newline
                line, rest = line + head.count(b"\n") + 1, tail
            else:
                rest = tail
    if rest:
        yield line, rest


def _parse(path: Path, first_line: int, chunk: bytes, schema: pa.Schema | None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.json as pj

    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore")
    try:
        return pj.read_json(io.BytesIO(chunk), pj.ReadOptions(use_threads=False, block_size=len(chunk) + 1), options)
    except pa.ArrowInvalid as exc:
        for number, text in enumerate(chunk.splitlines(), first_line):
            try:
                good = not text.strip() or isinstance(json.loads(text), dict)
            except (ValueError, RecursionError):
                good = False
            if not good:
                raise StorageError(
                    f"{path}, line {number}: no JSON object.", "write one object {...} per line"
                ) from None
        raise StorageError(
            f"{path}, from line {first_line}: {str(exc).splitlines()[0]}.",
            "give each field one type throughout the file",
        ) from exc


def _open_jsonl(path: Path) -> tuple[pa.Schema, int | None]:
    import pyarrow as pa

    schemas, rows = [], 0
    for line, chunk in _chunks(path):
        if not chunk.strip():
            continue
        table = _parse(path, line, chunk, None)
        schemas.append(pa.schema([pa.field(field.name, _as_written(field.type)) for field in table.schema]))
        rows += table.num_rows
    if not schemas:
        raise StorageError(f"{path} is empty.", "write one object {...} per line")
    try:
        return pa.unify_schemas(schemas, promote_options="permissive"), rows
    except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
        raise StorageError(
            f"{path}: {str(exc).splitlines()[0]}.", "give each field one type throughout the file"
        ) from exc


def _as_written(kind: pa.DataType) -> pa.DataType:
    """Undo Arrow's guess that a text which looks like a time is one: a text stays the text that it was."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_as_written(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_written(field.type)) for field in kind])
    return kind


def _read_jsonl(path: Path, schema: pa.Schema, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    for line, chunk in _chunks(path):
        if chunk.strip():
            yield from _parse(path, line, chunk, schema).select(columns or schema.names).to_batches()


# CSV


def _csv(path: Path, schema: pa.Schema | None, columns: list[str] | None) -> Any:
    import pyarrow.csv as pc

    return pc.open_csv(
        path,
        pc.ReadOptions(use_threads=False, block_size=_CHUNK_BYTES),
        pc.ParseOptions(newlines_in_values=True),
        pc.ConvertOptions(column_types=schema, include_columns=columns),
    )


def _open_csv(path: Path) -> tuple[pa.Schema, int | None]:
    import pyarrow as pa

    with _csv(path, None, None) as reader:
        return pa.schema([pa.field(field.name, _as_written(field.type)) for field in reader.schema]), None


def _read_csv(path: Path, schema: pa.Schema, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    with _csv(path, schema, columns) as reader:
        yield from reader
