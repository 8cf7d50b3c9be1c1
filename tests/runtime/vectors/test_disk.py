"""The vector cache: the same vectors, sooner; bounded; shared by processes; and never the reason that a run fails."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

import embedreg
from embedreg import RowError, TextEmbeddingFunction, Traits, register
from embedreg.errors import ConfigError, StorageError
from embedreg.runtime.vectors import cache_file, disk
from embedreg.runtime.vectors.cache_file import MIN_BYTES, CacheFile
from tests.fakes import Lengths, Picky, lengths

TEXTS = [f"text number {row}" for row in range(3000)]
VECTOR = np.arange(4, dtype="<f4").tobytes()


@register("two-roles")
class TwoRoles(Lengths):
    """Embeds a query with its sign turned, and names its model."""

    weights: ClassVar[str | None] = "first"

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return -np.asarray(self.generate_embeddings([query]))

    def model_identity(self) -> str | None:
        return self.weights


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Forget what reached the functions, and which weights they have."""
    Lengths.seen.clear()
    yield
    TwoRoles.weights = "first"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the cache lies."""
    return tmp_path / "vectors.cache"


def hashing(**config: Any) -> Any:
    """Return a function whose identity is known."""
    return embedreg.get("hashing").create(dim=16, **config)


# -- hits ------------------------------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_gives_the_same_bits(path: Path) -> None:
    """What the file knows does not reach the function again, in whatever order and beside whatever else it comes."""
    fn = TwoRoles.create()
    with embedreg.vector_cache(path) as cache:
        first = embedreg.embed_column(fn, TEXTS)
        assert (cache.hits, cache.misses, cache.stored, len(cache)) == (0, 3000, 3000, 3000)
    Lengths.seen.clear()
    with embedreg.vector_cache(path) as cache:
        again = embedreg.embed_column(fn, ["new", *reversed(TEXTS), None, " ", TEXTS[0]])
        assert Lengths.seen == ["new"]
        assert (cache.hits, cache.misses) == (3000, 1)
    assert np.array_equal(again.matrix[1:3001], first.matrix[::-1])
    assert again.matrix[0].tolist() == lengths("new")
    assert again.valid.tolist() == [True] * 3001 + [False, False, True]
    assert (again.distinct, again.cached) == (3001, 3000)


def test_the_report_counts_what_the_cache_knew(path: Path) -> None:
    """`Report.cached` reports how many of the embedded inputs were not computed; the table is the same."""
    table = pa.table({"text": ["one", "two", "two", None]})
    binding = hashing().bind("text", "vector")
    plain = embedreg.embed_table(table, binding)
    with embedreg.vector_cache(path):
        for cached in (0, 2):
            report = embedreg.Report()
            assert embedreg.embed_table(table, binding, report=report).equals(plain, check_metadata=True)
            assert (report.embedded, report.cached, report.nulls) == (2, cached, 1)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.utf8())]
)
def test_a_text_is_one_key_in_every_arrow_type(path: Path, kind: pa.DataType) -> None:
    """The content counts, not the column's type, nor where in its buffers a slice begins."""
    fn = hashing()
    words = ["zero", "eins", "zwei", "drei ü", "four"]
    with embedreg.vector_cache(path) as cache:
        embedreg.embed_column(fn, words[1:])
        column = pa.array(words).cast(kind).slice(1)
        assert np.array_equal(embedreg.embed_column(fn, column).matrix, embedreg.embed_column(fn, words[1:]).matrix)
        assert cache.misses == 4


def test_a_query_is_kept_and_never_taken_for_a_source(path: Path) -> None:
    """The role is a part of the key, in both directions, whether a query comes alone or in a column."""
    fn = TwoRoles.create()
    with embedreg.vector_cache(path) as cache:
        for _ in range(2):
            assert embedreg.embed_column(fn, ["a text"]).matrix[0].tolist() == lengths("a text")
            assert embedreg.embed_query(fn, "a text").tolist() == [-x for x in lengths("a text")]
            assert embedreg.embed_column(fn, ["a text"], "query").matrix[0].tolist() == [-x for x in lengths("a text")]
        assert (cache.misses, cache.hits) == (2, 4)


def test_other_configurations_weights_and_widths_never_meet(path: Path) -> None:
    """Only the semantic configuration and the model's identity make the key: another of them is another key."""
    with embedreg.vector_cache(path) as cache:
        for fn in (hashing(), hashing(seed=1), hashing(lowercase=False), TwoRoles.create(), TwoRoles.create(scale=2)):
            expected = fn.compute_source_embeddings(["A Text"])
            assert np.array_equal(embedreg.embed_column(fn, ["A Text"]).matrix, expected)
        TwoRoles.weights = "second"
        embedreg.embed_column(TwoRoles.create(), ["A Text"])
        assert (cache.hits, cache.misses) == (0, 6)
        embedreg.embed_column(TwoRoles.create(max_retries=3), ["A Text"])
        assert cache.hits == 1  # a runtime field


@pytest.mark.slow
def test_weights_that_change_in_a_local_folder_miss(path: Path, minilm_path: Path, tmp_path: Path) -> None:
    """A model is its files, not its path: a copy elsewhere hits, and changed weights at the same path miss."""
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(minilm_path, folder)
    create = embedreg.get("sentence-transformers").create
    with embedreg.vector_cache(path) as cache:
        first = embedreg.embed_column(create(name=str(folder)), ["a text"]).matrix
        embedreg.embed_column(create(name=str(minilm_path)), ["a text"])
        assert (cache.hits, cache.misses) == (1, 1)
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in weights if name.endswith("word_embeddings.weight"))
        save_file({**weights, name: weights[name] * 1.5}, folder / "model.safetensors", {"format": "pt"})
        embedreg.release()
        changed = embedreg.embed_column(create(name=str(folder)), ["a text"]).matrix
        assert (cache.hits, cache.misses) == (1, 2)
    assert float(first[0] @ changed[0]) < 0.999


def test_a_class_without_identity_is_known_by_its_probe(path: Path) -> None:
    """Users' own classes that keep their name and change their vectors miss; the very same ones hit."""

    def defined(scale: float) -> Any:
        class Mine(TextEmbeddingFunction):
            def ndims(self) -> int:
                return 3

            def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
                return [[scale * value for value in lengths(str(text))] for text in texts]

        return Mine()

    with embedreg.vector_cache(path) as cache:
        for scale, hits in ((1.0, 0), (1.0, 1), (1.5, 1), (1.5, 2), (1.0, 3)):
            expected = [[scale * value for value in lengths("text")]]
            assert embedreg.embed_column(defined(scale), ["text"]).matrix.tolist() == expected
            assert cache.hits == hits


def test_a_remote_function_is_not_probed(path: Path) -> None:
    """A service is known by its configuration alone: no call is made to find out more."""

    class Service(Lengths):
        traits = Traits(remote=True)

    with embedreg.vector_cache(path) as cache:
        for _ in range(2):
            embedreg.embed_column(Service(), ["one", "two"])
        assert (cache.hits, Lengths.seen) == (2, ["one", "two"])


def test_bad_rows_are_tried_again(path: Path) -> None:
    """A row's failure is not kept, and lands in the right row beside hits."""
    fn = Picky.create()
    column = ["good", "bad", "fine", "none", "nan", "well"]
    with embedreg.vector_cache(path) as cache:
        for hits in (0, 3):
            made = embedreg.embed_column(fn, column)
            assert made.valid.tolist() == [True, False, True, False, False, True]
            assert sorted(made.reasons) == [1, 3, 4]
            assert made.reasons[1] == "refused by hand"
            assert cache.hits == hits
        assert len(cache) == 3


def test_bytes_are_kept_and_paths_are_not(path: Path) -> None:
    """What a picture's path names may change; its bytes are its content. Objects in memory are not kept."""

    class Sizes(embedreg.EmbeddingFunction):
        traits = Traits(modality="image", remote=True)

        def ndims(self) -> int:
            return 1

        def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
            values = images.to_pylist() if hasattr(images, "to_pylist") else images
            return np.array([[len(value)] for value in values], np.float32)

        def compute_query_embeddings(self, image: Any, *args: Any, **kwargs: Any) -> Any:
            return self.compute_source_embeddings([image])

    fn = Sizes()
    with embedreg.vector_cache(path) as cache:
        for _ in range(2):
            assert embedreg.embed_column(fn, [b"abc", b"d"]).matrix.tolist() == [[3], [1]]
            assert embedreg.embed_column(fn, ["a.png", "b.jpeg"]).matrix.tolist() == [[5], [6]]
        assert (cache.hits, cache.misses, len(cache)) == (2, 2, 2)


def test_a_query_in_words_for_pictures_is_kept(path: Path) -> None:
    """For a function of pictures and texts a string is a text as a query, and a path in its source column."""

    class Both(embedreg.EmbeddingFunction):
        traits = Traits(modality="image+text", remote=True)
        source_type: str = "image"

        def ndims(self) -> int:
            return 1

        def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
            return [[len(value)] for value in images.to_pylist()]

        def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return [[-len(query)]]

    with embedreg.vector_cache(path) as cache:
        for _ in range(2):
            assert embedreg.embed_query(Both(), "a red square").tolist() == [-12]
            assert embedreg.embed_query(Both(), b"abc").tolist() == [-3]
            assert embedreg.embed_column(Both(), ["a.png"]).matrix.tolist() == [[5]]
        assert (cache.hits, cache.misses) == (2, 2)
        for _ in range(2):
            assert embedreg.embed_column(Both(source_type="text"), ["a.png"]).matrix.tolist() == [[5]]
        assert (cache.hits, cache.misses) == (3, 3)


def test_calls_on_other_threads_use_it_until_it_is_closed(path: Path) -> None:
    """It is the process's: eight threads fill and read it at once, and after its end nothing is looked up."""
    fn = hashing()
    expected = embedreg.embed_column(fn, TEXTS).matrix
    wrong: list[int] = []

    def work(number: int) -> None:
        start = 200 * number
        some = TEXTS[start : start + 1000]
        if not np.array_equal(embedreg.embed_column(fn, some).matrix, expected[start : start + 1000]):
            wrong.append(number)

    with embedreg.vector_cache(path) as cache:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert cache.hits + cache.misses == 8000
        assert len(cache) == 2400
    embedreg.embed_column(fn, TEXTS)
    assert cache.hits + cache.misses == 8000
    assert disk.current() is None


# -- the bound -------------------------------------------------------------------------------------------------------


def size(path: Path) -> int:
    """Return what the cache takes on disk, in bytes, its log included."""
    return sum(file.stat().st_size for file in path.parent.glob(path.name + "*") if not file.name.endswith("-shm"))


@pytest.mark.parametrize("dim", [16, 384, 768, 1024, 3072])
def test_the_file_stays_within_its_bound(path: Path, dim: int) -> None:
    """Ten times what fits passes through, and the file is never larger than allowed."""
    bound = 2 * MIN_BYTES
    file = CacheFile(path, bound)
    generator = np.random.default_rng(0)
    vector = bytes(4 * dim)
    rows = 10 * bound // len(vector) // 20
    largest = 0
    for _ in range(20):
        file.store({generator.bytes(32): vector for _ in range(rows)})
        largest = max(largest, path.stat().st_size)
    assert largest <= bound
    assert len(file) * (len(vector) + 100) > bound // 2  # and it is used
    file.close()
    assert size(path) <= bound


def test_what_was_not_used_for_longest_goes_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector that is read now and then outlives those that nobody asks for."""
    monkeypatch.setattr(cache_file, "REFRESH_S", 0.0)
    file = CacheFile(path, MIN_BYTES)
    vector = bytes(400)
    kept = [bytes([1, number]) * 16 for number in range(50)]
    file.store(dict.fromkeys(kept, vector))
    for number in range(40):
        file.store({bytes([2, number, row]) + bytes(29): vector for row in range(100)})
        assert len(file.find(kept, 400)) == 50
    assert file.evicted > 1000
    assert not file.find([bytes([2, 0, 0]) + bytes(29)], 400)
    assert file.find([bytes([2, 39, 0]) + bytes(29)], 400)
    file.close()


def test_a_lower_bound_shrinks_the_file(path: Path) -> None:
    """A cache that is opened with less room gives the disk its space back at the next write."""
    with CacheFileOf(path, 8 * MIN_BYTES) as file:
        file.store({number.to_bytes(32, "big"): bytes(2000) for number in range(2000)})
    before = size(path)
    with CacheFileOf(path, MIN_BYTES) as file:
        file.store({bytes(32): bytes(2000)})
    assert before > 3 * MIN_BYTES
    assert size(path) <= MIN_BYTES


class CacheFileOf(CacheFile):
    """A cache file that closes at the end of a block."""

    def __enter__(self) -> CacheFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def test_a_bound_that_holds_nothing_is_refused(path: Path) -> None:
    """A bound of nothing is a mistake, and makes no file."""
    for bound in (0, -1, 1000, True, 1.5e9):
        with pytest.raises(ConfigError, match="invalid max_bytes="), embedreg.vector_cache(path, max_bytes=bound):
            pass
    assert not path.exists()


# -- several processes -----------------------------------------------------------------------------------------------

WORKER = """
import sys
import numpy as np
import embedreg

path, seed = sys.argv[1], int(sys.argv[2])
fn = embedreg.get("hashing").create(dim=64, seed=seed % 2)
texts = [f"text number {row}" for row in range(2000)]
plain = embedreg.embed_column(fn, texts).matrix
wide = embedreg.embed_column(embedreg.get("hashing").create(dim=128, seed=seed % 2), texts).matrix
print("ready", flush=True)
sys.stdin.readline()
with embedreg.vector_cache(path, max_bytes=2**20) as cache:
    for turn in range(6):
        rows = np.random.default_rng([seed, turn]).permutation(2000)[:1000]
        some = [texts[row] for row in rows]
        assert np.array_equal(embedreg.embed_column(fn, some).matrix, plain[rows])
        assert np.array_equal(embedreg.embed_column(fn, some[:200], "query").matrix, plain[rows[:200]])
        other = embedreg.get("hashing").create(dim=128, seed=seed % 2)
        assert np.array_equal(embedreg.embed_column(other, some).matrix, wide[rows])
print(cache.hits, cache.misses, cache.evicted)
"""


def started(*args: object, code: str = WORKER) -> subprocess.Popen[str]:
    """Start Python code in a new process that waits for a line on its stdin."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], text=True, **pipes)


def test_processes_share_it_and_nothing_crosses(path: Path) -> None:
    """Four processes, two of each configuration, read, write and evict at once: every vector is the right one."""
    workers = [started(path, seed) for seed in range(4)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    results = [worker.communicate("go\n", timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, results
    counts = np.array([[int(count) for count in out.split()] for out, _ in results])
    assert (counts[:, 0] > 0).all(), "no hits"
    assert counts[:, 2].sum() > 1000, "nothing had to make room"
    assert not any(err for _, err in results), results
    assert path.stat().st_size <= 2**20


KILLED = """
import sys
import embedreg

fn = embedreg.get("hashing").create(dim=256)
with embedreg.vector_cache(sys.argv[1], max_bytes=2**22):
    print("ready", flush=True)
    for turn in range(10**6):
        embedreg.embed_column(fn, [f"text {turn} {row}" for row in range(64)])
        print(turn, flush=True)
"""


def test_a_killed_writer_leaves_whole_vectors(path: Path) -> None:
    """Killed with -9 while it writes, ten times: the cache opens, and what it holds is what was computed."""
    fn = embedreg.get("hashing").create(dim=256)
    for kill in range(10):
        worker = started(path, code=KILLED)
        assert worker.stdout is not None
        for _ in range(2 + kill):
            worker.stdout.readline()
        worker.send_signal(signal.SIGKILL)
        worker.communicate(timeout=60)
    texts = [f"text {turn} {row}" for turn in range(12) for row in range(64)]
    expected = embedreg.embed_column(fn, texts).matrix
    with embedreg.vector_cache(path) as cache:
        assert np.array_equal(embedreg.embed_column(fn, texts).matrix, expected)
        assert cache.hits >= 9 * 64
    with contextlib.closing(sqlite3.connect(path)) as con:
        assert con.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_its_own(path: Path, run_python: Callable[..., str]) -> None:
    """A connection does not cross a fork: the child opens the file anew, and the parent's goes on."""
    code = (  # in a process of its own, where no library is loaded that cannot be forked
        "import os, embedreg\n"
        "fn, texts = embedreg.get('hashing').create(dim=8), [f'text {row}' for row in range(300)]\n"
        f"with embedreg.vector_cache({str(path)!r}) as cache:\n"
        "    embedreg.embed_column(fn, texts[:100])\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(0 if embedreg.embed_column(fn, texts[:200]).cached == 100 else 1)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "    print(embedreg.embed_column(fn, texts).cached, cache.stored)\n"
    )
    assert run_python(code).split() == ["0", "200", "200"]


# -- files that are not as they should be ----------------------------------------------------------------------------


def refused(path: Path) -> StorageError:
    """Return the error that opening gives, after seeing that the file is untouched."""
    before = path.read_bytes()
    with pytest.raises(StorageError) as raised, embedreg.vector_cache(path):
        pass
    assert path.read_bytes() == before
    assert raised.value.hint
    return raised.value


def test_what_is_no_cache_is_refused_and_left_alone(path: Path) -> None:
    """Another kind of file, another program's database, and a later format: a hint, and not a byte changed."""
    path.write_bytes(b"PAR1 and so on" * 100)
    assert "not an SQLite database" in refused(path).message
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE entries (key BLOB)")
    other.close()
    assert "database of another application" in refused(path).message
    path.unlink()
    CacheFile(path, MIN_BYTES).close()
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 2")
    later.close()
    assert "format 2" in refused(path).message
    with pytest.raises(StorageError, match="is not a regular file"), embedreg.vector_cache(path.parent):
        pass


ENDLESS = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n AS {} FROM c"
FOREIGN = {
    "a view": ["ALTER TABLE entries RENAME TO e", f"CREATE VIEW entries AS {ENDLESS.format('id')}"],
    "a view more": [f"CREATE VIEW other AS {ENDLESS.format('n')}"],
    "a trigger": ["CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END"],
    "a computed column": ["ALTER TABLE entries ADD COLUMN more AS (hex(zeroblob(1000000)))"],
    "an index with an expression": ["CREATE INDEX more ON entries (hex(vector))"],
    "an index less": ["DROP INDEX by_use"],
    "a table more": ["CREATE TABLE more (a)"],
    "other columns": ["DROP TABLE entries", "CREATE TABLE entries (id, key, used, vector)"],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_cache_with_another_schema_is_refused(path: Path, kind: str) -> None:
    """What a stranger wrote into the schema is never run, however it is dressed up as a cache."""
    CacheFile(path, MIN_BYTES).close()
    con = sqlite3.connect(path)
    for statement in FOREIGN[kind]:
        con.execute(statement)
    con.commit()
    con.close()
    assert "its tables are not those of a cache" in refused(path).message


def test_links_pipes_and_folders_are_refused(path: Path) -> None:
    """Nothing is made behind a dangling link, and no pipe is waited for; a link to one's own cache is that cache."""
    other = path.with_name("other")
    path.symlink_to(other)
    with pytest.raises(StorageError, match="a link to a file that does not exist"), embedreg.vector_cache(path):
        pass
    assert not other.exists()
    CacheFile(other, MIN_BYTES).close()
    CacheFile(path, MIN_BYTES).close()
    path.unlink()
    for make, remove in ((os.mkfifo, os.unlink), (os.mkdir, os.rmdir)):
        make(path)
        with pytest.raises(StorageError, match="is not a regular file"), embedreg.vector_cache(path):
            pass
        remove(path)


@pytest.mark.parametrize("end", ["", "-wal", "-journal"])
def test_what_others_could_have_written_is_refused(path: Path, end: str) -> None:
    """The file, and what SQLite would read beside it."""
    CacheFile(path, MIN_BYTES).close()
    each = path.with_name(path.name + end)
    each.touch(0o600)
    each.chmod(0o666)
    error = refused(path)
    assert "other users can write to" in error.message
    assert f"chmod 600 {each}" in str(error.hint)
    each.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(each, 4711, -1)
        assert "belongs to another user" in refused(path).message
        os.chown(each, 0, -1)
    CacheFile(path, MIN_BYTES).close()


def test_values_that_no_vector_has_are_computed_again(path: Path) -> None:
    """NaN and infinity with a right checksum, text in place of bytes, an invalid time, a blob of 100 MB."""
    fn, texts = hashing(), ["one", "two", "three", "four", "five"]
    expected = embedreg.embed_column(fn, texts).matrix
    with embedreg.vector_cache(path):
        embedreg.embed_column(fn, texts)
    con = sqlite3.connect(path)
    rows = con.execute("SELECT id, key, vector FROM entries ORDER BY id").fetchall()
    width = len(rows[0][2]) // 4 - 1
    for (row, key, _), value in zip(rows, (np.nan, np.inf), strict=False):
        vector = np.full(width, value, "<f4").tobytes()
        con.execute("UPDATE entries SET vector = ? WHERE id = ?", (cache_file._check(key, vector) + vector, row))
    con.execute("UPDATE entries SET vector = ? WHERE id = ?", ("x" * len(rows[0][2]), rows[2][0]))
    con.execute("UPDATE entries SET used = 'never' WHERE id = ?", (rows[3][0],))
    con.execute("UPDATE entries SET vector = zeroblob(100000000) WHERE id = ?", (rows[4][0],))
    con.commit()
    con.close()
    with embedreg.vector_cache(path) as cache:
        assert np.array_equal(embedreg.embed_column(fn, texts).matrix, expected)
        assert (cache.hits, cache.misses) == (1, 4)


def test_what_takes_the_file_too_long_is_interrupted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is made to go on for ever costs the cache, and not the run."""
    with CacheFileOf(path, MIN_BYTES) as file:
        monkeypatch.setattr(cache_file, "STATEMENT_S", 0.2)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            file._connect().execute(f"SELECT count(*) FROM ({ENDLESS.format('n')})").fetchone()


def test_a_damaged_cache_is_refused_with_the_way_out(path: Path) -> None:
    """A file that was cut off, or whose pages were overwritten, is named as damaged, and stays."""
    with CacheFileOf(path, MIN_BYTES) as file:
        file.store({number.to_bytes(32, "big"): bytes(1500) for number in range(300)})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 3], whole[:100] + b"\xff" * (len(whole) - 100)):
        path.write_bytes(damaged)
        error = refused(path)
        assert "damaged" in error.message
        assert "rm " in str(error.hint)


def test_damage_that_shows_later_costs_the_cache_and_not_the_run(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Pages in the middle that are overwritten: one warning, and every vector is computed."""
    fn = hashing()
    expected = embedreg.embed_column(fn, TEXTS).matrix
    with embedreg.vector_cache(path):
        embedreg.embed_column(fn, TEXTS)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle - 30 * 4096 : middle + 30 * 4096] = b"\xa5" * 60 * 4096
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING), embedreg.vector_cache(path):
        for _ in range(2):
            assert np.array_equal(embedreg.embed_column(fn, TEXTS).matrix, expected)
    assert len([record for record in caplog.records if "vector cache" in record.message]) == 1


def test_a_vector_that_was_changed_or_has_another_width_is_computed_again(path: Path) -> None:
    """Each row is checked: a flipped bit, and a vector of other dimensions, are misses; they are replaced."""
    fn = hashing()
    expected = embedreg.embed_column(fn, ["one", "two", "three"]).matrix
    with embedreg.vector_cache(path):
        embedreg.embed_column(fn, ["one", "two", "three"])
    con = sqlite3.connect(path)
    first, second = con.execute("SELECT id, vector FROM entries ORDER BY id LIMIT 2").fetchall()
    flipped = bytearray(first[1])
    flipped[20] ^= 0x40
    con.execute("UPDATE entries SET vector = ? WHERE id = ?", (bytes(flipped), first[0]))
    con.execute("UPDATE entries SET vector = ? WHERE id = ?", (second[1][:-4], second[0]))
    con.commit()
    con.close()
    with embedreg.vector_cache(path) as cache:
        for misses in (2, 2):
            assert np.array_equal(embedreg.embed_column(fn, ["one", "two", "three"]).matrix, expected)
            assert cache.misses == misses


def test_only_its_owner_can_read_it(path: Path) -> None:
    """Vectors tell of the texts behind them, so the file is private when it is made; it holds no text at all."""
    with embedreg.vector_cache(path):
        embedreg.embed_column(hashing(), ["a very private remark"])
        assert {file.stat().st_mode & 0o777 for file in path.parent.glob(path.name + "*")} == {0o600}
    assert b"private" not in path.read_bytes()


# -- what goes wrong meanwhile ---------------------------------------------------------------------------------------

FULL = """
import logging, resource, sys
import numpy as np
import embedreg

fn = embedreg.get("hashing").create(dim=256)
texts = [f"text number {row}" for row in range(3000)]
expected = embedreg.embed_column(fn, texts).matrix
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
with embedreg.vector_cache(sys.argv[1]) as cache:
    for _ in range(2):
        made = embedreg.embed_column(fn, texts)
        assert made.valid.all() and np.array_equal(made.matrix, expected)
print(cache.stored, cache.hits)
"""


@pytest.mark.parametrize("limit", [0, 20_000, 1_500_000], ids=["at once", "soon", "later"])
def test_a_full_disk_costs_the_cache_and_not_the_run(path: Path, limit: int) -> None:
    """No room for the file, or for the next vectors: one line of warning, every vector is there, none is null."""
    worker = started(path, limit, code=FULL)
    out, err = worker.communicate(timeout=120)
    assert worker.returncode == 0, err
    assert err.count("is no longer") == 1, err
    stored, hits = map(int, out.split())
    assert stored < 3000
    assert hits == stored  # what was kept is still read


def test_a_lock_that_stays_costs_the_cache_and_not_the_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody's open transaction is waited for once; then vectors are computed, and known ones still read."""
    monkeypatch.setattr(cache_file, "WAIT_S", 0.1)
    fn = hashing()
    with embedreg.vector_cache(path):
        embedreg.embed_column(fn, ["known"])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.WARNING), embedreg.vector_cache(path) as cache:
        for _ in range(3):
            assert embedreg.embed_column(fn, ["known", "new"]).valid.all()
        assert (cache.hits, cache.misses, cache.stored) == (3, 3, 0)
    other.close()
    assert len([record for record in caplog.records if "is no longer written to" in record.message]) == 1


def test_a_failed_call_still_raises(path: Path) -> None:
    """The cache hides no outage: what the function raises comes out, and nothing is kept."""

    class Broken(Lengths):
        def model_identity(self) -> str:
            return "broken"

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("the model fell over")

    with embedreg.vector_cache(path) as cache:
        with pytest.raises(RuntimeError, match="fell over"):
            embedreg.embed_column(Broken(), ["text"])
        assert len(cache) == 0


def test_a_function_without_a_probe_is_not_cached(path: Path) -> None:
    """What refuses the fixed input, and does not name its model, is computed each time."""

    class Vocabulary(Lengths):
        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return [RowError("no such word") if "fox" in str(text) else lengths(str(text)) for text in texts]

    class Odd(Lengths):
        how: Any = None

    with embedreg.vector_cache(path) as cache:
        for fn in (Vocabulary(), Vocabulary(), Odd(how=object())):
            assert embedreg.embed_column(fn, ["cat"]).matrix.tolist() == [lengths("cat")]
        assert (cache.hits, cache.misses, len(cache)) == (0, 0, 0)


def test_the_cache_that_was_opened_last_is_used(path: Path, tmp_path: Path) -> None:
    """Blocks nest; each cache is closed with its own block."""
    fn: Callable[[], Any] = hashing
    with embedreg.vector_cache(path) as outer:
        with embedreg.vector_cache(tmp_path / "inner") as inner:
            embedreg.embed_column(fn(), ["text"])
        assert (outer.misses, inner.misses) == (0, 1)
        embedreg.embed_column(fn(), ["text"])
        assert (outer.misses, inner.misses) == (1, 1)
