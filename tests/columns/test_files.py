"""A vector column of Parquet and Arrow files: added, kept fresh, migrated and rolled back, also by killed processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg import columns
from embedreg.declaration import manifest
from embedreg.errors import ConfigError, DriftError, EmbedregError, SchemaError, StorageError
from tests.columns.letters import Fickle, Letters, died, registered, vector_of

DIGEST = "vector__source_digest"


@pytest.fixture(autouse=True)
def functions() -> None:
    """The functions, registered, with nothing counted."""
    registered()


@pytest.fixture
def one() -> Letters:
    return Letters.create(scale=1.0)


@pytest.fixture
def two() -> Letters:
    return Letters.create(scale=2.0)


TEXTS = [["alpha", "beta", None], ["gamma", "", "delta"], ["epsilon"]]


def write(path: Path, texts: list[str | None], **more: Any) -> None:
    """Write a file in the format of its name."""
    table = pa.table({"id": pa.array(range(len(texts)), pa.int32()), "text": pa.array(texts, pa.string()), **more})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, compression="zstd", row_group_size=2)
        return
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read(path: Path) -> pa.Table:
    """Read a file in the format of its name."""
    if path.suffix == ".parquet":
        return pq.ParquetFile(path).read()
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


@pytest.fixture(params=["parquet", "arrow"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of three files, one in a folder below."""
    data = tmp_path / "data"
    for name, texts in zip(("a", "b", "below/c"), TEXTS, strict=True):
        write(data / f"{name}.{request.param}", texts)
    return data


def files(data: Path) -> list[Path]:
    """Return the data files."""
    return (
        [data] if data.is_file() else sorted(p for p in data.rglob("*.*") if "_embedreg" not in p.parts and p.is_file())
    )


def rows(data: Path) -> list[tuple[Any, Any]]:
    """Return text and vector of each row."""
    return [
        (row["text"], row.get("vector"))
        for path in files(data)
        for row in read(path)
        .select([name for name in ("text", "vector") if name in read(path).schema.names])
        .to_pylist()
    ]


def right(data: Path, scale: float) -> bool:
    """Return whether each row has the vector of its own text."""
    return all(vector == vector_of(text, scale) for text, vector in rows(data))


def left(data: Path) -> list[str]:
    """Return the working files that are left."""
    beside = data.parent / f".{data.name}.embedreg"
    found = [path for root in (data / "_embedreg", beside) if root.exists() for path in root.rglob("*")]
    return [path.name for path in found if path.is_file() and path.name != "manifest.json"]


def test_a_column_is_added_to_every_file_of_a_folder(folder: Path, one: Letters) -> None:
    """Each text is embedded, each row is fresh, other columns and folders stay, nothing else is left behind."""
    before = {path: read(path).drop_columns([]) for path in files(folder)}
    report = columns.add(folder, one.bind("text", "vector"))
    assert (report.rows, report.embedded, report.written) == (7, 5, 6)
    assert sorted(Letters.seen) == ["alpha", "beta", "delta", "epsilon", "gamma"]
    assert right(folder, 1.0)
    assert left(folder) == []
    for path, table in before.items():
        made = read(path)
        assert made.select(["id", "text"]).equals(table)
        assert embedreg.functions_in(path)["vector"].function == one
    [status] = columns.status(folder)
    assert (status.rows, status.fresh, status.null_source, status.todo) == (7, 6, 1, 0)
    with pytest.raises(SchemaError, match="has a column 'vector' already"):
        columns.add(folder, one.bind("text", "vector"))


def test_a_parquet_file_keeps_its_compression(tmp_path: Path, one: Letters) -> None:
    """A single file is replaced by one of the same format and compression."""
    path = tmp_path / "one.parquet"
    write(path, TEXTS[0])
    columns.add(path, one.bind("text", "vector"))
    footer = pq.ParquetFile(path).metadata
    assert {footer.row_group(0).column(n).compression for n in range(2)} == {"ZSTD"}
    assert right(path, 1.0)
    assert [each.name for each in tmp_path.iterdir()] == ["one.parquet"]


def edited(path: Path, changes: dict[int, str], **more: Any) -> None:
    """Change some texts of a file as another program would, keeping all columns."""
    table = read(path)
    texts = [changes.get(n, text) for n, text in enumerate(table["text"].to_pylist())]
    table = table.set_column(table.schema.get_field_index("text"), "text", pa.array(texts, pa.string()))
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def test_refresh_embeds_what_changed_and_rewrites_only_those_files(folder: Path, one: Letters) -> None:
    """Changed texts, rows without a vector and new files are embedded; files of fresh rows are not touched."""
    columns.add(folder, one.bind("text", "vector"))
    a, b, c = files(folder)
    edited(b, {0: "changed"})
    write(folder / f"new{a.suffix}", ["new", "alpha"])
    [status] = columns.status(folder)
    assert (status.fresh, status.stale, status.empty) == (5, 1, 2)
    before = {path: path.read_bytes() for path in (a, c)}
    Letters.seen.clear()
    [dry] = columns.refresh(folder, dry_run=True)
    assert (dry.dry_run, dry.embedded, Letters.seen) == (True, 3, [])
    [report] = columns.refresh(folder)
    assert sorted(Letters.seen) == ["alpha", "changed", "new"]
    assert report.embedded == 3
    assert {path: path.read_bytes() for path in (a, c)} == before
    assert right(folder, 1.0)
    assert columns.status(folder)[0].todo == 0
    Letters.seen.clear()
    assert columns.refresh(folder)[0].embedded == 0
    assert Letters.seen == []


def test_unstamped_vectors_are_verified_by_a_sample(tmp_path: Path, one: Letters, two: Letters) -> None:
    """Vectors without digests are stamped if a sample agrees, and made anew if not; "trust" embeds nothing."""
    texts = [f"text {n}" for n in range(50)]
    right_ones = pa.array([[len(text), ord(text[0])] for text in texts], pa.list_(pa.float32(), 2))
    for how, scale, embedded, stamped in [("verify", 1, 10, 50), ("verify", -1, 60, 0), ("trust", -1, 0, 50)]:
        path = tmp_path / f"{how}{scale}.parquet"
        vectors = pa.array([[x, scale * y] for x, y in right_ones.to_pylist()], pa.list_(pa.float32(), 2))
        write(path, texts, vector=vectors)
        declared = embedreg.embed_table(read(path), one.bind("text", "vector"))
        pq.write_table(declared, path)
        with_digest(path)
        Letters.seen.clear()
        assert columns.status(path)[0].unstamped == 50
        [report] = columns.refresh(path, unstamped=how, sample=10)
        assert (len(Letters.seen), report.stamped) == (embedded, stamped), how
        assert columns.status(path)[0].fresh == 50


def test_recompute_embeds_every_row_of_a_column_without_digests(folder: Path, one: Letters) -> None:
    """Wrong vectors that no digest shows are made anew, and the note says that digests would show them."""
    columns.add(folder, one.bind("text", "vector"), digest=False)
    for path in files(folder):
        edited(path, {0: "changed"})
    assert not right(folder, 1.0)
    assert columns.refresh(folder)[0].embedded == 0
    assert columns.refresh(folder, unstamped="recompute", dry_run=True)[0].written == 6
    [report] = columns.refresh(folder, unstamped="recompute")
    assert report.written == 6
    assert "every row was embedded" in report.notes[0]
    assert right(folder, 1.0)


def with_digest(path: Path) -> None:
    """Let the declaration of a file name a column of digests, which the file does not have."""
    table = read(path)
    text = table.schema.metadata[b"embedding_functions"].replace(
        b'"embedreg": {', b'"embedreg": {"digest": "vector__source_digest", '
    )
    assert b"source_digest" in text
    pq.write_table(table.replace_schema_metadata({b"embedding_functions": text}), path)


def test_fill_embeds_empty_rows_alone(tmp_path: Path, one: Letters) -> None:
    """A row whose text changed keeps its old vector; a row that lost its vector gets it back."""
    path = tmp_path / "t.parquet"
    write(path, ["alpha", "beta", "gamma"])
    columns.add(path, one.bind("text", "vector"))
    edited(path, {0: "changed"})
    table = read(path)
    vectors = table["vector"].to_pylist()
    kind = table.schema.field("vector").type
    table = table.set_column(2, "vector", pa.array([*vectors[:2], None], kind))
    table = table.set_column(3, DIGEST, pa.array([*table[DIGEST].to_pylist()[:2], None]))
    pq.write_table(table, path)
    Letters.seen.clear()
    [report] = columns.fill(path)
    assert Letters.seen == ["gamma"]
    assert report.written == 1
    assert rows(path)[0] == ("changed", [5, 97])
    assert rows(path)[2] == ("gamma", [5, 103])


def test_bad_rows_are_reported_and_not_tried_again(tmp_path: Path, one: Letters) -> None:
    """A row that the function refuses has a null vector and is fresh; "raise" and max_bad_rows change nothing."""
    path = tmp_path / "t.parquet"
    write(path, ["alpha", "bad", "bad"])
    before = path.read_bytes()
    for options in ({"on_error": "raise"}, {"max_bad_rows": 1}):
        with pytest.raises(EmbedregError, match="it says bad"):
            columns.add(path, one.bind("text", "vector"), **options)
        assert path.read_bytes() == before
    report = columns.add(path, one.bind("text", "vector"))
    assert report.bad_rows == 2
    assert (report.bad[0].row, report.bad[0].reason) == (1, "it says bad")
    Letters.seen.clear()
    assert columns.refresh(path)[0].embedded == 0
    assert Letters.seen == []


@pytest.mark.parametrize("texts", [[], [None, None]], ids=["no rows", "nulls only"])
def test_a_file_with_nothing_to_embed_has_its_life(
    tmp_path: Path, one: Letters, two: Letters, texts: list[Any]
) -> None:
    """By itself, and beside another file; it gets the column as any file does."""
    path, data = tmp_path / "t.parquet", tmp_path / "data"
    data.mkdir()
    for place in (path, data / "a.parquet"):
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), place)
    pq.write_table(pa.table({"text": ["alpha", None]}), data / "b.parquet")
    for place, fresh in ((path, 0), (data, 1)):
        columns.add(place, one.bind("text", "vector"))
        columns.migrate(place, "vector", two).rollback()
        columns.migrate(place, "vector", two).finish()
        (status,) = columns.status(place)
        assert (status.fresh, status.todo) == (fresh, 0)
        (audit,) = columns.audit(place)
        assert audit.verdict == ("sound" if fresh else "unknown")


def test_vectors_as_lists_keep_their_type(tmp_path: Path, one: Letters, two: Letters) -> None:
    """A column of list<double>, as pandas writes it, is refreshed as such; its migration gives fixed widths."""
    path = tmp_path / "t.parquet"
    write(path, ["alpha", "beta", None])
    columns.add(path, one.bind("text", "vector"))
    table = read(path)
    kind = pa.list_(pa.float64())
    table = table.set_column(2, "vector", pa.array(table["vector"].to_pylist(), kind))
    pq.write_table(table, path)
    edited(path, {1: "changed"})
    assert columns.refresh(path)[0].written == 1
    assert read(path).schema.field("vector").type.value_type == pa.float64()
    assert pa.types.is_list(read(path).schema.field("vector").type)
    assert right(path, 1.0)
    columns.migrate(path, "vector", two)
    assert read(path).schema.field("vector").type == pa.list_(pa.float32(), 2)
    columns.migrations(path)[0].rollback()
    assert pa.types.is_list(read(path).schema.field("vector").type)


# -- migrating ---------------------------------------------------------------------------------------------------------


def test_a_migration_switches_and_rolls_back_bit_for_bit(folder: Path, one: Letters, two: Letters) -> None:
    """Until the switch all files are as before; after it all have the new model; the way back gives the old files."""
    columns.add(folder, one.bind("text", "vector"))
    before = {path: path.read_bytes() for path in files(folder)}
    migration = columns.migrate(folder, "vector", two, switch=False)
    assert migration.state == "ready"
    assert {path: path.read_bytes() for path in files(folder)} == before
    [status] = columns.status(folder)
    assert status.fresh == 6
    assert (status.migration.staged_rows, status.migration.staged_fragments) == (7, 3)
    with pytest.raises(ConfigError, match=r"is being migrated \(ready\)"):
        columns.refresh(folder)
    with pytest.raises(StorageError, match="not switched yet"):
        migration.finish()
    migration.switch()
    assert migration.state == "switched"
    assert right(folder, 2.0)
    assert embedreg.functions_in(folder)["vector"].function == two
    migration.settle()
    assert migration.state == "settled"
    assert columns.status(folder)[0].fresh == 6
    Letters.seen.clear()
    [again] = columns.migrations(folder)
    again.rollback()
    assert again.state == "rolled back"
    assert Letters.seen == []
    assert {path: path.read_bytes() for path in files(folder)} == before
    assert embedreg.functions_in(folder)["vector"].function == one
    assert left(folder) == []
    assert columns.migrations(folder) == []


def test_rows_written_after_the_switch_are_there_after_a_rollback(folder: Path, one: Letters, two: Letters) -> None:
    """Changed and new rows get vectors of the old model; the others their old vectors, without being embedded."""
    columns.add(folder, one.bind("text", "vector"))
    columns.migrate(folder, "vector", two)
    a, b, _ = files(folder)
    edited(b, {0: "changed"})
    write(folder / f"new{a.suffix}", ["alpha", "new"])
    Letters.seen.clear()
    [migration] = columns.migrations(folder)
    migration.rollback()
    assert right(folder, 1.0)
    assert sorted(Letters.seen) == ["changed", "new"]
    assert columns.status(folder)[0].todo == 0
    assert left(folder) == []


def test_many_rows_without_an_old_vector_are_embedded_if_that_is_agreed_to(
    folder: Path, one: Letters, two: Letters
) -> None:
    """A rollback says how many rows it would embed, and changes nothing; `yes` embeds them."""
    columns.add(folder, one.bind("text", "vector"))
    migration = columns.migrate(folder, "vector", two)
    write(folder / f"new{files(folder)[0].suffix}", [f"text {n}" for n in range(101)])
    with pytest.raises(ConfigError, match=r"101 rows have no old vector \(they were added or changed"):
        migration.rollback()
    assert migration.state == "settled"
    migration.rollback(yes=True)
    assert right(folder, 1.0)


def test_data_on_an_object_store_is_refused_by_name(one: Letters, two: Letters) -> None:
    """Each call says so before it reaches anything, and what to do; no key of a URI is shown."""
    uri = "s3://bucket/data"
    calls: list[Callable[[], object]] = [
        lambda: columns.add(uri, one.bind("text", "vector")),
        lambda: columns.refresh(uri),
        lambda: columns.migrate(uri, "vector", two),
        lambda: columns.status(uri),
        lambda: columns.audit(uri),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=r"'s3://bucket/data' is on an object store") as refused:
            call()
        assert "copy it to a local disk" in str(refused.value.hint)
    with pytest.raises(ConfigError) as refused:
        columns.status("s3://key:hidden@bucket/data")
    assert "hidden" not in str(refused.value)


def test_a_finished_migration_leaves_nothing_behind(folder: Path, one: Letters, two: Letters) -> None:
    """After `finish` there is neither a record nor a copy, and no way back."""
    columns.add(folder, one.bind("text", "vector"))
    migration = columns.migrate(folder, "vector", two)
    assert migration.state == "settled"
    assert (folder / "_embedreg" / "column" / "previous").exists()
    migration.finish()
    assert migration.state == "finished"
    assert left(folder) == []
    assert [path.name for path in (folder / "_embedreg").iterdir()] == ["manifest.json"]


def test_an_abandoned_migration_changes_nothing(folder: Path, one: Letters, two: Letters) -> None:
    """What was staged is removed, and the data is as before."""
    columns.add(folder, one.bind("text", "vector"))
    before = {path: path.read_bytes() for path in files(folder)}
    migration = columns.migrate(folder, "vector", two, switch=False)
    migration.abandon()
    assert {path: path.read_bytes() for path in files(folder)} == before
    assert left(folder) == []


def test_a_new_name_takes_the_place_of_the_old_column(folder: Path, one: Letters, two: Letters) -> None:
    """With `name` readers of the old column fail instead of mixing; the way back gives the old name."""
    columns.add(folder, one.bind("text", "vector"))
    columns.migrate(folder, "vector", two, name="vector_2")
    names = read(files(folder)[0]).schema.names
    assert names == ["id", "text", "vector_2", "vector_2__source_digest"]
    assert [each.vector for each in columns.status(folder)] == ["vector_2"]
    columns.migrations(folder)[0].rollback()
    assert right(folder, 1.0)
    assert [each.vector for each in columns.status(folder)] == ["vector"]


def test_files_that_appear_or_change_before_the_switch_are_staged_too(folder: Path, one: Letters, two: Letters) -> None:
    """No row is left with the old model, and no text of a writer is overwritten."""
    columns.add(folder, one.bind("text", "vector"))
    migration = columns.migrate(folder, "vector", two, switch=False)
    a, b, _ = files(folder)
    edited(b, {0: "changed"})
    write(folder / f"new{a.suffix}", ["new"])
    Letters.seen.clear()
    migration.switch()
    assert right(folder, 2.0)
    assert set(Letters.seen) == {"changed", "delta", "new"}
    assert ("changed", [7, 2 * ord("c")]) in rows(folder)


def test_another_migration_is_refused_until_this_one_ends(folder: Path, one: Letters, two: Letters) -> None:
    """The same call goes on; another function is refused."""
    columns.add(folder, one.bind("text", "vector"))
    columns.migrate(folder, "vector", two, switch=False)
    with pytest.raises(ConfigError, match="is being migrated to 'letters' already"):
        columns.migrate(folder, "vector", Letters.create(scale=3.0))
    Letters.seen.clear()
    assert columns.migrate(folder, "vector", two).state == "settled"
    assert Letters.seen == []


# -- killed ------------------------------------------------------------------------------------------------------------


def at_changes_of_the_disk(reached: Callable[[], None]) -> None:
    """Let renames, links and removals be steps."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.link", "os.remove"):
            reached()

    sys.addaudithook(hook)


@pytest.mark.filterwarnings("ignore:lance is not fork-safe:UserWarning")  # where another test has loaded lance
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # since Python 3.12
def test_a_process_killed_at_any_rename_leaves_old_or_new_files_and_the_next_run_ends_it(
    tmp_path: Path, one: Letters, two: Letters
) -> None:
    """At each change of the disk during add, migrate and rollback: every file is whole, and the same call goes on."""
    data = tmp_path / "data"
    steps = 0
    for step in range(1, 500, 2):
        for name, texts in zip(("a", "b"), TEXTS[:2], strict=True):
            write(data / f"{name}.parquet", texts)

        def whole() -> None:
            columns.add(data, one.bind("text", "vector"))
            columns.migrate(data, "vector", two)
            [migration] = columns.migrations(data)
            migration.rollback()

        killed = died(whole, at_changes_of_the_disk, step)
        steps += killed
        check_whole(data)
        ended(data, one, two)
        assert right(data, 1.0), step
        assert left(data) == [], step
        for path in [*data.rglob("*")]:
            if path.is_file():
                path.unlink()
        if not killed:
            break
    assert steps > 25


def check_whole(data: Path) -> None:
    """Check that each file has vectors of the model that it declares, or no vectors, and that `status` answers."""
    for path in files(data):
        found = embedreg.functions_in(path) if "vector" in read(path).schema.names else {}
        scale = found["vector"].function.scale if "vector" in found else None
        for text, vector in rows(path):
            assert vector == (vector_of(text, scale) if scale else None)
    assert all(each.problem is None for each in columns.status(data))


def ended(data: Path, one: Letters, two: Letters) -> None:
    """Make the same calls again, from where the first process was killed."""
    found = columns.migrations(data)
    if not found:
        try:
            columns.add(data, one.bind("text", "vector"))
        except SchemaError:  # it was added
            assert all("vector" in read(path).schema.names for path in files(data))
    elif found[0].state == "ready":
        assert columns.migrate(data, "vector", two).state == "settled"
        columns.migrations(data)[0].rollback()
    elif found[0].state == "staging":
        found[0].abandon()
    else:
        found[0].rollback()
    columns.refresh(data)


# -- declarations ------------------------------------------------------------------------------------------------------


def test_detach_removes_the_declaration_and_with_drop_the_column(folder: Path, one: Letters) -> None:
    """Other declarations stay byte for byte; with `drop` vectors and digests go too."""
    columns.add(folder, one.bind("text", "vector"))
    columns.add(folder, one.bind("text", "other"), yes=True)
    columns.detach(folder, "vector")
    assert [each.vector for each in columns.status(folder)] == ["other"]
    assert "vector" in read(files(folder)[0]).schema.names
    columns.detach(folder, "other", drop=True)
    assert read(files(folder)[0]).schema.names == ["id", "text", "vector", DIGEST]
    assert columns.status(folder) == []
    assert left(folder) == []


def test_repoint_changes_the_declaration_of_the_same_vectors_alone(folder: Path, one: Letters) -> None:
    """Another function of the same vectors is declared and rows stay fresh; one of other vectors is refused."""

    @embedreg.register("same")
    class Same(Letters):
        """The same vectors under another name."""

    columns.add(folder, one.bind("text", "vector"))
    before = [read(path)["vector"] for path in files(folder)]
    with pytest.raises(DriftError, match="rows have other vectors"):
        columns.repoint(folder, "vector", Letters.create(scale=-1.0))
    agreed = columns.repoint(folder, "vector", Same.create())
    assert agreed.compared == 5
    assert [read(path)["vector"] for path in files(folder)] == before
    [status] = columns.status(folder)
    assert (status.function, status.fresh, status.foreign) == ("same", 6, 0)


# -- strangers ---------------------------------------------------------------------------------------------------------


def test_hostile_records_of_a_migration_open_no_file_and_status_says_why(tmp_path: Path, one: Letters) -> None:
    """Names that lead outside, unknown states, deep JSON and links are refused; the data is still described."""
    data = tmp_path / "data"
    write(data / "a.parquet", TEXTS[0])
    columns.add(data, one.bind("text", "vector"))
    outside = tmp_path / "outside.parquet"
    write(outside, ["secret"])
    own = data / manifest.FOLDER / "column"
    own.mkdir()
    facts = '"format": 1, "id": "ab", "vector": "vector", "name": "vector", "old": "{}", "new": "{}", "keep": true'
    stamp = "[1, 2, 3]"
    hostile = {
        "outside": f'{{{facts}, "state": "switched", "published": {{"../outside.parquet": {stamp}}}}}',
        "absolute": f'{{{facts}, "state": "switched", "published": {{"{outside}": {stamp}}}}}',
        "own": f'{{{facts}, "state": "switched", "published": {{"_embedreg/manifest.json": {stamp}}}}}',
        "state": f'{{{facts}, "state": "owned"}}',
        "id": '{"format": 1, "id": "../..", "state": "ready"}',
        "deep": "[" * 10_000,
        "text": "not JSON",
    }
    for name, text in hostile.items():
        (own / "migration.json").write_text(text)
        [status] = columns.status(data)
        assert "is not what embedreg writes" in str(status.problem), name
        assert status.fresh == 2
        with pytest.raises(EmbedregError, match="is not what embedreg writes"):
            columns.migrations(data)
    (own / "migration.json").unlink()
    (own / "migration.json").symlink_to(outside)
    assert "is a link" in str(columns.status(data)[0].problem)
    (own / "migration.json").unlink()
    (own / "publishing.json").write_text(
        f'{{"format": 1, "key": "a", "files": {{"../outside.parquet": [{stamp}, {stamp}]}}, "keep": false, '
        '"entries": "[]", "state": ""}'
    )
    before = outside.read_bytes()
    with pytest.raises(EmbedregError, match="is not what embedreg writes"):
        columns.refresh(data)
    assert outside.read_bytes() == before


def test_a_declaration_cannot_have_another_column_overwritten(tmp_path: Path, one: Letters) -> None:
    """A digest column that is a source, or holds numbers, is refused by name, and no file changes."""
    path = tmp_path / "t.parquet"
    for name, kind in (("text__source_digest", pa.string()), ("n__source_digest", pa.int64())):
        write(path, ["alpha"])
        columns.add(path, one.bind("text", "vector"))
        table = read(path).append_column(name, pa.array([None], kind))
        text = table.schema.metadata[b"embedding_functions"].replace(b'"vector__source_digest"', f'"{name}"'.encode())
        if kind == pa.string():
            text = text.replace(b'"source_column": "text"', b'"source_column": "text__source_digest"')
        pq.write_table(table.replace_schema_metadata({b"embedding_functions": text}), path)
        before = path.read_bytes()
        assert "it has another use" in str(columns.status(path)[0].problem)
        with pytest.raises(EmbedregError, match="it has another use"):
            columns.refresh(path, unstamped="recompute")
        assert path.read_bytes() == before


def test_a_folder_with_an_unfinished_job_is_left_alone(tmp_path: Path, one: Letters) -> None:
    """An embedding job owns its destination until it is complete; afterwards its records go with the first change."""
    source, data = tmp_path / "source", tmp_path / "data"
    write(source / "a.parquet", ["alpha"])
    embedreg.embed(source, data, one.bind("text", "vector"))
    (data / manifest.FOLDER / "manifest.json").rename(tmp_path / "kept.json")
    with pytest.raises(StorageError, match="an embedding job that is not complete"):
        columns.refresh(data)
    (tmp_path / "kept.json").rename(data / manifest.FOLDER / "manifest.json")
    columns.migrate(data, "vector", Letters.create(scale=2.0)).finish()
    with pytest.raises(StorageError, match=r"holds 1 other file\(s\)"):
        embedreg.embed(source, data, one.bind("text", "vector"))
    assert right(data, 2.0)


def test_rows_are_found_by_number_over_all_files(folder: Path) -> None:
    """`take` gives rows in the order asked for, over file borders; `scan` gives them all."""
    from embedreg.columns.opening import opened

    store = opened(folder)
    texts = [text for each in TEXTS for text in each]
    wanted = [6, 0, 3, 3, 5]
    assert store.rows == 7
    assert store.take(wanted, ["text"])["text"].to_pylist() == [texts[n] for n in wanted]
    assert [text for batch in store.scan(["text"], 2) for text in batch.column(0).to_pylist()] == texts
    assert np.array_equal(store.take([], ["id"])["id"], [])


def test_staged_vectors_that_the_function_does_not_give_are_not_switched(folder: Path, one: Letters) -> None:
    """A function that answers otherwise each time is found before anything changes."""
    columns.add(folder, one.bind("text", "vector"))
    with pytest.raises(DriftError, match="is not what the function returns now"):
        columns.migrate(folder, "vector", Fickle.create())
    assert columns.status(folder)[0].function == "letters"
    [migration] = columns.migrations(folder)
    assert migration.state == "staging"
    migration.abandon()
    assert right(folder, 1.0)


@pytest.mark.parametrize("late", ["switch", "settle"])
def test_a_file_that_came_while_others_were_staged_has_the_old_function_after_a_rollback(
    tmp_path: Path, late: str
) -> None:
    """It never had the old vectors: it is embedded with the old function, whatever came after it."""

    def write(name: str) -> None:
        pq.write_table(pa.table({"text": [name]}), tmp_path / f"{name}.parquet")

    write("first")
    columns.add(tmp_path, embedreg.get("hashing").create(dim=8).bind("text", "vector"))
    migration = columns.migrate(tmp_path, "vector", embedreg.get("hashing").create(dim=8, seed=2), switch=False)
    write("meanwhile")
    migration.switch()
    if late == "settle":
        write("switched")
        migration.settle()
        write("settled")
    migration.rollback()
    [found] = columns.status(tmp_path)
    assert found.fresh == found.rows == (4 if late == "settle" else 2)
    assert found.settings["seed"] == "0"
