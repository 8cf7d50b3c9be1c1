"""What a second run on a destination takes up, does again, refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.errors import BadRowsError, ConfigError, DriftError, SchemaError, StorageError
from embedreg.jobs import Job, JobReport
from tests.jobs import children
from tests.jobs.children import Logged
from tests.jobs.conftest import texts

OPTIONS: dict[str, Any] = {"piece_rows": 100, "batch_rows": 50}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the function writes down its inputs."""
    return tmp_path / "log"


@pytest.fixture
def run(dataset: Path, tmp_path: Path, log: Path) -> Callable[..., JobReport]:
    """Run the job from `dataset` to `out`."""

    def embed(**options: Any) -> JobReport:
        function = Logged(log=str(log), scale=options.pop("scale", 1.0))
        return embedreg.embed(dataset, tmp_path / "out", function.bind("text", "vector"), **{**OPTIONS, **options})

    return embed


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a dataset folder, in its files' order."""
    return ds.dataset(folder, format="parquet").to_table().to_pylist()


def vector(text: str) -> list[float]:
    """What the function gives for a text."""
    return [float(len(text)), float(sum(text.encode()))]


def test_a_folder_gives_a_folder(run: Callable, dataset: Path, tmp_path: Path, log: Path) -> None:
    """Each file keeps its place and name, or gets a number a piece; order, columns and the declaration are kept."""
    report = run()
    assert (report.rows, report.written, report.embedded, report.pieces) == (600, 600, 600, 7)
    out = tmp_path / "out"
    names = [str(path.relative_to(out)) for path in sorted(out.rglob("*.parquet"))]
    assert names == [*(f"lang=de/a-0000{n}.parquet" for n in range(3)), "lang=de/b.parquet"] + [
        f"lang=en/a-0000{n}.parquet" for n in range(3)
    ]
    assert rows(out) == [{**row, "vector": vector(row["text"])} for row in rows(dataset)]
    assert embedreg.functions_in(out)["vector"].function == Logged()
    declarations = {pq.read_schema(path).metadata[b"embedding_functions"] for path in out.rglob("*.parquet")}
    assert len(declarations) == 1
    assert json.loads((out / "_embedreg" / "manifest.json").read_text())["embedding_functions"] == json.loads(
        declarations.pop()
    )
    assert (
        ds.dataset(out, format="parquet", partitioning="hive").to_table(filter=ds.field("lang") == "de").num_rows == 300
    )
    assert len(children.embedded(log)) == 600


def test_a_job_that_is_done_is_done(run: Callable, log: Path) -> None:
    """Run again, nothing is embedded, and the report is that of the whole."""
    first, second = run(), run()
    assert (second.reused, second.rows, second.embedded) == (7, first.rows, first.embedded)
    assert len(children.embedded(log)) == 600


def test_new_inputs_are_added(run: Callable, dataset: Path, tmp_path: Path, log: Path) -> None:
    """A file that came since the last run is embedded, and only that."""
    run()
    pq.write_table(texts(1000, 10), dataset / "lang=fr.parquet")
    report = run()
    assert (report.rows, report.reused, report.pieces) == (610, 7, 8)
    assert children.embedded(log)[600:] == [f"text number {n}" for n in range(1000, 1010)]
    assert len(rows(tmp_path / "out")) == 610


def test_a_changed_input_is_done_again(run: Callable, dataset: Path, tmp_path: Path, log: Path) -> None:
    """Only its pieces are, and those that it no longer has are gone."""
    run()
    pq.write_table(texts(2000, 120), dataset / "lang=en" / "a.parquet", row_group_size=50)
    report = run()
    assert (report.rows, report.reused) == (420, 4)
    assert children.embedded(log)[600:] == [f"text number {n}" for n in range(2000, 2120)]
    assert rows(tmp_path / "out") == [{**row, "vector": vector(row["text"])} for row in rows(dataset)]


def test_an_input_of_the_same_size_and_another_time_is_done_again(run: Callable, dataset: Path, log: Path) -> None:
    """Size and time are compared: content that changed without its size is not missed."""
    run()
    path = dataset / "lang=de" / "b.parquet"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    assert run().reused == 6
    assert len(children.embedded(log)) == 650


def test_an_input_that_is_gone_is_refused_or_pruned(run: Callable, dataset: Path, tmp_path: Path) -> None:
    """What was embedded is not thrown away by itself; with prune its output goes."""
    run()
    (dataset / "lang=de" / "b.parquet").unlink()
    with pytest.raises(StorageError, match=r"lang=de/b\.parquet") as caught:
        run()
    assert "--prune" in str(caught.value)
    assert (tmp_path / "out" / "lang=de" / "b.parquet").exists()
    report = run(prune=True)
    assert report.removed == ("lang=de/b.parquet",)
    assert len(rows(tmp_path / "out")) == 550


@pytest.mark.parametrize("damage", ["removed", "cut", "emptied"])
def test_an_output_that_is_not_there_whole_is_done_again(run: Callable, tmp_path: Path, log: Path, damage: str) -> None:
    """A record whose file is missing, or shorter than it was, counts for nothing."""
    run()
    before = rows(tmp_path / "out")
    path = tmp_path / "out" / "lang=de" / "b.parquet"
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100] if damage == "cut" else b"")
    assert run().reused == 6
    assert len(children.embedded(log)) == 650
    assert rows(tmp_path / "out") == before


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "piece"', b"\0" * 400, b"[]", b'{"format": 99}'])
def test_a_record_that_cannot_be_read_counts_for_none(run: Callable, tmp_path: Path, log: Path, content: bytes) -> None:
    """Torn by a power cut, or of another version: its piece is done again, and no other."""
    run()
    before = rows(tmp_path / "out")
    record = tmp_path / "out" / "_embedreg" / "ledger" / "lang=de" / "b.parquet.json"
    record.write_bytes(content)
    assert run().reused == 6
    assert len(children.embedded(log)) == 650
    assert rows(tmp_path / "out") == before


def test_a_lost_plan_is_made_again(run: Callable, tmp_path: Path) -> None:
    """The plan only saves looking at inputs again."""
    run()
    (tmp_path / "out" / "_embedreg" / "plan.json").write_bytes(b"torn")
    assert run().reused == 7


# -- one configuration -------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(dataset: Path, tmp_path: Path, log: Path) -> None:
    """A job that got two pieces done."""
    function = Logged(log=str(log)).bind("text", "vector")
    with Job.open(dataset, tmp_path / "out", function, **OPTIONS) as job:
        for piece in job.pending()[:2]:
            job.record(job.work.run(piece))


def test_another_configuration_is_refused(interrupted: None, run: Callable, tmp_path: Path, log: Path) -> None:
    """A column never holds two kinds of vectors, finished or not; nothing is touched."""
    before = sorted((tmp_path / "out").rglob("*"))
    with pytest.raises(DriftError, match="two kinds of vectors") as caught:
        run(scale=2.0)
    assert "--fresh" in str(caught.value)
    assert sorted((tmp_path / "out").rglob("*")) == before
    assert len(children.embedded(log)) == 200


def test_another_function_under_the_same_configuration_is_refused(
    interrupted: None, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe is compared before a resumed run writes: code that changed meanwhile shows there."""
    monkeypatch.setattr(Logged, "generate_embeddings", lambda self, texts: [[1.0, 1.0] for _ in texts])
    with pytest.raises(DriftError, match="no longer returns the stored vectors"):
        run()
    assert len(rows(tmp_path / "out")) == 200


def test_another_column_is_refused(interrupted: None, dataset: Path, tmp_path: Path) -> None:
    """So is filling another column, or more of them, in the middle."""
    two = [Logged().bind("text", "vector"), Logged().bind("text", "vector_2")]
    for declaration in (Logged().bind("text", "vector_2"), two):
        with pytest.raises(DriftError, match="was begun to fill vector"):
            embedreg.embed(dataset, tmp_path / "out", declaration, **OPTIONS)


def test_other_columns_of_the_source_are_refused(interrupted: None, run: Callable, dataset: Path) -> None:
    """A file with one column more would give a dataset of two schemas."""
    pq.write_table(texts(0, 5).append_column("extra", pa.array(range(5))), dataset / "new.parquet")
    with pytest.raises(SchemaError, match="extra: int64"):
        run()


def test_fresh_starts_anew(interrupted: None, run: Callable, tmp_path: Path, log: Path) -> None:
    """What the interrupted run has done is dropped, and another configuration is welcome."""
    report = run(scale=2.0, resume=False)
    assert (report.reused, report.rows) == (0, 600)
    assert rows(tmp_path / "out")[0]["vector"][0] == 2 * len("text number 0")
    assert len(children.embedded(log)) == 800


def test_runtime_fields_may_change(interrupted: None, run: Callable, dataset: Path, tmp_path: Path) -> None:
    """What cannot change a vector may be another in each run: here, where the inputs are written down."""
    other = tmp_path / "other.log"
    report = embedreg.embed(dataset, tmp_path / "out", Logged(log=str(other)).bind("text", "vector"), **OPTIONS)
    assert report.reused == 2
    assert len(children.embedded(other)) == 400


def test_pieces_are_those_that_the_job_began_with(interrupted: None, run: Callable) -> None:
    """Another `piece_rows` in the middle changes nothing, and loses nothing."""
    assert run(piece_rows=10).reused == 2


def test_what_was_declared_of_the_data_is_kept(dataset: Path, tmp_path: Path) -> None:
    """Vectors that are given stay; what another configuration made is not filled up by this one."""
    made = embedreg.embed_table(texts(0, 20), Logged(scale=3.0).bind("text", "vector"))
    (tmp_path / "mixed").mkdir()
    pq.write_table(made, tmp_path / "mixed" / "a.parquet")
    own = Logged(scale=3.0).bind("text", "vector")
    report = embedreg.embed(tmp_path / "mixed", tmp_path / "kept", own)
    assert (report.given, report.embedded) == (20, 0)
    other = embedreg.embed_table(texts(20, 20), Logged(scale=5.0).bind("text", "vector"))
    pq.write_table(other, tmp_path / "mixed" / "b.parquet")
    with pytest.raises(DriftError, match="already holds vectors of 'logged'"):
        embedreg.embed(tmp_path / "mixed", tmp_path / "refused", own)


# -- bad rows ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_bad_rows(dataset: Path) -> Path:
    """The dataset with three rows that fail, in two files."""
    for name, bad in (("lang=de/a.parquet", (3, 120)), ("lang=en/a.parquet", (299,))):
        table = pq.read_table(dataset / name)
        column = [f"bad {n}" if n in bad else text for n, text in enumerate(table.column("text").to_pylist())]
        table = table.select(["id"]).append_column("text", pa.array(column))
        pq.write_table(table, dataset / name, row_group_size=50)
    return dataset


def test_bad_rows_are_listed_in_a_file(run: Callable, with_bad_rows: Path, tmp_path: Path) -> None:
    """Each by its input, its row there and the reason, without the input itself."""
    report = run(on_error="null")
    assert (report.bad_rows, report.rows, report.written) == (3, 600, 600)
    expected = [("lang=de/a.parquet", 3), ("lang=de/a.parquet", 120), ("lang=en/a.parquet", 299)]
    assert [(name, row.row) for name, row in report.bad] == expected
    lines = Path(report.bad_rows_path or "").read_text().splitlines()
    assert [(line["input"], line["row"]) for line in map(json.loads, lines)] == expected
    assert all(json.loads(line)["reason"] == "it says bad" for line in lines)
    assert rows(tmp_path / "out")[3]["vector"] is None


def test_bad_rows_can_be_dropped(run: Callable, with_bad_rows: Path, tmp_path: Path) -> None:
    """They are missing in the output, and counted."""
    report = run(on_error="drop")
    assert (report.rows, report.written, report.bad_rows) == (600, 597, 3)
    assert len(rows(tmp_path / "out")) == 597


def test_bad_rows_stop_a_job_and_another_policy_goes_on(run: Callable, with_bad_rows: Path, log: Path) -> None:
    """Under "raise" the piece is not written; what was done stays, and counts under any policy."""
    with pytest.raises(BadRowsError, match=r"lang=de/a\.parquet: .*row 3"):
        run()
    assert run(on_error="null").bad_rows == 3


def test_bad_rows_are_counted_over_all_runs(run: Callable, with_bad_rows: Path, log: Path) -> None:
    """The limit is the job's: a run that is started again has what is left of it."""
    with pytest.raises(BadRowsError, match="2 rows of the job have failed"):
        run(on_error="null", max_bad_rows=1)
    with pytest.raises(BadRowsError, match="3 rows of the job have failed"):
        run(on_error="null", max_bad_rows=2)
    done = len(children.embedded(log))
    report = run(on_error="null", max_bad_rows=3)
    assert (report.bad_rows, report.reused) == (3, 6)
    assert len(children.embedded(log)) == done + 100  # the last piece alone


def test_bad_rows_are_dropped_or_kept_in_the_whole(run: Callable, with_bad_rows: Path) -> None:
    """One policy for all bad rows of a dataset: changing it in the middle is refused."""
    run(on_error="null")
    with pytest.raises(ConfigError, match="on_error='null'"):
        run(on_error="drop")


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_somebody_else_is_refused(run: Callable, tmp_path: Path) -> None:
    """A destination that holds other files would become a mixture."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    for force in (False, True):
        with pytest.raises(StorageError, match=r"mine\.txt"):
            run(force=force)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_destination_in_the_source_is_refused(dataset: Path, tmp_path: Path) -> None:
    """The next run would read what this one wrote."""
    declaration = Logged().bind("text", "vector")
    for dst in (dataset / "out", dataset, dataset / "lang=de"):
        with pytest.raises(StorageError, match="is being read"):
            embedreg.embed(dataset, dst, declaration)
    with pytest.raises(StorageError, match="is being read"):
        embedreg.embed(dataset / "lang=de" / "a.parquet", dataset / "lang=de" / "a.parquet", declaration, force=True)


def test_what_was_never_begun_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    """A job that fails before its first piece is done removes the folders that it made."""
    for dst in ("new/deep/out", "new/deep/out.parquet", "new/db/out.lance"):
        with pytest.raises(embedreg.EmbedregError):
            embedreg.embed(dataset, tmp_path / dst, Logged().bind("txt", "vector"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_force_replaces_a_dataset_that_is_whole(run: Callable, tmp_path: Path, log: Path) -> None:
    """It is made anew; one that is not whole yet is gone on with."""
    run()
    assert run(force=True, scale=2.0).reused == 0
    assert len(children.embedded(log)) == 1200


def test_names_that_would_clash_are_kept_apart(tmp_path: Path) -> None:
    """Files that differ in their endings only, and names that numbers would disturb, keep rows and order."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(("a-00000.parquet", "a.parquet", "a.pq")):
        pq.write_table(texts(number * 10, 10), folder / name, row_group_size=5)
    embedreg.embed(folder, tmp_path / "out", Logged().bind("text", "vector"), piece_rows=5)
    assert [row["id"] for row in rows(tmp_path / "out")] == list(range(30))
    assert (tmp_path / "out" / "a.parquet-00001.parquet").exists()


def test_an_empty_file_stays_one(dataset: Path, run: Callable, tmp_path: Path) -> None:
    """A file without rows is a file without rows, with the schema of the others."""
    pq.write_table(texts(0, 0), dataset / "empty.parquet")
    run()
    schema = pq.read_schema(tmp_path / "out" / "empty.parquet")
    assert schema.names == ["id", "text", "vector"]
    assert pq.read_metadata(tmp_path / "out" / "empty.parquet").num_rows == 0


def test_a_manifest_speaks_for_files_that_lost_their_declaration(run: Callable, tmp_path: Path, log: Path) -> None:
    """A dataset that polars wrote anew is filled up by its own function, and by no other."""
    import polars as pl

    run()
    for path in (tmp_path / "out").rglob("*.parquet"):
        frame = pl.read_parquet(path)
        frame.with_columns(vector=pl.when(pl.col("id") % 2 == 0).then(pl.col("vector"))).write_parquet(path)
        assert b"embedding_functions" not in (pq.read_schema(path).metadata or {})
    report = embedreg.embed(tmp_path / "out", tmp_path / "again")
    assert (report.given, report.embedded) == (300, 300)
    assert [row["vector"] for row in rows(tmp_path / "again")] == [vector(f"text number {n}") for n in range(600)]
    with pytest.raises(DriftError, match="already holds vectors of 'logged'"):
        embedreg.embed(tmp_path / "out", tmp_path / "other", Logged(scale=2.0).bind("text", "vector"))


def test_a_source_that_declares_nothing_is_refused(dataset: Path, tmp_path: Path) -> None:
    """Without a declaration in the call or the data, it is an error."""
    with pytest.raises(embedreg.EmbedregError, match="no declaration for"):
        embedreg.embed(dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "invalid on_error"),
        ({"batch_rows": 0}, "batch_rows=0"),
        ({"piece_rows": -1}, "piece_rows=-1"),
        ({"piece_rows": True}, "piece_rows=True"),
    ],
)
def test_policies_that_are_none_are_refused(run: Callable, options: dict[str, Any], message: str) -> None:
    """Before anything is looked at."""
    with pytest.raises(ConfigError, match=message):
        run(**options)


def test_progress_is_that_of_the_whole(interrupted: None, run: Callable) -> None:
    """It begins with what was done before, never goes back, and ends with all."""
    told: list[tuple[int, int | None]] = []
    run(progress=lambda rows, total: told.append((rows, total)))
    assert told[0] == (200, 600)
    assert told[-1] == (600, 600)
    assert [rows for rows, _ in told] == sorted(rows for rows, _ in told)
    assert len(told) > 10


def test_progress_of_pieces_that_run_at_once_does_not_go_back(dataset: Path, tmp_path: Path) -> None:
    """The rows of pieces that are done, and not recorded yet, stay counted when the first of them is."""
    shown: list[int] = []
    declared = Logged().bind("text", "vector")
    with Job.open(
        dataset, tmp_path / "out", declared, progress=lambda rows, total: shown.append(rows), **OPTIONS
    ) as job:
        outcomes = [job.work.run(piece) for piece in job.pending()[:3]]
        done = sum(outcome.rows for outcome in outcomes)
        job.advance(done)
        for outcome in outcomes:
            job.record(outcome)
    assert shown == [0, done, done, done, done]


def test_a_cache_makes_what_is_done_again_cheap(run: Callable, tmp_path: Path, log: Path) -> None:
    """With a vector cache, starting anew embeds nothing twice."""
    run(cache=tmp_path / "cache")
    report = run(cache=tmp_path / "cache", resume=False)
    assert (report.embedded, report.cached) == (600, 600)
    assert len(children.embedded(log)) == 600
