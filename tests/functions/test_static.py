"""The `static` function: models as model2vec and sentence-transformers save them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg import EmbeddingFunction
from embedreg.errors import ConfigError
from embedreg.runtime.text.light.static import means
from embedreg.testing import EmbeddingFunctionContract

WORDS = ["[PAD]", "[UNK]", "a", "the", "cat", "sleeps", "on", "mat", "red", "blue", "circle", "thread", "wait"]
TEXTS = ["the cat sleeps", "nobody on the mat", "a", "wait , a red circle"]


def save(folder: Path, **config: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """Save a model as model2vec 0.10 does: a table, with `mapping` and `weights` for a quantized vocabulary."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    chance = np.random.default_rng(5)
    tensors = {"embeddings": chance.standard_normal((len(WORDS), 24)).astype(np.float32)}
    if config.pop("quantized", False):
        tensors["embeddings"] = tensors["embeddings"][:5].copy()
        tensors |= {"mapping": chance.integers(0, 5, len(WORDS)), "weights": chance.random(len(WORDS))}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", **config}))
    listed = [{"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"}]
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder, tensors


def by_hand(tensors: dict[str, np.ndarray], text: str) -> np.ndarray:
    """Return the mean of the vectors of the known words."""
    ids = np.array([WORDS.index(word) for word in text.split() if word in WORDS])
    if "mapping" not in tensors:
        return tensors["embeddings"][ids].mean(axis=0)
    return (tensors["embeddings"][tensors["mapping"][ids]] * tensors["weights"][ids, None]).mean(axis=0)


@pytest.mark.parametrize("config", [{}, {"normalize": True}, {"quantized": True}], ids=str)
def test_a_vector_is_the_mean_of_the_known_tokens(tmp_path: Path, config: dict[str, Any]) -> None:
    """As model2vec has it, with unit length where the model's configuration wants it or the caller does."""
    folder, tensors = save(tmp_path / "model", **config)
    fn = embedreg.get("static").create(name=str(folder))
    wanted = np.stack([by_hand(tensors, text) for text in TEXTS])
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    assert fn.vector_traits()["normalized"] is config.get("normalize", False)
    assert np.abs(fn.generate_embeddings(TEXTS) - (unit if config.get("normalize") else wanted)).max() < 1e-6
    scaled = embedreg.get("static").create(name=str(folder), normalize=True, truncate_dim=7)
    cut = wanted[:, :7] / np.linalg.norm(wanted[:, :7], axis=1, keepdims=True)
    assert np.abs(scaled.generate_embeddings(TEXTS) - cut).max() < 1e-6
    assert (fn.ndims(), scaled.ndims()) == (24, 7)


def test_a_text_without_a_known_token_is_null(tmp_path: Path) -> None:
    """Its vector would be zeros, which have no direction; it is not a bad row."""
    fn = embedreg.get("static").create(name=str(save(tmp_path / "model")[0]))
    table = embedreg.embed_table({"text": ["the cat", "nobody", "sleeps"]}, fn.bind("text", "vector"))
    assert [vector is None for vector in table["vector"].to_pylist()] == [False, True, False]


def test_means_are_of_each_text_of_any_length() -> None:
    """Texts of equal and of other lengths, without tokens, of more tokens than are gathered at a time, and no text."""
    table, counts = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32), np.array([2, 0, 3, 5000, 2, 1])
    ids = np.random.default_rng(1).integers(0, 9, counts.sum())
    found = means(ids, counts, table.__getitem__, 4)
    parts = np.split(ids, np.cumsum(counts)[:-1])
    wanted = [table[part].mean(axis=0) if len(part) else np.zeros(4) for part in parts]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert means(ids[:0], counts[:0], table.__getitem__, 4).shape == (0, 4)


def test_a_text_is_cut_where_model2vec_cuts_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At `max_length` tokens of the model's configuration, or as a bad row."""
    folder, tensors = save(tmp_path / "model", max_length=3)
    with caplog.at_level(logging.WARNING, "embedreg"):
        made = embedreg.get("static").create(name=str(folder)).generate_embeddings(["a a on a", "a"])
    assert np.abs(made[0] - by_hand(tensors, "a a on")).max() < 1e-6
    assert "1 of 2 text(s) are longer than the 3 tokens" in caplog.text
    strict = embedreg.get("static").create(name=str(folder), truncate="error")
    assert embedreg.embed_column(strict, ["a a on a", "a"]).valid.tolist() == [False, True]
    assert (strict.count_tokens("a a on a"), strict.max_tokens()) == (4, 3)


def test_a_model_of_sentence_transformers_has_its_vectors(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown tokens count, nothing is cut, and a text of more tokens than are gathered at once is summed in parts."""
    from sentence_transformers import SentenceTransformer

    texts = ["wait for a thread", "北", "x " * 300, "json?"]
    wanted = SentenceTransformer(str(tiny("static")), device="cpu").encode(texts)
    fn = embedreg.get("static").create(name=str(tiny("static")))
    assert np.abs(fn.generate_embeddings(texts) - wanted).max() < 1e-5
    monkeypatch.setattr("embedreg.runtime.text.light.static._TOKENS", 7)
    assert np.abs(fn.generate_embeddings(texts) - wanted).max() < 1e-5
    with pytest.raises(ConfigError, match="not a static model: it has the modules Transformer, Pooling"):
        embedreg.get("static").create(name=str(tiny("mean"))).ndims()


def test_it_needs_no_torch(tmp_path: Path, run_python: Callable[..., str]) -> None:
    """A process that declares, embeds and searches by text has imported neither torch nor a library of models."""
    folder, _ = save(tmp_path / "model")
    code = """
import sys, embedreg
fn = embedreg.get("static").create(name=sys.argv[1], query_prompt="red ")
table = embedreg.embed_table({"text": ["the cat", "a mat"]}, fn.bind("text", "vector"))
assert embedreg.embed_query(embedreg.functions_in(table)["vector"].function, "cat").shape == (24,)
print({"torch", "transformers", "sentence_transformers", "model2vec"} & set(sys.modules))
"""
    assert run_python(code, folder).strip() == "set()"


def test_a_damaged_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Tokens without a vector, a mapping that points outside the table, an invalid file."""
    from safetensors.numpy import save_file

    folder, tensors = save(tmp_path / "model")
    fn = embedreg.get("static").create(name=str(folder))
    wrong = {"mapping": np.full(len(WORDS), 99), "embeddings": tensors["embeddings"]}
    for damaged in ({"embeddings": tensors["embeddings"][:3]}, wrong):
        save_file(damaged, folder / "model.safetensors")
        with pytest.raises(ConfigError, match="do not match"):
            fn.generate_embeddings(["a"])
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(embedreg.errors.EmbedregError, match="model"):
        fn.generate_embeddings(["a"])


class TestStatic(EmbeddingFunctionContract):
    """`static`, on a tiny table of letters."""

    @pytest.fixture
    def function(self, tiny: Callable[[str], Path]) -> EmbeddingFunction:
        return embedreg.get("static").create(name=str(tiny("static")), normalize=True)
