"""Modalities on the command line: each command serves one that is in the table, and names one that is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from tests.sounds import Loudness, Moments, in_the_table, loudness, wav

N = 4


@pytest.fixture
def added() -> Iterator[None]:
    """The rows of both modalities, in the table for the time of a test."""
    with in_the_table():
        yield


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Recordings with their vectors, made where the modality was known."""
    path = tmp_path / "sounds.parquet"
    with in_the_table():
        data = {"id": [*range(N)], "sound": [wav(seed) for seed in range(N)]}
        pq.write_table(embedreg.embed_table(data, Loudness.create().bind("sound", "vector")), path)
    return path


@pytest.mark.parametrize(
    "args",
    [
        ["embed", "sounds.parquet", "out", "-f", "loudness", "--source", "sound", "--vector", "other"],
        ["embed", "sounds.parquet", "-f", "loudness", "--source", "sound", "--vector", "other", "--estimate"],
        ["search", "sounds.parquet", "a bell"],
        ["serve", "databend", "-f", "loudness", "--bind", "127.0.0.1:0"],
        ["ddl", "databend", "-f", "loudness"],
        ["ddl", "databend", "--like", "sounds.parquet"],
        ["bench", "-f", "loudness"],
    ],
    ids=lambda args: " ".join(args[:2]) if args[0] != "embed" else f"embed {args[-1]}",
)
def test_an_unknown_modality_is_named(cli: Callable, table: Path, args: list[str]) -> None:
    """With what describes it; the hint is one for the command line."""
    found = cli(*args, expect=1)
    said = " ".join((found.out + found.err).split())
    assert "Loudness embeds 'signal', an unknown modality; known: text, image, audio, any." in said
    assert "the file of --import, describes it with embedreg.add_modality(embedreg.Modality('signal', ...))" in said


def test_commands_without_a_modality_still_work(cli: Callable, table: Path) -> None:
    """A declaration is shown, and its comments are written, without the row."""
    assert "usable     yes" in cli("inspect", table).out
    assert "drift      unknown: Loudness embeds 'signal'" in cli("inspect", table, "--check").out
    assert "signal" in cli("functions", "loudness").out
    assert "COMMENT ON COLUMN" in cli("ddl", "duckdb", table).out


def test_a_known_modality_is_served(cli: Callable, table: Path, added: None, tmp_path: Path) -> None:
    """Databend is given bytes, an estimate and a check are made, a folder of its files is embedded."""
    printed = cli("ddl", "databend", "--like", table, "--as", "hear").out
    assert "FUNCTION hear (BINARY)" in printed
    assert "none: it returns the stored vectors" in cli("inspect", table, "--check").out
    folder = tmp_path / "in"
    folder.mkdir()
    for seed in range(N):
        (folder / f"{seed}.signal").write_bytes(wav(seed))
    assert cli("embed", folder, "-f", "loudness", "--estimate", "--json").json[0]["to_embed"] == N
    cli("embed", folder, "out.parquet", "-f", "loudness")
    found = pq.read_table("out.parquet")
    assert found["name"].to_pylist() == [f"{seed}.signal" for seed in range(N)]
    assert np.allclose(found["vector"].to_pylist(), [loudness(seed) for seed in range(N)])
    assert "the sample is texts, and Loudness embeds signals" in cli("bench", "-f", "loudness", expect=1).err
    assert cli("bench", table, "-f", "loudness", "--source", "sound", "--runs", 1, "--json").json["rows"] == N


def test_what_an_engine_cannot_pass_is_refused_with_what_works(cli: Callable, added: None) -> None:
    """Databend has no lists; lists are embedded into a file all the same."""
    for command in (["ddl", "databend"], ["serve", "databend", "--bind", "127.0.0.1:0"]):
        said = " ".join(cli(*command, "-f", "moments", expect=1).err.split())
        assert "Moments embeds 'number-list', which Databend cannot pass to a function; it passes text or image" in said
        assert "embedreg embed SRC DST.parquet" in said
    pq.write_table(pa.table({"numbers": [[1.0, 2.0], [3.0], [3.0], None]}), "in.parquet")
    options: list[Any] = ["-f", "moments", "--source", "numbers"]
    assert cli("embed", "in.parquet", *options, "--estimate", "--json").json[0]["filled"] == 3
    cli("embed", "in.parquet", "out.parquet", *options)
    assert pq.read_table("out.parquet")["vector"].to_pylist() == [[3, 2], [3, 1], [3, 1], None]
    assert cli("bench", "in.parquet", *options, "--runs", 1, "--json").json["rows"] == 2
    assert Moments.create().ndims() == 2


def test_images_are_not_compared_with_texts(cli: Callable, table: Path, added: None, tmp_path: Path) -> None:
    """The message names the modality of the table."""
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    said = cli("search", table, "--image", tmp_path / "a.png", expect=1).err
    assert "holds signals, which no image can be compared with" in said
