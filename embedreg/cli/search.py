"""`embedreg search`: find the rows nearest to a text or an image with the function that a table declares."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedreg.cli import queries, terminal
from embedreg.cli.hits import Hits, as_records, show
from embedreg.cli.search_columns import is_binary, shown_columns, with_source, without_views
from embedreg.cli.session import AsJson, command
from embedreg.datasets import places
from embedreg.errors import InputError, MetadataError, MissingColumnError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
    from embedreg.core.modality import Modality
    from embedreg.declaration.codec import Functions

__all__ = ["choose", "find", "search"]

_CHUNKS = 4  # chunks that are read for each parent at first, and the factor by which more are read
RESCORE = 4
_KINDS = ("lance", "parquet", "arrow")
_IMAGE_ROWS = 256  # batch size for tables with image bytes, which may be megabytes each


@command
def search(
    table: Annotated[
        str, typer.Argument(help="A .lance folder, DB_DIR/name, or a Parquet or Arrow file or folder of them.")
    ],
    query: Annotated[str | None, typer.Argument(help="The text to search for.")] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", metavar="FILE", help="Search for rows similar to this image instead of a text."),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option("--audio", metavar="FILE", help="Search for rows similar to this recording instead of a text."),
    ] = None,
    mode: Annotated[
        Literal["vector", "text", "hybrid"],
        typer.Option(help="By meaning, by the words themselves, or by both; the last two on a Lance table."),
    ] = "vector",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The maximum number of rows.")] = 10,
    columns: Annotated[
        str | None, typer.Option(help="The columns to show, separated by commas, in this order.")
    ] = None,
    vector: Annotated[
        list[str] | None,
        typer.Option(help="The vector column, where the table has several; give two or more to fuse their rankings."),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="A condition in SQL, such as: module = 'json' AND year > 1990")
    ] = None,
    group_by_parent: Annotated[
        bool, typer.Option("--group-by-parent", help="Of a table of chunks: each parent once, with its best chunk.")
    ] = False,
    rescore: Annotated[
        int,
        typer.Option(
            min=0,
            help="For binary vectors: this many times LIMIT rows are found by their signs, then compared with the "
            "query's own numbers; 0 for signs alone.",
        ),
    ] = RESCORE,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write the hits to a page too, with their images or recordings."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search a table with a text, an image or a recording: the function that embedded it is read from its metadata.

    A Lance table is searched by its engine; files are read through once, each vector compared, and so are sparse and
    quantised vectors (int8, uint8, binary, ubinary) and several columns at once. The score of a row is the cosine of
    its vector and the query's, 1 at best; for other metrics and multi-vectors its distance is shown, 0 at best. Several
    columns are fused by their ranks.
    """
    if sum(each is not None for each in (query, image, audio)) != 1:
        raise typer.BadParameter("give what to look for: either QUERY, or --image FILE, or --audio FILE.")
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"--html {html}: a page's name ends in .html.")
    place = places.find(table, _KINDS)
    start = time.perf_counter()
    wanted = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    asked: Any = query
    if image is not None:
        asked = queries.opened_image(image)
    elif audio is not None:
        asked = queries.opened_recording(audio)
    file = image or audio
    look = _by_parent if group_by_parent else find
    hits = look(
        place,
        asked,
        limit=limit,
        columns=wanted,
        vector=vector,
        where=where,
        values=html is not None,
        mode=mode,
        rescore=rescore,
    )
    if html is not None:
        from embedreg.cli import contact_sheet

        contact_sheet.write(html, hits, asked, str(place.path), name=None if file is None else file.name)
    if as_json:
        terminal.print_json(as_records(hits))
        return
    if not len(hits.distances):
        terminal.note("no row has a vector" if where is None else "no row meets the condition")
        return
    show(hits, in_order=wanted is not None)
    terminal.note(f"{terminal.count(len(hits.distances), 'row')} in {terminal.seconds(time.perf_counter() - start)}")
    if html is not None:
        with_them = "as a page" if hits.media is None else f"with their {hits.media.plural}"
        terminal.note(f"the same {with_them}: {html}")


def _by_parent(place: places.Place, query: Any, *, limit: int, columns: list[str] | None, **options: Any) -> Hits:
    """Return the nearest parents, each with its best chunk: more chunks are read until there are enough parents.

    Raises:
        MetadataError: the data is not a table of chunks. Errors of `find`.
    """
    import pyarrow as pa

    from embedreg.chunks import settings
    from embedreg.inspection.locate import metadata_of

    found = settings.read(metadata_of(place.path), str(place.path))
    if found is None:
        raise MetadataError(
            f"{place.path} is not a table of chunks, so its rows have no parents.", "leave --group-by-parent out"
        )
    asked = None if columns is None else list(dict.fromkeys([*columns, found.key]))
    wanted = _CHUNKS * limit
    while True:
        hits = find(place, query, limit=wanted, columns=asked, **options)
        first: dict[Any, int] = {}
        for row, key in enumerate(hits.rows[found.key].to_pylist()):
            first.setdefault(key, row)
        if len(first) >= limit or len(hits.distances) < wanted:
            break
        wanted *= _CHUNKS
    best = list(first.values())[:limit]
    rows = hits.rows.take(pa.array(best, pa.int64()))
    kept = tuple(hits.values[row] for row in best) if hits.values else ()
    shown = rows if columns is None else rows.select(columns)
    return dataclasses.replace(hits, rows=shown, distances=hits.distances[best], values=kept)


def find(
    place: places.Place,
    query: Any,
    *,
    limit: int = 10,
    columns: list[str] | None = None,
    vector: str | Sequence[str] | None = None,
    where: str | None = None,
    values: bool = False,
    mode: Literal["vector", "text", "hybrid"] = "vector",
    rescore: int = RESCORE,
) -> Hits:
    """Embed a query with the function that the data declares, and return the nearest rows.

    Args:
        place: the data.
        query: a text, a PIL image, or the path of a recording.
        limit: how many rows.
        columns: the columns to show; None for all except vectors and bytes.
        vector: the vector column, if there are several; of several, their rankings are fused.
        where: a condition in SQL.
        values: whether to include the embedded values, even if their column is not shown.
        mode: "vector" by meaning; "text" by words (BM25); "hybrid" by both.
        rescore: of binary vectors, so many times `limit` rows are compared with the query's floats; 0 for none.
    Raises:
        MetadataError: the data declares no function, or several and `vector` does not name one.
        MissingColumnError: a column of `columns` does not exist.
        InputError: an image for a function of texts, or the like; or a text search without an engine.
    """
    from embedreg import embed_query, functions_in
    from embedreg.core.base import metric_of
    from embedreg.core.kinds import kind_of
    from embedreg.declaration import codec

    if mode != "vector" and (place.kind != "lance" or not isinstance(query, str)):
        asks = queries.modality_of(query).files
        what = f"{place.path}, which is not a Lance table," if asks is None else asks.noun
        raise InputError(f"--mode {mode} looks for words; {what} has no index of them.", "leave --mode out")
    names = [vector] if isinstance(vector, str) else list(dict.fromkeys(vector or []))
    if len(names) > 1:
        return _find_in_several(place, query, names, limit, columns, where, values, mode)
    with terminal.status("loading the function"):
        config = choose(functions_in(place.path), next(iter(names), None), str(place.path))
        function, source = config.function, config.source_column
        queries.refuse(function, query, place.path)
        vector_of_query: Any = None if mode == "text" else embed_query(function, query)
    extra = source if values else None
    kind, quantizer = kind_of(function), codec.quantizer(config)
    if mode == "hybrid" and (not kind.one_size or quantizer is not None):
        held = kind.plural if quantizer is None else f"{quantizer.dtype} values"
        raise InputError(
            f"--mode hybrid takes one vector a row; {config.vector_column!r} holds {held}.", "leave --mode out"
        )
    metric = {"text": "bm25", "hybrid": "rrf"}.get(mode, kind.shown_metric(metric_of(function)))
    if quantizer is not None and quantizer.bits and not rescore and mode == "vector":
        metric = "hamming"
    by_engine = kind.unsearchable_in_lancedb is None and quantizer is None  # it does not support ranges
    if place.kind == "lance" and (mode != "vector" or by_engine):
        words = query if mode != "vector" else None
        rows, distances, shown = _in_lance(
            place, config, vector_of_query, words, metric_of(function), limit, columns, where, extra
        )
    else:
        asked = [(config, vector_of_query)]
        rows, distances, shown = _read_through(place, asked, limit, columns, where, extra, rescore)
    kept = tuple(rows.column(source).to_pylist()) if values and source in rows.column_names else ()
    media = _media(function, rows.schema.field(source).type) if kept else None
    return Hits(rows.select(shown), distances, metric, source, kept, media)


def _find_in_several(
    place: places.Place,
    query: Any,
    vectors: list[str],
    limit: int,
    columns: list[str] | None,
    where: str | None,
    values: bool,
    mode: str,
) -> Hits:
    """Fuse the rankings of several vector columns, as `find`."""
    from embedreg import embed_query, functions_in

    if mode != "vector":
        raise InputError(f"--mode {mode} searches one vector column, not {len(vectors)}.", "leave --mode out")
    with terminal.status("loading the functions"):
        functions = functions_in(place.path)
        configs = [choose(functions, name, str(place.path)) for name in vectors]
        for config in configs:
            queries.refuse(config.function, query, place.path)
        asked = [(config, embed_query(config.function, query)) for config in configs]
    source = configs[0].source_column
    extra = source if values else None
    rows, distances, shown = _read_through(place, asked, limit, columns, where, extra)
    kept = tuple(rows.column(source).to_pylist()) if values and source in rows.column_names else ()
    media = _media(configs[0].function, rows.schema.field(source).type) if kept else None
    return Hits(rows.select(shown), distances, "rrf", source, kept, media)


def _media(function: EmbeddingFunction, kind: pa.DataType) -> Modality | None:
    """Return the modality of rows that a page can show; strings are, only if the function declares it."""
    from embedreg.core.modality import ANY, AUDIO, IMAGE, source_modality

    embedded = source_modality(function)
    if embedded is ANY and is_binary(kind):
        return IMAGE
    return embedded if embedded in (IMAGE, AUDIO) else None


def choose(functions: Functions, vector: str | None, where: str) -> EmbeddingFunctionConfig:
    """Return the declaration of a vector column, or the only one if none is named."""
    if vector is None:
        if not functions.entries:
            raise MetadataError(
                f"{where} declares no embedding function, so it is not known how to embed a query for it.",
                "fill it with vectors: embedreg embed; or declare the function that made its vectors: embedreg attach",
            )
        if len(functions.entries) > 1:
            names = list(functions.entries)
            raise MetadataError(
                f"{where} has {len(names)} vector columns.", " or ".join(f"--vector {n}" for n in names)
            )
        vector = next(iter(functions.entries))
    return functions[vector]  # raises its problem, or an error that lists the columns


def _in_lance(
    place: places.Place,
    config: EmbeddingFunctionConfig,
    query: np.ndarray[Any, Any] | None,
    words: str | None,
    metric: str,
    limit: int,
    columns: list[str] | None,
    where: str | None,
    source: str | None,
) -> tuple[pa.Table, np.ndarray[Any, Any], list[str]]:
    """Search with the engine, by a vector, by words, or by both."""
    from embedreg.cli import lance
    from embedreg.cli.where import lance_where

    plain = lance.unindexed(place, config.vector_column) if words is None else None
    table = lance.open_untouched(place) if plain is None else plain
    shown = shown_columns(table.schema, columns)
    names = with_source(source, shown, table.schema)
    with lance.engine_errors(
        f"{place.path} cannot be searched", "check --where" if where is not None else "embedreg inspect"
    ):
        if plain is not None:
            wanted = {"column": config.vector_column, "q": query, "k": limit, "metric": metric}
            condition = None if where is None else lance_where(where, table.schema)
            found = table.to_table([*names, "_distance"], condition, nearest=wanted, prefilter=True)
            return found.select(names), found.column("_distance").to_numpy(), shown
        if words is None:
            nearest = table.search(query, vector_column_name=config.vector_column, query_type="vector")
            nearest = nearest.distance_type(metric).select([*names, "_distance"])
            score = "_distance"
        elif query is None:
            nearest = table.search(words, query_type="fts", fts_columns=config.source_column)
            nearest = nearest.select([*names, "_score"])
            score = "_score"
        else:
            nearest = table.search(
                query_type="hybrid", vector_column_name=config.vector_column, fts_columns=config.source_column
            )
            nearest = nearest.vector(query).text(words).distance_type(metric)
            score = "_relevance_score"
        nearest = nearest.limit(limit)
        found = (
            nearest if where is None else nearest.where(lance_where(where, table.schema), prefilter=True)
        ).to_arrow()
    values = found.column(score).to_numpy()
    return found.select(names), values if words is None else -values, shown


def _read_through(
    place: places.Place,
    asked: Sequence[tuple[EmbeddingFunctionConfig, Any]],
    limit: int,
    columns: list[str] | None,
    where: str | None,
    source: str | None,
    rescore: int = RESCORE,
) -> tuple[pa.Table, np.ndarray[Any, Any], list[str]]:
    """Search by reading all rows once: the nearest in one column, or the fused rankings of several."""
    from embedreg.cli.nearest import Asked, fused, nearest
    from embedreg.cli.where import parse_where
    from embedreg.core.base import metric_of
    from embedreg.core.kinds import kind_of
    from embedreg.datasets.sources import open_source
    from embedreg.declaration import codec

    data = open_source(place)
    stored = data.schema  # filters are also compared with a file's statistics
    data = dataclasses.replace(data, schema=without_views(data.schema))
    shown = shown_columns(data.schema, columns)
    names = with_source(source, shown, data.schema)
    vectors = [config.vector_column for config, _ in asked]
    for name in vectors:
        if name not in data.schema.names:
            raise MissingColumnError(
                f"{place.path} declares the vector column {name!r} and does not have it.",
                "embed it again: embedreg embed",
            )
    heavy = {"batch_rows": _IMAGE_ROWS} if any(is_binary(data.schema.field(name).type) for name in names) else {}
    wanted = list(dict.fromkeys([*names, *vectors]))
    if where is not None and place.kind == "lance":
        from embedreg.cli.lance import filtered

        batches = filtered(place, wanted, where)
    else:
        condition = None if where is None else parse_where(where, stored if place.kind == "parquet" else data.schema)
        batches = data.batches(wanted, where=condition, **heavy)
    searches = [
        Asked(
            config.vector_column,
            kind_of(function),
            query,
            function.ndims(),
            metric_of(function),
            codec.quantizer(config),
        )
        for config, query in asked
        for function in [config.function]
    ]
    if len(searches) == 1:
        rows, distances = nearest(batches, searches[0], limit, names, rescore)
    else:
        rows, distances = fused(batches, searches, limit, names)
    return (data.schema.empty_table().select(names) if rows is None else rows), distances, shown
