"""Reading and writing declarations in Arrow schema metadata, in the form of LanceDB's Python and JavaScript clients.

The schema metadata key `embedding_functions` holds a JSON list; `docs/persisted-form.md` is its specification. What is
read is untrusted (see `admission`). Entries that cannot be rebuilt are kept byte for byte and reported by name.

Over 400 lines: reading and writing are two directions of one format and share its rules.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from embedreg.arrow.quantized import QUANTIZED, SCALARS, Quantizer, Ranges
from embedreg.core import base, held, kinds, vouched
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.core.canonical import (
    OWN_PREFIX,
    canonical,
    effective,
    persisted_name,
    registered_name,
    semantic_config,
)
from embedreg.core.fields import names_by_key, runtime_fields, secret_values
from embedreg.core.instances import state_of
from embedreg.core.lancedb_hooks import unwrap
from embedreg.declaration import templates
from embedreg.declaration.admission import admit, admit_built, examine, snake
from embedreg.declaration.entries import (
    FORMAT,
    KEY,
    RESERVED,
    SHOWN,
    Entry,
    entries,
    refuse_twice,
    serialized,
    shown,
    value_type,
)
from embedreg.declaration.quantization import KEY as QUANTIZATION
from embedreg.declaration.quantization import quantizer_of, record_of
from embedreg.errors import (
    ConfigError,
    EmbedregError,
    Grant,
    MetadataError,
    MissingColumnError,
    SchemaError,
    UnknownFunctionError,
    UntrustedError,
)
from embedreg.security.grants import refusal
from embedreg.support import strict_json
from embedreg.support.strict_json import Malformed

__all__ = [
    "KEY",
    "RESERVED",
    "Entry",
    "Functions",
    "adopted",
    "declared_by",
    "encode",
    "entries",
    "entry_of",
    "parse",
    "persisted_model",
    "quantizer",
    "rebuild",
    "recorded",
    "refuse_twice",
    "says_same",
    "serialized",
    "stored_name",
    "value_type",
    "with_ranges",
]

NAMED = 20  # columns listed in one message, each with its needed grants
LEARNT = ("probe", "identity")


class Functions(dict[str, EmbeddingFunctionConfig]):
    """Declarations by vector column, and the columns whose function could not be rebuilt.

    Looking up a column whose function is not installed, or not trusted, raises that error; `in` and `get` cover only
    functions that could be rebuilt.

    Attributes:
        entries: vector column -> the stored entry, for every column.
        problems: vector column -> why it could not be rebuilt.
        noted: vector column -> notes on entries that were read despite an oddity.
    """

    def __init__(self, found: Iterable[Entry] = ()) -> None:
        super().__init__()
        self.entries: dict[str, Entry] = {entry.vector_column: entry for entry in found}
        self.problems: dict[str, EmbedregError] = {}
        self.noted: dict[str, list[str]] = {}

    @property
    def notes(self) -> list[str]:
        """The notes on all columns."""
        return [note for notes in self.noted.values() for note in notes]

    @property
    def needed(self) -> Grant:
        """The grants that all columns need together; empty if none are needed or none would help."""
        return Grant.union(each.needed for each in self.problems.values() if isinstance(each, UntrustedError))

    def every(self) -> list[EmbeddingFunctionConfig]:
        """Return the declarations of all columns, in the order in which they are stored.

        Raises:
            UntrustedError: some need grants; its `needed` holds those of all columns. EmbedregError: another problem.
        """
        untrusted = {column: each for column, each in self.problems.items() if isinstance(each, UntrustedError)}
        first = next(iter(self.problems.values()), None)
        if isinstance(first, UntrustedError) and self.needed != first.needed:
            messages = [f"Column {shown(column)}: {each.message}" for column, each in untrusted.items()]
            more = [f"And {len(messages) - NAMED:,} more columns."] if len(messages) > NAMED else []
            raise refusal(" ".join([*messages[:NAMED], *more]), self.needed) from first.__cause__
        return [self[column] for column in self.entries]

    def __missing__(self, vector_column: str) -> EmbeddingFunctionConfig:
        problem = self.problems.get(vector_column)
        if problem is not None:
            raise copy.copy(
                problem
            ) from problem.__cause__  # a copy each time, since tracebacks would accumulate in one object
        known = ", ".join(shown(name) for name in self.entries) or "none"
        raise MissingColumnError(
            f"no embedding function is declared for column {shown(vector_column)} (declared: {known}).",
            "declare one with fn.bind('source', 'vector')",
        ).for_shell(f"--vector names another column (declared: {known}); `embedreg attach --help` declares a function")


class _Stored(EmbeddingFunctionConfig):
    """A declaration that was read; it keeps its stored entry until it is changed."""

    __slots__ = ("_origin",)

    def __init__(self, entry: Entry, function: EmbeddingFunction) -> None:
        template = templates.stored(entry)
        stored = quantizer_of(entry.reserved)
        super().__init__(
            vector_column=entry.vector_column,
            source_column=entry.source_column,
            function=function,
            template=None if template is None else template.text,
            value_type=None if stored is None else stored.dtype,
            ranges=None if stored is None else stored.ranges,
        )
        object.__setattr__(self, "_origin", (entry, function))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EmbeddingFunctionConfig) and all(
            getattr(self, name) == getattr(other, name) for name in EmbeddingFunctionConfig.model_fields
        )

    __hash__ = None  # type: ignore[assignment]  # as its base


def recorded(entry: Entry, function: EmbeddingFunction) -> EmbeddingFunctionConfig:
    """Return the declaration of an entry with a given function, instead of one rebuilt from the entry."""
    return _Stored(entry, function)


def entry_behind(config: Any) -> Entry | None:
    """Return the stored entry that a declaration was read from; None if it was made or changed in this process."""
    entry, function = getattr(config, "_origin", (None, None))
    if entry is None or config.function is not function:
        return None
    same = config.vector_column == entry.vector_column and config.source_column == entry.source_column
    return entry if same and getattr(config, "template", None) == entry.reserved.get(templates.KEY) else None


def declared_by(config: Any) -> dict[str, Any]:
    """Return the recorded properties of a declaration's vectors, from its stored entry or from its function's."""
    entry = entry_behind(config)
    return entry.reserved if entry is not None else unwrap(config.function)._declared


# -- rebuilding --------------------------------------------------------------------------------------------------------


def parse(metadata: Mapping[Any, Any] | None, get: Callable[[str], type[EmbeddingFunction]]) -> Functions:
    """Rebuild the declared functions: LanceDB's `parse_functions`.

    Args:
        metadata: the schema metadata; `entries.metadata_with_widths` adds what determines the defaults.
        get: returns the class of a name, as a registry's `get`.
    Raises:
        MetadataError: the metadata as a whole cannot be read. A problem in one entry does not affect the others.
    """
    functions = Functions(entries(metadata))
    widths: Mapping[str, int] = getattr(metadata, "widths", {})
    for column, entry in functions.entries.items():
        try:
            templates.stored(entry)
            function, notes = build(entry, get, widths.get(column))
            config = _Stored(entry, held.held_to(function, entry.reserved))
        except EmbedregError as exc:
            functions.problems[column] = exc
            continue
        if entry.newer:
            notes.append("a later embedreg wrote this declaration; this version may not understand all of it")
        functions[column] = config
        if notes:
            functions.noted[column] = notes
    return functions


def build(
    entry: Entry, get: Callable[[str], type[EmbeddingFunction]], width: int | None = None
) -> tuple[EmbeddingFunction, list[str]]:
    """Rebuild one function under the trust rules: the vouched instance of this process, else a new one.

    Args:
        width: of the vector column, if it is known.
    Raises:
        EmbedregError: the class is not installed, the configuration is refused, or it is not trusted.
    """
    where = f"column {shown(entry.vector_column)}"
    if not entry.name:
        raise MetadataError(
            f"the function of {where} was stored without a name, as stock LanceDB does for classes registered without "
            "an alias.",
            "register the class with an alias and declare the column again: fn.bind(source, vector)",
        ).for_shell("register the class with an alias, import it with --import, and declare it: embedreg attach --help")
    alias = entry.name.removeprefix(OWN_PREFIX)
    if alias.startswith(OWN_PREFIX) or len(alias) > 4 * SHOWN:
        raise UnknownFunctionError(f"{where}: no function can be called {shown(entry.name)}.", "inspect the metadata")
    try:
        cls = get(alias)
    except UnknownFunctionError as exc:
        raise UnknownFunctionError(f"{where}: {exc.message}", exc.hint) from None
    except EmbedregError:
        raise
    except Exception as exc:  # importing a plug-in may raise anything
        raise ConfigError(
            f"{where}: the module of {alias!r} cannot be imported: {type(exc).__name__}: {exc}.", "update its package"
        ) from exc
    return rebuild(cls, alias, _as_meant(cls, entry, width))


def _as_meant(cls: type[EmbeddingFunction], entry: Entry, width: int | None) -> dict[str, Any]:
    """Return a stored configuration with the defaults of the client that wrote it, where they are not the class's."""
    if entry.reserved:
        return entry.model
    usual = cls.traits.javascript_defaults
    if usual and entry.javascript:
        known, _ = _known_fields(cls, entry.model)
        return {**{name: value for name, value in usual.items() if name not in known}, **entry.model}
    return completed(cls, entry.model, width)


def completed(cls: type[EmbeddingFunction], model: Mapping[str, Any], width: int | None) -> dict[str, Any]:
    """Return a stored configuration of another writer with the defaults of the version that fits the column's width.

    Args:
        width: of the vector column; None if it is not known, and the class's defaults then apply.
    Raises:
        MetadataError: the width fits none of the defaults that LanceDB has had.
    """
    found = dict(model)
    if width is None or not cls.traits.width_defaults or RESERVED in model:
        return found
    known, _ = _known_fields(cls, model)
    for name, by_width in cls.traits.width_defaults.items():
        if name in known:
            continue
        if width not in by_width:
            defaults = " or ".join(f"{value!r} ({size} wide)" for size, value in by_width.items())
            were = "defaults were" if len(by_width) > 1 else "default was always"
            raise MetadataError(
                f"the declaration has no {name}, and LanceDB's {were} {defaults}; the column is {width} wide.",
                f"declare what made the vectors: embedreg.get(...).create({name}=...).bind('text', 'vector')",
            ).for_shell("declare what made the vectors: embedreg attach --help")
        found[name] = by_width[width]
    return found


def rebuild(cls: type[EmbeddingFunction], alias: str, model: Mapping[str, Any]) -> tuple[EmbeddingFunction, list[str]]:
    """Rebuild a function of a known class from its stored configuration; return it with notes on oddities.

    Raises:
        EmbedregError: the configuration is refused, or it is not trusted.
    """
    stored = model.get(RESERVED)
    reserved = stored if isinstance(stored, dict) else {}
    config, unknown = _known_fields(cls, model)
    try:
        function = vouched.vouched(cls, config)
        if function is None:

            def make() -> EmbeddingFunction:
                made = base.from_stored(cls, admitted, alias, unknown)
                if not _built_in(cls):
                    admit_built(cls, alias, admitted, made.raw_fields())
                made._declared = reserved
                return made

            admitted, needs = examine(cls, alias, config)
            if needs:
                function = _of_its_class(cls, alias, config, needs.fields, unknown, reserved)
            if function is None:
                needs.refuse()
                # the rest of its state: another writer's declaration can imply other defaults
                function = vouched.rebuilt(cls, admitted, [alias, unknown, reserved], make)
    except (EmbedregError, Warning):
        raise
    except Exception as exc:  # noqa: BLE001  # a user's __init__ may raise anything, and it read metadata
        holds_secret = secret_values(cls, config, alias)
        raise ConfigError(
            f"the stored configuration of {alias!r} was refused by its class: {type(exc).__name__}.",
            "inspect it with `embedreg inspect`",
        ) from (None if holds_secret else exc)
    notes = [f"unknown fields of {alias!r} were kept: {', '.join(map(shown, sorted(unknown)))}"] if unknown else []
    return function, [*notes, *function._remarks()]


def _of_its_class(
    cls: type[EmbeddingFunction],
    alias: str,
    config: dict[str, Any],
    fields: set[str],
    unknown: dict[str, Any],
    reserved: dict[str, Any],
) -> EmbeddingFunction | None:
    """Build a function without the stored fields that need a grant, if its class sets them to the same values."""
    if _built_in(cls):
        return None  # their classes set no fields
    refused = [name for name in config if name in fields]
    kept = {name: value for name, value in config.items() if name not in refused}
    rest = {name: config[name] for name in refused}

    def make() -> EmbeddingFunction:
        made = base.from_stored(cls, admitted, alias, unknown)
        made._declared = reserved
        return made

    try:
        admitted = admit(cls, alias, kept)
        declaration = [alias, unknown, reserved, rest]
        return vouched.set_by_class(cls, config, refused, lambda: vouched.rebuilt(cls, admitted, declaration, make))
    except Exception:  # noqa: BLE001  # it cannot be built without these fields, so they need the grant
        return None


def _known_fields(cls: type[EmbeddingFunction], model: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a stored configuration into fields of the class and the rest, in Python's or JavaScript's spelling.

    Raises:
        MetadataError: two spellings of one field have different values.
    """
    names, other = names_by_key(cls), cls.traits.stored_names
    extra_allowed = cls.model_config.get("extra") == "allow"
    config: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for key, value in model.items():
        if key == RESERVED:
            continue
        name = names.get(key) or other.get(key) or names.get(snake(key))
        if name is None and snake(key) in ("model", "model_name") and "name" in names and _built_in(cls):
            name = "name"  # as other clients call it
        if name is None and not extra_allowed:
            unknown[key] = value
        elif config.setdefault(name or key, value) != value:
            raise MetadataError(
                f"the stored configuration has two different values for {name or key!r}.",
                "declare the function again: fn.bind(source, vector)",
            ).for_shell("declare the function again: embedreg attach --help")
    return config, unknown


# -- writing -----------------------------------------------------------------------------------------------------------


def persisted_model(function: EmbeddingFunction, *, written: bool = True) -> dict[str, Any]:
    """Return the stored configuration: effective values of all semantic fields, and the reserved key.

    References stay unresolved. A field that JavaScript's function of this name spells differently is stored under both
    names, since that function would otherwise use its own default.

    Args:
        written: as `reserved_for`.
    Raises:
        ConfigError: the function's class is not registered, so it could not be read back; or a field's value has no
            JSON form.
    """
    cls = type(function)
    if registered_name(cls) is None:
        raise ConfigError(
            f"{cls.__name__} is not registered, so a stored table could not be read back.",
            f"put @register('...') above {cls.__name__}",
        )
    required = {name for name, info in cls.model_fields.items() if info.is_required()}
    try:
        model = {**function._unknown, **semantic_config(function, strict=True)}
        runtime = function.raw_fields().items()
        model |= {k: strict_json.jsonable(v) for k, v in runtime if k in required & runtime_fields(cls)}
        model |= {js: model[name] for js, name in cls.traits.stored_names.items() if name in model}
        if cls.traits.stock_fields is None and not _built_in(cls):  # a user's class, which may exist in JavaScript too
            for name in [name for name in model if name in cls.model_fields]:
                model.setdefault(_camel(name), model[name])
        strict_json.dumps(model)
    except (TypeError, ValueError) as exc:
        why = f": {exc}" if isinstance(exc, Malformed) else ""
        raise ConfigError(
            f"the configuration of {cls.__name__} cannot be stored as JSON{why}.", "use str, numbers, lists and dicts"
        ) from None
    return {**model, RESERVED: reserved_for(function, written=written)}


def _built_in(cls: type[EmbeddingFunction]) -> bool:
    return cls.__module__.startswith("embedreg.functions.")


def _camel(name: str) -> str:
    """Return a snake_case name as JavaScript spells it."""
    return re.sub(r"(?<=[a-z0-9])_+([a-z0-9])", lambda match: match[1].upper(), name)


def reserved_for(function: EmbeddingFunction, *, written: bool = True) -> dict[str, Any]:
    """Return the value of the reserved key: properties of the vectors, and the results of the first write.

    Args:
        written: whether there are vectors. Without vectors, a declaration is the same in every process and version,
            since LanceDB compares it byte for byte with an existing table's.
    Raises:
        ConfigError: the function's `vector_traits()` have no JSON form.
    """
    from embedreg.declaration.fingerprint import fingerprint, producer

    learnt: dict[str, Any] = {}
    if written:
        learnt = {"producer": producer(function), **held.learnt(function)}
        learnt |= {k: v for k, v in function._declared.items() if k in LEARNT}
    made = {
        "format": FORMAT,
        **kinds.written(kinds.kind_of(function)),
        "ndims": stated_ndims(function),
        **function.vector_traits(),
        "metric": base.metric_of(function),
        "fingerprint": fingerprint(function),
        **learnt,
    }
    try:
        plain: dict[str, Any] = strict_json.jsonable(made)
        strict_json.dumps(plain)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{type(function).__name__}.vector_traits() has no JSON form.", "return str, numbers, lists and dicts"
        ) from None
    return plain


def stated_ndims(function: EmbeddingFunction, stated: int | None = None) -> int:
    """Return a function's width; if `ndims()` fails, the width from a schema."""
    state = state_of(function)
    try:
        return int(function.ndims())
    except Exception:  # the model or service is not available: the schema's width is enough to declare
        state.stated_ndims = stated if stated is not None else state.stated_ndims
        if state.stated_ndims is None:
            raise
        return state.stated_ndims


def entry_of(config: Any, *, written: bool = True) -> dict[str, Any]:
    """Turn one declaration into its stored form: LanceDB's `function_to_metadata`.

    Args:
        written: as `reserved_for`.
    Raises:
        ConfigError: as `persisted_model`.
    """
    function = unwrap(config.function)
    model = persisted_model(function, written=written)
    if value_type := getattr(config, "value_type", None):
        model[RESERVED]["dtype"] = value_type
    if (template := getattr(config, "template", None)) is not None:
        templates.refuse_names(function)
        model[RESERVED][templates.KEY] = template
    if (ranges := getattr(config, "ranges", None)) is not None:
        model[RESERVED][QUANTIZATION] = record_of(ranges)
    return {
        "name": stored_name(function, value_type),
        "model": model,
        "source_column": config.source_column,
        "vector_column": config.vector_column,
    }


def stored_name(function: EmbeddingFunction, dtype: Any) -> str | None:
    """Return the name of an entry: with the prefix where stock LanceDB would write floats into a quantised column."""
    name = persisted_name(function)
    if name is None or dtype not in QUANTIZED or name.startswith(OWN_PREFIX):
        return name
    return f"{OWN_PREFIX}{name}"


def quantizer(config: Any) -> Quantizer | None:
    """Return how the values of a declaration's column come from its function's vectors; None for floats.

    Raises:
        SchemaError: the function's width or kind of vectors does not fit.
    """
    if getattr(config, "value_type", None) not in QUANTIZED:
        return None
    function = unwrap(config.function)
    if not (kind := kinds.kind_of(function)).one_size:
        raise SchemaError(
            f"column {shown(config.vector_column)} holds {kind.plural}, which are not stored as {config.value_type}.",
            "leave dtype out, or dtype='float16' where the kind has it",
        ).for_shell("leave --dtype out")
    return Quantizer(config.value_type, stated_ndims(function), config.ranges)


def with_ranges(config: Any, ranges: Ranges) -> EmbeddingFunctionConfig:
    """Return a declaration of "int8" or "uint8" values with their ranges; what is recorded otherwise stays."""
    entry = entry_behind(config)
    if entry is not None and entry.reserved:
        return recorded(entry.recording({QUANTIZATION: record_of(ranges)}), config.function)
    return EmbeddingFunctionConfig(
        source_column=config.source_column,
        vector_column=config.vector_column,
        function=config.function,
        value_type=config.value_type,
        template=config.template,
        ranges=ranges,
    )


def adopted(config: EmbeddingFunctionConfig, entry: Entry) -> EmbeddingFunctionConfig:
    """Return a declaration with the dtype and ranges that its column has already.

    Args:
        entry: what the column declares, of the same function.
    Raises:
        SchemaError: it is declared with others.
    """
    stored = quantizer_of(entry.reserved)
    if entry_behind(config) is not None or stored is None:  # floats may be quantised as they are
        return config
    dtype, ranges = stored.dtype, stored.ranges
    where = f"column {shown(config.vector_column)}"
    if config.value_type not in (None, dtype):
        raise SchemaError(
            f"{where} holds {dtype} values, and is declared as {config.value_type}.",
            "write to another column, or drop this one to embed it again",
        ).for_shell("--vector NAME writes to another column")
    if config.ranges is not None and ranges is not None and config.ranges.data != ranges.data:
        raise SchemaError(
            f"{where} was quantised with other ranges than are given.", "leave ranges out: the column's own are used"
        )
    made = ranges if ranges is not None else config.ranges
    config = config.model_copy(update={"value_type": dtype})
    return config if made is None else with_ranges(config, made)


def encode(configs: Iterable[Any], kept: Iterable[Entry] = (), *, written: bool = True) -> bytes:
    """Write declarations as the metadata value, in the stored order, new ones last.

    Args:
        configs: the declarations.
        kept: the existing entries. An entry without a new declaration stays byte for byte. One that a declaration
            repeats stays too, and gets a probe if it has none. One that is replaced passes its keys beside `model`
            on to the new entry.
        written: as `reserved_for`.
    Raises:
        MetadataError: two declarations for one vector column, or more than the limits of a reader.
        ConfigError: as `persisted_model`.
    """
    before = {entry.vector_column: entry for entry in kept}
    made: dict[str, str] = {}
    listed = list(configs)
    refuse_twice(config.vector_column for config in listed)
    for config in listed:
        made[config.vector_column] = _text(config, before.get(config.vector_column), written)
    columns = dict.fromkeys([*before, *made])
    if len(columns) > strict_json.MAX_ITEMS:
        raise MetadataError(
            f"there are {len(columns)} declarations, more than any reader would accept.", "declare fewer columns"
        )
    text = f"[{', '.join(made[column] if column in made else before[column].raw for column in columns)}]"
    if len(text) > strict_json.MAX_CHARACTERS:
        raise MetadataError(
            f"the declarations take {len(text)} characters, which no reader would accept.", "declare fewer columns"
        )
    return text.encode()


def _text(config: Any, before: Entry | None, written: bool) -> str:
    entry = entry_behind(config) or before
    if entry is None or not _repeats(config, entry):
        return strict_json.dumps({**entry_of(config, written=written), **(entry.extra if entry is not None else {})})
    from embedreg.declaration.fingerprint import producer

    learnt = held.learnt(unwrap(config.function))
    ranges = getattr(config, "ranges", None)
    if ranges is not None and entry.reserved.get("dtype") in SCALARS and QUANTIZATION not in entry.reserved:
        learnt[QUANTIZATION] = record_of(ranges)
    if learnt and "producer" not in entry.reserved:
        learnt["producer"] = producer(unwrap(config.function))
    # Entries of another writer or a newer format stay unchanged: missing fields have that writer's meaning.
    if not learnt or not entry.reserved or entry.newer or (QUANTIZATION not in learnt and entry.reserved.get("probe")):
        return entry.raw
    columns = {"source_column": entry.source_column, "vector_column": entry.vector_column}
    model = {**entry.model, RESERVED: {**entry.reserved, **learnt}}
    return strict_json.dumps({"name": entry.name, "model": model, **columns, **entry.extra})


def _repeats(config: Any, entry: Entry) -> bool:
    """Return whether a declaration equals a stored entry."""
    if entry_behind(config) is entry:
        return True
    wanted = getattr(config, "value_type", None) or value_type(entry.reserved)
    same = config.source_column == entry.source_column and wanted == value_type(entry.reserved)
    same = same and getattr(config, "template", None) == entry.reserved.get(templates.KEY)
    return same and bool(entry.reserved) and says_same(config, entry)


def says_same(config: Any, entry: Entry) -> bool:
    """Return whether an entry declares the same function and configuration, trusted or not."""
    if entry_behind(config) is entry:
        return True
    function = unwrap(config.function)
    cls, name = type(function), stored_name(function, entry.reserved.get("dtype"))
    if name is None or name != entry.name:
        return False
    try:
        width = function.ndims() if cls.traits.width_defaults else None
        stored, unknown = _known_fields(cls, _as_meant(cls, entry, width))
    except MetadataError:
        return False
    if unknown:
        return False
    return canonical(cls, effective(cls, stored)) == canonical(cls, semantic_config(function))
