"""Any index of a frame is kept or refused by name, and no data without a declaration is written, whatever holds it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import lancedb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import embedreg
from embedreg import embed_batches, embed_table
from embedreg.engines import lancedb as engine
from embedreg.errors import EmbedregError, SchemaError

FAST = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
BIND = embedreg.get("hashing").create(dim=2).bind("text", "vector")
LEVELS: dict[str, st.SearchStrategy[Any]] = {
    "numbers": st.integers(-(2**63), 2**63 - 1),
    "large": st.integers(0, 2**64 - 1),
    "texts": st.text(max_size=5),
    "floats": st.floats(allow_nan=False),
    "flags": st.booleans(),
    "dates": st.dates(dt.date(1700, 1, 1), dt.date(2200, 1, 1)),
    "times": st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1)),
    "zoned": st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC)),
    "spans": st.timedeltas(dt.timedelta(-9999), dt.timedelta(9999)),
    "bytes": st.binary(max_size=4),
    "mixed": st.integers(0, 9) | st.text(max_size=3) | st.none(),
}
NAMES = (
    st.none()
    | st.sampled_from(["id", "index", "text", "vector", "", "k", "level_0"])
    | st.text(st.characters(codec="latin-1", categories=["L", "N"]), max_size=4)
)
ODD_NAMES = st.sampled_from([0, 1.5, ("a", "b"), dt.date(2026, 1, 1), True])


@st.composite
def indexes(draw: st.DrawFn) -> pd.Index:
    """Draw an index of one to three levels, of any kind, named or not."""
    length, levels = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    kinds = [draw(st.sampled_from(sorted(LEVELS))) for _ in range(levels)]
    values = [draw(st.lists(LEVELS[kind], min_size=length, max_size=length)) for kind in kinds]
    names: list[Any] = [draw(NAMES | ODD_NAMES) for _ in range(levels)]
    if draw(st.booleans()):
        values = [pd.Categorical(values[0]) if kinds[0] != "mixed" else values[0], *values[1:]]  # type: ignore[list-item]
    return pd.Index(values[0], name=names[0]) if levels == 1 else pd.MultiIndex.from_arrays(values, names=names)


def plain(value: Any) -> Any:
    """Return a value of an index as Python's own."""
    if value is None or (isinstance(value, float) and value != value) or value is pd.NaT:
        return None
    return value.to_pydatetime() if isinstance(value, pd.Timestamp) else getattr(value, "item", lambda: value)()


def attempted(work: Callable[[], Any]) -> tuple[Any, EmbedregError | None]:
    """Return what some work gave, and the error that refused its input."""
    try:
        return work(), None
    except EmbedregError as exc:
        return None, exc


@given(indexes())
@FAST
def test_an_index_is_kept_or_named(index: pd.Index) -> None:
    """Each named level is a column with its values; an unnamed one too, but for integers; else an error names it."""
    frame = pd.DataFrame({"text": ["a"] * len(index)}, index=index)
    made, problem = attempted(lambda: embed_table(frame, BIND))
    if problem is not None:
        assert any(str(name) in problem.message for name in [*index.names, "index", "level"])
        return
    made.validate(full=True)
    for level in range(index.nlevels):
        values = [plain(value) for value in index.get_level_values(level)]
        name = index.names[level]
        if name is None and all(type(value) is int for value in values):
            continue
        [found] = [column for column in made.column_names if _is(column, name, level, index.nlevels)]
        assert [_comparable(value) for value in made[found].to_pylist()] == [_comparable(value) for value in values]


def _is(column: str, name: Any, level: int, levels: int) -> bool:
    return column == (str(name) if name is not None else "index" if levels == 1 else f"level_{level}")


def _comparable(value: Any) -> Any:
    if isinstance(value, pd.Timedelta | dt.timedelta):
        return pd.Timedelta(value).value
    if isinstance(value, dt.datetime | pd.Timestamp):
        return pd.Timestamp(value)
    return (type(value) is bool, plain(value))


CONTAINERS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "rows": lambda rows: rows,
    "a stream": iter,
    "columns": lambda rows: {name: [row[name] for row in rows] for name in ("text", "n")},
    "a table": lambda rows: pa.Table.from_pylist(rows, SCHEMA),
    "a batch": lambda rows: pa.RecordBatch.from_pylist(rows, SCHEMA),
    "a reader": lambda rows: pa.Table.from_pylist(rows, SCHEMA).to_reader(),
    "pandas": lambda rows: pd.DataFrame(rows, columns=["text", "n"]),
    "polars": lambda rows: pl.DataFrame(rows, schema={"text": pl.String, "n": pl.Int64}),
}
SCHEMA = pa.schema([("text", pa.string()), ("n", pa.int64())])
OTHER_METADATA = st.sampled_from(
    [None, {}, {b"pandas": b"{}"}, {b"embedding_functions": b"[]"}, {"author": "me"}, {b"\xff": b"\xff"}]
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A LanceDB table that declares nothing."""
    schema = pa.schema([*SCHEMA, ("vector", pa.list_(pa.float32(), 2))])
    return lancedb.connect(tmp_path_factory.mktemp("db")).create_table("t", schema=schema)


@given(
    rows=st.lists(st.fixed_dictionaries({"text": st.none() | st.text(max_size=4), "n": st.integers(0, 9)}), max_size=4),
    kind=st.sampled_from(sorted(CONTAINERS)),
    metadata=OTHER_METADATA,
    schema=st.booleans(),
)
@example([], "rows", None, True)
@FAST
def test_nothing_is_written_without_a_declaration(
    table: Any, rows: list[dict[str, Any]], kind: str, metadata: Any, schema: bool
) -> None:
    """Any rows in any container, with any other metadata and schema, into nothing and into a table: one error."""

    def data() -> Any:
        made = CONTAINERS[kind](rows)
        return made.replace_schema_metadata(metadata) if hasattr(made, "replace_schema_metadata") else made

    declared = SCHEMA.with_metadata(metadata) if schema else None
    for call in (
        lambda: embed_table(data(), declared),
        lambda: list(embed_batches(data(), declared)),
        lambda: engine.add(table, data()),
    ):
        with pytest.raises(SchemaError, match="declares no embedding function"):
            call()
    assert table.count_rows() == 0
