"""Where declarations are found: everything that can carry an Arrow schema, and the message about the rest."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

import embedreg
from embedreg import Schema, Vector
from embedreg.errors import EmbedregError, InputError, StorageError, UnknownFunctionError
from embedreg.inspection.locate import metadata_of
from tests.fakes import Lengths

KEY = b"embedding_functions"
FN = Lengths(scale=2)


class Articles(Schema):
    """A text and its vector."""

    text: str = FN.SourceField()
    vector: Vector(3) = FN.VectorField()  # type: ignore[valid-type]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """A table that a function has filled."""
    return embedreg.embed_table({"text": ["one", "two three"]}, Articles)


def _parquet(table: pa.Table, folder: Path) -> Path:
    pq.write_table(table, folder / "t.parquet")
    return folder / "t.parquet"


def _parquet_folder(table: pa.Table, folder: Path) -> Path:
    data = folder / "data"
    (data / "part=1").mkdir(parents=True)
    (data / "_temporary").mkdir()
    (data / ".hidden").mkdir()
    for junk in ("_metadata.parquet", ".x.parquet", "_temporary/a.parquet", ".hidden/a.parquet", "README.md"):
        (data / junk).write_bytes(b"junk")
    pq.write_table(table, data / "part=1" / "b.parquet")
    return data


def _arrow_file(table: pa.Table, folder: Path) -> Path:
    with pa.OSFile(str(folder / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return folder / "t.arrow"


def _arrow_stream(table: pa.Table, folder: Path) -> Path:
    with pa.OSFile(str(folder / "t.arrows"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return folder / "t.arrows"


def _feather(table: pa.Table, folder: Path) -> Path:
    pa.feather.write_feather(table, folder / "t.feather")
    return folder / "t.feather"


def _by_duckdb(table: pa.Table, folder: Path) -> Path:
    """Write as DuckDB does, which drops the schema's metadata but takes key-value pairs for the file."""
    declared = table.schema.metadata[KEY].decode().replace("'", "''")
    con = duckdb.connect()
    con.register("t", table)
    con.sql(f"COPY t TO '{folder}/d.parquet' (FORMAT parquet, KV_METADATA {{embedding_functions: '{declared}'}})")
    return folder / "d.parquet"


def _lance_folder(table: pa.Table, folder: Path) -> Path:
    lancedb = pytest.importorskip("lancedb")
    lancedb.connect(folder / "db").create_table("t", table)
    return folder / "db" / "t.lance"


def _lance_table(table: pa.Table, folder: Path) -> Any:
    lancedb = pytest.importorskip("lancedb")
    return lancedb.connect(folder / "db").create_table("t", table)


def _lance_dataset(table: pa.Table, folder: Path) -> Any:
    lance = pytest.importorskip("lance")
    return lance.write_dataset(table, folder / "x.lance")


def _lance_model(table: pa.Table, folder: Path) -> Any:
    theirs = pytest.importorskip("lancedb.pydantic")

    class Model(theirs.LanceModel):  # type: ignore[misc, name-defined]
        """The same in LanceDB's own words."""

        text: str = FN.SourceField()
        vector: theirs.Vector(3) = FN.VectorField()  # type: ignore[valid-type]

    return Model


CARRIERS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "schema": lambda table, folder: table.schema,
    "table": lambda table, folder: table,
    "batch": lambda table, folder: table.to_batches()[0],
    "reader": lambda table, folder: table.to_reader(),
    "schema metadata": lambda table, folder: table.schema.metadata,
    "Arrow's own mapping": lambda table, folder: pa.KeyValueMetadata(table.schema.metadata),
    "metadata as text": lambda table, folder: {k.decode(): v.decode() for k, v in table.schema.metadata.items()},
    "Schema class": lambda table, folder: Articles,
    "LanceModel class": _lance_model,
    "Parquet file": _parquet,
    "Parquet file as str": lambda table, folder: str(_parquet(table, folder)),
    "open Parquet file": lambda table, folder: pq.ParquetFile(_parquet(table, folder)),
    "Parquet folder": _parquet_folder,
    "Parquet by DuckDB": _by_duckdb,
    "Arrow file": _arrow_file,
    "Arrow file without a suffix": lambda table, folder: _arrow_file(table, folder).rename(folder / "data"),
    "Arrow stream": _arrow_stream,
    "open Arrow file": lambda table, folder: pa.ipc.open_file(_arrow_file(table, folder)),
    "open Arrow stream": lambda table, folder: pa.ipc.open_stream(_arrow_stream(table, folder)),
    "Feather file": _feather,
    "folder of Arrow files": lambda table, folder: _arrow_file(table, folder).parent,
    "pyarrow dataset": lambda table, folder: pa.dataset.dataset(_parquet(table, folder)),
    "pyarrow scanner": lambda table, folder: pa.dataset.dataset(_parquet(table, folder)).scanner(),
    "lance folder": _lance_folder,
    "lancedb table": _lance_table,
    "lance dataset": _lance_dataset,
}


def _scanner(data: Any) -> Any:
    return data.projected_schema if isinstance(data, pa.dataset.Scanner) else data


@pytest.mark.parametrize("kind", CARRIERS)
def test_declarations_are_found_in_everything_that_carries_them(kind: str, table: pa.Table, tmp_path: Path) -> None:
    """functions_in, inspect and check_drift take the same things and find the same function."""
    for find in (embedreg.functions_in, embedreg.inspect, embedreg.check_drift):
        folder = tmp_path / find.__name__
        folder.mkdir()
        found = find(_scanner(CARRIERS[kind](table, folder)))
        if isinstance(found, Mapping):
            assert found["vector"].function == FN
            assert found["vector"].source_column == "text"
        elif find is embedreg.inspect:
            assert (found[0]["vector_column"], found[0]["function"], found[0]["ndims"]) == ("vector", "lengths", 3)
        else:
            assert [drift.verdict for drift in found] == ["same"]


def test_a_class_returns_the_function_instances_of_its_fields() -> None:
    """Nothing of a live schema is rebuilt, so nothing of it needs a grant."""
    mine = Lengths()

    class Own(Schema):
        """Declares a function that create() has never seen."""

        text: str = mine.SourceField()
        vector: Vector(3) = mine.VectorField()  # type: ignore[valid-type]

    assert embedreg.functions_in(Own)["vector"].function is mine


def test_a_reader_is_not_consumed(table: pa.Table) -> None:
    """Looking at a stream's schema leaves its rows."""
    reader = table.to_reader()
    assert embedreg.functions_in(reader)
    assert reader.read_all().num_rows == table.num_rows


class Plain(BaseModel):
    """A pydantic model that is not a schema."""

    schema_: int = 1


NOTHING: dict[str, Callable[[pa.Table], Any]] = {
    "a table without declarations": lambda table: table.replace_schema_metadata(None),
    "pandas": lambda table: table.to_pandas(),
    "polars": lambda table: pl.from_arrow(table),
    "a lazy polars frame": lambda table: pl.DataFrame({"a": [1]}).lazy(),
    "a polars schema": lambda table: pl.DataFrame({"a": [1]}).schema,
    "a DuckDB relation": lambda table: duckdb.from_arrow(table),
    "a dict of columns": lambda table: {"text": ["a"]},
}


@pytest.mark.parametrize("kind", NOTHING)
def test_types_without_metadata_declare_nothing(kind: str, table: pa.Table) -> None:
    """pandas, polars and DuckDB drop schema metadata: an empty result, without a warning."""
    assert embedreg.functions_in(NOTHING[kind](table)) == {}
    assert embedreg.inspect(NOTHING[kind](table)) == []
    assert embedreg.check_drift(NOTHING[kind](table)) == []


REFUSED: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a number": lambda: 5,
    "bytes": lambda: b"x",
    "a list of rows": lambda: [{"text": "a"}],
    "a pydantic class": lambda: Plain,
    "a pydantic instance": lambda: Plain(),
    "an Arrow array": lambda: pa.array(["a"]),
    "a class": lambda: int,
    "a function": lambda: FN,
    "a module": lambda: sys,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_schema_is_an_input_error(kind: str) -> None:
    """The hint names the accepted types."""
    with pytest.raises(InputError) as caught:
        embedreg.functions_in(REFUSED[kind]())
    assert caught.value.hint


def test_the_error_for_an_asynchronous_table_has_a_hint() -> None:
    """Its schema must be awaited by the caller; nothing is left un-awaited."""

    class AsyncTable:
        """Has a coroutine for a schema, as lancedb's has."""

        async def schema(self) -> pa.Schema:
            return pa.schema([])

    with pytest.raises(InputError, match="asynchronous"):
        embedreg.functions_in(AsyncTable())


def _missing(folder: Path) -> Path:
    return folder / "nothing.parquet"


def _empty(folder: Path) -> Path:
    (folder / "empty.parquet").touch()
    return folder / "empty.parquet"


def _text(folder: Path) -> Path:
    (folder / "t.csv").write_text("text\na\n")
    return folder / "t.csv"


def _cut_parquet(folder: Path) -> Path:
    pq.write_table(pa.table({"a": [1]}), folder / "t.parquet")
    content = (folder / "t.parquet").read_bytes()
    (folder / "t.parquet").write_bytes(content[: len(content) // 2])
    return folder / "t.parquet"


def _torn_parquet(folder: Path) -> Path:
    (folder / "t.parquet").write_bytes(b"PAR1" + b"\xff" * 1000 + b"\xff\xff\xff\x7fPAR1")
    return folder / "t.parquet"


def _cut_arrow(folder: Path) -> Path:
    (folder / "t.arrow").write_bytes(b"ARROW1\0\0" + b"\xff" * 20)
    return folder / "t.arrow"


def _torn_stream(folder: Path) -> Path:
    (folder / "t.arrows").write_bytes(b"\xff\xff\xff\xff" + b"\xff\xff\xff\x7f" + b"x" * 100)
    return folder / "t.arrows"


def _empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def _false_lance(folder: Path) -> Path:
    (folder / "t.lance").mkdir()
    return folder / "t.lance"


def _corrupt_in_folder(folder: Path) -> Path:
    _torn_parquet(folder)
    return folder


def _long_name(folder: Path) -> Path:
    return folder / ("x" * 5000)


def _null_in_name(folder: Path) -> Path:
    return folder / "a\0b"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.parquet")
    return folder / "pipe.parquet"


BROKEN = [
    _missing,
    _empty,
    _text,
    _cut_parquet,
    _torn_parquet,
    _cut_arrow,
    _torn_stream,
    _empty_folder,
    _false_lance,
    _corrupt_in_folder,
    _long_name,
    _null_in_name,
    _pipe,
]


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__[1:])
def test_a_file_that_cannot_be_read_is_a_storage_error(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """Missing, empty, cut off, torn, of another kind: an OSError of ours with a hint, and no waiting on a pipe."""
    with pytest.raises(StorageError) as caught:
        embedreg.functions_in(make(tmp_path))
    assert caught.value.hint
    assert isinstance(caught.value, OSError)


def test_corrupt_declarations_in_a_sound_file_are_metadata_errors(tmp_path: Path) -> None:
    """The message states that the data is intact."""
    pq.write_table(pa.table({"a": [1]}, metadata={KEY: b"nonsense"}), tmp_path / "t.parquet")
    with pytest.raises(EmbedregError, match="intact"):
        embedreg.functions_in(tmp_path / "t.parquet")


def test_inspect_reports_declarations_and_problems(table: pa.Table) -> None:
    """One dict per column, JSON throughout, with the reason and the remedy where a function is not available."""
    entries = json.loads(table.schema.metadata[KEY])
    entries.append({"name": "nobody", "model": {"a": 1}, "source_column": "text", "vector_column": "other"})
    entries.append({"name": "lengths", "model": {"colour": 1}, "source_column": "text", "vector_column": "third"})
    first, second, third = embedreg.inspect({KEY: json.dumps(entries).encode()})
    assert json.loads(json.dumps([first, second, third])) == [first, second, third]
    assert (first["status"], first["problem"], first["probe"], first["dtype"]) == ("ready", None, True, "float32")
    assert first["config"] == {"scale": 2.0}
    assert (second["status"], second["config"], second["probe"]) == (UnknownFunctionError.__name__, {"a": 1}, False)
    assert "nobody" in second["problem"]
    assert second["hint"]
    assert (first["notes"], second["notes"]) == ([], [])
    assert "colour" in third["notes"][0]


def test_metadata_of_gives_the_schema_metadata_alone(table: pa.Table, tmp_path: Path) -> None:
    """All other keys are returned unchanged."""
    info = {**table.schema.metadata, b"mine": b"1"}
    pq.write_table(table.replace_schema_metadata(info), tmp_path / "t.parquet")
    found = metadata_of(tmp_path / "t.parquet")
    assert found[b"mine"] == b"1"
    assert found[KEY] == table.schema.metadata[KEY]
    assert metadata_of(pd.DataFrame({"a": [1]})).get(KEY) is None
