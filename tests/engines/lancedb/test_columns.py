"""A vector column of a LanceDB table is added, kept fresh, given another function and given back, on a live table."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import lance
import lancedb
import lancedb.index
import numpy as np
import pyarrow as pa
import pytest

import embedreg
from embedreg import columns
from embedreg.declaration import codec
from embedreg.engines.lancedb import add
from embedreg.errors import (
    ConfigError,
    DriftError,
    EmbedregError,
    InputError,
    MissingColumnError,
    SchemaError,
    StorageError,
)

ROOT = Path(__file__).resolve().parents[3]
DIGEST = "vector__source_digest"
D = 8


class Counting(embedreg.TextEmbeddingFunction):
    """A text's hash as a vector; a text "bad" fails. Counts the texts that it embeds."""

    seed: int = 1
    seen: ClassVar[list[str]] = []

    def ndims(self) -> int:
        return D

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        from embedreg.core.modality import PROBE_TEXT

        self.seen.extend(text for text in texts if text != PROBE_TEXT)
        return [embedreg.RowError("it says bad") if text == "bad" else vector_of(text, self.seed) for text in texts]


def vector_of(text: str, seed: int) -> np.ndarray:
    """Return the vector that `Counting` gives a text."""
    raw = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return np.frombuffer(raw, np.uint8)[:D].astype(np.float32) + 1


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The function, registered, with nothing counted."""
    embedreg.register("counting")(Counting)
    Counting.seen.clear()
    return


@pytest.fixture
def one() -> Counting:
    return Counting.create(seed=1)


@pytest.fixture
def two() -> Counting:
    return Counting.create(seed=2)


def rows(start: int, stop: int, **more: Any) -> pa.Table:
    """Return rows with an id and a text, and more columns."""
    return pa.table({"id": list(range(start, stop)), "text": [f"text {i}" for i in range(start, stop)], **more})


@pytest.fixture
def plain(db: Any) -> Any:
    """Two fragments of 300 rows, two of these deleted, with an index on the key."""
    table = db.create_table("t", rows(0, 300))
    table.add(rows(300, 600))
    table.delete("id in (5, 400)")
    table.to_lance().create_scalar_index("id", "BTREE")
    table.checkout_latest()
    return table


@pytest.fixture
def table(plain: Any, one: Counting) -> Any:
    """The same with a vector column."""
    columns.add(plain, one.bind("text", "vector"))
    Counting.seen.clear()
    return plain


def without_vectors(table: Any, start: int, stop: int) -> None:
    """Append rows without vectors, as a writer that knows no functions does."""
    lance.write_dataset(rows(start, stop), table.to_lance().uri, mode="append")
    table.checkout_latest()


def compacted(table: Any) -> None:
    """Compact the table and remove every older version and every file that none names, as its user may at any time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lancedb warns of other readers
        table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)


def seeds(table: Any, name: str = "vector") -> dict[int, int | None]:
    """Return which function made each row's vector, by id: 1, 2, 0 for neither, None for no vector."""
    found = table.to_lance().to_table(columns=["id", "text", name]).to_pylist()
    return {row["id"]: _seed(row["text"], row[name]) for row in found}


def _seed(text: str, vector: Any) -> int | None:
    return None if vector is None else next((n for n in (1, 2) if np.array_equal(vector, vector_of(text, n))), 0)


def counts(table: Any) -> dict[str, int]:
    """Return the rows of each class that has some."""
    (status,) = columns.status(table)
    names = ("fresh", "stale", "foreign", "unstamped", "empty", "null_source")
    return {name: count for name in names if (count := getattr(status, name))}


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of the table's data files."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "t.lance/data").iterdir()}


def leftovers(folder: Path) -> list[str]:
    """Return what embedreg could have left: branches, tags, folders beside the table and in it."""
    dataset = lance.dataset(str(folder / "t.lance"))
    names = [*dataset.branches.list(), *dataset.tags.list()]
    known = {"_transactions", "_deletions", "_indices", "data", "_versions"}
    return (
        names
        + [path.name for path in (folder / "t.lance").iterdir() if path.name not in known]
        + [path.name for path in folder.iterdir() if path.name != "t.lance"]
    )


# -- add -------------------------------------------------------------------------------------------------------------


def test_add_writes_the_new_columns_only(plain: Any, one: Counting, folder: Path) -> None:
    """Existing data files stay as they are, and so do indices; all rows have a vector and a digest."""
    before, index = hashes(folder), plain.index_stats("id_idx")
    report = columns.add(plain, one.bind("text", "vector"))
    assert {name: hashes(folder)[name] for name in before} == before
    assert (report.written, report.embedded, report.bytes_written) == (598, 598, _size(folder, before))
    assert set(seeds(plain).values()) == {1}
    assert counts(plain) == {"fresh": 598}
    assert plain.index_stats("id_idx") == index
    assert leftovers(folder) == []
    assert plain.search("text 17").limit(1).to_list()[0]["id"] == 17
    assert embedreg.check_drift(plain)[0].verdict == "same"


def _size(folder: Path, before: dict[str, str]) -> int:
    data = folder / "t.lance/data"
    return sum(path.stat().st_size for path in data.iterdir() if path.name not in before)


def test_an_interrupted_add_goes_on_and_embeds_nothing_twice(
    plain: Any, one: Counting, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a vector cache each text is embedded once, wherever it stopped; staged fragments stay staged."""
    from embedreg.engines.lancedb.columns.place import Kept

    keep, left = Kept.keep, [1]

    def fails(self: Kept, *args: Any) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        keep(self, *args)

    monkeypatch.setattr(Kept, "keep", fails)
    with pytest.raises(KeyboardInterrupt):
        columns.add(plain, one.bind("text", "vector"), cache=tmp_path / "cache")
    monkeypatch.undo()
    assert plain.schema.names == ["id", "text"]
    report = columns.add(plain, one.bind("text", "vector"), cache=tmp_path / "cache")
    assert (report.embedded, report.cached) == (299, 299)
    assert len(Counting.seen) == len(set(Counting.seen)) == 598
    assert set(seeds(plain).values()) == {1}
    assert leftovers(folder) == []


def test_a_digest_is_the_functions_and_the_sources_hash(table: Any, one: Counting) -> None:
    """8 hex of the fingerprint and 16 hex of the source's sha256; other engines can compute it."""
    from embedreg.declaration.fingerprint import fingerprint

    row = table.to_lance().to_table(columns=["text", DIGEST], limit=1).to_pylist()[0]
    assert row[DIGEST] == f"{fingerprint(one)[7:15]}:{hashlib.sha256(row['text'].encode()).hexdigest()[:16]}"


def test_add_refuses_what_would_break_the_table(table: Any, plain: Any, two: Counting) -> None:
    """A column that exists; a second vector column, unless it is wanted; a missing source."""
    with pytest.raises(SchemaError, match="has a column 'vector'"):
        columns.add(table, two.bind("text", "vector"))
    with pytest.raises(ConfigError, match=r"has a vector column 'vector': with a second one, table.search"):
        columns.add(table, two.bind("text", "other"))
    with pytest.raises(MissingColumnError, match="no column 'txt'"):
        columns.add(table, two.bind("txt", "other"))
    assert columns.add(table, two.bind("text", "other"), yes=True).written == 598
    assert set(seeds(table, "other").values()) == {2}


def test_add_without_digests_can_only_be_filled(plain: Any, one: Counting) -> None:
    """`digest=False` adds one column; `refresh` fills nulls and says what it cannot see."""
    columns.add(plain, one.bind("text", "vector"), digest=False)
    assert plain.schema.names == ["id", "text", "vector"]
    without_vectors(plain, 600, 602)
    assert counts(plain) == {"unstamped": 598, "empty": 2}
    (report,) = columns.refresh(plain)
    assert report.written == 2
    assert "no row digests" in report.notes[0]
    assert "columns.detach(data, vector, drop=True)" in report.notes[0]
    assert set(seeds(plain).values()) == {1}


def test_recompute_embeds_every_row_of_a_column_without_digests(plain: Any, one: Counting, folder: Path) -> None:
    """Once, whatever the vectors are; a row that lost its source loses its vector; other columns' files stay."""
    columns.add(plain, one.bind("text", "vector"), digest=False)
    plain.to_lance().update({"text": "'changed'"}, where="id = 17")
    plain.to_lance().update({"text": "null"}, where="id = 18")
    plain.checkout_latest()
    Counting.seen.clear()
    assert columns.refresh(plain, unstamped="recompute", dry_run=True)[0].written == 597
    assert Counting.seen == []
    (report,) = columns.refresh(plain, unstamped="recompute")
    assert (report.written, len(Counting.seen)) == (598, 597)  # one of them was cleared
    assert "every row was embedded" in report.notes[0]
    assert seeds(plain) == {i: None if i == 18 else 1 for i in range(600) if i not in (5, 400)}
    assert leftovers(folder) == []


def test_recompute_is_not_lost_to_another_writer(plain: Any, one: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that another one moves to a new fragment while theirs is embedded are embedded there."""
    columns.add(plain, one.bind("text", "vector"), digest=False)
    plain.to_lance().update({"text": "'changed ' || text"}, where="true")
    plain.checkout_latest()
    embed, left = Counting.generate_embeddings, [1]

    def slow(self: Counting, texts: Any, *args: Any, **kwargs: Any) -> Any:
        if left and len(list(texts)) > 5:
            left.pop()
            plain.to_lance().update({"id": "id + 1000"}, where="id < 50")
        return embed(self, texts)

    monkeypatch.setattr(Counting, "generate_embeddings", slow)
    columns.refresh(plain, unstamped="recompute")
    plain.checkout_latest()
    assert not left
    assert set(seeds(plain).values()) == {1}


def test_bad_and_blank_rows(db: Any, one: Counting, folder: Path) -> None:
    """A row that fails has neither vector nor digest and is tried again; a blank one has a digest and is done."""
    table = db.create_table("t", pa.table({"id": [0, 1, 2, 3], "text": ["a", "bad", "", None]}))
    with pytest.raises(EmbedregError, match="it says bad"):
        columns.add(table, one.bind("text", "vector"), on_error="raise")
    report = columns.add(table, one.bind("text", "vector"))
    assert report.bad_rows == 1
    assert report.bad[0].reason == "it says bad"
    assert counts(table) == {"fresh": 2, "empty": 1, "null_source": 1}
    (again,) = columns.fill(table)
    assert (again.bad_rows, again.written) == (1, 1)
    assert counts(table) == {"fresh": 2, "empty": 1, "null_source": 1}


# -- who writes digests ----------------------------------------------------------------------------------------------


def test_whatever_embeds_writes_the_digest(table: Any, one: Counting, folder: Path, tmp_path: Path) -> None:
    """`engines.lancedb.add`, `embed_batches` and a job; a given vector has none, for nobody knows who made it."""
    add(table, {"id": [700, 701], "text": ["new", ""]})
    assert counts(table) == {"fresh": 600}
    made = embedreg.embed_table({"id": [1], "text": ["x"]}, table.schema)
    assert made[DIGEST].to_pylist()[0].endswith(hashlib.sha256(b"x").hexdigest()[:16])
    given = pa.table({"id": [1], "text": ["x"], "vector": pa.array([[1.0] * D], pa.list_(pa.float32(), D))})
    assert embedreg.embed_table(given, table.schema)[DIGEST].to_pylist() == [None]
    embedreg.embed(folder / "t.lance", tmp_path / "copy.lance")
    assert counts(lancedb.connect(tmp_path).open_table("copy")) == {"fresh": 600}


# -- fill and refresh ------------------------------------------------------------------------------------------------


def test_refresh_embeds_exactly_what_changed(table: Any, folder: Path) -> None:
    """After 1% of the texts changed by update, merge_insert and add: these are embedded, once each."""
    table.update(where="id < 3", values_sql={"text": "'changed ' || cast(id as string)"})
    changed = pa.table({"id": [10, 11], "text": ["merged 10", "merged 11"]})
    table.merge_insert("id").when_matched_update_all().execute(changed)
    without_vectors(table, 600, 601)
    assert counts(table) == {"fresh": 593, "stale": 5, "empty": 1}
    size, before = sum(path.stat().st_size for path in (folder / "t.lance/data").iterdir()), hashes(folder)
    Counting.seen.clear()  # lancedb itself embeds what it merges
    (report,) = columns.refresh(table)
    assert sorted(Counting.seen) == sorted([*(f"changed {i}" for i in range(3)), "merged 10", "merged 11", "text 600"])
    assert (report.written, report.embedded, report.changed_meanwhile) == (6, 6, 0)
    assert _size(folder, before) < size  # a few rows; the benchmark has the figure for a table of real size
    assert counts(table) == {"fresh": 599}
    assert set(seeds(table).values()) == {1}
    assert columns.refresh(table)[0].written == 0


def test_much_of_a_fragment_is_written_as_a_column(table: Any, folder: Path) -> None:
    """From a fifth of its rows on the column is rewritten, not the rows; other columns' files stay."""
    table.update(where="id >= 300", values_sql={"text": "text || '!'"})
    before = hashes(folder)
    (report,) = columns.refresh(table)
    assert (report.written, report.embedded) == (299, 299)
    assert report.bytes_written is not None
    assert report.bytes_written < 299 * (4 * D + 40) + 4000
    assert before.items() <= hashes(folder).items()
    assert set(seeds(table).values()) == {1}


def test_equal_texts_are_embedded_once(table: Any) -> None:
    """The rows of a text are found by the text itself; no key is needed."""
    table.update(where="id < 20", values={"text": "the same"})
    (report,) = columns.refresh(table)
    assert Counting.seen == ["the same"]
    assert report.written == 19
    assert columns.refresh(table, key="id")[0].written == 0
    with pytest.raises(MissingColumnError, match="no column 'key'"):
        columns.refresh(table, key="key")


@pytest.mark.parametrize("key", [None, "id"])
def test_a_text_changed_meanwhile_does_not_get_the_old_vector(
    table: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """Another writer changes texts while they are embedded: each row ends with the vector of its own text."""
    table.update(where="id < 20 or id >= 300", values_sql={"text": "text || '!'"})
    embed, other, left = Counting.generate_embeddings, lancedb.connect(folder).open_table("t"), [1, 299]

    def slow(self: Counting, texts: Any, *args: Any, **kwargs: Any) -> Any:
        if left and len(list(texts)) > 5:
            number = left.pop()
            other.checkout_latest()
            other.update(where=f"id = {number + 1} or id = {number + 2}", values={"text": f"later {number}"})
        return embed(self, texts)

    monkeypatch.setattr(Counting, "generate_embeddings", slow)
    columns.refresh(table, key=key)
    assert not left
    assert set(seeds(table).values()) == {1}
    assert set(counts(table)) == {"fresh"}


def test_a_refresh_does_not_go_on_after_a_switch(
    table: Any, folder: Path, two: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The column gets another function while stale rows are embedded: the old one's vectors are not written to it."""
    table.update(where="id < 20 or id >= 300", values_sql={"text": "text || '!'"})
    embed, migrated = Counting.generate_embeddings, []

    def slow(self: Counting, texts: Any, *args: Any, **kwargs: Any) -> Any:
        if self.seed == 1 and not migrated and len(list(texts)) > 5:
            migrated.append(True)
            columns.migrate(folder / "t.lance", "vector", two)
        return embed(self, texts)

    monkeypatch.setattr(Counting, "generate_embeddings", slow)
    with pytest.raises(StorageError, match="was changed meanwhile"):
        columns.refresh(table)
    (migration,) = columns.migrations(table)
    migration.settle()
    assert set(seeds(table).values()) == {2}


def test_a_source_that_became_null_loses_its_vector(table: Any) -> None:
    """Vector and digest go; the row counts as having nothing to embed."""
    table.update(where="id < 2", values_sql={"text": "null"})
    assert counts(table) == {"fresh": 596, "stale": 2}
    assert columns.refresh(table)[0].written == 2
    assert counts(table) == {"fresh": 596, "null_source": 2}
    assert Counting.seen == []


def test_dry_run_writes_nothing(table: Any) -> None:
    """It counts the rows of each class that would be written."""
    table.update(where="id < 3", values={"text": "changed"})
    version = table.to_lance().version
    (report,) = columns.refresh(table, dry_run=True)
    assert (report.written, report.dry_run, table.to_lance().version) == (3, True, version)
    assert Counting.seen == []


def unstamped(table: Any, count: int, other: int = 0) -> None:
    """Append rows as LanceDB does, without digests; the last `other` of them with another function's vectors."""
    texts = [f"plain {i}" for i in range(count)]
    vectors = [vector_of(text, 2 if i >= count - other else 1) for i, text in enumerate(texts)]
    data = {
        "id": list(range(1000, 1000 + count)),
        "text": texts,
        "vector": pa.array(vectors, pa.list_(pa.float32(), D)),
    }
    table.add(pa.table(data))


def test_vectors_without_a_digest_are_stamped_after_a_sample(table: Any) -> None:
    """1,000 rows by plain `table.add`: 300 of them are embedded, all agree, all are stamped."""
    unstamped(table, 1000)
    assert counts(table) == {"fresh": 598, "unstamped": 1000}
    (report,) = columns.refresh(table)
    assert len(Counting.seen) == 300
    assert (report.stamped, report.written) == (1000, 0)
    assert counts(table) == {"fresh": 1598}
    assert "300 of 300 sampled vectors agreed" in report.notes[0]


def test_a_sample_that_disagrees_has_all_embedded_anew(table: Any) -> None:
    """5% of the rows have another function's vectors: nobody knows which, so all are embedded."""
    unstamped(table, 1000, other=50)
    (report,) = columns.refresh(table)
    assert (report.stamped, report.written) == (0, 1000)
    assert set(seeds(table).values()) == {1}


def test_unstamped_can_be_trusted_or_computed(table: Any) -> None:
    """The policy "trust" stamps without a model, "recompute" asks no sample."""
    unstamped(table, 10)
    assert columns.refresh(table, unstamped="trust")[0].stamped == 10
    assert Counting.seen == []
    unstamped(table, 10)
    assert columns.refresh(table, unstamped="recompute")[0].written == 10
    with pytest.raises(ConfigError, match="unstamped='some'"):
        columns.refresh(table, unstamped="some")  # type: ignore[arg-type]


# -- migrating -------------------------------------------------------------------------------------------------------


def test_a_migration_and_its_way_back(table: Any, two: Counting, folder: Path) -> None:
    """New vectors under the old name, then the old ones bit for bit, also for rows that came in between."""
    before = table.to_lance().to_table(columns=["id", "vector"]).to_pydict()
    entries = table.schema.metadata[b"embedding_functions"]
    migration = columns.migrate(table, "vector", two)
    assert migration.state == "settled"
    assert set(seeds(table).values()) == {2}
    assert counts(table) == {"fresh": 598}
    assert table.search("text 17").limit(1).to_list()[0]["_distance"] == 0
    assert columns.status(table)[0].migration == migration.status
    assert [each.id for each in columns.migrations(table)] == [migration.id]
    add(table, {"id": [900], "text": ["came after"]})
    migration.rollback()
    assert migration.state == "rolled back"
    assert set(seeds(table).values()) == {1}
    after = table.to_lance().to_table(columns=["id", "vector"], filter="id < 900").to_pydict()
    assert after == before
    assert table.schema.metadata[b"embedding_functions"] == entries
    assert leftovers(folder) == []
    assert counts(table) == {"fresh": 599}
    assert columns.migrations(table) == []


def test_old_vectors_come_back_after_compaction(table: Any, two: Counting, folder: Path) -> None:
    """The kept copy gives them back bit for bit: nothing is embedded, not even with the old function gone."""
    before = table.to_lance().to_table(columns=["id", "vector"]).sort_by("id")
    migration = columns.migrate(table, "vector", two)
    compacted(table)
    Counting.seen.clear()
    migration.rollback()
    assert Counting.seen == []
    assert table.to_lance().to_table(columns=["id", "vector"]).sort_by("id") == before


def test_without_a_copy_they_are_embedded(table: Any, two: Counting) -> None:
    """`keep=False`: after compaction the old function makes them again, once that is agreed to."""
    migration = columns.migrate(table, "vector", two, keep=False)
    compacted(table)
    with pytest.raises(
        ConfigError, match=r"598 rows have no old vector \(no copy was kept\): .*\(about a second\)"
    ) as no:
        migration.rollback()
    assert "--yes" in str(no.value.shell_hint)
    assert (migration.state, set(seeds(table).values())) == ("settled", {2})
    Counting.seen.clear()
    migration.rollback(yes=True)
    assert len(Counting.seen) == 598
    assert set(seeds(table).values()) == {1}


def test_a_column_without_digests_gets_them_and_loses_them(plain: Any, one: Counting, two: Counting) -> None:
    """What stock LanceDB or `attach` declared can be migrated; the way back leads to exactly that."""
    columns.add(plain, one.bind("text", "vector"), digest=False)
    before = plain.to_lance().to_table().sort_by("id")
    migration = columns.migrate(plain, "vector", two)
    assert plain.schema.names == ["id", "text", "vector", DIGEST]
    migration.rollback()
    assert plain.to_lance().to_table().sort_by("id") == before


def test_another_width_and_another_name(table: Any, folder: Path) -> None:
    """The column takes the new name and width; a reader of the old name fails instead of mixing."""
    wide = embedreg.get("hashing").create(dim=16, seed=1)
    migration = columns.migrate(table, "vector", wide, name="v2")
    assert table.schema.names == ["id", "text", "v2", "v2__source_digest"]
    assert table.schema.field("v2").type == pa.list_(pa.float32(), 16)
    assert table.search("text 17").limit(1).to_list()[0]["id"] == 17
    assert columns.status(table)[0].migration is not None
    migration.finish()
    assert migration.state == "finished"
    assert leftovers(folder) == []
    assert b"embedreg.migration" not in table.schema.metadata
    assert columns.status(table)[0].migration is None


def test_staging_alone_changes_nothing(table: Any, two: Counting, folder: Path) -> None:
    """`switch=False`: the table is as before, searches work; staged rows are counted; `abandon` leaves nothing."""
    version = table.to_lance().version
    migration = columns.migrate(table, "vector", two, switch=False)
    assert (migration.state, table.to_lance().version) == ("ready", version)
    assert (migration.status.staged_rows, migration.status.total_rows) == (598, 598)
    assert table.search("text 17").limit(1).to_list()[0]["id"] == 17
    with pytest.raises(StorageError, match="not switched yet"):
        migration.settle()
    add(table, {"id": [900], "text": ["late"]})
    assert columns.migrations(table)[0].status.staged_rows == 598
    migration.abandon()
    assert (migration.state, leftovers(folder)) == ("abandoned", [])
    assert set(seeds(table).values()) == {1}


def test_one_step_after_another(table: Any, two: Counting, folder: Path) -> None:
    """run, switch, settle, finish; each is refused before its time. Rows that came late are embedded at the switch."""
    migration = columns.migrate(table, "vector", two, switch=False)
    add(table, {"id": [900], "text": ["late"]})
    with pytest.raises(StorageError, match="not switched yet") as refused:
        migration.finish()
    assert "embedreg column switch" in str(refused.value.shell_hint)
    assert "Migration" not in str(refused.value.shell_hint)
    version = migration.switch()
    assert version == table.to_lance().version == migration.switch()
    assert set(seeds(table).values()) == {2}
    with pytest.raises(StorageError, match="not settled"):
        migration.finish()
    with pytest.raises(StorageError, match="rollback"):
        migration.abandon()
    assert migration.settle().written == 0
    migration.finish()
    assert leftovers(folder) == []


def test_compaction_while_staged_embeds_nothing_again(table: Any, two: Counting) -> None:
    """The new fragment takes its vectors from the staged files of those that are gone."""
    migration = columns.migrate(table, "vector", two, switch=False)
    table.optimize()
    Counting.seen.clear()
    migration.switch()
    assert Counting.seen == []
    assert set(seeds(table).values()) == {2}


def test_a_clean_up_while_staging_is_followed(plain: Any, one: Counting, two: Counting, folder: Path) -> None:
    """`add` and `migrate` go on with the newest version when the files that they read are removed between batches."""
    cleaned: list[int] = []

    def clean(done: int, total: int) -> None:
        if not cleaned:  # the second fragment has not been opened yet
            cleaned.append(done)
            compacted(lancedb.connect(folder).open_table("t"))

    columns.add(plain, one.bind("text", "vector"), progress=clean, batch_rows=20)
    assert cleaned
    assert set(seeds(plain).values()) == {1}
    lance.write_dataset(rows(600, 900), plain.to_lance().uri, mode="append")  # a second fragment
    columns.fill(plain)
    cleaned.clear()
    columns.migrate(plain, "vector", two, progress=clean, batch_rows=20).finish()
    assert cleaned
    assert set(seeds(plain).values()) == {2}
    assert leftovers(folder) == []


def test_a_stale_handle_is_found_and_settled(table: Any, two: Counting, folder: Path) -> None:
    """A handle opened before the switch writes the old function's vectors: counted, and then repaired."""
    stale = lancedb.connect(folder).open_table("t")
    assert stale.search("text 17").limit(1).to_list()
    migration = columns.migrate(table, "vector", two)
    texts = ["by a stale writer", "by another"]
    old = pa.array([vector_of(text, 1) for text in texts], pa.list_(pa.float32(), D))
    stale.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(
        pa.table({"id": [17, 950], "text": texts, "vector": old})
    )
    table.checkout_latest()
    found = counts(table)
    assert found["fresh"] == 597
    assert sum(found.values()) == 599
    assert found.get("stale", 0) + found.get("unstamped", 0) + found.get("empty", 0) == 2
    report = migration.settle()
    assert report.written == 2
    assert set(seeds(table).values()) == {2}
    assert counts(table) == {"fresh": 599}


def test_a_late_writer_is_settled_after_a_grace(
    table: Any, two: Counting, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stale handle writes after the first look is found by the second; nobody waits without `grace_s`."""
    stale = lancedb.connect(folder).open_table("t")
    assert stale.search("text 17").limit(1).to_list()
    migration = columns.migrate(table, "vector", two, switch=False)
    migration.switch()
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        stale.add([{"id": 901, "text": "late"}])

    monkeypatch.setattr("embedreg.columns.migration.time.sleep", wait)
    assert migration.settle().written == 0
    report = migration.settle(grace_s=60)
    assert (waited, report.written) == ([60], 1)
    assert "opened the table before the switch" in report.notes[0]
    table.checkout_latest()
    assert set(seeds(table).values()) == {2}
    with pytest.raises(ConfigError, match="grace_s=-1"):
        migration.settle(grace_s=-1)


def test_what_users_say_of_a_column_stays(table: Any, two: Counting) -> None:
    """LanceDB's status, description and tags of the column go with it to the new vectors, and back."""
    own = {"lancedb:status": "production", "lancedb:description": "of the text", "team": "search"}
    table.update_field_metadata({"path": "vector", "metadata": own})
    wanted = {key.encode(): value.encode() for key, value in own.items()}
    migration = columns.migrate(table, "vector", two)
    assert table.schema.field("vector").metadata == wanted
    migration.rollback()
    assert table.schema.field("vector").metadata == wanted
    columns.migrate(table, "vector", two, name="better").finish()
    assert table.schema.field("better").metadata == wanted


def test_status_tells_two_settings_of_a_function_apart(table: Any, two: Counting) -> None:
    """What differs, before and after the switch; and the settings of each column."""
    migration = columns.migrate(table, "vector", two, switch=False)
    assert migration.status.differs == "seed=2 instead of 1"
    assert columns.status(table)[0].settings["seed"] == "1"
    migration.switch()
    assert columns.status(table)[0].migration == migration.status
    assert migration.status.differs == "seed=2 instead of 1"
    assert columns.status(table)[0].settings["seed"] == "2"


def test_old_vectors_under_a_fresh_digest_are_found(table: Any, two: Counting, folder: Path) -> None:
    """A stale handle merges a row whose text stays: no digest shows it, the staged vectors of that text do."""
    stale = lancedb.connect(folder).open_table("t")
    assert stale.search("text 17").limit(1).to_list()
    migration = columns.migrate(table, "vector", two)
    old = pa.array([vector_of("text 17", 1)], pa.list_(pa.float32(), D))
    data = pa.table({"id": [17], "text": ["text 17"], "vector": old})
    stale.merge_insert("id").when_matched_update_all().execute(data)
    table.checkout_latest()
    assert (counts(table), seeds(table)[17]) == ({"fresh": 598}, 1)
    assert migration.settle().written == 1
    assert set(seeds(table).values()) == {2}
    compacted(table)
    assert migration.settle().written == 0


def test_stale_appends_go_through_and_come_back_right(table: Any, two: Counting, folder: Path) -> None:
    """A handle that has not seen the switch appends to the old column: rows without a vector until they are settled.

    What it wrote there is either function's, so the way back embeds these rows instead.
    """
    stale = [lancedb.connect(folder).open_table("t") for _ in range(2)]
    for each in stale:
        assert each.search("text 17").limit(1).to_list()
    migration = columns.migrate(table, "vector", two)
    stale[0].add([{"id": 901, "text": "as lancedb adds"}])
    add(stale[1], {"id": [902], "text": ["as this library adds"]})
    table.checkout_latest()
    assert counts(table) == {"fresh": 598, "empty": 2}
    assert migration.settle().written == 2
    assert set(seeds(table).values()) == {2}
    migration.rollback()
    assert set(seeds(table).values()) == {1}


def test_stale_and_foreign_vectors_are_not_kept_for_their_texts(table: Any, two: Counting) -> None:
    """After compaction the way back embeds such rows: the vector that a text had was not that text's."""
    table.drop_index("id_idx")  # else rows that are not indexed are not compacted with the others
    table.to_lance().update({"text": "'changed'"}, where="id = 17")
    table.checkout_latest()
    assert counts(table) == {"fresh": 597, "stale": 1}
    migration = columns.migrate(table, "vector", two)
    compacted(table)
    migration.rollback()
    assert set(seeds(table).values()) == {1}
    assert counts(table) == {"fresh": 598}


def test_a_reader_of_this_library_is_right_through_the_switch(table: Any, two: Counting, folder: Path) -> None:
    """A handle that has searched before follows the declaration after the switch, for both consistency settings."""
    readers = [
        lancedb.connect(folder, read_consistency_interval=interval).open_table("t") for interval in (None, timedelta(0))
    ]
    for reader in readers:
        assert reader.search("text 17").limit(1).to_list()[0]["_distance"] == 0
    migration = columns.migrate(table, "vector", two)
    for reader in readers:
        reader.checkout_latest()
        (first,) = reader.search("text 17").limit(1).to_list()
        assert (first["id"], first["_distance"]) == (17, 0)
    migration.rollback()
    for reader in readers:
        reader.checkout_latest()
        assert reader.search("text 17").limit(1).to_list()[0]["_distance"] == 0


def test_the_index_is_there_after_the_switch(table: Any, folder: Path) -> None:
    """One like the old is built before it, also for another width, and again for the way back; no branch is left."""
    table.create_index("vector", config=lancedb.index.IvfFlat(distance_type="cosine", num_partitions=2))
    wide = embedreg.get("hashing").create(dim=16, seed=1)
    for change in (lambda: columns.migrate(table, "vector", wide), lambda: columns.migrations(table)[0].rollback()):
        change()
        table.checkout_latest()
        stats = table.index_stats("vector_idx")
        assert (stats.index_type, stats.distance_type) == ("IVF_FLAT", "cosine")
        assert (stats.num_indexed_rows, stats.num_unindexed_rows) == (598, 0)
        query = table.search("text 17").distance_type("cosine").nprobes(2).limit(1)
        assert "ANNIvfPartition" in query.explain_plan()
        assert query.to_list()[0]["id"] == 17
    assert leftovers(folder) == []
    columns.migrate(table, "vector", wide, index="none")
    assert table.index_stats("vector_idx") is None


def test_an_index_that_a_killed_run_did_not_join_is_built_by_settle(
    table: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of the old one are recorded before the switch."""
    from embedreg.engines.lancedb.columns import migrating

    table.create_index("vector", config=lancedb.index.IvfFlat(distance_type="cosine", num_partitions=2))
    migration = columns.migrate(table, "vector", embedreg.get("hashing").create(dim=D, seed=1), switch=False)
    monkeypatch.setattr(migrating, "join", lambda *_: None)
    migration.switch()
    table.checkout_latest()
    assert table.index_stats("vector_idx") is None
    migration.settle()
    table.checkout_latest()
    assert table.index_stats("vector_idx").num_unindexed_rows == 0


def test_two_migrations_of_one_table_are_refused(table: Any, two: Counting) -> None:
    """A second one, of another function, while the first is staged or switched; the first goes on."""
    three = Counting.create(seed=3)
    migration = columns.migrate(table, "vector", two, switch=False)
    with pytest.raises(StorageError, match=r"migrate of column 'vector' is unfinished \(ready\)"):
        columns.migrate(table, "vector", three)
    migration.switch()
    with pytest.raises(StorageError, match="is being migrated"):
        columns.migrate(table, "vector", three)
    with pytest.raises(StorageError, match="is being migrated"):
        columns.detach(table, "vector")
    assert columns.migrate(table, "vector", two).state == "settled"


@pytest.mark.parametrize("ending", ["rollback", "finish"])
def test_the_call_that_was_killed_right_after_its_commit_ends(
    table: Any, two: Counting, folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """The table's metadata says that it is done; the record beside it is removed, and the same call succeeds."""
    from embedreg.engines.lancedb.columns.place import Kept

    def killed(self: Kept) -> None:
        raise KeyboardInterrupt

    migration = columns.migrate(table, "vector", two)
    monkeypatch.setattr(Kept, "drop", killed)
    with pytest.raises(KeyboardInterrupt):
        getattr(migration, ending)()
    monkeypatch.undo()
    wanted = {"rollback": "rolled back", "finish": "finished"}[ending]
    (left,) = columns.migrations(folder / "t.lance")
    getattr(left, ending)()
    assert left.state == wanted
    assert leftovers(folder) == []
    table.checkout_latest()
    assert set(seeds(table).values()) == ({1} if ending == "rollback" else {2})


def test_of_two_ends_of_a_migration_one_happens(table: Any, two: Counting, folder: Path) -> None:
    """A handle whose migration another one has rolled back does not report that it is finished, nor the reverse."""
    columns.migrate(table, "vector", two)
    ((mine,), (theirs,)) = (columns.migrations(folder / "t.lance") for _ in range(2))
    assert mine.state == theirs.state == "settled"
    mine.rollback()
    with pytest.raises(StorageError, match="no longer there: another process has finished it, rolled it back"):
        theirs.finish()
    with pytest.raises(StorageError, match="no longer there"):
        theirs.rollback()
    columns.migrate(table, "vector", two)
    ((mine,), (theirs,)) = (columns.migrations(folder / "t.lance") for _ in range(2))
    mine.finish()
    mine.finish()
    with pytest.raises(StorageError, match="no longer there"):
        theirs.rollback()
    assert leftovers(folder) == []


def test_the_same_function_is_no_migration(table: Any, one: Counting) -> None:
    """Nor is one of a column that is not declared."""
    with pytest.raises(ConfigError, match="declared with this function already"):
        columns.migrate(table, "vector", one)
    with pytest.raises(MissingColumnError, match="no function for column 'vectors'"):
        columns.migrate(table, "vectors", one)


def test_a_migration_goes_on_in_another_process(
    table: Any, two: Counting, folder: Path, new_process: Callable[..., str]
) -> None:
    """What a process knows of it lies beside the table: another one switches it, by the stored declaration."""
    hashing = embedreg.get("hashing").create(dim=D, seed=3)
    columns.migrate(table, "vector", hashing, switch=False)
    code = """
import lancedb
import lancedb.index
from embedreg import columns
table = lancedb.connect(folder).open_table("t")
(migration,) = columns.migrations(table)
migration.switch()
migration.settle()
print(migration.state, table.search("text 17").limit(1).to_list()[0]["id"])
"""
    assert new_process(code).split() == ["settled", "17"]


def test_users_may_clean_up_in_every_state(table: Any, two: Counting, folder: Path) -> None:
    """Compaction with `cleanup_older_than=0` works at each step, stock readers read, and the next step goes on."""

    def readable(seed: int) -> None:
        compacted(table)
        dataset = lance.dataset(str(folder / "t.lance"))
        assert dataset.tags.list() == dataset.branches.list() == {}
        query = {"column": "vector", "q": vector_of("text 17", seed), "k": 1}
        assert dataset.to_table(columns=["id"], nearest=query)["id"].to_pylist() == [17]
        assert dataset.count_rows() == 598

    migration = columns.migrate(table, "vector", two, switch=False)
    readable(1)
    migration.switch()
    readable(2)
    migration.settle()
    readable(2)
    migration.rollback()
    readable(1)
    columns.migrate(table, "vector", two).finish()
    readable(2)
    assert leftovers(folder) == []


def test_a_migration_ends_whatever_became_of_its_columns(table: Any, two: Counting, folder: Path) -> None:
    """Renamed or dropped by others, before and after the switch: the status says so, and there is a way out."""
    path = str(folder / "t.lance")
    migration = columns.migrate(table, "vector", two, switch=False)
    lance.dataset(path).alter_columns({"path": "text", "name": "body"})
    (status,) = columns.status(path)
    assert status.problem == "the source column 'text' is not in the table"
    assert status.migration is not None
    assert (status.migration.state, status.migration.staged_rows) == ("ready", 0)
    migration.abandon()
    lance.dataset(path).alter_columns({"path": "body", "name": "text"})
    for ending in ("finish", "rollback"):
        migration = columns.migrate(path, "vector", two, switch=False)
        migration.switch()
        lance.dataset(path).alter_columns({"path": "vector", "name": "mine"})
        with pytest.raises(StorageError, match="'vector' is not in table 't': it was renamed or dropped") as no:
            migration.rollback()
        assert "rename 'mine' back" in str(no.value.hint)
        if ending == "rollback":
            lance.dataset(path).drop_columns(["mine"])
        getattr(migration, ending)()
        assert leftovers(folder) == []
        if ending == "finish":
            lance.dataset(path).alter_columns({"path": "mine", "name": "vector"})
            columns.migrate(path, "vector", Counting.create(seed=1)).finish()
    table.checkout_latest()
    assert set(seeds(table).values()) == {1}
    assert counts(table) == {"fresh": 598}


def test_a_name_that_lance_cannot_take_is_refused_before_anything_is_embedded(table: Any, two: Counting) -> None:
    """Full stops, which separate nested fields, backticks, nothing at all; and a digest column of another origin."""
    for name in ("a.b", "a`b", ""):
        with pytest.raises(ConfigError, match="name"):
            columns.add(table, two.bind("text", name), yes=True)
        if name:
            with pytest.raises(ConfigError, match="name"):
                columns.migrate(table, "vector", two, name=name)
    table.to_lance().add_columns({"v2__source_digest": "text"})
    with pytest.raises(SchemaError, match="'v2__source_digest' of another origin"):
        columns.migrate(table, "vector", two, name="v2")
    assert Counting.seen == []


def test_a_width_that_stays_is_noted(table: Any, two: Counting) -> None:
    """Readers without this library would go on with the old model unseen; another name or width makes them fail."""
    migration = columns.migrate(table, "vector", two, switch=False)
    assert "keeps its width of 8" in migration.notes[0]
    migration.switch()
    assert "keeps its width of 8" in migration.notes[0]
    migration.rollback()
    assert columns.migrate(table, "vector", two, name="v2").notes == ()


@pytest.mark.parametrize(
    "options", [{"enable_stable_row_ids": True}, {"data_storage_version": "2.0"}, {"data_storage_version": "2.1"}]
)
def test_other_kinds_of_tables(folder: Path, one: Counting, two: Counting, options: dict[str, Any]) -> None:
    """Stable row ids, earlier file formats, names with blanks, large strings: the same calls work."""
    text = pa.array([f"text {i}" for i in range(60)], pa.large_string())
    path, data = folder / "t.lance", pa.table({"id": list(range(60)), "My text": text})
    lance.write_dataset(data, str(path), max_rows_per_file=40, **options)
    columns.add(path, one.bind("My text", "my vec-tor"))
    lance.dataset(str(path)).update({"My text": "'changed'"}, where="id < 2")
    assert columns.refresh(path)[0].written == 2
    migration = columns.migrate(path, "my vec-tor", two)
    migration.rollback()
    (status,) = columns.status(path)
    assert (status.fresh, status.problem) == (60, None)
    columns.detach(path, "my vec-tor", drop=True)
    assert lance.dataset(str(path)).schema.names == ["id", "My text"]


def test_the_first_file_format_is_refused(folder: Path, one: Counting) -> None:
    """A column of it cannot lie in a file of its own."""
    path = folder / "t.lance"
    lance.write_dataset(rows(0, 10), str(path), data_storage_version="legacy")
    with pytest.raises(ConfigError, match="file format"):
        columns.add(path, one.bind("text", "vector"))


# -- declarations ----------------------------------------------------------------------------------------------------


class Renamed(Counting):
    """The same vectors under another configuration."""

    host: str = "a"


def test_repoint_keeps_vectors_and_digests(table: Any, two: Counting) -> None:
    """A function of the same vectors takes the declaration over, embedding the sample alone; another is refused."""
    embedreg.register("renamed")(Renamed)
    there = Renamed.create(host="b")
    before = table.to_lance().to_table()
    agreement = columns.repoint(table, "vector", there)
    assert (agreement.compared, agreement.lowest >= 0.999, len(Counting.seen)) == (100, True, 100)
    assert embedreg.functions_in(table)["vector"].function == there
    assert table.to_lance().to_table() == before
    assert counts(table) == {"fresh": 598}
    add(table, {"id": [900], "text": ["after"]})
    table.update(where="id = 17", values={"text": "changed"})
    assert counts(table) == {"fresh": 598, "stale": 1}
    assert columns.refresh(table)[0].written == 1
    assert embedreg.check_drift(table)[0].verdict == "same"
    with pytest.raises(DriftError, match="100 of 100 sampled rows have other vectors"):
        columns.repoint(table, "vector", two)


def test_detach_keeps_the_column_or_drops_it(table: Any, two: Counting, folder: Path) -> None:
    """Plain LanceDB adds rows afterwards; other declarations stay byte for byte."""
    columns.add(table, two.bind("text", "other"), yes=True)
    entries = codec.entries(table.schema.metadata)
    columns.detach(table, "vector")
    assert [each.raw for each in codec.entries(table.schema.metadata)] == [entries[1].raw]
    assert table.schema.names == ["id", "text", "vector", DIGEST, "other", "other__source_digest"]
    table.add(rows(600, 601))
    columns.detach(table, "other", drop=True)
    assert table.schema.names == ["id", "text", "vector", DIGEST]
    assert codec.KEY.encode() not in (table.schema.metadata or {})
    table.add(rows(601, 602))
    assert leftovers(folder) == []
    with pytest.raises(MissingColumnError):
        columns.detach(table, "vector")


def test_detach_keeps_what_another_writes_meanwhile(table: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metadata write of another process between reading and writing: both are there afterwards."""
    write, others = lance.LanceDataset.update_schema_metadata, [{"owner": "ann"}]

    def second(self: Any, values: Any, **kwargs: Any) -> Any:
        if others:
            write(lance.dataset(str(folder / "t.lance")), others.pop())
        return write(self, values, **kwargs)

    monkeypatch.setattr(lance.LanceDataset, "update_schema_metadata", second)
    columns.detach(table, "vector")
    assert not others
    assert table.schema.metadata == {b"owner": b"ann"}


# -- untrusted tables --------------------------------------------------------------------------------------------------

MARKS: dict[str, str | bytes] = {
    "no JSON": "{",
    "paths": json.dumps({"format": 1, "id": "../../etc/passwd", "vector": "vector", "files": ["/etc/passwd"]}),
    "huge": json.dumps({"format": 1, "pad": "x" * (2 << 20)}),
    "deep": '{"a":' * 200 + "1" + "}" * 200,
    "unknown": json.dumps({"format": 99, "state": "exploded"}),
    "numbers": json.dumps(dict.fromkeys(["format", "id", "vector", "name", "from", "from_schema", "to", "version"], 1)),
}


@pytest.mark.parametrize("name", MARKS)
def test_a_hostile_mark_opens_no_file(
    table: Any, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, two: Counting
) -> None:
    """`status` counts the rows all the same and says why; a migration is refused; nothing is opened for it."""
    table.to_lance().update_schema_metadata({"embedreg.migration": MARKS[name]})
    table.checkout_latest()
    before = sorted(folder.rglob("*"))
    (status,) = columns.status(table)
    assert status.fresh == 598
    assert status.migration is None
    assert "metadata 'embedreg.migration' cannot be read" in (status.problem or "")
    with pytest.raises(StorageError, match="cannot be read"):
        columns.migrate(table, "vector", two)
    assert sorted(folder.rglob("*")) == before


def test_a_hostile_digest_writes_no_other_column(table: Any, folder: Path) -> None:
    """A declaration that names the user's own column as its digests is not followed; `status` says why."""
    for hostile in ("text", "id", "../vector__source_digest", 7, "other__source_digest"):
        (entry,) = json.loads(table.schema.metadata[b"embedding_functions"])
        entry["model"]["embedreg"]["digest"] = hostile
        table.to_lance().update_schema_metadata({codec.KEY: json.dumps([entry])})
        table.checkout_latest()
        before = table.to_lance().to_table()
        (status,) = columns.status(table)
        assert re.search("column of digests", status.problem or "")
        with pytest.raises(StorageError, match="digests"):
            columns.refresh(table)
        assert table.to_lance().to_table() == before


def test_a_hostile_folder_beside_the_table_is_refused(table: Any, folder: Path, two: Counting, tmp_path: Path) -> None:
    """Records that name other files, links and pipes lead nowhere; the table stays as it is."""
    beside = folder / ".t.lance.embedreg"
    (beside / "files").mkdir(parents=True)
    (beside / "pieces").mkdir()
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (beside / "migration.json").symlink_to(secret)
    (status,) = columns.status(table)
    assert status.fresh == 598
    assert "link" in (status.problem or "")
    with pytest.raises(StorageError):
        columns.migrate(table, "vector", two)
    (beside / "migration.json").unlink()
    (beside / "migration.json").write_text(json.dumps({"format": 1, "id": "0" * 12, "kind": "migrate"}))
    with pytest.raises(StorageError, match="not as embedreg writes it"):
        columns.migrate(table, "vector", two)
    (beside / "migration.json").unlink()
    (beside / "files").mkdir(exist_ok=True)
    (beside / "pieces").mkdir(exist_ok=True)
    name = "0" * 32 + ".lance"
    (beside / "files" / name).symlink_to(secret)
    source = table.to_lance().get_fragments()[0].metadata.files[0].path
    piece = {"format": 1, "fragment": 0, "source_file": str(source), "rows": 300, "size": 6, "file": name}
    (beside / "pieces/0-0.json").write_text(json.dumps({**piece, "previous": None}))
    assert columns.migrate(table, "vector", two).state == "settled"
    assert set(seeds(table).values()) == {2}
    assert secret.read_text() == "secret"


def test_stored_functions_are_not_built_without_a_grant(plain: Any, folder: Path) -> None:
    """A declaration that needs a grant is counted, not run."""
    entry = {"name": "openai", "model": {"name": "x", "base_url": "http://127.0.0.1:9/"}, "source_column": "text"}
    plain.to_lance().update_schema_metadata({codec.KEY: json.dumps([{**entry, "vector_column": "vector"}])})
    plain.checkout_latest()
    plain.to_lance().add_columns(pa.schema([pa.field("vector", pa.list_(pa.float32(), 4))]))
    plain.checkout_latest()
    assert counts(plain) == {"empty": 598}
    with pytest.raises(EmbedregError, match="base_url"):
        columns.fill(plain)


def test_the_place_of_a_table(table: Any, folder: Path, tmp_path: Path) -> None:
    """A path, a table object, a pylance dataset; anything else is refused by name."""
    assert columns.status(str(folder / "t.lance"))[0].fresh == 598
    assert columns.status(lance.dataset(str(folder / "t.lance")))[0].fresh == 598
    with pytest.raises(InputError, match="is not a table or dataset"):
        columns.status(object())
    assert columns.status(f"file://{folder}/t.lance")[0].fresh == 598
    away = lance.write_dataset(rows(0, 2), "memory://away")
    with pytest.raises(ConfigError, match=r"'memory://away' is on an object store") as refused:
        columns.status(away)
    assert "copy it to a local disk" in str(refused.value.hint)
    with pytest.raises(InputError, match=r"there is no file or folder .*[\s\S]*did you mean '.*t\.lance'"):
        columns.status(str(folder / "t"))


# -- trials ------------------------------------------------------------------------------------------------------------


def trial(name: str, *args: str) -> dict[str, str]:
    """Run a trial of `benchmarks.trial_columns` in a process of its own; return what it printed."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.trial_columns", name, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return {key.strip(): value.strip() for key, _, value in (line.partition(": ") for line in done.stdout.splitlines())}


@pytest.mark.slow
def test_a_killed_migration_is_ended_by_the_same_call() -> None:
    """At points spread over all writes and commits: the status is true, old vectors come back, nothing is left."""
    found = trial("kills", "--points", "9")
    assert {found[name] for name in ("untrue", "wrong", "left", "failed")} == {"0"}


@pytest.mark.slow
def test_a_live_table_is_migrated_again_and_again() -> None:
    """Eight other processes add, merge, delete, compact and search: no row is lost or has another text's vector."""
    found = trial("live", "--seconds", "4")
    assert {found[name] for name in ("lost", "ghosts", "double", "other text", "wrong vectors", "not fresh")} == {"0"}
    assert int(found["switches"]) >= 1
    assert int(found["searches"]) > 0
    assert (found["died"], found["search errors"], found["wrong outside of switches"]) == ("[]", "{}", "0")
