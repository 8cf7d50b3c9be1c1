"""Entries: stored declarations, parsed strictly from schema metadata without building functions.

`codec` converts them to functions and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from embedreg.arrow.quantized import VALUE_TYPES
from embedreg.errors import MetadataError
from embedreg.support import strict_json
from embedreg.support.strict_json import Malformed, split

__all__ = [
    "FORMAT",
    "KEY",
    "RESERVED",
    "Entry",
    "SchemaMetadata",
    "entries",
    "metadata_with_widths",
    "refuse_twice",
    "serialized",
    "shown",
    "value_type",
]

KEY = "embedding_functions"
RESERVED = "embedreg"
FORMAT = 1
SHOWN = 80  # characters of a stored name that a message shows
_JS_NAMES = {"sourceColumn": "source_column", "vectorColumn": "vector_column"}


@dataclass(frozen=True)
class Entry:
    """One stored declaration, as read.

    Attributes:
        name: the function's stored name; None if stock LanceDB wrote it for a class without an alias.
        model: its configuration.
        source_column, vector_column: the columns, in either client's spelling.
        raw: its exact text.
        extra: the other keys.
        javascript: whether LanceDB's JavaScript client wrote it.
    """

    name: str | None
    model: dict[str, Any]
    source_column: str
    vector_column: str
    raw: str
    extra: dict[str, Any] = field(default_factory=dict)
    javascript: bool = False

    @property
    def reserved(self) -> dict[str, Any]:
        """The properties that embedreg recorded; empty for an entry of another client."""
        value = self.model.get(RESERVED)
        return value if isinstance(value, dict) else {}

    def recording(self, facts: Mapping[str, Any]) -> Entry:
        """Return the entry with some recorded properties added or replaced."""
        model = {**self.model, RESERVED: {**self.reserved, **facts}}
        columns = {"source_column": self.source_column, "vector_column": self.vector_column}
        raw = strict_json.dumps({"name": self.name, "model": model, **columns, **self.extra})
        return replace(self, model=model, raw=raw, javascript=False)

    def emptied(self) -> Entry:
        """Return the part of an entry that stays when its column is declared again without vectors: its extra keys."""
        return replace(self, name=None, model={})

    @property
    def newer(self) -> bool:
        """Whether a later embedreg wrote it, in a format that this version can only read."""
        version = self.reserved.get("format")
        return isinstance(version, int) and version > FORMAT


class SchemaMetadata(dict[Any, Any]):
    """Schema metadata together with the widths of the schema's vector columns, which it alone does not hold."""

    def __init__(self, metadata: Mapping[Any, Any], widths: Mapping[str, int]) -> None:
        super().__init__(metadata)
        self.widths = dict(widths)


def metadata_with_widths(schema: Any) -> SchemaMetadata:
    """Return an Arrow schema's metadata, empty if it has none, with the widths of its vector columns."""
    metadata = schema.metadata
    sizes = ((field.name, getattr(field.type, "list_size", None)) for field in schema)
    widths = {name: size for name, size in sizes if isinstance(size, int)}
    return SchemaMetadata(metadata if isinstance(metadata, Mapping) else {}, widths)


def serialized(metadata: Mapping[Any, Any] | None) -> str | None:
    """Find the declarations in schema metadata, whether its keys and values are bytes or str.

    Raises:
        MetadataError: not a mapping, or a value that is not UTF-8 text.
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
    """Parse the stored declarations without building functions.

    Raises:
        MetadataError: they are not in the form of either client, or two have the same vector column.
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
    if source == vector:
        raise _corrupt(f"entry {index} names one column, {shown(source)}, for both its source and its vectors")
    return Entry(function, model or {}, source, vector, raw, values, not _JS_NAMES.keys().isdisjoint(item))


def shown(name: str) -> str:
    """Quote a name from a file, escaped for a terminal and shortened."""
    return repr(name if len(name) <= SHOWN else f"{name[:SHOWN]}...")


def _corrupt(why: str) -> MetadataError:
    return MetadataError(
        f"the schema metadata {KEY!r} cannot be read: {why}.",
        f"the data itself is intact; drop the key and declare the functions again: fn.bind(source, vector) ({KEY})",
    ).for_shell("the data itself is intact; declare its function again: embedreg attach --help")


def refuse_twice(vector_columns: Iterable[str]) -> None:
    """Raise MetadataError if a vector column is declared twice."""
    seen: set[str] = set()
    for column in vector_columns:
        if column in seen:
            raise MetadataError(
                f"two functions are declared for the vector column {shown(column)}.", "declare one function per column"
            )
        seen.add(column)


def value_type(reserved: Mapping[str, Any]) -> str | None:
    """Return the recorded value type, such as "float32" or "int8"; None if missing or unknown."""
    dtype = reserved.get("dtype")
    return dtype if dtype in VALUE_TYPES else None
