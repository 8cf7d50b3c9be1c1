"""Functions that have everything a hostile table would ask for, and how such a table is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import AnyUrl, ConfigDict, ImportString

import embedreg
from embedreg import TextEmbeddingFunction, Traits, register
from embedreg.errors import EmbedregError

KEY = b"embedding_functions"


class Base(TextEmbeddingFunction):
    """One dimension: the text's length."""

    max_retries: int = 0

    def ndims(self) -> int:
        return 1

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return np.array([[len(str(text)) + 1] for text in texts], np.float32).reshape(-1, 1)


@register("service")
class Service(Base):
    """Has everything that a table should not decide."""

    traits: ClassVar[Traits] = Traits(remote=True)
    name: str = "small"
    base_url: str | None = None
    host: str | None = None
    default_headers: dict[str, str] | None = None
    weights_file: str | None = None
    local: Path | None = None
    link: AnyUrl | None = None
    hook: ImportString[Any] | None = None
    mode: str | None = None
    verify: bool = True
    options: dict[str, Any] | list[Any] | None = None
    prompts: dict[str, str] | None = None
    organization: str | None = None
    api_key: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    device: str = "auto"

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    @staticmethod
    def guarded_fields() -> list[str]:
        return ["base_url", "default_headers", "mode", "verify"]


@register("open-service")
class OpenService(Service):
    """The same, and any field besides."""

    model_config = ConfigDict(extra="allow")


def read(model: dict[str, Any], name: str = "service") -> Any:
    """Read a table that declares a configuration."""
    entry = {"name": name, "model": model, "source_column": "text", "vector_column": "vector"}
    return embedreg.functions_in({KEY: json.dumps([entry]).encode()})


def refused(model: dict[str, Any], name: str = "service") -> EmbedregError:
    """Read a configuration that is refused, and return why."""
    problem = read(model, name).problems["vector"]
    assert problem.hint
    assert isinstance(problem, EmbedregError)
    return problem


def granted(model: dict[str, Any], name: str = "service") -> Any:
    """Read a configuration that is admitted, and return the function."""
    return read(model, name)["vector"].function
