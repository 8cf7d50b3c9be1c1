"""A table handle follows the table's own declaration: what it searches and adds with is what is declared now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

import embedreg
from embedreg.declaration import codec
from embedreg.engines.lancedb import add, create_table
from embedreg.errors import DriftError, SchemaError, UnknownFunctionError

OLD = embedreg.get("hashing").create(dim=32, seed=1)
NEW = embedreg.get("hashing").create(dim=32, seed=2)
TEXTS = ["water the tomatoes", "pay the bill", "call the plumber"]


def filled(function: Any, name: str = "vector") -> pa.Table:
    """Return the texts as a function embeds them."""
    return embedreg.embed_table({"text": TEXTS}, function.bind("text", name))


@pytest.fixture
def table(db: Any) -> Any:
    """A table of the old function."""
    table = create_table(db, "t", filled(OLD).schema)
    add(table, {"text": TEXTS})
    return table


def switch(folder: Any, function: Any = NEW, entries: bytes | None = None) -> None:
    """Replace vectors and declaration, as somebody else would: in another connection."""
    other = lancedb.connect(folder).open_table("t")
    if function is not None:
        data = filled(function)
        other.merge_insert("text").when_matched_update_all().execute(data.replace_schema_metadata(None))
        entries = codec.encode([function.bind("text", "vector")])
    other.to_lance().update_schema_metadata({codec.KEY: (entries or b"[]").decode()})


def nearest(table: Any, text: str = TEXTS[0]) -> float:
    """Return the distance of a text's own row: 0 where query and row were made by one function."""
    rows = table.search(text).distance_type("cosine").limit(3).to_list()
    return next(float(row["_distance"]) for row in rows if row["text"] == text)


REFRESH: dict[str, tuple[timedelta | None, Callable[[Any], Any]]] = {
    "checkout_latest": (None, lambda table: table.checkout_latest()),
    "an interval of 0": (timedelta(0), lambda table: None),
    "a write": (None, lambda table: table.delete("text = 'nothing'")),
    "a checkout": (None, lambda table: table.checkout(lancedb.connect(table._conn.uri).open_table("t").version)),
}


@pytest.mark.parametrize("how", REFRESH)
@pytest.mark.parametrize("query_type", ["vector", "auto", "hybrid"])
def test_a_handle_that_has_searched_follows_the_declaration(table: Any, folder: Any, how: str, query_type: str) -> None:
    """However its schema comes to be the new one, its queries are embedded by the function declared there."""
    interval, refresh = REFRESH[how]
    handle = lancedb.connect(folder, read_consistency_interval=interval).open_table("t")
    assert nearest(handle) == pytest.approx(0, abs=1e-6)
    switch(folder)
    refresh(handle)
    if query_type == "hybrid":
        query = handle.search(TEXTS[0], query_type="hybrid")
        query._create_query_builders()
        assert np.allclose(query._vector_query._query, NEW.compute_query_embeddings(TEXTS[0])[0], atol=1e-6)
    else:
        assert nearest(handle) == pytest.approx(0, abs=1e-6)
    assert handle.embedding_functions["vector"].function.embedreg_function == NEW


def test_a_handle_on_an_old_version_keeps_its_function(table: Any, folder: Any) -> None:
    """Time travel both ways: the version's own declaration counts, and after `restore` the restored one."""
    version = table.version
    switch(folder)
    handle = lancedb.connect(folder).open_table("t")
    assert nearest(handle) == pytest.approx(0, abs=1e-6)
    handle.checkout(version)
    assert nearest(handle) == pytest.approx(0, abs=1e-6)
    assert handle.embedding_functions["vector"].function.embedreg_function == OLD
    handle.checkout_latest()
    assert nearest(handle) == pytest.approx(0, abs=1e-6)
    handle.restore(version)
    assert nearest(handle) == pytest.approx(0, abs=1e-6)


def test_a_function_taken_from_a_handle_follows_too(table: Any, folder: Any) -> None:
    """Who keeps `table.embedding_functions["vector"]` embeds as the table declares now."""
    config = table.embedding_functions["vector"]
    nearest(table)
    switch(folder)
    table.checkout_latest()
    nearest(table)
    for _ in range(2):
        assert np.allclose(config.function.compute_query_embeddings("a")[0], NEW.compute_query_embeddings("a")[0])


def test_an_async_table_follows(table: Any, folder: Any) -> None:
    """The asynchronous client reads the declaration anew each time."""

    async def run() -> float:
        handle = await (await lancedb.connect_async(folder)).open_table("t")
        await (await handle.search(TEXTS[0])).to_list()
        switch(folder)
        await handle.checkout_latest()
        rows = await (await handle.search(TEXTS[0])).distance_type("cosine").limit(3).to_list()
        return next(float(row["_distance"]) for row in rows if row["text"] == TEXTS[0])

    assert asyncio.run(run()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("adding", [lambda table, rows: table.add(rows), add])
def test_an_add_after_checkout_latest_embeds_with_the_new_function(table: Any, folder: Any, adding: Any) -> None:
    """LanceDB's own add and ours."""
    nearest(table)
    switch(folder)
    table.checkout_latest()
    adding(table, [{"text": "new row"}])
    assert nearest(table, "new row") == pytest.approx(0, abs=1e-6)


def test_our_add_through_a_handle_of_before_uses_the_new_function(table: Any, folder: Any) -> None:
    """The handle still shows the old declaration; what is appended goes to the newest version."""
    handle = lancedb.connect(folder).open_table("t")
    nearest(handle)
    switch(folder)
    add(handle, [{"text": "new row"}])
    assert nearest(handle, "new row") == pytest.approx(0, abs=1e-6)


def test_a_handle_at_an_old_version_is_not_written_through(table: Any, folder: Any) -> None:
    """A handle that was checked out stays where it is, and refuses to write."""
    version = table.version
    switch(folder)
    table.checkout(version)
    with pytest.raises(embedreg.errors.StorageError, match="could not add"):
        add(table, [{"text": "new row"}])
    assert table.version == version


def test_a_column_that_is_no_longer_declared_is_an_error(table: Any, folder: Any) -> None:
    """There is nothing to embed the query with; a search afterwards is what LanceDB makes of a plain table."""
    nearest(table)
    switch(folder, None)
    table.checkout_latest()
    with pytest.raises(SchemaError, match="'vector' no longer declares"):
        table.search("a")
    assert table.embedding_functions == {}


def test_a_function_that_nobody_here_knows_is_named(table: Any, folder: Any) -> None:
    """The error is the one of a table just opened."""
    nearest(table)
    entry = codec.encode([NEW.bind("text", "vector")]).replace(b'"hashing"', b'"unheard-of"')
    switch(folder, None, entry)
    table.checkout_latest()
    for _ in range(2):
        with pytest.raises(UnknownFunctionError, match="unheard-of"):
            table.search("a")


def test_a_probe_that_is_recorded_later_counts_at_the_next_search(table: Any, folder: Any) -> None:
    """The same function with another record: the probe is compared, and disagrees."""
    nearest(table)
    forged = filled(NEW).schema.metadata[b"embedding_functions"]
    [theirs], [own] = codec.entries({codec.KEY: forged}), codec.entries(table.schema.metadata)
    switch(folder, None, f"[{own.raw.replace(own.reserved['probe'], theirs.reserved['probe'])}]".encode())
    table.checkout_latest()
    with pytest.raises(DriftError, match="no longer returns"):
        table.search(TEXTS[0])


def test_a_declaration_that_stays_is_not_rebuilt(table: Any, folder: Any) -> None:
    """Versions that change no declaration keep the function that the handle has."""
    nearest(table)
    function = table.embedding_functions["vector"].function
    table.add([{"text": "one more"}])
    nearest(table)
    assert table.embedding_functions["vector"].function is function


def test_one_column_of_two_changes(db: Any, folder: Any) -> None:
    """The other column's function stays what it is."""
    both = [OLD.bind("text", "a"), OLD.bind("text", "b")]
    table = create_table(db, "t", embedreg.embed_table({"text": TEXTS}, both).schema)
    add(table, {"text": TEXTS})
    for name in "ab":
        table.search(TEXTS[0], vector_column_name=name).limit(1).to_list()
    switch(folder, None, codec.encode([OLD.bind("text", "a"), NEW.bind("text", "b")]))
    table.checkout_latest()
    for name, function in (("b", NEW), ("a", OLD), ("b", NEW)):
        query = table.search("a", vector_column_name=name)._query
        assert np.allclose(query, function.compute_query_embeddings("a")[0], atol=1e-6)
