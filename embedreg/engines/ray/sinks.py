"""Sinks of embedded Ray datasets: Parquet folders with their manifest, and Lance tables in one commit.

Ray keeps the schema metadata of Arrow blocks, and loses it where a step works on rows, numpy or pandas; the sinks put
the declaration back.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from embedreg.core.kinds import kind_of_type
from embedreg.declaration import codec, manifest, templates
from embedreg.declaration.quantization import quantizer_of, refuse_in_lance
from embedreg.engines.ray.cluster import plain_errors
from embedreg.engines.ray.worker import step
from embedreg.errors import ConfigError, DriftError, StorageError, VectorError
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from embedreg.datasets.storage import Storage

__all__ = ["remember", "write_lance", "write_parquet"]

FRAGMENT_ROWS = 131_072  # 200 MB of 384-dimensional vectors in the memory of the task that writes them

_made: WeakKeyDictionary[Dataset, pa.Schema] = WeakKeyDictionary()


def remember(ds: Dataset, made: pa.Schema) -> None:
    """Record the schema that a dataset's blocks will have; its metadata declares the functions."""
    _made[ds] = made


def write_parquet(ds: Dataset, path: str, *, declared_by: Dataset | None = None, **options: Any) -> None:
    """Write an embedded dataset as a folder of Parquet files, each with the declaration, and a manifest beside them.

    A dataset without rows becomes one file without rows.

    Args:
        ds: what `embed_dataset` returned, or what you made of it.
        path: of the folder, local or a URI; every node must reach it.
        declared_by: what `embed_dataset` returned, where `ds` is something made of it.
        options: of Ray's `Dataset.write_parquet`.
    Raises:
        ConfigError: it is not known what declares the vectors. DriftError: the folder holds those of another function.
        EmbedregError: whatever embedding raises, as itself.
    """
    from pathlib import Path

    from embedreg.datasets.storage import Storage

    sealed, text = _sealed(ds, declared_by)
    folder = Storage(path.removeprefix("file://"), filesystem=options.get("filesystem"))
    if str(getattr(options.get("mode"), "value", options.get("mode", "append"))) == "append":
        there = folder.read(manifest.NAME, manifest.MAX_BYTES)
        _refuse_mixture(None if there is None else manifest.declaration(there), text, path)
    with plain_errors():
        sealed.write_parquet(path, **options)
    try:
        _keep_schema(folder, _schema_of(sealed, ds, declared_by))
        if folder.local is not None:
            manifest.write(Path(folder.uri), text)
        else:
            folder.write(manifest.NAME, manifest.content(text))
    except StorageError as exc:
        raise StorageError(
            f"the rows are written, the manifest is not: {exc.message}", "check the folder's permissions"
        ) from exc


def write_lance(
    ds: Dataset,
    uri: str,
    *,
    mode: Literal["create", "append", "overwrite"] = "create",
    declared_by: Dataset | None = None,
    rows_per_fragment: int = FRAGMENT_ROWS,
    storage_options: dict[str, str] | None = None,
) -> None:
    """Write an embedded dataset as a Lance table: workers write fragments, one commit at the end makes them a table.

    Ray's own `write_lance` works with some versions of pylance only.

    Args:
        ds, declared_by: as `write_parquet`.
        uri: of the table, ending in .lance; every node must reach it.
        mode: "create" refuses a table that exists.
        rows_per_fragment: the least rows of a fragment, except the last one.
        storage_options: of the object store.
    Raises:
        MissingExtraError: pylance is not installed. StorageError: the table exists, or cannot be written. Further as
            `write_parquet`.
    """
    if mode not in ("create", "append", "overwrite"):  # any other would replace what is there
        raise ConfigError(f"unknown mode {mode!r}; expected 'create', 'append' or 'overwrite'.", "mode='append'")
    lance = attempt_import_or_raise("lance", "pylance", extra="lancedb")
    sealed, text = _sealed(ds, declared_by)
    for entry in codec.entries({codec.KEY: text}):
        refuse_in_lance(entry.reserved.get("dtype"), entry.vector_column)
    try:
        there = lance.dataset(uri, storage_options=storage_options)
    except (OSError, ValueError):
        there = None
    if there is not None and mode == "create":
        raise StorageError(f"{uri} exists.", "mode='append' adds to it, mode='overwrite' replaces it")
    if there is not None and mode == "append":
        _refuse_mixture((there.schema.metadata or {}).get(codec.KEY.encode()), text, uri)
    with plain_errors():
        rows = sealed.map_batches(
            partial(_write_fragments, uri=uri, storage_options=storage_options),
            batch_size=rows_per_fragment,
            batch_format="pyarrow",
        ).take_all()
    import pyarrow as pa

    if not rows and there is not None and mode == "append":
        return
    fragments = [lance.FragmentMetadata.from_json(row["fragment"]) for row in rows]
    # without rows the table is written too, so that readers find its columns and its declaration
    known = pa.ipc.read_schema(pa.BufferReader(rows[0]["schema"])) if rows else None
    schema = known if known is not None else _schema_of(sealed, ds, declared_by)
    appending = there is not None and mode == "append"
    operation = (
        lance.LanceOperation.Append(fragments) if appending else lance.LanceOperation.Overwrite(schema, fragments)
    )
    try:
        lance.LanceDataset.commit(
            uri, operation, read_version=there.version if there else None, storage_options=storage_options
        )
    except (OSError, ValueError) as exc:
        raise StorageError(
            f"the fragments could not be made a table at {uri}: {str(exc).partition(chr(10))[0]}",
            "what was there before is as it was; check the columns' types",
        ) from exc


def _keep_schema(folder: Storage, schema: pa.Schema) -> None:
    """Write a file without rows where Ray, of a dataset without rows, has written none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not any(file.path.endswith(".parquet") for file in folder.files()):
        made = pa.BufferOutputStream()
        pq.write_table(schema.empty_table(), made)
        folder.write("empty.parquet", made.getvalue().to_pybytes())


def _schema_of(sealed: Dataset, ds: Dataset, declared_by: Dataset | None) -> pa.Schema:
    """Return the schema of what was to be written: Ray's, if it has one, else that of what was embedded."""
    import pyarrow as pa

    made = _made[ds if declared_by is None else declared_by]
    if ds in _made:
        return made
    with plain_errors():
        known = sealed.schema(fetch_if_missing=False)
    own = getattr(known, "base_schema", None)
    if not isinstance(own, pa.Schema) or not len(own):
        return made
    fields = [made.field(item.name) if item.name in made.names else item for item in own]
    return pa.schema(fields, metadata={**(own.metadata or {}), **made.metadata})


def _write_fragments(block: pa.Table, uri: str, storage_options: dict[str, str] | None) -> pa.Table:
    """Write one block as fragments that no table has yet; a Ray task."""
    import pyarrow as pa

    def write() -> Any:
        fragments = attempt_import_or_raise("lance.fragment", "pylance", extra="lancedb")
        return fragments.write_fragments(block, uri, schema=block.schema, storage_options=storage_options)

    made = step(write) if block.num_rows else []
    described = [json.dumps(fragment.to_json()) for fragment in made]
    schema = block.schema.serialize().to_pybytes()
    return pa.table({"fragment": described, "schema": [schema] * len(described)})


# -- declarations ------------------------------------------------------------------------------------------------------


def _sealed(ds: Dataset, declared_by: Dataset | None) -> tuple[Dataset, bytes]:
    """Return a dataset whose blocks carry the declaration, and the declaration."""
    made = _made.get(ds if declared_by is None else declared_by)
    if made is None:
        raise ConfigError(
            "it is not known here which functions made the vectors of this dataset.",
            "write_parquet(ds, path, declared_by=embedded), where embed_dataset returned `embedded`",
        )
    text: bytes = made.metadata[codec.KEY.encode()]
    if ds in _made:
        return ds, text
    return ds.map_batches(partial(_seal, made=made), batch_format="pyarrow"), text


def _seal(block: pa.Table, made: pa.Schema) -> pa.Table:
    """Restore the declaration of a block, and the type of its vectors; a Ray task."""

    def seal() -> pa.Table:
        sealed = block
        for entry in codec.entries(made.metadata):
            name = entry.vector_column
            if name in block.schema.names and name in made.names:
                ndims = int(entry.reserved["ndims"])
                column = _vectors(block.column(name).combine_chunks(), made.field(name).type, name, ndims)
                sealed = sealed.set_column(block.schema.get_field_index(name), made.field(name), column)
        return sealed.replace_schema_metadata({**(block.schema.metadata or {}), **made.metadata})

    sealed: pa.Table = step(seal)
    return sealed


def _vectors(column: pa.Array, kind: pa.DataType, name: str, ndims: int) -> pa.Array:
    import pyarrow as pa

    if column.type == kind:
        return column
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), kind)
    stored = column.storage if isinstance(column, pa.ExtensionArray) else column  # Ray's tensors
    if pa.types.is_binary(stored.type) or pa.types.is_large_binary(stored.type):
        raise VectorError(
            f"Ray has made Python objects of the vectors in {name!r}, as numpy has neither nulls "
            "nor rows of different lengths.",
            "let the steps after embed_dataset work on Arrow: map_batches(..., batch_format='pyarrow')",
        )
    vectors = kind_of_type(kind)
    assert vectors is not None  # it was made from a declaration
    rows, valid, _ = vectors.given(stored, vectors.width_of(kind) or ndims, name)
    if pa.types.is_integer(vectors.value_type(kind)):  # quantised
        rows = rows.astype(str(vectors.value_type(kind)))
    return vectors.to_arrow(rows, valid, kind)


def _refuse_mixture(there: bytes | None, text: bytes, where: str) -> None:
    """Refuse to add vectors to those that other functions made."""
    before = {entry.vector_column: entry for entry in codec.entries({codec.KEY: there} if there else None)}
    for entry in codec.entries({codec.KEY: text}):
        old = before.get(entry.vector_column)
        mine, theirs = _made_by(entry), {} if old is None else _made_by(old)
        if different := [what for what in theirs if mine[what] != theirs[what]]:
            raise DriftError(
                f"{where} holds vectors of {entry.name!r} with another {different[0]} in {entry.vector_column!r}.",
                "write to another place, or mode='overwrite'",
            )


def _made_by(entry: codec.Entry) -> dict[str, object]:
    """Return what the vectors of one column have in common, by name."""
    how = quantizer_of(entry.reserved)
    return {
        "configuration": entry.reserved.get("fingerprint"),
        "template": entry.reserved.get(templates.KEY),
        "dtype": None if how is None else how.dtype,
        "set of ranges": None if how is None or how.ranges is None else how.ranges.data,
    }
