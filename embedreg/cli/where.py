"""A small SQL `WHERE` for Parquet files, as an Arrow expression. (A Lance table has the whole of its engine's SQL.)

condition := condition OR condition | condition AND condition | NOT condition | ( condition )
           | column = | != | <> | < | <= | > | >= literal | column [NOT] IN ( literal, ... )
           | column [NOT] LIKE 'text%' | column IS [NOT] NULL
literal   := 'text' | 12 | 1.5 | TRUE | FALSE
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from embedreg.errors import InputError, MissingColumnError
from embedreg.imports import did_you_mean

if TYPE_CHECKING:
    import pyarrow.compute as pc

__all__ = ["parse_where"]

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")+"|`[^`]+`)|(?P<number>-?\d+(?:\.\d+)?)"""
    r"""|(?P<word>[^\W\d]\w*(?:\.\w+)*)|(?P<sign><=|>=|<>|!=|=|<|>|\(|\)|,))"""
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_DEEPEST = 50  # parentheses and NOTs; the parser calls itself


def parse_where(text: str, columns: Iterable[str]) -> pc.Expression:
    """Turn a condition into an expression that `pyarrow.dataset` takes as a filter.

    Args:
        text: the condition, see this module's grammar.
        columns: what the data has.
    Raises:
        InputError: the condition cannot be read.
        MissingColumnError: it names a column that the data lacks.
    """
    parser = _Parser(text, list(columns))
    expression = parser.any_of(0)
    if parser.position < len(parser.tokens):
        raise parser.error()
    return expression


class _Parser:
    def __init__(self, text: str, columns: list[str]) -> None:
        self.text, self.columns, self.position = text, columns, 0
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise self.error(text[at:].split()[0])
            self.tokens.append((str(match.lastgroup), match.group(str(match.lastgroup))))
            at = match.end()

    def error(self, near: str | None = None) -> InputError:
        if near is None:
            near = self.tokens[self.position][1] if self.position < len(self.tokens) else "its end"
        return InputError(
            f"--where {self.text!r} cannot be read near {near!r}.", "write it like: module = 'json' AND year >= 1990"
        )

    def word(self, *wanted: str) -> bool:
        """Take the next words if they are these, in any case."""
        ahead = self.tokens[self.position : self.position + len(wanted)]
        if [(kind, value.upper()) for kind, value in ahead] != [("word", each) for each in wanted]:
            return False
        self.position += len(wanted)
        return True

    def sign(self, *wanted: str) -> str | None:
        if self.position < len(self.tokens) and self.tokens[self.position] in [("sign", each) for each in wanted]:
            self.position += 1
            return self.tokens[self.position - 1][1]
        return None

    def any_of(self, depth: int) -> Any:
        left = self.all_of(depth)
        while self.word("OR"):
            left = left | self.all_of(depth)
        return left

    def all_of(self, depth: int) -> Any:
        left = self.single(depth)
        while self.word("AND"):
            left = left & self.single(depth)
        return left

    def single(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise self.error()
        if self.word("NOT"):
            return ~self.single(depth + 1)
        if self.sign("("):
            inner = self.any_of(depth + 1)
            if not self.sign(")"):
                raise self.error()
            return inner
        return self.test()

    def test(self) -> Any:
        import pyarrow.compute as pc

        column = pc.field(self.column())
        if compare := self.sign(*_COMPARE):
            return _COMPARE[compare](column, self.literal())
        if self.word("IS", "NOT", "NULL"):
            return column.is_valid()
        if self.word("IS", "NULL"):
            return column.is_null()
        negate = self.word("NOT")
        if self.word("IN"):
            found = column.isin(self.literals())
        elif self.word("LIKE"):
            pattern = self.literal()
            if not isinstance(pattern, str):
                raise self.error()
            found = pc.match_like(column, pattern)
        else:
            raise self.error()
        return ~found if negate else found

    def column(self) -> str:
        kind, value = self.tokens[self.position] if self.position < len(self.tokens) else ("", "")
        if kind == "quoted":
            value = value[1:-1].replace('""', '"')
        elif kind != "word":
            raise self.error()
        if value not in self.columns:
            hint = f"{did_you_mean(value, self.columns)}columns: {', '.join(self.columns)}"
            raise MissingColumnError(f"--where names the column {value!r}, which the data lacks.", hint)
        self.position += 1
        return value

    def literal(self) -> str | int | float | bool:
        kind, value = self.tokens[self.position] if self.position < len(self.tokens) else ("", "")
        if kind == "text":
            literal: str | int | float | bool = value[1:-1].replace("''", "'")
        elif kind == "number":
            literal = float(value) if "." in value else int(value)
        elif kind == "word" and value.upper() in ("TRUE", "FALSE"):
            literal = value.upper() == "TRUE"
        else:
            raise self.error()
        self.position += 1
        return literal

    def literals(self) -> list[Any]:
        if not self.sign("("):
            raise self.error()
        found = [self.literal()]
        while self.sign(","):
            found.append(self.literal())
        if not self.sign(")"):
            raise self.error()
        return found
