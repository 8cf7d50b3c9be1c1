"""A model whose vectors turn when its undeclared weights do, and tables that it has filled."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

import embedreg
from embedreg import TextEmbeddingFunction, Traits, register

KEY = b"embedding_functions"


@register("model")
class Model(TextEmbeddingFunction):
    """Its vectors turn with `angle`, which stands for weights that nobody declares."""

    angle: ClassVar[float] = 0.0
    length: ClassVar[float] = 1.0
    runs: ClassVar[list[str]] = []
    hash_of_weights: ClassVar[str | None] = None
    max_retries: int = 0
    name: str = "small"
    prompts: dict[str, str] = {}  # noqa: RUF012  # pydantic copies it
    labels: set[str] = set()  # noqa: RUF012  # pydantic copies it
    headers: dict[str, str] = {}  # noqa: RUF012  # pydantic copies it
    dim: int | None = None
    api_key: str | None = None
    device: str = "auto"
    batch_size: int = 8

    def ndims(self) -> int:
        return 2

    def model_identity(self) -> str | None:
        return self.hash_of_weights

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        self.runs.extend(str(text) for text in texts)
        return np.array([self._turned(len(str(text))) for text in texts], np.float32).reshape(-1, 2)

    def _turned(self, size: int) -> list[float]:
        angle = self.angle + size / 1000
        return [self.length * float(np.cos(angle)), self.length * float(np.sin(angle))]


@register("far-model")
class FarModel(Model):
    """The same, at the far end of a network."""

    traits: ClassVar[Traits] = Traits(remote=True)


@register("dot-model")
class DotModel(Model):
    """The same, for a metric that looks at lengths."""

    traits: ClassVar[Traits] = Traits(metric="dot")


def made(function: Any = None, texts: tuple[str, ...] = ("a", "bb")) -> pa.Table:
    """Return a table that a function has filled."""
    return embedreg.embed_table({"text": list(texts)}, (function or Model()).bind("text", "vector"))


def reserved(table: pa.Table) -> dict[str, Any]:
    """Return what the only entry of a table records."""
    [entry] = json.loads(table.schema.metadata[KEY])
    return entry["model"]["embedreg"]  # type: ignore[no-any-return]


def changed(table: pa.Table, drop: tuple[str, ...] = (), **values: Any) -> pa.Table:
    """Return a table with its record changed."""
    [entry] = json.loads(table.schema.metadata[KEY])
    entry["model"]["embedreg"] = {k: v for k, v in entry["model"]["embedreg"].items() if k not in drop} | values
    return table.replace_schema_metadata({KEY: json.dumps([entry])})


def wider(table: pa.Table) -> pa.Table:
    """Return a table with a row more, which has no vector yet."""
    more = pa.table({"text": ["ccc"], "vector": pa.array([None], table.schema.field("vector").type)})
    return pa.concat_tables([table, more.cast(table.schema)]).combine_chunks()
