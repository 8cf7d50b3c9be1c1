"""The `clap` function against the transformers library, on tiny random models, and in tables, jobs and engines."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr

import embedreg
from embedreg import EmbeddingFunction
from embedreg.declaration import drift
from embedreg.engines import databend
from embedreg.engines import duckdb as duck
from embedreg.engines.databend import Served
from embedreg.errors import CallError, ConfigError, InputError
from embedreg.testing import EmbeddingFunctionContract
from tests.engines.databend_flight import Client
from tests.functions.on_open_clips_base import OnOpenClipsBase
from tests.recordings import RATE, SECONDS, WIDTH, clap, encoded, recording, samples

TEXTS = ["a dog barks", "x", "two words " * 20]


@pytest.fixture(autouse=True, scope="module")
def no_model_left() -> Iterator[None]:
    """Leave no loaded model behind."""
    yield
    embedreg.release()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A model of one spectrogram, and one of four."""
    return {fused: clap(tmp_path_factory.mktemp("clap") / str(fused), fused=fused) for fused in (False, True)}


@pytest.fixture(scope="module")
def folder(folders: dict[bool, Path]) -> Path:
    """The model of one spectrogram."""
    return folders[False]


def create(folder: Path, **config: Any) -> Any:
    """Create the function on the CPU."""
    return embedreg.get("clap").create(
        model_name=str(folder), **{"device": "cpu", "truncate": "silent", "num_threads": 2, **config}
    )


ROWS = [  # shorter than the model's input, as long, longer; of other rates and channels; one frame longer; one sample
    encoded(samples(0, 0.7)),
    encoded(samples(1, SECONDS)),
    encoded(samples(2, 5)),
    encoded(samples(3, 1.3, 16_000, 2), 16_000, "FLAC"),
    encoded(samples(4, 3.1, 44_100), 44_100, "MP3"),
    encoded(samples(5, SECONDS + 0.01)),
    encoded(np.ones(1), RATE),
]


def heard(data: bytes) -> np.ndarray:
    """Return the samples of a file at the model's rate, as librosa loads them: without our decoder."""
    values, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    values = values.mean(axis=1)
    if rate == RATE:
        return values
    made = soxr.resample(values, rate, RATE, quality="soxr_hq")
    length = int(np.ceil(len(values) * RATE / rate))
    return made[:length] if len(made) >= length else np.pad(made, (0, length - len(made)))


@pytest.fixture
def middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library draw the middle of each range that it draws from."""
    monkeypatch.setattr(np.random, "randint", lambda low, high: (low + high - 1) // 2)
    monkeypatch.setattr(np.random, "choice", lambda values: values[len(values) // 2])


@pytest.mark.parametrize("fused", [False, True])
def test_vectors_are_those_of_the_library(folders: dict[bool, Path], fused: bool, middle: None) -> None:
    """Of recordings of every length, whose parts are the middle of those that it draws from; and of texts."""
    import torch
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    folder = folders[fused]
    model, tokenizer = ClapModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    extractor = ClapFeatureExtractor.from_pretrained(folder)
    expected = []
    for data in ROWS:
        features = extractor(heard(data), sampling_rate=RATE, return_tensors="pt")
        if len(heard(data)) <= RATE * SECONDS + 160:
            features["is_longer"][:] = False  # the library marks a random one of each batch
        with torch.no_grad():
            expected.append(model.get_audio_features(**features).pooler_output[0].numpy())
    fn = create(folder)
    made = embedreg.embed_column(fn, [*ROWS, b"no recording", None])
    assert made.valid.tolist() == [True] * len(ROWS) + [False, False]
    assert np.abs(made.matrix[: len(ROWS)] - expected).max() < 1e-5
    assert np.ptp(made.matrix[: len(ROWS)], axis=0).max() > 0.01
    for row, data in enumerate(ROWS):
        assert np.abs(embedreg.embed_query(fn, data) - expected[row]).max() < 1e-5
    tokens = tokenizer(TEXTS, return_tensors="pt", padding=True, truncation=True, max_length=64)
    with torch.no_grad():
        texts = model.get_text_features(**tokens).pooler_output.numpy()
    assert np.abs(fn.compute_embeddings(TEXTS, "query") - texts).max() < 1e-5
    assert np.abs(create(folder, source_type="text").compute_embeddings(TEXTS) - texts).max() < 1e-5
    mixed = fn.compute_embeddings([TEXTS[0], ROWS[0], TEXTS[1]], "query")
    assert np.abs(np.array(mixed) - [texts[0], expected[0], texts[1]]).max() < 1e-5
    assert fn.ndims() == WIDTH


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_is_random(folders: dict[bool, Path], fused: bool) -> None:
    """A long recording has one vector, whatever its neighbours are and the state of NumPy, which stays as it is."""
    fn = create(folders[fused])
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    first = embedreg.embed_column(fn, ROWS).matrix
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(2)
    assert np.abs(embedreg.embed_column(fn, ROWS[::-1]).matrix[::-1] - first).max() < 1e-5
    assert np.abs(fn.compute_embeddings([ROWS[2]])[0] - first[2]).max() < 1e-5


def test_long_texts_are_counted(folder: Path) -> None:
    """Over 64 tokens a text is cut, or a bad row."""
    fn = create(folder, source_type="text", truncate="error")
    made = embedreg.embed_column(fn, TEXTS)
    assert made.valid.tolist() == [True, True, False]
    assert "64" in made.reasons[2]
    with pytest.raises(InputError, match="row 0 is bytes, not text") as caught:
        fn.compute_embeddings([ROWS[0]])
    assert caught.value.hint == "source_type='audio' embeds a column of recordings"


@pytest.mark.parametrize(
    "change",
    [
        {"truncation": "fusion"},
        {"truncation": "else"},
        {"sampling_rate": 10**9},
        {"max_length_s": 10**6},
        {"hop_length": 1},
        {"fft_window_size": "x"},
        {"feature_size": True},
        {"padding": "reflect"},
    ],
)
def test_another_preprocessing_is_refused(folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    """One that does not fit the model, is unknown, or would compute without end."""
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ConfigError, match="preprocess"):
        create(tmp_path / "model").compute_query_embeddings("x")


def test_another_kind_of_model_is_refused(tiny: Callable[[str], Path]) -> None:
    """A BERT is not a CLAP."""
    with pytest.raises(ConfigError, match="'bert' is not a CLAP"):
        create(tiny("plain")).ndims()


# -- tables, jobs, engines ---------------------------------------------------------------------------------------------


def test_a_table_is_filled_declared_and_watched(folder: Path, tmp_path: Path) -> None:
    """Bytes, nulls and broken files; the declaration reads back; another checkpoint drifts."""
    fn = create(folder)
    rows = [recording(0), None, recording(1)[:-50], recording(2)]
    report = embedreg.Report()
    table = embedreg.embed_table({"sound": rows}, fn.bind("sound", "vector"), on_error="null", report=report)
    assert table["vector"].is_valid().to_pylist() == [True, False, False, True]
    assert [(bad.row, bad.reason) for bad in report.bad] == [(2, "the recording is truncated")]
    with pytest.raises(embedreg.EmbedregError, match="truncated"):
        embedreg.embed_table({"sound": rows}, fn.bind("sound", "vector"))
    pq.write_table(table, tmp_path / "t.parquet")
    assert embedreg.functions_in(tmp_path / "t.parquet")["vector"].function == fn
    assert [each.verdict for each in embedreg.check_drift(tmp_path / "t.parquet")] == ["same"]
    other = create(clap(tmp_path / "other", seed=6))
    assert drift.compare(other, embedreg.functions_in(table).entries["vector"].reserved).verdict == "drift"
    assert embedreg.functions_in(table).entries["vector"].name == "clap"
    structs = pa.array([{"bytes": rows[0], "path": None}, {"bytes": None, "path": "absent.wav"}, None])
    made = embedreg.embed_column(fn, structs)  # as Hugging Face's datasets hold them
    assert made.valid.tolist() == [True, False, False]
    assert "allow_images" in made.reasons[1]
    with pytest.raises(InputError, match="an audio function cannot embed a column of type int64"):
        embedreg.embed_column(fn, [1, 2])


def test_a_table_of_lancedb_is_searched_and_opened_again(folder: Path, tmp_path: Path) -> None:
    """By a text, and by a recording; rows that are added later are embedded by the declaration."""
    fn = create(folder)

    class Sounds(lancedb.pydantic.LanceModel):
        sound: bytes = fn.SourceField()
        vector: lancedb.pydantic.Vector(WIDTH) = fn.VectorField()  # type: ignore[valid-type]

    lancedb.connect(tmp_path).create_table("t", schema=Sounds).add([{"sound": recording(seed)} for seed in range(4)])
    table = lancedb.connect(tmp_path).open_table("t")
    table.add([{"sound": recording(4)}])
    expected = embedreg.embed_column(fn, [recording(seed) for seed in range(5)]).matrix
    assert np.abs(np.array(table.to_arrow()["vector"].to_pylist()) - expected).max() < 1e-5
    for query in ("a dog barks", recording(3)):
        vector = embedreg.embed_query(fn, query)
        found = table.search(vector).distance_type("cosine").limit(1).to_arrow()["sound"][0].as_py()
        assert found == recording(int((expected @ vector).argmax()))
    said = table.search("a dog barks").limit(1).to_arrow()["sound"][0].as_py()
    assert said == recording(int((expected @ embedreg.embed_query(fn, "a dog barks")).argmax()))


def test_a_folder_of_recordings_is_a_job_that_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted, it embeds the rest; endings do not decide, and what is no recording is a bad row."""
    (tmp_path / "in").mkdir()
    kinds = ["WAV", "FLAC", "MP3"] * 2
    given = [encoded(samples(seed, 1), RATE, kind) for seed, kind in enumerate(kinds)]
    for seed, (kind, data) in enumerate(zip(kinds, given, strict=True)):
        (tmp_path / "in" / f"{seed}.{kind.lower() if seed else 'flac'}").write_bytes(data)  # the first one lies
    (tmp_path / "in" / "6.ogg").write_bytes(b"no recording")
    (tmp_path / "in" / "notes.txt").write_text("x")
    fn = create(folder)
    cls, calls = type(fn), []
    own = cls.compute_embeddings

    def counted(self: Any, inputs: Any, role: Any = "source") -> Any:
        if len(inputs) == 2:  # the probe has one row
            calls.append(role)
            if len(calls) == 2:
                raise CallError("the power is out")
        return own(self, inputs, role)

    options: dict[str, Any] = {"piece_rows": 2, "on_error": "null"}
    monkeypatch.setattr(cls, "compute_embeddings", counted)
    with pytest.raises(CallError, match="the power is out"):
        embedreg.embed(tmp_path / "in", tmp_path / "out.parquet", fn.bind("path", "vector"), **options)
    embedreg.embed(tmp_path / "in", tmp_path / "out.parquet", fn.bind("path", "vector"), **options)
    assert len(calls) == 4  # three full pieces, one of them twice
    monkeypatch.undo()
    made = pq.read_table(tmp_path / "out.parquet")
    assert made["name"].to_pylist() == ["0.flac", "1.flac", "2.mp3", "3.wav", "4.flac", "5.mp3", "6.ogg"]
    expected = embedreg.embed_column(fn, given)
    vectors = made["vector"].to_pylist()
    assert vectors.pop() is None
    assert np.abs(np.array(vectors) - expected.matrix).max() < 1e-5


def test_duckdb_and_databend_pass_recordings_as_bytes(folder: Path) -> None:
    """Both have a type for the content of files; a query is a text."""
    fn = create(folder)
    rows = [recording(seed) for seed in range(3)]
    expected = embedreg.embed_column(fn, rows).matrix
    con = duckdb.connect()
    con.register("sounds", pa.table({"a": rows}))
    duck.install(con, fn, "hear")
    found = [row for (row,) in con.sql("SELECT hear(a) FROM sounds").fetchall()]
    assert np.abs(np.array(found) - expected).max() < 1e-5
    asked = con.sql("SELECT hear_query('a dog barks')").fetchall()
    assert np.abs(np.array(asked[0][0]) - embedreg.embed_query(fn, "a dog barks")).max() < 1e-5
    with databend.serve([Served("hear", fn, input="audio")], bind="127.0.0.1:0") as server:
        assert "FUNCTION hear (BINARY)" in server.ddl()
        made = Client(server.address).call("hear", pa.array([*rows, b"no recording", None])).to_pylist()
    assert np.abs(np.array(made[:3]) - expected).max() < 1e-5
    assert made[3:] == [None, None]


class TestClap(OnOpenClipsBase, EmbeddingFunctionContract):
    """`clap` on the tiny model."""

    @pytest.fixture
    def function(self, folder: Path) -> EmbeddingFunction:
        return create(folder)  # type: ignore[no-any-return]

    @pytest.fixture
    def inputs(self) -> list[Any]:
        return [recording(seed, 0.3 + seed) for seed in range(4)]

    def test_ndims_loads_no_weights(self, function: EmbeddingFunction, monkeypatch: pytest.MonkeyPatch) -> None:
        """The width is known where loading fails; the contract's own process takes seconds to import torch."""
        embedreg.release()
        monkeypatch.setattr(type(function), "load", None)
        assert function.ndims() > 0
