"""Infer the type of a JSON field that holds all of its values exactly; else raise an error that names two of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedreg.datasets.texts import shown_value
from embedreg.errors import StorageError, option

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MAX_DEPTH", "Inexact", "Observed", "Raw", "fitted"]

MAX_DEPTH = 60  # Arrow's own formats allow 64
MAX_FIELDS = 10_000  # of one object over all rows: an object with more is a mapping, not columns
_EXACT = 2**53  # above it not every integer is a float


class Inexact(float):
    """A number that no float holds exactly: its original text is kept.

    Attributes:
        text: the number as written in the file.
    """

    text: str = ""


class Raw(str):
    """A number as written in the file."""

    __slots__ = ()


@dataclass
class Observed:
    """The properties of a field's values that determine its type.

    Attributes:
        kinds: "bool", "number", "string", "list" and "object" -> (file, line, value) of the first such value.
        ints, floats, large: whether there are such values; `large` integers are not exact as floats.
        kept: (file, line, value) of the first number that neither 64 bits nor a float hold exactly, or of an object
            without fields, which no file format can store.
        items: of the lists.
        fields: of the objects.
    """

    kinds: dict[str, tuple[str, int, Any]] = field(default_factory=dict)
    ints: bool = False
    floats: bool = False
    large: bool = False
    kept: tuple[str, int, Any] | None = None
    items: Observed | None = None
    fields: dict[str, Observed] | None = None

    def observe(self, value: Any, path: str, line: int, depth: int = 1) -> None:
        """Take a value into account.

        Raises:
            RecursionError: it is nested deeper than `MAX_DEPTH`. OverflowError: too many different fields.
        """
        kind = type(value)
        if kind is str:
            if "string" not in self.kinds:
                self.kinds["string"] = path, line, value
        elif value is None:
            return
        elif kind is bool:
            self.kinds.setdefault("bool", (path, line, value))
        elif kind is int:
            self.ints = True
            if value > _EXACT or value < -_EXACT:
                self.large |= int(float(value)) != value if -(2**63) <= value < 2**63 else True
                if not -(2**63) <= value < 2**63:
                    self.kept = self.kept or (path, line, value)
            if "number" not in self.kinds:
                self.kinds["number"] = path, line, value
        elif kind is float or kind is Inexact:
            self.floats = True
            if kind is Inexact:
                self.kept = self.kept or (path, line, Raw(value.text))
            if "number" not in self.kinds:
                self.kinds["number"] = path, line, value
        elif depth >= MAX_DEPTH:
            raise RecursionError
        elif kind is list:
            self.kinds.setdefault("list", (path, line, value))
            self.items = self.items or Observed()
            for each in value:
                self.items.observe(each, path, line, depth + 1)
        else:
            self.kinds.setdefault("object", (path, line, value))
            self.fields = {} if self.fields is None else self.fields
            if not value:
                self.kept = self.kept or (path, line, value)
            for name, each in value.items():
                found = self.fields.get(name)
                if found is None:
                    if len(self.fields) >= MAX_FIELDS:
                        raise OverflowError
                    found = self.fields[name] = Observed()
                found.observe(each, path, line, depth + 1)

    @classmethod
    def of(cls, kind: pa.DataType) -> Observed:
        """Return what is known from the type that an earlier scan has found."""
        import pyarrow as pa

        made, at = cls(), ("the files embedded before", 0, "")
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            made.kinds["number"], made.ints, made.floats = at, pa.types.is_integer(kind), pa.types.is_floating(kind)
        elif pa.types.is_boolean(kind):
            made.kinds["bool"] = at
        elif pa.types.is_string(kind):
            made.kinds["string"] = at
        elif pa.types.is_list(kind):
            made.kinds["list"], made.items = at, cls.of(kind.value_type)
        elif pa.types.is_struct(kind):
            made.kinds["object"], made.fields = at, {each.name: cls.of(each.type) for each in kind}
        return made

    def merged(self, other: Observed) -> Observed:
        """Return what is known from both."""
        items = [each for each in (self.items, other.items) if each is not None]
        fields = None if self.fields is None else dict(self.fields)
        for name, each in (other.fields or {}).items():
            fields = fields if fields is not None else {}
            fields[name] = fields[name].merged(each) if name in fields else each
        return Observed(
            {**other.kinds, **self.kinds},
            self.ints or other.ints,
            self.floats or other.floats,
            self.large or other.large,
            self.kept or other.kept,
            None if not items else items[0] if len(items) == 1 else items[0].merged(items[1]),
            fields if fields is not None else other.fields,
        )

    def type(self, name: str) -> pa.DataType:
        """Return the type that holds all values exactly.

        Raises:
            StorageError: there is none, such as for numbers mixed with texts.
        """
        import pyarrow as pa

        if len(self.kinds) > 1:
            (_, (path, line, one)), (_, (other_path, other_line, other)) = list(self.kinds.items())[:2]
            raise StorageError(
                f"field {name} has incompatible types: {shown_value(other)} ({other_path}, line {other_line}) and "
                f"{shown_value(one)} ({path}, line {line}).",
                option(f"give each field one type; or --types {name}=text", f"types={{{name!r}: 'text'}}"),
            )
        kind = next(iter(self.kinds), None)
        if kind == "number":
            if self.kept or (self.floats and self.large):
                return pa.string()
            return pa.float64() if self.floats else pa.int64()
        if kind == "list":
            return pa.list_((self.items or Observed()).type(f"{name}[]"))
        if kind == "object":
            if not self.fields:
                return pa.string()
            return pa.struct([pa.field(each, found.type(f"{name}.{each}")) for each, found in self.fields.items()])
        return {None: pa.null(), "bool": pa.bool_(), "string": pa.string()}[kind]

    def notes(self, name: str) -> list[str]:
        """Return notes on fields that are stored as text although they are not text."""
        found = []
        if "number" in self.kinds and (self.kept or (self.floats and self.large)):
            path, line, value = self.kept or self.kinds["number"]
            why = "does not fit into 64 bits" if self.kept else "is mixed with integers that no float holds exactly"
            found = [f"column {name!r} stays text: {shown_value(value)} {why} ({path}, line {line})"]
        if self.fields is not None and not self.fields and self.kept:
            path, line, _ = self.kept
            found = [f"column {name!r} stays text: all of its values are {{}} ({path}, line {line})"]
        if self.items is not None:
            found += self.items.notes(f"{name}[]")
        for each, seen in (self.fields or {}).items():
            found += seen.notes(f"{name}.{each}")
        return found


def fitted(value: Any, kind: pa.DataType) -> Any:
    """Convert a value with raw numbers to what `pa.array` accepts for a type."""
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_string(kind):
        return str(value) if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)
    if isinstance(value, Raw):
        return float(value) if pa.types.is_floating(kind) else int(value)
    if pa.types.is_list(kind) and isinstance(value, list):
        return [fitted(each, kind.value_type) for each in value]
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return {each.name: fitted(value.get(each.name), each.type) for each in kind}
    return value


def _plain(value: Any) -> Any:
    """Return a value with raw numbers converted to numbers."""
    if isinstance(value, Raw):
        return int(value) if value.lstrip("-").isdigit() else float(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, dict) else value
