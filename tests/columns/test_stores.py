"""What the stores of columns have in common: a call has the same outcome on a LanceDB table, a file and in DuckDB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg import columns
from embedreg.errors import ConfigError, EmbedregError, StorageError

hashing = embedreg.get("hashing").create


def _lance(folder: Path, table: pa.Table) -> str:
    lancedb = pytest.importorskip("lancedb")
    lancedb.connect(folder / "db").create_table("t", table)
    return str(folder / "db" / "t.lance")


def _parquet(folder: Path, table: pa.Table) -> str:
    pq.write_table(table, folder / "t.parquet")
    return str(folder / "t.parquet")


def _duckdb(folder: Path, table: pa.Table) -> str:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(folder / "t.duckdb") as con:
        con.register("given", table)
        con.execute("CREATE TABLE t AS SELECT * FROM given")
    return str(folder / "t.duckdb" / "t")


@pytest.fixture(params=[_lance, _parquet, _duckdb], ids=["lance", "parquet", "duckdb"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[pa.Table], str]:
    """Return a function that stores a table, and returns what it is called."""
    return lambda table: request.param(tmp_path, table)


@pytest.fixture
def data(make: Callable[[pa.Table], str]) -> str:
    """Three texts with the vectors of `hashing`."""
    path = make(pa.table({"id": range(3), "text": ["pay the bill", "call home", "buy milk"]}))
    columns.add(path, hashing(dim=16).bind("text", "vector"))
    return path


@pytest.mark.parametrize("end", ["finish", "rollback", "abandon"])
def test_a_migration_ends_once(data: str, end: str) -> None:
    """The same end again does nothing; every other call is refused, and says how it has ended."""
    migration = columns.migrate(data, "vector", hashing(dim=16, seed=1), switch=end != "abandon")
    getattr(migration, end)()
    state = migration.state
    getattr(migration, end)()
    assert state == migration.state == {"finish": "finished", "rollback": "rolled back", "abandon": "abandoned"}[end]
    for other in {"run", "switch", "settle", "finish", "rollback", "abandon"} - {end}:
        with pytest.raises(StorageError, match=f"has ended: it was {state}"):
            getattr(migration, other)()
    [found] = columns.status(data)
    assert (found.fresh, found.migration) == (3, None)
    assert found.settings["seed"] == ("1" if end == "finish" else "0")


def test_another_end_of_an_ended_migration_is_refused_in_another_process(data: str) -> None:
    """A second handle, as another process has one, does not report an end that was not its own."""
    migration = columns.migrate(data, "vector", hashing(dim=16, seed=1))
    [other] = columns.migrations(data)
    assert other.state == "settled"
    migration.finish()
    with pytest.raises(StorageError, match="another process has finished it"):
        other.rollback()
    assert columns.status(data)[0].settings["seed"] == "1"


def test_a_migration_to_the_same_function_is_refused(data: str) -> None:
    """Nothing would change, at the price of all rows; under another name it is a rename, and allowed."""
    with pytest.raises(ConfigError, match="declared with this function already"):
        columns.migrate(data, "vector", hashing(dim=16))
    assert columns.migrations(data) == []
    columns.migrate(data, "vector", hashing(dim=16), name="other").finish()
    assert [found.vector for found in columns.status(data)] == ["other"]


@pytest.mark.parametrize("staged", [True, False])
def test_a_column_is_not_detached_while_it_is_migrated(data: str, staged: bool) -> None:
    """Before the switch as after it; the declaration stays, and the migration goes on."""
    migration = columns.migrate(data, "vector", hashing(dim=16, seed=1), switch=not staged)
    for drop in (False, True):
        with pytest.raises(EmbedregError, match="migrat"):
            columns.detach(data, "vector", drop=drop)
    assert [found.vector for found in columns.status(data)] == ["vector"]
    (migration.abandon if staged else migration.finish)()
    columns.detach(data, "vector")
    assert columns.status(data) == []


def test_each_step_has_its_turn(data: str) -> None:
    """A step before its time, or after it, is refused by the state that it finds."""
    migration = columns.migrate(data, "vector", hashing(dim=16, seed=1), switch=False)
    for early in ("settle", "finish", "rollback"):
        with pytest.raises(StorageError, match="not switched yet: it is ready"):
            getattr(migration, early)()
    migration.switch()
    with pytest.raises(StorageError, match="is switched, not settled"):
        migration.finish()
    for late in ("run", "abandon"):
        with pytest.raises(StorageError, match="is switched: its new vectors are in place"):
            getattr(migration, late)()
    migration.settle()
    migration.finish()


def test_a_dry_run_of_repoint_declares_nothing(data: str) -> None:
    """The sample is compared, and the declaration is as before."""
    before = columns.status(data)
    found = columns.repoint(data, "vector", hashing(dim=16), dry_run=True)
    assert (found.compared, found.written) == (3, None)
    assert found.lowest > 0.999
    assert columns.status(data) == before


def test_what_a_found_migration_embeds_goes_through_a_cache(data: str, tmp_path: Path) -> None:
    """`migrations(data, cache=...)` gives handles that embed as `migrate` with these arguments would."""
    columns.migrate(data, "vector", hashing(dim=16, seed=1), switch=False)
    rows: list[int] = []
    [found] = columns.migrations(data, cache=tmp_path / "kept.db", progress=lambda done, _: rows.append(done))
    found.switch()
    assert (tmp_path / "kept.db").exists()
    assert found.settle().written == 0
    with pytest.raises(ConfigError, match="unknown argument 'cash'"):
        columns.migrations(data, cash=1)


@pytest.mark.parametrize(
    "texts",
    [pa.array([], pa.string()), pa.array([None], pa.string()), pa.array(["a", None, "", "b"], pa.string_view())],
    ids=["no rows", "no text", "views"],
)
def test_a_column_without_texts_and_one_of_views(make: Callable[[pa.Table], str], texts: pa.Array) -> None:
    """Added, migrated, rolled back and audited like any other."""
    path = make(pa.table({"id": pa.array(range(len(texts)), pa.int64()), "text": texts}))
    columns.add(path, hashing(dim=8).bind("text", "vector"))
    columns.migrate(path, "vector", hashing(dim=12)).rollback()
    [found] = columns.status(path)
    assert (found.rows, found.todo) == (len(texts), 0)
    assert columns.audit(path)[0].verdict in ("sound", "unknown")
