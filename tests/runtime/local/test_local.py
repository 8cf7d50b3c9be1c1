"""A local function defines how to load, tokenize and run a batch; everything else comes with the base."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import embedreg
from embedreg import errors, register
from embedreg.core import vouched
from embedreg.declaration import codec
from embedreg.runtime import cache
from embedreg.runtime.hardware import device, precision
from embedreg.runtime.progress import Step, watch, watch_stages
from embedreg.runtime.vectors import queries
from tests.local_functions import LIMIT, LetterMeans, letters_class

TEXTS = [("wait for a thread to finish; json? " * 2)[: 3 + (row * 11) % 50] for row in range(300)]
needs_bfloat16 = pytest.mark.skipif(
    not precision._has("bfloat16", "cpu"), reason="this processor has no arithmetic in bfloat16"
)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Begin and end without a model, a query or a count."""

    def forget() -> None:
        embedreg.release()
        queries.recent.clear()
        for counts in (LetterMeans.loads, LetterMeans.batches, LetterMeans.threads):
            counts.clear()  # type: ignore[attr-defined]

    forget()
    yield
    forget()


def create(**config: Any) -> LetterMeans:
    """Create the function on the CPU."""
    return LetterMeans.create(**{"device": "cpu", **config})


def by_hand(texts: list[str], prompt: str = "", dim: int = 24) -> np.ndarray:
    """Embed texts one at a time, with nothing but the module."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = letters_class()(dim).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([list((prompt + text).encode())[:LIMIT]])
            rows.append(model(ids, torch.ones_like(ids))[0].numpy())
    return np.stack(rows)


def test_each_text_has_its_vector_in_either_role() -> None:
    """Sources and queries, many, one or none: the module's own vectors, prompts in the right role."""
    function = create(query_prompt="q: ", num_threads=2)
    np.testing.assert_allclose(function.generate_embeddings(TEXTS), by_hand(TEXTS), atol=1e-6)
    np.testing.assert_allclose(function.compute_embeddings(TEXTS, "query"), by_hand(TEXTS, "q: "), atol=1e-6)
    np.testing.assert_allclose(function.compute_query_embeddings("json?"), by_hand(["json?"], "q: "), atol=1e-6)
    assert function.generate_embeddings([]).shape == (0, 24)
    with pytest.raises(errors.InputError, match="row 1 is int, not text"):
        function.generate_embeddings(["a", 1])


def test_batches_are_planned_over_padded_tokens() -> None:
    """Rows of one length share a batch, batches are few and full, and they run in the runtime's workers."""
    create(num_threads=2).generate_embeddings(TEXTS)
    assert sum(rows for rows, _ in LetterMeans.batches) == len(TEXTS)
    padded = sum(rows * longest for rows, longest in LetterMeans.batches)
    assert padded < 1.15 * sum(len(text) for text in TEXTS)
    assert len(LetterMeans.batches) < len(TEXTS) / 8
    assert LetterMeans.threads == {"embedreg"}
    LetterMeans.batches.clear()
    create(batch_size=3).generate_embeddings(TEXTS)
    assert max(rows for rows, _ in LetterMeans.batches) == 3


def test_equal_functions_share_one_copy_of_the_weights() -> None:
    """Under threads the model is loaded once for all equal functions; `ndims` loads none; a release frees it."""
    functions = [create(batch_size=size) for size in (1, 2, 5, 9)]
    assert [function.ndims() for function in functions] == [24] * 4
    assert LetterMeans.loads == []
    threads = [threading.Thread(target=function.generate_embeddings, args=(TEXTS,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert LetterMeans.loads == ["cpu"]
    pickle.loads(pickle.dumps(functions[0])).generate_embeddings(["a"])
    assert LetterMeans.loads == ["cpu"]
    create(seed=1).generate_embeddings(["a"])
    assert LetterMeans.loads == ["cpu", "cpu"]
    assert embedreg.release(create()) == 1
    assert len(cache.models.keys()) == 1


@register("sharing-letters")
class SharingLetters(LetterMeans):
    """Says that the prompt does not change the weights."""

    def weights_key(self) -> tuple[Any, ...]:
        return "sharing-letters", self.dim, self.seed, self.precision


def test_a_key_of_its_own_shares_the_weights_among_more() -> None:
    """Functions that differ in their prompt share the copy, and not each other's vectors of queries."""
    plain, prompted = (SharingLetters.create(device="cpu", query_prompt=prompt) for prompt in ("", "q: "))
    for _ in range(2):
        np.testing.assert_allclose(plain.compute_query_embeddings("json?"), by_hand(["json?"]), atol=1e-6)
        np.testing.assert_allclose(prompted.compute_query_embeddings("json?"), by_hand(["json?"], "q: "), atol=1e-6)
    assert LetterMeans.loads == ["cpu"]
    assert len(LetterMeans.batches) == 2  # each query was computed once


def test_several_devices_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column is dealt out to a copy on each device; a query needs one; all copies go with one release."""
    real = device.resolve_all
    monkeypatch.setattr(device, "resolve_all", lambda name: ("cpu", "cpu:0") if name == "cuda:0,1" else real(name))
    monkeypatch.setattr("embedreg.runtime.local.text.ROWS_A_DEVICE", 20)
    monkeypatch.setattr("embedreg.runtime.text.devices.DeviceWorkers.least", 1)
    function = create(device="cuda:0,1")
    function.compute_query_embeddings("json?")
    assert LetterMeans.loads == ["cpu"]
    np.testing.assert_allclose(function.generate_embeddings(TEXTS), by_hand(TEXTS), atol=1e-6)
    assert LetterMeans.loads == ["cpu", "cpu:0"]
    assert {"embedreg-cpu", "embedreg-cpu:0"} <= LetterMeans.threads
    assert embedreg.release(function) == 2


@register("hungry-letters")
class HungryLetters(LetterMeans):
    """Runs out of memory at batches of more padded tokens than this."""

    most: ClassVar[int] = 5000

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        if batch["input_ids"].numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(model, batch)


def test_memory_that_runs_out_halves_the_batches(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a device the batch is halved once with a warning, and later calls of this model begin with what fitted."""
    monkeypatch.setattr(device, "resolve_all", lambda name: ("cpu:0",))
    function = HungryLetters.create(device="cuda")
    with caplog.at_level(logging.WARNING, "embedreg"):
        for _ in range(2):
            np.testing.assert_allclose(function.generate_embeddings(TEXTS), by_hand(TEXTS), atol=1e-6)
    assert [record.message for record in caplog.records] == [
        "cpu:0 is out of memory for a batch; continuing with half of it"
    ]


@needs_bfloat16
def test_a_precision_converts_the_module() -> None:
    """In bfloat16 the products are narrow, the vectors are float32 and near, and the declaration reports it."""
    function = create(precision="bfloat16")
    made = function.generate_embeddings(TEXTS)
    assert made.dtype == np.float32
    assert 0 < np.abs(made - by_hand(TEXTS)).max() < 0.02
    model = function._loaded()
    assert {model.mix.weight.dtype, model.letters.weight.dtype} == {torch.bfloat16, torch.float32}
    assert codec.persisted_model(function)["precision"] == "bfloat16"


@pytest.mark.parametrize("policy", ["warn", "silent", "error"])
def test_what_is_too_long_is_cut_under_the_policy(policy: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Rows of more tokens than `max_tokens` are embedded by their beginning, counted, or fail as rows."""
    texts = ["short", "x" * (LIMIT + 1), "y" * LIMIT]
    with caplog.at_level(logging.WARNING, "embedreg"):
        made = create(truncate=policy).generate_embeddings(texts)
    if policy == "error":
        assert isinstance(made[1], embedreg.RowError)
        assert f"longer than the {LIMIT} tokens" in str(made[1])
        np.testing.assert_allclose(np.stack([made[0], made[2]]), by_hand([texts[0], texts[2]]), atol=1e-6)
        (query,) = create(truncate=policy).compute_query_embeddings(texts[1])
        assert isinstance(query, embedreg.RowError)
    else:
        np.testing.assert_allclose(made, by_hand(texts), atol=1e-6)
    assert [f"longer than the {LIMIT} tokens that letter-means takes" in each.message for each in caplog.records] == (
        [True] if policy == "warn" else []
    )
    assert "truncate" not in codec.persisted_model(create())


def test_progress_and_stages_are_reported() -> None:
    """One step for each batch, in all as many rows and tokens as there are; and the load as a stage, by name."""
    steps: list[Step] = []
    stages: list[tuple[str, bool]] = []
    with watch(steps.append), watch_stages(lambda stage: stages.append((stage.what, stage.over))):
        create().generate_embeddings(TEXTS)
    assert sum(step.rows for step in steps) == len(TEXTS)
    assert sum(step.tokens for step in steps) == sum(map(len, TEXTS))
    assert stages == [("loading letter-means", False), ("loading letter-means", True)]


@register("other-forms")
class OtherForms(LetterMeans):
    """Gives its tokens in the forms that `tokenize` may return."""

    form: str = "arrays"

    def tokenize(self, model: Any, texts: list[str], role: str) -> Any:
        rows = [list(text.encode()) for text in texts]
        ones = [[1] * len(row) for row in rows]
        if self.form == "arrays":
            return (np.array(row, np.int32) for row in rows)
        if self.form == "kinds":
            return {"input_ids": rows, "attention_mask": ones}
        if self.form == "few":
            return rows[1:]
        kinds = {"input_ids": rows, "attention_mask": ones}
        return embedreg.Tokens.from_rows(kinds, {"input_ids": 7, "attention_mask": 0}, left=True, extras={"twice": 2})

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        if self.form == "tokens":
            assert batch["twice"] == 2
            assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) <= {7}
            assert batch["attention_mask"][:, -1].all()  # padded on the left
        made = super().forward(model, batch)
        return {"list": made.tolist(), "one": made[0], "wide": made.repeat(1, 2)}.get(self.form, made)


@pytest.mark.parametrize("form", ["arrays", "kinds", "tokens", "list"])
def test_tokens_and_vectors_may_come_in_several_forms(form: str) -> None:
    """Rows of any kind, kinds of rows, and `Tokens` that pad otherwise; vectors as a tensor or as lists."""
    function = OtherForms.create(device="cpu", form=form)
    np.testing.assert_allclose(function.generate_embeddings(TEXTS), by_hand(TEXTS), atol=1e-6)
    np.testing.assert_allclose(function.compute_query_embeddings("json?"), by_hand(["json?"]), atol=1e-6)


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ("few", r"tokenize\(\) returned \d+ row\(s\) for"),
        ("one", r"forward\(\) returned \(24,\)"),
        ("wide", "expected"),
    ],
)
@pytest.mark.parametrize("on", ["cpu", "cpu:0"])
def test_what_does_not_fit_the_batch_is_an_error(
    form: str, problem: str, on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few rows, one vector for all, another width: never a vector in the wrong place."""
    monkeypatch.setattr(device, "resolve_all", lambda name: (on,))
    with pytest.raises(errors.VectorError, match=problem):
        OtherForms.create(device="cuda", form=form).generate_embeddings(TEXTS)


@register("leaking-letters")
class LeakingLetters(LetterMeans):
    """Puts its secret into an error."""

    api_key: str | None = None

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        raise RuntimeError(f"refused: {self.api_key}")


def test_a_failure_is_a_failed_call_without_secrets() -> None:
    """What the model raises in a worker comes out as CallError; a secret in it does not."""
    with embedreg.get_registry().variables(letters_key="sk-local-4711-secret"):
        function = LeakingLetters.create(device="cpu", api_key="$var:letters_key")
        with pytest.raises(errors.CallError, match=r"RuntimeError: refused: \*\*\*") as caught:
            function.generate_embeddings(TEXTS)
        seen: BaseException | None = caught.value
        while seen is not None:
            assert "4711" not in str(seen)
            seen = seen.__cause__ or seen.__context__
        assert "4711" not in str(cache.models.keys())
    with pytest.raises(
        errors.CallError, match=r"'leaking-letters' failed on 300 row\(s\): RuntimeError: refused: None"
    ) as caught:
        LeakingLetters.create(device="cpu").generate_embeddings(TEXTS)
    assert caught.value.hint == "the traceback of the original error shows where"
    assert caught.value.shell_hint == "--debug shows where"


@register("full-letters")
class FullLetters(LetterMeans):
    """Its memory is never enough."""

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        raise MemoryError


def test_only_a_lack_of_memory_is_explained_by_it() -> None:
    """Its hint is the one about memory; that of a bug in `forward` is not."""
    with pytest.raises(errors.CallError) as caught:
        FullLetters.create(device="cpu").generate_embeddings(TEXTS)
    assert caught.value.hint == "a smaller batch_size; embedreg.release() frees other models"


def test_an_unknown_device_is_refused_at_once() -> None:
    """The error names the devices of this machine; a device that another machine may have is accepted."""
    with pytest.raises(errors.ConfigError, match=r"unknown device 'gpu'\.\nHint: .*this machine has .*cpu"):
        create(device="gpu")
    assert create(device="cuda:7").device == "cuda:7"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:lance is not fork-safe:UserWarning")  # where another test has loaded lance
def test_a_forked_child_embeds_too() -> None:
    """After the parent has embedded, its child has the weights and workers of its own."""
    function = create(num_threads=2)
    expected = function.generate_embeddings(TEXTS)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        same = np.array_equal(function.generate_embeddings(TEXTS), expected)
        os._exit(0 if same and LetterMeans.loads == ["cpu"] else 1)
    assert os.waitpid(child, 0)[1] == 0


@register("counted-letters")
class CountedLetters(embedreg.LocalFunction):
    """A model that is a table of numpy, not a torch module."""

    def ndims(self) -> int:
        return 26

    def load(self, device: str) -> Any:
        return np.eye(256, 26, -97, dtype=np.float32)

    def tokenize(self, model: Any, texts: list[str], role: str) -> Any:
        return {"ids": [list(text.encode()) for text in texts]}

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        return model[batch["ids"].numpy()].sum(axis=1)


def test_a_model_need_not_be_a_torch_module() -> None:
    """A table in numpy is planned, shared and measured too; nothing can convert its precision."""
    function = CountedLetters.create(device="cpu")
    made = function.generate_embeddings(TEXTS)
    expected = [[text.count(chr(letter)) for letter in range(97, 123)] for text in TEXTS]
    np.testing.assert_array_equal(made, np.array(expected, np.float32))
    assert embedreg.release(function) == 1
    if precision._has("bfloat16", "cpu"):
        with pytest.raises(errors.ConfigError, match=r"expected a torch\.nn\.Module, got"):
            CountedLetters.create(device="cpu", precision="bfloat16").generate_embeddings(["a"])


def test_an_unfinished_class_is_refused() -> None:
    """Without `forward` there is no instance; a name of embedreg's own cannot be taken by chance."""

    class Unfinished(embedreg.LocalFunction):
        def ndims(self) -> int:
            return 1

        def load(self, device: str) -> Any:
            return None

        def tokenize(self, model: Any, texts: list[str], role: str) -> Any:
            return []

    with pytest.raises(TypeError, match="forward"):
        Unfinished()  # type: ignore[abstract]
    with pytest.raises(errors.ConfigError, match="defines _load, a private method of embedreg's base class"):

        class Taking(LetterMeans):
            def _load(self, on: str) -> Any:
                return None


def test_a_stored_declaration_runs_where_its_device_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's device changes no vector: a reader takes its own; the user's own code gets an error."""
    schema = embedreg.embed_table({"t": ["json?"]}, create().bind("t", "v")).schema
    vouched.reset()
    function = embedreg.functions_in(schema)["v"].function
    assert function.from_metadata
    np.testing.assert_allclose(function.compute_query_embeddings("json?"), by_hand(["json?"]), atol=1e-6)
    with pytest.raises(errors.ConfigError, match="device"):
        create(device="gpu-of-another-machine").generate_embeddings(["a"])


def test_fields_stand_where_a_class_declares_them() -> None:
    """A listing of a shipped function begins with its model; what is inherited and not declared anew comes first."""
    assert list(embedreg.get("sentence-transformers").model_fields)[:4] == [
        "max_retries",
        "name",
        "device",
        "normalize",
    ]
    assert list(LetterMeans.model_fields)[-3:] == ["dim", "seed", "query_prompt"]
    shown: Callable[..., Any] = embedreg.get("open-clip").model_json_schema
    assert list(shown()["properties"])[1:4] == ["name", "pretrained", "device"]
