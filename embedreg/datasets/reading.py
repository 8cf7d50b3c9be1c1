"""`Reading`: options for reading text files: declared types, encoding, delimiter."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.errors import ConfigError, InputError
from embedreg.support.imports import did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TYPES", "Reading"]

TYPES = {
    "text": "string",
    "string": "string",
    "int": "int64",
    "int64": "int64",
    "uint64": "uint64",
    "float": "double",
    "float64": "double",
    "bool": "bool",
    "date": "date32",
    "timestamp": "timestamp[us]",
}
_DELIMITERS = {"tab": "\t", "\\t": "\t"}  # as a shell passes them


@dataclass(frozen=True)
class Reading:
    """Options for reading text files; what is not given is inferred from the files.

    Attributes:
        types: declared (column, name in `TYPES`).
        encoding: of the files; None for UTF-8, or the encoding of their byte order mark.
        delimiter: of CSV; None for a comma, or a tab in `.tsv`.
        sources: columns that are embedded: they are always read as text.
    """

    types: tuple[tuple[str, str], ...] = ()
    encoding: str | None = None
    delimiter: str | None = None
    sources: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        types: Mapping[str, str] | None = None,
        encoding: str | None = None,
        delimiter: str | None = None,
        sources: Iterable[str] = (),
    ) -> Reading:
        """Validate the options of a caller.

        Raises:
            ConfigError: an unknown type or encoding, or a delimiter that cannot separate fields.
        """
        if isinstance(types, str) or not isinstance(types, Mapping | None):
            raise ConfigError(f"types={types!r} is not a mapping.", "types={'id': 'text'}")
        for column, name in (types or {}).items():
            if not isinstance(name, str) or name not in TYPES:
                raise ConfigError(
                    f"unknown type {name!r} for column {column!r}.",
                    f"{did_you_mean(str(name), list(TYPES))}one of {', '.join(TYPES)}",
                )
        return cls(
            tuple(sorted((types or {}).items())),
            _encoding(encoding),
            _delimiter(delimiter),
            tuple(sorted(set(sources))),
        )

    @property
    def asked(self) -> list[str]:
        """The names of the options that were given."""
        return [name for name in ("types", "encoding", "delimiter") if getattr(self, name)]

    def type_of(self, column: str) -> pa.DataType | None:
        """Return the declared type of a column; None if it is inferred."""
        import pyarrow as pa

        name = dict(self.types).get(column, "text" if column in self.sources else None)
        if name is None:
            return None
        kinds = {"double": pa.float64(), "bool": pa.bool_(), "date32": pa.date32(), "timestamp[us]": pa.timestamp("us")}
        return kinds.get(TYPES[name]) or getattr(pa, TYPES[name])()

    def refuse_unknown(self, columns: Iterable[str], where: str) -> None:
        """Raise if a type is declared for a column that does not exist.

        Raises:
            InputError: it names the column.
        """
        there = list(columns)
        for column, _ in self.types:
            if column not in there:
                raise InputError(
                    f"{where} has no column {column!r}, for which a type is declared.",
                    f"{did_you_mean(column, there)}columns: {', '.join(there)}",
                )

    def facts(self) -> dict[str, Any]:
        """Return the options as JSON values, for `from_facts`."""
        return {
            "types": dict(self.types),
            "encoding": self.encoding,
            "delimiter": self.delimiter,
            "sources": [*self.sources],
        }

    @classmethod
    def from_facts(cls, found: Any) -> Reading | None:
        """Return the options that `facts` returned; None if they are invalid."""
        try:
            return cls.of(**found)
        except (ConfigError, TypeError, ValueError, AttributeError):
            return None


def _encoding(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        found = codecs.lookup(name)
        "".encode(name)  # fails for codecs of bytes, such as hex
    except (LookupError, TypeError, ValueError) as exc:
        raise ConfigError(
            f"unknown encoding {name!r}.", "for example utf-8, latin-1, cp1252, utf-16, shift-jis"
        ) from exc
    return None if found.name in ("utf-8", "utf-8-sig") else found.name


def _delimiter(text: str | None) -> str | None:
    if text is None:
        return None
    found = _DELIMITERS.get(text, text) if isinstance(text, str) else ""
    if len(found) != 1 or not found.isascii() or found in '"\r\n\0':
        raise ConfigError(
            f"invalid delimiter {text!r}: expected one ASCII character that is neither a quote nor a line break.",
            "for example ; or , or | or tab",
        )
    return found
