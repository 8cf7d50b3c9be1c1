"""The file of the vector cache: vectors by key in SQLite (WAL mode), for several threads and processes, no pickle."""

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

APPLICATION = 0x656D6263  # "embc", in the header of the file: databases of other applications are never written to
FORMAT = 1
MIN_BYTES = 2**20  # a few hundred vectors and the pages of three trees
WAIT_S = 10.0  # for another process's transaction, which takes a tenth of a second
REFRESH_S = 3600.0  # resolution of the time of last use: a finer one would turn every read into a write
KEYS = 512  # looked up in one statement
ROW_BYTES = 160  # overhead of a row: its key twice, and its numbers
FILLED = 2 / 3  # fill ratio of a page, at worst, for the usual widths
LOG_PAGES = 4000  # checkpoint interval of the write-ahead log; a smaller one would flush for every chunk of rows
CHECK_BYTES = 4

MAX_VALUE = 16 * 2**20  # bytes of one value that SQLite may read: far more than any vector needs
STATEMENT_S = 60.0  # limit of one call, which takes seconds at most: a hostile file could make it run forever

_HEADER = b"SQLite format 3\0"
# the last bytes of a rollback journal that names a super-journal (a transaction over several databases)
_SUPER_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_TABLES = (
    "CREATE TABLE entries (id INTEGER PRIMARY KEY, key BLOB NOT NULL, used REAL NOT NULL, vector BLOB NOT NULL)",
    "CREATE UNIQUE INDEX by_key ON entries (key)",
    "CREATE INDEX by_use ON entries (used)",
)
_OTHER_PATH = "choose another path; nothing was changed"
_abandoned: list[sqlite3.Connection] = []  # the parent's: closing one in a forked child would break the parent's locks


class CacheFile:
    """Vectors as raw little-endian bytes by key; the least recently used are evicted first.

    Args:
        path: the file; created if it does not exist.
        max_bytes: maximum size; the log beside it (`-wal`) takes about 20 MB more, or a quarter of max_bytes.
    Raises:
        StorageError: the path is not a cache, is a damaged cache, or cannot be written; nothing is deleted.
        ConfigError: max_bytes is below `MIN_BYTES`.
        sqlite3.Error: temporarily unavailable: the disk is full, or the database is locked.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < MIN_BYTES:
            raise ConfigError(
                f"invalid max_bytes={max_bytes!r}: expected an integer of at least {MIN_BYTES}.", f"max_bytes={2**30}"
            )
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

    def find(self, keys: Iterable[bytes], size: int, step: int = 0) -> dict[bytes, bytes]:
        """Return the cached vectors: key -> the bytes of a vector, `size` or any number of steps more.

        A row whose checksum does not match counts as a miss.

        Raises:
            sqlite3.Error: the file cannot be read.
        """
        wanted = list(keys)
        size, now = size + CHECK_BYTES, time.time()
        fits = f"= {size}" if not step else f">= {size} AND (length(vector) - {size}) % {step} = 0"
        found: dict[bytes, bytes] = {}
        stale: list[int] = []
        with self._lock:
            connection = self._connect()
            for start in range(0, len(wanted), KEYS):
                some = wanted[start : start + KEYS]
                places = ",".join("?" * len(some))
                # SQLite stores the length before the value, so a value of the wrong length is not read
                rows = connection.execute(
                    f"SELECT id, key, used, vector FROM entries WHERE key IN ({places}) "
                    f"AND typeof(vector) = 'blob' AND length(vector) {fits}",
                    some,
                )
                for row, key, used, stored in rows.fetchall():
                    vector = stored[CHECK_BYTES:]
                    # a tampered index may lead to the row of another key, of any type
                    if isinstance(key, bytes) and stored[:CHECK_BYTES] == _check(key, vector):
                        found[key] = vector
                        if not (isinstance(used, float) and now - REFRESH_S <= used <= now):
                            stale.append(row)
        if stale:
            self._refresh(stale, now)
        return found

    def store(self, vectors: Mapping[bytes, bytes]) -> int:
        """Store vectors in one transaction, and return their number.

        Raises:
            sqlite3.Error: the file cannot be written; it is unchanged.
        """
        now = time.time()
        rows, need = [], 0
        for key, vector in vectors.items():
            if len(vector) > MAX_VALUE // 2:
                continue
            need += int((len(vector) + ROW_BYTES) / FILLED)
            if need > self.max_bytes // 2:
                break  # storing the rest would only evict these
            rows.append((key, now, _check(key, vector) + vector))
        if rows:
            with self._lock, self._transaction() as connection:
                self._make_room(connection, need, need // len(rows))
                connection.executemany("INSERT OR REPLACE INTO entries (key, used, vector) VALUES (?, ?, ?)", rows)
            self._shrink()
        return len(rows)

    def close(self) -> None:
        """Close the file for good."""
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
        """Evict the least recently used rows until `need` bytes fit, and some more, so that not every write evicts."""
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
        """Return free pages to the disk if the file exceeds its maximum size, which may have been lowered."""
        with self._lock:
            connection = self._connect()
            pages = self.max_bytes // _number(connection, "page_size")
            over = _number(connection, "page_count") - pages
            if over > 0 and _number(connection, "freelist_count"):
                connection.executescript(f"PRAGMA incremental_vacuum({over})")  # `execute` would do one page

    def _refresh(self, rows: list[int], now: float) -> None:
        """Update the time of last use of rows; skipped if another process is writing."""
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
            raise sqlite3.ProgrammingError("the cache is closed")
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
    """Interrupts SQLite calls that take longer than `STATEMENT_S`; the error is `sqlite3.OperationalError`."""

    def __init__(self) -> None:
        self._end = 0.0

    def start(self) -> None:
        self._end = time.monotonic() + STATEMENT_S

    def __call__(self) -> int:
        return int(time.monotonic() > self._end)


def _check(key: bytes, vector: bytes) -> bytes:
    """Return a checksum of a key and its vector: SQLite itself does not detect a flipped bit."""
    return zlib.crc32(vector, zlib.crc32(key)).to_bytes(CHECK_BYTES, "little")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


# -- opening -----------------------------------------------------------------------------------------------------------


def _open(path: Path, clock: _Clock) -> sqlite3.Connection:
    """Open a cache, or create one.

    Raises:
        StorageError, sqlite3.Error: as `CacheFile`.
    """
    _refuse_foreign(path)
    try:
        if not path.exists():
            path.touch(0o600)  # vectors reveal something about their texts
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
    """Refuse a path that is not a cache of this user; afterwards the file and SQLite's logs beside it are trusted."""
    try:
        if path.is_symlink() and not path.exists():
            raise _unusable(path, "it is a link to a file that does not exist", f"choose another path, or: rm {path}")
        real = Path(os.path.realpath(path))
        for end in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):  # it does not exist, or has just been deleted
                _check_file(path, real.with_name(real.name + end), beside=bool(end))
        if path.exists():
            with path.open("rb") as file:
                head = file.read(len(_HEADER))
            if path.is_symlink() and not head:  # no cache is created through a link
                raise _unusable(path, "it is a link to an empty file", f"choose another path, or: rm {path}")
            if head not in (b"", _HEADER):
                raise _unusable(path, "the file is not an SQLite database", _OTHER_PATH)
    except StorageError:
        raise
    except OSError as exc:
        raise _unusable(path, exc.strerror or str(exc), "choose a path on a local disk that can be written") from exc


def _check_file(path: Path, each: Path, *, beside: bool) -> None:
    """Raise StorageError unless a file is a plain one that only this user can write."""
    found = each.lstat()
    what = f"the file {each.name!r} beside it" if beside else "it"
    if not stat.S_ISREG(found.st_mode):
        raise _unusable(path, f"{what} is not a regular file", _OTHER_PATH)
    if each.name.endswith("-journal") and _names_super_journal(each):
        raise _unusable(
            path,
            f"{what} names another file, which SQLite would delete; a cache of embedreg has no such journal",
            _OTHER_PATH,
        )
    if os.name == "nt":
        return
    if found.st_uid != os.geteuid():
        raise _unusable(path, f"{what} belongs to another user, who could have written any vector into it", _OTHER_PATH)
    if found.st_mode & 0o022:
        raise _unusable(
            path,
            f"other users can write to {what}, and could have written any vector into it",
            f"choose another path; or, if no other user has written to it: chmod 600 {each}",
        )


def _names_super_journal(journal: Path) -> bool:
    """Return whether a rollback journal belongs to a transaction over several files; a cache never has one.

    SQLite replays such a journal when it opens the database, and then deletes the file that the journal names.
    """
    with journal.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - len(_SUPER_JOURNAL_MAGIC)))
        return file.read() == _SUPER_JOURNAL_MAGIC


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    if not _number(connection, "application_id") and not _tables(connection):
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("BEGIN IMMEDIATE")
        if not _tables(connection):  # otherwise another process has created them
            for statement in (*_TABLES, f"PRAGMA application_id = {APPLICATION}", f"PRAGMA user_version = {FORMAT}"):
                connection.execute(statement)
        connection.execute("COMMIT")
    if _number(connection, "application_id") != APPLICATION:
        raise _unusable(path, "it is a database of another application", _OTHER_PATH)
    if (version := _number(connection, "user_version")) != FORMAT:
        raise _unusable(path, f"it has format {version}, expected {FORMAT}", "choose another path, or update embedreg")
    # before any table is queried: a view, a trigger or a computed column would run SQL of an untrusted file
    made = connection.execute("SELECT sql FROM sqlite_schema ORDER BY rowid LIMIT 9").fetchall()
    if sorted(map(str, made)) != sorted(str((statement,)) for statement in _TABLES):
        raise _unusable(path, "its tables are not those of a cache", _OTHER_PATH)
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous = NORMAL")  # a power failure may lose the last vectors, never the file
    for column in ("id", "key", "used"):
        for order in ("ASC", "DESC"):  # detects most truncated files
            connection.execute(f"SELECT id FROM entries ORDER BY {column} {order} LIMIT 1").fetchone()


def _tables(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to WAL mode, which the file records; SQLite does not wait here for a process that does the same."""
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
    return _unusable(path, "it is damaged", f"rm {path}*  # its vectors can be computed again")


def _unusable(path: Path, why: str, hint: str) -> StorageError:
    return StorageError(f"{str(path)!r} cannot be a vector cache: {why}.", hint)
