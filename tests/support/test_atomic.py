"""Atomic writes: an output is complete or does not exist."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedreg.errors import CallError, StorageError
from embedreg.support.atomic import replacing, write_parquet

SCHEMA = pa.schema({"n": pa.int64()}, metadata={"k": "v"})


def reader(*batches: list[int], fail: BaseException | None = None) -> pa.RecordBatchReader:
    """A stream of batches, which may end in an error."""

    def produce() -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield pa.record_batch({"n": batch}, schema=SCHEMA)
        if fail is not None:
            raise fail

    return pa.RecordBatchReader.from_batches(SCHEMA, produce())


def left(folder: Path) -> list[str]:
    """Every path below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_holds_a_row_group_per_batch_and_the_metadata(tmp_path: Path) -> None:
    """Row groups are bounded by the batches, empty ones are left out, and the schema's metadata is kept."""
    write_parquet(reader([1, 2], [], [3]), tmp_path / "out.parquet")
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 1]
    assert file.schema_arrow.metadata[b"k"] == b"v"


def test_no_rows_make_an_empty_file(tmp_path: Path) -> None:
    """A stream without rows is a file with a schema."""
    write_parquet(reader(), tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").schema == SCHEMA


@pytest.mark.parametrize("error", [CallError("the model failed"), ConnectionResetError("gone"), KeyboardInterrupt()])
def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    """An error of the stream is raised unchanged; the old file stays, and no part of the new one does."""
    write_parquet(reader([1]), tmp_path / "out.parquet")
    with pytest.raises(type(error)) as caught:
        write_parquet(reader([2], fail=error), tmp_path / "out.parquet")
    assert caught.value is error
    assert pq.read_table(tmp_path / "out.parquet").column("n").to_pylist() == [1]
    assert left(tmp_path) == ["out.parquet"]


def test_folders_made_for_an_output_that_failed_are_removed(tmp_path: Path) -> None:
    """New folders appear with the output only; folders that were there stay."""
    (tmp_path / "old").mkdir()
    with pytest.raises(CallError):
        write_parquet(reader(fail=CallError("x")), tmp_path / "old" / "new" / "newer" / "out.parquet")
    assert left(tmp_path) == ["old"]
    write_parquet(reader([1]), tmp_path / "old" / "new" / "newer" / "out.parquet")
    assert left(tmp_path) == ["old", "old/new", "old/new/newer", "old/new/newer/out.parquet"]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    """A replaced table has only the content of the new one."""
    target = tmp_path / "table.lance"
    for content in ("one", "two"):
        with replacing(target) as hidden:
            (hidden / "data").mkdir(parents=True)
            (hidden / "data" / content).write_text(content)
    assert left(tmp_path) == ["table.lance", "table.lance/data", "table.lance/data/two"]


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    """A file where a folder is expected is named, with a hint."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written") as caught:
        write_parquet(reader([1]), tmp_path / "file" / "out.parquet")
    assert "Hint:" in str(caught.value)
