"""What `open-clip` does with texts that are longer than its model takes: the policy of the other functions of text."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg import errors
from embedreg.declaration import codec
from embedreg.declaration.fingerprint import fingerprint
from embedreg.functions.open_clip import OpenClipEmbeddings
from embedreg.runtime.vectors import queries
from tests.tiny_clip import CAPTIONS, pictures, png

WHOLE, LONG = "a " * 14, "a " * 15  # with their two marks 16 tokens, which is what the model reads, and 17


@pytest.fixture(autouse=True)
def no_model_left() -> Iterator[None]:
    """Leave no loaded model behind."""
    yield
    embedreg.release()
    queries.recent.clear()


def create(folder: Path, **config: Any) -> OpenClipEmbeddings:
    """Create the function on the CPU, for a column of texts."""
    return OpenClipEmbeddings.create(
        name=f"local-dir:{folder}", **{"device": "cpu", "source_type": "text", "batch_size": 7, **config}
    )


def test_truncation_follows_its_policy(tiny_clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line in the log that counts them, or none, or failed rows; the vector is that of the text's beginning."""
    texts = [*CAPTIONS, LONG, WHOLE, "a red circle " * 9, "x"]
    long = [len(CAPTIONS), len(CAPTIONS) + 2]
    loud, silent, strict = create(tiny_clip), *(create(tiny_clip, truncate=policy) for policy in ("silent", "error"))
    with caplog.at_level(logging.WARNING, "embedreg"):
        vectors = loud.compute_source_embeddings(texts)
    (record,) = caplog.records
    assert "2 of 34 text(s) are longer than the 16 tokens" in record.message
    caplog.clear()
    np.testing.assert_allclose(silent.compute_source_embeddings(texts), vectors, atol=2e-6)
    np.testing.assert_allclose(vectors[long[0]], vectors[long[0] + 1], atol=2e-6)
    rows = strict.compute_source_embeddings(texts)
    assert [row for row, made in enumerate(rows) if isinstance(made, errors.RowError)] == long
    for row in set(range(len(texts))) - set(long):
        np.testing.assert_allclose(rows[row], vectors[row], atol=2e-6)
    embedded = embedreg.embed_column(strict, texts)
    assert np.flatnonzero(~embedded.valid).tolist() == long
    assert "longer than the 16 tokens" in embedded.reasons[long[1]]
    with pytest.raises(errors.BadRowsError, match="16 tokens"):
        embedreg.embed_table({"text": texts}, strict.bind("text", "vector"))
    table = embedreg.embed_table({"text": texts}, strict.bind("text", "vector"), on_error="null")
    assert table["vector"].null_count == len(long)
    assert strict.compute_source_embeddings([WHOLE, ""]).shape == (2, 48)
    assert caplog.records == []


def test_a_query_follows_the_policy_too(tiny_clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each long query warns or fails, also after another policy has embedded it; pictures have no tokens."""
    loud, silent, strict = create(tiny_clip), *(create(tiny_clip, truncate=policy) for policy in ("silent", "error"))
    vector = embedreg.embed_query(silent, LONG)
    assert caplog.records == []
    for _ in range(2):
        np.testing.assert_allclose(embedreg.embed_query(loud, LONG), vector, atol=2e-6)
    assert ["1 of 1 text(s) are longer" in record.message for record in caplog.records] == [True, True]
    caplog.clear()
    with pytest.raises(errors.BadRowsError, match="longer than the 16 tokens"):
        embedreg.embed_query(strict, LONG)
    with pytest.raises(errors.RowError, match="longer than the 16 tokens"):
        strict.generate_text_embeddings(LONG)
    assert strict.generate_text_embeddings(WHOLE).shape == embedreg.embed_query(strict, WHOLE).shape == (48,)
    picture = png(pictures(1, seed=5)[1][0])
    assert embedreg.embed_query(strict, picture).shape == (48,)
    assert create(tiny_clip, truncate="error", source_type="image").compute_source_embeddings([picture]).shape == (
        1,
        48,
    )
    assert caplog.records == []


@pytest.mark.parametrize("source_type", ["image", "text"])
def test_the_policy_is_no_part_of_the_declaration(tiny_clip: Path, source_type: str) -> None:
    """It changes no vector that is given out: neither the stored form, nor its name, nor the fingerprint has it."""
    functions = [create(tiny_clip, source_type=source_type, truncate=policy) for policy in ("warn", "error", "silent")]
    forms = {codec.encode([function.bind("x", "vector")]) for function in functions}
    assert len(forms) == 1
    (entry,) = codec.entries({codec.KEY: forms.pop()})
    assert entry.name == ("open-clip" if source_type == "image" else "embedreg:open-clip")
    assert "truncate" not in entry.model
    assert len({fingerprint(function) for function in functions}) == 1
    assert "truncate" in embedreg.core.base.runtime_fields(OpenClipEmbeddings)
    with pytest.raises(errors.ConfigError, match="truncate"):
        create(tiny_clip, truncate="cut")


@pytest.mark.parametrize("padded_with", ["<pad>", "</s>"])
@pytest.mark.parametrize("mode", [None, "clips"])
def test_tokens_of_another_tokenizer_are_counted(
    tiny_clip: Path, tmp_path: Path, mode: str | None, padded_with: str
) -> None:
    """A Hugging Face tokenizer, whose pads may be its end marks: exactly the texts that lose a word are cut."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = Path(shutil.copytree(tiny_clip, tmp_path / "model"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "me/words", "tokenizer_mode": mode}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    marks = ["<s>", "</s>", "<pad>", "<unk>", "[CLS]"]
    words = Tokenizer(models.WordLevel({word: row for row, word in enumerate([*marks, "a"])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="[CLS]",
        unk_token="<unk>",
        pad_token=padded_with,
    ).save_pretrained(folder)
    most = 15 if mode is None else 13  # words, beside one mark or three
    rows = create(folder, truncate="error").compute_source_embeddings(["a " * n for n in range(20)])
    cut = [row for row, made in enumerate(rows) if isinstance(made, errors.RowError)]
    assert cut == list(range(most + 1, 20))
