"""Commits by lance's public operations, and schemas with field ids of their own."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embedreg.engines.lancedb.columns.place import Place
from embedreg.errors import EmbedregError, StorageError
from embedreg.support.display import first_line
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Attempts", "Schemas", "commit", "field_ids", "lance_errors", "write_metadata"]

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.01, 1.0
METADATA_TRIES = 5


def lance() -> Any:
    """Return pylance.

    Raises:
        MissingExtraError: it is not installed.
    """
    return attempt_import_or_raise("lance", "pylance", extra="lancedb")


@contextlib.contextmanager
def lance_errors(what: str) -> Iterator[None]:
    """Convert Lance's errors into a `StorageError`."""
    try:
        yield
    except EmbedregError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as exc:
        raise StorageError(f"{what}: {first_line(exc)[:300]}", "the table is as it was; run it again") from exc


class Schemas:
    """Schemas of a table with columns dropped and added, which get field ids that were never used.

    They are made on a temporary branch: no other public call gives them such ids. The last one is kept while the
    table's own schema stays.
    """

    def __init__(self, place: Place, branch: str) -> None:
        self._place, self._branch = place, branch
        self._known: tuple[Any, Any] | None = None

    def changed(
        self, dataset: Any, drop: Sequence[str], add: pa.Schema | None, metadata: Mapping[str, str | None]
    ) -> Any:
        """Return the `LanceSchema` of a version with columns dropped and added, and metadata changed."""
        key = (repr(dataset.lance_schema), dataset.max_field_id, tuple(drop), add, tuple(metadata.items()))
        if self._known is None or self._known[0] != key:
            with self.branch(dataset, drop, add, metadata) as branch:
                self._known = key, branch.lance_schema
        return self._known[1]

    @contextlib.contextmanager
    def branch(
        self, dataset: Any, drop: Sequence[str], add: pa.Schema | None, metadata: Mapping[str, str | None]
    ) -> Iterator[Any]:
        """Yield a branch of a version with that schema; it is removed at the end."""
        import pyarrow as pa

        with lance_errors("the new schema cannot be made"):
            if self._branch in dataset.branches.list():
                dataset.branches.delete(self._branch)
            made = dataset.create_branch(self._branch)
            try:
                # added first: ids of dropped columns would be given again, and no commit on the table accepts them
                named = [] if add is None else [(f"{item.name}__{self._branch}", item) for item in add]
                if named:
                    made.add_columns(pa.schema([item.with_name(name) for name, item in named]))
                if drop:
                    made.drop_columns(list(drop))
                if named:
                    made.alter_columns(*({"path": name, "name": item.name} for name, item in named))
                made.update_schema_metadata(dict(metadata))
                yield made
            finally:
                dataset.branches.delete(self._branch)


def field_ids(schema: Any) -> dict[str, int]:
    """Return the ids of the top-level fields of a `LanceSchema`."""
    return {item.name(): int(item.id()) for item in schema.fields()}


def commit(place: Place, operation: Any, version: int, message: str) -> Any:
    """Commit an operation based on a version, with no retry of Lance's own; return the new version as a dataset.

    Raises:
        OSError, RuntimeError, ValueError: Lance refuses it, such as for a commit of another writer since.
    """
    return lance().LanceDataset.commit(
        str(place.path), operation, read_version=version, max_retries=0, commit_message=f"embedreg {message}"
    )


class Attempts:
    """Attempts at a commit while others commit, with pauses of 10 ms to 1 s, until a time is up.

    Attributes:
        tries: attempts so far.
    """

    def __init__(self, timeout_s: float) -> None:
        self._until = time.monotonic() + timeout_s
        self._pause = _FIRST_WAIT_S
        self.tries = 0

    def tried(self, place: Place, exc: Exception | None = None) -> None:
        """Raise `StorageError` if the time is up."""
        if time.monotonic() > self._until:
            raise StorageError(
                f"no quiet moment for a commit on table {place.name!r}: other writers were first {self.tries} times.",
                "pause writers for a second, or give more time: switch_timeout_s=600",
            ).for_shell("pause writers for a second, or --switch-timeout 600") from exc

    def failed(self, place: Place, version: int, exc: Exception) -> None:
        """Wait before the next attempt, if another writer has committed since the version.

        Raises:
            StorageError: none has, so that another attempt would fail too; or the time is up.
        """
        self.tries += 1
        newest = int(place.newest().version)
        if newest == version:
            raise StorageError(
                f"table {place.name!r} could not be written: {first_line(exc)[:300]}", "the table is as it was before"
            ) from exc
        self.tried(place, exc)
        time.sleep(self._pause * (0.5 + random.random()))  # jitter, so that two runs do not meet again
        self._pause = min(2 * self._pause, _LONGEST_WAIT_S)


def write_metadata(place: Place, change: Any) -> bool:
    """Change schema metadata in one commit, based on what is there at that moment.

    Args:
        change: takes the newest dataset and returns the keys to write, None for a key to remove; or None for nothing.
    Returns:
        Whether something was written.
    Raises:
        StorageError: other writers changed it again and again.
    """
    for left in reversed(range(METADATA_TRIES)):
        dataset = place.newest()
        values = change(dataset)
        if values is None:
            return False
        try:
            dataset.update_schema_metadata(values)
        except (OSError, RuntimeError, ValueError) as exc:
            if not left or int(place.newest().version) == int(dataset.version):
                raise StorageError(
                    f"the metadata of table {place.name!r} cannot be written: {first_line(exc)[:300]}", "try again"
                ) from exc
            time.sleep(_FIRST_WAIT_S)
        else:
            return True
    return False
