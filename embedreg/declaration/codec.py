"""Declarations and the bytes in the Arrow schema: LanceDB's form, read from either client and written for both.

The schema metadata key `embedding_functions` holds a JSON list; `docs/persisted-form.md` is its specification. What is
read is untrusted (see `admission`); what cannot be rebuilt here is kept byte for byte and reported by name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from embedreg.core import base, held, vouched
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
from embedreg.errors import (
    ConfigError,
    EmbedregError,
    Grant,
    MetadataError,
    MissingColumnError,
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
    "declared_by",
    "encode",
    "entries",
    "entry_of",
    "parse",
    "persisted_model",
    "rebuild",
    "recorded",
    "refuse_twice",
    "says_same",
    "serialized",
    "value_type",
]

NAMED = 20  # columns that one message names, each with what it needs
LEARNT = ("probe", "identity")


class Functions(dict[str, EmbeddingFunctionConfig]):
    """Vector column -> declaration, and what could not be rebuilt.

    Asking for a column whose function is not installed, or not trusted, raises the error that says so; `in` and `get`
    go by what could be rebuilt.

    Attributes:
        entries: vector column -> the stored entry, for every column.
        problems: vector column -> why it could not be rebuilt.
        noted: vector column -> what was read all the same and a person should know of.
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
        """What has to be granted before every column can be used; empty where nothing has, or no grant helps."""
        return Grant.union(each.needed for each in self.problems.values() if isinstance(each, UntrustedError))

    def every(self) -> list[EmbeddingFunctionConfig]:
        """Return the declarations of all columns, in the order in which they are stored.

        Raises:
            UntrustedError: some need grants; its `needed` holds those of all columns. EmbedregError: another problem.
        """
        untrusted = {column: each for column, each in self.problems.items() if isinstance(each, UntrustedError)}
        first = next(iter(self.problems.values()), None)
        if isinstance(first, UntrustedError) and self.needed != first.needed:
            said = [f"Column {shown(column)}: {each.message}" for column, each in untrusted.items()]
            more = [f"And {len(said) - NAMED:,} more columns."] if len(said) > NAMED else []
            raise refusal(" ".join([*said[:NAMED], *more]), self.needed) from first.__cause__
        return [self[column] for column in self.entries]

    def __missing__(self, vector_column: str) -> EmbeddingFunctionConfig:
        problem = self.problems.get(vector_column)
        if problem is not None:
            raise copy.copy(problem) from problem.__cause__  # each time a new one: tracebacks would pile up in it
        known = ", ".join(shown(name) for name in self.entries) or "none"
        raise MissingColumnError(
            f"no embedding function is declared for column {shown(vector_column)} (declared: {known}).",
            "declare one with fn.bind('source', 'vector')",
        ).for_shell(f"--vector names another column (declared: {known}); `embedreg attach --help` declares a function")


class _Stored(EmbeddingFunctionConfig):
    """A declaration that was read: it knows its entry, for as long as nobody changes it."""

    __slots__ = ("_origin",)

    def __init__(self, entry: Entry, function: EmbeddingFunction) -> None:
        super().__init__(vector_column=entry.vector_column, source_column=entry.source_column, function=function)
        object.__setattr__(self, "_origin", (entry, function))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EmbeddingFunctionConfig) and all(
            getattr(self, name) == getattr(other, name) for name in EmbeddingFunctionConfig.model_fields
        )

    __hash__ = None  # type: ignore[assignment]  # as its base


def recorded(entry: Entry, function: EmbeddingFunction) -> EmbeddingFunctionConfig:
    """Return the declaration of an entry with a function that is at hand, in place of one rebuilt from it."""
    return _Stored(entry, function)


def entry_behind(config: Any) -> Entry | None:
    """Return the stored entry that a declaration was read from; None for one made or changed here."""
    entry, function = getattr(config, "_origin", (None, None))
    if entry is None or config.function is not function:
        return None
    same = config.vector_column == entry.vector_column and config.source_column == entry.source_column
    return entry if same else None


def declared_by(config: Any) -> dict[str, Any]:
    """Return what is recorded of the vectors behind a declaration: by its stored entry, else by its function's."""
    entry = entry_behind(config)
    return entry.reserved if entry is not None else unwrap(config.function)._declared


# -- rebuilding --------------------------------------------------------------------------------------------------------


def parse(metadata: Mapping[Any, Any] | None, get: Callable[[str], type[EmbeddingFunction]]) -> Functions:
    """Rebuild the declared functions: LanceDB's `parse_functions`.

    Args:
        metadata: of the schema.
        get: returns the class of a name, as a registry's `get`.
    Raises:
        MetadataError: the metadata as a whole cannot be read. One entry's problem never blocks the others.
    """
    functions = Functions(entries(metadata))
    for column, entry in functions.entries.items():
        try:
            function, notes = build(entry, get)
        except EmbedregError as exc:
            functions.problems[column] = exc
            continue
        if entry.newer:
            notes.append("a later embedreg wrote this declaration; some of what it says may not be known here")
        functions[column] = _Stored(entry, held.held_to(function, entry.reserved))
        if notes:
            functions.noted[column] = notes
    return functions


def build(entry: Entry, get: Callable[[str], type[EmbeddingFunction]]) -> tuple[EmbeddingFunction, list[str]]:
    """Rebuild one function under the trust rules: the instance this process vouched for, else a new one.

    Raises:
        EmbedregError: the class is not installed, the configuration is refused, or it is not trusted.
    """
    where = f"column {shown(entry.vector_column)}"
    if not entry.name:
        raise MetadataError(
            f"the function of {where} was stored without a name, as stock LanceDB does for classes registered without "
            "an alias.",
            "register the class with an alias and declare the column anew: fn.bind(source, vector)",
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
    except Exception as exc:  # an installed plug-in may raise anything as it is imported
        raise ConfigError(
            f"{where}: the module of {alias!r} cannot be imported: {type(exc).__name__}: {exc}.", "update its package"
        ) from exc
    return rebuild(cls, alias, entry.model)


def rebuild(cls: type[EmbeddingFunction], alias: str, model: Mapping[str, Any]) -> tuple[EmbeddingFunction, list[str]]:
    """Rebuild a function of a known class from its stored configuration; the second value says what was odd.

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
                # what else an instance knows: another writer's declaration can mean other defaults
                function = vouched.rebuilt(cls, admitted, [alias, unknown, reserved], make)
    except (EmbedregError, Warning):
        raise
    except Exception as exc:  # noqa: BLE001  # a user's own __init__ may raise anything; what it read is metadata
        holds_secret = secret_values(cls, config, alias)
        raise ConfigError(
            f"the stored configuration of {alias!r} was refused by its class: {type(exc).__name__}.",
            "inspect it with `embedreg inspect`",
        ) from (None if holds_secret else exc)
    return function, (
        [f"unknown fields of {alias!r} were kept: {', '.join(map(shown, sorted(unknown)))}"] if unknown else []
    )


def _of_its_class(
    cls: type[EmbeddingFunction],
    alias: str,
    config: dict[str, Any],
    fields: set[str],
    unknown: dict[str, Any],
    reserved: dict[str, Any],
) -> EmbeddingFunction | None:
    """Build a function without the stored fields that need a grant, where its class sets them to the same values."""
    if _built_in(cls):
        return None  # none of them sets any
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
    except Exception:  # noqa: BLE001  # it does not work without them: they are asked of the file after all
        return None


def _known_fields(cls: type[EmbeddingFunction], model: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a stored configuration into fields of the class and the rest, in Python's or JavaScript's spelling.

    Raises:
        MetadataError: two spellings of one field disagree.
    """
    names, other = names_by_key(cls), cls.traits.stored_names
    extra_allowed = cls.model_config.get("extra") == "allow"
    config: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for key, value in model.items():
        if key == RESERVED:
            continue
        name = names.get(key) or other.get(key) or names.get(snake(key))
        if name is None and not extra_allowed:
            unknown[key] = value
        elif config.setdefault(name or key, value) != value:
            raise MetadataError(
                f"the stored configuration says twice, and differently, what {name or key!r} is.",
                "declare the function anew: fn.bind(source, vector)",
            ).for_shell("declare the function anew: embedreg attach --help")
    return config, unknown


# -- writing -----------------------------------------------------------------------------------------------------------


def persisted_model(function: EmbeddingFunction, *, written: bool = True) -> dict[str, Any]:
    """Return the stored configuration: every semantic field's effective value, references unresolved, and what
    readers should know under the reserved key.

    A field that JavaScript's function of this name calls otherwise is there under both names, since that function
    would take its own default for it.

    Args:
        written: as `reserved_for`.
    Raises:
        ConfigError: the function's class is not registered, so nobody could read it back; or a field's value has no
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
        if cls.traits.stock_fields is None and not _built_in(cls):  # a user's own, which may be there in JavaScript too
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
    """Return the reserved key's value: what the declaration says of its vectors, and what was learnt at a write.

    Args:
        written: whether there are vectors. A declaration alone is the same in every process and version, since LanceDB
            compares it byte for byte when a table exists already.
    Raises:
        ConfigError: the function says something of its vectors that has no JSON form.
    """
    from embedreg.declaration.fingerprint import fingerprint, producer

    learnt: dict[str, Any] = {}
    if written:
        learnt = {"producer": producer(function), **held.learnt(function)}
        learnt |= {k: v for k, v in function._declared.items() if k in LEARNT}
    made = {
        "format": FORMAT,
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
    """Return a function's width; where it cannot say it, the one that a schema states for it."""
    state = state_of(function)
    try:
        return int(function.ndims())
    except Exception:
        # a model that is not here, or a service that does not answer: the schema's word is enough to declare
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
    return {
        "name": persisted_name(function),
        "model": model,
        "source_column": config.source_column,
        "vector_column": config.vector_column,
    }


def encode(configs: Iterable[Any], kept: Iterable[Entry] = (), *, written: bool = True) -> bytes:
    """Write declarations as the metadata value, in the stored order, new ones last.

    Args:
        configs: the declarations.
        kept: the entries that are there already. One that no declaration replaces stays byte for byte; one that a
            declaration repeats stays too, but for the probe where it has none yet; and one that is replaced leaves
            the new one what stands beside `model`.
        written: as `reserved_for`.
    Raises:
        MetadataError: two declarations for one vector column, or more than can be read back.
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
    if learnt and "producer" not in entry.reserved:
        learnt["producer"] = producer(unwrap(config.function))
    # Another writer's entry stays as it is: what it leaves out has that writer's meaning. So does a newer format.
    if not learnt or not entry.reserved or entry.newer or entry.reserved.get("probe"):
        return entry.raw
    columns = {"source_column": entry.source_column, "vector_column": entry.vector_column}
    model = {**entry.model, RESERVED: {**entry.reserved, **learnt}}
    return strict_json.dumps({"name": entry.name, "model": model, **columns, **entry.extra})


def _repeats(config: Any, entry: Entry) -> bool:
    """Say whether a declaration says what an entry says already."""
    if entry_behind(config) is entry:
        return True
    wanted = getattr(config, "value_type", None) or value_type(entry.reserved)
    same = config.source_column == entry.source_column and wanted == value_type(entry.reserved)
    return same and bool(entry.reserved) and says_same(config, entry)


def says_same(config: Any, entry: Entry) -> bool:
    """Say whether an entry declares the same function in the same configuration, whether or not it is trusted."""
    if entry_behind(config) is entry:
        return True
    function = unwrap(config.function)
    cls, name = type(function), persisted_name(function)
    if name is None or name != entry.name:
        return False
    try:
        stored, unknown = _known_fields(cls, entry.model)
    except MetadataError:
        return False
    if unknown:
        return False
    return canonical(cls, effective(cls, stored)) == canonical(cls, semantic_config(function))
