"""Whatever files a folder contains, each row is embedded, or a note or an error names which files are left out."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import embedreg
from embedreg.errors import EmbedregError, StorageError

BIND = embedreg.get("hashing").create(dim=2).bind("text", "vector")
SLOWER = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

SUFFIXES = {  # how the rows of a file are written, by its suffix
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
PACKED = {"": lambda data: data, ".gz": gzip.compress, ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[str, str, int]]:
    """Draw the files of a folder: a path, what it is, and its rows."""
    found: list[tuple[str, str, int]] = []
    for _ in range(draw(st.integers(1, 5))):
        parent = draw(st.sampled_from(["", "", "sub/", "sub/deep/", ".git/", "_old/", "a b/", "größe/"]))
        stem = draw(st.sampled_from(["a", "B", "c.d", ".h", "_u", "ü", "e f", "#x", "p%20q"]))
        what = draw(st.sampled_from(["rows"] * 6 + ["other", "link", "dangling", "linked folder", "empty"]))
        suffix = draw(st.sampled_from(sorted(SUFFIXES)))
        suffix = suffix.upper() if draw(st.integers(0, 4)) == 0 else suffix
        packed = draw(st.sampled_from(sorted(PACKED))) if SUFFIXES[suffix.lower()] in ("json", "csv", "tsv") else ""
        name = stem + (draw(st.sampled_from([".txt", "", ".zip"])) if what == "other" else suffix + packed)
        found.append((parent + name, what, draw(st.integers(1, 3))))
    return list({name.lower(): (name, what, rows) for name, what, rows in found}.values())


def written(ids: list[str], name: str) -> bytes:
    """Return the bytes of a file with some rows."""
    lower = name.lower()
    packed = next((each for each in (".gz", ".zst") if lower.endswith(each)), "")
    how = SUFFIXES["." + lower.removesuffix(packed).rpartition(".")[2]]
    table, sink = pa.table({"text": ids, "id": ids}), pa.BufferOutputStream()
    if how == "parquet":
        pq.write_table(table, sink)
    elif how == "arrow":
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        rule = {"csv": ",", "tsv": "\t"}.get(how)
        lines = [json.dumps({"text": each, "id": each}) for each in ids] if rule is None else [f"text{rule}id"]
        lines += [] if rule is None else [f"{each}{rule}{each}" for each in ids]
        return bytes(PACKED[packed]("\n".join([*lines, ""]).encode()))
    return bytes(sink.getvalue())


@given(tree=trees(), into=st.sampled_from(["out/", "out.parquet", "out.lance"]))
@SLOWER
def test_each_row_of_a_folder_is_embedded_or_noted(
    tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[str, str, int]], into: str
) -> None:
    """Any names, formats, packings, links and folders: no row is lost or doubled without a number in a note."""
    base = tmp_path_factory.mktemp("any")
    folder, outside = base / "in", base / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "x.jsonl").write_text('{"text": "outside", "id": "outside"}\n')
    expected: list[str] = []
    hidden = other = linked = empty = 0
    for number, (name, what, rows) in enumerate(tree):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = [f"n{number}r{row}" for row in range(rows)]
        is_hidden = any(part.startswith((".", "_")) for part in Path(name).parts)
        if what == "rows":
            path.write_bytes(written(ids, name))
            expected += [] if is_hidden else ids
        elif what == "other":
            path.write_text("x")
            other += not is_hidden
        elif what == "empty":
            path.touch()
            empty += not is_hidden
        elif what == "linked folder":
            path.symlink_to(outside, target_is_directory=True)
            linked += not is_hidden
        else:
            path.symlink_to(outside / ("x.jsonl" if what == "link" else "nowhere"))
            if what == "link" and not is_hidden:
                (path.unlink(), path.symlink_to(folder / "target" / f"{number}{''.join(Path(name).suffixes)}"))
                target = folder / "target" / f"{number}{''.join(Path(name).suffixes)}"
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(written(ids, name))
                expected += [*ids, *ids]  # the file itself lies in the folder too
        hidden += is_hidden
    try:
        report = embedreg.embed(folder, f"{base}/{into}", BIND)
    except EmbedregError as exc:
        problem = exc.message
    else:
        problem = None
    if problem is not None:
        assert str(folder) in problem
        assert not (base / into).exists() or not list((base / into).rglob("*.parquet"))
        return
    if into == "out.lance":
        found = lancedb.connect(base).open_table("out").to_arrow()["id"].to_pylist()
    else:
        files = [base / into] if into == "out.parquet" else sorted((base / into).rglob("*.parquet"))
        found = [each for path in files for each in pq.ParquetFile(path).read(["id"])["id"].to_pylist()]
    assert sorted(found) == sorted(expected)
    assert report.rows == len(expected)
    notes = "\n".join(report.notes)
    for count, words in ((other, "file(s) of other kinds"), (linked, "linked folder(s)"), (hidden, "whose name, or")):
        noted = re.search(rf"(\d+) {re.escape(words)}", notes) or re.search(rf"(\d+) \S+ \S+ \S+ \S+ {words}", notes)
        assert (noted is not None) is (count > 0), (words, notes)
        if noted and words != "whose name, or":  # a hidden folder counts as one
            assert int(noted[1]) == count
    assert notes.count("is empty") == empty


@given(
    st.text(
        st.characters(codec="utf-8", exclude_characters="/\0") | st.sampled_from(" ._-+%#'\"\\:*?[]{}~$aZ9"),
        max_size=12,
    )
)
@example("..")
@example("a" * 300)
@example("%2e%2e")
@example("t.lance")
@example("_embedreg")
@settings(SLOWER, max_examples=60)
def test_a_lance_name_works_or_is_refused_before_any_work(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """Every name that is accepted is one that LanceDB lists and opens; the hint of every other one is."""
    base = tmp_path_factory.mktemp("any")
    (base / "in.jsonl").write_text('{"text": "a"}\n')
    place = f"{base}/db/{name}.lance"
    try:
        embedreg.embed(base / "in.jsonl", place, BIND)
    except StorageError as problem:
        assert not (base / "db").exists()
        place = str(problem.hint).removeprefix("give it a shorter name: ")
        embedreg.embed(base / "in.jsonl", place, BIND)
    db = lancedb.connect(base / "db")
    [stem] = db.list_tables().tables
    assert place == f"{base}/db/{stem}.lance"
    assert db.open_table(stem).count_rows() == 1
    assert sorted(path.name for path in base.iterdir()) == ["db", "in.jsonl"]
