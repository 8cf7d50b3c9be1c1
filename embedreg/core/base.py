"""The contract: `EmbeddingFunction` and `TextEmbeddingFunction`, with LanceDB's names and meanings.

A configuration is a value: two instances of one class with equal fields are equal, hash alike, and pickle and copy
through `__init__`. Fields keep their `$var:` references; reading one resolves it. Weights, clients and whatever else an
instance gathers in private attributes are no part of the value.
"""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, Union, cast

from pydantic import BaseModel, ConfigDict, PrivateAttr

from embedreg.core import lancedb_hooks
from embedreg.core.fields import copied, names_by_key, refuse_unknown, runtime_fields, sensitive_fields
from embedreg.core.held import verify_first
from embedreg.core.instances import building, state_of
from embedreg.core.role import Role, compute_with_retry, fall_back, query_as_source, source_texts
from embedreg.core.value import Value
from embedreg.core.vouched import vouch
from embedreg.errors import ConfigError
from embedreg.security.redaction import called
from embedreg.support.threads import off_the_loop

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    import pyarrow as pa


__all__ = [
    "IMAGES",
    "TEXT",
    "EmbeddingFunction",
    "EmbeddingFunctionConfig",
    "Metric",
    "TextEmbeddingFunction",
    "Traits",
    "metric_of",
    "runtime_fields",
    "sensitive_fields",
]

TEXT: TypeAlias = Union[str, list[str], "pa.Array", "pa.ChunkedArray", "np.ndarray"]
IMAGES: TypeAlias = Union[str, bytes, list[str], list[bytes], "pa.Array", "pa.ChunkedArray", "np.ndarray"]

Metric: TypeAlias = Literal["cosine", "l2", "dot"]

_names_by_key = names_by_key


@dataclass(frozen=True)
class Traits:
    """What a class of functions is, told without creating one.

    Attributes:
        modality: what a source row is, by names of `core.modality`'s table: "text", "image", several joined by "+" with
            what a source row is first, or "any" where a class does not say.
        requires: modules that must be importable.
        extra: the embedreg extra that installs them.
        remote: whether calls leave this machine; such functions are never probed per query.
        retry: whether a failed call may be tried again; a local model fails for good reasons.
        metric: the distance that the vectors are meant for, where `vector_traits` does not say it for the model.
        window: how many rows the function is handed at once, in rows; more lets a local model sort by length, fewer
            give a livelier progress bar.
        concurrency: how many calls of one function a server may make at a time; 1 where threads may not be safe.
        stock_fields: the fields that LanceDB's own function of this name knows; None where it has no such function.
        stored_names: other names for fields in stored configurations (JavaScript's option names), to field names.
    """

    modality: str = "text"
    requires: tuple[str, ...] = ()
    extra: str | None = None
    remote: bool = False
    retry: bool = True
    metric: Metric = "cosine"
    window: int = 1024
    concurrency: int = 1
    stock_fields: frozenset[str] | None = None
    stored_names: Mapping[str, str] = field(default_factory=dict)


class EmbeddingFunction(Value, ABC):
    """The base of every embedding function.

    A subclass defines `ndims()`, `compute_source_embeddings` and `compute_query_embeddings`; for text,
    `TextEmbeddingFunction` needs only `ndims()` and `generate_embeddings`. One that embeds queries in batches defines
    `compute_embeddings(inputs, role)`, and then none of the others.

    Raises:
        ConfigError: an unknown field or a wrong value (`create` and the constructor alike).
        HardcodedSecretError: a sensitive field with anything but a `$var:` reference.
        MissingVariableError: a reference to a variable that is not set.
    """

    traits: ClassVar[Traits] = Traits(modality="any")

    max_retries: int = 7
    _ndims: Any = PrivateAttr(default=None)
    _declared: dict[str, Any] = PrivateAttr(default_factory=dict)
    _adapters: dict[str | None, Any] = PrivateAttr(default_factory=dict)

    # -- creating ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, **config: Any) -> Self:
        """Create an instance from its configuration.

        A table whose stored configuration equals this one gets this very instance back in this process, its
        `device` and other runtime fields included: the reader's own code has vouched for it.
        """
        instance = cls(**config)
        vouch(instance)
        return instance

    # -- what a subclass says ---------------------------------------------------------------------------------------

    @abstractmethod
    def ndims(self) -> int:
        """Return the number of dimensions of a vector."""

    @abstractmethod
    def compute_source_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Embed the rows of a source column: (n, d), or a list of n vectors with None for a row that has none."""

    @abstractmethod
    def compute_query_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Embed one query: a list that holds one vector."""

    def vector_traits(self) -> dict[str, Any]:
        """Return what readers should know of the vectors, which is recorded with the data.

        `dtype`, `normalized`, `prompts`, and `metric` where it is not that of the class for every model.
        """
        normalize = getattr(self, "normalize", None)
        return {"dtype": "float32", "normalized": normalize if isinstance(normalize, bool) else None}

    def model_identity(self) -> str | None:
        """Return the model's resolved revision or a hash of its weights, never a path; None when it cannot be known."""
        return None

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed a batch of source rows or of queries: the one method that the library calls.

        The default is LanceDB's methods: `compute_source_embeddings`, and a class's own `compute_query_embeddings` for
        one query after another. Of these and this one the most derived definition is used.

        Args:
            inputs: n inputs, as `sanitize_input` gives them: a list; none is null or blank where the library calls.
            role: "source" or "query".
        Returns:
            (n, d), or n vectors with None or a RowError for an input that has none.
        """
        return fall_back(self, inputs, role)

    # -- what callers use -------------------------------------------------------------------------------------------

    def compute_embeddings_with_retry(self, inputs: Any, role: Role = "source") -> Any:
        """Embed a batch in a role, trying again up to `max_retries` times what may pass by itself."""
        return compute_with_retry(self, inputs, role)

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> Any:
        """Embed a source column, trying again up to `max_retries` times what may pass by itself."""
        return self._with_retry(self.compute_source_embeddings, *args, **kwargs)

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> Any:
        """Embed a query, trying again up to `max_retries` times what may pass by itself."""
        return self._with_retry(self.compute_query_embeddings, *args, **kwargs)

    async def acompute_query_embeddings(self, query: Any) -> Any:
        """Embed a query as `compute_query_embeddings_with_retry` does, without blocking the event loop."""
        return await off_the_loop(_compute_checked, self, query)

    def _with_retry(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.traits.retry or self.max_retries == 0:
            return call(*args, **kwargs)
        from embedreg.support.retry import call_with_retry

        return call_with_retry(call, *args, max_retries=self.max_retries, called=called(self), **kwargs)

    def sanitize_input(self, texts: Any) -> Any:
        """Turn what an engine passes into something to iterate: a str becomes a list of one, Arrow becomes a list."""
        if isinstance(texts, str | bytes):
            return [texts]
        return texts.to_pylist() if hasattr(texts, "to_pylist") else texts

    def safe_model_dump(self) -> dict[str, Any]:
        """Return the configuration as it was passed, references unresolved.

        LanceDB's registry stores what this returns, so to that caller it gives the persisted form instead.
        """
        if lancedb_hooks.called_from("lancedb"):
            return lancedb_hooks.adapted(self).safe_model_dump()  # type: ignore[no-any-return]
        return copied(self._original_args)  # type: ignore[no-any-return]

    def SourceField(self, **kwargs: Any) -> Any:
        """Mark a pydantic field as this function's source column; further arguments are those of `pydantic.Field`."""
        return lancedb_hooks.field_info(self, lancedb_hooks.SOURCE, None, kwargs)

    def VectorField(self, source: str | None = None, **kwargs: Any) -> Any:
        """Mark a pydantic field as this function's vector column; further arguments are those of `pydantic.Field`.

        Args:
            source: the source field it belongs to; needed only when this function has several in one schema.
        """
        return lancedb_hooks.field_info(self, lancedb_hooks.VECTOR, source, kwargs)

    def bind(self, source: str, vector: str) -> EmbeddingFunctionConfig:
        """Declare that this function fills column `vector` from column `source`.

        Raises:
            ConfigError: what is no column name, or one name for both.
        """
        if source == vector:
            raise ConfigError(f"{source!r} cannot be both source and vector column.", "fn.bind('source', 'vector')")
        return EmbeddingFunctionConfig(source_column=source, vector_column=vector, function=self)

    @property
    def from_metadata(self) -> bool:
        """Whether stored metadata asked for this instance, and nobody here vouched for it: no local lookups then."""
        return state_of(self).origin == "metadata"


def _compute_checked(function: EmbeddingFunction, query: Any) -> Any:
    verify_first(function)
    return function.compute_query_embeddings_with_retry(query)


class TextEmbeddingFunction(EmbeddingFunction):
    """A function of text: queries and sources are embedded alike unless a subclass says otherwise."""

    traits: ClassVar[Traits] = Traits()

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
        """Embed one query text: a list (or array) that holds one vector."""
        return query_as_source(self, query, *args, **kwargs)

    def compute_source_embeddings(self, texts: TEXT, *args: Any, **kwargs: Any) -> Any:
        """Embed source texts: (n, d), or a list of n vectors."""
        return source_texts(self, texts)

    @abstractmethod
    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed texts: (n, d), or a list of n vectors with None, or a `RowError`, for a row that failed."""


class EmbeddingFunctionConfig(BaseModel):
    """A declaration: which function fills which vector column from which source column."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    vector_column: str
    source_column: str
    function: EmbeddingFunction
    value_type: str | None = None
    """The type of a stored value, "float32" or "float16", where the column's own type says it."""

    def __init__(self, **values: Any) -> None:
        function = lancedb_hooks.unwrap(values.get("function"))
        if not isinstance(function, EmbeddingFunction):
            raise ConfigError(
                f"an EmbeddingFunctionConfig needs an embedreg function, not {type(function).__name__}.",
                "create one with embedreg.get('...').create()",
            )
        refuse_unknown(type(self), values, type(self).model_fields)
        for name in ("source_column", "vector_column"):
            if not isinstance(values.get(name), str) or not values[name]:
                raise ConfigError(f"{name} is {values.get(name)!r}, no column name.", "fn.bind('source', 'vector')")
        super().__init__(**{**values, "function": function})


def metric_of(function: EmbeddingFunction) -> Metric:
    """Return the distance that a function's vectors are meant for: as its model says, else as its class does."""
    cls = type(function)
    if cls.vector_traits is not EmbeddingFunction.vector_traits:
        stated = function.vector_traits().get("metric")
        if stated in typing.get_args(Metric):
            return cast("Metric", stated)
    return cls.traits.metric


def from_stored(
    cls: type[EmbeddingFunction], config: dict[str, Any], alias: str, unknown: dict[str, Any]
) -> EmbeddingFunction:
    """Build an instance that stored metadata asked for; the trust rules have already been applied to `config`."""
    with building(cls, "metadata", alias, unknown):
        return cls(**config)
