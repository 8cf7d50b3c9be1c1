"""`embedreg search`: the rows nearest in meaning to a text, from a table that says itself how it was embedded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedreg.cli import places, terminal
from embedreg.cli.session import AsJson, command
from embedreg.errors import MetadataError, MissingColumnError
from embedreg.imports import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from embedreg.base import EmbeddingFunctionConfig
    from embedreg.metadata import Functions

__all__ = ["Hits", "find", "search", "show"]


@dataclass(frozen=True)
class Hits:
    """The rows that a search found.

    Attributes:
        rows: nearest first, without their vectors.
        distances: (k,) one per row, smaller is nearer.
        metric: "cosine" (1 - cosine), "l2" (squared) or "dot" (1 - dot product).
        source: the column that was embedded.
    """

    rows: pa.Table
    distances: np.ndarray[Any, Any]
    metric: str
    source: str


@command
def search(
    table: Annotated[str, typer.Argument(help="A .lance folder, DB_DIR/name, or a Parquet file or folder of them.")],
    query: Annotated[str, typer.Argument(help="What to look for, in plain words.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many rows.")] = 10,
    columns: Annotated[str | None, typer.Option(help="The columns to show, separated by commas.")] = None,
    vector: Annotated[str | None, typer.Option(help="The vector column, where the table has several.")] = None,
    where: Annotated[str | None, typer.Option(help="A condition in SQL, such as: module = 'json'")] = None,
    as_json: AsJson = False,
) -> None:
    """Search a table with plain text: the function that embedded it is read from its metadata.

    A Lance table is searched by its engine; Parquet is read through once, each vector compared.
    """
    place = places.find(table)
    start = time.perf_counter()
    wanted = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    hits = find(place, query, limit=limit, columns=wanted, vector=vector, where=where)
    if as_json:
        terminal.print_json(as_records(hits))
        return
    if not len(hits.distances):
        terminal.note("no row has a vector" if where is None else "no row meets the condition")
        return
    show(hits)
    terminal.note(f"{len(hits.distances)} rows in {terminal.seconds(time.perf_counter() - start)}")


def find(
    place: places.Place,
    query: str,
    *,
    limit: int = 10,
    columns: list[str] | None = None,
    vector: str | None = None,
    where: str | None = None,
) -> Hits:
    """Embed a query with the function that the data declares, and find the nearest rows.

    Raises:
        MetadataError: the data declares no function, or several and `vector` names none of them.
        MissingColumnError: a column of `columns` is not there.
    """
    from embedreg import embed_query, functions_in

    with terminal.status("loading the function"):
        config = choose(functions_in(place.path), vector, str(place.path))
        vector_of_query = embed_query(config.function, query)
    search_in = _in_lance if place.kind == "lance" else _in_parquet
    metric = config.function.traits.metric
    rows, distances = search_in(place, config, vector_of_query, metric, limit, columns, where)
    return Hits(rows, distances, metric, config.source_column)


def choose(functions: Functions, vector: str | None, where: str) -> EmbeddingFunctionConfig:
    """Pick the declaration of a vector column; the only one where none is named."""
    if vector is None:
        if not functions.entries:
            raise MetadataError(
                f"{where} declares no embedding function, so nobody can tell how to embed a query for it.",
                "embed it with `embedreg embed`, or declare one with fn.bind('source', 'vector')",
            )
        if len(functions.entries) > 1:
            names = list(functions.entries)
            raise MetadataError(
                f"{where} has {len(names)} vector columns.", " or ".join(f"--vector {n}" for n in names)
            )
        vector = next(iter(functions.entries))
    return functions[vector]  # raises what its problem was, or names the columns that there are


def _in_lance(
    place: places.Place,
    config: EmbeddingFunctionConfig,
    query: np.ndarray[Any, Any],
    metric: str,
    limit: int,
    columns: list[str] | None,
    where: str | None,
) -> tuple[pa.Table, np.ndarray[Any, Any]]:
    from embedreg.cli import lance

    table = lance.open_untouched(place)
    names = _columns(table.schema, columns)
    with lance.engine_errors(f"{place.path} cannot be searched", "check --where" if where else "embedreg inspect"):
        nearest = table.search(query, vector_column_name=config.vector_column, query_type="vector")
        nearest = nearest.distance_type(metric).limit(limit).select([*names, "_distance"])
        found = (nearest if where is None else nearest.where(where, prefilter=True)).to_arrow()
    return found.select(names), found.column("_distance").to_numpy()


def _in_parquet(
    place: places.Place,
    config: EmbeddingFunctionConfig,
    query: np.ndarray[Any, Any],
    metric: str,
    limit: int,
    columns: list[str] | None,
    where: str | None,
) -> tuple[pa.Table, np.ndarray[Any, Any]]:
    from embedreg.cli.nearest import nearest
    from embedreg.cli.sources import open_source
    from embedreg.cli.where import parse_where

    source = open_source(place)
    names = _columns(source.schema, columns)
    if config.vector_column not in source.schema.names:
        raise MissingColumnError(
            f"{place.path} declares the vector column {config.vector_column!r} and does not have it.",
            "embed it again: embedreg embed",
        )
    condition = None if where is None else parse_where(where, source.schema.names)
    batches = source.batches(list(dict.fromkeys([*names, config.vector_column])), where=condition)
    rows, distances = nearest(batches, config.vector_column, query, metric, limit, names)
    return (source.schema.empty_table().select(names) if rows is None else rows), distances


def _columns(schema: pa.Schema, wanted: list[str] | None) -> list[str]:
    """Return the columns to show: those asked for, else all that are no lists of numbers."""
    import pyarrow as pa

    if wanted is None:
        return [field.name for field in schema if not (pa.types.is_nested(field.type) and _is_vector(field.type))]
    for name in wanted:
        if name not in schema.names:
            hint = f"{did_you_mean(name, schema.names)}columns: {', '.join(schema.names)}"
            raise MissingColumnError(f"there is no column {name!r}.", hint)
    return wanted


def _is_vector(kind: pa.DataType) -> bool:
    import pyarrow as pa

    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))


def as_records(hits: Hits) -> list[dict[str, Any]]:
    """Return the hits as JSON objects: the row's columns, `_distance`, and for cosine `_score`, 1 at best."""
    records = hits.rows.to_pylist()
    for record, distance in zip(records, hits.distances.tolist(), strict=True):
        record["_distance"] = distance
        if hits.metric == "cosine":
            record["_score"] = 1 - distance
    return list(records)


def show(hits: Hits, title: str | None = None) -> None:
    """Print the hits as a table: the score (or distance), and each column on one line."""
    names = hits.rows.column_names
    # The text that was embedded is the long one: it comes last and is cut to what fits.
    names = [name for name in names if name != hits.source] + [name for name in names if name == hits.source]
    cosine = hits.metric == "cosine"
    rows = [
        [f"{1 - distance if cosine else distance:.3f}", *(_cell(record[name]) for name in names)]
        for record, distance in zip(hits.rows.to_pylist(), hits.distances.tolist(), strict=True)
    ]
    terminal.print_table(["score" if cosine else "distance", *names], rows, title=title)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{len(value):,} bytes" if isinstance(value, bytes) else terminal.plain(value, 400)
