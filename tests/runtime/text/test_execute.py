"""From texts to vectors, with a back end whose vectors can be computed by hand."""

import logging
import threading
from typing import Any

import numpy as np
import pytest
import torch

from embedreg.runtime import progress
from embedreg.runtime.progress import Step
from embedreg.runtime.text import execute
from embedreg.runtime.text.backend import Backend
from embedreg.runtime.text.execute import embed_texts
from embedreg.runtime.text.tokens import Tokens

LIMIT = 20


class Letters:
    """A row's tokens are its letters' codes, at most LIMIT of them; its vector is their sum and their number."""

    def __init__(self, device: str = "cpu", memory: int | None = None) -> None:
        self.device = device
        self.memory = memory  # padded tokens
        self.batches: list[tuple[int, int]] = []
        self.threads: set[str] = set()

    def tokenize(self, texts: list[str]) -> Tokens:
        """One token a letter."""
        rows = [[ord(letter) for letter in text[:LIMIT]] for text in texts]
        truncated = np.array([len(text) > LIMIT for text in texts])
        return Tokens.from_rows({"input_ids": rows}, {"input_ids": 0}, extras={"factor": 2}, truncated=truncated)

    def forward(self, batch: dict[str, Any]) -> Any:
        """Add up; the padding is zeros."""
        ids = torch.as_tensor(batch["input_ids"])
        self.batches.append(tuple(ids.shape))
        self.threads.add(threading.current_thread().name.partition("_")[0])
        if self.memory is not None and ids.numel() > self.memory:
            raise torch.OutOfMemoryError("out of memory")
        vectors = torch.stack([ids.sum(dim=1), (ids != 0).sum(dim=1)], dim=1).float() * batch["factor"]
        return vectors.numpy() if self.device == "cpu" else vectors


def expected(texts: list[str]) -> np.ndarray:
    """Compute the same without any of the runtime."""
    rows = [[2.0 * sum(map(ord, text[:LIMIT])), 2.0 * len(text[:LIMIT])] for text in texts]
    return np.array(rows, np.float32).reshape(-1, 2)


def words(n: int) -> list[str]:
    """Make n texts of 1 to 30 letters, in no order of length."""
    return [chr(97 + row % 26) * (1 + (row * 7) % 30) for row in range(n)]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 100 rows, on devices 40 at first, tokenized 30 at a time."""
    monkeypatch.setattr(execute, "CHUNK", 100)
    monkeypatch.setattr(execute, "_FIRST", 40)
    monkeypatch.setattr(execute, "_TOKENIZED", 30)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("devices", [["cpu"], ["cpu:0"], ["cpu:0"] * 3])  # with a number, a device like any other
@pytest.mark.parametrize("n", [0, 1, 2, 39, 40, 41, 99, 100, 101, 450])
def test_vectors_come_back_in_the_order_of_the_texts(devices: list[str], n: int) -> None:
    """Over several chunks, on worker threads or queued on one or several devices, each text has its own vector."""
    backends: list[Backend] = [Letters(device) for device in devices]
    made = embed_texts(backends if len(backends) > 1 else backends[0], words(n), 2, threads=2)
    np.testing.assert_array_equal(made.vectors, expected(words(n)))
    assert made.vectors.dtype == np.float32
    assert made.truncated.tolist() == [len(text) > LIMIT for text in words(n)]


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 5}, {"budget": 1}, {"budget": 10**6}, {"max_rows": 3}])
def test_the_way_of_batching_changes_nothing(options: dict[str, int]) -> None:
    """Threads, budgets and bounds give the same vectors, and are kept to."""
    backend = Letters()
    made = embed_texts(backend, words(300), 2, **{"threads": 2, **options})
    np.testing.assert_array_equal(made.vectors, expected(words(300)))
    budget = options.get("budget", execute.CPU_BUDGET)
    assert all(rows == 1 or rows * longest <= budget for rows, longest in backend.batches)
    assert max(rows for rows, _ in backend.batches) <= options.get("max_rows", 300)


def test_a_few_words_are_embedded_in_one_thread() -> None:
    """What is too little to share takes no worker but one thread beside the caller, which may fork; more does."""
    backend = Letters()
    embed_texts(backend, ["one", "two"], 2)
    assert backend.threads == {"embedreg-alone"}
    embed_texts(backend, words(300), 2, threads=2)
    assert "embedreg" in backend.threads


def test_rows_that_must_be_whole_are_left_out_when_they_are_not() -> None:
    """Under `whole` a truncated row never reaches the model, and the others are as they were."""
    backend = Letters()
    made = embed_texts(backend, words(60), 2, whole=True, threads=2)
    cut = made.truncated
    assert cut.any()
    np.testing.assert_array_equal(made.vectors[~cut], expected(words(60))[~cut])
    assert not made.vectors[cut].any()
    assert sum(rows for rows, _ in backend.batches) == 60 - cut.sum()


def test_memory_that_runs_out_halves_the_batch_once_with_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that cannot hold a batch gets halves, from there on; where halves are too much, the error stays."""
    monkeypatch.setattr(execute, "CHUNK", 200)
    texts = ["a" * LIMIT] * 600
    backend = Letters("cpu:0", memory=1500)
    with caplog.at_level(logging.WARNING, "embedreg"):
        made = embed_texts(backend, texts, 2, budget=2000)
    np.testing.assert_array_equal(made.vectors, expected(texts))
    assert [record.message for record in caplog.records] == [
        "cpu:0 is out of memory for a batch; continuing with half of it"
    ]
    assert backend.batches[0] == (100, LIMIT)
    assert {rows for rows, _ in backend.batches[1:]} == {50}
    with pytest.raises(torch.OutOfMemoryError):
        embed_texts(Letters("cpu:0", memory=500), texts, 2, budget=2000)


def test_a_model_that_had_no_room_once_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """The next call for the same model begins with the batches that fitted, without another warning."""
    texts = ["a" * LIMIT] * 300
    backend = Letters("cpu:0", memory=1500)
    with caplog.at_level(logging.WARNING, "embedreg"):
        for _ in range(3):
            made = embed_texts(backend, texts, 2, budget=2000)
    np.testing.assert_array_equal(made.vectors, expected(texts))
    assert len(caplog.records) == 1
    assert sum(rows * longest > 1500 for rows, longest in backend.batches) == 1


@pytest.mark.usefixtures("small_chunks")
def test_devices_share_the_work_evenly() -> None:
    """Of equal batches each device gets its share, each in one thread of its own, and no batch is over the budget."""
    backends = [Letters("cpu:0") for _ in range(3)]
    steps: list[Step] = []
    with progress.watch(steps.append):
        made = embed_texts(backends, words(900), 2, budget=60)
    np.testing.assert_array_equal(made.vectors, expected(words(900)))
    loads = [sum(rows * longest for rows, longest in backend.batches) for backend in backends]
    assert max(loads) < 1.2 * min(loads)
    assert all(rows * longest <= 60 for backend in backends for rows, longest in backend.batches)
    assert {frozenset(backend.threads) for backend in backends} == {frozenset({"embedreg-cpu:0"})}
    assert sum(step.rows for step in steps) == 900
    assert {step.workers for step in steps if step.rows} == {3}


def test_a_small_call_stays_on_one_device() -> None:
    """What is too little to share is not cut for the sake of more devices."""
    backends = [Letters("cpu:0"), Letters("cpu:0")]
    made = embed_texts(backends, words(30), 2)
    np.testing.assert_array_equal(made.vectors, expected(words(30)))
    assert [len(backend.batches) for backend in backends] == [1, 0]


def test_an_error_on_one_device_ends_the_call() -> None:
    """What one device raises comes out as itself; the other devices' threads end with the call."""

    class Broken(Letters):
        def forward(self, batch: dict[str, Any]) -> Any:
            raise FloatingPointError("broken")

    with pytest.raises(FloatingPointError, match="broken"):
        embed_texts([Letters("cpu:0"), Broken("cpu:0")], words(600), 2, budget=100)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("embedreg-cpu:0")]


@pytest.mark.gpu
def test_cuda_devices_give_what_one_gives() -> None:
    """On every CUDA device of the machine, queued and waited for late, each text has its own vector."""
    backends = [Letters(f"cuda:{index}") for index in range(torch.cuda.device_count())]
    np.testing.assert_array_equal(embed_texts(backends, words(30_000), 2).vectors, expected(words(30_000)))


@pytest.mark.usefixtures("small_chunks")
def test_whoever_watches_hears_of_every_row() -> None:
    """Steps add up to the rows and tokens of the call, in the caller's thread, for nested watchers alike."""
    outer: list[Step] = []
    inner: list[tuple[Step, str]] = []
    with progress.watch(outer.append):
        with progress.watch(lambda step: inner.append((step, threading.current_thread().name))):
            embed_texts(Letters(), words(250), 2, threads=2, whole=True)
        embed_texts(Letters(), words(10), 2)
    embed_texts(Letters(), words(10), 2)
    assert sum(step.rows for step, _ in inner) == 250
    assert sum(step.rows for step in outer) == 260
    assert {name for _, name in inner} == {threading.current_thread().name}
    kept = [len(text) for text in words(250) if len(text) <= LIMIT]
    assert sum(step.tokens for step, _ in inner) == sum(kept)
    assert sum(step.padded for step, _ in inner) >= sum(kept)
    assert all(step.model_s >= 0 and step.tokenize_s >= 0 for step in outer)


def test_two_callers_at_once_get_their_own_vectors() -> None:
    """Threads that embed at the same time share the workers and nothing else."""
    found: dict[int, np.ndarray] = {}

    def work(n: int) -> None:
        found[n] = embed_texts(Letters(), words(n), 2, threads=2).vectors

    threads = [threading.Thread(target=work, args=(n,)) for n in (301, 302, 303)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, vectors in found.items():
        np.testing.assert_array_equal(vectors, expected(words(n)))
    assert len(found) == 3


def test_an_error_in_the_model_comes_out() -> None:
    """What the model raises in a worker is what the caller gets."""

    class Broken(Letters):
        def forward(self, batch: dict[str, Any]) -> Any:
            raise FloatingPointError("broken")

    with pytest.raises(FloatingPointError, match="broken"):
        embed_texts(Broken(), words(300), 2, threads=2)
