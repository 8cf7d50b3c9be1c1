"""Declarations and the bytes in the Arrow schema: LanceDB's form, read from either client and written for both.

The schema metadata key `embedding_functions` holds a JSON list; `docs/persisted-form.md` is its specification. What is
read is untrusted (see `trust`); what cannot be rebuilt here is kept byte for byte and reported by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_jsonable_python

from embedreg import base, grants
from embedreg.base import EmbeddingFunction, EmbeddingFunctionConfig, runtime_fields
from embedreg.engines import unwrap
from embedreg.errors import ConfigError, EmbedregError, MetadataError, UnknownFunctionError

__all__ = ["Entry", "Functions", "encode", "entries", "parse", "persisted_model", "persisted_name"]

KEY = "embedding_functions"
RESERVED = "embedreg"
FORMAT = 1
MAX_BYTES = 16 * 2**20  # a declaration is a few kilobytes; anything near this is an attack on the parser
_JS_NAMES = {"sourceColumn": "source_column", "vectorColumn": "vector_column"}


@dataclass(frozen=True)
class Entry:
    """One stored declaration, as read: `raw` is its very text."""

    name: str | None
    model: dict[str, Any]
    source_column: str
    vector_column: str
    raw: str
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def reserved(self) -> dict[str, Any]:
        """What embedreg recorded beside the configuration; empty for an entry that another client wrote."""
        value = self.model.get(RESERVED)
        return value if isinstance(value, dict) else {}


class Functions(dict[str, EmbeddingFunctionConfig]):
    """Vector column -> declaration, and what could not be rebuilt.

    Asking for a column whose function is not installed, or not trusted, raises the error that says so.

    Attributes:
        entries: vector column -> the stored entry, for every column.
        problems: vector column -> why it could not be rebuilt.
        notes: things that were read all the same and that a person should know of.
    """

    def __init__(self, found: Iterable[Entry] = ()) -> None:
        super().__init__()
        self.entries: dict[str, Entry] = {entry.vector_column: entry for entry in found}
        self.problems: dict[str, EmbedregError] = {}
        self.notes: list[str] = []

    def __missing__(self, vector_column: str) -> EmbeddingFunctionConfig:
        if vector_column in self.problems:
            raise self.problems[vector_column]
        known = ", ".join(repr(name) for name in self.entries) or "none"
        raise MetadataError(
            f"no embedding function is declared for column {vector_column!r} (declared: {known}).",
            "declare one with fn.bind('source', 'vector')",
        )


# -- reading ------------------------------------------------------------------------------------------------------------


def serialized(metadata: Mapping[Any, Any] | None) -> str | None:
    """Find the declarations in schema metadata, whether its keys and values are bytes or str."""
    if not metadata:
        return None
    value = metadata.get(KEY.encode(), metadata.get(KEY))
    if value is None:
        return None
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except (TypeError, UnicodeDecodeError):
        raise _corrupt("it is not UTF-8 text") from None


def entries(metadata: Mapping[Any, Any] | None) -> list[Entry]:
    """Read the stored declarations without building anything.

    Raises:
        MetadataError: they are not what either client writes, or two claim one vector column.
    """
    text = serialized(metadata)
    if text is None:
        return []
    if len(text) > MAX_BYTES:
        raise _corrupt(f"it holds {len(text)} characters")
    found = [_entry(index, item, raw) for index, (item, raw) in enumerate(_split(text))]
    seen: set[str] = set()
    for entry in found:
        if entry.vector_column in seen:
            raise _corrupt(f"two entries claim the vector column {entry.vector_column!r}")
        seen.add(entry.vector_column)
    return found


def parse(metadata: Mapping[Any, Any] | None) -> Functions:
    """Rebuild the declared functions: LanceDB's `parse_functions`.

    Raises:
        MetadataError: the metadata as a whole cannot be read. One entry's problem never blocks the others.
    """
    functions = Functions(entries(metadata))
    for entry in functions.entries.values():
        try:
            function, notes = build(entry)
        except EmbedregError as exc:
            functions.problems[entry.vector_column] = exc
            continue
        functions[entry.vector_column] = EmbeddingFunctionConfig(
            vector_column=entry.vector_column, source_column=entry.source_column, function=function
        )
        functions.notes += notes
    return functions


def build(entry: Entry) -> tuple[EmbeddingFunction, list[str]]:
    """Rebuild one function under the trust rules: the instance this process vouched for, else a new one.

    Raises:
        EmbedregError: the class is not installed, the configuration is refused, or it is not trusted.
    """
    from embedreg.registry import get_registry

    if not entry.name:
        raise MetadataError(
            f"the function of column {entry.vector_column!r} was stored without a name, as stock LanceDB does for "
            "classes registered without an alias.",
            "register the class with an alias and declare the column anew: fn.bind(source, vector)",
        )
    alias = entry.name.removeprefix(f"{RESERVED}:")
    try:
        cls = get_registry().get(alias)
    except UnknownFunctionError as exc:
        raise UnknownFunctionError(f"column {entry.vector_column!r}: {exc.message}", exc.hint) from None
    return rebuild(cls, alias, entry.model)


def rebuild(cls: type[EmbeddingFunction], alias: str, model: Mapping[str, Any]) -> tuple[EmbeddingFunction, list[str]]:
    """Rebuild a function of a known class from its stored configuration; the second value says what was odd."""
    reserved = model.get(RESERVED)
    config, unknown = _known_fields(cls, model)
    function = grants.vouched(cls, config)
    if function is None:
        try:
            function = base.from_stored(cls, grants.admit(cls, alias, config), alias, unknown)
        except EmbedregError:
            raise
        except Exception as exc:  # a user's own __init__ may raise anything; what it read came from the metadata
            raise ConfigError(
                f"the stored configuration of {alias!r} was refused by its class: {type(exc).__name__}.",
                "inspect it with `embedreg inspect`",
            ) from exc
    if isinstance(reserved, dict) and reserved:
        function._declared = reserved
    notes = [f"unknown fields of {alias!r} were kept: {', '.join(sorted(unknown))}"] if unknown else []
    return function, notes


def _known_fields(cls: type[EmbeddingFunction], model: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a stored configuration into fields of the class and the rest, in Python's or JavaScript's spelling."""
    names = base._names_by_key(cls)
    extra_allowed = cls.model_config.get("extra") == "allow"
    config: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for key, value in model.items():
        if key == RESERVED:
            continue
        name = names.get(key) or cls.traits.stored_names.get(key) or names.get(_snake(key))
        if name is None and not extra_allowed:
            unknown[key] = value
        else:
            config[name or key] = value
    return config, unknown


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _split(text: str) -> Iterator[tuple[Any, str]]:
    """Yield the items of a JSON list with the exact text of each."""
    decoder = json.JSONDecoder()
    space = re.compile(r"[ \t\n\r]*")
    end = space.match(text).end()  # type: ignore[union-attr]  # the pattern matches the empty string too
    if text[end : end + 1] != "[":
        raise _corrupt("it is empty" if not text.strip() else "it is not a JSON list")
    position = space.match(text, end + 1).end()  # type: ignore[union-attr]
    first = True
    while text[position : position + 1] != "]":
        if not first:
            if text[position : position + 1] != ",":
                raise _corrupt("it is not JSON")
            position = space.match(text, position + 1).end()  # type: ignore[union-attr]
        try:
            item, stop = decoder.raw_decode(text, position)
        except ValueError:
            raise _corrupt("it is not JSON") from None
        except RecursionError:
            raise _corrupt("it is nested too deeply") from None
        yield item, text[position:stop]
        position = space.match(text, stop).end()  # type: ignore[union-attr]
        first = False
    if text[position + 1 :].strip():
        raise _corrupt("something follows the list")


def _entry(index: int, item: Any, raw: str) -> Entry:
    if not isinstance(item, dict):
        raise _corrupt(f"entry {index} is not an object")
    values = {_JS_NAMES.get(key, key): value for key, value in item.items()}
    values.setdefault("vector_column", "vector")  # the JavaScript client leaves its default out
    name, model = values.pop("name", None), values.pop("model", None)
    source, vector = values.pop("source_column", None), values.pop("vector_column")
    if name is not None and not isinstance(name, str):
        raise _corrupt(f"the name of entry {index} is not text")
    if not isinstance(model, dict | None):
        raise _corrupt(f"the configuration of entry {index} is not an object")
    if not (isinstance(source, str) and isinstance(vector, str) and source and vector):
        raise _corrupt(f"entry {index} does not name its columns")
    return Entry(name, model or {}, source, vector, raw, values)


def _corrupt(why: str) -> MetadataError:
    return MetadataError(
        f"the schema metadata {KEY!r} cannot be read: {why}.",
        f"the data itself is intact; drop the key and declare the functions anew: fn.bind(source, vector) ({KEY})",
    )


# -- writing ------------------------------------------------------------------------------------------------------------


def persisted_name(function: EmbeddingFunction) -> str | None:
    """Return the name an entry is stored under.

    A built-in that carries a field stock LanceDB's function of that name would ignore is stored as
    `embedreg:<name>`, so that stock LanceDB fails instead of writing other vectors of the same width.
    """
    cls = type(function)
    alias = base.registered_name(cls)
    known = cls.traits.stock_fields
    if alias is None or known is None:
        return alias
    runtime = runtime_fields(cls)
    defaults = grants._defaults(cls)
    own = (k for k, v in grants.semantic_config(function).items() if k not in known | runtime and v != defaults.get(k))
    return f"{RESERVED}:{alias}" if next(own, None) is not None else alias


def persisted_model(function: EmbeddingFunction) -> dict[str, Any]:
    """Return the stored configuration: every semantic field's effective value, references unresolved, and what
    readers should know under the reserved key.

    Raises:
        ConfigError: a field's value has no JSON form.
    """
    cls = type(function)
    required = {name for name, info in cls.model_fields.items() if info.is_required()}
    model = {**function._unknown, **grants.semantic_config(function)}
    model |= {k: v for k, v in function._original_args.items() if k in required & runtime_fields(cls)}
    try:
        json.dumps(model, allow_nan=False)
    except (TypeError, ValueError):
        raise ConfigError(
            f"the configuration of {cls.__name__} cannot be stored as JSON.", "use str, numbers, lists and dicts"
        ) from None
    return {**model, RESERVED: reserved(function)}


def reserved(function: EmbeddingFunction) -> dict[str, Any]:
    """Return the reserved key's value: what the declaration says of its vectors, and what was learnt at a write."""
    from embedreg import identity

    known = {k: v for k, v in function._declared.items() if k in ("probe", "identity")}
    return {
        "format": FORMAT,
        "ndims": function.ndims(),
        **to_jsonable_python(function.vector_traits()),
        "metric": function.traits.metric,
        "fingerprint": identity.fingerprint(function),
        "producer": identity.producer(function),
        **known,
    }


def entry_of(config: Any) -> dict[str, Any]:
    """Turn one declaration into its stored form: LanceDB's `function_to_metadata`.

    Raises:
        ConfigError: the function's class is not registered, so nobody could read it back.
    """
    function = unwrap(config.function)
    name = persisted_name(function)
    if name is None:
        cls = type(function).__name__
        raise ConfigError(
            f"{cls} is not registered, so a stored table could not be read back.", f"put @register('...') above {cls}"
        )
    model = persisted_model(function)
    if value_type := getattr(config, "value_type", None):
        model[RESERVED]["dtype"] = value_type
    return {
        "name": name,
        "model": model,
        "source_column": config.source_column,
        "vector_column": config.vector_column,
    }


def encode(configs: Iterable[Any], kept: Iterable[Entry] = ()) -> bytes:
    """Write declarations as the metadata value; entries that could not be rebuilt stay as they were, byte for byte.

    Raises:
        MetadataError: two declarations for one vector column.
    """
    items, columns = [], []
    for config in configs:
        items.append(json.dumps(entry_of(config), indent=2))
        columns.append(config.vector_column)
    for entry in kept:
        if entry.vector_column not in columns:
            items.append(entry.raw)
            columns.append(entry.vector_column)
    refuse_twice(columns)
    return f"[{', '.join(items)}]".encode()


def refuse_twice(vector_columns: Iterable[str]) -> None:
    """Raise MetadataError where one vector column is declared twice."""
    seen: set[str] = set()
    for column in vector_columns:
        if column in seen:
            raise MetadataError(
                f"two functions are declared for the vector column {column!r}.", "declare one function per column"
            )
        seen.add(column)
