"""A cache's file from a stranger, damaged in any way: right vectors or a refusal, and nothing else is touched."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedreg
from embedreg.errors import StorageError
from embedreg.runtime.vectors import cache_file
from embedreg.runtime.vectors.cache_file import MIN_BYTES
from tests.jobs.outside import snapshot, touched_outside

TEXTS = ["one", "two", "three", "four", "five", "six"]
DIM = 16
NAME = "vectors.cache"
ENDS = ("", "-wal", "-shm", "-journal")
SCHEMA = sorted(cache_file._TABLES)
JOURNAL = bytes.fromhex("d9d505f920a163d7")  # how a rollback journal begins, and how the name of another one ends


def hashing() -> Any:
    """Return a function whose identity is known."""
    return embedreg.get("hashing").create(dim=DIM)


def journal(name: str, pages: int = 0) -> bytes:
    """Return a rollback journal that is to be played back, and that belongs to one of several databases."""
    head = (JOURNAL + struct.pack(">IIIII", 0, 1234, pages, 512, 4096)).ljust(512, b"\0")
    other = os.fsencode(name)
    check = sum(struct.unpack(f"{len(other)}b", other)) & 0xFFFFFFFF
    return head + struct.pack(">I", 2**30 // 4096 + 1) + other + struct.pack(">II", len(other), check) + JOURNAL


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two caches to damage copies of: `closed`, and `open`, whose last vectors are in its log still."""
    base = tmp_path_factory.mktemp("made")
    for kind in ("closed", "open"):
        (base / kind).mkdir()
        with embedreg.vector_cache(base / NAME):
            embedreg.embed_column(hashing(), [f"another text {row}" for row in range(200)])
            embedreg.embed_column(hashing(), TEXTS)
            if kind == "open":
                for end in ENDS:
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copy2(base / (NAME + end), base / kind)
        if kind == "closed":
            shutil.copy2(base / NAME, base / kind)
        (base / NAME).unlink()
    return base


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """The vectors of the texts."""
    return np.asarray(embedreg.embed_column(hashing(), TEXTS).matrix)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up sooner on a file that makes SQLite go on for ever."""
    monkeypatch.setattr(cache_file, "STATEMENT_S", 5.0)
    monkeypatch.setattr(cache_file, "WAIT_S", 0.2)


def used(at: Path, expected: np.ndarray) -> StorageError | None:
    """Embed with a cache that lies in `at`; return its refusal, or None where every vector is right."""
    outside = at.parent / "outside"
    before = snapshot(outside)
    problem = None
    with touched_outside(at) as touched:
        for _ in range(2):
            try:
                with embedreg.vector_cache(at / NAME, max_bytes=MIN_BYTES):
                    assert np.array_equal(embedreg.embed_column(hashing(), TEXTS).matrix, expected)
                    assert np.array_equal(embedreg.embed_column(hashing(), TEXTS[::-1]).matrix, expected[::-1])
            except StorageError as exc:
                problem = exc
    assert problem is None or (problem.hint and "cannot be a vector cache" in problem.message)
    assert touched == []
    assert snapshot(outside) == before
    assert {path.name for path in at.iterdir()} <= {NAME + end for end in ENDS}
    return problem


def test_a_journal_that_names_another_file_is_refused(made: Path, tmp_path: Path, expected: np.ndarray) -> None:
    """SQLite would play it back, and delete the file that it names."""
    at = Path(shutil.copytree(made / "closed", tmp_path / "at"))
    with contextlib.closing(sqlite3.connect(at / NAME)) as con:
        con.execute("PRAGMA journal_mode = DELETE")
    precious = tmp_path / "outside" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years")
    (at / f"{NAME}-journal").write_bytes(journal(str(precious)))
    (at / f"{NAME}-journal").chmod(0o600)
    problem = used(at, expected)
    assert problem is not None
    assert "names another file" in problem.message
    assert precious.read_text() == "years"


# -- anything ----------------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, 2, 3, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1])
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(exclude_characters="\0"), max_size=70),
    st.binary(max_size=80),
    st.sampled_from([b"", bytes(4 * DIM), bytes(4 * DIM + 4), "x" * (4 * DIM + 4), b"\xff" * 32]),
)
UPDATES = (
    "UPDATE entries SET vector = ?",
    "UPDATE entries SET used = ?",
    "UPDATE entries SET used = ? WHERE id % 3 = 0",
    "UPDATE OR IGNORE entries SET key = ? WHERE id = (SELECT max(id) FROM entries)",
    "UPDATE OR IGNORE entries SET id = ? WHERE id = (SELECT max(id) FROM entries)",
    "UPDATE entries SET vector = substr(vector, 1, length(vector) - 4)",
    "UPDATE entries SET vector = CAST(vector AS TEXT)",
    "UPDATE entries SET vector = zeroblob(20000000) WHERE id = (SELECT max(id) FROM entries)",
    "UPDATE entries SET used = CAST(X'ff00ff' AS TEXT)",
    "UPDATE entries SET (vector) = (SELECT vector FROM entries AS e WHERE e.id = entries.id % 206 + 1)",
)
SCHEMAS = (  # with writable_schema: what no statement could make
    "UPDATE sqlite_schema SET rootpage = (SELECT max(rootpage) FROM sqlite_schema) + 2 - rootpage",
    "UPDATE sqlite_schema SET rootpage = ? WHERE name = 'entries'",
    "UPDATE sqlite_schema SET rootpage = ? WHERE name = 'by_key'",
    "UPDATE sqlite_schema SET rootpage = CASE name WHEN 'by_key' THEN (SELECT rootpage FROM sqlite_schema WHERE "
    "name = 'by_use') ELSE rootpage END",
    "UPDATE sqlite_schema SET name = ? WHERE name = 'entries'",
    "UPDATE sqlite_schema SET type = ?",
    "UPDATE sqlite_schema SET tbl_name = ?",
    "UPDATE sqlite_schema SET sql = ? WHERE name = 'by_use'",
    "UPDATE sqlite_schema SET sql = sql || ' '",
    "UPDATE sqlite_schema SET sql = CAST(sql AS BLOB)",
    "INSERT INTO sqlite_schema VALUES ('trigger', 't', 'entries', 0, 'CREATE TRIGGER t AFTER INSERT ON entries BEGIN "
    "DELETE FROM entries; END')",
    "INSERT INTO sqlite_schema VALUES ('view', 'v', 'v', 0, 'CREATE VIEW v AS SELECT load_extension(1)')",
    "INSERT INTO sqlite_schema VALUES (?, 'x', 'x', 0, NULL)",
    "DELETE FROM sqlite_schema WHERE name = 'by_key'",
    "CREATE VIEW more AS SELECT * FROM entries",
    "CREATE TRIGGER t AFTER UPDATE ON entries BEGIN INSERT INTO entries SELECT * FROM entries; END",
    "CREATE VIRTUAL TABLE more USING fts5(a)",
    "PRAGMA application_id = 1",
    "PRAGMA user_version = 2",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA journal_mode = OFF",
    "PRAGMA auto_vacuum = NONE",
    "VACUUM",
)


WAYS = ("bytes", "number", "cut", "raw", "journal", "nan", "update", "update", "schema", "schema", "thing", "mode")


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, str, Any]]:
    """Draw what is done to a cache: to its bytes, to those of the files beside it, or by SQLite's own means."""
    done: list[tuple[str, str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        what = draw(st.sampled_from(WAYS))
        end = draw(st.sampled_from(ENDS))
        if what == "bytes":
            how: Any = (draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=64)))
        elif what == "number":  # in a header: of the file, or of one of its pages
            how = (draw(st.integers(0, 12)), draw(st.integers(0, 107)), draw(NUMBERS), draw(st.sampled_from([1, 2, 4])))
        elif what == "cut":
            how = draw(st.floats(0, 1.5))
        elif what == "raw":
            how = draw(st.one_of(st.binary(max_size=200), st.sampled_from([b"SQLite format 3\0", JOURNAL])))
        elif what == "journal":
            how = (draw(st.sampled_from(["thesis.txt", "thesis.txt-journal", ""])), draw(st.integers(0, 3)))
        elif what == "nan":
            how = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        elif what == "thing":
            how = draw(st.sampled_from(["link", "to nothing in it", "dangling", "pipe", "folder"]))
        elif what == "mode":
            how = draw(st.sampled_from([0o666, 0o620, 0o602, 0o644, 0o400]))
        else:
            how = draw(st.sampled_from(UPDATES if what == "update" else SCHEMAS)), draw(VALUES)
        done.append((what, end, how))
    return done


def damage(at: Path, what: str, end: str, how: Any) -> None:
    """Do one of these things to the cache in a folder."""
    path = at / (NAME + end)
    if what in ("nan", "update", "schema"):
        with contextlib.suppress(sqlite3.Error, OverflowError, MemoryError):
            by_sqlite(at / NAME, what, how)
    elif what == "thing":
        replace(path, how)
    elif what == "mode":
        with contextlib.suppress(OSError):
            if not path.is_symlink():
                path.chmod(how)
    elif what == "journal":
        name, pages = how
        with contextlib.suppress(OSError):
            (at / f"{NAME}-journal").unlink(missing_ok=True)  # it may be a pipe
            (at / f"{NAME}-journal").write_bytes(journal(str(at.parent / "outside" / name), pages))
            (at / f"{NAME}-journal").chmod(0o600)
    elif path.is_symlink():
        return  # what lies elsewhere stays
    elif not path.exists() and what == "raw":
        path.write_bytes(how)
        path.chmod(0o600)
    elif path.is_file():
        content = bytearray(path.read_bytes())
        if what == "bytes":
            where = int(how[0] * len(content))
            content[where : where + len(how[1])] = how[1]
        elif what == "number":
            page, offset, number, width = how
            where = page * 4096 + offset
            content[where : where + width] = (number % 256**width).to_bytes(width, "big")
        elif what == "cut":
            content = (content + content)[: int(how * len(content))]
        else:
            content[: len(how)] = how
        path.write_bytes(content)


def by_sqlite(path: Path, what: str, how: Any) -> None:
    """Change a cache as somebody with SQLite would."""
    if not all(each.is_file() and not each.is_symlink() for each in path.parent.iterdir()):
        return  # SQLite would wait for a pipe, and write through a link
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0.1)) as con:
        deadline = iter(range(100))
        con.set_progress_handler(lambda: next(deadline, None) is None, 100_000)
        if what == "nan":
            rows = con.execute("SELECT id, key, length(vector) FROM entries").fetchall()
            for row, key, size in rows:
                vector = np.full(max(1, size // 4 - 1), how, "<f4").tobytes()
                check = cache_file._check(key, vector)  # right: only the values are none of a vector
                con.execute("UPDATE entries SET vector = ? WHERE id = ?", (check + vector, row))
        else:
            con.execute("PRAGMA writable_schema = ON")
            con.execute(how[0], (how[1],) if "?" in how[0] else ())


def replace(path: Path, thing: str) -> None:
    """Put something else in the place of a file."""
    outside = path.parent.parent / "outside"
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    if thing == "link":
        path.symlink_to(outside / "thesis.txt")
    elif thing == "to nothing in it":
        path.symlink_to(outside / "empty.txt")
    elif thing == "dangling":
        path.symlink_to(outside / "nothing")
    elif thing == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


@settings(
    max_examples=int(os.environ.get("EMBEDREG_EXAMPLES", "100")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(kind=st.sampled_from(["closed", "open"]), done=damages())
def test_whatever_lies_there_vectors_are_right_or_it_is_refused(
    made: Path,
    expected: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    done: list[tuple[str, str, Any]],
) -> None:
    """Any bytes, values, types, schema and files beside it: a vector is right, or the file is refused in words."""
    base = tmp_path_factory.mktemp("any")
    (base / "outside").mkdir()
    (base / "outside" / "thesis.txt").write_text("years")
    (base / "outside" / "empty.txt").touch()
    at = Path(shutil.copytree(made / kind, base / "at", copy_function=shutil.copy2))
    for what, end, how in done:
        damage(at, what, end, how)
    refused = open_to_others(at) or schema(at) not in (None, SCHEMA)
    problem = used(at, expected)
    assert problem is not None or not refused
    shutil.rmtree(base)


def open_to_others(at: Path) -> bool:
    """Return whether somebody else could have written what SQLite would read, or where it leads elsewhere."""
    return any(not path.is_file() or path.is_symlink() or path.stat().st_mode & 0o022 for path in at.iterdir())


def schema(at: Path) -> list[str] | None:
    """Return what a cache's schema is made by, by a look at a copy; None where SQLite cannot tell."""
    if open_to_others(at) or not (at / NAME).exists():
        return None
    copy = Path(shutil.copytree(at, at.parent / "copy"))
    (copy / f"{NAME}-journal").unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(copy / NAME, timeout=0.1)) as con:
            return sorted(str(sql) for (sql,) in con.execute("SELECT sql FROM sqlite_schema LIMIT 9")) or None
    except sqlite3.Error:
        return None
    finally:
        shutil.rmtree(copy)
