"""Read declarations from schemas, tables, files and folders, without reading the data itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel

from embedreg.core.fields import sensitive_fields
from embedreg.declaration import codec, drift, manifest
from embedreg.declaration.codec import Entry, Functions
from embedreg.declaration.comments import metadata_in_comments
from embedreg.declaration.drift import Drift
from embedreg.declaration.entries import SchemaMetadata, metadata_with_widths
from embedreg.declaration.quantization import calibration_rows
from embedreg.errors import (
    EmbedregError,
    Grant,
    InputError,
    MetadataError,
    ModelNotFoundError,
    StorageError,
    UntrustedError,
)
from embedreg.inspection.engines import comes_from, engine_of
from embedreg.registry import get_registry
from embedreg.security import references
from embedreg.security.sensitive import items_judged
from embedreg.support.display import plain

__all__ = [
    "check_drift",
    "data_files",
    "file_schema",
    "functions_in",
    "functions_in_comments",
    "inspect",
    "is_data",
    "metadata_of",
    "shown_config",
]

_OF_MAKING = ("fingerprint", "identity", "producer")
_OF_VECTORS = ("format", "vectors", "ndims", "dtype", "normalized", "metric", "prompts", *_OF_MAKING)
RECORDED = (*_OF_VECTORS, "template")
SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc", ".arrows")
MAX_LEVELS = 8  # folder levels between a file and its dataset's manifest
_HINT = "pass an Arrow schema or table, or the path of a file"
_HIDDEN = "***"


def functions_in(data: Any) -> Functions:
    """Find the embedding functions that data declares, and rebuild them: {vector column: declaration}.

    Args:
        data: an Arrow schema, table, batch, reader or dataset, schema metadata, a Schema or LanceModel class, a LanceDB
            table, a DuckDB table with column comments, or the path of a Parquet or Arrow file, of a folder of them, or
            of a `.lance` folder. For a column without a declaration in a file's schema, the folder's manifest is used.
    Returns:
        The declarations. `.problems` holds the columns whose function could not be rebuilt, and why. `.notes` lists
        columns where the manifest disagrees with the schema; the schema wins.
    Raises:
        InputError: an object without a schema. StorageError: a file that cannot be read.
        MetadataError: metadata that cannot be read.
    """
    if isinstance(data, type) and hasattr(data, "to_arrow_schema"):
        return _of_class(data)
    found = metadata_of(data)
    functions = get_registry().parse_functions(found)
    for column, note in getattr(found, "notes", {}).items():
        functions.noted.setdefault(column, []).append(note)
    return functions


def functions_in_comments(comments: Iterable[str | None]) -> Functions:
    """Find the functions that column comments declare: {vector column: declaration}.

    Args:
        comments: the comments of a table's columns, in any order; comments without a declaration are skipped.
    Raises:
        MetadataError: a declaration that cannot be read, or two for one vector column.
    """
    return get_registry().parse_functions(metadata_in_comments(comments))


def _of_class(model: Any) -> Functions:
    """Return the function instances of a Schema or LanceModel class."""
    from embedreg.embedding import schema

    configs = schema.resolve(model).configs
    # includes what this process learned about the functions, which the class's Arrow schema does not
    functions = Functions(codec.entries({codec.KEY: codec.encode(configs)}))
    functions.update({config.vector_column: config for config in configs})
    return functions


def metadata_of(data: Any) -> Mapping[Any, Any]:
    """Return the schema metadata of any data with a schema; see `functions_in`."""
    if isinstance(data, str | os.PathLike):
        return _of_path(Path(data))
    if isinstance(data, Mapping):
        return data
    if isinstance(data, type):
        if hasattr(data, "to_arrow_schema"):
            return _of_schema(data.to_arrow_schema())
        raise InputError(f"the class {data.__name__} has no schema.", "subclass embedreg.Schema")
    if isinstance(data, BaseModel):
        raise InputError(f"a {type(data).__name__} carries no schema metadata.", _HINT)
    if not comes_from(data, "pyarrow") and (engine := engine_of(data)) is not None:
        return engine.metadata_of(data)
    schema = _schema_of(data)
    if hasattr(schema, "metadata"):
        return _of_schema(schema)
    if hasattr(data, "__arrow_c_schema__") or hasattr(data, "__arrow_c_stream__"):
        return _of_schema(_exported(data))
    if type(data).__module__.partition(".")[0] in ("polars", "pandas"):
        return {}  # these types keep no schema metadata
    raise InputError(f"a {type(data).__name__} carries no schema metadata.", _HINT)


def _schema_of(data: Any) -> Any:
    """Return the Arrow schema in a `schema` attribute, else the argument."""
    if type(data).__module__.partition(".")[0] == "polars":
        return data  # reading `schema` of a LazyFrame issues a warning
    schema = getattr(data, "schema_arrow", None)  # a Parquet file
    if schema is None:
        schema = getattr(data, "schema", data)
    if callable(schema) and not hasattr(schema, "metadata"):
        schema = schema()
    if hasattr(schema, "__await__"):
        schema.close()
        raise InputError("an asynchronous table was given.", "functions_in(await table.schema())")
    return schema


def _exported(data: Any) -> Any:
    import pyarrow as pa

    if hasattr(data, "__arrow_c_schema__"):
        return pa.schema(data)
    return pa.RecordBatchReader.from_stream(data).schema


def _of_schema(schema: Any) -> Mapping[Any, Any]:
    if hasattr(schema, "names"):
        return metadata_with_widths(schema)
    found = schema.metadata
    return found if isinstance(found, Mapping) else {}


# -- paths -------------------------------------------------------------------------------------------------------------


class _Merged(dict[Any, Any]):
    """Schema metadata merged with a manifest; `notes` lists columns where they differ."""

    def __init__(self, own: Mapping[Any, Any]) -> None:
        super().__init__(own)
        self.notes: dict[str, str] = {}
        self.widths: dict[str, int] = getattr(own, "widths", {})


def _of_path(path: Path) -> Mapping[Any, Any]:
    try:
        if (engine := engine_of(path)) is not None:
            return engine.metadata_of(path)
        if path.is_dir():
            files = data_files(path)
            if not files and not (path / manifest.NAME).is_file():
                raise StorageError(
                    f"the folder {str(path)!r} holds no Parquet or Arrow file and is not a Lance table.",
                    "check the path",
                )
            own, columns = file_schema(files[0]) if files else ({}, None)
            return _merged(own, path, columns)
        elif not path.exists():
            raise StorageError(f"there is no file or folder {str(path)!r}.", "check the path")
        elif not path.is_file():  # reading a pipe or a device could block forever
            raise StorageError(f"{str(path)!r} is neither a file nor a folder.", "pass a .parquet or .arrow file")
        own, columns = file_schema(path)
        return _merged(own, _dataset_of(path), columns)
    except EmbedregError:
        raise
    except Exception as exc:
        if not (isinstance(exc, OSError | ValueError | MemoryError) or type(exc).__module__ == "pyarrow.lib"):
            raise
        problem = plain(str(exc).partition("\n")[0], 200)  # Arrow's message may quote names from the file
        raise StorageError(f"{str(path)!r} cannot be read: {problem}", "check that the file is complete") from exc


def _dataset_of(path: Path) -> Path | None:
    """Return the nearest folder above a data file that has a manifest."""
    folders = list(path.absolute().parents)[:MAX_LEVELS]
    return next((folder for folder in folders if (folder / manifest.NAME).is_file()), None)


def _merged(own: Mapping[Any, Any], folder: Path | None, columns: list[str] | None) -> Mapping[Any, Any]:
    """Merge the declarations of the folder's manifest into a file's metadata, for the file's columns.

    If both declare a column, the file's schema wins, since it is closer to the data.
    """
    here = {entry.vector_column: entry for entry in codec.entries(own)}
    try:
        text = None if folder is None else manifest.read(folder)
        beside = [] if text is None else codec.entries({codec.KEY: text})
    except EmbedregError as exc:
        if not here:
            raise
        merged = _Merged(own)
        merged.notes = dict.fromkeys(here, exc.message)
        return merged
    known = None if columns is None else frozenset(columns)
    added = [e for e in beside if e.vector_column not in here and (known is None or e.vector_column in known)]
    merged = _Merged(own)
    for entry in beside:
        if (stored := here.get(entry.vector_column)) is not None and not _alike(entry, stored):
            merged.notes[entry.vector_column] = (
                "the folder's manifest declares something else; the file's schema counts"
            )
    if added:
        merged.pop(codec.KEY, None)
        merged[codec.KEY.encode()] = f"[{', '.join(entry.raw for entry in [*here.values(), *added])}]".encode()
    return merged


def _alike(one: Entry, other: Entry) -> bool:
    """Return whether two entries declare one function for one source; what was recorded of the vectors may differ."""
    prints = one.reserved.get("fingerprint"), other.reserved.get("fingerprint")
    models = [{k: v for k, v in entry.model.items() if k != codec.RESERVED} for entry in (one, other)]
    same = prints[0] == prints[1] if all(prints) else (one.name, models[0]) == (other.name, models[1])
    texts = [entry.reserved.get("template") for entry in (one, other)]
    return same and one.source_column == other.source_column and texts[0] == texts[1]


def is_data(path: PurePath) -> bool:
    """Return whether a path below a dataset's folder is data: no part of it begins with a dot or an underscore."""
    return not any(part.startswith((".", "_")) for part in path.parts)


def data_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """List the data files of a dataset folder at any depth, in the order of their names.

    Files and folders whose names begin with a dot or an underscore are markers or incomplete, and skipped.
    """
    found = []
    for current, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if is_data(PurePath(name))]
        found += [Path(current, name) for name in files if name.endswith(suffixes) and is_data(PurePath(name))]
    return sorted(path for path in found if path.is_file())


def file_schema(path: Path) -> tuple[Mapping[Any, Any], list[str]]:
    """Return the metadata and the column names of a file's schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"PAR1"):
        footer = pq.read_metadata(path)
        schema = footer.schema.to_arrow_schema()
        # DuckDB's KV_METADATA is stored only in the file's key-value pairs
        own = metadata_with_widths(schema)
        return SchemaMetadata({**(footer.metadata or {}), **own}, own.widths), schema.names
    if magic.startswith((b"ARROW1", b"\xff\xff\xff\xff")):  # a file, or a stream's first message
        with pa.OSFile(str(path), "rb") as source:
            opened = pa.ipc.open_file(source) if magic.startswith(b"ARROW1") else pa.ipc.open_stream(source)
            return _of_schema(opened.schema), opened.schema.names
    what = "is empty" if not magic else "is neither a Parquet nor an Arrow file"
    raise StorageError(f"{str(path)!r} {what}.", "pass a .parquet or .arrow file")


# -- reports -----------------------------------------------------------------------------------------------------------


def check_drift(data: Any) -> list[Drift]:
    """Compare every declared function with the record of its column, running it once if a probe is stored.

    Args:
        data: as `functions_in`.
    Returns:
        One `Drift` per declared vector column; `.verdict` is "same", "note", "drift" or "unknown". A function that
        cannot be rebuilt, or cannot be run, is "unknown", with the reason in `.changed`.
    """
    functions = functions_in(data)
    drifts = []
    for column, entry in functions.entries.items():
        try:
            drifts.append(drift.compare(functions[column].function, entry.reserved, column))
        except EmbedregError as exc:
            drifts.append(Drift(column, "unknown", (exc.message,)))
    return drifts


def inspect(data: Any, *, backends: bool = False) -> list[dict[str, Any]]:
    """Return the declarations of a file, table or schema as data; no model is loaded or run.

    Args:
        data: as `functions_in`.
        backends: whether to look at the models' files on this machine for `backend`; without it nothing is opened.
    Returns:
        One dict per vector column: `vector_column`, `source_column`, `function`, `config` (as stored, with
        hard-coded secrets redacted), the recorded properties (`format`, `ndims`, `dtype`, `normalized`, `metric`,
        `prompts`, `fingerprint`, `identity`, `producer`, `template`, `probe` as a bool, and `calibration_rows`: how
        many the ranges of quantised values were learnt from, 0 if given, None without), `status` ("ready", or the
        name of the error), `problem`, `hint`, `needed` (for `embedreg.trust(**needed)`), `notes`, and `backend`: what
        runs the model here and what was passed over, or None if the function has no back ends or no model here,
        or without `backends`.
    """
    functions = functions_in(data)
    found = []
    for column, entry in functions.entries.items():
        problem = functions.problems.get(column)
        found.append(
            {
                "vector_column": column,
                "source_column": entry.source_column,
                "function": entry.name,
                "config": shown_config(entry),
                **{key: entry.reserved.get(key) for key in RECORDED},
                "probe": bool(entry.reserved.get("probe")),
                "calibration_rows": calibration_rows(entry.reserved),
                "status": "ready" if problem is None else type(problem).__name__,
                "problem": None if problem is None else problem.message,
                "hint": None if problem is None else problem.hint,
                "needed": _listed(problem.needed) if isinstance(problem, UntrustedError) else {},
                "notes": list(functions.noted.get(column, ())),
                "backend": _backend(functions, column) if backends and problem is None else None,
            }
        )
    return found


def _backend(functions: Functions, column: str) -> str | None:
    """Return the back end that a function chooses on this machine, from files that are here."""
    chosen = getattr(functions[column].function, "chosen_backend", None)
    if chosen is None:
        return None
    try:
        return str(chosen(download=False))
    except EmbedregError as exc:
        return None if isinstance(exc, ModelNotFoundError) else f"none: {exc.message}"


def _listed(grant: Grant) -> dict[str, list[str]]:
    return {kind: list(values) for kind, values in dict(grant).items()}


def refuse_clear_secrets(entry: Entry) -> None:
    """Raise for a stored declaration that contains a hard-coded secret.

    Raises:
        MetadataError: another writer stored a secret in plain text.
    """
    stored = {key: value for key, value in entry.model.items() if key != codec.RESERVED}
    if shown_config(entry) != stored:
        raise MetadataError(
            f"the declaration of {entry.vector_column!r} contains a secret in plain text, which is not printed.",
            "declare the column again, with a reference: api_key='$var:name'",
        )


def shown_config(entry: Entry) -> dict[str, Any]:
    """Return a stored configuration with hard-coded secrets of other writers redacted."""
    from embedreg.registry import get_registry

    named: frozenset[str] = frozenset()
    with contextlib.suppress(EmbedregError):  # class not installed: only sensitive names are known
        named = sensitive_fields(get_registry().get(entry.name or ""))
    return {key: _cleaned(value, named, key) for key, value in entry.model.items() if key != codec.RESERVED}


def _cleaned(value: Any, named: frozenset[str], key: object, sensitive: bool = False) -> Any:
    """Return a stored value with secrets redacted, by the name of their key or by their form; keys included."""
    sensitive = sensitive or key in named or references.looks_sensitive(key)
    if isinstance(value, dict):
        found = items_judged(value, [*value.items()])
        return {
            _HIDDEN if references.holds_credentials(inner) else inner: _cleaned(item, named, inner, sensitive or judged)
            for inner, item, judged in found
        }
    if isinstance(value, list):
        made = []
        for _, item, judged in items_judged(value, [(None, item) for item in value]):
            pair = judged and not sensitive  # a (name, secret) pair: keep the name
            made.append(
                [item[0], _cleaned(item[1], named, None, True)] if pair else _cleaned(item, named, None, sensitive)
            )
        return made
    if isinstance(value, str) and references.is_reference(value):
        name, _, default = value.removeprefix(references.PREFIX).partition(":")
        hidden = default and (sensitive or references.holds_credentials(default))
        return f"{references.PREFIX}{name}:{_HIDDEN}" if hidden else value
    if isinstance(value, str) and value and (sensitive or references.holds_credentials(value)):
        return _HIDDEN
    return _HIDDEN if sensitive and isinstance(value, int | float) and not isinstance(value, bool) else value
