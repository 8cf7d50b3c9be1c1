"""The stored declarations as they lie in schema metadata: read strictly, and nothing built.

`metadata` turns them into functions and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from embedreg.errors import MetadataError
from embedreg.support.strict_json import Malformed, split

__all__ = ["FORMAT", "KEY", "RESERVED", "Entry", "entries", "refuse_twice", "serialized", "shown", "value_type"]

KEY = "embedding_functions"
RESERVED = "embedreg"
FORMAT = 1
VALUE_TYPES = ("float16", "float32", "float64")
SHOWN = 80  # characters of a stored name that a message shows
_JS_NAMES = {"sourceColumn": "source_column", "vectorColumn": "vector_column"}


@dataclass(frozen=True)
class Entry:
    """One stored declaration, as read.

    Attributes:
        name: the function's stored name; None as stock LanceDB writes it for classes without an alias.
        model: its configuration.
        source_column, vector_column: the columns, in either client's spelling.
        raw: its very text.
        extra: what stands beside these.
    """

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

    def emptied(self) -> Entry:
        """Return what stays of an entry when its column is declared anew and has no vectors yet: what stands beside."""
        return replace(self, name=None, model={})

    @property
    def newer(self) -> bool:
        """Whether a later embedreg wrote it, in a format that this one only reads."""
        version = self.reserved.get("format")
        return isinstance(version, int) and version > FORMAT


def serialized(metadata: Mapping[Any, Any] | None) -> str | None:
    """Find the declarations in schema metadata, whether its keys and values are bytes or str.

    Raises:
        MetadataError: not a mapping, or a value that is no UTF-8 text.
    """
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise MetadataError(
            f"schema metadata is a mapping, not {type(metadata).__name__}.", "parse_functions(schema.metadata)"
        )
    value = metadata.get(KEY.encode(), metadata.get(KEY))
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, bytes | bytearray | memoryview):
        raise _corrupt(f"it is {type(value).__name__}, not text")
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise _corrupt("it is not UTF-8 text") from None


def entries(metadata: Mapping[Any, Any] | None) -> list[Entry]:
    """Read the stored declarations without building anything.

    Raises:
        MetadataError: they are not what either client writes, or two claim one vector column.
    """
    text = serialized(metadata)
    if text is None:
        return []
    try:
        found = [_entry(index, item, raw) for index, (item, raw) in enumerate(split(text))]
    except Malformed as exc:
        raise _corrupt(str(exc)) from None
    seen: set[str] = set()
    for entry in found:
        if entry.vector_column in seen:
            raise _corrupt(f"two entries claim the vector column {shown(entry.vector_column)}")
        seen.add(entry.vector_column)
    return found


def _entry(index: int, item: Any, raw: str) -> Entry:
    if not isinstance(item, dict):
        raise _corrupt(f"entry {index} is not an object")
    values: dict[str, Any] = {}
    for key, value in item.items():
        name = str(_JS_NAMES.get(key, key))
        if values.setdefault(name, value) != value:
            raise _corrupt(f"entry {index} names its {name.replace('_', ' ')} twice")
    values.setdefault("vector_column", "vector")  # LanceDB's default
    function, model = values.pop("name", None), values.pop("model", None)
    source, vector = values.pop("source_column", None), values.pop("vector_column")
    if function is not None and not isinstance(function, str):
        raise _corrupt(f"the name of entry {index} is not text")
    if model is not None and not isinstance(model, dict):
        raise _corrupt(f"the configuration of entry {index} is not an object")
    if not (isinstance(source, str) and isinstance(vector, str) and source and vector):
        raise _corrupt(f"entry {index} does not name its columns")
    return Entry(function, model or {}, source, vector, raw, values)


def shown(name: str) -> str:
    """Quote a name that comes from a file: nothing in it reaches a terminal as it is, and not all of a long one."""
    return repr(name if len(name) <= SHOWN else f"{name[:SHOWN]}...")


def _corrupt(why: str) -> MetadataError:
    return MetadataError(
        f"the schema metadata {KEY!r} cannot be read: {why}.",
        f"the data itself is intact; drop the key and declare the functions anew: fn.bind(source, vector) ({KEY})",
    ).for_shell("the data itself is intact; declare its function anew: embedreg attach --help")


def refuse_twice(vector_columns: Iterable[str]) -> None:
    """Raise MetadataError where one vector column is declared twice."""
    seen: set[str] = set()
    for column in vector_columns:
        if column in seen:
            raise MetadataError(
                f"two functions are declared for the vector column {shown(column)}.", "declare one function per column"
            )
        seen.add(column)


def value_type(reserved: Mapping[str, Any]) -> str | None:
    """Return the recorded type of a stored value, "float16", "float32" or "float64"; None for none that is known."""
    dtype = reserved.get("dtype")
    return dtype if dtype in VALUE_TYPES else None
