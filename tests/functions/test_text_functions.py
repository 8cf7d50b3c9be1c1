"""`huggingface`, `colbert`, `gte-text` and `instructor` against the libraries' own arithmetic, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg import EmbeddingFunction
from embedreg.declaration import codec
from embedreg.errors import ConfigError
from embedreg.testing import EmbeddingFunctionContract
from tests.functions.conftest import WIDTH

TEXTS = ["wait for a thread", "x", "Return the number of seconds since the epoch. " * 4, "json?"]
Tiny = Callable[[str], Path]


@pytest.fixture(autouse=True)
def no_model_left() -> Iterator[None]:
    """Leave no loaded model behind."""
    yield
    embedreg.release()


def create(kind: str, name: Any, **config: Any) -> Any:
    """Create a function on the CPU that cuts texts without saying so."""
    return embedreg.get(kind).create(name=str(name), **{"device": "cpu", "truncate": "silent", **config})


def stored(function: str, model: dict[str, Any], **columns: str) -> Any:
    """Rebuild a function from an entry of stock LanceDB's Python client, or with other names of columns."""
    columns = columns or {"source_column": "text", "vector_column": "vector"}
    entry = {"name": function, "model": model, **columns}
    return embedreg.get_registry().parse_functions({codec.KEY: json.dumps([entry])})["vector"].function


def by_transformers(folder: Path, texts: list[str]) -> np.ndarray:
    """Embed as LanceDB's function does: one text at a time, the mean over all positions."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        made = [model(**tokenizer(text, return_tensors="pt", truncation=True))[0].mean(dim=1)[0] for text in texts]
    return torch.stack(made).numpy()


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_huggingface_gives_the_mean_of_the_hidden_states(tiny: Tiny, backend: str) -> None:
    """In batches, cut at the model's limit, and the vectors are not scaled."""
    fn = create("huggingface", tiny("plain"), backend=backend)
    wanted = by_transformers(tiny("plain"), TEXTS)
    assert np.abs(fn.generate_embeddings(TEXTS) - wanted).max() < 1e-5
    assert np.abs(fn.compute_query_embeddings(TEXTS[0])[0] - wanted[0]).max() < 1e-5
    assert fn.ndims() == WIDTH
    assert fn.vector_traits() == {"dtype": "float32", "normalized": False, "metric": "cosine", "prompts": None}


def test_huggingface_takes_the_transformer_of_a_sentence_transformers_model(tiny: Tiny) -> None:
    """Its other modules, their pooling and their prompts are not used; `colbert` has the very same vectors."""
    folder = tiny("cls-dense")
    wanted = by_transformers(folder, TEXTS)
    for kind in ("huggingface", "colbert"):
        fn = create(kind, folder)
        assert np.abs(fn.generate_embeddings(TEXTS) - wanted).max() < 1e-5
        assert (fn.ndims(), fn.vector_traits()["prompts"]) == (WIDTH, None)
    shared = embedreg.get("sentence-transformers").create(name=str(folder), device="cpu")
    assert shared.generate_embeddings(TEXTS[:1]).shape == (1, 16)  # the weights in memory are not mixed up


def test_a_javascript_table_means_the_model_of_its_client(minilm_path: Path) -> None:
    """Without options that is MiniLM, in Python ColBERT; the conversion that it names has the original's weights."""
    columns = {"sourceColumn": "text", "vectorColumn": "vector"}
    theirs = stored("huggingface", {}, **columns)
    assert theirs.name == stored("huggingface", {"model": "Xenova/all-MiniLM-L6-v2"}, **columns).name
    assert theirs.name == "Xenova/all-MiniLM-L6-v2"
    assert stored("huggingface", {}).name == "colbert-ir/colbertv2.0"
    assert theirs.ndims() == 384
    assert "counts padding as tokens" in theirs._remarks()[0]
    assert embedreg.get("huggingface").create(name=theirs.name)._remarks() == []
    wanted = by_transformers(minilm_path, TEXTS[:1])
    assert np.abs(theirs.compute_query_embeddings(TEXTS[0])[0] - wanted[0]).max() < 1e-5


def test_gte_is_sentence_transformers_with_a_default_and_mlx(tiny: Tiny) -> None:
    """A table of LanceDB's form for Apple holds gte-large's vectors, not scaled, whatever its `normalize`."""
    fn = create("gte-text", tiny("two-pools"))
    assert np.array_equal(
        fn.generate_embeddings(TEXTS), create("sentence-transformers", tiny("two-pools")).generate_embeddings(TEXTS)
    )
    assert fn.vector_traits()["normalized"] is True
    assert stored("gte-text", {}).name == "thenlper/gte-large"
    apple = stored("gte-text", {"mlx": True, "name": "gte-mlx"})
    assert (apple._model_id(), apple._unit()) == ("thenlper/gte-large", False)
    assert stored("gte-text", {"normalize": False})._unit() is False


def by_hand(folder: Path, instruction: str, text: str) -> np.ndarray:
    """Embed one text as INSTRUCTOR does: the mean of the tokens behind the instruction, a dense layer, unit length."""
    import torch
    from sentence_transformers import SentenceTransformer

    first, _, dense, _ = SentenceTransformer(str(folder), device="cpu")
    whole = first.tokenizer(instruction + text.strip(), return_tensors="pt")
    skipped = len(first.tokenizer(instruction)["input_ids"]) - 1  # all but the end token
    with torch.no_grad():
        hidden = first.auto_model(**whole)[0][0, skipped:]
        made = dense({"sentence_embedding": hidden.mean(dim=0)[None]})["sentence_embedding"][0]
        return torch.nn.functional.normalize(made, dim=0).numpy()


def test_instructor_leaves_the_instruction_out_of_the_mean(tiny: Tiny) -> None:
    """Sources and queries have an instruction each, texts lose the blanks around them, and batches change nothing."""
    folder = tiny("instructor")
    fn = create("instructor", folder)
    texts = [" wait for a thread\n", "x", "of a file, or None"]
    wanted = np.stack([by_hand(folder, fn.source_instruction, text) for text in texts])
    assert np.abs(fn.compute_source_embeddings(texts) - wanted).max() < 1e-5
    assert (
        np.abs(fn.compute_query_embeddings(texts[0])[0] - by_hand(folder, fn.query_instruction, texts[0])).max() < 1e-5
    )
    assert fn.vector_traits()["prompts"] == {"query": fn.query_instruction, "document": fn.source_instruction}
    other = create("instructor", folder, query_prompt="say: ")
    assert np.abs(other.compute_query_embeddings("x")[0] - by_hand(folder, "say: ", "x")).max() < 1e-5
    faster = create("instructor", folder, backend="openvino")
    assert np.abs(faster.compute_source_embeddings(texts) - wanted).max() < 1e-5


def test_instructor_has_lancedbs_fields(tiny: Tiny) -> None:
    """`normalize_embeddings` is `normalize`, stored under both names; `quantize` is int8, near but not equal."""
    folder = tiny("instructor")
    fn = create("instructor", folder, normalize_embeddings=False)
    entry = embedreg.get_registry().function_to_metadata(fn.bind("text", "vector"))
    assert (entry["name"], entry["model"]["normalize"], entry["model"]["normalize_embeddings"]) == (
        "instructor",
        False,
        False,
    )
    assert stored("instructor", {"normalize_embeddings": False}).normalize_embeddings is False
    exact, int8 = (create("instructor", folder, quantize=each).generate_embeddings(TEXTS) for each in (False, True))
    assert 1e-5 < np.abs(exact - int8).max() < 0.1
    with pytest.raises(ConfigError, match="float32 only"):
        create("instructor", folder, quantize=True, backend="openvino")


@pytest.mark.parametrize("kind", ["huggingface", "colbert", "gte-text", "instructor"])
def test_prompts_are_stored_under_a_name_that_stock_lancedb_refuses(tiny: Tiny, kind: str) -> None:
    """It would ignore them, and write other vectors; what it has itself is stored under its own name."""
    name = tiny("instructor") if kind == "instructor" else tiny("mean")
    declared = [create(kind, name), create(kind, name, document_prompt="passage: ")]
    entries = [embedreg.get_registry().function_to_metadata(fn.bind("text", "vector")) for fn in declared]
    assert [entry["name"] for entry in entries] == [kind, f"embedreg:{kind}"]
    assert next(iter(entries[0]["model"])) == "name"


class OnTheRuntime(EmbeddingFunctionContract):
    """The contract, for functions that differ from `sentence-transformers` in a few lines."""

    def test_another_process_gives_the_same_vectors(self) -> None:
        """Nothing of them depends on the process: their parent's contract starts one."""
        pytest.skip("TestSentenceTransformers starts the process, which takes seconds to import torch")

    def test_metadata_rebuilds_the_function(self) -> None:
        """What they store is compared above, and read by other processes in the tests of LanceDB tables."""
        pytest.skip("TestSentenceTransformers starts the process, which takes seconds to import torch")


class TestTransformers(OnTheRuntime):
    """`huggingface` on a tiny BERT."""

    @pytest.fixture
    def function(self, tiny: Tiny) -> EmbeddingFunction:
        return create("huggingface", tiny("plain"))  # type: ignore[no-any-return]


class TestInstructor(OnTheRuntime):
    """`instructor` on a tiny T5."""

    @pytest.fixture
    def function(self, tiny: Tiny) -> EmbeddingFunction:
        return create("instructor", tiny("instructor"))  # type: ignore[no-any-return]
