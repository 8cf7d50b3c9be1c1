"""A vector column of a DuckDB table: added, kept fresh, migrated in one transaction, rolled back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

import embedreg
from embedreg import columns
from embedreg.engines.duckdb import functions_in
from embedreg.errors import ConfigError, DriftError, EmbedregError, SchemaError, StorageError
from tests.columns.letters import Fickle, Letters, died, registered, vector_of


@pytest.fixture(autouse=True)
def functions() -> None:
    """The functions, registered, with nothing counted."""
    registered()


@pytest.fixture
def one() -> Letters:
    return Letters.create(scale=1.0)


@pytest.fixture
def two() -> Letters:
    return Letters.create(scale=-2.0)


TEXTS = ["alpha", "beta", None, "gamma", "alpha"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table `docs` in a database, by its path."""
    file = tmp_path / "shop.duckdb"
    run(file, 'CREATE TABLE docs (id INTEGER PRIMARY KEY, "text" VARCHAR, other VARCHAR)')
    for number, text in enumerate(TEXTS):
        run(file, "INSERT INTO docs VALUES (?, ?, 'o')", [number, text])
    return file / "docs"


def run(table: Path, statement: str, values: Any = None) -> list[Any]:
    """Run a statement as another program would."""
    file = table if table.suffix else table.parent
    with duckdb.connect(str(file)) as con:
        return con.execute(statement, values or []).fetchall()


def right(table: Path, scale: float) -> bool:
    """Return whether each row has the vector of its own text."""
    found = run(table, "SELECT text, vector FROM docs")
    return all((vector and list(vector)) == vector_of(text, scale) for text, vector in found)


def names(table: Path) -> list[str]:
    """Return the columns."""
    return [row[0] for row in run(table, "DESCRIBE docs")]


def test_a_column_is_added_and_every_row_is_fresh(table: Path, one: Letters) -> None:
    """Equal texts are embedded once, the type is FLOAT[n], the comment declares the function, the key stays."""
    report = columns.add(table, one.bind("text", "vector"))
    assert (report.rows, report.written, report.embedded) == (5, 4, 3)
    assert sorted(Letters.seen) == ["alpha", "beta", "gamma"]
    assert right(table, 1.0)
    assert names(table) == ["id", "text", "other", "vector", "vector__source_digest"]
    assert run(table, "SELECT column_type FROM (DESCRIBE docs) WHERE column_name = 'vector'") == [("FLOAT[2]",)]
    with duckdb.connect(str(table.parent)) as con:
        assert functions_in(con, "docs")["vector"].function == one
    [status] = columns.status(table)
    assert (status.rows, status.fresh, status.null_source, status.todo) == (5, 4, 1, 0)
    with pytest.raises(SchemaError, match="has a column 'vector' already"):
        columns.add(table, one.bind("text", "vector"))


def test_the_file_alone_names_its_only_table(table: Path, one: Letters) -> None:
    """Several tables want a name; a misspelt one is named."""
    columns.add(table.parent, one.bind("text", "vector"))
    assert columns.status(table.parent)[0].fresh == 4
    run(table, "CREATE TABLE more (x INTEGER)")
    with pytest.raises(ConfigError, match=r"has 2 tables: docs, more"):
        columns.status(table.parent)
    with pytest.raises(StorageError, match="has no table 'doc'"):
        columns.status(table.parent / "doc")


def test_refresh_embeds_what_other_programs_changed(table: Path, one: Letters) -> None:
    """Changed texts, new rows and lost vectors; a text that went to NULL loses its vector."""
    columns.add(table, one.bind("text", "vector"))
    run(table, "UPDATE docs SET text = 'changed' WHERE id = 0")
    run(table, "UPDATE docs SET text = NULL WHERE id = 3")
    run(table, "UPDATE docs SET vector = NULL, vector__source_digest = NULL WHERE id = 1")
    run(table, "INSERT INTO docs (id, text) VALUES (9, 'new')")
    [status] = columns.status(table)
    assert (status.fresh, status.stale, status.empty, status.null_source) == (1, 2, 2, 1)
    Letters.seen.clear()
    assert columns.refresh(table, dry_run=True)[0].embedded == 4
    assert Letters.seen == []
    assert columns.fill(table)[0].written == 2
    assert sorted(Letters.seen) == ["beta", "new"]
    [report] = columns.refresh(table)
    assert (report.written, sorted(Letters.seen)) == (1, ["beta", "changed", "new"])
    assert right(table, 1.0)
    assert columns.status(table)[0].todo == 0


def test_unstamped_vectors_are_verified_by_a_sample(table: Path, one: Letters) -> None:
    """Right ones are stamped; wrong ones are made anew."""
    columns.add(table, one.bind("text", "vector"))
    run(table, "UPDATE docs SET vector__source_digest = NULL")
    Letters.seen.clear()
    [report] = columns.refresh(table, sample=2)
    assert (report.stamped, report.written, len(Letters.seen)) == (4, 0, 2)
    run(table, "UPDATE docs SET vector__source_digest = NULL, vector = [1, -1]")
    [report] = columns.refresh(table, sample=2)
    assert (report.stamped, report.written) == (0, 4)
    assert right(table, 1.0)


def test_recompute_embeds_every_row_of_a_column_without_digests(table: Path, one: Letters) -> None:
    """Wrong vectors that no digest shows are made anew."""
    columns.add(table, one.bind("text", "vector"), digest=False)
    run(table, "UPDATE docs SET text = 'changed' WHERE id = 0")
    assert columns.refresh(table)[0].written == 0
    [report] = columns.refresh(table, unstamped="recompute")
    assert report.written == 4
    assert "every row was embedded" in report.notes[0]
    assert right(table, 1.0)


def test_bad_rows_are_null_and_not_tried_again(table: Path, one: Letters) -> None:
    """Under "raise" nothing changes."""
    run(table, "INSERT INTO docs (id, text) VALUES (7, 'bad')")
    with pytest.raises(EmbedregError, match="it says bad"):
        columns.add(table, one.bind("text", "vector"), on_error="raise")
    assert "vector" not in names(table)
    report = columns.add(table, one.bind("text", "vector"))
    assert (report.bad_rows, report.bad[0].reason) == (1, "it says bad")
    Letters.seen.clear()
    assert columns.refresh(table)[0].written == 0
    assert Letters.seen == []
    assert right(table, 1.0)


def test_a_migration_switches_in_one_transaction_and_rolls_back(table: Path, one: Letters, two: Letters) -> None:
    """Until the switch readers have the old vectors; the way back gives them back and embeds what changed since."""
    columns.add(table, one.bind("text", "vector"))
    migration = columns.migrate(table, "vector", two, switch=False)
    assert migration.state == "ready"
    assert right(table, 1.0)
    assert columns.status(table)[0].migration.staged_rows == 5
    run(table, "UPDATE docs SET text = 'changed' WHERE id = 0")
    Letters.seen.clear()
    migration.switch()
    assert Letters.seen == ["changed"]
    assert right(table, -2.0)
    with pytest.raises(StorageError, match="not settled"):
        migration.finish()
    migration.settle()
    assert columns.status(table)[0].fresh == 4
    run(table, "INSERT INTO docs (id, text) VALUES (9, 'new')")
    Letters.seen.clear()
    [again] = columns.migrations(table)
    again.rollback()
    assert sorted(Letters.seen) == ["changed", "new"]
    assert right(table, 1.0)
    assert sorted(names(table)) == ["id", "other", "text", "vector", "vector__source_digest"]
    assert columns.migrations(table) == []
    assert columns.status(table)[0].todo == 0


def test_many_rows_without_an_old_vector_are_embedded_if_that_is_agreed_to(
    table: Path, one: Letters, two: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`yes` agrees; a way back that stops among its rows is completed by whatever changes the column next."""
    columns.add(table, one.bind("text", "vector"))
    migration = columns.migrate(table, "vector", two)
    run(table, "INSERT INTO docs (id, text) SELECT 100 + i, 'text ' || i FROM range(101) AS t(i)")
    with pytest.raises(ConfigError, match=r"101 rows have no old vector \(they were added or changed"):
        migration.rollback()
    assert columns.status(table)[0].migration.notes == ()
    monkeypatch.setattr("embedreg.engines.duckdb.columns.rows._CHUNK_BYTES", 4 * 2 * 40)
    embed, left = Letters.generate_embeddings, [2]

    def stops(self: Letters, texts: Any, *args: Any, **kwargs: Any) -> Any:
        if self.scale == 1.0 and len(list(texts)) > 10:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
        return embed(self, texts)

    monkeypatch.setattr(Letters, "generate_embeddings", stops)
    with pytest.raises(KeyboardInterrupt):
        migration.rollback(yes=True)
    monkeypatch.setattr(Letters, "generate_embeddings", embed)
    assert "it is being rolled back" in columns.status(table)[0].migration.notes[0]
    Letters.seen.clear()
    assert columns.refresh(table)[0].written == 0
    assert len(Letters.seen) == 61  # 40 of the 101 were written before
    assert right(table, 1.0)
    assert columns.migrations(table) == []


def test_vectors_without_digests_come_back_as_they_were(table: Path, one: Letters, two: Letters) -> None:
    """A rollback of a column that had none leaves none, and still embeds only rows that changed since."""
    columns.add(table, one.bind("text", "vector"), digest=False)
    columns.migrate(table, "vector", two, name="better")
    assert sorted(names(table))[:2] == ["better", "better__source_digest"]
    run(table, "UPDATE docs SET text = 'changed' WHERE id = 0")
    Letters.seen.clear()
    columns.migrations(table)[0].rollback()
    assert Letters.seen == ["changed"]
    assert right(table, 1.0)
    assert sorted(names(table)) == ["id", "other", "text", "vector"]


def test_finish_and_abandon_leave_nothing_behind(table: Path, one: Letters, two: Letters) -> None:
    """Neither a column nor a record; without `keep` a migration is finished with its switch."""
    columns.add(table, one.bind("text", "vector"))
    before = names(table)
    columns.migrate(table, "vector", two, switch=False).abandon()
    assert names(table) == before
    assert right(table, 1.0)
    columns.migrate(table, "vector", two).finish()
    assert sorted(names(table)) == sorted(before)
    assert columns.migrate(table, "vector", one, keep=False).state == "finished"
    assert sorted(names(table)) == sorted(before)
    assert right(table, 1.0)


def at_transactions(reached: Callable[[], None]) -> None:
    """Let transactions be steps."""
    from embedreg.engines.duckdb.columns.place import Place

    writing = Place.writing

    def counted(self: Place) -> Any:
        reached()
        return writing(self)

    Place.writing = counted  # type: ignore[method-assign]  # in a child alone


@pytest.mark.filterwarnings("ignore:lance is not fork-safe:UserWarning")  # where another test has loaded lance
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # since Python 3.12
def test_a_process_killed_between_transactions_is_continued_by_the_same_call(
    tmp_path: Path, one: Letters, two: Letters
) -> None:
    """At each transaction of add, migrate and rollback: `status` is right, and the calls go on."""
    deaths = 0
    for step in range(1, 40, 2):
        file = tmp_path / f"{step}.duckdb"
        run_new(file)
        table = file / "docs"

        def whole(table: Path = table) -> None:
            columns.add(table, one.bind("text", "vector"))
            columns.migrate(table, "vector", two)
            columns.migrations(table)[0].rollback()

        killed = died(whole, at_transactions, step)
        deaths += killed
        assert all(each.problem is None for each in columns.status(table))
        if not columns.status(table):
            columns.add(table, one.bind("text", "vector"))
        if killed:
            for found in columns.migrations(table):
                assert columns.migrate(table, "vector", two).state == "settled"
                found = columns.migrations(table)[0]
                found.rollback()
        assert right(table, 1.0), step
        assert sorted(names(table)) == ["id", "text", "vector", "vector__source_digest"], step
        if not killed:
            break
    assert deaths > 6


def run_new(file: Path) -> None:
    """Make a database of three rows."""
    with duckdb.connect(str(file)) as con:
        con.execute("CREATE TABLE docs AS SELECT * FROM (VALUES (1, 'alpha'), (2, NULL), (3, 'beta')) AS t(id, text)")


def test_an_index_is_told_before_anything_is_embedded(table: Path, one: Letters) -> None:
    """DuckDB alters no column of a table with an index."""
    run(table, "CREATE INDEX by_other ON docs (other)")
    with pytest.raises(StorageError, match=r"has an index \(by_other\)"):
        columns.add(table, one.bind("text", "vector"))
    assert Letters.seen == []


def test_an_open_connection_of_this_process_does_not_hinder(table: Path, one: Letters) -> None:
    """Reading and writing go through the same database instance."""
    with duckdb.connect(str(table.parent)) as con:
        columns.add(table, one.bind("text", "vector"))
        assert columns.status(table)[0].fresh == 4
        assert con.execute("SELECT count(vector) FROM docs").fetchone() == (4,)


def test_declarations_change_alone(table: Path, one: Letters, two: Letters) -> None:
    """`repoint` refuses a function of other vectors; `detach` keeps the column, `drop` does not."""

    @embedreg.register("same-letters")
    class Same(Letters):
        """The same vectors under another name."""

    columns.add(table, one.bind("text", "vector"))
    with pytest.raises(DriftError, match="rows have other vectors"):
        columns.repoint(table, "vector", two)
    assert columns.repoint(table, "vector", Same.create()).compared == 4
    [status] = columns.status(table)
    assert (status.function, status.fresh) == ("same-letters", 4)
    columns.detach(table, "vector", drop=True)
    assert names(table) == ["id", "text", "other"]
    columns.add(table, one.bind("text", "vector"))
    columns.detach(table, "vector")
    assert columns.status(table) == []
    assert "vector" in names(table)


def test_names_and_texts_are_quoted(tmp_path: Path, one: Letters) -> None:
    """A table and columns whose names are SQL."""
    file = tmp_path / "odd.duckdb"
    name, source = 'do"cs; DROP TABLE x', "te\"xt' --"
    with duckdb.connect(str(file)) as con:
        con.execute('CREATE TABLE "do""cs; DROP TABLE x" ("te""xt\' --" VARCHAR)')
        con.execute('INSERT INTO "do""cs; DROP TABLE x" VALUES (\'alpha\')')
    quoted = '"' + name.replace('"', '""') + '"'
    columns.add(file / quoted, one.bind(source, "vec'tor"))
    columns.migrate(file / quoted, "vec'tor", Letters.create(scale=3.0)).finish()
    assert columns.status(file / quoted)[0].fresh == 1


def test_a_hostile_record_is_refused_and_the_rows_are_still_counted(table: Path, one: Letters) -> None:
    """A comment that is not what embedreg writes renames nothing, and `status` says why."""
    columns.add(table, one.bind("text", "vector"))
    for text in ('{"id": "../x"}', "{" * 5000, '{"format": 1, "id": "ab", "what": "drop"}'):
        run(table, f"COMMENT ON COLUMN docs.other IS 'embedreg_change={text}'")
        [status] = columns.status(table)
        assert "is not what embedreg writes" in str(status.problem)
        assert status.fresh == 4
        with pytest.raises(EmbedregError, match="is not what embedreg writes"):
            columns.migrate(table, "vector", one)


def test_a_record_cannot_name_another_column_as_the_old_one(table: Path, one: Letters) -> None:
    """The old column is dropped at the end of a change: it is the one that the old declaration is of."""
    columns.add(table, one.bind("text", "vector"))
    columns.migrate(table, "vector", Letters.create(scale=3.0), switch=False)
    asked = "SELECT column_name, comment FROM duckdb_columns() WHERE comment LIKE '%embedreg_change%'"
    [(column, comment)] = run(table, asked)
    changed = comment.replace('"vector":"vector"', '"vector":"other"')
    assert changed != comment
    run(table, f"COMMENT ON COLUMN docs.{column} IS '{changed}'")
    with pytest.raises(EmbedregError, match="its old declaration is of another column"):
        columns.migrations(table)[0].switch()
    assert "other" in names(table)


def test_a_declaration_cannot_have_another_column_overwritten(table: Path, one: Letters) -> None:
    """A digest column that is the source is refused by name."""
    columns.add(table, one.bind("text", "vector"))
    run(table, "ALTER TABLE docs RENAME text TO text__source_digest")
    [(comment,)] = run(table, "SELECT comment FROM duckdb_columns() WHERE column_name = 'vector'")
    for old, new in (('"text"', '"text__source_digest"'), ('"vector__source_digest"', '"text__source_digest"')):
        comment = comment.replace(old, new)
    run(table, f"COMMENT ON COLUMN docs.vector IS '{comment}'")
    assert "it has another use" in str(columns.status(table)[0].problem)
    with pytest.raises(EmbedregError, match="it has another use"):
        columns.refresh(table, unstamped="recompute")


def test_rows_are_found_by_number(table: Path) -> None:
    """`take` gives rows in the order asked for; `scan` gives them all."""
    from embedreg.columns.opening import opened

    store = opened(table)
    every = [text for batch in store.scan(["text"], 2) for text in batch.column(0).to_pylist()]
    assert every == TEXTS
    assert store.take([3, 0, 3], ["text", "id"]).to_pylist() == [
        {"text": "gamma", "id": 3},
        {"text": "alpha", "id": 0},
        {"text": "gamma", "id": 3},
    ]


def test_an_audit_reads_a_database(table: Path, one: Letters) -> None:
    """The generic calls work on the store."""
    columns.add(table, one.bind("text", "vector"))
    [found] = columns.audit(table, candidates=[one])
    assert found.verdict == "sound"
    assert found.compared == 4


def test_a_migration_ends_whatever_became_of_its_columns(table: Path, one: Letters, two: Letters) -> None:
    """A source that was renamed, new vectors that were renamed or dropped: it is said, and there is a way out."""
    columns.add(table, one.bind("text", "vector"))
    before, all_names = run(table, "SELECT text, vector FROM docs ORDER BY ALL"), sorted(names(table))
    migration = columns.migrate(table, "vector", two, switch=False)
    run(table, "ALTER TABLE docs RENAME text TO body")
    assert (migration.state, migration.status.staged_rows) == ("ready", 0)
    with pytest.raises(StorageError, match="no longer has the column 'text': it was renamed or dropped"):
        migration.switch()
    migration.abandon()
    run(table, "ALTER TABLE docs RENAME body TO text")
    assert sorted(names(table)) == all_names
    migration = columns.migrate(table, "vector", two, switch=False)
    migration.switch()
    run(table, "ALTER TABLE docs DROP vector")
    with pytest.raises(StorageError, match="no longer has the column 'vector'"):
        migration.settle()
    migration.rollback()
    assert run(table, "SELECT text, vector FROM docs ORDER BY ALL") == before
    migration = columns.migrate(table, "vector", two, switch=False)
    migration.switch()
    run(table, "ALTER TABLE docs RENAME vector TO mine")
    migration.finish()
    assert {name.replace("mine", "vector") for name in names(table)} == set(all_names)


def test_staged_vectors_that_the_function_does_not_give_are_not_switched(table: Path, one: Letters) -> None:
    """A function that answers otherwise each time is found before anything changes."""
    columns.add(table, one.bind("text", "vector"))
    with pytest.raises(DriftError, match="is not what the function returns now"):
        columns.migrate(table, "vector", Fickle.create())
    assert columns.status(table)[0].function == "letters"
    [migration] = columns.migrations(table)
    assert migration.state == "staging"
    migration.abandon()
    assert right(table, 1.0)


@pytest.mark.parametrize("name", ["vector__next", "Vector__Previous", "vector__previous_source_digest"])
def test_a_users_column_of_a_needed_name_is_refused_before_anything_is_embedded(
    table: Path, one: Letters, two: Letters, name: str
) -> None:
    """It would be in the way of the switch, after all texts have been embedded; it is left as it is."""
    columns.add(table, one.bind("text", "vector"))
    run(table, f"ALTER TABLE docs ADD COLUMN {name} VARCHAR DEFAULT 'mine'")
    Letters.seen.clear()
    with pytest.raises(SchemaError, match=name):
        columns.migrate(table, "vector", two)
    assert Letters.seen == []
    assert columns.migrations(table) == []
    assert {value for (value,) in run(table, f"SELECT {name} FROM docs")} == {"mine"}
