"""Search by a recording: the file that the user names, and what each refusal says."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.audio import open_audio
from embedreg.cli import exits
from tests.recordings import encoded, recording

N = 5


@embedreg.register("spectrum")
class Spectrum(embedreg.EmbeddingFunction):
    """Embeds a recording as the strengths of sixteen bands."""

    traits = embedreg.Traits(modality="audio", requires=("soundfile", "soxr"), retry=False)

    def ndims(self) -> int:
        return 16

    def compute_source_embeddings(self, values: object) -> list[object]:
        return [self.bands(value) for value in self.sanitize_input(values)]

    def compute_query_embeddings(self, query: object) -> list[object]:
        return [self.bands(query, from_query=True)]

    def bands(self, value: object, from_query: bool = False) -> object:
        try:
            heard = np.abs(np.fft.rfft(open_audio(value, rate=8000, from_query=from_query)))
        except embedreg.RowError as problem:
            return problem
        return np.array([part.sum() for part in np.array_split(heard, 16)], np.float32)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Recordings as bytes, and files of the same elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for seed in range(N):
        (elsewhere / f"{seed}.wav").write_bytes(recording(seed))
    rows = pa.table({"id": range(N), "sound": [recording(seed) for seed in range(N)]})
    path = tmp_path / "sounds.parquet"
    pq.write_table(embedreg.embed_table(rows, Spectrum.create().bind("sound", "vector")), path)
    return path


def test_a_recording_finds_itself_first(cli: Callable, table: Path) -> None:
    """`--audio FILE` needs no permission for any path, and takes every format that rows may have."""
    for seed in range(N):
        found = cli("search", table, "--audio", f"elsewhere/{seed}.wav", "-n", 2, "--json").json
        assert found[0]["id"] == seed
        assert found[0]["_score"] == pytest.approx(1, abs=1e-5)
    Path("same.flac").write_bytes(encoded(open_audio(recording(3), rate=8000), kind="FLAC"))
    assert cli("search", table, "--audio", "same.flac", "-n", 1, "--json").json[0]["id"] == 3


def test_the_page_plays_the_query_and_the_hits(cli: Callable, table: Path) -> None:
    """Of each its first ten seconds, without what else the files hold; or why it cannot be heard."""
    stored = pq.read_table(table)
    rows = stored.to_pylist()
    rows[0]["sound"] = encoded(np.tile(open_audio(recording(0), rate=8000), 60))  # half a minute
    rows[1]["sound"] = b"ID3\x03\0\0\0\0\0\x06secret" + recording(1)
    rows[2]["sound"] = b"something else"
    pq.write_table(pa.Table.from_pylist(rows, stored.schema), table)
    done = cli("search", table, "--audio", "elsewhere/3.wav", "--html", "hits.html")
    assert "the same with their recordings: hits.html" in done.err
    page = Path("hits.html").read_text()
    assert "Rows like 3.wav" in page
    assert "secret" not in page
    assert page.count("it is not a recording of an allowed format") == 1
    players = re.findall(r'<audio controls aria-label="([^"]+)" src="data:audio/mpeg;base64,([^"]+)"', page)
    assert len(players) == N  # the query, and all rows but one
    assert players[0][0] == "the recording of the query"
    assert {label for label, _ in players[1:]} < {f"hit {rank}" for rank in range(1, N + 1)}
    seconds = sorted(len(open_audio(base64.b64decode(data), rate=8000)) / 8000 for _, data in players)
    assert seconds == pytest.approx([0.5, 0.5, 0.5, 0.5, 10], abs=0.2)  # the encoder fills its last frames


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["sounds.parquet", "a bell", "--audio", "elsewhere/1.wav"], exits.USAGE, "either QUERY, or --image FILE, or"),
        (["sounds.parquet", "--image", "a.png", "--audio", "a.wav"], exits.USAGE, "either QUERY, or --image FILE, or"),
        (["sounds.parquet", "--audio", "absent.wav"], exits.ERROR, "--audio absent.wav: there is no such audio file"),
        (["sounds.parquet", "--audio", "elsewhere"], exits.ERROR, "a folder"),
        (["sounds.parquet", "--audio", "sounds.parquet"], exits.ERROR, "--audio sounds.parquet: "),
        (["texts.parquet", "--audio", "elsewhere/1.wav"], exits.ERROR, "texts, which no recording can be compared"),
        (
            ["sounds.parquet", "--audio", "elsewhere/1.wav", "--mode", "hybrid"],
            exits.ERROR,
            "a recording has no index of them",
        ),
    ],
)
def test_what_cannot_be_searched_by_a_recording(
    cli: Callable, table: Path, args: list[str], code: int, message: str
) -> None:
    """One line and a hint."""
    texts = embedreg.embed_table(
        pa.table({"text": ["a", "b"]}), embedreg.get("hashing").create().bind("text", "vector")
    )
    pq.write_table(texts, "texts.parquet")
    result = cli("search", *args, expect=code)
    assert message in " ".join(result.err.split())
    assert "Traceback" not in result.err
