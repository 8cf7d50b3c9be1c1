"""Children of chunks in files and Lance tables: cut, kept up to date with their parents, killed and continued."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import lance
import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg import chunks, columns
from embedreg.chunks import settings as stored
from embedreg.cli import main
from embedreg.errors import (
    ConfigError,
    InputError,
    MetadataError,
    MissingColumnError,
    SchemaError,
    StorageError,
    UntrustedError,
)


class Words(embedreg.TextEmbeddingFunction):
    """The words and the characters of a text; counts the texts that it embeds, and fails after some of them."""

    seen: ClassVar[list[str]] = []
    fails_after: ClassVar[int | None] = None

    def ndims(self) -> int:
        return 2

    def count_tokens(self, text: str) -> int:
        return len(text.split()) + 2

    def max_tokens(self) -> int:
        return 64

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        from embedreg.core.modality import PROBE_TEXT

        new = [text for text in texts if text != PROBE_TEXT]
        if self.fails_after is not None and len(self.seen) + len(new) > self.fails_after:
            raise RuntimeError("the model failed")
        self.seen.extend(new)
        return [[len(text.split()), len(text)] for text in texts]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The function, registered, with nothing counted; and no child that this process has named."""
    from embedreg.chunks import calls

    embedreg.register("words-and-characters")(Words)
    Words.seen.clear()
    Words.fails_after = None
    calls._made_here.clear()
    yield
    Words.fails_after = None


@pytest.fixture(params=["chunks.parquet", "chunks.arrow", "db/chunks.lance"])
def child(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the chunks go."""
    path: Path = tmp_path / request.param
    return path


@pytest.fixture
def parents(tmp_path: Path) -> Path:
    """The parents' file; tests write it."""
    return tmp_path / "parents.parquet"


def write(path: Path, texts: dict[Any, str | None]) -> None:
    """Write parents: key -> text."""
    pq.write_table(pa.table({"id": list(texts), "body": pa.array(list(texts.values()), pa.string())}), path)


def read(path: Path) -> pa.Table:
    """Return the chunks in the order of parents."""
    if path.suffix == ".lance":
        made = lance.dataset(str(path)).to_table()
    elif path.suffix == ".parquet":
        made = pq.ParquetFile(path).read()
    else:
        with pa.OSFile(str(path)) as file:
            made = pa.ipc.open_file(file).read_all()
    return made.sort_by([("id", "ascending"), ("chunk", "ascending")])


def cut(parents: Path, child: Path, **more: Any) -> chunks.ChunkReport:
    """Cut parents into chunks of eight tokens, two of which are special ones."""
    given: dict[str, Any] = {"key": "id", "source": "body", "size": 8, "overlap": 2} | more
    return embedreg.chunk(parents, child, Words.create().bind("text", "vector"), **given)


def sentence(number: int) -> str:
    """Three words that no other number has."""
    return f"One{number} two{number} three{number}."


def document(*numbers: int) -> str:
    """Sentences, of which two fit into a chunk."""
    return " ".join(map(sentence, numbers))


def right(child: Path, texts: dict[Any, str | None]) -> None:
    """Check every chunk: it is a span of its parent as that is now, with the vector of its text, and of one cut."""
    rows = read(child).to_pylist()
    assert {row["id"] for row in rows} == {key for key, text in texts.items() if text and text.strip()}
    for row in rows:
        text = texts[row["id"]] or ""
        assert text[row["start"] : row["end"]] == row["text"]
        assert row["vector"] == [len(row["text"].split()), len(row["text"])]
    for key in {row["id"] for row in rows}:
        mine = [row for row in rows if row["id"] == key]
        assert [row["chunk"] for row in mine] == list(range(len(mine)))
        assert len({row["parent_digest"] for row in mine}) == 1
        assert (mine[0]["start"], mine[-1]["end"]) == (0, len(texts[key] or ""))
    [status] = columns.status(child)
    assert (status.problem, status.fresh) == (None, len(rows))


def whole(child: Path, *generations: dict[Any, str | None]) -> int:
    """Check that in each version of a Lance table each parent's chunks are of one text and cover it.

    Returns:
        How many versions there are.
    """
    versions = [item["version"] for item in lance.dataset(str(child)).versions()]
    prefix = read(child)["parent_digest"][0].as_py().partition(":")[0]
    made_of = {stored.digest_of(text or "", f"{prefix}:"): text for texts in generations for text in texts.values()}
    for version in versions:
        rows = lance.dataset(str(child), version=version).to_table().sort_by("chunk").to_pylist()
        for key in {row["id"] for row in rows}:
            mine = [row for row in rows if row["id"] == key]
            (digest,) = {row["parent_digest"] for row in mine}
            text = made_of[digest] or ""
            assert [row["chunk"] for row in mine] == list(range(len(mine)))
            assert (mine[0]["start"], mine[-1]["end"]) == (0, len(text))
            assert all(text[row["start"] : row["end"]] == row["text"] for row in mine)
    return len(versions)


def test_a_child_follows_its_parents(parents: Path, child: Path) -> None:
    """Changed, new, emptied and removed parents; chunks whose text stays are not embedded again."""
    texts: dict[Any, str | None] = {1: document(*range(8)), 2: document(10, 11), 3: document(20), 4: None, 5: " "}
    write(parents, texts)
    report = cut(parents, child)
    assert (report.parents, report.cut, report.chunks, report.written) == (5, 3, 6, 6)
    assert (report.size, report.overlap, report.exact) == (8, 2, True)
    assert len(Words.seen) == 6
    right(child, texts)

    Words.seen.clear()
    report = embedreg.sync(child)
    assert (report.cut, report.written, report.embedded, Words.seen) == (0, 0, 0, [])

    texts = {1: document(0, 1, 2, 3), 3: " ", 4: document(20), 6: document(30)}  # 1 shortened from four chunks to two
    write(parents, texts)
    report = embedreg.sync(child)
    assert (report.cut, report.removed, report.reused, report.chunks) == (3, 1, 3, 4)
    assert Words.seen == [sentence(30)]  # that of parent 4 was parent 3's
    right(child, texts)
    before = child.read_bytes() if child.is_file() else lance.dataset(str(child)).version
    embedreg.sync(child)
    assert before == (child.read_bytes() if child.is_file() else lance.dataset(str(child)).version)
    assert [path.name for path in child.parent.iterdir() if path.name.startswith(".")] == []


def test_a_reader_never_sees_two_versions_of_a_parent(parents: Path, tmp_path: Path) -> None:
    """In each version of the table, each parent's chunks are of one text, and cover it."""
    child = tmp_path / "db" / "chunks.lance"
    first: dict[Any, str | None] = {key: document(*range(key, key + 8)) for key in range(5)}
    write(parents, first)
    cut(parents, child)
    second: dict[Any, str | None] = {key: document(*range(key, key + 4 + key)) for key in range(1, 6)}
    write(parents, second)
    embedreg.sync(child)
    versions = whole(child, first, second)
    assert versions - 2 <= 3  # made empty, the probe's declaration, one commit of parents; then one, and a delete


def test_only_the_chapter_that_was_edited_is_embedded(parents: Path, child: Path) -> None:
    """A book of 1 MB as one parent, by headings: of over a thousand chunks one is embedded after an edit."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghij", k=chance.randint(2, 9))) for _ in range(3000)]
    chapters = []
    for number in range(20):
        parts = [" ".join(chance.choices(words, k=chance.randint(5, 20))).capitalize() + ". " for _ in range(700)]
        paragraphs = ["".join(parts[n : n + 5]) for n in range(0, 700, 5)]
        chapters.append("\n\n".join([f"# Chapter {number}", *paragraphs, ""]))
    assert sum(map(len, chapters)) > 10**6
    declaration = embedreg.get("hashing").create(dim=16).bind("text", "vector")
    write(parents, {"book": "".join(chapters)})
    report = embedreg.chunk(parents, child, declaration, key="id", source="body", splitter="markdown")
    assert report.embedded == report.chunks > 1000
    assert not report.exact
    edited = chapters[7].partition("\n\n")[0] + "\n\nA new beginning. " + chapters[7].partition("\n\n")[2]
    text = "".join([*chapters[:7], edited, *chapters[8:]])
    write(parents, {"book": text})
    report = embedreg.sync(child)
    assert report.cut == 1
    assert 1 <= report.embedded <= 70  # of its chapter at most
    assert report.reused == report.written - report.embedded
    assert all(text[row["start"] : row["end"]] == row["text"] for row in read(child).to_pylist())


def test_what_a_failed_run_has_written_is_not_done_again(
    parents: Path, child: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails in its third group continues with that group; a file appears, or changes, when all is there."""
    monkeypatch.setattr("embedreg.chunks.running.PARENTS", 2)
    texts: dict[Any, str | None] = {key: document(10 * key, 10 * key + 1) for key in range(8)}
    write(parents, texts)
    Words.fails_after = 5
    with pytest.raises(RuntimeError, match="the model failed"):
        cut(parents, child)
    assert child.exists() == (child.suffix == ".lance")
    assert len(Words.seen) == 4
    Words.fails_after = None
    report = cut(parents, child)
    assert (report.cut, len(Words.seen), len(set(Words.seen))) == (4, 8, 8)
    right(child, texts)

    texts |= {key: document(100 * key) for key in range(1, 7)}
    del texts[7]
    write(parents, texts)
    Words.seen.clear()
    Words.fails_after = 5
    with pytest.raises(RuntimeError, match="the model failed"):
        embedreg.sync(child)
    texts |= {1: document(7), 2: None}  # changed again since
    write(parents, texts)
    Words.fails_after = None
    embedreg.sync(child)
    right(child, texts)
    assert [path.name for path in child.parent.iterdir() if path.name.startswith(".")] == []


KILLED = """
import os, signal, sys
import embedreg
from embedreg.chunks import running
from tests.chunks.test_chunks import Words

embedreg.register("words-and-characters")(Words)
running.PARENTS = 2
embed = Words.generate_embeddings

def killed(self, texts, *args, **kwargs):
    made = embed(self, texts)
    if len(Words.seen) >= 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return made

Words.generate_embeddings = killed
embedreg.chunk(*sys.argv[1:], Words.create().bind("text", "vector"), key="id", source="body", size=8, overlap=2)
"""


def test_a_killed_run_is_continued(parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the third group leaves two groups in pieces, which the next run uses; nothing is left afterwards."""
    child = tmp_path / "chunks.parquet"
    texts: dict[Any, str | None] = {key: document(10 * key, 10 * key + 1) for key in range(8)}
    write(parents, texts)
    done = subprocess.run([sys.executable, "-c", KILLED, str(parents), str(child)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not child.exists()
    monkeypatch.setattr("embedreg.chunks.running.PARENTS", 2)
    report = cut(parents, child)
    assert report.cut == 4
    right(child, texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunks.parquet", "parents.parquet"]


KILLED_IN_A_COMMIT = """
import os, signal, sys, threading
import embedreg
from embedreg.chunks import running
from embedreg.engines.lancedb.chunks import LanceChild
from tests.chunks.test_chunks import Words

embedreg.register("words-and-characters")(Words)
running.PARENTS = 2
write, groups = LanceChild.write, []

def killed(self, *args, **kwargs):
    groups.append(args)
    if len(groups) == 3:
        threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGKILL)).start()
    write(self, *args, **kwargs)
    if len(groups) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

LanceChild.write = killed
embedreg.chunk(*sys.argv[1:], Words.create().bind("text", "vector"), key="id", source="body", size=8, overlap=2)
"""


def test_a_lance_child_survives_being_killed(parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the model, then within a commit that replaces chunks: no version mixes two texts of a parent.

    Whatever was committed is not done again, and nothing is lost or doubled.
    """
    child = tmp_path / "db" / "chunks.lance"
    first: dict[Any, str | None] = {key: document(10 * key, 10 * key + 1, 10 * key + 2) for key in range(8)}
    write(parents, first)
    done = subprocess.run([sys.executable, "-c", KILLED, str(parents), str(child)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert {row["id"] for row in read(child).to_pylist()} == {0, 1}
    whole(child, first)
    monkeypatch.setattr("embedreg.chunks.running.PARENTS", 2)
    assert cut(parents, child).cut == 6
    right(child, first)

    second = first | {key: document(100 + key, 10 * key + 1) for key in range(8)}
    write(parents, second)
    done = subprocess.run([sys.executable, "-c", KILLED_IN_A_COMMIT, str(parents), str(child)], check=False)
    assert done.returncode == -signal.SIGKILL
    whole(child, first, second)
    report = cut(parents, child)
    assert report.cut in (2, 4)  # whether or not the third commit was there
    right(child, second)
    whole(child, first, second)
    assert not [path.name for path in child.parent.iterdir() if path.name.startswith(".")]


def test_another_way_of_cutting_cuts_all_parents_again(parents: Path, child: Path) -> None:
    """Splitter, its version, size and overlap are in the parents' digests; equal texts keep their vectors."""
    texts: dict[Any, str | None] = {1: document(*range(8)), 2: sentence(9)}
    write(parents, texts)
    cut(parents, child)
    Words.seen.clear()
    report = cut(parents, child, size=11, overlap=0)
    assert (report.cut, report.reused) == (2, 2)
    assert len(Words.seen) == 2
    right(child, texts)
    assert stored.read(read(child).schema.metadata, "it").size == 11  # type: ignore[union-attr]
    assert cut(parents, child, size=11, overlap=0).cut == 0
    assert cut(parents, child, splitter="tokens", size=11, overlap=0).cut == 2


def test_no_chunk_is_longer_than_the_model_takes(parents: Path, tmp_path: Path, minilm_path: Path) -> None:
    """With a real tokenizer and its special tokens; a size that the model does not take is refused."""
    fn = embedreg.get("sentence-transformers").create(name=str(minilm_path), device="cpu")
    text = "Unbelievably, antidisestablishmentarianism flourishes: 世界. " * 12 + "x" * 400
    write(parents, {1: text})
    child = tmp_path / "chunks.parquet"
    report = embedreg.chunk(parents, child, fn.bind("text", "vector"), key="id", source="body", size=24, overlap=4)
    counts = [fn.count_tokens(each) for each in read(child)["text"].to_pylist()]
    assert report.exact
    assert 12 < max(counts) <= 24
    with pytest.raises(ConfigError, match=r"size=100,000 is more than the \d+ tokens that the model takes"):
        embedreg.chunk(parents, child, fn.bind("text", "vector"), key="id", source="body", size=100_000)
    with pytest.raises(ConfigError, match="leave no room"):
        cut(parents, tmp_path / "other.parquet", size=2)


def test_metadata_opens_no_path_and_runs_no_code_by_itself(parents: Path, child: Path) -> None:
    """`sync` reads parents that metadata names once their path is granted, and calls no callable that it names."""
    from embedreg.chunks import calls

    write(parents, {1: sentence(1)})
    cut(parents, child)
    settings = stored.read(read(child).schema.metadata, "it")
    assert settings is not None
    assert settings.parent == ("../parents.parquet" if child.suffix == ".lance" else "parents.parquet")
    calls._made_here.clear()  # as another process
    with pytest.raises(UntrustedError, match="has not been granted") as caught:
        embedreg.sync(child)
    assert caught.value.needed == embedreg.Grant(paths=(str(parents),))
    with embedreg.trust(caught.value.needed):
        assert embedreg.sync(child).parents == 1
    assert embedreg.sync(child, parent=parents).parents == 1

    def whole(text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]

    cut(parents, child, splitter=whole)
    with pytest.raises(UntrustedError, match="which this process has not registered"):
        embedreg.sync(child, parent=parents)
    assert embedreg.sync(child, parent=parents, splitter=whole).cut == 0


@pytest.mark.parametrize(
    "value",
    [
        "", "[]", "{}", '{"format": 1}', "x" * 70_000, b"\xff",
        {"size": 0}, {"size": "8"}, {"size": 10**9}, {"format": 2}, {"counted_by": "x"}, {"more": 1}, {"key": ""},
        {"splitter": "x" * 5000},
    ],
)  # fmt: skip
def test_stored_settings_are_read_strictly(value: Any) -> None:
    """What embedreg would not write is an error that quotes nothing."""
    good = stored.Settings(
        parent="p.parquet",
        key="id",
        source="body",
        vector="vector",
        splitter="tokens",
        size=8,
        overlap=0,
        counted_by="0" * 8,
    )
    assert stored.read({stored.KEY: good.encoded}, "it") == good
    text = json.dumps(good.model_dump() | value) if isinstance(value, dict) else value
    with pytest.raises(MetadataError, match=r"the metadata 'embedreg.chunks' of it cannot be read"):
        stored.read({stored.KEY: text}, "it")


@pytest.mark.parametrize("damage", ["twice", "lost", "no key", "digest"])
def test_chunks_that_are_there_twice_or_lost_are_cut_again(parents: Path, child: Path, damage: str) -> None:
    """A child that was appended to itself, or whose rows were deleted, is as it should be after a run."""
    texts: dict[Any, str | None] = {1: document(*range(8)), 2: document(10, 11), 3: document(20)}
    write(parents, texts)
    cut(parents, child)
    made = read(child)
    if damage == "twice":
        odd = pa.concat_tables([made, made.slice(2, 3)])
    elif damage == "lost":
        odd = pa.concat_tables([made.slice(0, 1), made.slice(2)])
    else:
        rows = made.to_pylist()
        rows[1]["id" if damage == "no key" else "parent_digest"] = None
        odd = pa.Table.from_pylist(rows, made.schema)
    if child.suffix == ".lance":
        lance.write_dataset(odd, str(child), mode="overwrite")
    elif child.suffix == ".parquet":
        pq.write_table(odd, child)
    else:
        with pa.OSFile(str(child), "wb") as file, pa.ipc.new_file(file, odd.schema) as writer:
            writer.write_table(odd)
    assert cut(parents, child).written > 0
    right(child, texts)
    assert cut(parents, child).written == 0


def test_what_lies_in_the_hidden_folder_is_untrusted(parents: Path, tmp_path: Path) -> None:
    """Names that embedreg does not give, links, pipes, and rows that are there twice: none gets into the child."""
    child, hidden = tmp_path / "c.parquet", tmp_path / ".c.parquet.embedreg" / "pieces"
    texts: dict[Any, str | None] = {1: document(*range(8)), 2: document(10, 11)}
    write(parents, texts)
    cut(parents, child)
    made = read(child)
    texts[2] = document(12)
    write(parents, texts)
    hidden.mkdir(parents=True)
    pq.write_table(made, hidden / "\u00b2.parquet")
    pq.write_table(made, hidden / f"{'9' * 200}.parquet")
    pq.write_table(pa.concat_tables([made, made]), hidden / "00000001.parquet")
    (hidden / "00000002.parquet").symlink_to(parents)
    os.mkfifo(hidden / "00000003.parquet")
    (hidden / "00000004.parquet").write_bytes(b"PAR1")
    cut(parents, child)
    right(child, texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.parquet", "parents.parquet"]


def test_what_cannot_be_cut_is_named(parents: Path, child: Path, tmp_path: Path) -> None:
    """Keys and columns, tables of others, and places where no chunks can be."""
    write(parents, {1: sentence(1)})
    with pytest.raises(MissingColumnError, match="no column 'key'"):
        cut(parents, child, key="key")
    with pytest.raises(InputError, match="only texts are cut"):
        cut(parents, child, source="id")
    with pytest.raises(SchemaError, match="the same name"):
        embedreg.chunk(parents, child, Words.create().bind("id", "vector"), key="id", source="body")
    for keys in ([1, 1], [1, None]):
        pq.write_table(pa.table({"id": keys, "body": ["a", "b"]}), tmp_path / "twice.parquet")
        with pytest.raises(InputError, match=r"a duplicate|is null"):
            cut(tmp_path / "twice.parquet", child)
    with pytest.raises(StorageError, match="cannot be kept in"):
        cut(parents, tmp_path / "folder")
    if child.suffix == ".lance":  # whose conditions would not find them again
        for odd in ("a.b", 'a"b', "a`b"):
            pq.write_table(pa.table({odd: [1], "body": ["a"]}), tmp_path / "odd.parquet")
            with pytest.raises(InputError, match="the name of the key column"):
                cut(tmp_path / "odd.parquet", tmp_path / "db" / "odd.lance", key=odd)
    with pytest.raises(MetadataError, match="is not a table of chunks"):
        embedreg.sync(parents)
    if child.suffix == ".parquet":
        with pytest.raises(StorageError, match="exists and holds no chunks"):
            cut(parents, tmp_path / "twice.parquet")
    cut(parents, child)
    other = embedreg.get("hashing").create(dim=2)
    with pytest.raises(SchemaError, match="vectors of another function"):
        embedreg.chunk(parents, child, other.bind("text", "vector"), key="id", source="body")


def test_a_search_returns_parents_with_their_best_chunk(
    parents: Path, child: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--group-by-parent` shows each parent once, however many of its chunks are near; `best_chunks` does so too."""
    texts: dict[Any, str | None] = {"long": " ".join(["wool and yarn."] * 40), "short": "wool.", "other": "iron, rust."}
    write(parents, texts)
    call = ["chunk", str(parents), str(child), "-f", "hashing", "--source", "body", "--size", "12", "--overlap", "0"]
    assert main(call) == 0
    assert "3 of 3 parents cut" in capsys.readouterr().out
    assert main(["chunk", str(parents), str(child)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    search = ["search", str(child), "wool and yarn", "--json", "-n", "3"]
    assert main(search) == 0
    assert {row["id"] for row in json.loads(capsys.readouterr().out)} == {"long"}
    assert main([*search, "--group-by-parent"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["id"] == "long"
    assert len(found) == len({row["id"] for row in found}) == 3
    assert "parent_digest" not in found[0]
    assert main([*search, "--group-by-parent", "--where", "id != 'long' and chunk = 0"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == [row["id"] for row in found[1:]]
    if child.suffix == ".parquet":
        (child.parent / "folder").mkdir()
        shutil.copy(child, child.parent / "folder")
        assert main(["search", str(child.parent / "folder"), *search[2:], "--group-by-parent"]) == 0
        assert json.loads(capsys.readouterr().out) == found
    if child.suffix == ".lance":
        rows = lancedb.connect(child.parent).open_table("chunks").search("wool and yarn").limit(100).to_list()
        best = chunks.best_chunks(rows, "id", 2)
        assert [row["id"] for row in best] == [row["id"] for row in found][:2]
    assert main(["search", str(parents), "x", "--group-by-parent"]) != 0
