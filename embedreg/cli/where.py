"""SQL conditions for Parquet files as Arrow expressions, in the subset of Lance's SQL that both support.

condition := condition OR condition | condition AND condition | NOT condition | ( condition )
           | value = | != | <> | < | <= | > | >= value | value [NOT] BETWEEN value AND value
           | column [NOT] IN ( literal, ... ) | column [NOT] LIKE | ILIKE 'text%' | column IS [NOT] NULL | TRUE | FALSE
           | column (of booleans)
value     := column | struct.field | literal
literal   := 'text' | 12 | 1.5 | TRUE | FALSE | DATE '2024-01-31' | TIMESTAMP '2024-01-31 12:00:00' | NULL

A literal is read as the type of the column that it is compared with. Names with characters other than letters, digits
and `_` are quoted in backticks. The text is parsed by sqlglot; a comparison with null is neither true nor false, as in
SQL.
"""

from __future__ import annotations

import decimal
import operator
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from embedreg.errors import InputError, MissingColumnError
from embedreg.support.display import plain
from embedreg.support.imports import did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["lance_where", "parse_where"]

_DEEPEST = 50  # parentheses and NOTs
_LONGEST = 100_000  # characters; a list of keys may be long
_COMPARE = {
    "EQ": "equal",
    "NEQ": "not_equal",
    "LT": "less",
    "LTE": "less_equal",
    "GT": "greater",
    "GTE": "greater_equal",
}
_MIRRORED = {"less": "greater", "less_equal": "greater_equal", "greater": "less", "greater_equal": "less_equal"}
_EXAMPLE = "write it like: module = 'json' AND year BETWEEN 1990 AND 1999"
_LITERALS = ("Literal", "Neg", "Boolean", "Null", "Cast", "Paren")
_ZONE = re.compile(r":\d{2}(?:\.\d+)?\s*(?:Z|[+-]\d{2}(?::?\d{2})?)$")  # the UTC offset at the end of a time
_INSIDE = re.compile(r"Required keyword: '\w+' missing for <class '[\w.]+'>")  # the parser's own classes
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def parse_where(text: str, schema: pa.Schema) -> Any:
    """Turn a condition into a `pyarrow.compute.Expression`, which `pyarrow.dataset` takes as a filter.

    Args:
        text: the condition, see this module's grammar.
        schema: of the data; its types determine how literals are read.
    Raises:
        InputError: the condition cannot be parsed, or compares incompatible types.
        MissingColumnError: it names a column that the data lacks.
    """
    import pyarrow as pa
    import pyarrow.dataset

    expression = _Translator(text, schema).condition(_parsed(text))
    try:
        pyarrow.dataset.dataset(schema.empty_table()).scanner(
            filter=expression
        )  # checks the expression against the types
    except (pa.ArrowException, TypeError, ValueError) as exc:
        what = plain(exc, 200).rstrip(".")
        raise InputError(f"--where {text!r} compares incompatible types: {what}.", _EXAMPLE) from None
    return expression


def lance_where(text: str, schema: pa.Schema) -> str:
    """Return a condition for Lance's engine, which needs typed literals for dates, times and decimals.

    Literals compared with columns of these types are converted; everything else, including Lance's own syntax, stays.

    Args:
        text: the condition, in the grammar of this module or in any other SQL of Lance.
        schema: of the table.
    """
    import pyarrow as pa
    from sqlglot import exp

    try:
        parsed, translator = _parsed(text), _Translator(text, schema)
        nodes = [node for node in parsed.walk() if type(node).__name__ in (*_COMPARE, "Between", "In")]
        typed = 0
        for node in nodes:
            parts = [node.this, node.args.get("expression"), node.args.get("low"), node.args.get("high")]
            parts = [part for part in [*parts, *node.expressions] if part is not None]
            column = next(part for part in parts if type(part).__name__ in ("Column", "Dot"))
            type_ = translator.column(column)[1]
            for part in parts:
                if type(part).__name__ not in ("Literal", "Neg") or not (_is_temporal(type_) or _is_decimal(type_)):
                    continue
                value = translator.value(part, type_)
                typed += 1
                if _is_decimal(type_):
                    wanted = f"DECIMAL({value.type.precision}, {max(value.type.scale, 0)})"
                else:
                    wanted = "DATE" if pa.types.is_date(type_) else "TIMESTAMP"
                part.replace(exp.cast(exp.Literal.string(str(value)), wanted))
    except (InputError, MissingColumnError, StopIteration):
        return text
    return parsed.sql(dialect="mysql") if typed else text


def _is_decimal(type_: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_decimal(type_))


def _parsed(text: str) -> Any:
    """Parse the text, in which names may be quoted in double quotes or backticks.

    Raises:
        InputError: it is not a condition.
    """
    import sqlglot
    from sqlglot.dialects.dialect import Dialect
    from sqlglot.errors import SqlglotError
    from sqlglot.expressions import Condition

    class Where(Dialect):
        class Tokenizer(sqlglot.Tokenizer):
            IDENTIFIERS: ClassVar = ['"', "`"]

    if len(text) > _LONGEST:
        raise InputError(f"--where has {len(text):,} characters, more than {_LONGEST:,}.", _EXAMPLE)
    depth = 0
    for sign in re.sub(r"'[^']*'", "", text):
        depth += (sign == "(") - (sign == ")")
        if depth > _DEEPEST:
            raise InputError(f"--where nests parentheses more than {_DEEPEST} deep.", _EXAMPLE)
    try:
        return sqlglot.parse_one(text, dialect=Where, into=Condition)
    except SqlglotError as exc:
        near = _ANSI.sub("", str(exc.__cause__ or exc)).partition("\n")[0].rstrip(". ")
        near = _INSIDE.sub("a part is missing", near) if text.strip() else "it is empty"
        raise InputError(f"--where {text!r} cannot be read: {near}.", _EXAMPLE) from None
    except RecursionError:
        raise InputError(f"--where {text[:60]!r}... nests too deeply.", _EXAMPLE) from None


class _Translator:
    """Translates a parsed condition to an expression over typed columns."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.text, self.schema = text, schema

    def refused(self, node: Any, why: str = "is not supported on Parquet") -> InputError:
        return InputError(f"--where {self.text!r}: `{plain(node.sql(), 60)}` {why}.", _EXAMPLE)

    def condition(self, node: Any, depth: int = 0) -> Any:
        """Translate a boolean expression."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = type(node).__name__
        if depth > _DEEPEST:
            raise InputError("--where nests too deeply.", _EXAMPLE)
        if kind == "Paren":
            return self.condition(node.this, depth + 1)
        if kind == "Not":
            return ~self.condition(node.this, depth + 1)
        if kind in ("And", "Or"):
            parts = [self.condition(part, depth + 1) for part in node.flatten()]  # a chain counts as one level
            return _joined(parts, operator.and_ if kind == "And" else operator.or_)
        if kind in _COMPARE:
            return self.comparison(node, _COMPARE[kind])
        if kind == "Between":
            column, type_ = self.column(node.this)
            low, high = (self.against(column, type_, node.args[end], how) for end, how in _BETWEEN)
            return low & high
        if kind in ("Like", "ILike"):
            column, type_ = self.column(node.this)
            if not _is_text(type_):
                raise self.refused(node, f"compares {type_} with a pattern")
            if type(node.expression).__name__ != "Literal" or not node.expression.is_string:
                raise self.refused(node, "needs a pattern in quotes")
            found = pc.match_like(column, node.expression.this, ignore_case=kind == "ILike")
            return ~found if node.args.get("negate") else found
        if kind == "In":
            return self.one_of(node)
        if kind == "Is":
            return self.state(node)
        if kind == "Boolean":
            return pc.scalar(bool(node.this))
        if kind in ("Column", "Dot"):
            column, type_ = self.column(node)
            if pa.types.is_boolean(type_):
                return column
            raise self.refused(node, f"is {type_}, not a condition")
        raise self.refused(node)

    def column(self, node: Any) -> tuple[Any, pa.DataType]:
        """Return a column or struct field with its type; dictionaries and views become plain values."""
        import pyarrow as pa
        import pyarrow.compute as pc

        while type(node).__name__ == "Paren":
            node = node.this
        if type(node).__name__ not in ("Column", "Dot"):
            raise self.refused(node, "is not a column")
        path = [part.name for part in node.parts]
        if ".".join(path) in self.schema.names:
            path = [".".join(path)]
        if path[0] not in self.schema.names:
            hint = f"{did_you_mean(path[0], self.schema.names)}columns: {', '.join(self.schema.names)}"
            raise MissingColumnError(f"--where names the column {path[0]!r}, which the data lacks.", hint)
        type_ = self.schema.field(path[0]).type
        for name in path[1:]:
            if not pa.types.is_struct(type_) or type_.get_field_index(name) < 0:
                raise self.refused(node, f"names a field that {type_} lacks")
            type_ = type_.field(name).type
        field = pc.field(*path)
        if pa.types.is_dictionary(type_):
            type_ = type_.value_type
            field = field.cast(type_)
        if pa.types.is_string_view(type_):
            type_ = pa.large_string()
            field = field.cast(type_)
        return field, type_

    def comparison(self, node: Any, how: str) -> Any:
        left, right = node.this, node.expression
        if type(left).__name__ in _LITERALS and type(right).__name__ not in _LITERALS:
            left, right, how = right, left, _MIRRORED.get(how, how)
        column, type_ = self.column(left)
        return self.against(column, type_, right, how)

    def against(self, column: Any, type_: pa.DataType, node: Any, how: str) -> Any:
        """Compare a column with a literal."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if type(node).__name__ in ("Column", "Dot"):
            if not {node.parts[0].name, ".".join(part.name for part in node.parts)} & set(self.schema.names):
                raise self.refused(node, "is neither a column nor a text in single quotes")
            return getattr(pc, how)(column, self.column(node)[0])
        value = self.value(node, type_)
        if value is None:
            return pc.scalar(pa.scalar(None, pa.bool_()))
        if isinstance(value, decimal.Decimal):  # not a value of this integer type: fractional or out of range
            return self.beside(column, type_, value, how)
        return getattr(pc, how)(column, value)

    def beside(self, column: Any, type_: pa.DataType, value: decimal.Decimal, how: str) -> Any:
        """Compare integers with a number outside their type."""
        import pyarrow as pa
        import pyarrow.compute as pc

        low, high = _limits(type_)
        floor = int(value.to_integral_value(decimal.ROUND_FLOOR))
        if how in ("equal", "not_equal") or not low <= floor < high:
            above = how.startswith("less") if value > low else how.startswith("greater")
            answer = how == "not_equal" or (how != "equal" and above)
            return pc.if_else(column.is_valid(), pc.scalar(answer), pc.scalar(pa.scalar(None, pa.bool_())))
        return getattr(pc, "less_equal" if how.startswith("less") else "greater")(column, pa.scalar(floor, type_))

    def one_of(self, node: Any) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        column, type_ = self.column(node.this)
        if not node.expressions:
            raise self.refused(node, "needs a list of values, IN (1, 2)")
        values = [self.value(each, type_) for each in node.expressions]
        equal = [value for value in values if value is not None and not isinstance(value, decimal.Decimal)]
        null = pc.scalar(pa.scalar(None, pa.bool_()))
        found = column.isin(pa.array([value.as_py() for value in equal], equal[0].type if equal else type_))
        if len(equal) < len(values) and any(value is None for value in values):
            found = pc.if_else(found, pc.scalar(True), null)
        return pc.if_else(column.is_valid(), found, null)

    def state(self, node: Any) -> Any:
        import pyarrow.compute as pc

        kind = type(node.expression).__name__
        if kind == "Null":
            return self.column(node.this)[0].is_null()
        if kind != "Boolean":
            raise self.refused(node)
        inner = self.condition(node.this)
        wanted = inner if node.expression.this else ~inner
        return pc.if_else(inner.is_valid(), wanted, pc.scalar(False))

    def value(self, node: Any, type_: pa.DataType) -> Any:
        """Read a literal as the type of the column that it is compared with.

        Returns:
            A `pa.Scalar`; None for NULL; a Decimal for an integer type that has no such value.
        """
        import pyarrow as pa

        while type(node).__name__ == "Paren":
            node = node.this
        kind = type(node).__name__
        negative = kind == "Neg"
        inner = node.this if negative or kind == "Cast" else node
        if kind == "Null":
            return None
        if kind == "Boolean":
            if not pa.types.is_boolean(type_):
                raise self.refused(node, f"is compared with a column of {type_}")
            return pa.scalar(bool(node.this))
        if type(inner).__name__ != "Literal" or (negative and inner.is_string):
            raise self.refused(node, "is not a literal")
        if kind == "Cast" and (not inner.is_string or node.to.this.name not in _TEMPORAL or not _is_temporal(type_)):
            raise self.refused(node, f"is compared with a column of {type_}")
        try:
            return _scalar(("-" if negative else "") + inner.this, inner.is_string, type_)
        except (pa.ArrowException, ArithmeticError, ValueError, OverflowError):
            raise self.refused(node, f"is not {type_}, the type of the column beside it") from None


_BETWEEN = (("low", "greater_equal"), ("high", "less_equal"))
_TEMPORAL = ("DATE", "TIMESTAMP", "TIMESTAMPNTZ", "TIMESTAMPTZ", "TIME", "DATETIME")


def _joined(parts: list[Any], join: Callable[[Any, Any], Any]) -> Any:
    """Join conditions as a balanced tree, since a chain of thousands would be too deep."""
    while len(parts) > 1:
        pairs = [join(*parts[at : at + 2]) for at in range(0, len(parts) - 1, 2)]
        parts = pairs + parts[len(parts) - len(parts) % 2 :]
    return parts[0]


def _is_text(type_: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _is_temporal(type_: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_temporal(type_))


def _limits(type_: pa.DataType) -> tuple[int, int]:
    import pyarrow as pa

    if pa.types.is_signed_integer(type_):
        return -(2 ** (type_.bit_width - 1)), 2 ** (type_.bit_width - 1) - 1
    return 0, 2**type_.bit_width - 1


def _scalar(text: str, quoted: bool, type_: pa.DataType) -> Any:
    """Read the text of a literal as a type.

    Raises:
        ValueError, ArithmeticError, pa.ArrowException: invalid text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    test = pa.types
    if test.is_integer(type_):
        number = decimal.Decimal(text)
        low, high = _limits(type_)
        inside = number == number.to_integral_value() and low <= number <= high
        return pa.scalar(int(number), type_) if inside else number
    if test.is_floating(type_):
        return pa.scalar(float(text), pa.float64()).cast(type_)
    if test.is_decimal(type_):
        return pa.scalar(decimal.Decimal(text))
    if not quoted or test.is_boolean(type_):
        raise ValueError
    if _is_text(type_):
        return pa.scalar(text, type_)
    if test.is_timestamp(type_) and type_.tz is not None and not _ZONE.search(text):
        return pc.assume_timezone(pa.scalar(text).cast(pa.timestamp(type_.unit)), type_.tz)
    if test.is_timestamp(type_) or test.is_date(type_) or test.is_time(type_):
        return pa.scalar(text).cast(type_)
    raise ValueError
