"""LanceDB's own calls on tables that declare embedreg functions: create, add, search, merge, async, reopen."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import lancedb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from lancedb.index import FTS
from lancedb.pydantic import LanceModel

import embedreg
from embedreg import EmbeddingFunctionConfig, Schema, Vector
from embedreg.declaration import codec
from embedreg.engines.lancedb import add, create_table, open_table
from embedreg.errors import ConfigError, InputError, SchemaError, StorageError
from tests.engines.lancedb_functions import ChoosyLetters, HeavyLetters, Letters, counts

FN = Letters.create()
TEXTS = ["banana", "pepper", "fig"]


class Foods(LanceModel):
    """A text, its vector and a price."""

    text: str = FN.SourceField()
    vector: Vector(FN.ndims) = FN.VectorField()
    price: int = 0


class OurFoods(Schema):
    """The same in embedreg's own words."""

    text: str = FN.SourceField()
    vector: Vector(FN.ndims) = FN.VectorField()
    price: int | None = None


@pytest.fixture
def table(db: Any) -> Any:
    """Three foods."""
    table = db.create_table("foods", schema=Foods)
    table.add([{"text": text, "price": price} for price, text in enumerate(TEXTS)])
    return table


def vectors(table: Any) -> dict[str, Any]:
    """Return {text: vector} of a table."""
    rows = table.to_arrow().to_pylist()
    return {row["text"]: row["vector"] for row in rows}


ROWS = {"text": TEXTS, "price": [0, 1, 2]}
SHAPES = {
    "pandas": lambda: pd.DataFrame(ROWS),
    "polars": lambda: pl.DataFrame(ROWS),
    "arrow": lambda: pa.table(ROWS),
    "batch": lambda: pa.RecordBatch.from_pydict(ROWS),
    "reader": lambda: pa.table(ROWS).to_reader(max_chunksize=2),
    "batches": lambda: iter(pa.table(ROWS).to_batches(max_chunksize=2)),
    "dicts": lambda: pa.table(ROWS).to_pylist(),
    "models": lambda: [Foods(**row) for row in pa.table(ROWS).to_pylist()],
    "dictionary": lambda: pa.table({"text": pa.array(TEXTS).dictionary_encode(), "price": [0, 1, 2]}),
    "large": lambda: pa.table({"text": pa.array(TEXTS, pa.large_string()), "price": [0, 1, 2]}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_add_embeds_data_of_every_kind(db: Any, shape: str) -> None:
    """`tbl.add` computes the vectors of whatever lancedb takes."""
    table = db.create_table("t", schema=Foods)
    table.add(SHAPES[shape]())
    assert vectors(table) == {text: counts(text) for text in TEXTS}


@pytest.mark.parametrize("shape", SHAPES)
def test_create_table_embeds_the_data_it_is_given(db: Any, shape: str) -> None:
    """`create_table(data=..., schema=...)` computes vectors too, and declares the function."""
    table = db.create_table("t", data=SHAPES[shape](), schema=Foods)
    assert vectors(table) == {text: counts(text) for text in TEXTS}
    assert table.search("a fig").limit(1).to_list()[0]["text"] == "fig"


@pytest.mark.parametrize("with_schema", [True, False], ids=["schema", "data alone"])
def test_embedding_functions_takes_our_config(db: Any, with_schema: bool) -> None:
    """`embedding_functions=[...]` declares our function, with a plain schema or with none."""
    config = EmbeddingFunctionConfig(source_column="text", vector_column="vector", function=FN)
    schema = pa.schema([("text", pa.string()), ("vector", pa.list_(pa.float32(), 26)), ("price", pa.int64())])
    table = db.create_table(
        "t", data=pa.table(ROWS), schema=schema if with_schema else None, embedding_functions=[config]
    )
    assert vectors(table) == {text: counts(text) for text in TEXTS}
    assert embedreg.functions_in(table)["vector"].function == FN


def test_an_embedreg_schema_declares_a_table(db: Any) -> None:
    """`Schema.to_arrow_schema()` is all that lancedb needs; `engines.lancedb.create_table` takes the class."""
    for table in (
        db.create_table("a", schema=OurFoods.to_arrow_schema()),
        create_table(db, "b", OurFoods),
        create_table(db, "c", Foods),
        create_table(db, "d", OurFoods.to_arrow_schema()),
    ):
        table.add([{"text": "banana", "price": 1}])
        assert vectors(table) == {"banana": counts("banana")}
        assert table.search("banana").limit(1).to_list()[0]["_distance"] == 0


def test_create_table_modes(db: Any) -> None:
    """`create` refuses what exists, and says what to do; `exist_ok` opens it; `overwrite` replaces it."""
    create_table(db, "t", OurFoods).add([{"text": "fig"}])
    with pytest.raises(StorageError, match=r"already exists[^\n]*\nHint: open_table\(db, 't'\)"):
        create_table(db, "t", OurFoods)
    assert create_table(db, "t", OurFoods, mode="exist_ok").count_rows() == 1
    assert create_table(db, "t", OurFoods, mode="overwrite").count_rows() == 0
    with pytest.raises(SchemaError, match="has no columns"):
        create_table(db, "u", [FN.bind("text", "vector")])


@pytest.mark.parametrize("schema", [Foods, OurFoods, OurFoods.to_arrow_schema()], ids=["model", "ours", "arrow"])
@pytest.mark.parametrize("version", ["as it is", "another"])
def test_exist_ok_opens_what_has_these_columns_and_functions(db: Any, schema: Any, version: str) -> None:
    """A script that is run twice: the probe is recorded, other versions wrote it, the function has been used before."""
    embedreg.embed_table([{"text": "used"}], FN.bind("text", "vector"))
    for rows in (1, 2):
        table = create_table(db, "t", schema, mode="exist_ok")
        add(table, [{"text": "fig", "price": 1}])
        assert table.count_rows() == rows
        [entry] = codec.entries(table.schema.metadata)
        assert entry.reserved["probe"]
        assert entry.reserved["producer"]["embedreg"]
        if version == "another":
            stored = json.loads(entry.raw)
            stored["model"]["embedreg"]["producer"] = {"embedreg": "0.0.1", "numpy": "1"}
            table.to_lance().update_schema_metadata({codec.KEY: json.dumps([stored])})


def test_lancedbs_own_exist_ok_opens_a_table_that_the_function_was_used_for(db: Any) -> None:
    """What a model declares holds neither the probe nor versions, which LanceDB would compare."""
    for rows in (1, 2):
        table = db.create_table("t", schema=Foods, exist_ok=True)
        table.add([{"text": "fig", "price": 1}])
        embedreg.embed_table([{"text": "used"}], FN.bind("text", "vector"))
        assert table.count_rows() == rows
    for _ in range(2):
        table = db.create_table("u", schema=OurFoods.to_arrow_schema(), exist_ok=True)
    [entry] = codec.entries(table.schema.metadata)
    assert not {"probe", "identity", "producer"} & entry.reserved.keys()


def test_lancedbs_own_exist_ok_opens_a_table_whose_probe_is_recorded(db: Any, folder: Path) -> None:
    """A script of LanceDB's `create_table` and our `add`, run twice, with another version of embedreg in between."""
    for rows in (1, 2, 3):
        table = db.create_table("t", schema=Foods, exist_ok=True)
        add(table, [{"text": "fig", "price": 1}])
        assert table.count_rows() == rows
        [stored] = json.loads(table.schema.metadata[b"embedding_functions"])
        assert stored["model"]["embedreg"]["probe"]
        if rows == 2:
            stored["model"]["embedreg"]["producer"] = {"embedreg": "0.0.1"}
            table.to_lance().update_schema_metadata({codec.KEY: json.dumps([stored], indent=2)})

    async def run() -> int:
        again = await lancedb.connect_async(folder)
        return await (await again.create_table("t", schema=Foods, mode="exist_ok")).count_rows()

    assert asyncio.run(run()) == 3
    assert db.create_table("t", schema=Foods, mode="overwrite").count_rows() == 0
    with pytest.raises(ValueError, match="already exists"):
        db.create_table("t", schema=Foods)


OTHERS: dict[str, tuple[Any, str]] = {
    "another function": (
        pa.schema(OurFoods.to_arrow_schema()).with_metadata(
            {codec.KEY: codec.encode([embedreg.get("hashing").create(dim=26).bind("text", "vector")])}
        ),
        "declared with 'letter-counts' in the table, with 'hashing'",
    ),
    "another configuration": (
        pa.schema([pa.field("text", pa.string())])
        .append(pa.field("vector", pa.list_(pa.float32(), 5)))
        .with_metadata({codec.KEY: codec.encode([Letters(first=5).bind("text", "vector")])}),
        r"list<item: float>\[26\], declared .*\[5\].*another configuration",
    ),
    "another source": (
        OurFoods.to_arrow_schema().with_metadata({codec.KEY: codec.encode([FN.bind("price", "vector")])}),
        "is made from 'text' in the table",
    ),
    "no function": (OurFoods.to_arrow_schema().remove_metadata(), "has a function in the table only"),
    "a column more": (OurFoods.to_arrow_schema().append(pa.field("n", pa.int32())), "'n' is not there"),
    "a column less": (OurFoods.to_arrow_schema().remove(2), "'price' is int64, declared not at all"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_exist_ok_refuses_other_columns_or_functions(db: Any, other: str) -> None:
    """The error names what differs; the table is as it was."""
    schema, message = OTHERS[other]
    add(create_table(db, "t", OurFoods), [{"text": "fig", "price": 1}])
    with pytest.raises(SchemaError, match=message):
        create_table(db, "t", schema, mode="exist_ok")
    assert db.open_table("t").count_rows() == 1


def test_an_unknown_mode_is_refused(db: Any) -> None:
    """With those there are."""
    with pytest.raises(ConfigError, match="unknown mode 'overwirte'"):
        create_table(db, "t", OurFoods, mode="overwirte")


def test_a_table_that_cannot_be_written_is_a_storage_error(db: Any, folder: Path) -> None:
    """Where a file stands in the table's place, nothing is made."""
    folder.mkdir(exist_ok=True)
    (folder / "t.lance").write_text("in the way")
    with pytest.raises(StorageError, match="'t' could not be created"):
        create_table(db, "t", OurFoods)
    assert (folder / "t.lance").read_text() == "in the way"


def test_a_search_in_plain_text_takes_filters_and_columns(table: Any) -> None:
    """`where` before and after, `select` and `limit` are lancedb's own."""
    assert table.search("an apple").where("price < 1").to_list()[0]["text"] == "banana"
    assert table.search("pepper").where("price <> 1", prefilter=True).limit(1).to_list()[0]["text"] != "pepper"
    assert table.search("pepper").select(["text"]).limit(1).to_arrow().column_names[0] == "text"
    assert table.search("pepper").metric("cosine").limit(1).to_pandas()["text"][0] == "pepper"


def test_a_hybrid_search_embeds_its_text(table: Any) -> None:
    """With a full-text index, `query_type="hybrid"` ranks by words and by our vectors, in lancedb's default way."""
    table.create_index("text", config=FTS())
    [first, *_] = table.search("pepper", query_type="hybrid").limit(3).to_list()
    assert first["text"] == "pepper"
    assert "_relevance_score" in first
    assert table.search("fig", query_type="fts").limit(1).to_list()[0]["text"] == "fig"


def test_merge_insert_embeds_the_rows_it_writes(table: Any) -> None:
    """What is updated and what is inserted both get their vectors; what is not touched keeps its own."""
    table.merge_insert("price").when_matched_update_all().when_not_matched_insert_all().execute(
        pa.table({"text": ["papaya", "kiwi"], "price": [1, 9]})
    )
    assert vectors(table) == {text: counts(text) for text in ["banana", "papaya", "fig", "kiwi"]}


def test_null_and_blank_rows_obey_on_bad_vectors(db: Any) -> None:
    """A row without a vector refuses a plain `add` by default, and is kept or dropped when lancedb is asked to."""
    fn = ChoosyLetters.create()

    class Nullable(LanceModel):
        text: str | None = fn.SourceField(default=None)
        vector: Vector(fn.ndims) = fn.VectorField()

    table = db.create_table("t", schema=Nullable)
    rows = pa.table({"text": ["fig", None, "  ", "bad"]})
    with pytest.raises((RuntimeError, ValueError), match="on_bad_vectors"):
        table.add(rows)
    assert table.count_rows() == 0
    table.add(rows, on_bad_vectors="null")
    assert [row["vector"] for row in table.to_arrow().to_pylist()] == [counts("fig"), None, None, None]
    table.add(rows, on_bad_vectors="drop")
    assert table.count_rows() == 5
    table.add(rows, on_bad_vectors="fill", fill_value=7.0)
    assert table.to_arrow()["vector"].to_pylist()[-1] == [7.0] * 26


def test_an_error_inside_a_plain_add_says_it_all(db: Any) -> None:
    """Only the text survives lancedb's C interface, so the text holds the message and the hint."""
    fn = ChoosyLetters.create()
    table = create_table(db, "t", Foods)
    table = db.create_table(
        "u", schema=pa.schema([("text", pa.string())]), embedding_functions=[fn.bind("text", "vector")]
    )
    with pytest.raises(Exception, match=r"the service is down\.[\s\S]*Hint: wait a little") as caught:
        db.create_table("v", data=[{"text": "outage"}], embedding_functions=[fn.bind("text", "vector")])
    assert "C Data interface" in str(caught.value) or isinstance(caught.value, embedreg.EmbedregError)
    assert table.count_rows() == 0


def test_the_async_api_embeds_rows_and_queries(folder: Path) -> None:
    """`connect_async`, `create_table`, `add`, `search`, and ready vectors through `embed_batches`."""

    async def main() -> None:
        db = await lancedb.connect_async(folder)
        table = await db.create_table("foods", schema=Foods)
        await table.add(pd.DataFrame(ROWS))
        [hit] = await (await table.search("a pepper")).limit(1).to_list()
        assert hit["text"] == "pepper"
        more = embedreg.embed_batches([{"text": "kiwi", "price": 3}], await table.schema())
        await table.add(more, on_bad_vectors="null")
        assert await table.count_rows() == 4
        with pytest.raises(InputError, match=r"asynchronous[\s\S]*await embedreg\.engines\.lancedb\.aadd"):
            embedreg.engines.lancedb.add(table, [{"text": "kiwi"}])
        with pytest.raises(InputError, match="asynchronous"):
            open_table(db, "foods")
        with pytest.raises(InputError, match="asynchronous"):
            create_table(db, "more", Foods)

    asyncio.run(main())
    assert vectors(lancedb.connect(folder).open_table("foods"))["kiwi"] == counts("kiwi")


REOPEN = """
table = lancedb.connect(folder).open_table("foods")
assert table.search("a pepper").limit(1).to_list()[0]["text"] == "pepper"
table.add([{"text": "kiwi", "price": 3}])
assert table.search("kiwi").limit(1).to_list()[0]["_distance"] == 0
assert isinstance(embedreg.functions_in(table)["vector"].function, embedreg.EmbeddingFunction)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import embedreg, lancedb, lancedb_functions",
        "import lancedb, embedreg, lancedb_functions",
        "import embedreg.engines.lancedb, lancedb_functions, lancedb",
    ],
)
def test_a_new_process_reopens_the_table_by_its_metadata_alone(table: Any, new_process: Any, imports: str) -> None:
    """Searches and adds work in a new process, whichever of the two was imported first."""
    new_process(f"{imports}\n{REOPEN}", flags=("-W", "error"))
    assert table.count_rows() == 3  # this handle's version
    table.checkout_latest()
    assert vectors(table)["kiwi"] == counts("kiwi")


def test_a_table_whose_function_is_unknown_names_it(table: Any, new_process: Any) -> None:
    """`engines.lancedb.open_table` makes lancedb's searches and adds say which function is missing, and what to do."""
    new_process(
        """
import lancedb, pytest, embedreg
from embedreg.engines.lancedb import add, open_table
db = lancedb.connect(folder)
with pytest.raises(KeyError, match="letter-counts"):  # lancedb's own words
    db.open_table("foods").search("fig").to_list()
table = open_table(db, "foods")
assert table.count_rows() == 3
message = r"no embedding function is registered as 'letter-counts'[\\s\\S]*import the module that registers it"
for call in (
    lambda: table.search("fig").to_list(),
    lambda: table.add([{"text": "kiwi", "price": 1}]),
    lambda: add(table, [{"text": "kiwi", "price": 1}]),
    lambda: embedreg.functions_in(table)["vector"],
):
    with pytest.raises(embedreg.errors.UnknownFunctionError, match=message):
        call()
import lancedb_functions
assert open_table(db, "foods").search("a fig").limit(1).to_list()[0]["text"] == "fig"
"""
    )


def test_a_missing_table_is_a_storage_error(db: Any) -> None:
    """The error says which table, and how to list those that there are."""
    with pytest.raises(StorageError, match=r"'nope' could not be opened[\s\S]*list_tables"):
        open_table(db, "nope")


def test_one_load_serves_every_open_add_and_search(db: Any, new_process: Any) -> None:
    """A class that loads its model in `__init__` does so once in a process, however lancedb rebuilds it."""
    HeavyLetters.loads = 0
    fn = HeavyLetters.create()
    code = """
import lancedb, lancedb_functions
from embedreg.engines.lancedb import add, open_table
for _ in range(2):
    table = open_table(lancedb.connect(folder), "t")
    table.add([{"text": "fig"}])
    add(table, [{"text": "fig"}])
    assert table.search("fig").limit(1).to_list()[0]["text"] == "fig"
    assert lancedb.connect(folder).open_table("t").search("kiwi").limit(9).to_list()
print(lancedb_functions.HeavyLetters.loads)
"""

    class Heavy(LanceModel):
        text: str = fn.SourceField()
        vector: Vector(fn.ndims) = fn.VectorField()

    table = db.create_table("t", schema=Heavy)
    add(table, [{"text": "fig"}])
    for _ in range(2):
        table.add([{"text": "kiwi"}])
        table.search("kiwi").to_list()
    assert HeavyLetters.loads == 1
    assert new_process(code).split() == ["1"]
