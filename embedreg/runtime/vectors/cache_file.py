"""A bounded file of vectors by key, for several threads and processes: SQLite in WAL mode, and no pickle."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from embedreg.errors import ConfigError, StorageError
from embedreg.support.forks import ForkSafeLock

__all__ = ["MIN_BYTES", "CacheFile"]

APPLICATION = 0x656D6263  # "embc", in the header of the file: a database of somebody else's is never written to
FORMAT = 1
MIN_BYTES = 2**20  # room for a few hundred vectors and the pages of three trees
WAIT_S = 10.0  # for another process's transaction, which takes a tenth of a second
REFRESH_S = 3600.0  # how exactly a use is remembered: a finer clock would turn every read into a write
KEYS = 512  # looked up in one statement
ROW_BYTES = 160  # what a row takes beside its vector: its key twice, and its numbers
FILLED = 2 / 3  # of a page, at worst, for the usual widths
LOG_PAGES = 4000  # the log is copied into the file when it has as many; fewer would mean a flush for every window
CHECK_BYTES = 4

MAX_VALUE = 16 * 2**20  # bytes of one value that SQLite may read: far more than any vector's
STATEMENT_S = 60.0  # for one call, which takes seconds at most: a hostile file could make it go on for ever

_HEADER = b"SQLite format 3\0"
_NAMES_ANOTHER = bytes.fromhex("d9d505f920a163d7")  # how a rollback journal ends that names one of several databases
_TABLES = (
    "CREATE TABLE entries (id INTEGER PRIMARY KEY, key BLOB NOT NULL, used REAL NOT NULL, vector BLOB NOT NULL)",
    "CREATE UNIQUE INDEX by_key ON entries (key)",
    "CREATE INDEX by_use ON entries (used)",
)
_ANOTHER = "choose another path; nothing was touched"
_abandoned: list[sqlite3.Connection] = []  # of the parent: closing one in a forked child would harm the parent's


class CacheFile:
    """Vectors as raw little-endian float32 by key, the longest unused out first.

    Args:
        path: the file; made where there is none.
        max_bytes: how large it may become; the log beside it (`-wal`) takes some 20 MB more, or a quarter of it.
    Raises:
        StorageError: the path holds something else, or a damaged cache, or it cannot be written; nothing is deleted.
        ConfigError: a bound below `MIN_BYTES`.
        sqlite3.Error: for now it cannot be used: the disk is full, or somebody holds a lock.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < MIN_BYTES:
            raise ConfigError(f"max_bytes={max_bytes!r} leaves no room for a cache.", f"max_bytes={2**30}")
        self.path, self.max_bytes = path, max_bytes
        self.evicted = 0
        self._lock = ForkSafeLock()
        self._connection: sqlite3.Connection | None = None
        self._process = os.getpid()
        self._closed = False
        self._clock = _Clock()
        with self._lock:
            self._connect()

    # -- reading and writing --------------------------------------------------------------------------------------

    def find(self, keys: Iterable[bytes], ndims: int) -> dict[bytes, bytes]:
        """Return what is there: key -> the bytes of a vector of `ndims` dimensions.

        A row that is not as it was written counts as absent.

        Raises:
            sqlite3.Error: the file cannot be read.
        """
        wanted = list(keys)
        size, now = 4 * ndims + CHECK_BYTES, time.time()
        found: dict[bytes, bytes] = {}
        stale: list[int] = []
        with self._lock:
            connection = self._connect()
            for start in range(0, len(wanted), KEYS):
                some = wanted[start : start + KEYS]
                places = ",".join("?" * len(some))
                # the length stands before the value, which is not read where it cannot be right
                rows = connection.execute(
                    f"SELECT id, key, used, vector FROM entries WHERE key IN ({places}) "
                    f"AND typeof(vector) = 'blob' AND length(vector) = {size}",
                    some,
                )
                for row, key, used, stored in rows.fetchall():
                    vector = stored[CHECK_BYTES:]
                    # an index that a stranger wrote may lead from a key to a row of another one, of any type
                    if isinstance(key, bytes) and stored[:CHECK_BYTES] == _check(key, vector):
                        found[key] = vector
                        if not (isinstance(used, float) and now - REFRESH_S <= used <= now):
                            stale.append(row)
        if stale:
            self._refresh(stale, now)
        return found

    def store(self, vectors: Mapping[bytes, bytes]) -> int:
        """Keep vectors, in one transaction, and return how many.

        Raises:
            sqlite3.Error: the file cannot be written; it is as it was before.
        """
        now = time.time()
        rows, need = [], 0
        for key, vector in vectors.items():
            need += int((len(vector) + ROW_BYTES) / FILLED)
            if need > self.max_bytes // 2:
                break  # the rest would only drive this out
            rows.append((key, now, _check(key, vector) + vector))
        if rows:
            with self._lock, self._transaction() as connection:
                self._make_room(connection, need, need // len(rows))
                connection.executemany("INSERT OR REPLACE INTO entries (key, used, vector) VALUES (?, ?, ?)", rows)
            self._shrink()
        return len(rows)

    def close(self) -> None:
        """Let go of the file, for good."""
        with self._lock:
            self._closed = True
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
                self._connection = None

    def __len__(self) -> int:
        with self._lock:
            return int(self._connect().execute("SELECT count(*) FROM entries").fetchone()[0])

    # -- the bound --------------------------------------------------------------------------------------------------

    def _make_room(self, connection: sqlite3.Connection, need: int, row_bytes: int) -> None:
        """Delete what was not used for longest until `need` bytes fit; some more, so that not every window deletes."""
        page_bytes = _number(connection, "page_size")

        def excess(limit: int) -> int:
            pages = _number(connection, "page_count") - _number(connection, "freelist_count")
            return pages * page_bytes + need - limit

        if excess(self.max_bytes) <= 0:
            return
        while (over := excess(self.max_bytes - self.max_bytes // 8)) > 0:
            oldest = "DELETE FROM entries WHERE id IN (SELECT id FROM entries ORDER BY used LIMIT ?)"
            deleted = connection.execute(oldest, (over // row_bytes // 2 + 1,)).rowcount  # half, and look again
            if not deleted:
                return
            self.evicted += deleted

    def _shrink(self) -> None:
        """Give pages back to the disk where the file was larger: the bound may have been lowered."""
        with self._lock:
            connection = self._connect()
            pages = self.max_bytes // _number(connection, "page_size")
            over = _number(connection, "page_count") - pages
            if over > 0 and _number(connection, "freelist_count"):
                connection.executescript(f"PRAGMA incremental_vacuum({over})")  # `execute` would do one page

    def _refresh(self, rows: list[int], now: float) -> None:
        """Note that rows were used; where somebody else is writing just now, the next use notes it."""
        with (
            contextlib.suppress(sqlite3.OperationalError),
            self._lock,
            self._transaction() as connection,
        ):
            connection.executemany("UPDATE entries SET used = ? WHERE id = ?", [(now, row) for row in rows])

    # -- the connection ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connect()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _connect(self) -> sqlite3.Connection:
        """Return this process's connection; the lock is held."""
        if self._closed:
            raise sqlite3.ProgrammingError("it is closed")
        if self._connection is not None and self._process != os.getpid():
            _abandoned.append(self._connection)
            self._connection = None
        if self._connection is None:
            self._clock.start()
            self._connection, self._process = _open(self.path, self._clock), os.getpid()
            page_bytes = _number(self._connection, "page_size")
            pages = min(LOG_PAGES, self.max_bytes // page_bytes // 4)
            _number(self._connection, f"wal_autocheckpoint = {pages}")
            _number(self._connection, f"journal_size_limit = {pages * page_bytes}")
        self._clock.start()
        return self._connection


class _Clock:
    """Interrupts what takes SQLite longer than `STATEMENT_S`; the error is `sqlite3.OperationalError`."""

    def __init__(self) -> None:
        self._end = 0.0

    def start(self) -> None:
        self._end = time.monotonic() + STATEMENT_S

    def __call__(self) -> int:
        return int(time.monotonic() > self._end)


def _check(key: bytes, vector: bytes) -> bytes:
    """Return four bytes that tie a vector to its key: SQLite itself does not notice a flipped bit."""
    return zlib.crc32(vector, zlib.crc32(key)).to_bytes(CHECK_BYTES, "little")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


# -- opening -----------------------------------------------------------------------------------------------------------


def _open(path: Path, clock: _Clock) -> sqlite3.Connection:
    """Open a cache, or make one.

    Raises:
        StorageError, sqlite3.Error: as `CacheFile`.
    """
    _refuse_foreign(path)
    try:
        if not path.exists():
            path.touch(0o600)  # vectors tell of the texts behind them
        connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
    except OSError as exc:
        raise _unusable(path, exc.strerror or str(exc), "choose a path on a local disk that can be written") from exc
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
        connection.set_progress_handler(clock, 100_000)
        _prepare(connection, path)
    except BaseException as exc:
        connection.close()
        kind = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if kind in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise _damaged(path) from exc
        if kind in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY):
            raise _unusable(path, str(exc), "choose a path on a local disk that can be written") from exc
        raise
    return connection


def _refuse_foreign(path: Path) -> None:
    """Refuse what is no cache of this user's; it, and the log that SQLite keeps beside it, are trusted from here on."""
    try:
        if path.is_symlink() and not path.exists():
            raise _unusable(path, "it is a link to a file that does not exist", f"choose another path, or: rm {path}")
        real = Path(os.path.realpath(path))
        for end in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):  # there is none, or its last user has just deleted it
                _refuse_others(path, real.with_name(real.name + end), beside=bool(end))
        if path.exists():
            with path.open("rb") as file:
                head = file.read(len(_HEADER))
            if path.is_symlink() and not head:  # nothing is made behind a link
                raise _unusable(path, "it is a link to an empty file", f"choose another path, or: rm {path}")
            if head not in (b"", _HEADER):
                raise _unusable(path, "something else is there", _ANOTHER)
    except StorageError:
        raise
    except OSError as exc:
        raise _unusable(path, exc.strerror or str(exc), "choose a path on a local disk that can be written") from exc


def _refuse_others(path: Path, each: Path, *, beside: bool) -> None:
    found = each.lstat()
    what = f"the file {each.name!r} beside it" if beside else "it"
    if not stat.S_ISREG(found.st_mode):
        raise _unusable(path, f"something else is there: {what} is not a plain file", _ANOTHER)
    if each.name.endswith("-journal") and _names_another(each):
        raise _unusable(
            path,
            f"{what} names another file, which SQLite would delete; a cache of embedreg has no such journal",
            _ANOTHER,
        )
    if os.name == "nt":
        return
    if found.st_uid != os.geteuid():
        raise _unusable(path, f"{what} belongs to another user, who could have written any vector into it", _ANOTHER)
    if found.st_mode & 0o022:
        raise _unusable(
            path,
            f"others can write to {what}, and could have written any vector into it",
            f"choose another path; or, if nobody else has: chmod 600 {each}",
        )


def _names_another(journal: Path) -> bool:
    """Return whether a rollback journal is that of a transaction over several files: of a cache's, none is.

    SQLite plays such a journal back when it opens the database, and then deletes the file that the journal names.
    """
    with journal.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - len(_NAMES_ANOTHER)))
        return file.read() == _NAMES_ANOTHER


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    if not _number(connection, "application_id") and not _tables(connection):
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("BEGIN IMMEDIATE")
        if not _tables(connection):  # else another process was quicker
            for statement in (*_TABLES, f"PRAGMA application_id = {APPLICATION}", f"PRAGMA user_version = {FORMAT}"):
                connection.execute(statement)
        connection.execute("COMMIT")
    if _number(connection, "application_id") != APPLICATION:
        raise _unusable(path, "it is a database of something else", _ANOTHER)
    if (version := _number(connection, "user_version")) != FORMAT:
        raise _unusable(
            path, f"it has format {version}, this embedreg knows {FORMAT}", "choose another path, or update embedreg"
        )
    # before anything is asked of its tables: a view, a trigger or a computed column would run what somebody else wrote
    made = connection.execute("SELECT sql FROM sqlite_schema ORDER BY rowid LIMIT 9").fetchall()
    if sorted(map(str, made)) != sorted(str((statement,)) for statement in _TABLES):
        raise _unusable(path, "its tables are not those of a cache", _ANOTHER)
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may take the last vectors, never the file
    for column in ("id", "key", "used"):
        for order in ("ASC", "DESC"):  # a file that was cut off shows here, mostly
            connection.execute(f"SELECT id FROM entries ORDER BY {column} {order} LIMIT 1").fetchone()


def _tables(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to WAL, which is kept in the file; SQLite does not wait here for a process that does the same."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _damaged(path: Path) -> StorageError:
    return _unusable(path, "it is damaged", f"rm {path}*  # only time is lost: it holds what can be computed again")


def _unusable(path: Path, why: str, hint: str) -> StorageError:
    return StorageError(f"{str(path)!r} cannot be a vector cache: {why}.", hint)
