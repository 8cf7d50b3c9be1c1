"""The small SQL of --where on Parquet files."""

import datetime as dt
import decimal
from collections.abc import Callable
from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from embedreg.cli import exits
from embedreg.cli.search_columns import without_views
from embedreg.cli.where import lance_where, parse_where
from embedreg.errors import InputError, MissingColumnError

DAY = dt.datetime(2024, 1, 31, 12, 30)
TABLE = pa.table(
    {
        "name": ["ada", "bob", "O'Neil", None],
        "year": [1815, 1970, 1990, 2001],
        "x y": [True, False, True, False],
        "flag": pa.array([True, False, None, True]),
        "day": pa.array([DAY.date(), dt.date(2024, 2, 1), None, dt.date(1969, 7, 20)]),
        "at": pa.array([DAY, DAY + dt.timedelta(days=1), None, DAY.replace(year=1970)], pa.timestamp("us")),
        "price": pa.array([decimal.Decimal("9.99"), decimal.Decimal("10.00"), None, decimal.Decimal("-1.50")]),
        "big": pa.array([2**64 - 1, 0, None, 7], pa.uint64()),
        "small": pa.array([-128, 127, None, 0], pa.int8()),
        "weight": pa.array([0.1, 1.5, None, -2.5], pa.float32()),
        "place": pa.array([{"city": "Rome", "zip": "00100"}, {"city": "Oslo", "zip": None}, None, None]),
    }
)
EVERYWHERE = [
    ("name = 'ada'", [1815]),
    ("name != 'ada'", [1970, 1990]),
    ("name = 'O''Neil'", [1990]),
    ("name > 'a' AND name < 'b'", [1815]),
    ("year >= 1970 and year < 2000", [1970, 1990]),
    ("year < 1900 OR year > 2000", [1815, 2001]),
    ("year < 1900 OR year > 1900 AND name = 'bob'", [1815, 1970]),
    ("(year < 1900 OR year > 1900) AND name = 'bob'", [1970]),
    ("NOT name IS NULL", [1815, 1970, 1990]),
    ("name IS NOT NULL", [1815, 1970, 1990]),
    ("name is null", [2001]),
    ("year IN (1815, 2001)", [1815, 2001]),
    ("year NOT IN (1815, 2001)", [1970, 1990]),
    ("name IN ('ada', 'eve')", [1815]),
    ("name NOT IN ('ada', 'eve')", [1970, 1990]),  # null is neither in nor out
    ("NOT (name IN ('ada'))", [1970, 1990]),
    ("name LIKE 'O%'", [1990]),
    ("name NOT LIKE '%b%'", [1815, 1990]),
    ("name LIKE '_da'", [1815]),
    ("name ILIKE 'ADA'", [1815]),
    ("name NOT ILIKE 'o%'", [1815, 1970]),
    ("`x y` = true", [1815, 1990]),
    ("`x y`", [1815, 1990]),
    ("flag", [1815, 2001]),
    ("NOT flag", [1970]),
    ("flag IS TRUE", [1815, 2001]),
    ("flag IS NOT TRUE", [1970, 1990]),
    ("flag IS FALSE", [1970]),
    ("year > -1", [1815, 1970, 1990, 2001]),
    ("1970 < year", [1990, 2001]),
    ("year BETWEEN 1970 AND 1990", [1970, 1990]),
    ("year NOT BETWEEN 1970 AND 1990", [1815, 2001]),
    ("day = DATE '2024-01-31'", [1815]),
    ("day = '2024-01-31'", [1815]),
    ("day < '1970-01-01'", [2001]),
    ("day BETWEEN DATE '2024-01-01' AND DATE '2024-01-31'", [1815]),
    ("at = TIMESTAMP '2024-01-31 12:30:00'", [1815]),
    ("at >= '2024-02-01 12:30:00'", [1970]),
    ("at < '2000-01-01 00:00:00'", [2001]),
    ("price = 9.99", [1815]),
    ("price < 0", [2001]),
    ("price >= 9.99 AND price <= 10", [1815, 1970]),
    ("big = 18446744073709551615", [1815]),
    ("big > 0", [1815, 2001]),
    ("big IN (0, 7)", [1970, 2001]),
    ("small = -128", [1815]),
    ("weight = 0.1", [1815]),
    ("weight > 1", [1970]),
    ("place.city = 'Rome'", [1815]),
    ("place.zip IS NULL AND place.city = 'Oslo'", [1970]),
]
# Lance answers these in another way, or not at all.
ON_PARQUET = [
    ("year > -1.5", [1815, 1970, 1990, 2001]),
    ("year < 1970.5", [1815, 1970]),
    ("year <= 1969.5", [1815]),
    ("year = 1970.5", []),
    ("year != 1970.5", [1815, 1970, 1990, 2001]),
    ("year IN (1970.5, 1990)", [1990]),
    ("big > -1", [1815, 1970, 2001]),
    ("big < 18446744073709551616", [1815, 1970, 2001]),
    ("small < 1000", [1815, 1970, 2001]),
    ("small > 1000", []),
    ("NOT small > 1000", [1815, 1970, 2001]),
    ('"x y" = true', [1815, 1990]),
    ("name = NULL", []),
    ("name NOT IN ('ada', NULL)", []),
    ("at = '2024-01-31T12:30'", [1815]),
    ("name IN (" + ", ".join(f"'{number}'" for number in range(5000)) + ", 'ada')", [1815]),
    (" OR ".join(["year = 1"] * 2000) + " OR year = 1990", [1990]),
]


@pytest.fixture(scope="module")
def lance(tmp_path_factory: pytest.TempPathFactory) -> lancedb.table.Table:
    """A LanceDB table of the same rows."""
    return lancedb.connect(tmp_path_factory.mktemp("db")).create_table("rows", TABLE)


@pytest.mark.parametrize(("condition", "years"), EVERYWHERE + ON_PARQUET, ids=lambda value: str(value)[:40])
def test_a_condition_selects_what_sql_would(condition: str, years: list[int]) -> None:
    """Comparison, BETWEEN, IN, LIKE, NULL, dates, decimals, precedence and quoting are SQL's."""
    found = ds.dataset(TABLE).to_table(filter=parse_where(condition, TABLE.schema))
    assert found.column("year").to_pylist() == years


@pytest.mark.parametrize(("condition", "years"), EVERYWHERE, ids=lambda value: str(value)[:40])
def test_lance_answers_alike(lance: lancedb.table.Table, condition: str, years: list[int]) -> None:
    """The documented grammar means on a Lance table what it means on Parquet."""
    assert (
        sorted(
            lance.search().where(lance_where(condition, TABLE.schema)).limit(10).to_arrow().column("year").to_pylist()
        )
        == years
    )


@pytest.mark.parametrize(
    ("kind", "condition"),
    [
        (pa.string_view(), "name = 'ada'"),
        (pa.large_string(), "name LIKE 'ad%'"),
        (pa.string_view(), "name ILIKE 'AD%'"),
        (pa.dictionary(pa.int32(), pa.string()), "name IN ('ada')"),
        (pa.dictionary(pa.int8(), pa.large_string()), "name LIKE '%da'"),
    ],
    ids=str,
)
def test_every_layout_of_text_is_compared(tmp_path: Path, kind: pa.DataType, condition: str) -> None:
    """String views (as polars writes them), large strings and dictionaries compare as strings do."""
    names = pa.array(["ada", "bob", None])
    data = pa.table({"name": names.dictionary_encode().cast(kind) if "dictionary" in str(kind) else names.cast(kind)})
    pq.write_table(data, tmp_path / "names.parquet")
    read = without_views(data.schema)
    found = ds.dataset(tmp_path / "names.parquet", read).to_table(filter=parse_where(condition, read))
    assert found.column("name").to_pylist() == ["ada"]


def test_string_views_are_searched_under_a_condition(cli: Callable, tmp_path: Path) -> None:
    """A file's statistics are string views too where its column is, nulls in it or not."""
    names = pa.array(["ada", "bob"])
    pq.write_table(pa.table({"text": names.cast(pa.string_view()), "n": [1, 2]}), tmp_path / "in.parquet")
    cli("embed", "in.parquet", "out.parquet", "-f", "hashing", "--set", "dim=4")
    table = pq.read_table(tmp_path / "out.parquet")
    view = table.set_column(0, "text", table.column("text").cast(pa.string_view()))
    pq.write_table(view.replace_schema_metadata(table.schema.metadata), tmp_path / "view.parquet")
    for condition, found in (("text = 'ada'", [1]), ("text != 'ada'", [2]), ("text > 'b'", [2]), ("text IN ('x')", [])):
        if found:
            assert [
                each["n"] for each in cli("search", "view.parquet", "ada", "--where", condition, "--json").json
            ] == found
        else:
            assert "no row meets" in cli("search", "view.parquet", "ada", "--where", condition).err


@pytest.mark.parametrize("condition", ["", "n =", "n > 1 AND", "n > 'x'", "(", "n ~ 2"])
@pytest.mark.parametrize("place", ["out.parquet", "db/out.lance"])
def test_a_condition_that_cannot_be_read_is_one_line(cli: Callable, tmp_path: Path, condition: str, place: str) -> None:
    """It shows neither the parser's classes nor paths of the engine's source."""
    (tmp_path / "in.jsonl").write_text('{"text": "a", "n": 1}\n')
    cli("embed", "in.jsonl", place, "-f", "hashing", "--set", "dim=4")
    err = cli("search", place, "a", "--where", condition, expect=exits.ERROR).err
    assert "--where" in err
    assert not any(part in err for part in ("<class", "sqlglot", ".rs:", "Traceback")), err


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Rome"])
def test_times_of_every_unit_and_zone_are_compared(unit: str, zone: str | None) -> None:
    """A time without a zone is read in the column's own; one with an offset is that moment."""
    local = pa.array([DAY, DAY + dt.timedelta(seconds=1)], pa.timestamp(unit))
    column = local if zone is None else pa.compute.assume_timezone(local, zone)
    data = pa.table({"at": column})
    found = ds.dataset(data).to_table(filter=parse_where("at <= '2024-01-31 12:30:00'", data.schema))
    assert found.num_rows == 1
    if zone is not None:
        moment = "2024-01-31T12:30:00" + ("Z" if zone == "UTC" else "+01:00")
        assert ds.dataset(data).to_table(filter=parse_where(f"at = '{moment}'", data.schema)).num_rows == 1


@pytest.mark.parametrize(
    "condition",
    [
        *("", "name =", "= 3", "name = 'ada", "name = ada", "year = 1 year = 2", "(year = 1", "year IN ()"),
        *("year IN 1", "year IN (SELECT 1)", "name LIKE 3", "year = 1; DROP TABLE x", "not " * 100 + "year = 1"),
        "(" * 100 + "year = 1" + ")" * 100,
        "(" * 100_000,
        *("year = 'soon'", "day = 'soon'", "day = 3", "name = 3", "at = 'noon'", "price = 'cheap'", "flag = 'yes'"),
        *("place = 'Rome'", "place.street = 'x'", "name = DATE '2024-01-01'", "name", "year AND flag", "1 = 1"),
        *("lower(name) = 'ada'", "(SELECT 1) = 1", "name ~ 'a'", "year + 1 = 2", "name LIKE name", "name = day"),
        *("CAST(year AS text) = '1'", "EXISTS (SELECT 1)", "year = $1", "name = 'a' COLLATE x", "CURRENT_DATE > day"),
    ],
)
def test_what_is_no_condition_is_refused_with_an_example(condition: str) -> None:
    """Every other text is an InputError, never something half understood."""
    with pytest.raises(InputError, match="Hint: write it like"):
        parse_where(condition, TABLE.schema)


def test_an_unknown_column_is_named_with_the_closest_one() -> None:
    """A typo in a column's name is answered by the column that was meant."""
    with pytest.raises(MissingColumnError, match="did you mean 'year'"):
        parse_where("yaer = 3", TABLE.schema)
