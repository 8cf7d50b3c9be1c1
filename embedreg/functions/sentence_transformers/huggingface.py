"""The `huggingface` and `colbert` functions: any encoder of the transformers library, as LanceDB embeds with it.

The vector of a text is the mean of the last hidden states of all its tokens, special ones included, without scaling.
The modules, prompts and length limit that a sentence-transformers model adds to its transformer are not used.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from embedreg.functions.sentence_transformers import SentenceTransformerEmbeddings
from embedreg.runtime.models import folders
from embedreg.runtime.text.light import choice
from embedreg.runtime.text.light.choice import Choice

__all__ = ["ColbertEmbeddings", "TransformersEmbeddings"]

JS_DEFAULT = "Xenova/all-MiniLM-L6-v2"
# Conversions to ONNX that JavaScript's clients name -> the models that they were made of, with the same weights.
# Source: `base_model` of each conversion's card on the hub.
CONVERTED_FROM = {
    JS_DEFAULT: "sentence-transformers/all-MiniLM-L6-v2",
    "Xenova/all-MiniLM-L12-v2": "sentence-transformers/all-MiniLM-L12-v2",
    "Xenova/all-mpnet-base-v2": "sentence-transformers/all-mpnet-base-v2",
    "Xenova/bge-base-en-v1.5": "BAAI/bge-base-en-v1.5",
    "Xenova/bge-large-en-v1.5": "BAAI/bge-large-en-v1.5",
    "Xenova/bge-small-en-v1.5": "BAAI/bge-small-en-v1.5",
    "Xenova/e5-small-v2": "intfloat/e5-small-v2",
    "Xenova/gte-base": "thenlper/gte-base",
    "Xenova/gte-small": "thenlper/gte-small",
    "Xenova/multilingual-e5-small": "intfloat/multilingual-e5-small",
    "Xenova/paraphrase-multilingual-MiniLM-L12-v2": "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
}


class TransformersEmbeddings(SentenceTransformerEmbeddings):
    """Text embeddings with a model of the transformers library: the mean of its last hidden states.

    A table of LanceDB's JavaScript client names its model in the option `model`, and without one means
    "Xenova/all-MiniLM-L6-v2", where Python means this class's default. That client counts padding as tokens, so that
    a stored vector depends on the rows that were added with it; one of its queries has the vector that it has here.

    Attributes:
        name: a model of the hub, or a folder.
        normalize: whether vectors have unit length; LanceDB's have not.
        query_prompt, document_prompt: text to prepend to queries and sources; None for those that the model is known to
            want (docs/runtime.md), else none.
        others: as those of `sentence-transformers`.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "huggingface"
    traits = replace(
        SentenceTransformerEmbeddings.traits,
        stock_fields=frozenset({"name", "device", "trust_remote_code", "max_retries"}),
        stored_names={"model": "name"},
        javascript_defaults={"name": JS_DEFAULT},
    )

    name: str = "colbert-ir/colbertv2.0"
    normalize: bool = False

    _reads_own_prompts: ClassVar[bool] = False

    def _remarks(self) -> list[str]:
        remarks = super()._remarks()
        if self.name in CONVERTED_FROM and self._as_stock():
            remarks.append(
                f"{self.name!r} is run from the weights of {self._model_id()!r}; LanceDB's JavaScript client counts "
                "padding as tokens: vectors of rows that it added together differ from those of the same texts alone"
            )
        return remarks

    def _model_id(self) -> str:
        return CONVERTED_FROM.get(self.name, self.name)

    def _refuse_other_kinds(self, path: Path) -> None:
        """Accept every kind of model: only its transformer is used."""

    def _width(self, path: Path) -> int | None:
        return folders.hidden_size(path)

    def _ends_normalized(self, path: Path) -> bool:
        return False

    def _own_prompts(self, path: Path) -> tuple[dict[str, str], str | None]:
        return {"query": "", "document": ""}, None

    def _choose(self, path: Path) -> Choice:
        return choice.choose(path, self.name, self.device, self.precision, plain=True)

    def weights_key(self) -> tuple[Hashable, ...]:
        """Return the key of the model without the modules of its folder."""
        return "huggingface", *super().weights_key()

    def load(self, device: str) -> Any:
        """Load the transformer alone."""
        files = self._files()
        own = files.origin == "local" and not self.from_metadata
        code = self.trust_remote_code
        load = self._library().load
        return load(files, self.name, device, code=code, own=own, revision=self.revision, plain=True)


class ColbertEmbeddings(TransformersEmbeddings):
    """LanceDB's `colbert`: the dense vector of `huggingface`, without ColBERT's projection and late interaction."""

    __embedding_function_registry_alias__: ClassVar[str | None] = "colbert"
    traits = replace(TransformersEmbeddings.traits, stored_names={}, javascript_defaults={})
