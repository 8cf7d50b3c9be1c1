"""The `instructor` function: INSTRUCTOR models, with the fields and defaults of LanceDB's function of this name.

The transformer reads an instruction and a text as one, and the mean is taken over the text's tokens only
(Su et al. 2023, section 2.1). The sentence-transformers library does the same for a prompt that it does not pool.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import AliasChoices, Field

from embedreg.core.role import Role
from embedreg.errors import ConfigError
from embedreg.functions.sentence_transformers import SentenceTransformerEmbeddings
from embedreg.runtime.text import backend
from embedreg.runtime.text.light import choice
from embedreg.runtime.text.light.choice import Choice

__all__ = ["InstructorEmbeddings"]


class InstructorEmbeddings(SentenceTransformerEmbeddings):
    """Text embeddings that follow an instruction.

    Attributes:
        name: a model of the hub, or a folder.
        normalize: whether vectors have unit length; LanceDB's name of it is `normalize_embeddings`.
        source_instruction, query_instruction: what is embedded, and for what, in front of sources and queries.
        query_prompt, document_prompt: the same two under the names of the other functions; None for the instructions.
        quantize: whether the weights of linear layers are int8: half as exact, on a CPU only.
        show_progress_bar: not used; LanceDB's function has it.
        others: as those of `sentence-transformers`.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "instructor"
    traits = replace(
        SentenceTransformerEmbeddings.traits,
        stock_fields=frozenset(
            {
                "name",
                "batch_size",
                "device",
                "show_progress_bar",
                "normalize",
                "quantize",
                "source_instruction",
                "query_instruction",
                "max_retries",
            }
        ),
        stored_names={"normalize_embeddings": "normalize"},
    )

    name: str = "hkunlp/instructor-base"
    normalize: bool = Field(default=True, validation_alias=AliasChoices("normalize", "normalize_embeddings"))
    source_instruction: str = "represent the document for retrieval"
    query_instruction: str = "represent the document for retrieving the most similar documents"
    quantize: bool = False
    show_progress_bar: bool = True

    @staticmethod
    def runtime_keys() -> list[str]:
        """Return the names of the fields that cannot change a returned vector."""
        return ["show_progress_bar", *SentenceTransformerEmbeddings.runtime_keys()]

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        if self.quantize and (self.precision != "float32" or self.backend not in (backend.AUTO, choice.TORCH)):
            raise ConfigError("quantize=True runs with torch in float32 only.", "precision='float32', backend='torch'")

    @property
    def normalize_embeddings(self) -> bool:
        """Whether vectors have unit length: LanceDB's name of `normalize`."""
        return self.normalize

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed texts without the blanks around them, as the model's own library does: (n, d) float32."""
        rows = self.sanitize_input(inputs)
        rows = [rows] if isinstance(rows, str) else rows
        return super().compute_embeddings([row.strip() if isinstance(row, str) else row for row in rows], role)

    def _family(self) -> None:
        """Return None: every model of this kind has instructions."""

    def _prompts(self) -> tuple[str, str]:
        query = self.query_instruction if self.query_prompt is None else self.query_prompt
        document = self.source_instruction if self.document_prompt is None else self.document_prompt
        return query, document

    def _choose(self, path: Path) -> Choice:
        if self.quantize:
            return Choice(choice.TORCH, ((choice.LIGHT, "it does not quantize"),))
        return super()._choose(path)

    def weights_key(self) -> tuple[Hashable, ...]:
        """Return the key of the model with its kind of pooling and numbers."""
        return "instructor", self.quantize, *super().weights_key()

    def load(self, device: str) -> Any:
        """Load the model, and leave the instruction out of its mean."""
        model = super().load(device)
        model.set_pooling_include_prompt(include_prompt=False)
        if self.quantize:
            import torch

            if device != "cpu":
                raise ConfigError(f"quantize=True runs on a CPU, not on {device!r}.", "device='cpu'")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch is about to give up this form of quantization
                quantize: Any = torch.ao.quantization.quantize_dynamic
                quantize(model, {torch.nn.Linear}, torch.qint8, inplace=True)
        return model
