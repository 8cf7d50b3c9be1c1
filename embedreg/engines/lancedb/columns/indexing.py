"""The index of a column that is about to be replaced: built for the new vectors before the switch, joined to it after.

It is built on a temporary branch that has the staged files, then its folder is moved into the table, where one commit
names it. Between the switch and that commit, a few milliseconds, searches scan the rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedreg.engines.lancedb.columns.commits import METADATA_TRIES, Schemas, commit, field_ids, lance
from embedreg.engines.lancedb.columns.place import INDEX, Place
from embedreg.engines.lancedb.columns.staging import Staging
from embedreg.errors import EmbedregError
from embedreg.support.display import first_line

__all__ = ["Built", "built", "join", "replaced", "settings_of"]

log = logging.getLogger("embedreg")

_KINDS = ("IVF_FLAT", "IVF_PQ", "IVF_SQ", "IVF_RQ", "IVF_HNSW_FLAT", "IVF_HNSW_PQ", "IVF_HNSW_SQ")
_METRICS = ("l2", "cosine", "dot")


@dataclass(frozen=True)
class Built:
    """An index that was built for staged vectors.

    Attributes:
        index: its description, as Lance's transaction has it.
        folder: its files, beside the table.
    """

    index: Any
    folder: Path


def settings_of(dataset: Any, vector: str) -> dict[str, Any] | None:
    """Return the arguments that make an index like that of a vector column; None if it has none that is known."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError):
        for each in dataset.describe_indices():
            if list(each.field_names) != [vector]:
                continue
            found = dataset.stats.index_stats(each.name)
            first = found["indices"][0]
            kind, metric = str(first["index_type"]).upper(), str(first["metric_type"]).lower()
            if kind not in _KINDS or metric not in _METRICS:
                return None
            made: dict[str, Any] = {"name": str(each.name), "index_type": kind, "metric": metric}
            made["num_partitions"] = int(first["num_partitions"])
            inner = first.get("sub_index", {})
            if "PQ" in kind:
                made["num_sub_vectors"] = int(inner["num_sub_vectors"])
            if "HNSW" in kind:
                made["m"] = int(inner["params"]["m"])
                made["ef_construction"] = int(inner["params"]["ef_construction"])
            return made
    return None


def fitting(settings: dict[str, Any], width: int) -> dict[str, Any]:
    """Return settings for vectors of another width, whose parts may not divide it."""
    if (parts := settings.get("num_sub_vectors")) is None or width % parts == 0:
        return dict(settings)
    return {**settings, "num_sub_vectors": max(each for each in range(1, parts + 1) if width % each == 0)}


@contextlib.contextmanager
def built(
    place: Place, staging: Staging, field: Any, settings: dict[str, Any] | None, name: str
) -> Iterator[Built | None]:
    """Build an index for the staged vectors of the newest version, beside the table; None without settings.

    What cannot be indexed, such as too few rows, is logged: the column is then searched by a scan.
    """
    folder = Path(place.beside.uri, INDEX)
    try:
        yield None if settings is None else _built(place, staging, field, settings, name, folder)
    finally:
        place.beside.remove_all(INDEX)


def _built(
    place: Place, staging: Staging, field: Any, settings: dict[str, Any], name: str, folder: Path
) -> Built | None:
    import pyarrow as pa

    try:
        dataset = place.newest()
        if staging.missing(dataset):
            staging.stage_all(dataset, staging.missing(dataset))
        column = f"{field.name}__{uuid.uuid4().hex[:8]}"
        added = pa.schema([field.with_name(column).with_nullable(True)])
        with Schemas(place, name).branch(dataset, [], added, {}) as branch:
            ids = field_ids(branch.lance_schema)
            operation = lance().LanceOperation.Merge(
                staging.published(dataset, [ids[column]], onto=branch), branch.lance_schema, preserves_nullability=True
            )
            branch = lance().LanceDataset.commit(branch, operation, read_version=branch.version, max_retries=0)
            _create(branch, column, {**settings, "name": column}, field.type.list_size)  # the name may be taken there
            (index,) = branch.read_transaction(branch.latest_version).operation.new_indices
            home = Path(str(branch.uri), "_indices", str(index.uuid))
            place.beside.remove_all(INDEX)
            folder.mkdir(parents=True)
            shutil.copytree(home, folder / str(index.uuid))
            named = dataclasses.replace(index, name=settings["name"])
            return Built(named, folder / str(index.uuid))
    except (EmbedregError, OSError, RuntimeError, ValueError, AttributeError, TypeError) as exc:
        log.warning("no index was built for the new vectors of %r: %s", field.name, first_line(exc)[:300])
        return None


def _create(dataset: Any, column: str, settings: dict[str, Any], width: int) -> None:
    wanted = fitting(settings, width)
    kind = wanted.pop("index_type")
    dataset.create_index(column, kind, **wanted)


def replaced(place: Place, settings: Any, column: str) -> None:
    """Build an index on the table itself, if a killed run has switched the column and not joined the one it had built.

    Args:
        settings: as recorded beside the table; what is not as `settings_of` returns it is ignored.
    """
    if not isinstance(settings, dict) or settings.get("index_type") not in _KINDS:
        return
    numbers = {key: value for key, value in settings.items() if key not in ("name", "index_type", "metric")}
    known = settings.get("metric") in _METRICS and isinstance(settings.get("name"), str)
    if not known or not all(type(each) is int and 0 < each < 2**20 for each in numbers.values()):
        return
    try:
        dataset = place.newest()
        if any(list(each.field_names) == [column] for each in dataset.describe_indices()):
            return
        _create(dataset, column, settings, dataset.schema.field(column).type.list_size)
    except (OSError, RuntimeError, ValueError, AttributeError, TypeError) as exc:
        log.warning("no index was built for column %r: %s", column, first_line(exc)[:300])


def join(place: Place, made: Built | None, column: str) -> None:
    """Make an index that was built before part of the newest version, in which its column has its final name."""
    if made is None:
        return
    home = place.path / "_indices" / str(made.index.uuid)
    try:
        home.parent.mkdir(exist_ok=True)
        made.folder.rename(home)
        for left in reversed(range(METADATA_TRIES)):
            dataset = place.newest()
            index = dataclasses.replace(
                made.index, fields=[field_ids(dataset.lance_schema)[column]], dataset_version=int(dataset.version)
            )
            operation = lance().LanceOperation.CreateIndex([index], [])
            try:
                commit(place, operation, dataset.version, "index")
                return
            except (OSError, RuntimeError, ValueError):
                if not left:
                    raise
    except (OSError, RuntimeError, ValueError, KeyError) as exc:
        shutil.rmtree(home, ignore_errors=True)
        log.warning("the index of the new vectors of %r could not be joined: %s", column, first_line(exc)[:300])
