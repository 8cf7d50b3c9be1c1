"""Where declarations lie: schemas, tables, files and folders, read without touching the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedreg import identity, metadata
from embedreg.errors import InputError, MetadataError, StorageError
from embedreg.identity import Drift
from embedreg.metadata import Functions

__all__ = ["check_drift", "functions_in", "inspect", "metadata_of"]

RECORDED = ("format", "ndims", "dtype", "normalized", "metric", "prompts", "fingerprint", "identity", "producer")


def functions_in(data: Any) -> Functions:
    """Find the embedding functions that anything declares, and rebuild them: {vector column: declaration}.

    Args:
        data: an Arrow schema, table, batch or reader, schema metadata, a Schema or LanceModel class, a LanceDB table, or
            the path of a Parquet or Arrow file, a folder of them, or a `.lance` folder.
    Returns:
        The declarations; `.problems` says of which columns the function could not be rebuilt, and why.
    Raises:
        InputError: something that carries no schema. StorageError: a file that cannot be read.
        MetadataError: metadata that cannot be read.
    """
    return metadata.parse(metadata_of(data))


def metadata_of(data: Any) -> Mapping[Any, Any]:
    """Return the schema metadata of anything that has some; see `functions_in`."""
    if isinstance(data, str | Path):
        return _of_path(Path(data))
    if isinstance(data, Mapping):
        return data
    if isinstance(data, type) and hasattr(data, "to_arrow_schema"):
        return _of_schema(data.to_arrow_schema())
    schema = getattr(data, "schema", data)
    if callable(schema) and not hasattr(schema, "metadata"):  # a Lance or Ray dataset has it as a method
        schema = schema()
    if hasattr(schema, "__await__"):
        schema.close()
        raise InputError("an asynchronous table was given.", "functions_in(await table.schema())")
    schema = getattr(schema, "base_schema", schema)  # Ray wraps the Arrow schema
    if hasattr(schema, "metadata"):
        return _of_schema(schema)
    if hasattr(data, "__arrow_c_schema__") or hasattr(data, "__arrow_c_stream__"):
        import pyarrow as pa

        if hasattr(data, "__arrow_c_schema__"):
            return _of_schema(pa.schema(data))
        return _of_schema(pa.RecordBatchReader.from_stream(data).schema)
    raise InputError(
        f"a {type(data).__name__} carries no schema metadata.", "pass an Arrow schema or table, or the path of a file"
    )


def _of_schema(schema: Any) -> Mapping[Any, Any]:
    return schema.metadata or {}


def _of_path(path: Path) -> Mapping[Any, Any]:
    if not path.exists():
        raise StorageError(f"there is no file or folder {str(path)!r}.", "check the path")
    if path.is_dir():
        if path.suffix == ".lance" or (path / "_versions").is_dir():
            from embedreg.engines import lancedb

            return _of_schema(lancedb.schema_at(path))
        files = sorted(
            file for file in path.rglob("*.parquet") if file.is_file() and not file.name.startswith((".", "_"))
        )
        if not files:
            raise StorageError(
                f"the folder {str(path)!r} holds no Parquet file and is no Lance table.", "check the path"
            )
        path = files[0]
    import pyarrow as pa

    try:
        return _of_file(path)
    except (pa.ArrowException, OSError) as exc:
        raise StorageError(f"{str(path)!r} cannot be read: {exc}.", "is it a Parquet or an Arrow file?") from exc


def _of_file(path: Path) -> Mapping[Any, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"PAR1"):
        # what DuckDB writes with KV_METADATA is in the file's own key-value pairs only
        return {**(pq.read_metadata(path).metadata or {}), **(pq.read_schema(path).metadata or {})}
    if magic.startswith(b"ARROW1"):
        with pa.OSFile(str(path), "rb") as source:
            return _of_schema(pa.ipc.open_file(source).schema)
    raise MetadataError(f"{str(path)!r} is neither a Parquet nor an Arrow file.", "pass a .parquet or .arrow file")


def check_drift(data: Any) -> list[Drift]:
    """Compare every declared function with what its column was made with, running each once where a probe is stored.

    Args:
        data: as `functions_in`.
    Returns:
        One `Drift` per declared vector column; `.verdict` is "same", "note", "drift" or "unknown".
    """
    functions = functions_in(data)
    drifts = []
    for column, entry in functions.entries.items():
        if column in functions.problems:
            drifts.append(Drift(column, "unknown", (functions.problems[column].message,)))
        else:
            drifts.append(identity.compare(functions[column].function, entry.reserved, column))
    return drifts


def inspect(data: Any) -> list[dict[str, Any]]:
    """Say what the declarations of a file, table or schema hold, without building or running a model.

    Args:
        data: as `functions_in`.
    Returns:
        One dict per vector column: `vector_column`, `source_column`, `function`, `config` (as stored), what was recorded
        (`ndims`, `dtype`, `normalized`, `metric`, `prompts`, `fingerprint`, `identity`, `producer`, `probe` as a bool),
        `status` ("ready" or the kind of problem), `problem`, `hint` and `notes`.
    """
    functions = functions_in(data)
    found = []
    for column, entry in functions.entries.items():
        problem = functions.problems.get(column)
        recorded = {key: entry.reserved.get(key) for key in RECORDED}
        found.append(
            {
                "vector_column": column,
                "source_column": entry.source_column,
                "function": entry.name,
                "config": {key: value for key, value in entry.model.items() if key != metadata.RESERVED},
                **recorded,
                "probe": bool(entry.reserved.get("probe")),
                "status": "ready" if problem is None else type(problem).__name__,
                "problem": None if problem is None else problem.message,
                "hint": None if problem is None else problem.hint,
                "notes": list(functions.notes),
            }
        )
    return found
