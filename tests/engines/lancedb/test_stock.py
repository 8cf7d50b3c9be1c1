"""Tables shared with LanceDB's own functions, and with its JavaScript client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import embedreg
from embedreg import Schema, Vector
from embedreg.declaration import codec
from embedreg.engines.lancedb import add, create_table, open_table
from embedreg.errors import MetadataError, StorageError
from tests.engines.lancedb_functions import Letters, counts

TEXTS = ["a cat sleeps", "the stock market fell", "wait for a thread to finish"]

STOCK = """
import lancedb, lancedb.embeddings
from lancedb.pydantic import LanceModel, Vector
db = lancedb.connect(folder)
"""
BARE = '\nassert "embedreg" not in sys.modules\n'

STOCK_MAKES = """
fn = lancedb.embeddings.get_registry().get("sentence-transformers").create(name=sys.argv[1])
class Notes(LanceModel):
    text: str = fn.SourceField()
    vector: Vector(fn.ndims()) = fn.VectorField()
db.create_table("theirs", data=[{"text": "a cat sleeps"}], schema=Notes)
"""

BARE_EMBEDREG = """
import lancedb, embedreg, pytest
from embedreg.engines.lancedb import add, open_table
table = open_table(lancedb.connect(folder), "theirs")
for call in (
    lambda: table.search("kitten").to_list(),
    lambda: table.add([{"text": "x"}]),
    lambda: add(table, [{"text": "x"}]),
):
    with pytest.raises(embedreg.errors.UntrustedError, match=r"embedreg\\.trust\\(paths="):
        call()
assert table.count_rows() == 1
"""

STOCK_EXTENDS = """
import pytest
for name in ("theirs", "ours"):
    table = db.open_table(name)
    assert table.search("shares").limit(1).to_list()[0]["text"] == "the stock market fell"
    table.add([{"text": "wait for a thread to finish"}])
for table in map(db.open_table, ("prompted", "ubinary", "int8")):
    for call in (
        lambda: table.search("kitten", vector_column_name="vector").to_list(),
        lambda: table.add([{"text": "bread"}]),
    ):
        with pytest.raises(KeyError, match="embedreg:sentence-transformers"):
            call()
assert [db.open_table(name).count_rows() for name in ("prompted", "ubinary", "int8")] == [1, 3, 3]
"""


def notes(fn: Any, dtype: str = "float32") -> type[Schema]:
    """Declare a text and its vector."""

    class Notes(Schema):
        text: str = fn.SourceField()
        vector: Vector(fn.ndims, dtype) = fn.VectorField()

    return Notes


@pytest.mark.slow
def test_tables_are_shared_with_stock_lancedb(db: Any, new_process: Any, minilm_path: Path) -> None:
    """What either makes the other reads and extends; where stock LanceDB would write other vectors, it fails.

    Every row, whoever wrote it, has the vector that the library itself gives. Stock's declaration stays stock's. A
    bare process is refused the local path, with the grant to paste.
    """
    new_process(STOCK + STOCK_MAKES + BARE, minilm_path)
    new_process(BARE_EMBEDREG)

    name = str(minilm_path)
    theirs = open_table(db, "theirs")
    declared = theirs.schema.metadata
    with embedreg.trust(paths=[name]):
        assert theirs.search("kitten").limit(1).to_list()[0]["text"] == TEXTS[0]
        theirs.add([{"text": TEXTS[1]}])
        add(theirs, [{"text": "bread"}])
    assert theirs.schema.metadata == declared
    make = embedreg.get("sentence-transformers").create
    ours = create_table(db, "ours", notes(make(name=name)))
    add(ours, [{"text": text} for text in TEXTS[:2]])
    prompted = create_table(db, "prompted", notes(make(name=name, query_prompt="query: ")))
    assert [entry.name for entry in codec.entries(prompted.schema.metadata)] == ["embedreg:sentence-transformers"]
    prompted.add([{"text": TEXTS[0]}])
    assert prompted.search("kitten").limit(1).to_list()[0]["text"] == TEXTS[0]
    for dtype in ("ubinary", "int8"):
        add(create_table(db, dtype, notes(make(name=name), dtype)), [{"text": text} for text in TEXTS])
    assert db.open_table("ubinary").search("shares").limit(1).to_list()[0]["text"] == TEXTS[1]

    new_process(STOCK + STOCK_EXTENDS + BARE)
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name, device="cpu")
    for table, rows in ((theirs, [*TEXTS[:2], "bread", TEXTS[2]]), (ours, TEXTS)):
        table.checkout_latest()
        assert table.to_arrow()["text"].to_pylist() == rows
        wanted = model.encode(rows, normalize_embeddings=True)
        assert (np.einsum("nd,nd->n", wanted, np.array(table.to_arrow()["vector"].to_pylist())) > 0.9999).all()
    assert bool(codec.entries(ours.schema.metadata)[0].reserved.get("probe"))
    assert ours.search("waiting for threads").limit(1).to_list()[0]["text"] == TEXTS[2]


# -- JavaScript --------------------------------------------------------------------------------------------------------


def javascript_table(db: Any, entries: list[dict[str, Any]], name: str = "js") -> Any:
    """Create a table with the metadata that the JavaScript client writes: compact, camelCase keys."""
    schema = pa.schema(
        [("text", pa.string()), ("vector", pa.list_(pa.float32(), 26))],
        metadata={"embedding_functions": json.dumps(entries, separators=(",", ":"))},
    )
    data = pa.table({"text": ["banana"], "vector": pa.array([counts("banana")], schema.field("vector").type)})
    db.create_table(name, schema=schema)
    import lance

    lance.write_dataset(data.cast(schema), str(Path(db.uri) / f"{name}.lance"), mode="append")  # as it comes
    return db.open_table(name)


ENTRY = {"sourceColumn": "text", "vectorColumn": "vector", "name": "letter-counts", "model": {"maxRetries": 3}}


def test_lancedb_alone_fails_on_a_table_that_javascript_made(db: Any) -> None:
    """What `open_table` is there for: LanceDB's Python client does not know the other client's keys."""
    table = javascript_table(db, [ENTRY])
    with pytest.raises(KeyError, match="vector_column"):
        table.search("banana").to_list()


def test_open_table_takes_a_table_that_javascript_made(db: Any, new_process: Any) -> None:
    """Python's spelling joins JavaScript's in the metadata, once; then all of lancedb's calls work, in both clients."""
    javascript_table(db, [ENTRY])
    table = open_table(db, "js")
    [entry] = json.loads(table.schema.metadata[b"embedding_functions"])
    assert entry == {**ENTRY, "source_column": "text", "vector_column": "vector"}
    table.add([{"text": "pepper"}])
    add(table, [{"text": "fig"}])
    assert [row["vector"] for row in table.to_arrow().to_pylist()] == [
        counts("banana"),
        counts("pepper"),
        counts("fig"),
    ]
    version = table.version
    assert open_table(db, "js").version == version
    new_process(
        """
import lancedb, lancedb_functions
assert lancedb.connect(folder).open_table("js").search("a fig").limit(1).to_list()[0]["text"] == "fig"
"""
    )


def test_the_default_vector_column_of_javascript_is_written_out(db: Any) -> None:
    """The JavaScript client leaves `vectorColumn` out where it is "vector"; Python's needs it."""
    javascript_table(db, [{key: value for key, value in ENTRY.items() if key != "vectorColumn"}])
    assert open_table(db, "js").search("banana").limit(1).to_list()[0]["_distance"] == 0


def test_what_open_table_does_not_understand_it_keeps(db: Any) -> None:
    """An unknown function, unknown keys and unknown options go through the rewriting unchanged."""
    strange = {**ENTRY, "name": "js-only", "model": {"deepOptions": {"a": [1, None]}}, "more": {"b": 2}}
    javascript_table(db, [strange])
    [entry] = json.loads(open_table(db, "js").schema.metadata[b"embedding_functions"])
    assert (entry["name"], entry["model"], entry["more"]) == ("js-only", strange["model"], {"b": 2})


def test_open_table_writes_nothing_where_python_can_read(db: Any) -> None:
    """A table in Python's spelling, and one without functions, stay at their version."""
    version = create_table(db, "ours", notes(Letters.create())).version
    assert open_table(db, "ours").version == version
    version = db.create_table("plain", data=[{"a": 1}]).version
    assert open_table(db, "plain").version == version


def test_metadata_that_cannot_be_read_is_refused(db: Any) -> None:
    """Two entries for one vector column, or no JSON at all: the error says that the data is intact."""
    javascript_table(db, [ENTRY, ENTRY])
    with pytest.raises(MetadataError, match=r"vector column 'vector'[\s\S]*data itself is intact"):
        open_table(db, "js")


def test_without_pylance_a_javascript_table_says_what_to_install(db: Any, monkeypatch: Any) -> None:
    """Rewriting needs a library that lancedb itself can do without."""
    import sys

    javascript_table(db, [ENTRY])
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises((StorageError, ImportError), match="pip install pylance"):
        open_table(db, "js")
