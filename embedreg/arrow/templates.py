"""Templates of source texts, such as "{title}: {body}": names in braces are columns, doubled braces are braces.

Nothing else is interpreted and nothing is evaluated: no attributes, items, conversions or formats. A null is empty
text; a row whose columns are all null has no text. The same text is written as a SQL expression for each engine.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.errors import ConfigError, InputError, MissingColumnError
from embedreg.support.display import plain
from embedreg.support.imports import did_you_mean
from embedreg.support.unicode import is_valid

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SUFFIX", "Template", "column_name", "is_column", "parse", "refuse_type"]

SUFFIX = "__source"  # ends the names of columns of rendered texts, which only embedreg writes
MAX_NAME = 1024
MAX_TEMPLATE = 10_000  # characters
MAX_COLUMNS = 100
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_INTERPRETED = {"!": "a conversion", ":": "a format", ".": "an attribute", "[": "an item", "]": "an item"}


def column_name(vector: str) -> str:
    """Return the name of the column that holds the rendered texts of a vector column."""
    return f"{vector}{SUFFIX}"


def is_column(name: str) -> bool:
    """Return whether a column may hold rendered texts: a stored template must not overwrite other columns."""
    return name.endswith(SUFFIX) and len(SUFFIX) < len(name) <= MAX_NAME


@dataclass(frozen=True)
class Template:
    """A parsed template.

    Attributes:
        text: as it was written, and is stored.
        parts: texts and columns in turns, from text to text: ("", "title", ": ", "body", "").
    """

    text: str
    parts: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads, each once."""
        return tuple(dict.fromkeys(self.parts[1::2]))

    def refuse_missing(self, names: list[str], vector: str) -> None:
        """Raise `MissingColumnError` if the data lacks columns of the template.

        Args:
            names: the columns of the data.
            vector: the column that is filled.
        """
        missing = [name for name in self.columns if name not in names]
        if missing:
            listed = ", ".join(repr(plain(name, 80)) for name in missing)
            raise MissingColumnError(
                f"the data has no column {listed}, which the template of {vector!r} reads "
                f"(columns: {', '.join(names) or 'none'}).",
                f"{did_you_mean(missing[0], names)}add {'it' if len(missing) == 1 else 'them'}, with nulls where there "
                "is nothing",
            )

    def render(self, columns: Mapping[str, Any]) -> pa.Array:
        """Return the texts of rows: (n,) strings, large ones if a column's are.

        Args:
            columns: (n,) Arrow arrays by name; a record batch is accepted, and may have more columns.
        Raises:
            InputError: a column of a type that has no text form here.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        known = {name: _texts(name, columns[name]) for name in self.columns}
        kind = pa.large_string() if any(each.type == pa.large_string() for each in known.values()) else pa.string()
        some = None
        for each in known.values():
            valid = pc.is_valid(each)
            some = valid if some is None else pc.or_(some, valid)
        empty = pa.scalar("", kind)
        filled = {name: pc.fill_null(each.cast(kind), empty) for name, each in known.items()}
        parts: list[Any] = []
        for place, part in enumerate(self.parts):
            if place % 2:
                parts.append(filled[part])
            elif part:
                parts.append(pa.scalar(part, kind))
        try:
            joined = parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, empty)
        except (pa.ArrowInvalid, pa.ArrowCapacityError):
            raise InputError(
                f"the texts of the template take more than 2 GiB in a batch of {len(valid):,} rows.",
                "shorter texts, or batch_rows=1000",
            ) from None
        return pc.if_else(some, joined, pa.scalar(None, kind))

    def sql(self, identifier: Callable[[str], str], literal: Callable[[str], str]) -> str:
        """Return the expression of the same text in an engine's SQL.

        Args:
            identifier, literal: quote a column's name and a text for that engine.
        """
        nulls = " AND ".join(f"{identifier(name)} IS NULL" for name in self.columns)
        return f"CASE WHEN {nulls} THEN NULL ELSE {self._joined(identifier, literal, 'VARCHAR')} END"

    def sql_without_case(self, identifier: Callable[[str], str], literal: Callable[[str], str], text_type: str) -> str:
        """Return the same expression for an engine without CASE: the last term is empty, or null if all columns are.

        Args:
            text_type: the engine's name of the type.
        """
        texts = ", ".join(f"CAST({identifier(name)} AS {text_type})" for name in self.columns)
        return f"{self._joined(identifier, literal, text_type)} || left(coalesce({texts}), 0)"

    def _joined(self, identifier: Callable[[str], str], literal: Callable[[str], str], text_type: str) -> str:
        return " || ".join(
            f"coalesce(CAST({identifier(part)} AS {text_type}), '')" if place % 2 else literal(part)
            for place, part in enumerate(self.parts)
            if place % 2 or part
        )


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Template:
    """Parse a template.

    Raises:
        ConfigError: it is not text, too long, has no column, a brace without its pair, or anything but a column's name
            in braces.
    """
    if not isinstance(text, str) or not text:
        raise ConfigError(f"invalid template {text!r}: expected a text.", _HINT)
    if len(text) > MAX_TEMPLATE:
        raise ConfigError(f"the template has {len(text):,} characters, more than {MAX_TEMPLATE:,}.", _HINT)
    if "\0" in text or not is_valid(text):
        raise ConfigError("the template holds NUL or half a surrogate pair, which no column can store.", _HINT)
    parts, before, at = list[str](), "", 0
    for found in _TOKEN.finditer(text):
        before += text[at : found.start()]
        at = found.end()
        if found[0] in ("{{", "}}"):
            before += found[0][0]
        elif found[1] is None:
            raise ConfigError(
                f"the template has a single {found[0]!r} at character {found.start()}.",
                f"write {2 * found[0]!r} for a brace",
            )
        else:
            parts += [before, _name(found[1])]
            before = ""
    if not parts:
        raise ConfigError(f"the template {plain(text, 80)!r} reads no column.", _HINT)
    if len(parts) > 2 * MAX_COLUMNS:
        raise ConfigError(f"the template reads {len(parts) // 2:,} columns, more than {MAX_COLUMNS}.", _HINT)
    return Template(text, (*parts, before + text[at:]))


_HINT = r"template='{title}\n\n{body}', with columns in braces"


def _name(name: str) -> str:
    if not name or name != name.strip() or not name.isprintable():
        raise ConfigError(f"the template has {name[:80]!r} in braces: expected a column's name.", _HINT)
    for char, what in _INTERPRETED.items():
        if char in name:
            column = re.split(r"[.!:\[\]]", name)[0]
            raise ConfigError(
                f"the template has {{{plain(name, 80)}}}: {what} is not interpreted.",
                f"write {{{plain(column, 80)}}}, and prepare the text in a column of its own",
            )
    return name


def refuse_type(name: str, kind: pa.DataType) -> None:
    """Raise `InputError` for a column whose values have no text form that is the same in all engines.

    Texts stand for themselves, integers as decimal digits, booleans as true and false, dates as YYYY-MM-DD.
    """
    import pyarrow as pa

    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()
    if is_text or any(is_one(kind) for is_one in (pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)):
        return
    if kind == pa.date32() or (pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)):
        return
    if pa.types.is_dictionary(kind) and pa.types.is_large_string(kind.value_type):
        return
    raise InputError(
        f"column {plain(name, 80)!r} is {kind}, which a template cannot contain: engines print it differently.",
        "put its text in a column of its own; texts, integers, booleans and dates (date32) can be used",
    )


_YEARS = (-719_162, 2_932_896)  # 0001-01-01 and 9999-12-31, in days since 1970-01-01


def _refuse_years(name: str, values: pa.Array) -> None:
    """Raise `InputError` for a date whose year does not have four digits: engines print it differently."""
    import pyarrow as pa
    import pyarrow.compute as pc

    days = values.cast(pa.int32())
    outside = pc.or_(pc.less(days, _YEARS[0]), pc.greater(days, _YEARS[1]))
    if pc.any(outside).as_py():
        row = pc.index(outside, True).as_py()
        raise InputError(
            f"column {plain(name, 80)!r}: day {days[row].as_py()} since 1970, in row {row:,} of its batch, is not in "
            "the years 0001 to 9999, and engines print it differently.",
            "correct it, or put its text in a column of its own",
        )


def _texts(name: str, values: Any) -> Any:
    """Return a column as texts, nulls kept."""
    import pyarrow as pa

    refuse_type(name, values.type)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.type == pa.string_view():
        return values.cast(pa.large_string())
    if values.type == pa.date32():
        _refuse_years(name, values)
    return values if values.type in (pa.string(), pa.large_string()) else values.cast(pa.string())
