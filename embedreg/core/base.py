"""The contract: `EmbeddingFunction` and `TextEmbeddingFunction`, with LanceDB's names and semantics.

A configuration is a value: two instances of one class with equal fields are equal, hash alike, and pickle and copy
through `__init__`. Fields keep their `$var:` references; reading one resolves it. Weights, clients and other
private attributes are not part of the value.
"""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, Union, cast

from pydantic import BaseModel, ConfigDict, PrivateAttr

from embedreg.arrow.quantized import SCALARS, VALUE_TYPES, Ranges
from embedreg.arrow.templates import SUFFIX, column_name, is_column, parse
from embedreg.core import lancedb_hooks
from embedreg.core.fields import copied, names_by_key, refuse_unknown, runtime_fields, sensitive_fields
from embedreg.core.held import verify_first
from embedreg.core.instances import building, state_of
from embedreg.core.role import Role, compute_with_retry, fall_back, query_as_source, source_texts
from embedreg.core.value import Value
from embedreg.core.vouched import vouch
from embedreg.errors import ConfigError
from embedreg.security.redaction import called
from embedreg.support.unicode import is_valid

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
    """Static properties of a function class, available without an instance.

    Attributes:
        modality: the modalities of inputs, by name in `core.modality`'s table: "text", "image", or several joined by
            "+" with that of source rows first; "any" if a class does not declare it.
        requires: the modules that must be importable.
        extra: the embedreg extra that installs them.
        remote: whether calls leave this machine; remote functions are not probed per query.
        retry: whether failed calls may be retried; failures of a local model are not transient.
        metric: the distance that the vectors are meant for, unless `vector_traits` gives it for the model.
        window: the number of rows per call of the function; a larger number lets a local model sort by length, a
            smaller one updates the progress bar more often.
        concurrency: the number of concurrent calls that a server may make; 1 if the function may not be thread-safe.
        stock_fields: the fields of LanceDB's own function of this name; None if LanceDB has none.
        stored_names: other names in stored configurations (JavaScript's option names) -> field names.
        javascript_defaults: the defaults of LanceDB's JavaScript client, where they differ from the fields'.
        alternatives: other lists of modules, each of which is enough instead of `requires`.
        vectors: the kind of the vectors, by name in `core.kinds`' table: "dense", "multi" (several vectors for one
            input, of late interaction) or "sparse"; or several joined by "+": the first, unless an instance's field
            `vectors` names another.
        width_defaults: field -> {width of the column: the default of the LanceDB versions that wrote such columns}. A
            declaration of LanceDB's that leaves the field out, of a column of another width, is refused.
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
    javascript_defaults: Mapping[str, Any] = field(default_factory=dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle; what it lacks is of a later version, and has its default."""
        vars(self).update(vars(type(self)()) | state)

    width_defaults: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)
    alternatives: tuple[tuple[str, ...], ...] = ()
    vectors: str = "dense"


class EmbeddingFunction(Value, ABC):
    """The base of every embedding function.

    A subclass defines `ndims()`, `compute_source_embeddings` and `compute_query_embeddings`; for text,
    `TextEmbeddingFunction` needs only `ndims()` and `generate_embeddings`. One that embeds queries in batches defines
    `compute_embeddings(inputs, role)` instead of these.

    Raises:
        ConfigError: an unknown field or an invalid value (`create` and the constructor alike).
        HardcodedSecretError: a value other than a `$var:` reference in a sensitive field.
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

        In this process, a table with an equal stored configuration gets this instance, including its `device` and other
        runtime fields, since the reader's own code created it.
        """
        instance = cls(**config)
        vouch(instance)
        return instance

    # -- overridden by subclasses -----------------------------------------------------------------------------------

    @abstractmethod
    def ndims(self) -> int:
        """Return the number of dimensions of a vector."""

    @abstractmethod
    def compute_source_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Embed the rows of a source column: (n, d), or a list of n vectors with None for a row without one."""

    @abstractmethod
    def compute_query_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Embed one query: a list that holds one vector."""

    def vector_traits(self) -> dict[str, Any]:
        """Return properties of the vectors, which are recorded with the data.

        The keys are `dtype`, `normalized`, `prompts`, and `metric` if it depends on the model.
        """
        normalize = getattr(self, "normalize", None)
        return {"dtype": "float32", "normalized": normalize if isinstance(normalize, bool) else None}

    def _own_traits(self) -> Traits:
        """Return the traits of this instance: those of its class, unless its model takes other inputs as well."""
        return self.traits

    def model_identity(self) -> str | None:
        """Return the model's resolved revision or a hash of its weights, never a path; None if unknown."""
        return None

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed a batch of source rows or of queries: the one method that the library calls.

        The default calls LanceDB's methods: `compute_source_embeddings`, or a class's own `compute_query_embeddings`
        for each query. Of these and this method the most derived definition is used.

        Args:
            inputs: n inputs, as `sanitize_input` returns them: a list; none is null or blank in calls by the library.
            role: "source" or "query".
        Returns:
            (n, d), or n vectors with None or a RowError for each failed input. With `Traits(vectors="multi")` a list of
            n (k, d) arrays, with "sparse" a CSR matrix or n pairs (indices, weights).
        """
        return fall_back(self, inputs, role)

    @classmethod
    def _facts(cls) -> dict[str, Any]:
        """Return what a listing adds to the fields: `limits`, `models`, `keys` and `documentation`, where known."""
        return {}

    def _remarks(self) -> list[str]:
        """Return what a reader of the stored declaration should know, such as a model that its vendor switched off."""
        return []

    # -- for callers ------------------------------------------------------------------------------------------------

    def compute_embeddings_with_retry(self, inputs: Any, role: Role = "source") -> Any:
        """Embed a batch in a role, retrying transient errors up to `max_retries` times."""
        return compute_with_retry(self, inputs, role)

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> Any:
        """Embed a source column, retrying transient errors up to `max_retries` times."""
        return self._with_retry(self.compute_source_embeddings, *args, **kwargs)

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> Any:
        """Embed a query, retrying transient errors up to `max_retries` times."""
        return self._with_retry(self.compute_query_embeddings, *args, **kwargs)

    async def acompute_query_embeddings(self, query: Any) -> Any:
        """Embed a query as `compute_query_embeddings_with_retry` does, without blocking the event loop."""
        from embedreg.support.threads import off_the_loop

        return await off_the_loop(_compute_checked, self, query)

    def _with_retry(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.traits.retry or self.max_retries == 0:
            return call(*args, **kwargs)
        from embedreg.support.retry import call_with_retry

        return call_with_retry(call, *args, max_retries=self.max_retries, called=called(self), **kwargs)

    def sanitize_input(self, texts: Any) -> Any:
        """Convert an engine's input to an iterable: a str becomes a list of one, Arrow becomes a list."""
        if isinstance(texts, str | bytes):
            return [texts]
        return texts.to_pylist() if hasattr(texts, "to_pylist") else texts

    def safe_model_dump(self) -> dict[str, Any]:
        """Return the configuration as it was passed, references unresolved.

        LanceDB's registry stores the result, so that caller gets the persisted form instead.
        """
        if lancedb_hooks.called_from("lancedb"):
            return lancedb_hooks.adapted(self).safe_model_dump()  # type: ignore[no-any-return]
        return copied(self._original_args)  # type: ignore[no-any-return]

    def SourceField(self, *, template: str | None = None, **kwargs: Any) -> Any:
        """Mark a pydantic field as this function's source column; further arguments are those of `pydantic.Field`.

        Args:
            template: what the texts are rendered from, as in `bind`; the field is `<vector>__source: str | None`.
        """
        return lancedb_hooks.field_info(self, lancedb_hooks.SOURCE, None, kwargs, template)

    def VectorField(self, source: str | None = None, **kwargs: Any) -> Any:
        """Mark a pydantic field as this function's vector column; further arguments are those of `pydantic.Field`.

        Args:
            source: its source field; needed only if this function has several in one schema.
        """
        return lancedb_hooks.field_info(self, lancedb_hooks.VECTOR, source, kwargs)

    def bind(
        self,
        source: str | None = None,
        vector: str | None = None,
        *,
        template: str | None = None,
        dtype: str | None = None,
        ranges: Any = None,
    ) -> EmbeddingFunctionConfig:
        r"""Declare that this function fills column `vector` from column `source`, or from a template of columns.

        Args:
            source: the source column; with a template it is `<vector>__source`, and need not be given.
            vector: the vector column.
            template: such as "{title}\n\n{body}": names in braces are columns, doubled braces are braces; nothing else
                is interpreted. Null is empty text; a row in which all of them are null has no vector.
            dtype: of stored values: "float32", "float16", "float64", or quantised as "int8", "uint8", "binary",
                "ubinary"; None for what the column has already, else what the function states.
            ranges: for "int8" and "uint8", (2, ndims) numbers such as `embedreg.calibrate(fn, texts)` returns; None to
                learn them at the first write.
        Raises:
            ConfigError: an invalid column name, template or dtype, or one name for both. VectorError: invalid ranges.
        """
        if template is not None:
            if not isinstance(vector, str) or not vector:
                raise ConfigError(
                    f"invalid vector={vector!r}: a template needs the name of the vector column.",
                    "fn.bind(template='{title} {body}', vector='vector')",
                )
            source = column_name(vector) if source is None else source
        if source == vector:
            raise ConfigError(f"{source!r} cannot be both source and vector column.", "fn.bind('source', 'vector')")
        return EmbeddingFunctionConfig(
            source_column=source,
            vector_column=vector,
            function=self,
            template=template,
            value_type=dtype,
            ranges=ranges,
        )

    @property
    def from_metadata(self) -> bool:
        """Whether this instance was built from stored metadata and is not vouched for: no local lookups then."""
        return state_of(self).origin == "metadata"


def _compute_checked(function: EmbeddingFunction, query: Any) -> Any:
    verify_first(function)
    return function.compute_query_embeddings_with_retry(query)


class TextEmbeddingFunction(EmbeddingFunction):
    """A function of text: queries and sources are embedded alike unless a subclass overrides this."""

    traits: ClassVar[Traits] = Traits()

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
        """Embed one query text: a list (or array) that holds one vector."""
        return query_as_source(self, query, *args, **kwargs)

    def compute_source_embeddings(self, texts: TEXT, *args: Any, **kwargs: Any) -> Any:
        """Embed source texts: (n, d), or a list of n vectors."""
        return source_texts(self, texts)

    @abstractmethod
    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed texts: (n, d), or a list of n vectors with None or a `RowError` for a failed row."""


class EmbeddingFunctionConfig(BaseModel):
    """A declaration: which function fills which vector column from which source column."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    vector_column: str
    source_column: str
    function: EmbeddingFunction
    value_type: str | None = None
    """The type of stored values, such as "float16" or "int8", if the declaration or the column determines it."""
    template: str | None = None
    """The template that the source column is rendered from; None for a plain column."""
    ranges: Ranges | None = None
    """The ranges of "int8" and "uint8" values, where they are known."""

    def __init__(self, **values: Any) -> None:
        function = lancedb_hooks.unwrap(values.get("function"))
        if not isinstance(function, EmbeddingFunction):
            raise ConfigError(
                f"an EmbeddingFunctionConfig needs an embedreg function, not {type(function).__name__}.",
                "create one with embedreg.get('...').create()",
            )
        refuse_unknown(type(self), values, type(self).model_fields)
        for name in ("source_column", "vector_column"):
            found = values.get(name)
            if not isinstance(found, str) or not found or not is_valid(found):
                raise ConfigError(f"invalid {name}={found!r}: expected a column name.", "fn.bind('source', 'vector')")
        if (template := values.get("template")) is not None:
            _refuse_template(template, values["source_column"], values["vector_column"])
        dtype, ranges = values.get("value_type"), values.get("ranges")
        if ranges is not None:
            if dtype not in SCALARS:
                raise ConfigError(f"dtype={dtype!r} has no ranges.", "dtype='int8' or 'uint8' has")
            values["ranges"] = Ranges.of(ranges)
        if dtype is not None and dtype not in VALUE_TYPES:
            raise ConfigError(
                f"a vector column cannot hold {dtype!r}.", f"dtype is one of: {', '.join(VALUE_TYPES)}"
            ).for_shell(f"--dtype is one of: {', '.join(VALUE_TYPES)}")
        super().__init__(**{**values, "function": function})

    def __setstate__(self, state: dict[Any, Any]) -> None:
        earlier = {"template": None, "ranges": None}  # of earlier versions
        super().__setstate__({**state, "__dict__": earlier | state["__dict__"]})


def _refuse_template(template: Any, source: str, vector: str) -> None:
    """Raise `ConfigError` for a template that is invalid, or whose texts would go to a column of other data."""
    parsed = parse(template)
    if not is_column(source):
        raise ConfigError(
            f"the texts of a template are kept in a column whose name ends in {SUFFIX!r}, not in {source!r}.",
            f"{column_name(vector)!r}, which fn.bind(template=..., vector={vector!r}) takes",
        )
    if {source, vector} & {*parsed.columns}:
        raise ConfigError(f"the template reads {source!r} or {vector!r}, which are made from it.", "name other columns")


def metric_of(function: EmbeddingFunction) -> Metric:
    """Return the distance that a function's vectors are meant for: that of its model, else of its class."""
    cls = type(function)
    if cls.vector_traits is not EmbeddingFunction.vector_traits:
        stated = function.vector_traits().get("metric")
        if stated in typing.get_args(Metric):
            return cast("Metric", stated)
    return cls.traits.metric


def from_stored(
    cls: type[EmbeddingFunction], config: dict[str, Any], alias: str, unknown: dict[str, Any]
) -> EmbeddingFunction:
    """Build an instance from stored metadata; the trust rules have already been applied to `config`."""
    with building(cls, "metadata", alias, unknown):
        return cls(**config)
