"""The small SQL of --where on Parquet files."""

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from embedreg.cli.where import parse_where
from embedreg.errors import InputError, MissingColumnError

TABLE = pa.table(
    {
        "name": ["ada", "bob", "O'Neil", None],
        "year": [1815, 1970, 1990, 2001],
        "x y": [True, False, True, False],
    }
)


@pytest.mark.parametrize(
    ("condition", "years"),
    [
        ("name = 'ada'", [1815]),
        ("name != 'ada'", [1970, 1990]),
        ("name = 'O''Neil'", [1990]),
        ("year >= 1970 and year < 2000", [1970, 1990]),
        ("year < 1900 OR year > 2000", [1815, 2001]),
        ("year < 1900 OR year > 1900 AND name = 'bob'", [1815, 1970]),
        ("(year < 1900 OR year > 1900) AND name = 'bob'", [1970]),
        ("NOT name IS NULL", [1815, 1970, 1990]),
        ("name IS NOT NULL", [1815, 1970, 1990]),
        ("name is null", [2001]),
        ("year IN (1815, 2001)", [1815, 2001]),
        ("year NOT IN (1815, 2001)", [1970, 1990]),
        ("name LIKE 'O%'", [1990]),
        ("name NOT LIKE '%b%'", [1815, 1990]),
        ('"x y" = true', [1815, 1990]),
        ("year > -1.5", [1815, 1970, 1990, 2001]),
    ],
)
def test_a_condition_selects_what_sql_would(condition: str, years: list[int]) -> None:
    """Comparison, IN, LIKE, NULL, precedence and quoting are SQL's."""
    found = ds.dataset(TABLE).to_table(filter=parse_where(condition, TABLE.column_names))
    assert found.column("year").to_pylist() == years


@pytest.mark.parametrize(
    "condition",
    [
        *("", "name", "name =", "= 3", "name = 'ada", "name = ada", "year = 1 year = 2", "(year = 1", "year IN ()"),
        *("year IN 1", "name LIKE 3", "year = 1; DROP TABLE x", "not " * 100 + "year = 1"),
        "(" * 100 + "year = 1" + ")" * 100,
    ],
)
def test_what_is_no_condition_is_refused_with_an_example(condition: str) -> None:
    """Every other text is an InputError, never something half understood."""
    with pytest.raises(InputError, match="Hint: write it like"):
        parse_where(condition, TABLE.column_names)


def test_an_unknown_column_is_named_with_the_closest_one() -> None:
    """A typo in a column's name is answered by the column that was meant."""
    with pytest.raises(MissingColumnError, match="did you mean 'year'"):
        parse_where("yaer = 3", TABLE.column_names)
