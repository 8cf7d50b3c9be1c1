"""The calls that change and describe columns: they check their arguments, open the data and call its engine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, get_args

from embedreg.arrow.kind import VectorKind
from embedreg.columns.arguments import a_function, no_declarations, refuse_count, undeclared
from embedreg.columns.migration import Migration, using_cache
from embedreg.columns.opening import opened
from embedreg.columns.results import ColumnReport, ColumnStatus
from embedreg.columns.store import ColumnStore, Options, Unstamped
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.core.kinds import kind_of, kind_recorded
from embedreg.core.lancedb_hooks import unwrap
from embedreg.embedding.table import BATCH_ROWS, OnError, Progress
from embedreg.errors import ConfigError, InputError, option
from embedreg.inspection.attach import Agreement

__all__ = ["add", "chosen", "detach", "fill", "migrate", "migrations", "refresh", "repoint", "status"]


def add(
    data: Any,
    declaration: EmbeddingFunctionConfig,
    *,
    digest: bool = True,
    on_error: OnError = "null",
    max_bad_rows: int | None = None,
    batch_rows: int = BATCH_ROWS,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    resume: bool = True,
    key: str | None = None,
    switch_timeout_s: float = 60.0,
    yes: bool = False,
) -> ColumnReport:
    """Add a vector column to data, embedded from one of its columns; the other columns are not rewritten.

    Args:
        data: a path, or a table object of an engine.
        declaration: `fn.bind("text", "vector")`; `vector` must be a new column.
        digest: also add `<vector>__source_digest`, by which `status` and `refresh` find the rows that are up to date.
        on_error, max_bad_rows, batch_rows, progress: as in `embed_batches`; "drop" is not possible here.
        cache: a file that keeps vectors over runs; an interrupted run embeds nothing twice.
        resume: False drops what an interrupted run staged.
        key: the column that identifies rows, for engines that merge by one.
        switch_timeout_s: how long the commit is tried again while other writers commit.
        yes: add a second vector column, although searches that name no column then fail.
    Returns:
        What was done.
    Raises:
        SchemaError: the column exists. ConfigError: invalid arguments, or a second vector column without `yes`.
        StorageError: it cannot be written, or another process works on it. EmbedregError: as `embed_batches`.
    """
    if not isinstance(declaration, EmbeddingFunctionConfig):
        raise InputError(f"a declaration is needed, not a {type(declaration).__name__}.", "fn.bind('text', 'vector')")
    options = _options(
        digest=digest,
        on_error=on_error,
        max_bad_rows=max_bad_rows,
        batch_rows=batch_rows,
        cache=cache,
        progress=progress,
        resume=resume,
        key=key,
        switch_timeout_s=switch_timeout_s,
        yes=yes,
    )
    with using_cache(cache):
        store = opened(data)
        _refuse_kind(store, kind_of(unwrap(declaration.function)))
        return store.add(declaration, options)


def fill(data: Any, columns: str | Iterable[str] | None = None, **same: Any) -> list[ColumnReport]:
    """Embed the rows that have a source and no vector; other rows stay.

    Args:
        data: a path, or a table object of an engine.
        columns: the vector columns; all declared ones by default.
        same: the other arguments of `add`, except for `digest` and `yes`.
    Returns:
        One report per column.
    Raises:
        MissingColumnError: a column that is not declared. EmbedregError: as `add`.
    """
    options = _options(**same)
    with using_cache(options.cache):
        store = opened(data)
        return [store.fill(vector, options) for vector in chosen(store, columns)]


def refresh(
    data: Any,
    columns: str | Iterable[str] | None = None,
    *,
    unstamped: Unstamped = "verify",
    sample: int = 300,
    dry_run: bool = False,
    **same: Any,
) -> list[ColumnReport]:
    """Embed the rows that are not fresh: the source changed, another function made the vector, or it is missing.

    A row whose source changes while it is embedded is not given the old source's vector.

    Args:
        data, columns, same: as `fill`.
        unstamped: what to do with vectors without a digest: "verify" embeds a sample, and stamps all if all agree, else
            embeds all again; "recompute" embeds all again; "trust" stamps all.
        sample: how many rows "verify" embeds.
        dry_run: count only; nothing is embedded or written.
    Returns:
        One report per column.
    Raises:
        As `fill`.
    """
    if unstamped not in get_args(Unstamped):
        raise ConfigError(f"invalid unstamped={unstamped!r}.", "unstamped='verify', 'recompute' or 'trust'")
    refuse_count("sample", sample, 300)
    options = _options(**same)
    with using_cache(options.cache):
        store = opened(data)
        return [
            store.refresh(vector, options, unstamped=unstamped, sample=sample, dry_run=dry_run)
            for vector in chosen(store, columns)
        ]


def status(data: Any) -> list[ColumnStatus]:
    """Return the rows of each declared vector column by class, and its migration; no model is run.

    Args:
        data: a path, or a table object of an engine.
    Returns:
        One status per declared column; what cannot be read is named in its `problem`.
    Raises:
        InputError, StorageError, MetadataError: the data or its declarations as a whole cannot be read.
    """
    return opened(data).status()


def migrate(
    data: Any,
    vector: str,
    function: EmbeddingFunction,
    *,
    name: str | None = None,
    switch: bool = True,
    index: str = "like",
    keep: bool = True,
    **same: Any,
) -> Migration:
    """Change the model of a column of a live table, with a way back until `finish`.

    New vectors are staged outside the table, then one commit replaces vectors and declaration. Afterwards, the changes
    that other writers made meanwhile are settled. After an interruption, the same call continues.

    Args:
        data: a path, or a table object of an engine.
        vector: the column.
        function: the new function; it reads the same source column.
        name: another name for the column: readers of the old one then fail instead of mixing two models.
        switch: False stages only; `.switch()` and `.settle()` follow later.
        index: "like" builds the old column's vector index for the new vectors before the switch; "none" builds none.
        keep: keep a copy of the old vectors outside the table, since compaction destroys them there.
        same: the other arguments of `add`.
    Returns:
        The migration.
    Raises:
        MissingColumnError: no such declared column. ConfigError: a computed column, or invalid arguments.
        StorageError: another migration or process works on the table, or other writers left no quiet moment.
    """
    new = a_function(function)
    if index not in ("like", "none"):
        raise ConfigError(f"invalid index={index!r}.", "index='like' or 'none'")
    options = _options(**same)
    with using_cache(options.cache):
        store = opened(data)
        chosen(store, vector)
        _refuse_kind(store, kind_of(new))
        return store.migrate(vector, new, options, name=name, switch=switch, index=index, keep=keep)


def migrations(data: Any, **same: Any) -> list[Migration]:
    """Return the migrations of a table that are not finished.

    Args:
        data: a path, or a table object of an engine.
        same: the other arguments of `add`, for what their methods embed and commit.
    Raises:
        InputError, StorageError, MetadataError: as `status`. ConfigError: invalid arguments.
    """
    return opened(data).migrations(_options(**same))


def repoint(
    data: Any, vector: str, function: EmbeddingFunction, *, sample: int = 100, seed: int = 0, dry_run: bool = False
) -> Agreement:
    """Replace a column's declaration by another function of the same vectors, such as the same model at another host.

    Args:
        data: a path, or a table object of an engine.
        vector: the column.
        function: the new function.
        sample: how many rows are embedded again and compared.
        seed: selects the rows.
        dry_run: compare the sample only; nothing is written.
    Returns:
        The agreement of the sample.
    Raises:
        DriftError: the function returns other vectors. MissingColumnError: no such declared column.
        ConfigError: the function returns another kind of vectors.
    """
    refuse_count("sample", sample, 100)
    store, new = opened(data), a_function(function)
    held = next((kind_recorded(each.reserved) for each in store.declared() if each.vector_column == vector), None)
    if held is not None and held is not kind_of(new):
        raise ConfigError(
            f"column {vector!r} of {store.shown} is of {held.name} vectors, "
            f"{type(new).__name__} of {kind_of(new).name} ones.",
            f"columns.migrate(data, {vector!r}, function) embeds it with another function",
        ).for_shell("embedreg column migrate embeds it with another function")
    return store.repoint(vector, new, sample=sample, seed=seed, dry_run=dry_run)


def detach(data: Any, vector: str, *, drop: bool = False) -> None:
    """Remove the declaration of a column; other declarations stay byte for byte.

    Args:
        data: a path, or a table object of an engine.
        vector: the column.
        drop: remove the column and its digests too, in the same commit.
    Raises:
        MissingColumnError: no such declared column. StorageError: it cannot be written.
    """
    opened(data).detach(vector, drop=drop)


def _options(**given: Any) -> Options:
    names = Options.__dataclass_fields__
    if unknown := [name for name in given if name not in names]:
        raise ConfigError(f"unknown argument {unknown[0]!r}.", f"arguments: {', '.join(names)}")
    made = Options(**given)
    if made.on_error not in ("raise", "null"):
        raise ConfigError(f"invalid on_error={made.on_error!r}.", "on_error='raise' or 'null'; no row can be dropped")
    refuse_count("batch_rows", made.batch_rows, BATCH_ROWS)
    return made


def chosen(store: ColumnStore, columns: str | Iterable[str] | None) -> list[str]:
    """Return the vector columns to work on: some of the declared ones, all by default.

    Raises:
        MissingColumnError: one of them is not declared, or none is.
    """
    known = [entry.vector_column for entry in store.declared()]
    wanted = known if columns is None else [columns] if isinstance(columns, str) else list(columns)
    for name in wanted:
        if name not in known:
            raise undeclared(store.shown, name, known)
    for entry in store.declared():
        if entry.vector_column in wanted:
            _refuse_kind(store, kind_recorded(entry.reserved))
    if not wanted:
        raise no_declarations(
            store.shown,
            option("embedreg attach declares one, embedreg column add makes one", "embedreg.attach, columns.add"),
        )
    return wanted


def _refuse_kind(store: ColumnStore, kind: VectorKind) -> None:
    """Raise ConfigError where a store cannot change columns of a kind of vectors."""
    if not kind.one_size and not store.rows_of_any_size:
        raise ConfigError(
            f"columns of {kind.plural} can be changed in Parquet and Arrow files only, not in {store.shown}.",
            "embed the rows again: embedreg.embed_table(data, fn.bind(source, vector))",
        ).for_shell("embed the rows again: embedreg embed SRC DST")
