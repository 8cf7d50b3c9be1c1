"""The contract: `EmbeddingFunction` and `TextEmbeddingFunction`, with LanceDB's names and meanings.

A configuration is a value: two instances of one class with equal fields are equal, hash alike, and pickle and copy
through `__init__`. Fields keep their `$var:` references; reading one resolves it. Weights, clients and whatever else an
instance gathers in private attributes are no part of the value.
"""

from __future__ import annotations

import contextvars
import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, Union

from pydantic import BaseModel, ConfigDict, PrivateAttr, SecretStr, ValidationError

from embedreg import engines, redaction, secrets
from embedreg.errors import ConfigError
from embedreg.imports import did_you_mean

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    import pyarrow as pa

__all__ = ["IMAGES", "TEXT", "EmbeddingFunction", "EmbeddingFunctionConfig", "TextEmbeddingFunction", "Traits"]

TEXT: TypeAlias = Union[str, list[str], "pa.Array", "pa.ChunkedArray", "np.ndarray"]
IMAGES: TypeAlias = Union[str, bytes, list[str], list[bytes], "pa.Array", "pa.ChunkedArray", "np.ndarray"]

Origin = Literal["user", "metadata", "pickle"]

_GUARDED_METHODS = (
    "compute_query_embeddings",
    "compute_query_embeddings_with_retry",
    "compute_source_embeddings",
    "compute_source_embeddings_with_retry",
    "generate_embeddings",
    "ndims",
)
_RUNTIME_FIELDS = frozenset({"batch_size", "device", "max_retries", "num_threads", "num_workers"})
_MAY_REFER = frozenset({str, dict, list, tuple, SecretStr})


@dataclass(frozen=True)
class Traits:
    """What a class of functions is, told without creating one.

    Attributes:
        modality: what a source row is: "text", "image", or several joined by "+".
        requires: modules that must be importable.
        extra: the embedreg extra that installs them.
        remote: whether calls leave this machine; such functions are never probed per query.
        retry: whether a failed call may be tried again; a local model fails for good reasons.
        metric: the distance that the vectors are meant for.
        window: how many rows the function is handed at once, in rows; more lets a local model sort by length, fewer
            give a livelier progress bar.
        stock_fields: the fields that LanceDB's own function of this name knows; None where it has no such function.
        stored_names: other names for fields in stored configurations (JavaScript's option names), to field names.
    """

    modality: str = "text"
    requires: tuple[str, ...] = ()
    extra: str | None = None
    remote: bool = False
    retry: bool = True
    metric: Literal["cosine", "l2", "dot"] = "cosine"
    window: int = 1024
    stock_fields: frozenset[str] | None = None
    stored_names: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Build:
    """How the instance under construction came to be; read by `__init__`, which users' subclasses may wrap."""

    cls: type
    origin: Origin
    alias: str | None = None
    unknown: dict[str, Any] = field(default_factory=dict)


_build: contextvars.ContextVar[_Build | None] = contextvars.ContextVar("embedreg_build", default=None)


class EmbeddingFunction(BaseModel, ABC):
    """The base of every embedding function.

    A subclass says `ndims()`, `compute_source_embeddings` and `compute_query_embeddings`; for text,
    `TextEmbeddingFunction` needs only `ndims()` and `generate_embeddings`.

    Raises:
        ConfigError: an unknown field or a wrong value (`create` and the constructor alike).
        HardcodedSecretError: a sensitive field with anything but a `$var:` reference.
        MissingVariableError: a reference to a variable that is not set.
    """

    __slots__ = ("__weakref__", "_passed")
    model_config = ConfigDict(hide_input_in_errors=True, protected_namespaces=())

    traits: ClassVar[Traits] = Traits()
    __embedding_function_registry_alias__: ClassVar[str | None] = None

    max_retries: int = 7
    _ndims: Any = PrivateAttr(default=None)
    _original_args: dict[str, Any] = PrivateAttr(default_factory=dict)
    _origin: Origin = PrivateAttr(default="user")
    _alias: str | None = PrivateAttr(default=None)
    _unknown: dict[str, Any] = PrivateAttr(default_factory=dict)
    _declared: dict[str, Any] = PrivateAttr(default_factory=dict)
    _verified: str | None = PrivateAttr(default=None)
    _adapters: dict[str | None, Any] = PrivateAttr(default_factory=dict)

    def __new__(cls, *args: Any, **config: Any) -> Self:
        # The arguments of the outermost __init__, which a subclass may change before they reach the base: the way
        # back for pickle and copy.
        self = super().__new__(cls)
        object.__setattr__(self, "_passed", config)
        return self

    def __init__(self, **config: Any) -> None:
        cls = type(self)
        build = _build.get()
        if build is None or build.cls is not cls:
            build = _Build(cls, "user")
        names = _names_by_key(cls)
        _refuse_unknown(cls, config, names)
        for key, value in config.items():
            cls._check_secret(names.get(key, key), value)
        lookup = secrets.variables.lookup if build.origin == "user" else functools.partial(_lenient, cls, build.alias)
        resolved = {key: secrets.resolve(value, lookup) for key, value in config.items()}
        try:
            super().__init__(**resolved)
        except ValidationError as exc:
            raise _config_error(cls, exc, _secret_values(cls, config, build.alias)) from None
        for key, value in config.items():
            _keep_reference(self, names.get(key, key), value, resolved[key])
        for name in cls.model_fields:
            if name not in self.__pydantic_fields_set__:
                cls._check_secret(name, self.__dict__[name])
        self._original_args = copy.deepcopy(config)
        self._origin, self._alias, self._unknown = build.origin, build.alias, build.unknown

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name in _GUARDED_METHODS:
            method = cls.__dict__.get(name)
            if isinstance(method, FunctionType) and not getattr(method, "__isabstractmethod__", False):
                setattr(cls, name, redaction.guarded(method))

    # -- creating ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, **config: Any) -> Self:
        """Create an instance from its configuration.

        A table whose stored configuration equals this one gets this very instance back in this process, its
        `device` and other runtime fields included: the reader's own code has vouched for it.
        """
        instance = cls(**config)
        from embedreg import grants  # a configuration is vouched for only once there is one

        grants.vouch(instance)
        return instance

    @staticmethod
    def sensitive_keys() -> list[str]:
        """Name the fields that hold secrets, in addition to every `SecretStr` field."""
        return []

    @staticmethod
    def runtime_keys() -> list[str]:
        """Name the fields that cannot change a vector, in addition to `device`, `batch_size`, timeouts and the like."""
        return []

    @staticmethod
    def guarded_fields() -> list[str]:
        """Name the fields that stored metadata may not set without a grant: endpoints, paths, headers, code."""
        return []

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
        """Return what readers should know of the vectors: `dtype`, `normalized`, `prompts`; recorded with the data."""
        return {"dtype": "float32", "normalized": getattr(self, "normalize", None)}

    def model_identity(self) -> str | None:
        """Return the model's resolved revision or a hash of its weights, never a path; None when it cannot be known."""
        return None

    # -- what callers use -------------------------------------------------------------------------------------------

    @redaction.guarded
    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> Any:
        """Embed a source column, trying again up to `max_retries` times what may pass by itself."""
        return self._with_retry(self.compute_source_embeddings, *args, **kwargs)

    @redaction.guarded
    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> Any:
        """Embed a query, trying again up to `max_retries` times what may pass by itself."""
        return self._with_retry(self.compute_query_embeddings, *args, **kwargs)

    def _with_retry(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.traits.retry or self.max_retries == 0:
            return call(*args, **kwargs)
        from embedreg.runtime.retry import call_with_retry

        return call_with_retry(call, *args, max_retries=self.max_retries, **kwargs)

    def sanitize_input(self, texts: Any) -> Any:
        """Turn what an engine passes into something to iterate: a str becomes a list of one, Arrow becomes a list."""
        if isinstance(texts, str | bytes):
            return [texts]
        return texts.to_pylist() if hasattr(texts, "to_pylist") else texts

    def safe_model_dump(self) -> dict[str, Any]:
        """Return the configuration as it was passed, references unresolved.

        LanceDB's registry stores what this returns, so to that caller it gives the persisted form instead.
        """
        if engines.called_from("lancedb"):
            from embedreg import metadata

            return metadata.persisted_model(self)
        return copy.deepcopy(self._original_args)

    def SourceField(self, **kwargs: Any) -> Any:
        """Mark a pydantic field as this function's source column; further arguments are those of `pydantic.Field`."""
        return engines.field_info(self, "source_column_for", None, kwargs)

    def VectorField(self, source: str | None = None, **kwargs: Any) -> Any:
        """Mark a pydantic field as this function's vector column; further arguments are those of `pydantic.Field`.

        Args:
            source: the source field it belongs to; needed only when this function has several in one schema.
        """
        return engines.field_info(self, "vector_column_for", source, kwargs)

    def bind(self, source: str, vector: str) -> EmbeddingFunctionConfig:
        """Declare that this function fills column `vector` from column `source`."""
        return EmbeddingFunctionConfig(source_column=source, vector_column=vector, function=self)

    @property
    def from_metadata(self) -> bool:
        """Whether stored metadata asked for this instance, and nobody here vouched for it: no local lookups then."""
        return self._origin == "metadata"

    # -- a value ----------------------------------------------------------------------------------------------------

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if value.__class__ in _MAY_REFER and name in type(self).__pydantic_fields__:
            return secrets.resolve(value, self._lookup)
        if name == "__embedding_function_registry_alias__":
            from embedreg import metadata

            return metadata.persisted_name(self)
        return value

    def _lookup(self, reference: secrets.Reference) -> str:
        if self._origin != "metadata":
            return secrets.variables.lookup(reference)
        value = secrets.variables.find(reference.name, function=self._alias)
        if value is None:
            value = reference.default
        if value is None:
            raise secrets.missing(reference.name)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).__pydantic_fields__:
            self._check_secret(name, value)
        super().__setattr__(name, value)

    def raw_fields(self) -> dict[str, Any]:
        """Return the field values as they are kept: references, never what they resolve to."""
        return {name: self.__dict__[name] for name in type(self).model_fields if name in self.__dict__}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.raw_fields() == other.raw_fields()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), _freeze(self.raw_fields())))

    def __reduce__(self) -> Any:  # type: ignore[override]  # pydantic has no __reduce__ of its own to agree with
        names = {reference.name for reference in secrets.references(self._passed)}
        state = (self._origin, self._alias, self._unknown, self._declared)
        return _rebuild, (type(self), self._passed, self.raw_fields(), secrets.variables.bindings(names), state)

    def __copy__(self) -> Self:
        rebuild, args = self.__reduce__()
        return rebuild(*args)  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return copy.copy(self)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a new instance with some fields changed; no private attribute goes along."""
        twin = copy.copy(self)
        changed = dict(update or {})
        _refuse_unknown(type(self), changed, _names_by_key(type(self)))
        if not changed:
            return twin
        with _building(type(self), self._origin, self._alias, self._unknown):
            return type(self)(**{**twin._passed, **changed})

    @classmethod
    def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:
        """Construct without validation, though never with a hard-coded secret."""
        for name, value in values.items():
            cls._check_secret(name, value)
        return super().model_construct(_fields_set, **values)

    def _held_secrets(self) -> list[str]:
        """Return the secrets that this instance holds now: what must not appear in any text about it."""
        return _secret_values(type(self), self.raw_fields(), self._alias if self.from_metadata else None)

    @classmethod
    def _check_secret(cls, name: str, value: Any) -> None:
        named = sensitive_fields(cls)
        secrets.refuse_hardcoded(name, value, sensitive=name in named, named=named)


class TextEmbeddingFunction(EmbeddingFunction):
    """A function of text: queries and sources are embedded alike unless a subclass says otherwise."""

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
        """Embed one query text: a list (or array) that holds one vector."""
        return self.compute_source_embeddings(query, *args, **kwargs)

    def compute_source_embeddings(self, texts: TEXT, *args: Any, **kwargs: Any) -> Any:
        """Embed source texts: (n, d), or a list of n vectors."""
        return self.generate_embeddings(self.sanitize_input(texts))

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
        function = engines.unwrap(values.get("function"))
        if not isinstance(function, EmbeddingFunction):
            raise ConfigError(
                f"an EmbeddingFunctionConfig needs an embedreg function, not {type(function).__name__}.",
                "create one with embedreg.get('...').create()",
            )
        super().__init__(**{**values, "function": function})


def registered_name(cls: type[EmbeddingFunction]) -> str | None:
    """Return the name that a class itself was registered under; an unregistered subclass has none of its parent's."""
    alias = cls.__dict__.get("__embedding_function_registry_alias__")
    return alias if isinstance(alias, str) else None


def sensitive_fields(cls: type[EmbeddingFunction]) -> frozenset[str]:
    """Name the sensitive fields of a class: what it says, and every field whose type mentions `SecretStr`."""
    typed = {name for name, info in cls.model_fields.items() if "SecretStr" in repr(info.annotation)}
    return frozenset(cls.sensitive_keys()) | typed


def runtime_fields(cls: type[EmbeddingFunction]) -> frozenset[str]:
    """Name the fields of a class that cannot change its vectors."""
    own = {name for name in cls.model_fields if name.startswith("timeout") or name.endswith(("timeout", "timeout_s"))}
    return _RUNTIME_FIELDS | own | frozenset(cls.runtime_keys())


def from_stored(
    cls: type[EmbeddingFunction], config: dict[str, Any], alias: str, unknown: dict[str, Any]
) -> EmbeddingFunction:
    """Build an instance that stored metadata asked for; the trust rules have already been applied to `config`."""
    with _building(cls, "metadata", alias, unknown):
        return cls(**config)


@contextmanager
def _building(cls: type, origin: Origin, alias: str | None, unknown: dict[str, Any]) -> Iterator[None]:
    token = _build.set(_Build(cls, origin, alias, dict(unknown)))
    try:
        yield
    finally:
        _build.reset(token)


def _rebuild(
    cls: type[EmbeddingFunction],
    passed: dict[str, Any],
    fields: dict[str, Any],
    bindings: dict[str, str],
    state: tuple[Origin, str | None, dict[str, Any], dict[str, Any]],
) -> EmbeddingFunction:
    """Unpickle or copy: through `__init__`, with fields that were assigned later laid over it."""
    secrets.variables.adopt(bindings)
    origin, alias, unknown, declared = state
    with _building(cls, "metadata" if origin == "metadata" else "pickle", alias, unknown):
        instance = cls(**copy.deepcopy(passed))
    instance._origin, instance._declared = origin, declared
    for name, value in fields.items():
        if name not in instance.__dict__ or instance.__dict__[name] != value:
            instance.__dict__[name] = copy.deepcopy(value)
    return instance


def _lenient(cls: type, alias: str | None, reference: secrets.Reference) -> str:
    """Resolve for validation only: a missing variable stays a reference until the field is read."""
    value = secrets.variables.find(reference.name, function=alias)
    if value is None:
        value = reference.default
    return f"{secrets.PREFIX}{reference.name}" if value is None else value


def _keep_reference(instance: EmbeddingFunction, name: str, passed: Any, resolved: Any) -> None:
    """Put the reference back where validation left the resolved value unchanged; a number or a flag stays converted."""
    if name not in instance.__dict__ or next(secrets.references(passed), None) is None:
        return
    value = instance.__dict__[name]
    if isinstance(value, SecretStr):
        instance.__dict__[name] = passed if isinstance(passed, SecretStr) else SecretStr(passed)
    elif value == resolved:
        instance.__dict__[name] = copy.deepcopy(passed)


def _names_by_key(cls: type[BaseModel]) -> dict[str, str]:
    """Map what a caller may write (field names and aliases) to field names."""
    known = {name: name for name in cls.model_fields}
    for name, info in cls.model_fields.items():
        known.update({alias: name for alias in (info.alias, info.validation_alias) if isinstance(alias, str)})
    return known


def _refuse_unknown(cls: type[BaseModel], config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    if cls.model_config.get("extra") == "allow":
        return
    for key in config:
        if key not in names:
            raise ConfigError(
                f"{cls.__name__} has no field {key!r}.",
                f"{did_you_mean(key, names)}Fields: {', '.join(sorted(names))}.",
            )


def _config_error(cls: type, exc: ValidationError, values: list[str]) -> ConfigError:
    problems = "; ".join(
        f"{'.'.join(str(part) for part in error['loc']) or 'configuration'}: {error['msg']}"
        for error in exc.errors(include_url=False, include_context=False, include_input=False)
    )
    return ConfigError(
        secrets.redact(f"{cls.__name__} cannot be configured so: {problems}", values),
        f"the fields and their types: embedreg.get_registry().describe({cls.__name__!r})",
    )


def _secret_values(cls: type[EmbeddingFunction], config: Mapping[str, Any], alias: str | None = None) -> list[str]:
    """Return the values behind the sensitive references of a configuration, for redaction only."""
    named = sensitive_fields(cls)
    held: list[secrets.Reference] = []

    def gather(value: Any, sensitive: bool) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                gather(item, sensitive or secrets.looks_sensitive(key) or key in named)
        elif isinstance(value, list | tuple):
            for item in value:
                gather(item, sensitive)
        elif sensitive or isinstance(value, SecretStr):
            held.extend(secrets.references(value))

    for name, value in config.items():
        gather(value, name in named or secrets.looks_sensitive(name))
    found = (secrets.variables.find(reference.name, function=alias) for reference in held)
    return [value for value in found if value]


def _freeze(value: Any) -> Any:
    """Turn a configuration value into something hashable with the same equality."""
    if isinstance(value, Mapping):
        return frozenset((key, _freeze(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    if isinstance(value, set):
        return frozenset(value)
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
