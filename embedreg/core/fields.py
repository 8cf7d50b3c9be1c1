"""The fields of a class: their names, which are sensitive or runtime-only, and errors for invalid ones."""

from __future__ import annotations

import difflib
import enum
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AliasChoices, AliasPath, BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from embedreg.arrow.vectors import MAX_NDIMS
from embedreg.errors import ConfigError, EmbedregError, HardcodedSecretError
from embedreg.security import references
from embedreg.security.sensitive import items_judged
from embedreg.support import containers
from embedreg.support.imports import did_you_mean

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


__all__ = ["MAX_NDIMS", "copied", "names_by_key", "runtime_fields", "secret_values", "sensitive_fields"]

T = TypeVar("T")

_RUNTIME_FIELDS = frozenset({"batch_size", "device", "max_retries", "num_threads", "num_workers"})
_NO_TEXT = (bool, int, float, NoneType, enum.Enum, BaseModel)  # a nested model's fields are checked one by one


# -- classes ----------------------------------------------------------------------------------------------------------


def _per_class(derive: Callable[[type[Any]], T]) -> Callable[[type[Any]], T]:
    """Cache a value derived from a class, for as long as the class lives and keeps its fields.

    A class that is pickled by value (as Ray does for classes of a script) is created empty and gets its fields later.
    """
    known: weakref.WeakKeyDictionary[type[Any], tuple[Any, T]] = weakref.WeakKeyDictionary()

    @functools.wraps(derive)  # such a pickle looks it up by name
    def remembered(cls: type[Any]) -> T:
        fields = cls.__pydantic_fields__
        held = known.get(cls)
        if held is not None and held[0] is fields:
            return held[1]
        value = derive(cls)
        if cls.__pydantic_complete__:  # otherwise some annotations are not resolved yet
            known[cls] = fields, value
        return value

    return remembered


@_per_class
def _sensitive_fields(cls: type[Any]) -> frozenset[str]:
    found = set(cls.sensitive_keys())
    for name, info in cls.model_fields.items():
        for_text = any(_may_hold_text(leaf) for leaf in _leaves(info.annotation))
        if _is_wrapped(info.annotation) or (for_text and references.looks_sensitive(name)):
            found.add(name)
    return frozenset(found)


def sensitive_fields(cls: type[Any]) -> frozenset[str]:
    """Return the sensitive fields of a class.

    These are its `sensitive_keys()`, every field whose type contains `SecretStr`, and every text field named like a
    secret (`api_key`, `password`, ...).
    """
    return _sensitive_fields(cls)


@_per_class
def nested_secrets(cls: type[BaseModel]) -> dict[str, frozenset[str]]:
    """Map each field that holds a model to the names of the secret fields in that model, at any depth."""
    found = {name: _secret_names(info.annotation, set()) for name, info in cls.model_fields.items()}
    return {name: frozenset(names) for name, names in found.items() if names}


def _secret_names(annotation: Any, seen: set[type]) -> set[str]:
    names = set()
    for leaf in _leaves(annotation):
        if isinstance(leaf, type) and issubclass(leaf, BaseModel) and leaf not in seen:
            seen.add(leaf)  # models may refer to each other
            for name, info in leaf.model_fields.items():
                names |= {name} if _is_wrapped(info.annotation) else _secret_names(info.annotation, seen)
    return names


def _is_wrapped(annotation: Any) -> bool:
    return any(isinstance(leaf, type) and issubclass(leaf, containers.WRAPPERS) for leaf in _leaves(annotation))


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types in an annotation; a Literal has none."""
    if get_origin(annotation) is Literal:
        return
    annotation = getattr(annotation, "__value__", annotation)  # `type X = ...`
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _leaves(argument)


def _may_hold_text(leaf: Any) -> bool:
    return isinstance(leaf, type) and not issubclass(leaf, _NO_TEXT)


@_per_class
def _runtime_fields(cls: type[Any]) -> frozenset[str]:
    own = {name for name in cls.model_fields if name.startswith("timeout") or name.endswith(("timeout", "timeout_s"))}
    return _RUNTIME_FIELDS | own | frozenset(cls.runtime_keys())


def runtime_fields(cls: type[Any]) -> frozenset[str]:
    """Return the fields of a class that cannot change its vectors."""
    return _runtime_fields(cls)


@_per_class
def names_by_key(cls: type[BaseModel]) -> dict[str, str]:
    """Map field names and aliases to field names."""
    known = {name: name for name in cls.model_fields}
    for name, info in cls.model_fields.items():
        for alias in _aliases(info):
            known.setdefault(alias, name)
    return known


def _aliases(info: FieldInfo) -> Iterator[str]:
    for alias in (info.alias, info.validation_alias):
        for choice in alias.choices if isinstance(alias, AliasChoices) else [alias]:
            first = choice.path[0] if isinstance(choice, AliasPath) else choice
            if isinstance(first, str):
                yield first


@_per_class
def referring_defaults(cls: type[Any]) -> dict[str, Any]:
    """Return the class defaults that are `$var:` references, which pydantic would not validate."""
    plain = {name: info.default for name, info in cls.model_fields.items() if info.default is not PydanticUndefined}
    return {name: value for name, value in plain.items() if references.has_reference(value)}


def bounded_ndims(ndims: Any, most: int = MAX_NDIMS) -> Any:
    """Return the result of `ndims()` if it is a valid width: an int, or a numpy integer.

    Raises:
        ConfigError: it is not an integer, less than 1, or more than the kind of vectors allows.
    """
    if not isinstance(ndims, Integral) or isinstance(ndims, bool):
        raise ConfigError(
            f"ndims() returned {repr(ndims)[:40]} ({type(ndims).__name__}), not an int.",
            "return the width of a vector, an int",
        )
    width = int(ndims)
    if width < 1:
        raise ConfigError(f"ndims() returned {width}.", "return the width of a vector: 1 or more")
    if width > most:
        raise ConfigError(f"ndims() returned {ndims}, more than {most}.", "return the width of a vector")
    return ndims


def refuse_class(cls: type[Any], reserved: Iterable[str]) -> None:
    """Raise for a class with a hard-coded secret as a default, or with one of embedreg's private attribute names.

    Raises:
        HardcodedSecretError, ConfigError: the message names the class and the field.
    """
    own = cls.__private_attributes__
    inherited = [base.__dict__.get("__private_attributes__", {}) for base in cls.__mro__[1:]]
    taken = [name for name in reserved if name in own and all(own[name] is not known.get(name) for known in inherited)]
    if taken:
        raise ConfigError(f"{cls.__name__} declares {taken[0]}, which is embedreg's own.", f"call it {taken[0]}_")
    named = sensitive_fields(cls)
    for name, info in cls.model_fields.items():
        if info.default is not PydanticUndefined:
            where = f"{cls.__name__}.{name}"
            try:
                references.refuse_hardcoded(name, info.default, sensitive=name in named, named=named)
            except HardcodedSecretError as exc:
                raise HardcodedSecretError(f"the default of {where}: {exc.message}", exc.hint) from None


# Field names of other libraries, without underscores -> possible names here.
_OTHER_NAMES = {
    other: names
    for names, others in {
        ("name",): "model modelname modelid modelnameorpath modelpath deployment engine",
        (
            "dim",
            "truncate_dim",
        ): "dims dimension dimensions ndims ndim size outputdimensionality nfeatures",
        ("api_key",): "key apitoken token openaiapikey accesstoken",
        ("base_url",): "url apibase endpoint host apiurl openaiapibase baseuri",
        ("batch_size",): "batch maxbatchsize chunksize",
        ("timeout_s",): "timeout requesttimeout",
        ("deadline_s",): "deadline",
        ("num_threads", "concurrency"): "threads workers numworkers nthreads maxconcurrency maxworkers",
        ("normalize",): "normalizeembeddings normalise normalized",
        ("precision",): "dtype torchdtype",
        ("query_prompt",): "queryprefix queryinstruction",
        ("document_prompt",): "documentprefix passageprefix passageprompt textprefix",
        ("default_headers",): "headers extraheaders",
    }.items()
    for other in others.split()
}


# -- refusals ---------------------------------------------------------------------------------------------------------


_MISTYPED = 0.9  # difflib ratio: a typo of one or two letters in a long name
_LONGEST = 100  # characters; longer names get no typo suggestion


def refuse_unknown(cls: type[BaseModel], config: Iterable[str], names: Iterable[str]) -> None:
    """Raise ConfigError, with a suggestion, for an unknown field name."""
    if cls.model_config.get("extra") == "allow":
        return
    known = set(names)
    for key in config:
        if key not in known:
            mistyped = len(str(key)) <= _LONGEST and difflib.get_close_matches(str(key), known, 1, _MISTYPED)
            others = () if mistyped else _OTHER_NAMES.get(_plain(str(key)), ())
            other = next((name for name in others if name in known), None)
            meant = did_you_mean(str(key), known) if other is None else f"did you mean {other!r}? "
            shell = meant if other is None else f"did you mean --set {other}=...? "
            fields = f"Fields: {', '.join(sorted(known))}."
            raise ConfigError(f"{cls.__name__} has no field {key!r}.", f"{meant}{fields}").for_shell(shell + fields)


def _plain(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "")


def config_error(cls: type[Any], exc: ValidationError, values: Iterable[str]) -> EmbedregError:
    """Convert pydantic's error to ours, without input values; an embedreg error raised in a validator is returned."""
    problems = []
    for each in exc.errors(include_url=False, include_input=False):
        cause = each.get("ctx", {}).get("error")
        if isinstance(cause, EmbedregError):
            return cause.with_traceback(None)
        problems.append(f"{'.'.join(str(part) for part in each['loc']) or 'configuration'}: {each['msg']}")
    alias = cls.__dict__.get("__embedding_function_registry_alias__")
    hint = f"the fields and their types: embedreg.get_registry().describe({alias!r})"
    error = ConfigError(
        references.redact(f"invalid configuration of {cls.__name__}: {'; '.join(problems)}", values),
        hint if alias is not None else f"its fields: {', '.join(cls.model_fields)}",
    )
    return error if alias is None else error.for_shell(f"the fields and their types: embedreg functions {alias}")


# -- values -----------------------------------------------------------------------------------------------------------


def secret_values(cls: type[Any], config: Mapping[str, Any], function: str | None = None) -> set[str]:
    """Return the values of a configuration's sensitive references, for redaction only.

    Included are references in sensitive fields and keys, all headers, and any text that has the form of a secret.
    """
    named, nested = sensitive_fields(cls), nested_secrets(cls)
    found: set[str] = set()

    def gather(value: Any, sensitive: bool, named: frozenset[str]) -> None:
        if isinstance(value, containers.WRAPPERS):
            value, sensitive = containers.unwrapped(value), True
        if isinstance(value, str):
            for reference in references.references(value):
                text = references.variables.find(reference.name, function=function)
                if text and (sensitive or references.holds_credentials(text)):
                    found.add(text)
                    if "://" in text:  # a message may contain only the password of a URL's credentials
                        found.update(text.partition("://")[2].rpartition("@")[0].partition(":")[2:])
            return
        for key, item, judged in items_judged(value, containers.items_of(value) or []):
            gather(item, sensitive or judged or key in named, named)

    for name, value in config.items():
        sensitive = name in named or references.looks_sensitive(name) or name.lower().endswith("headers")
        gather(value, sensitive, named | nested.get(name, frozenset()))
    return found - {""}


def copied(value: Any) -> Any:
    """Copy nested containers; share their other values, which may be clients or locks."""
    if type(value) in (dict, list, tuple, set, frozenset):
        return containers.rebuilt(value, lambda key, item: copied(item))
    return (
        value.model_copy(deep=True)
        if isinstance(value, BaseModel) and containers.items_of(value) is not None
        else value
    )


def freeze(value: Any) -> Any:
    """Return a hashable form of a configuration value, with the same equality."""
    if isinstance(value, Mapping):
        return frozenset((key, freeze(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    if isinstance(value, set):
        return frozenset(value)
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
