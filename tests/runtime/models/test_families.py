"""Models that were trained with prompts: the table, and the note about one that is used without."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import embedreg
from embedreg.declaration import codec
from embedreg.runtime.models import families

ROOT = Path(__file__).resolve().parents[3]
E5 = ("query: ", "passage: ")


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("intfloat/e5-small-v2", "query: "),
        ("/models/multilingual-e5-large", "query: "),
        ("BAAI/bge-small-en-v1.5", "Represent this sentence for searching relevant passages: "),
        ("nomic-embed-text:v1.5", "search_query: "),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "query: "),
        ("Snowflake/snowflake-arctic-embed-m", "Represent this sentence for searching relevant passages: "),
        ("Qwen/Qwen3-Embedding-0.6B", "Instruct: "),
        ("jinaai/jina-embeddings-v3", "Represent the query"),
        ("Alibaba-NLP/gte-Qwen2-7B-instruct", "Instruct: "),
    ],
)
def test_a_family_is_found_by_name(name: str, query: str) -> None:
    """With or without an owner, a folder or a tag."""
    family = families.find(name)
    assert family is not None
    assert family.query.startswith(query)


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "thenlper/gte-large", "BAAI/bge-m3", "my-e5-small-v2-tuned", ""])
def test_other_models_need_nothing(name: str) -> None:
    """A name that only resembles one is not known."""
    assert families.find(name) is None


def test_each_family_is_on_the_page() -> None:
    """docs/runtime.md lists the table, with the card that each line comes from."""
    page = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
    assert [family.source for family in families.FAMILIES if family.source not in page] == []


def prompts(kind: str, **config: Any) -> tuple[str | None, str | None]:
    """Return the prompts that a new function has; no model is looked for."""
    fn = embedreg.get(kind).create(**config)
    return fn.query_prompt, fn.document_prompt


def test_a_new_function_has_what_its_model_needs() -> None:
    """It is stored; a prompt that is given wins, "" is none, and prompts in the model's own files are left to them."""
    assert prompts("sentence-transformers", name="intfloat/e5-small-v2") == E5
    assert prompts("huggingface", name="intfloat/e5-small-v2") == E5
    assert prompts("sentence-transformers", name="intfloat/e5-small-v2", query_prompt="") == ("", "passage: ")
    assert prompts("sentence-transformers", name="Qwen/Qwen3-Embedding-0.6B") == (None, None)
    assert prompts("huggingface", name="Qwen/Qwen3-Embedding-0.6B")[1] == ""
    assert prompts("sentence-transformers") == (None, None)


def test_a_stored_declaration_without_prompts_stays_as_it_is() -> None:
    """Its vectors were made without them: what is stored is used, and `inspect` names the model."""
    model = {"name": "intfloat/e5-small-v2"}
    entry = {"name": "sentence-transformers", "model": model, "source_column": "text", "vector_column": "vector"}
    metadata = {codec.KEY: json.dumps([entry])}
    fn = embedreg.get_registry().parse_functions(metadata)["vector"].function
    assert (fn.query_prompt, fn.document_prompt) == (None, None)  # type: ignore[attr-defined]
    (note,) = embedreg.inspect(metadata)[0]["notes"]
    assert note.startswith(
        "'intfloat/e5-small-v2' was trained with prompts and is used without: query_prompt='query: '"
    )
    entry["model"] = {**model, "query_prompt": "", "document_prompt": ""}
    assert embedreg.inspect({codec.KEY: json.dumps([entry])})[0]["notes"] == []


def test_a_model_that_is_used_without_is_named_once(
    minilm_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In one line of the log; a folder's files decide, since they may hold another model, and nothing is added."""
    shutil.copytree(minilm_path, tmp_path / "e5-small-v2")
    fn = embedreg.get("sentence-transformers").create(name=str(tmp_path / "e5-small-v2"), device="cpu")
    with caplog.at_level(logging.WARNING, "embedreg"):
        fn.vector_traits()
        fn.vector_traits()
    assert [record.getMessage().count("used without") for record in caplog.records] == [1]
    assert (fn.query_prompt, fn.document_prompt) == (None, None)


def test_doctor_lists_the_models_here_that_need_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in the hub's cache, with who gives the prompts."""
    for name in ("intfloat--e5-small-v2", "Qwen--Qwen3-Embedding-0.6B", "BAAI--bge-m3"):
        (tmp_path / f"models--{name}").mkdir()
    from embedreg.cli import doctor

    monkeypatch.setitem(os.environ, "SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    found = doctor._prompted()
    assert [(name, each["own"]) for name, each in found.items()] == [
        ("Qwen/Qwen3-Embedding-0.6B", True),
        ("intfloat/e5-small-v2", False),
    ]
