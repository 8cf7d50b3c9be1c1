"""Find what works on the columns of some data: an engine of the table, or the files themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from embedreg.columns.arguments import on_object_store
from embedreg.columns.files.store import open_files
from embedreg.columns.store import ColumnStore
from embedreg.datasets.storage import is_uri
from embedreg.errors import InputError
from embedreg.inspection.engines import columns_of

__all__ = ["is_known", "opened"]


def opened(data: Any) -> ColumnStore:
    """Open data for the calls of `embedreg.columns`.

    Args:
        data: a path, or an object of an engine.
    Raises:
        InputError: no engine works on its columns. ConfigError: a URI of an object store. StorageError: it cannot be
            opened.
    """
    place = data
    if isinstance(data, str | os.PathLike):
        name = os.fspath(data).removeprefix("file://")
        if is_uri(name):
            raise on_object_store(name)
        place = Path(name)
    store = _store(place)
    if isinstance(store, ColumnStore):
        return store
    what = repr(str(place)) if isinstance(place, Path) else f"a {type(data).__name__}"
    if isinstance(place, Path) and not place.exists():
        lance = place.with_name(f"{place.name}.lance")
        found = f"did you mean {str(lance)!r}? " if lance.exists() else ""
        raise InputError(
            f"there is no file or folder {str(place)!r}.",
            f"{found}pass 'DB_DIR/name.lance', or a Parquet or Arrow file or a folder of them",
        )
    raise InputError(
        f"{what} is not a table or dataset whose columns can be changed.",
        "pass 'DB_DIR/name.lance', or a Parquet or Arrow file or a folder of them",
    )


def is_known(path: Path) -> bool:
    """Return whether a path is data that `opened` opens, as it is written."""
    return _store(path) is not None


def _store(place: Any) -> Any:
    store = columns_of(place)
    return open_files(place) if store is None and isinstance(place, Path) else store
