"""Templates: what they render, in Python and in each engine's SQL, and what of a stored one is believed."""

from __future__ import annotations

import datetime as dt
import json
import pickle
from pathlib import Path
from typing import Any

import duckdb
import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedreg
from embedreg.arrow.templates import parse
from embedreg.cli import main
from embedreg.declaration import codec
from embedreg.engines.duckdb import sql as duckdb_sql
from embedreg.engines.lancedb.columns.declared import rendered as lance_sql
from embedreg.errors import ConfigError, DriftError, InputError, MetadataError, MissingColumnError, SchemaError

TEXT = "{title}\n\n{body}"
ROWS: list[dict[str, Any]] = [
    {"title": "a", "body": "b"},
    {"title": None, "body": "it's {x}"},
    {"title": "c\\n", "body": None},
    {"title": None, "body": None},
    {"title": "", "body": ""},
]
RENDERED = ["a\n\nb", "\n\nit's {x}", "c\\n\n\n", None, "\n\n"]


def hashing(**fields: Any) -> embedreg.EmbeddingFunction:
    """A function of eight dimensions."""
    return embedreg.get("hashing").create(dim=8, **fields)


def table(rows: list[dict[str, Any]] = ROWS) -> pa.Table:
    """Rows of two texts."""
    return pa.Table.from_pylist(rows, pa.schema([("title", pa.string()), ("body", pa.string())]))


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
parts = st.lists(st.one_of(texts.map(lambda each: ("text", each)), st.sampled_from([("column", "a"), ("column", "b")])))


@given(parts, st.lists(st.tuples(st.none() | texts, st.none() | texts), max_size=5))
def test_names_in_braces_are_columns_and_nothing_else_is_interpreted(
    given_parts: list[tuple[str, str]], rows: list[tuple[str | None, str | None]]
) -> None:
    """A row's text is the template's with the columns' texts in it; null is empty text, all null is null."""
    columns = list(dict.fromkeys(each for kind, each in given_parts if kind == "column"))
    template = "".join(
        "{" + each + "}" if kind == "column" else each.replace("{", "{{").replace("}", "}}")
        for kind, each in given_parts
    )
    if not columns:
        with pytest.raises(ConfigError):
            parse(template)
        return
    data = pa.table({name: pa.array([row[n] for row in rows], pa.string()) for n, name in enumerate("ab")})
    expected = []
    for row in rows:
        values = dict(zip("ab", row, strict=True))
        text = "".join(values[each] or "" if kind == "column" else each for kind, each in given_parts)
        expected.append(None if all(values[name] is None for name in columns) else text)
    assert parse(template).render(data).to_pylist() == expected


KINDS = pa.table(
    {
        "title": pa.array(["it's", None, "x\n\\n", None]),
        "n": pa.array([-5, 2**62, None, None], pa.int64()),
        "u": pa.array([2**64 - 1, 0, None, None], pa.uint64()),
        "ok": pa.array([True, False, None, None]),
        "day": pa.array([dt.date(2024, 2, 29), dt.date(1969, 12, 31), None, None]),
    }
)
EVERY = "{{{title}}} \\ 'q'\n\t{n}|{u}|{ok}|{day}"


def test_integers_booleans_and_dates_have_one_form_in_python_duckdb_and_lance(tmp_path: Path) -> None:
    """The SQL expressions give the very texts that Python renders."""
    template = parse(EVERY)
    expected = template.render(KINDS).to_pylist()
    assert expected[0] == "{it's} \\ 'q'\n\t-5|18446744073709551615|true|2024-02-29"
    assert expected[3] is None
    con = duckdb.connect()
    con.register("t", KINDS)
    assert [row[0] for row in con.execute(f"SELECT {duckdb_sql.rendered(template)} FROM t").fetchall()] == expected
    dataset = lance.write_dataset(KINDS, str(tmp_path / "t.lance"))
    dataset.add_columns({"made": lance_sql(template)})
    assert dataset.to_table()["made"].to_pylist() == expected


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{title", "single '{'"),
        ("title}", "single '}'"),
        ("{a.b}", "an attribute is not interpreted"),
        ("{a[0]}", "an item is not interpreted"),
        ("{a!r}", "a conversion is not interpreted"),
        ("{a:>9}", "a format is not interpreted"),
        ("{}", "expected a column's name"),
        ("{ a }", "expected a column's name"),
        ("no column", "reads no column"),
        ("", "expected a text"),
        ("{vector}", "which are made from it"),
        ("{vector__source}", "which are made from it"),
        ("{a}\0", "NUL"),
        ("{a}" * 200, "more than 100"),
        ("{a}" + "x" * 10_001, "more than 10,000"),
    ],
)
def test_whatever_else_stands_in_braces_is_refused_by_name(template: str, why: str) -> None:
    """There is no template language: the error says what is not interpreted."""
    with pytest.raises(ConfigError, match=why):
        hashing().bind(template=template, vector="vector")


def test_a_template_fills_a_text_column_of_its_own() -> None:
    """`embed_table` renders, embeds and stores text, vector and template; each row's vector is that of its text."""
    made = embedreg.embed_table(table(), hashing().bind(template=TEXT, vector="vector"))
    assert made["vector__source"].to_pylist() == RENDERED
    plain = embedreg.embed_column(hashing(), pa.array(RENDERED)).to_arrow().to_pylist()
    assert made["vector"].to_pylist() == plain
    [entry] = codec.entries(made.schema.metadata)
    assert (entry.source_column, entry.reserved["template"]) == ("vector__source", TEXT)
    read = embedreg.functions_in(made)["vector"]
    assert read.template == TEXT
    assert codec.encode([read], [entry]).decode() == f"[{entry.raw}]"
    again = embedreg.embed_table(table(), made.schema)
    assert again.equals(made)
    assert pickle.loads(pickle.dumps(read)) == read


def test_a_given_vector_keeps_the_text_that_it_came_with() -> None:
    """Only rows without a vector are rendered and embedded, so that a later refresh sees what changed."""
    made = embedreg.embed_table(table(), hashing().bind(template=TEXT, vector="vector"))
    titles = ["new", *made["title"].to_pylist()[1:]]
    vectors = made["vector"].to_pylist()
    changed = made.set_column(0, "title", pa.array(titles))
    assert embedreg.embed_table(changed)["vector__source"].to_pylist() == RENDERED
    gap = pa.array([None, *vectors[1:]], made["vector"].type)
    filled = embedreg.embed_table(changed.set_column(3, made.schema.field("vector"), gap))
    assert filled["vector__source"].to_pylist() == ["new\n\nb", *RENDERED[1:]]
    assert filled["vector"].to_pylist()[0] == embedreg.embed_query(hashing(), "new\n\nb").tolist()


def test_what_a_template_cannot_read_is_named() -> None:
    """Missing columns and types without one text form are errors that name the column."""
    bound = hashing().bind(template=TEXT, vector="vector")
    with pytest.raises(MissingColumnError, match="no column 'title', 'body'"):
        embedreg.embed_table({"titel": ["a"]}, bound)
    with pytest.raises(InputError, match="'title' is double"):
        embedreg.embed_table({"title": [1.5], "body": ["b"]}, bound)
    for day in (
        dt.date.min.toordinal() - 719_164,
        dt.date.max.toordinal() - 719_162,
        2**31 - 1,
    ):  # no year of four digits
        with pytest.raises(InputError, match=f"'title': day {day} since 1970, in row 1"):
            embedreg.embed_table({"title": pa.array([0, day], pa.date32()), "body": ["b", "b"]}, bound)
    with pytest.raises(ConfigError, match="treats those as file names"):
        embedreg.embed_table(table(), embedreg.get("open-clip").create().bind(template=TEXT, vector="vector"))
    with pytest.raises(ConfigError, match="whose name ends in '__source'"):
        hashing().bind("body", "vector", template="{title}")
    other = embedreg.embed_table(table(), bound)
    with pytest.raises(DriftError, match="another template"):
        embedreg.embed_table(other, hashing().bind(template="{title}", vector="vector"))


def test_texts_that_no_column_holds_are_an_error() -> None:
    """More than 2 GiB of rendered text: one line, not Arrow's own error."""
    with pytest.raises(InputError, match="more than 2 GiB in a batch of 1 rows"):
        parse("{a}" * 90).render({"a": pa.array(["x" * 25_000_000])})


def test_a_schema_declares_a_template() -> None:
    """The field of the texts is optional in rows; what it reads is checked when the class is made."""
    fn = hashing()

    class Article(embedreg.Schema):
        title: str | None
        body: str | None = None
        vector__source: str | None = fn.SourceField(template=TEXT)
        vector: embedreg.Vector(8) = fn.VectorField()

    made = embedreg.embed_table([{"title": "a", "body": "b"}, Article(title="c")], Article)
    assert made["vector__source"].to_pylist() == ["a\n\nb", "c\n\n"]
    assert Article.parse_embedding_functions()[0].template == TEXT
    with pytest.raises(SchemaError, match="no column 'headline'"):

        class Wrong(embedreg.Schema):
            vector__source: str | None = fn.SourceField(template="{headline}")
            vector: embedreg.Vector(8) = fn.VectorField()

    with pytest.raises(SchemaError, match="'__source'"):

        class Elsewhere(embedreg.Schema):
            title: str
            text: str | None = fn.SourceField(template="{title}")
            vector: embedreg.Vector(8) = fn.VectorField()


@pytest.mark.parametrize("change", [{"template": 5}, {"template": "{a.b}"}, {"template": "{vector}"}, {}])
def test_a_stored_template_is_untrusted(change: dict[str, Any]) -> None:
    """A template that embedreg would not write, or whose texts would overwrite another column, is a problem by name."""
    [item] = json.loads(codec.encode([hashing().bind(template="{title}", vector="vector")], written=False))
    item["model"]["embedreg"] |= change
    if not change:
        item["source_column"] = "title_and_body"
    functions = embedreg.functions_in({codec.KEY: json.dumps([item])})
    with pytest.raises(MetadataError, match="template of column 'vector' is invalid"):
        functions["vector"]


def test_a_job_renders_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r"""`embedreg embed --template` writes texts and vectors, `inspect` shows the template; `\n` is a new line."""
    pq.write_table(table(), tmp_path / "in.parquet")
    call = ["embed", str(tmp_path / "in.parquet"), str(tmp_path / "out"), "-f", "hashing", "--set", "dim=8"]
    assert main([*call, "--template", r"{title}\n\n{body}", "--piece-rows", "2"]) == 0
    made = pq.read_table(tmp_path / "out")
    assert made["vector__source"].to_pylist() == RENDERED
    assert made["vector"].to_pylist() == embedreg.embed_column(hashing(), pa.array(RENDERED)).to_arrow().to_pylist()
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert r'template   "{title}\n\n{body}"' in capsys.readouterr().out
    assert main([*call, "--template", "{title}"]) != 0  # begun with another template
    assert main([*call, "--template", "{title}", "--source", "body"]) == 2
