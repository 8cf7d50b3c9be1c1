"""The `static` function: models of token vectors, from model2vec or sentence-transformers, without torch."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar

from pydantic import Field

from embedreg.core.base import TextEmbeddingFunction, Traits
from embedreg.core.role import Role
from embedreg.errors import ConfigError
from embedreg.runtime import progress
from embedreg.runtime.hardware import workers
from embedreg.runtime.local import LocalModel
from embedreg.runtime.local.text import texts_of
from embedreg.runtime.models import folders, weights
from embedreg.runtime.text import static, truncation
from embedreg.runtime.text.truncation import Truncate

__all__ = ["StaticEmbeddings"]

ROWS = 8192  # rows between two reports of progress


class StaticEmbeddings(LocalModel, TextEmbeddingFunction):
    """Text embeddings as the mean of a fixed vector for each token: hundreds of times faster than a transformer.

    A text without a known token has a vector of zeros, which a column stores as null.

    Attributes:
        name: a model of the hub ("minishlab/potion-base-8M"), or a folder.
        revision: a branch, tag or commit of the hub; None for the one that is cached, else the newest.
        normalize: whether vectors have unit length; None for the model's own setting.
        truncate_dim: number of leading dimensions to keep; None for all.
        truncate: policy for a text longer than the model takes: "warn" embeds its beginning and logs the number of such
            rows, "silent" embeds its beginning, "error" makes it a bad row.
        query_prompt, document_prompt: text to prepend to queries and sources; None for none.
        device: "auto" or "cpu": there is nothing for a GPU to compute.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "static"
    traits: ClassVar[Traits] = Traits(
        requires=("safetensors", "tokenizers"), extra=static.EXTRA, retry=False, window=32_768, concurrency=2
    )

    name: str = "minishlab/potion-base-8M"
    revision: str | None = None
    normalize: bool | None = None
    truncate_dim: int | None = Field(default=None, ge=1)
    truncate: Truncate = "warn"
    query_prompt: str | None = None
    document_prompt: str | None = None

    @staticmethod
    def runtime_keys() -> list[str]:
        """Return the names of the fields that cannot change a returned vector."""
        return ["truncate", "precision"]

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        if self.from_metadata:
            return
        if self.precision != "float32" or self.device not in ("auto", "cpu"):
            raise ConfigError("a static model runs on a CPU, in float32.", "device='cpu', precision='float32'")
        folder = weights.absolute_folder(self.raw_fields()["name"])
        if folder is not None:
            self.name = folder

    def ndims(self) -> int:
        """Return the width of the vectors, from the header of the model's file."""
        if self._ndims is None:
            width = folders.table_width(self._parts().folder)
            if width is None:
                raise ConfigError(f"the model {self.name!r} has no table of vectors.", "use another model")
            self._ndims = width if self.truncate_dim is None else min(width, self.truncate_dim)
        return int(self._ndims)

    def vector_traits(self) -> dict[str, Any]:
        """Return the traits of the vectors; `prompts` is None if queries and sources are embedded alike."""
        query, document = self.query_prompt or "", self.document_prompt or ""
        prompts = None if query == document == "" else {"query": query, "document": document}
        return {"dtype": "float32", "normalized": self._unit(self._parts()), "prompts": prompts}

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a source text before it is cut, prompt included."""
        table: static.StaticTable = self._loaded("cpu")
        return table.count_tokens((self.document_prompt or "") + text)

    def max_tokens(self) -> int | None:
        """Return the number of tokens after which a text is cut; None for no limit."""
        return self._parts().limit

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed texts: (n, d) float32; under truncate="error", a list with a RowError for each row that is too long."""
        import numpy as np

        prompt = (self.query_prompt if role == "query" else self.document_prompt) or ""
        rows = [prompt + text for text in texts_of(self.sanitize_input(inputs))]
        width = self.ndims()
        made, cut = np.empty((len(rows), width), np.float32), np.zeros(len(rows), bool)
        table: static.StaticTable = self._loaded("cpu")
        unit = self._unit(table.parts)
        with self._failing(len(rows)):
            for start in range(0, len(rows), ROWS):
                some = rows[start : start + ROWS]
                made[start : start + ROWS], cut[start : start + ROWS] = workers.alone(table.embed, some, unit, width)
                progress.report(progress.Step(rows=len(some)))
        return truncation.settled(made, cut, self.truncate, table.parts.limit, self.name)

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed texts as sources: LanceDB's method of this name."""
        return self.compute_embeddings(texts, "source")

    # -- the model --------------------------------------------------------------------------------------------------

    def _unit(self, parts: static.StaticFolder) -> bool:
        return parts.normalize if self.normalize is None else self.normalize

    def _parts(self) -> static.StaticFolder:
        return static.find(self._files().path, self.name)

    def _devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def _find_files(self, *, download: bool) -> weights.ResolvedModel:
        return self._resolved(self.name, self.revision, download=download)

    def weights_key(self) -> tuple[Hashable, ...]:
        """Return the model's folder."""
        files = self._files()
        return "static", str(files.path), files.stamp() if files.origin == "local" else 0

    def load(self, device: str) -> static.StaticTable:
        """Load the table of vectors and the tokenizer."""
        return static.load(self._parts(), self.name)

    def _try(self, model: Any, on: str) -> None:
        """Do nothing: the vectors are numbers of one type."""
