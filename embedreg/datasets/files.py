"""A folder of images, or of other files that are one input each, as rows of paths and names.

The embedding function reads their content. The table of modalities lists the extensions of such files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from embedreg.datasets.formats import Input, Span, Unit, cut
from embedreg.datasets.places import Place
from embedreg.datasets.storage import File

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["changed", "folders", "inputs", "read", "schema"]


def schema() -> pa.Schema:
    """Return the schema: `path`, and `name` relative to the folder."""
    import pyarrow as pa

    return pa.schema([pa.field("path", pa.string()), pa.field("name", pa.string())])


def inputs(place: Place) -> tuple[Input, ...]:
    """Return one input per folder; its ETag is a digest of the names, sizes and times of its files."""
    made = []
    for name, files in folders(place).items():
        facts = json.dumps([(file.path, file.size, file.mtime_ns) for file in files])
        size = sum(file.size for file in files)
        units = (Unit(0, len(files), len(files), size),)
        made.append(Input(name, size, None, hashlib.sha256(facts.encode()).hexdigest(), units))
    return tuple(made)


def changed(place: Place, before: Sequence[Input]) -> list[str]:
    """Return the folders in which a file has changed."""
    files = []
    for file in place.files:
        info = place.storage.info(file.path)
        files.append(File(file.path, info.size if info.is_file else -1, info.mtime_ns))
    now = {each.path: each for each in inputs(dataclasses.replace(place, files=tuple(files)))}
    return [each.path for each in before if not each.same(now[each.path])]


def read(
    place: Place, path: str, span: Span, columns: Sequence[str] | None, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Read a span of one folder's rows."""
    import pyarrow as pa

    files = folders(place).get(path, [])[span.start : span.stop]
    rows = {
        "path": pa.array([place.storage.full(file.path) for file in files], pa.string()),
        "name": pa.array([file.path for file in files], pa.string()),
    }
    wanted = [name for name in columns or rows if name in rows]
    batch = pa.RecordBatch.from_arrays([rows[name] for name in wanted], wanted)
    yield from cut(iter([batch]), span, batch_rows)


def folders(place: Place) -> dict[str, list[File]]:
    """Return the files of each folder, by the name of their input: `photos/images`."""
    found: dict[str, list[File]] = {}
    for file in place.files:
        found.setdefault(str(PurePosixPath(file.path).parent / place.kind), []).append(file)
    return found
