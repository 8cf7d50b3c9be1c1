"""Embedding functions in every style that users write them in, LanceDB's above all."""

import functools
import threading
from typing import Any, ClassVar

import cachetools
import numpy as np
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, model_validator

from embedreg import EmbeddingFunction, TextEmbeddingFunction


class Lengths(TextEmbeddingFunction):
    """Embeds a text as its length, in each of `dim` dimensions."""

    name: str = "lengths"
    dim: int = 2
    api_key: str | None = None
    options: dict[str, Any] = Field(default={})

    def ndims(self) -> int:
        return self.dim

    def generate_embeddings(self, texts: Any) -> Any:
        return np.full((len(texts), self.dim), [[len(text)] for text in texts], np.float32)


class Guide(TextEmbeddingFunction):
    """As LanceDB's custom-embedding guide writes them, with only the imports changed."""

    name: str = "all-MiniLM-L6-v2"
    device: str = "cpu"
    loads: ClassVar[list[str]] = []

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._ndims = None

    def generate_embeddings(self, texts: Any) -> Any:
        return [[float(len(text)), self._embedding_model()] for text in list(texts)]

    def ndims(self) -> int:
        if self._ndims is None:
            self._ndims = len(self.generate_embeddings(["foo"])[0])
        return int(self._ndims)

    @cachetools.cached(cache={})
    def _embedding_model(self) -> float:
        self.loads.append(self.name)
        return 1.0


class Heavy(EmbeddingFunction):
    """As LanceDB's image functions are: positional passing-on, private attributes, a model loaded in `__init__`."""

    name: str = "ViT-B-32"
    _model: Any = PrivateAttr()
    _lock: Any = PrivateAttr()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._model = bytearray(10_000)
        self._lock = threading.Lock()

    def ndims(self) -> int:
        return 1

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return [[0.0]]

    def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        return [[0.0] for _ in self.sanitize_input(images)]


class Cached(Lengths):
    """Caches in every way that Python offers."""

    @functools.cached_property
    def client(self) -> list[str]:
        return [self.name]

    @functools.lru_cache  # noqa: B019 (what users write)
    def ndims(self) -> int:
        return self.dim

    @cachetools.cached(cache={}, info=True)
    def model(self) -> object:
        return object()

    @cachetools.cachedmethod(lambda self: self._answers)
    def answer(self, question: str) -> object:
        return object()

    _answers: dict[Any, Any] = PrivateAttr(default_factory=dict)


class Own(Lengths):
    """Has parameters of its own in `__init__`, positional ones too."""

    def __init__(self, size: int, name: str = "own", *, flag: bool = False) -> None:
        super().__init__(dim=size * 2, name=f"{name}-{flag}")


class Created(Lengths):
    """Overrides `create`."""

    @classmethod
    def create(cls, size: str = "small", **config: Any) -> "Created":
        return super().create(dim={"small": 2, "large": 4}[size], **config)


class Named(Lengths):
    """Takes other names for its fields."""

    size: int = Field(default=8, alias="dimensions")
    model: str = Field(default="m", validation_alias=AliasChoices("model_id", "modelName"))


class Open(Lengths):
    """Allows any field."""

    model_config = ConfigDict(extra="allow")


class Checked(Lengths):
    """Checks its fields together."""

    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def ordered(self) -> "Checked":
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Arrays(Lengths):
    """Holds a value that has no truth value of its own."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    weights: np.ndarray | None = None
    lock: Any = None


class Mixin:
    """A contract method that comes from outside of embedreg's classes."""

    def generate_embeddings(self, texts: Any) -> Any:
        raise ValueError(f"refused {self.api_key}")  # type: ignore[attr-defined]


class Mixed(Mixin, Lengths):
    """Takes it over."""


class Bounded(Lengths):
    """Has a key that only some values fit."""

    api_key: str = Field(pattern="^sk-")
    count: int = 1


MAKERS: dict[str, Any] = {
    "plain": lambda: Lengths(name="a", dim=3, options={"a": [1, {"b": 2}]}),
    "guide": lambda: Guide(name="other"),
    "heavy": lambda: Heavy(name="ViT-L-14"),
    "cached": lambda: Cached(dim=5),
    "own": lambda: Own(3, "mine", flag=True),
    "created": lambda: Created.create("large", name="c"),
    "aliased": lambda: Named(dimensions=3, model_id="x"),  # type: ignore[call-arg]
    "open": lambda: Open(colour="red", tags=["a"]),  # type: ignore[call-arg]
    "checked": lambda: Checked(low=1, high=5),
    "constructed": lambda: Lengths.model_construct(dim=7),
    "keyed": lambda: Lengths(api_key="$var:key"),
}
