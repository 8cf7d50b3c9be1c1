"""The manifest of a dataset folder."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

import embedreg
from embedreg.declaration import manifest
from embedreg.errors import MetadataError, StorageError


@pytest.fixture
def declared() -> bytes:
    """Declarations as they lie in a schema."""
    config = embedreg.get("hashing").create(dim=4).bind("text", "vector")
    return embedreg.embed_table(pa.table({"text": ["größer"]}), config).schema.metadata[b"embedding_functions"]


def test_declarations_come_back_byte_for_byte(tmp_path: Path, declared: bytes) -> None:
    """What is written is the schema's very text, in a file that any program can read."""
    path = manifest.write(tmp_path / "new", declared)
    assert path == tmp_path / "new" / "_embedreg" / "manifest.json"
    assert manifest.read(tmp_path / "new") == declared
    found = json.loads(path.read_text("utf-8"))
    assert found["format"] == 1
    assert found["embedding_functions"] == json.loads(declared)
    assert found["fingerprints"]["vector"].startswith("sha256:")
    assert [each.name for each in path.parent.iterdir()] == ["manifest.json"]


def test_another_writer_may_order_the_keys(tmp_path: Path, declared: bytes) -> None:
    """What counts is the content."""
    path = manifest.write(tmp_path, declared)
    found = json.loads(path.read_text())
    path.write_text(json.dumps({key: found[key] for key in reversed(found)}, separators=(",", ":")))
    assert json.loads(manifest.read(tmp_path) or b"") == json.loads(declared)


def test_a_folder_without_a_manifest_returns_none(tmp_path: Path) -> None:
    """The same holds for a path that is not a folder."""
    assert manifest.read(tmp_path) is None
    (tmp_path / "file").touch()
    assert manifest.read(tmp_path / "file") is None


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"embedding_functions": 3}', b'{"embedding_functions": [', b"\xff", b"[" * 100_000, b"1e999"],
)
def test_an_invalid_manifest_is_one_error(tmp_path: Path, content: bytes) -> None:
    """For any content, the error names the file and has a hint."""
    (tmp_path / "_embedreg").mkdir()
    (tmp_path / "_embedreg" / "manifest.json").write_bytes(content)
    with pytest.raises(MetadataError, match=r"_embedreg/manifest\.json cannot be read"):
        manifest.read(tmp_path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """It is not a manifest, and reading it could take all memory."""
    (tmp_path / "_embedreg").mkdir()
    with (tmp_path / "_embedreg" / "manifest.json").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(MetadataError, match="bytes"):
        manifest.read(tmp_path)


def test_invalid_declarations_are_not_written(tmp_path: Path) -> None:
    """An unreadable manifest is refused when it is written."""
    with pytest.raises(MetadataError):
        manifest.write(tmp_path, b"nonsense")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, declared: bytes) -> None:
    """As any other output."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        manifest.write(tmp_path / "file", declared)
