"""`engines.lancedb.add`: embeds first, writes once; all of it or nothing, and the error as it was raised."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import lancedb
import pyarrow as pa
import pytest

import embedreg
from embedreg import Report, Schema, Vector, register
from embedreg.declaration import codec
from embedreg.engines.lancedb import aadd, add, create_table
from embedreg.errors import (
    BadRowsError,
    CallError,
    DriftError,
    InputError,
    MissingColumnError,
    SchemaError,
    StorageError,
    VectorError,
)
from tests.engines.lancedb_functions import ChoosyLetters, Letters, counts


def notes(fn: Any) -> type[Schema]:
    """Declare a text that may be missing, and its vector."""

    class Notes(Schema):
        text: str | None = fn.SourceField(default=None)
        vector: Vector(fn.ndims) = fn.VectorField()

    return Notes


@pytest.fixture
def table(db: Any) -> Any:
    """An empty table of notes, whose function has not been run yet."""
    return create_table(db, "notes", notes(ChoosyLetters.create()))


def stored(table: Any) -> list[tuple[Any, Any]]:
    """Return the rows: (text, vector)."""
    return [(row["text"], row["vector"]) for row in table.to_arrow().to_pylist()]


def probes(table: Any) -> list[bool]:
    """Say which declarations of a table hold a probe."""
    return [bool(entry.reserved.get("probe")) for entry in codec.entries(table.schema.metadata)]


def test_rows_without_a_vector_are_kept_with_null_by_default(table: Any) -> None:
    """Null, blank and refused rows go in with null vectors; equal texts are embedded once; the report counts them."""
    report = Report()
    Letters.seen.clear()
    add(table, {"text": ["fig", None, " ", "bad", "fig"]}, report=report)
    assert stored(table) == [("fig", counts("fig")), (None, None), (" ", None), ("bad", None), ("fig", counts("fig"))]
    assert (report.rows, report.embedded, report.nulls) == (5, 2, 2)
    [bad] = report.bad
    assert (bad.row, bad.column, bad.reason) == (3, "text", "refused by hand")


def test_on_error_raise_writes_nothing(table: Any) -> None:
    """The first refused row stops the whole add, with our own error."""
    before = table.version
    with pytest.raises(BadRowsError, match=r"row 1 \(text\): refused by hand"):
        add(table, [{"text": "fig"}, {"text": "bad"}], on_error="raise")
    assert (table.count_rows(), table.version) == (0, before)


def test_on_error_drop_leaves_refused_rows_out(table: Any) -> None:
    """A refused row is dropped; a null one, which has not failed, stays."""
    add(table, [{"text": "fig"}, {"text": "bad"}, {"text": None}], on_error="drop")
    assert stored(table) == [("fig", counts("fig")), (None, None)]


def test_max_bad_rows_stops_a_run_that_goes_wrong(table: Any) -> None:
    """More refused rows than allowed raise, in the middle of a stream, and nothing is written."""
    rows = [{"text": "fig"}] * 10 + [{"text": "bad"}] * 3
    with pytest.raises(BadRowsError, match="max_bad_rows=2"):
        add(table, rows, max_bad_rows=2, batch_rows=4)
    assert table.count_rows() == 0
    add(table, rows, max_bad_rows=3, batch_rows=4)
    assert table.count_rows() == 13


def test_an_error_in_the_middle_leaves_the_table_as_it_was(table: Any) -> None:
    """The original error comes out, cause and class, from the fifth batch as from the first."""
    add(table, [{"text": "fig"}])
    before = table.version
    rows = [{"text": f"row {n}"} for n in range(20)] + [{"text": "outage"}]
    with pytest.raises(CallError, match=r"the service is down\.\nHint: wait a little") as caught:
        add(table, rows, batch_rows=4)
    assert type(caught.value) is CallError
    table.checkout_latest()
    assert (table.count_rows(), table.version) == (1, before)


def test_an_error_in_the_users_own_stream_comes_out_as_it_is(table: Any) -> None:
    """Neither the engine nor lancedb stands between a generator and its error."""

    def rows() -> Iterator[dict[str, str]]:
        yield from ({"text": f"row {n}"} for n in range(9))
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match=r"^mine$"):
        add(table, rows(), batch_rows=4)
    assert table.count_rows() == 0


def test_partly_null_vector_columns_are_filled(table: Any) -> None:
    """Given vectors stay, missing ones are computed: lancedb's own `add` would leave them null."""
    own = [2.0] * 26
    data = pa.table({"text": ["fig", "kiwi"], "vector": pa.array([own, None], pa.list_(pa.float32(), 26))})
    add(table, data)
    assert stored(table) == [("fig", own), ("kiwi", counts("kiwi"))]


def test_progress_counts_rows(table: Any) -> None:
    """The callback hears of the rows done and of all rows, or of None where a stream does not know."""
    heard: list[tuple[int, int | None]] = []
    add(table, pa.table({"text": list("abcdefgh")}), batch_rows=3, progress=lambda *args: heard.append(args))
    assert heard[-1] == (8, 8)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    heard.clear()
    add(table, iter([{"text": "a"}]), progress=lambda *args: heard.append(args))
    assert heard[-1] == (1, None)


def test_an_add_is_one_commit_of_rows(table: Any) -> None:
    """However many batches a stream has, readers see all of its rows at once."""
    add(table, [{"text": "fig"}])
    before = table.version
    add(table, ({"text": f"row {n}"} for n in range(50)), batch_rows=7)
    assert table.version == before + 1
    assert table.count_rows() == 51


def test_several_vector_columns_are_filled_in_one_pass(db: Any) -> None:
    """Two functions and two sources, given as declarations beside the columns."""
    short = Letters.create(first=3)
    schema = pa.schema(
        [
            ("title", pa.string()),
            ("body", pa.string()),
            ("v", pa.list_(pa.float32(), 26)),
            ("w", pa.list_(pa.float16(), 3)),
        ]
    )
    table = db.create_table(
        "t", schema=schema, embedding_functions=[ChoosyLetters.create().bind("body", "v"), short.bind("title", "w")]
    )
    add(table, [{"title": "cab", "body": "fig"}])
    assert table.to_arrow().to_pylist() == [{"title": "cab", "body": "fig", "v": counts("fig"), "w": counts("cab", 3)}]
    assert probes(table) == [True, True]


def test_what_does_not_fit_is_refused_before_anything_is_written(table: Any) -> None:
    """A missing source column, and vectors of another width."""
    with pytest.raises(MissingColumnError, match="no column 'text'"):
        add(table, [{"words": "fig"}])
    with pytest.raises(VectorError, match="3 dimensions"):
        add(table, pa.table({"text": ["fig"], "vector": [[1.0, 2.0, 3.0]]}))
    with pytest.raises(StorageError, match="could not add the rows"):
        add(table, [{"text": "fig", "surplus": 1}])
    assert table.count_rows() == 0


@pytest.mark.parametrize("kind", ["never declared", "overwritten", "async"])
def test_a_table_without_declarations_is_an_error(db: Any, folder: Path, kind: str) -> None:
    """Rows with null vectors are not written without a word, also after `mode="overwrite"`, which drops them."""
    table = create_table(db, "t", notes(Letters.create()))
    rows = [{"text": "fig", "vector": counts("fig")}]
    if kind == "overwritten":
        table.add(rows, mode="overwrite")
    else:
        table = db.create_table("t", schema=table.schema.remove_metadata(), mode="overwrite")
    before = table.count_rows()

    async def adding() -> None:
        await aadd(await (await lancedb.connect_async(folder)).open_table("t"), [{"text": "kiwi"}])

    with pytest.raises(SchemaError, match=r"table 't' declares no embedding function[\s\S]*embedreg attach"):
        asyncio.run(adding()) if kind == "async" else add(table, [{"text": "kiwi"}])
    assert db.open_table("t").count_rows() == before


# -- the probe ---------------------------------------------------------------------------------------------------------


def test_the_first_write_records_the_probe(table: Any) -> None:
    """A declaration runs nothing; the first write does, and leaves the probe and its versions in the metadata."""
    before = json.loads(table.schema.metadata[b"embedding_functions"])
    assert probes(table) == [False]
    add(table, [{"text": "fig"}])
    assert probes(table) == [True]
    after = json.loads(table.schema.metadata[b"embedding_functions"])
    del after[0]["model"]["embedreg"]["probe"]
    assert after[0]["model"]["embedreg"].pop("producer") == {"embedreg": embedreg.__version__}
    assert after == before
    version = table.version
    add(table, [{"text": "kiwi"}])
    assert table.version == version + 1  # the rows alone


def test_given_vectors_record_no_probe(table: Any) -> None:
    """Vectors that came with the data say nothing of the function, which is not even run."""
    Letters.seen.clear()
    add(table, [{"text": "fig", "vector": [1.0] * 26}])
    assert probes(table) == [False]
    assert Letters.seen == []


def test_a_new_process_records_and_checks_the_probe(db: Any, new_process: Any) -> None:
    """Where only the metadata is known, the first write records the probe too, and a changed model is refused."""
    table = create_table(db, "t", notes(Letters.create()))
    write = """
import lancedb, lancedb_functions
from embedreg.engines.lancedb import add, open_table
add(open_table(lancedb.connect(folder), "t"), [{"text": "fig"}, {"text": "kiwi"}])
"""
    use = """
import lancedb, lancedb_functions, pytest, embedreg
from embedreg.engines.lancedb import add, open_table
table = open_table(lancedb.connect(folder), "t")
message = r"'letter-counts' no longer returns the stored vectors"
for call in (
    lambda: table.search("fig").to_list(),
    lambda: add(table, [{"text": "fig"}]),
):
    with pytest.raises(embedreg.errors.DriftError, match=message):
        call()
with pytest.raises(Exception, match=message):
    table.add([{"text": "fig"}])
assert table.count_rows() == 2
lancedb_functions.Letters.create()  # the reader's own code makes the same function: no less is checked
table = open_table(lancedb.connect(folder), "t")
with pytest.raises(embedreg.errors.DriftError, match=message):
    table.search("fig").to_list()
with pytest.raises(embedreg.errors.DriftError, match=message):
    add(table, [{"text": "fig"}])
[drift] = embedreg.check_drift(table)
assert drift.verdict == "drift"
"""
    new_process(write)
    table.checkout_latest()
    assert probes(table) == [True]
    new_process(use, env={"LETTERS_OFF": "1"})
    new_process(write)
    table.checkout_latest()
    assert table.count_rows() == 4


def test_tables_of_one_configuration_are_each_held_to_their_own_probe(db: Any, monkeypatch: Any) -> None:
    """A table whose vectors are of another model is refused; one beside it with the same configuration is not."""
    plain = notes(Letters.create())
    good, old = create_table(db, "good", plain), create_table(db, "old", plain)
    add(good, [{"text": "fig"}])
    monkeypatch.setenv("LETTERS_OFF", "1")
    embedreg.get_registry().reset()
    embedreg.register("letter-counts")(Letters)
    add(old, [{"text": "fig"}])
    monkeypatch.delenv("LETTERS_OFF")
    embedreg.get_registry().reset()
    embedreg.register("letter-counts")(Letters)
    good, old = db.open_table("good"), db.open_table("old")
    assert good.search("fig").to_list()
    with pytest.raises(DriftError):
        old.search("fig").to_list()
    assert good.search("kiwi").to_list()


def test_without_pylance_the_rows_are_added_and_the_missing_probe_is_told(
    table: Any, monkeypatch: Any, caplog: Any
) -> None:
    """The probe needs a library that lancedb itself can do without; the rows do not."""
    monkeypatch.setitem(sys.modules, "lance", None)
    with caplog.at_level(logging.WARNING, logger="embedreg"):
        add(table, [{"text": "fig"}])
    assert stored(table) == [("fig", counts("fig"))]
    assert probes(table) == [False]
    assert "pylance" in caplog.text


# -- storage -----------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_a_storage_error(table: Any, folder: Path) -> None:
    """What was there before is intact and can be read."""
    add(table, [{"text": "fig"}])
    data = folder / "notes.lance" / "data"
    data.rename(folder / "aside")
    data.write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="could not add the rows") as caught:
        add(table, [{"text": "kiwi"}])
    assert caught.value.__cause__ is not None
    data.unlink()
    (folder / "aside").rename(data)
    table.checkout_latest()
    assert stored(table) == [("fig", counts("fig"))]


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this platform does not limit the size of files")
def test_a_full_disk_is_a_storage_error(table: Any, new_process: Any) -> None:
    """A write that the system cuts short raises, and the earlier rows are intact."""
    add(table, [{"text": "fig"}])
    new_process(
        """
import lancedb, lancedb_functions, pytest, resource, signal
from embedreg.engines.lancedb import add, open_table
from embedreg.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
table = open_table(lancedb.connect(folder), "notes")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with pytest.raises(StorageError, match="could not add the rows"):
    add(table, ({"text": f"row {n}"} for n in range(20_000)))
"""
    )
    table.checkout_latest()
    assert stored(table) == [("fig", counts("fig"))]


# -- the asynchronous client -------------------------------------------------------------------------------------------


@register("slow-letters")
class SlowLetters(Letters):
    """Takes a while to load and for each call, as a model would; what it is called in is counted."""

    threads: ClassVar[set[str]] = set()

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        time.sleep(0.3)
        return super().generate_embeddings(texts)


def test_aadd_does_not_block_the_event_loop(folder: Path) -> None:
    """Another task runs on while the model loads, embeds the probe and the rows; the probe is recorded."""
    SlowLetters.threads.clear()
    schema = pa.schema([pa.field("text", pa.string()), pa.field("vector", pa.list_(pa.float32(), 26))])
    entries = {codec.KEY: codec.encode([SlowLetters.create().bind("text", "vector")])}
    gaps: list[float] = []

    async def beat() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.01)
            gaps.append(time.perf_counter() - start)

    async def run() -> tuple[int, pa.Schema]:
        db = await lancedb.connect_async(folder)
        table = await db.create_table("t", schema=schema.with_metadata(entries))
        beating = asyncio.create_task(beat())
        await asyncio.sleep(0.05)
        report = embedreg.Report()
        await aadd(table, [{"text": f"row {row}"} for row in range(5)] + [{"text": None}], batch_rows=2, report=report)
        beating.cancel()
        assert (report.rows, report.embedded, report.nulls) == (6, 5, 1)
        return await table.count_rows(), await table.schema()

    rows, after = asyncio.run(run())
    assert rows == 6
    assert codec.entries(after.metadata)[0].reserved["probe"]
    assert threading.current_thread().name not in SlowLetters.threads
    assert len(gaps) > 20  # of 1.2 s and more of work, in which a blocked loop would beat a few times


def test_aadd_raises_what_embedding_raises(folder: Path) -> None:
    """The error itself, not lancedb's; nothing is written."""
    schema = pa.schema([pa.field("text", pa.string()), pa.field("vector", pa.list_(pa.float32(), 26))])
    entries = {codec.KEY: codec.encode([ChoosyLetters.create().bind("text", "vector")])}

    async def run(rows: list[dict[str, str]], **policy: Any) -> int:
        db = await lancedb.connect_async(folder)
        table = await db.create_table("t", schema=schema.with_metadata(entries), mode="overwrite")
        with pytest.raises(CallError if "outage" in rows[0]["text"] else BadRowsError):
            await aadd(table, rows, **policy)
        return await table.count_rows()

    assert asyncio.run(run([{"text": "outage"}])) == 0
    assert asyncio.run(run([{"text": "bad"}], on_error="raise")) == 0


def test_add_sends_an_asynchronous_table_to_aadd(folder: Path) -> None:
    """The hint can be pasted."""

    async def run() -> None:
        db = await lancedb.connect_async(folder)
        table = await db.create_table("t", schema=pa.schema([pa.field("text", pa.string())]))
        with pytest.raises(InputError, match=r"await embedreg\.engines\.lancedb\.aadd\(table, data\)"):
            add(table, [{"text": "a"}])

    asyncio.run(run())
