"""Columns of templates in files, Lance tables and DuckDB: texts, vectors and digests are kept together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg import columns
from embedreg.engines import lancedb as ours
from embedreg.errors import MissingColumnError, SchemaError

TEXT = "{title}\n\n{body}"
TITLES = ["a", None, "c", None, "e"]
BODIES = ["one", "two", None, None, "five"]


def hashing(**fields: Any) -> embedreg.EmbeddingFunction:
    """A function of eight dimensions."""
    return embedreg.get("hashing").create(dim=8, **fields)


def bound() -> Any:
    """The declaration."""
    return hashing().bind(template=TEXT, vector="vector")


def table() -> pa.Table:
    """Five rows, of which one has neither title nor body."""
    return pa.table({"id": range(5), "title": TITLES, "body": BODIES})


class Data:
    """A table in one engine, edited as another program would."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.path = {"lance": folder / "t.lance", "duckdb": folder / "d.duckdb" / "t"}.get(kind, folder / f"t.{kind}")
        if kind == "lance":
            lancedb.connect(folder).create_table("t", table())
        elif kind == "duckdb":
            with duckdb.connect(str(self.path.parent)) as con:
                con.register("rows", table())
                con.execute("CREATE TABLE t AS SELECT * FROM rows")
        else:
            self._write(table())

    def _write(self, made: pa.Table) -> None:
        if self.kind == "parquet":
            pq.write_table(made, self.path)
            return
        with pa.OSFile(str(self.path), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
            writer.write_table(made)

    def read(self) -> pa.Table:
        """Return all rows by their ids."""
        if self.kind == "lance":
            made = lancedb.connect(self.path.parent).open_table("t").to_arrow()
        elif self.kind == "duckdb":
            with duckdb.connect(str(self.path.parent)) as con:
                made = con.sql("SELECT * FROM t").to_arrow_table()
        elif self.kind == "parquet":
            made = pq.ParquetFile(self.path).read()
        else:
            with pa.OSFile(str(self.path)) as file:
                made = pa.ipc.open_file(file).read_all()
        return made.sort_by("id")

    def edit(self, row: int, **values: str | None) -> None:
        """Change title or body of a row; nothing else is touched."""
        if self.kind == "lance":
            lancedb.connect(self.path.parent).open_table("t").update(where=f"id = {row}", values=values)
        elif self.kind == "duckdb":
            with duckdb.connect(str(self.path.parent)) as con:
                for name, value in values.items():
                    con.execute(f"UPDATE t SET {name} = ? WHERE id = ?", [value, row])
        else:
            made = self.read()
            for name, value in values.items():
                column = made[name].to_pylist()
                column[row] = value
                made = made.set_column(made.schema.get_field_index(name), name, pa.array(column, pa.string()))
            self._write(made)


@pytest.fixture(params=["parquet", "arrow", "lance", "duckdb"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Data:
    """The rows in one engine."""
    return Data(request.param, tmp_path)


def expected(titles: list[str | None], bodies: list[str | None]) -> list[str | None]:
    """Return the rendered texts."""
    return [
        None if title is None and body is None else f"{title or ''}\n\n{body or ''}"
        for title, body in zip(titles, bodies, strict=True)
    ]


def right(data: Data, titles: list[str | None], bodies: list[str | None]) -> None:
    """Check that texts and vectors are those of title and body, and that every row is fresh."""
    made = data.read()
    texts = expected(titles, bodies)
    assert made["vector__source"].to_pylist() == texts
    vectors = embedreg.embed_column(hashing(), pa.array(texts)).to_arrow().to_pylist()
    assert [None if each is None else [*each] for each in made["vector"].to_pylist()] == vectors
    [status] = columns.status(data.path)
    assert (status.problem, status.fresh, status.null_source) == (None, 4, 1)


def test_texts_vectors_and_digests_are_written_together(data: Data) -> None:
    """`add` renders; an edited title or body is stale until `refresh`, which embeds those rows alone."""
    report = columns.add(data.path, bound())
    assert (report.rows, report.embedded) == (5, 4)
    right(data, TITLES, BODIES)
    data.edit(0, title="new")
    data.edit(4, body="changed")
    [status] = columns.status(data.path)
    assert (status.fresh, status.stale) == (2, 2)
    [dry] = columns.refresh(data.path, dry_run=True)
    assert dry.written == 2
    [report] = columns.refresh(data.path)
    assert (report.embedded, report.written) == (2, 2)
    titles, bodies = ["new", *TITLES[1:]], [*BODIES[:4], "changed"]
    right(data, titles, bodies)
    assert columns.refresh(data.path)[0].embedded == 0
    data.edit(1, body=None)
    columns.refresh(data.path)
    made = data.read()
    for name in ("vector", "vector__source", "vector__source_digest"):
        assert made[name].to_pylist()[1] is None


def test_without_digests_a_changed_text_is_found_too(data: Data) -> None:
    """The text that is stored beside the vector says what was embedded."""
    columns.add(data.path, bound(), digest=False)
    data.edit(0, title="new")
    [status] = columns.status(data.path)
    assert (status.stale, status.unstamped, status.null_source) == (1, 3, 1)
    [report] = columns.refresh(data.path)
    assert (report.embedded, report.notes) == (1, ())
    assert data.read()["vector__source"].to_pylist()[0] == "new\n\none"
    assert columns.status(data.path)[0].stale == 0


def test_another_model_keeps_the_template_and_detach_drops_the_texts(data: Data) -> None:
    """A migrated column is of the same template; `detach --drop` leaves the table as it was."""
    columns.add(data.path, bound())
    migration = columns.migrate(data.path, "vector", hashing(seed=1))
    migration.finish()
    read = embedreg.functions_in(data.path) if data.kind != "duckdb" else None
    if read is not None:
        assert (read["vector"].template, read["vector"].function) == (TEXT, hashing(seed=1))
    assert data.read()["vector__source"].to_pylist() == expected(TITLES, BODIES)
    assert columns.status(data.path)[0].fresh == 4
    data.edit(0, title="new")
    assert columns.refresh(data.path)[0].embedded == 1
    columns.detach(data.path, "vector", drop=True)
    assert data.read().schema.names == ["id", "title", "body"]


def test_what_is_in_the_way_is_refused(data: Data) -> None:
    """Missing columns, and a column where the texts would go, are errors before anything is written."""
    before = data.read()
    with pytest.raises(MissingColumnError, match="'headline'"):
        columns.add(data.path, hashing().bind(template="{headline}", vector="vector"))
    columns.add(data.path, hashing().bind(template="{title}", vector="one"), digest=False)
    columns.detach(data.path, "one")
    if data.kind == "lance":
        lancedb.connect(data.path.parent).open_table("t").drop_columns(["one"])
    with pytest.raises(SchemaError, match="has a column 'one"):
        columns.add(data.path, hashing().bind(template="{title}", vector="one"))
    assert data.read().num_rows == before.num_rows


def test_lancedb_add_renders_and_stock_add_fails_loudly(tmp_path: Path) -> None:
    """A LanceModel and a Schema store the template; `engines.lancedb.add` renders; `table.add` without texts raises."""
    from lancedb.pydantic import LanceModel

    fn = hashing()

    class Stock(LanceModel):
        title: str | None
        body: str | None
        vector__source: str | None = fn.SourceField(template=TEXT)
        vector: embedreg.Vector(8) = fn.VectorField()

    class Article(embedreg.Schema):
        title: str | None
        body: str | None
        vector__source: str | None = fn.SourceField(template=TEXT)
        vector: embedreg.Vector(8) = fn.VectorField()

    db = lancedb.connect(tmp_path)
    rows = [{"title": title, "body": body} for title, body in zip(TITLES, BODIES, strict=True)]
    for name, made in (
        ("stock", db.create_table("stock", schema=Stock)),
        ("ours", ours.create_table(db, "ours", Article)),
    ):
        assert embedreg.functions_in(made)["vector"].template == TEXT
        with pytest.raises(Exception, match="vector__source"):
            made.add(rows)
        assert made.count_rows() == 0
        ours.add(made, rows)
        assert made.to_arrow()["vector__source"].to_pylist() == expected(TITLES, BODIES)
        found = made.search("c\n\n").limit(1).to_list()
        assert found[0]["title"] == "c"
        again = ours.create_table(db, name, Article, mode="exist_ok")
        assert again.count_rows() == 5
        ours.add(made, [{"title": "without body"}])  # a column that may be null, and the rows lack
        assert made.to_arrow()["vector__source"].to_pylist()[5] == "without body\n\n"

    class Other(embedreg.Schema):
        title: str | None
        body: str | None
        vector__source: str | None = fn.SourceField(template="{title}")
        vector: embedreg.Vector(8) = fn.VectorField()

    with pytest.raises(SchemaError, match="another template"):
        ours.create_table(db, "ours", Other, mode="exist_ok")
