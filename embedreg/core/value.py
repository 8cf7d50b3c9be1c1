"""A configuration as a value: how an instance is built, read, compared, printed, copied and pickled.

Fields keep their `$var:` references; reading one resolves it. Private attributes (weights, clients) are not part of the
value, and no secret leaves an instance in a dump, a pickle or an error.

Over 400 lines: one class, `Value`, and the wrappers that it puts around its subclasses' methods.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, NoneType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from cachetools import cached, cachedmethod
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, PrivateAttr, ValidationError
from pydantic_core import CoreSchema, from_json

from embedreg.core import fields as config_
from embedreg.core import instances, kinds, role, showing
from embedreg.core.canonical import persisted_name
from embedreg.core.fields import copied, names_by_key, sensitive_fields
from embedreg.core.held import declared_for, held_to
from embedreg.core.instances import Origin, State, state_of
from embedreg.core.vouched import settle
from embedreg.errors import ConfigError, EmbedregError, HardcodedSecretError
from embedreg.security import redaction, references

if TYPE_CHECKING:
    from typing import Self

    from embedreg.security.variables import Binding

__all__ = ["Value"]

CONTRACT = (
    "compute_embeddings",
    "compute_embeddings_with_retry",
    "compute_query_embeddings",
    "compute_query_embeddings_with_retry",
    "compute_source_embeddings",
    "compute_source_embeddings_with_retry",
    "generate_embeddings",
    "ndims",
)
_RESERVED = ("_adapters", "_declared", "_embedreg", "_unknown")
# Most attributes have these types and hold no reference: checked first, since it is the fastest check.
_NO_REFERENCE = frozenset({BuiltinFunctionType, FunctionType, MethodType, NoneType, State, bool, float, int, type})
# Methods cached by `cachetools`: pydantic would treat its newer kinds as fields without a type.
_CACHED = tuple(
    type(cache(max))
    for cache in (
        cached(cache={}),
        cached(cache={}, info=True),
        cachedmethod(lambda _: {}),
        *([cachedmethod(lambda _: {}, info=True)] if "info" in inspect.signature(cachedmethod).parameters else ()),
    )
)
_ALIAS = "__embedding_function_registry_alias__"
_get = object.__getattribute__
_Init = TypeVar("_Init", bound=Callable[..., None])


def _accepted(init: Any) -> frozenset[str] | None:
    """Return the keyword arguments that an `__init__` accepts; None if it accepts any."""
    parameters = inspect.signature(init).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)) - {"self"}


def _outermost(init: _Init) -> _Init:
    """Wrap an `__init__`: record the outermost arguments for pickle and copy, and redact secrets from its errors."""
    accepted = _accepted(init)
    guard = redaction.guarded(init)

    @functools.wraps(init)
    def __init__(self: Value, /, *args: Any, **config: Any) -> None:  # noqa: N807 (it is one)
        state = state_of(self)
        if state.passed is not None:  # called by the `__init__` of a subclass
            init(self, *args, **config)
            return
        too_deep = False
        try:
            if accepted is not None:
                config_.refuse_unknown(type(self), config, accepted)
            for key, value in config.items():
                if key not in names_by_key(type(self)):  # fields are checked in the base's own `__init__`
                    self._check_secret(key, value)
            state.passed = (copied(args), copied(config))
            guard(self, *args, **config)
        except RecursionError:
            too_deep = True
        if too_deep:
            raise ConfigError(
                f"the configuration of {type(self).__name__} is nested too deeply, or holds itself.",
                "pass plain values",
            )

    return __init__  # type: ignore[return-value]  # of the same signature


class Value(BaseModel):
    """The base of `EmbeddingFunction`: everything except embedding."""

    __slots__ = ("__weakref__", "_embedreg")
    # By name as well as by alias: stored configurations use field names.
    model_config = ConfigDict(
        hide_input_in_errors=True, ignored_types=_CACHED, protected_namespaces=(), validate_by_name=True
    )

    __embedding_function_registry_alias__: ClassVar[str | None] = None
    _original_args: dict[str, Any] = PrivateAttr(default_factory=dict)
    _unknown: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __new__(cls, *args: Any, **config: Any) -> Self:
        self = super().__new__(cls)
        object.__setattr__(self, "_embedreg", instances.new_state(cls))
        return self

    @_outermost
    def __init__(self, **config: Any) -> None:
        cls, state = type(self), state_of(self)
        names = names_by_key(cls)
        config_.refuse_unknown(cls, config, names)
        for key, value in config.items():
            cls._check_secret(names.get(key, key), value)
        state.given = config
        left = config_.referring_defaults(cls).keys() - {names.get(key, key) for key in config}
        if left:
            state.given = {**config, **{name: copied(config_.referring_defaults(cls)[name]) for name in left}}
        self._validate_given()
        known = self._held_secrets() if any(map(references.has_reference, state.given.values())) else ()
        fields = cls.model_fields
        for name, value in self.raw_fields().items():
            checked = value is state.given.get(name, _get) or (name in fields and value is fields[name].default)
            if not checked:
                cls._check_secret(name, value, () if instances.same(value, state.given.get(name)) else known)
        self._original_args = copied(config)
        self._unknown = state.unknown

    def _validate_given(self) -> None:
        """Validate the resolved values with pydantic, and keep the references."""
        cls, state = type(self), state_of(self)
        state.resolved = instances.validation_values(self)
        problem: EmbedregError | None = None
        tolerated = False
        try:
            super().__init__(**state.resolved)
        except ValidationError as exc:
            failed = {names_by_key(cls).get(str(error["loc"][0]) if error["loc"] else "") for error in exc.errors()}
            tolerated = state.origin == "pickle" and failed <= instances.unset(self)
            if not tolerated:
                problem = config_.config_error(cls, exc, self._held_secrets())
        finally:
            state.resolved = None
        if problem is not None:  # raised here, so that no frame or context holds the invalid values
            raise problem
        if tolerated:
            instances.fill_unvalidated(self)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the class's schema with a serializer that redacts secrets, used for every dump to JSON or a dict."""
        schema = handler(source)
        showing.serialize_cleaned(handler.resolve_ref_schema(schema))
        return schema

    def model_post_init(self, context: Any, /) -> None:
        """Put the references back before any code of a subclass sees the instance."""
        instances.keep(self)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.__module__ != "embedreg.core.base":
            config_.refuse_class(cls, _RESERVED)
        _wrap(cls)

    # -- overridden by subclasses ---------------------------------------------------------------------------------

    @staticmethod
    def sensitive_keys() -> list[str]:
        """Return the fields that hold secrets, in addition to every `SecretStr` field."""
        return []

    @staticmethod
    def runtime_keys() -> list[str]:
        """Return the fields that cannot change a vector, in addition to `device`, `batch_size` and timeouts."""
        return []

    @staticmethod
    def guarded_fields() -> list[str]:
        """Return the fields that stored metadata may not set without a grant: endpoints, paths, headers, code."""
        return []

    # -- a value ----------------------------------------------------------------------------------------------------

    def __getattribute__(self, name: str) -> Any:
        value = _get(self, name)
        kind = value.__class__
        if kind in _NO_REFERENCE or (kind is str and name != _ALIAS and not value.startswith(references.PREFIX)):
            return value
        if name in _get(self, "__class__").__pydantic_fields__:
            return instances.read(self, name, value)
        if name == _ALIAS:
            return persisted_name(self)
        return value

    def __getattr__(self, name: str) -> Any:
        # a private attribute, as pydantic returns it, in a third of the time
        attributes = _get(self, "__private_attributes__")
        if name in attributes and not hasattr(attributes[name].default, "__get__"):
            held = _get(self, "__pydantic_private__")
            if held is not None and name in held:
                return held[name]
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides it from checkers

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not isinstance(getattr(type(self), name, None), property):
            if not hasattr(type(self), name):
                config_.refuse_unknown(type(self), [name], names_by_key(type(self)))
            self._check_secret(name, value, self._held_secrets())
            state_of(self).converted.pop(name, None)
            state_of(self).cached.pop(name, None)
            state_of(self).assigned.add(name)
            if redaction.is_active(self):
                state_of(self).own.add(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if state_of(self).cached.pop(name, _get) is _get:
            super().__delattr__(name)

    def raw_fields(self) -> dict[str, Any]:
        """Return the stored field values, with references unresolved."""
        own = _get(self, "__dict__")
        fields = {name: own[name] for name in type(self).__pydantic_fields__ if name in own}
        extra = instances.extra_of(self)
        return {**fields, **extra} if extra else fields

    def __iter__(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]  # pydantic's is a generator too
        yield from self.raw_fields().items()

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        fields = type(self).model_fields
        yield from ((k, v) for k, v in self.raw_fields().items() if k not in fields or fields[k].repr)

    def model_dump(self, **kwargs: Any) -> dict[str, Any]:
        """Dump the fields as pydantic does: references stay, and computed fields show no secret."""
        with showing.plain_errors():
            return super().model_dump(**{**_warnings_option(self), **kwargs})

    def model_dump_json(self, **kwargs: Any) -> str:
        """Dump the fields as JSON, as `model_dump`."""
        return super().model_dump_json(**{**_warnings_option(self), **kwargs})

    def __getstate__(self) -> dict[Any, Any]:
        # for other libraries (pickle and copy use __reduce__): the fields without private attributes
        empty = {"__pydantic_extra__": None, "__pydantic_private__": None}
        return {"__dict__": self.raw_fields(), "__pydantic_fields_set__": set(self.model_fields_set), **empty}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value) or type(self) is not type(other):
            return False
        mine, theirs = self.raw_fields(), other.raw_fields()
        try:
            return mine == theirs
        except ValueError:  # an array field, whose comparison has no single truth value
            return config_.freeze(mine) == config_.freeze(theirs)  # type: ignore[no-any-return]

    def __hash__(self) -> int:
        return hash((type(self), config_.freeze(self.raw_fields())))

    def __reduce__(self) -> tuple[Any, ...]:
        state = state_of(self)
        passed = state.passed or ((), {})
        fields = self.raw_fields()
        for name, value in fields.items():
            self._check_secret(name, value)  # a dict or a list may have been changed in place
        names = {reference.name for reference in references.references([*passed, fields])}
        how = (
            state.origin,
            state.alias,
            state.unknown,
            self._declared,
            declared_for(self),
        )
        return _rebuild, (type(self), passed, fields, references.variables.bindings(names), how)

    def __copy__(self) -> Self:
        rebuild, args = self.__reduce__()
        return rebuild(*args)  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return copy.copy(self)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a new instance with some fields changed, built through `__init__` without private attributes."""
        if not update:
            return copy.copy(self)
        cls, state, names = type(self), state_of(self), names_by_key(type(self))
        config_.refuse_unknown(cls, update, names)
        changed = {names.get(key, key): value for key, value in update.items()}
        args, passed = state.passed or ((), {})
        accepted = _accepted(cls.__init__)
        direct = {key: value for key, value in changed.items() if accepted is None or key in accepted}
        kept = {key: value for key, value in passed.items() if names.get(key, key) not in direct}
        with instances.building(cls, state.origin, state.alias, state.unknown):
            before, twin = cls(*args, **copied(passed)).raw_fields(), cls(*args, **copied(kept), **direct)
        for name, value in self.raw_fields().items():  # what was assigned after the instance was built
            if name not in changed and (name not in before or not instances.same(before[name], value)):
                instances.overlay(twin, name, copied(value))
        for name, value in changed.items():
            if name not in direct:  # the class's own __init__ does not take this field
                setattr(twin, name, value)
        return twin

    @classmethod
    def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:
        """Construct without validation; hard-coded secrets are still an error."""
        names = names_by_key(cls)
        for key, value in values.items():
            cls._check_secret(names.get(key, key), value)
        made = super().model_construct(_fields_set, **values)
        state_of(made).given, state_of(made).passed = values, ((), copied(values))
        made._original_args = copied(values)
        return made

    @classmethod
    def model_validate(cls, obj: Any, **kwargs: Any) -> Self:
        """Return an instance unchanged; build one from a mapping, as the constructor does."""
        if isinstance(obj, cls):
            return obj
        if not isinstance(obj, Mapping):
            raise ConfigError(
                f"a configuration of {cls.__name__} must be a dict, got {type(obj).__name__}.", "create(name=...)"
            )
        return cls(**obj)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **kwargs: Any) -> Self:
        """Build an instance from a JSON object, as the constructor does."""
        try:
            values = from_json(json_data)
        except ValueError:
            values = None
        return cls.model_validate(values)

    @classmethod
    def model_validate_strings(cls, obj: Any, **kwargs: Any) -> Self:
        """Build an instance from a mapping of strings, as the constructor does."""
        return cls.model_validate(obj)

    def _held_secrets(self) -> list[str]:
        """Return the secrets that this instance holds or has held, for redaction."""
        return instances.held_secrets(self)

    @classmethod
    def _check_secret(cls, name: str, value: Any, known: Iterable[str] = ()) -> None:
        """Raise for a hard-coded secret, and for a value that contains one of the known secrets."""
        named = sensitive_fields(cls)
        sensitive = name in named or (name not in cls.model_fields and references.looks_sensitive(name))
        inner = config_.nested_secrets(cls).get(name, frozenset())
        references.refuse_hardcoded(name, value, sensitive=sensitive, named=named | inner)
        if instances.holds_any(value, known):
            raise HardcodedSecretError(
                f"{name} would hold a secret in plain text: fields are dumped, stored and pickled.",
                f"keep it in a private attribute, self._{name}, or work it out in a property",
            )


def _warnings_option(self: Value) -> dict[str, Any]:
    # a reference in a field for a choice or a number must not cause a warning
    return {"warnings": not references.has_reference(self.raw_fields())}


def _rebuild(
    cls: type[Value],
    passed: tuple[tuple[Any, ...], dict[str, Any]],
    fields: dict[str, Any],
    bindings: dict[str, Binding],
    how: tuple[Any, ...],
) -> Value:
    """Unpickle or copy an instance: call `__init__`, then set the fields that were assigned later."""
    references.variables.adopt(bindings)
    origin: Origin
    origin, alias, unknown, declared, column = how
    args, config = copied(passed)
    with instances.building(cls, "metadata" if origin == "metadata" else "pickle", alias, unknown):
        instance = cls(*args, **config)
    state_of(instance).origin, instance._declared = origin, declared
    built = instance.raw_fields()
    for name, value in fields.items():
        if name not in built or not instances.same(built[name], value):
            instances.overlay(instance, name, copied(value))
    return instance if column is None else held_to(instance, column)


def _extra_or_private(self: Value, name: str) -> Any:
    """Resolve references in extra fields: the `__getattr__` of classes that allow them."""
    value = super(Value, self).__getattr__(name)  # type: ignore[misc]  # pydantic hides it from checkers
    return instances.read(self, name, value) if name in instances.extra_of(self) else value


def _wrap(cls: type[Value]) -> None:
    """Wrap the methods and properties of a class, to redact secrets and keep references."""
    role.fill(cls)
    own = vars(cls) if cls.__module__ != "embedreg.core.base" else {}  # its methods raise no errors of their own
    helpers = {name for name in (role.BATCH, role.BATCH + role.RETRY) if not role.takes_role(getattr(cls, name, None))}
    contract = [name for name in CONTRACT if name not in helpers]
    for name, value in list(own.items()):
        if name == "__init__":
            cls.__init__ = _outermost(value)  # type: ignore[method-assign]
        elif name == "model_post_init":
            setattr(cls, name, _after_references(value))
        elif name.startswith("_") or name in contract or redaction.is_guarded(value):
            continue
        elif isinstance(value, FunctionType):
            setattr(cls, name, redaction.guarded(value))
        elif isinstance(value, property) and value.fget is not None:
            setattr(cls, name, property(redaction.guarded(value.fget), value.fset, value.fdel, value.__doc__))
        elif type(value) is functools.cached_property:
            cached = showing.SecretSafeCachedProperty(redaction.guarded(value.func))
            cached.__set_name__(cls, name)
            setattr(cls, name, cached)
        elif isinstance(value, functools.cached_property):
            value.func = redaction.guarded(value.func)
    for name in contract:  # of mixins too
        method = inspect.getattr_static(cls, name, None)
        if isinstance(method, staticmethod | classmethod) or not callable(method) or redaction.is_guarded(method):
            continue
        if not getattr(method, "__isabstractmethod__", False):
            check = _checked_ndims if name == "ndims" else None
            method = role.honouring(method) if name == role.BATCH else method
            method = redaction.guarded(method, whole=name != "ndims", check=check)
            setattr(cls, name, role.entered(name, method) if name in role.LANCEDB else method)
    for name in showing.METHODS if cls.__module__ != "embedreg.core.base" else ():
        method = inspect.getattr_static(cls, name, None)
        ours = inspect.getattr_static(Value, name, None)
        if isinstance(method, FunctionType) and method is not ours and not redaction.is_guarded(method):
            setattr(cls, name, showing.shown(method))
    if cls.model_config.get("extra") == "allow":
        cls.__getattr__ = _extra_or_private  # type: ignore[method-assign]


def _checked_ndims(self: Value, ndims: Any) -> Any:
    if state_of(self).pending:
        settle(self)
    return config_.bounded_ndims(ndims, kinds.kind_of(self).max_ndims)


def _after_references(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def model_post_init(self: Value, context: Any, /) -> None:
        instances.keep(self)
        method(self, context)

    return model_post_init
