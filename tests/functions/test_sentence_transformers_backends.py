"""Precisions and back ends of `sentence-transformers`: how near they are, and when they are refused."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

import embedreg
from embedreg import errors
from embedreg.core import canonical
from embedreg.declaration import codec
from embedreg.functions.sentence_transformers import SentenceTransformerEmbeddings
from embedreg.runtime import cache
from embedreg.runtime.hardware import precision
from embedreg.runtime.models import conversions
from embedreg.runtime.text import openvino as openvino_backend
from embedreg.runtime.text.compilation import library as _library
from embedreg.runtime.vectors import queries

MODELS = ["causal", "mean", "cls-dense"]
TEXTS = [
    text[: 3 + (row * 11) % 60]
    for row, text in enumerate(["wait for a thread to finish", "json?", "a list of names, in no order; and more"] * 30)
]
has_bfloat16 = precision._has("bfloat16", "cpu")
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16, reason="this processor has no bfloat16")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Leave no model and no query behind."""
    yield
    embedreg.release()
    queries.recent.clear()


@pytest.fixture
def openvino() -> Any:
    """The library, or a skip."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    return _library()  # not a plain import, which would report itself from a forked process


def create(name: Any = "all-MiniLM-L6-v2", **config: Any) -> SentenceTransformerEmbeddings:
    """Create the function on the CPU."""
    return SentenceTransformerEmbeddings.create(name=str(name), **{"device": "cpu", "backend": "torch", **config})


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.asarray((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("kind", MODELS)
def test_openvino_gives_the_same_vectors(tiny: Callable[[str], Path], kind: str) -> None:
    """In float32, OpenVINO's vectors are torch's to 5e-6, prompts and heads included, whatever the batches."""
    expected = create(tiny(kind), normalize=False).generate_embeddings(TEXTS)
    for config in ({}, {"batch_size": 3}, {"num_threads": 1}):
        function = create(tiny(kind), normalize=False, backend="openvino", **config)
        np.testing.assert_allclose(function.generate_embeddings(TEXTS), expected, atol=5e-6)
    query = function.compute_query_embeddings("json?")
    queries.recent.clear()
    np.testing.assert_allclose(query, create(tiny(kind), normalize=False).compute_query_embeddings("json?"), atol=5e-6)


@pytest.mark.usefixtures("openvino")
def test_minilm_on_openvino_is_exact(minilm_path: Path) -> None:
    """The real weights in float32 agree with SentenceTransformer.encode to 1e-6, over all lengths."""
    from sentence_transformers import SentenceTransformer

    texts = [" ".join(["thread", "lock", "wait", "join"][: 1 + row % 4] * (1 + row * 3)) for row in range(34)]
    model = SentenceTransformer(str(minilm_path), device="cpu", local_files_only=True)
    expected = model.encode(texts, normalize_embeddings=True)
    made = create(backend="openvino", truncate="silent").generate_embeddings(texts)
    assert np.abs(made - expected).max() < 1e-6


@pytest.mark.usefixtures("openvino")
def test_a_back_end_is_no_part_of_the_declaration(tiny: Callable[[str], Path]) -> None:
    """The back end changes no vector, so neither the stored form nor the fingerprint has it; precision is stored."""
    stored = codec.persisted_model(create(backend="openvino"))
    assert "backend" not in stored
    assert stored["embedreg"]["fingerprint"] == codec.persisted_model(create())["embedreg"]["fingerprint"]
    lower = create(precision="bfloat16")
    assert codec.persisted_model(lower)["precision"] == "bfloat16"
    assert canonical.persisted_name(lower) == "embedreg:sentence-transformers"


@pytest.mark.usefixtures("openvino")
def test_release_frees_the_compiled_form_too(tiny: Callable[[str], Path]) -> None:
    """Releasing a function frees the weights and what was compiled from them."""
    function = create(tiny("mean"), backend="openvino")
    function.generate_embeddings(TEXTS)
    assert len(cache.models.keys()) == 2
    assert embedreg.release(function) == 2
    assert cache.models.keys() == []


@pytest.mark.usefixtures("openvino")
def test_a_few_texts_run_as_a_query_does(minilm_path: Path) -> None:
    """On the light back end one compiled form on all cores serves queries and small batches, another one columns."""
    function = create(minilm_path, backend="light", truncate="silent")
    alone = [function.compute_query_embeddings(text) for text in TEXTS[:3]]
    held = len(cache.models.keys())
    few = function.generate_embeddings(TEXTS[:3])
    assert len(cache.models.keys()) == held
    many = function.generate_embeddings([*TEXTS[:3], *TEXTS])
    assert len(cache.models.keys()) == held + 1
    np.testing.assert_allclose(few, np.concatenate(alone), atol=1e-6)
    np.testing.assert_allclose(few, many[:3], atol=1e-6)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for conversions."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "embedreg" / "openvino"


@pytest.mark.usefixtures("openvino")
def test_a_model_is_converted_once_for_all_processes(
    tiny: Callable[[str], Path], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was converted is read from the disk the next time, in every precision, and gives the same vectors."""
    first = create(tiny("mean"), backend="openvino").generate_embeddings(TEXTS)
    assert len(list(kept.glob("*/*/model.bin"))) == 1
    embedreg.release()
    monkeypatch.setattr(openvino_backend, "_convert", lambda *_: pytest.fail("converted again"))
    again = create(tiny("mean"), backend="openvino").generate_embeddings(TEXTS)
    np.testing.assert_allclose(first, again, atol=1e-6)
    if has_bfloat16:
        lower = create(tiny("mean"), backend="openvino", precision="bfloat16").generate_embeddings(TEXTS)
        assert cosines(lower, first).min() > 0.999


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("damage", ["no model", "other weights"])
def test_a_damaged_conversion_is_made_anew(
    tiny: Callable[[str], Path], kept: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be read, or gives other vectors than the model, is dropped with a warning and replaced."""
    expected = create(tiny("mean"), backend="openvino").generate_embeddings(TEXTS)
    embedreg.release()
    (folder,) = kept.glob("*/*")
    if damage == "no model":
        (folder / "model.xml").write_text("<not xml")
    else:
        with (folder / "model.bin").open("r+b") as file:  # the table of word vectors comes first
            words = np.frombuffer(file.read(4 * 1000), np.float32)
            file.seek(0)
            file.write((-words).tobytes())
    with caplog.at_level("WARNING", "embedreg"):
        made = create(tiny("mean"), backend="openvino").generate_embeddings(TEXTS)
    np.testing.assert_allclose(made, expected, atol=1e-6)
    assert ["converting again" in record.message for record in caplog.records] == [True]
    caplog.clear()
    embedreg.release()
    create(tiny("mean"), backend="openvino").generate_embeddings(TEXTS)
    assert caplog.records == []


@pytest.mark.usefixtures("openvino")
def test_a_disk_that_takes_nothing_costs_nothing(
    tiny: Callable[[str], Path], kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a conversion cannot be kept, the vectors are there all the same."""
    kept.parent.parent.mkdir(parents=True)
    kept.parent.write_text("a file in the folder's place")
    with caplog.at_level("WARNING", "embedreg"):
        assert create(tiny("mean"), backend="openvino").generate_embeddings(TEXTS).shape == (len(TEXTS), 32)
    assert caplog.records == []


@pytest.mark.usefixtures("openvino")
def test_a_conversion_with_four_changed_word_rows_is_made_anew(
    tiny: Callable[[str], Path], kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Words that no comparison of samples looks at: the digest of the files finds the change."""
    expected = create(tiny("mean"), backend="openvino").generate_embeddings(TEXTS)
    embedreg.release()
    (file,) = kept.glob("*/*/model.bin")
    content = bytearray(file.read_bytes())
    content[4 * 32 * 20 : 4 * 32 * 24] = bytes(4 * 32 * 4)
    file.write_bytes(bytes(content))
    with caplog.at_level("WARNING", "embedreg"):
        made = create(tiny("mean"), backend="openvino").generate_embeddings(TEXTS)
    np.testing.assert_allclose(made, expected, atol=1e-6)
    assert ["changed after it was written" in record.message for record in caplog.records] == [True]


def write(folder: Path) -> None:
    """Stand in for a conversion."""
    (folder / "model.bin").write_bytes(b"x")


def test_a_conversion_that_is_not_as_it_was_written_is_not_found(kept: Path, tmp_path: Path) -> None:
    """Changed, a file more, a link in it, open to others, without a digest, a link in its place: each is dropped."""
    made_of = {"openvino": "1"}
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")

    def linked(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.symlink_to(precious, target_is_directory=True)

    changes: list[Callable[[Path], object]] = [
        lambda folder: (folder / "model.bin").write_bytes(b"y"),
        lambda folder: (folder / "more.bin").write_bytes(b"y"),
        lambda folder: (folder / "more").symlink_to(precious, target_is_directory=True),
        lambda folder: (folder / "model.bin").chmod(0o666),
        lambda folder: folder.chmod(0o777),
        lambda folder: (folder / "sha256").unlink(),
        linked,
    ]
    for change in changes:
        conversions.keep("sha256:a", made_of, write)
        found = conversions.find("sha256:a", made_of)
        assert found is not None
        change(found)
        assert conversions.find("sha256:a", made_of) is None
        assert not os.path.lexists(found)
    assert (precious / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("level", ["a", "", ".."])
def test_nothing_is_deleted_or_written_through_a_link(kept: Path, tmp_path: Path, level: str) -> None:
    """A folder on the way that is a link: what lies behind it stays, and no conversion is added to it."""
    precious = tmp_path / "precious"
    for name in ("photos", "0123456789abcdef"):
        (precious / name).mkdir(parents=True)
    place = Path(os.path.normpath(kept / level))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(precious, target_is_directory=True)
    for number in range(4):
        conversions.keep("sha256:a", {"openvino": str(number)}, write)
        assert conversions.find("sha256:a", {"openvino": str(number)}) is None
    assert [path for path in precious.rglob("*") if path.is_file()] == []
    assert {"photos", "0123456789abcdef"} <= {path.name for path in precious.iterdir()}


def test_only_conversions_make_room(kept: Path) -> None:
    """What somebody else put beside them stays."""
    (kept / "a" / "notes").mkdir(parents=True)
    for path in (kept / "a", kept, kept.parent):
        path.chmod(0o700)
    for number in range(4):
        conversions.keep("sha256:a", {"openvino": str(number)}, write)
    assert (kept / "a" / "notes").is_dir()
    assert len(list((kept / "a").iterdir())) == conversions.KEPT + 1


def test_conversions_are_kept_for_their_versions_only(kept: Path) -> None:
    """One made of other versions is not found, and the oldest ones of a model make room for the newest."""
    for number in range(4):
        made_of = {"openvino": f"1.{number}"}
        assert conversions.find("sha256:a", made_of) is None
        conversions.keep("sha256:a", made_of, lambda folder: (folder / "model.bin").write_bytes(b"x"))
        conversions.keep("sha256:b", made_of, lambda folder: (folder / "model.bin").write_bytes(b"x"))
        assert conversions.find("sha256:a", made_of) is not None
        assert len(list((kept / "a").iterdir())) == min(number + 1, conversions.KEPT)
    assert {path.name for path in kept.iterdir()} == {"a", "b"}


@pytest.mark.usefixtures("openvino")
def test_openvino_refuses_what_it_cannot_run(tiny: Callable[[str], Path]) -> None:
    """A model without a transformer is refused, with the back end to use; nothing else runs under its name."""
    with pytest.raises(errors.ConfigError, match="not a text transformer") as caught:
        create(tiny("static"), backend="openvino").generate_embeddings(TEXTS)
    assert caught.value.hint == "backend='torch'"


@pytest.mark.usefixtures("openvino")
def test_openvino_reports_to_nobody(tiny: Callable[[str], Path], run_python: Callable[..., str]) -> None:
    """Left to itself, `import openvino` forks a process that sends its use over the network; here it does not."""
    code = """
import multiprocessing.process, sys
multiprocessing.process.BaseProcess.start = lambda self: print("started", self)
import embedreg
function = embedreg.get("sentence-transformers").create(name=sys.argv[1], device="cpu", backend="openvino")
print(function.generate_embeddings(["a", "b"]).shape)
print([name for name in sys.modules if name.startswith("openvino_telemetry")])
"""
    assert run_python(code, tiny("mean")) == "(2, 32)\n[]\n"


def test_a_missing_openvino_is_asked_for(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library, the error names the extra."""
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(errors.MissingExtraError, match=r"embedreg\[openvino\]"):
        create(tiny("mean"), backend="openvino").generate_embeddings(TEXTS)


@needs_bfloat16
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_minilm_in_bfloat16_stays_near(backend: str) -> None:
    """Real weights in bfloat16: every cosine with float32 is above 0.9995, the vectors are float32 of unit length."""
    if backend == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    texts = [" ".join(["thread", "lock", "wait", "join"][: 1 + row % 4] * (1 + row)) for row in range(30)]
    exact = create().generate_embeddings(texts)
    function = create(precision="bfloat16", backend=backend)
    made = function.generate_embeddings(texts)
    assert made.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    assert cosines(made, exact).min() > 0.9995
    assert not np.array_equal(made, exact)
    assert cosines(function.compute_query_embeddings(texts[3]), made[3:4])[0] > 0.9995


@needs_bfloat16
@pytest.mark.parametrize("kind", MODELS)
def test_bfloat16_does_not_depend_on_company(tiny: Callable[[str], Path], kind: str) -> None:
    """In bfloat16 too, batch size and neighbours move a vector by its rounding only: cosine above 0.9999."""
    whole = create(tiny(kind), precision="bfloat16").generate_embeddings(TEXTS)
    single = create(tiny(kind), precision="bfloat16", batch_size=1).generate_embeddings(TEXTS)
    assert cosines(whole, single).min() > 0.9999
    assert cosines(whole, create(tiny(kind)).generate_embeddings(TEXTS)).min() > 0.999


@needs_bfloat16
@pytest.mark.parametrize("kind", MODELS)
def test_on_a_cpu_only_the_products_are_narrow(tiny: Callable[[str], Path], kind: str) -> None:
    """Norms and sums stay in float32, and the vectors are nearer to float32's than those of a model all narrow."""
    exact = create(tiny(kind)).generate_embeddings(TEXTS)
    function = create(tiny(kind), precision="bfloat16")
    made = function.generate_embeddings(TEXTS)

    def types(*layers: type[torch.nn.Module]) -> set[torch.dtype]:
        return {part.weight.dtype for part in function._loaded()[0].modules() if isinstance(part, layers)}

    assert types(torch.nn.LayerNorm, torch.nn.Embedding) == {torch.float32}
    assert types(Conv1D if kind == "causal" else torch.nn.Linear) == {torch.bfloat16}
    function._loaded()[0].to(torch.bfloat16)
    whole = function.generate_embeddings(TEXTS)
    assert (1 - cosines(made, exact)).mean() < 0.8 * (1 - cosines(whole, exact)).mean()


@needs_bfloat16
def test_a_model_that_cannot_mix_types_is_converted_whole(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose layers refuse two types of numbers is narrow throughout, and works."""
    from transformers.models.bert.modeling_bert import BertOutput

    def picky(self: Any, hidden: Any, residual: Any) -> Any:
        made = self.dense(hidden)
        if made.dtype != residual.dtype:
            raise RuntimeError("expected both to have the same dtype")
        return self.LayerNorm(made + residual)

    monkeypatch.setattr(BertOutput, "forward", picky)
    exact = create(tiny("mean")).generate_embeddings(TEXTS)
    function = create(tiny("mean"), precision="bfloat16")
    assert cosines(function.generate_embeddings(TEXTS), exact).min() > 0.999
    assert {each.dtype for each in function._loaded()[0].parameters()} == {torch.bfloat16}


def test_a_precision_that_the_processor_lacks_is_refused(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One's own code gets an error with the precision to use; a stored declaration is computed all the same."""
    for probe in (*precision._CPU_BFLOAT16, *precision._CPU_FLOAT16):
        monkeypatch.setattr(torch.cpu, probe, lambda: False, raising=False)
    for name in ("bfloat16", "float16"):
        with pytest.raises(errors.ConfigError, match=f"no arithmetic in {name}") as caught:
            create(tiny("mean"), precision=name).generate_embeddings(["a"])
        assert caught.value.hint == "precision='float32'"
    embedreg.get_registry().reset()
    embedreg.trust(paths=[tiny("mean")])
    model = {"name": str(tiny("mean")), "precision": "bfloat16", "embedreg": {"format": 1}}
    entry = {"name": "embedreg:sentence-transformers", "model": model, "source_column": "t", "vector_column": "v"}
    stored = embedreg.get_registry().parse_functions({codec.KEY: json.dumps([entry])})["v"].function
    assert stored.from_metadata
    assert stored.compute_query_embeddings("a").shape == (1, 32)


def test_a_model_without_a_transformer_has_no_precision(tiny: Callable[[str], Path]) -> None:
    """A static model in bfloat16 is refused rather than run in float32 under another name."""
    if not has_bfloat16:
        pytest.skip("refused for the processor already")
    with pytest.raises(errors.ConfigError, match="no transformer"):
        create(tiny("static"), precision="bfloat16").generate_embeddings(["a"])
