"""The `sentence-transformers` function on the runtime: the library's vectors, however they are batched."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import embedreg
from embedreg import errors
from embedreg.functions.sentence_transformers import SentenceTransformerEmbeddings
from embedreg.runtime import cache, progress
from embedreg.runtime.hardware import device
from embedreg.runtime.text.pipeline import TextPipeline
from embedreg.runtime.vectors import queries

MODELS = ["causal", "mean", "cls-dense", "plain", "two-pools"]  # what the runtime runs; the others are the library's
TEXTS = [
    text[: 3 + (row * 11) % 60]
    for row, text in enumerate(["wait for a thread to finish", "json?", "a list of names, in no order; and more"] * 40)
]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Leave no model and no query behind."""
    yield
    embedreg.release()
    queries.recent.clear()


def create(name: Any = "all-MiniLM-L6-v2", **config: Any) -> SentenceTransformerEmbeddings:
    """Create the function on the CPU."""
    return SentenceTransformerEmbeddings.create(name=str(name), **{"device": "cpu", "backend": "torch", **config})


def library(path: Path) -> Any:
    """Load a model with the library itself."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu", local_files_only=True)


@pytest.mark.parametrize("kind", MODELS)
def test_vectors_do_not_depend_on_company(tiny: Callable[[str], Path], kind: str) -> None:
    """Batch size, order, neighbours and threads change no coordinate by more than 2e-6 of the library's own vectors."""
    expected = library(tiny(kind)).encode_document(TEXTS, normalize_embeddings=True)
    order = np.random.default_rng(1).permutation(len(TEXTS))
    for config in ({}, {"batch_size": 1}, {"batch_size": 7}, {"num_threads": 1}, {"num_threads": 4}):
        function = create(tiny(kind), **config)
        assert TextPipeline(function._loaded(), "cpu", "", "document", True, None).usable(["some text"])
        np.testing.assert_allclose(function.generate_embeddings(TEXTS), expected, atol=2e-6)
        shuffled = function.generate_embeddings([TEXTS[row] for row in order])
        np.testing.assert_allclose(shuffled, expected[order], atol=2e-6)
    alone = np.concatenate([function.generate_embeddings([text]) for text in TEXTS[:12]])
    np.testing.assert_allclose(alone, expected[:12], atol=2e-6)


def test_minilm_agrees_with_the_library_over_many_lengths(minilm_path: Path) -> None:
    """The real weights over texts of 1 to 400 words, some truncated: at most 1e-6 from SentenceTransformer.encode."""
    texts = [" ".join(["thread", "lock", "wait", "join"][: 1 + row % 4] * (1 + row * 3)) for row in range(34)]
    expected = library(minilm_path).encode(texts, normalize_embeddings=True)
    assert np.abs(create(truncate="silent").generate_embeddings(texts) - expected).max() < 1e-6


def test_a_route_of_transformers_is_run_by_its_task(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A Router that gives queries and documents a transformer each gets its vectors from the right one."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Router, Transformer

    torch.manual_seed(3)
    query = [Transformer(str(tiny("plain"))), Pooling(32, "mean"), Dense(32, 8)]
    document = [Transformer(str(tiny("plain"))), Pooling(32, "cls"), Dense(32, 8)]
    model = SentenceTransformer(modules=[Router.for_query_document(query, document)], device="cpu")
    model.save(str(tmp_path / "model"), create_model_card=False)
    model = library(tmp_path / "model")
    function = create(tmp_path / "model")
    sources = model.encode_document(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(function.generate_embeddings(TEXTS), sources, atol=2e-6)
    wanted = model.encode_query(TEXTS[:5], normalize_embeddings=True)
    found = np.concatenate([function.compute_query_embeddings(text) for text in TEXTS[:5]])
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_prompts_are_left_out_of_pooling_where_the_model_says_so(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """`include_prompt: false` (INSTRUCTOR's way) holds under the runtime's batches as under the library's."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    modules = [Transformer(str(tiny("plain"))), Pooling(32, "mean", include_prompt=False)]
    SentenceTransformer(modules=modules, prompts={"document": "represent this: "}, device="cpu").save(
        str(tmp_path / "model"), create_model_card=False
    )
    expected = library(tmp_path / "model").encode_document(TEXTS, normalize_embeddings=True)
    function = create(tmp_path / "model")
    np.testing.assert_allclose(function.generate_embeddings(TEXTS), expected, atol=2e-6)
    pooled = create(tmp_path / "model", document_prompt="").generate_embeddings(TEXTS)
    assert not np.allclose(pooled, expected, atol=1e-3)


def test_odd_padding_is_left_to_the_library(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A tokenizer that pads in a way of its own is noticed, and such a model goes through the library's encode."""
    import shutil

    folder = shutil.copytree(tiny("mean"), tmp_path / "model")
    function = create(folder)
    model = function._loaded()
    model.tokenizer.backend_tokenizer.enable_padding(pad_to_multiple_of=8)
    original = model.preprocess

    def rounded(texts: list[str], **options: Any) -> Any:
        made = original(texts, **options)
        if torch.is_tensor(made["input_ids"]):
            short = -made["input_ids"].shape[1] % 8
            for kind in ("input_ids", "attention_mask", "token_type_ids"):
                if kind in made:
                    made[kind] = torch.nn.functional.pad(made[kind], (0, short))
        return made

    model.preprocess = rounded
    assert not TextPipeline(model, "cpu", "", "document", True, None).usable(TEXTS)
    expected = library(folder).encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(function.generate_embeddings(TEXTS), expected, atol=2e-6)


@pytest.mark.parametrize("by", ["the runtime", "the library"])
def test_truncation_is_told_or_refused_as_asked(
    tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Texts over the limit are counted in the log, pass in silence, or are failed rows; the vectors never differ."""
    if by == "the library":  # as it is for models that the runtime does not know, and releases before 5.5
        monkeypatch.setattr(TextPipeline, "usable", lambda self, texts: False)
    texts = ["short", "long " * 40, "x", "longer " * 40]
    loud, silent, strict = (create(tiny("mean"), truncate=policy) for policy in ("warn", "silent", "error"))
    with caplog.at_level(logging.WARNING, "embedreg"):
        vectors = loud.generate_embeddings(texts)
    (record,) = caplog.records
    assert "2 of 4 text(s) are longer than the 64 tokens" in record.message
    caplog.clear()
    np.testing.assert_allclose(silent.generate_embeddings(texts), vectors, atol=2e-6)
    rows = strict.generate_embeddings(texts)
    assert [isinstance(row, errors.RowError) for row in rows] == [False, True, False, True]
    np.testing.assert_allclose(np.stack([rows[0], rows[2]]), vectors[[0, 2]], atol=2e-6)
    embedded = embedreg.embed_column(strict, texts)
    assert embedded.valid.tolist() == [True, False, True, False]
    assert "64 tokens" in embedded.reasons[1]
    assert strict.generate_embeddings(["short", "x"]).shape == (2, 32)
    with pytest.raises(errors.BadRowsError, match="64 tokens"):
        embedreg.embed_query(strict, "long " * 40)
    assert caplog.records == []
    assert loud == silent or loud.truncate != silent.truncate
    assert "truncate" in embedreg.core.base.runtime_fields(SentenceTransformerEmbeddings)


def test_a_text_of_exactly_the_limit_is_whole(tiny: Callable[[str], Path]) -> None:
    """62 letters and two marks are 64 tokens, and no token is lost."""
    strict = create(tiny("mean"), truncate="error")
    assert strict.count_tokens("a" * 62) == strict.max_tokens() == 64
    assert strict.generate_embeddings(["a" * 62]).shape == (1, 32)
    assert isinstance(strict.generate_embeddings(["a" * 63])[0], errors.RowError)


def test_a_model_without_a_limit_says_so(tiny: Callable[[str], Path]) -> None:
    """A static model reads texts of any length: none is ever truncated, and its tokens can be counted."""
    strict = create(tiny("static"), truncate="error")
    assert strict.max_tokens() is None
    assert strict.count_tokens("abc") == 3
    assert strict.generate_embeddings(["long " * 400, "x"]).shape == (2, 24)


def test_progress_moves_within_a_window(tiny: Callable[[str], Path]) -> None:
    """A column shows its progress batch by batch, counts what stands for several rows, and ends at all rows."""
    told: list[int] = []
    texts = [*TEXTS, None, *TEXTS[:7]]
    embedreg.embed_column(create(tiny("mean"), batch_size=4), texts, on_window=told.append)
    assert sum(told) == len(texts)
    assert len(told) > 5
    steps: list[progress.Step] = []
    with progress.watch(steps.append):
        embedreg.embed_column(create(tiny("mean")), texts)
    assert sum(step.rows for step in steps) == len(set(TEXTS))


def test_a_query_comes_from_memory_the_second_time(tiny: Callable[[str], Path]) -> None:
    """An equal configuration's equal query is not computed again; another prompt, width or text is."""
    function = create(tiny("cls-dense"))
    first = function.compute_query_embeddings("json?")
    calls: list[Any] = []
    model = function._loaded()
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    again = create(tiny("cls-dense"), batch_size=3).compute_query_embeddings("json?")
    np.testing.assert_array_equal(first, again)
    assert calls == []
    again[:] = 0
    np.testing.assert_array_equal(first, function.compute_query_embeddings("json?"))
    for config in ({"query_prompt": "x"}, {"truncate_dim": 4}, {"normalize": False}):
        other = create(tiny("cls-dense"), **config).compute_query_embeddings("json?")
        assert other.shape != first.shape or not np.allclose(other, first)
    assert len(calls) == 3
    handle.remove()


def test_queries_in_a_batch_are_the_librarys(tiny: Callable[[str], Path]) -> None:
    """With the prompt of queries, in as many forward passes as batches; the second time none is computed."""
    texts = [f"{text} {row}" for row, text in enumerate(TEXTS)]
    path = tiny("mean")
    expected = library(path).encode_query(texts, prompt="find: ", normalize_embeddings=True)
    function = create(path, query_prompt="find: ", batch_size=40)
    calls: list[int] = []
    handle = function._loaded().register_forward_hook(lambda *_: calls.append(1))
    made = embedreg.embed_column(function, texts, "query")
    assert len(calls) < 12  # of 120 texts; a batch has about 1,024 tokens
    np.testing.assert_allclose(made.matrix, expected, atol=2e-6)
    calls.clear()
    np.testing.assert_array_equal(function.compute_embeddings(texts[::-1], "query")[::-1], made.matrix)
    np.testing.assert_array_equal(function.compute_query_embeddings(texts[3])[0], made.matrix[3])
    assert calls == []
    handle.remove()
    sources = library(path).encode_document(texts, normalize_embeddings=True)
    np.testing.assert_allclose(function.compute_embeddings(texts), sources, atol=2e-6)


@pytest.mark.parametrize("kind", ["causal", "two-pools"])
def test_queries_of_every_model_in_a_batch_are_as_alone(tiny: Callable[[str], Path], kind: str) -> None:
    """Whether the runtime runs it or the library."""
    function = create(tiny(kind), query_prompt="find: ")
    alone = np.concatenate([function.compute_query_embeddings(text) for text in TEXTS[:6]])
    queries.recent.clear()
    np.testing.assert_allclose(function.compute_embeddings(TEXTS[:6], "query"), alone, atol=2e-6)


def test_a_query_that_is_too_long_fails_alone(tiny: Callable[[str], Path]) -> None:
    """Under truncate="error" in a batch of queries too, and it is not kept."""
    function = create(tiny("mean"), truncate="error")
    for _ in range(2):
        made = embedreg.embed_column(function, ["json?", "word " * 100, "a list"], "query")
        assert made.valid.tolist() == [True, False, True]
        assert "longer than" in made.reasons[1]


def test_overrides_are_honoured_in_the_role_of_the_call(tiny: Callable[[str], Path]) -> None:
    """Each of LanceDB's methods, overridden in a subclass: the parent's batches go through it, prompts included."""

    class Lower(SentenceTransformerEmbeddings):
        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return super().generate_embeddings([text.replace("X", "x") for text in texts])

    class Asked(SentenceTransformerEmbeddings):
        def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
            return super().compute_query_embeddings(query.replace("X", "x"))

    class Stored(SentenceTransformerEmbeddings):
        def compute_source_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_source_embeddings([text.replace("X", "x") for text in self.sanitize_input(texts)])

    config = {"name": str(tiny("mean")), "device": "cpu", "query_prompt": "find: ", "document_prompt": "text: "}
    plain = SentenceTransformerEmbeddings.create(**config)
    wanted: dict[Any, Any] = {role: plain.compute_embeddings(["x one", "x two"], role) for role in ("source", "query")}
    assert not np.allclose(wanted["source"], wanted["query"], atol=1e-3)
    for cls, roles in ((Lower, ("source", "query")), (Asked, ("query",)), (Stored, ("source",))):
        function = cls.create(**config)
        for role in roles:
            given: dict[str, Any] = {"inputs": ["X one", "X two"], "role": role}
            np.testing.assert_allclose(function.compute_embeddings(**given), wanted[role], atol=2e-6)
            made = embedreg.embed_column(function, given["inputs"], role)  # type: ignore[arg-type]
            np.testing.assert_allclose(made.matrix, wanted[role], atol=2e-6)
        if "query" in roles:
            np.testing.assert_allclose(function.compute_query_embeddings("X one"), wanted["query"][:1], atol=2e-6)
            np.testing.assert_allclose(embedreg.embed_query(function, "X one"), wanted["query"][0], atol=2e-6)


def test_an_async_query_is_the_same_query(tiny: Callable[[str], Path]) -> None:
    """Awaited together, queries give the vectors that they give one after the other."""
    function = create(tiny("causal"))

    async def main() -> list[Any]:
        return list(await asyncio.gather(*(function.acompute_query_embeddings(text) for text in TEXTS[:6])))

    found = asyncio.run(main())
    queries.recent.clear()
    for text, vector in zip(TEXTS[:6], found, strict=True):
        np.testing.assert_allclose(vector, function.compute_query_embeddings(text), atol=2e-6)


def test_a_query_takes_no_worker(tiny: Callable[[str], Path]) -> None:
    """One text, query or source, is embedded in one thread beside the caller's, which may fork afterwards."""
    function = create(tiny("mean"))
    function.generate_embeddings(["load"])
    names: set[str] = set()
    handle = function._loaded().register_forward_hook(lambda *_: names.add(threading.current_thread().name))
    function.compute_query_embeddings("json?")
    function.generate_embeddings(["json?"])
    handle.remove()
    assert names == {"embedreg-alone"}


def test_a_failure_in_the_model_is_a_failed_call(tiny: Callable[[str], Path]) -> None:
    """What a module raises comes out as CallError, with its cause, from a worker thread too."""
    function = create(tiny("mean"))
    function.generate_embeddings(["load"])

    def fail(*_: Any) -> None:
        raise RuntimeError("the module broke")

    handle = function._loaded().register_forward_hook(fail)
    with pytest.raises(errors.CallError, match=r"120 row\(s\): RuntimeError: the module broke") as caught:
        function.generate_embeddings(TEXTS)
    assert isinstance(caught.value.__cause__, RuntimeError)
    handle.remove()


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Have `cuda:0,1` stand for two devices that any machine has: with a number, the CPU is one like others."""
    devices = ("cpu", "cpu:0")
    real = device.resolve_all
    monkeypatch.setattr(device, "resolve_all", lambda name: devices if name == "cuda:0,1" else real(name))
    return devices


def copies(part: int = -1) -> list[Any]:
    """Return one part of the keys of what is loaded, the device unless requested otherwise, sorted."""
    keys: list[Any] = cache.models.keys()
    return sorted(key[part] for key in keys)


@pytest.mark.parametrize("kind", MODELS)
def test_several_devices_give_the_same_vectors(
    tiny: Callable[[str], Path], kind: str, two_devices: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column is dealt out to a copy of the model on each device, and every row has the vector that one gives it."""
    monkeypatch.setattr("embedreg.runtime.local.text.ROWS_A_DEVICE", 20)
    monkeypatch.setattr("embedreg.runtime.text.devices.LEAST", 1)
    monkeypatch.setattr("embedreg.runtime.text.devices.DeviceWorkers.least", 1)
    expected = create(tiny(kind)).generate_embeddings(TEXTS)
    embedreg.release()
    function = create(tiny(kind), device="cuda:0,1")
    query = function.compute_query_embeddings("json?")
    assert copies() == ["cpu"]  # a query needs no second copy
    rows: list[tuple[str, int]] = []
    for on in two_devices:
        function._loaded(on)[0].register_forward_hook(
            lambda _module, args, _output, on=on: rows.append((on, len(args[0]["input_ids"])))
        )
    made = function.generate_embeddings(TEXTS)
    np.testing.assert_allclose(made, expected, atol=2e-6)
    np.testing.assert_allclose(query, create(tiny(kind)).compute_query_embeddings("json?"), atol=2e-6)
    assert sum(count for _, count in rows) == len(TEXTS)
    assert {on for on, _ in rows} == set(two_devices)
    assert copies() == ["cpu", "cpu:0"]
    assert embedreg.release(create(tiny(kind))) == 2


def test_copies_of_one_model_count_as_one(tiny: Callable[[str], Path], two_devices: tuple[str, str]) -> None:
    """A bound of one model holds its copies on all devices, and lets all of them go for the next model."""
    cache.configure(max_models=1)
    try:
        for kind in ("mean", "causal"):
            function = create(tiny(kind), device="cuda:0,1")
            for on in two_devices:
                function._loaded(on)
            assert copies(1) == [str(tiny(kind))] * 2
    finally:
        cache.configure()


def test_a_small_memory_is_lived_with(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A device without room for the first batch gets halves after one warning, and the vectors are the same."""
    monkeypatch.setattr(device, "resolve_all", lambda name: ("cpu:0",))
    expected = create(tiny("mean")).generate_embeddings(TEXTS)
    embedreg.release()
    function = create(tiny("mean"), device="cuda")
    model = function._loaded()
    first, forward = model[0], model[0].forward
    failed: list[int] = []

    def short_of_memory(features: dict[str, Any], **options: Any) -> Any:
        if features["input_ids"].shape[0] > 60:
            failed.append(features["input_ids"].shape[0])
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(features, **options)

    monkeypatch.setattr(first, "forward", short_of_memory)
    with caplog.at_level(logging.WARNING, "embedreg"):
        made = function.generate_embeddings(TEXTS)
        again = function.generate_embeddings(TEXTS)
    np.testing.assert_allclose(made, expected, atol=2e-6)
    np.testing.assert_allclose(again, expected, atol=2e-6)
    assert failed == [len(TEXTS)]
    assert [record.message for record in caplog.records] == [
        "cpu:0 is out of memory for a batch; continuing with half of it"
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", MODELS)
def test_a_gpu_gives_the_same_vectors(tiny: Callable[[str], Path], kind: str) -> None:
    """On a CUDA device, queued batches give the vectors of the CPU to 1e-4."""
    expected = create(tiny(kind)).generate_embeddings(TEXTS)
    for name in ("cuda", "auto"):
        np.testing.assert_allclose(create(tiny(kind), device=name).generate_embeddings(TEXTS), expected, atol=1e-4)
