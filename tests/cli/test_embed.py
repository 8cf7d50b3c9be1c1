"""`embedreg embed`: files in, vectors out."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.cli import exits
from embedreg.cli.estimate import Distinct

PICKY = '''
import time
import embedreg

@embedreg.register("picky")
class Picky(embedreg.TextEmbeddingFunction):
    """Refuses the texts that say bad, and takes a while on request."""

    pause_s: float = 0.0

    def ndims(self):
        return 2

    def generate_embeddings(self, texts):
        if len(texts) > 1:
            time.sleep(self.pause_s)
        return [embedreg.RowError("it says bad") if "bad" in text else [1.0, len(text)] for text in texts]
'''


@pytest.fixture
def picky(tmp_path: Path) -> tuple[str, ...]:
    """The options that bring a function which refuses some rows."""
    (tmp_path / "picky.py").write_text(PICKY)
    return "--import", "picky.py", "-f", "picky"


def vectors(path: Path | str, column: str = "vector") -> list[list[float] | None]:
    """The vectors that a Parquet file holds."""
    return pq.read_table(path).column(column).to_pylist()


def expected(texts: list[str | None]) -> list[list[float] | None]:
    """What `hashing` gives for each text, computed without embedreg's tables."""
    function = embedreg.get("hashing").create()
    return [
        None if text is None or not text.strip() else function.generate_embeddings([text])[0].tolist() for text in texts
    ]


def left(folder: Path) -> list[str]:
    """What is in a folder, besides what Python keeps of modules that it compiled."""
    return sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "ndjson", "csv"])
def test_every_kind_of_source_gives_the_same_vectors(cli: Callable, texts: Path, tmp_path: Path, suffix: str) -> None:
    """Parquet, JSON lines and CSV of the same rows become the same Parquet."""
    table, source = pq.read_table(texts), tmp_path / f"source.{suffix}"
    if suffix == "csv":
        pc.write_csv(table, source)
    elif suffix != "parquet":
        source.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        source = texts
    cli("embed", source, "out.parquet", "-f", "hashing")
    found = pq.read_table("out.parquet")
    assert found.column_names == ["id", "text", "vector"]
    assert found.column("id").to_pylist() == table.column("id").to_pylist()
    assert vectors("out.parquet") == expected(table.column("text").to_pylist())
    assert embedreg.functions_in("out.parquet")["vector"].source_column == "text"


def test_a_lance_table_gets_the_same_vectors_and_its_declaration(cli: Callable, texts: Path, tmp_path: Path) -> None:
    """DB_DIR/name.lance is a table that lancedb opens and embedreg searches; nothing else is in the folder."""
    cli("embed", texts, "db/articles.lance", "-f", "hashing")
    table = lancedb.connect("db").open_table("articles")
    assert table.to_arrow().column("vector").to_pylist() == expected(pq.read_table(texts).column("text").to_pylist())
    assert embedreg.functions_in("db/articles.lance")["vector"].function == embedreg.get("hashing").create()
    assert left(tmp_path / "db") == ["articles.lance"]


def test_set_reads_json_and_else_text(cli: Callable, texts: Path) -> None:
    """Numbers, booleans, lists and null are parsed; values that are not JSON are text."""
    cli(
        "embed",
        texts,
        "out.parquet",
        "-f",
        "hashing",
        "--set",
        "dim=64",
        "--set",
        "lowercase=false",
        "--set",
        "word_ngrams=[1,1]",
    )
    function = embedreg.functions_in("out.parquet")["vector"].function
    assert (function.ndims(), function.lowercase, function.word_ngrams) == (64, False, (1, 1))


def test_the_summary_counts_the_rows_by_outcome(cli: Callable, texts: Path) -> None:
    """--json gives rows, distinct inputs, nulls and the bad rows, and nothing else is on stdout."""
    found = cli("embed", texts, "out.parquet", "-f", "hashing", "--json").json
    assert {key: found[key] for key in ("path", "rows", "embedded", "nulls", "bad")} == {
        "path": "out.parquet",
        "rows": 6,
        "embedded": 3,
        "nulls": 2,
        "bad": [],
    }


def test_row_groups_are_bounded_by_the_batch(cli: Callable, tmp_path: Path) -> None:
    """--batch-rows bounds what is held in memory and what a row group holds."""
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(100)]}), tmp_path / "source.parquet")
    cli("embed", "source.parquet", "out.parquet", "-f", "hashing", "--batch-rows", 30)
    file = pq.ParquetFile("out.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [30, 30, 30, 10]


def test_a_file_that_declares_its_function_needs_no_other(cli: Callable, texts: Path) -> None:
    """What was embedded once is filled up by its own function: given vectors stay, new rows get theirs."""
    cli("embed", texts, "first.parquet", "-f", "hashing", "--set", "dim=16")
    first = pq.read_table("first.parquet")
    more = pa.table(
        {"id": [6], "text": ["a new row"], "vector": pa.nulls(1, first.schema.field("vector").type)},
        schema=first.schema,
    )
    pq.write_table(pa.concat_tables([first, more]), "grown.parquet")
    report = cli("embed", "grown.parquet", "second.parquet", "--json").json
    assert (report["given"], report["embedded"]) == (4, 1)
    assert vectors("second.parquet")[:6] == vectors("first.parquet")
    assert vectors("second.parquet")[6] is not None


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["absent.parquet", "out.parquet", "-f", "hashing"], exits.ERROR, "there is no such file"),
        (["texts.parquet", "out.parquet", "-f", "hashing", "--source", "txt"], exits.ERROR, "did you mean 'text'"),
        (["texts.parquet", "out.parquet", "-f", "hashign"], exits.ERROR, "did you mean 'hashing'"),
        (["texts.parquet", "out.parquet", "-f", "hashing", "--set", "dmi=3"], exits.ERROR, "did you mean 'dim'"),
        (["texts.parquet", "out.parquet", "-f", "hashing", "--set", "dim=many"], exits.ERROR, "dim"),
        (["texts.parquet", "out.parquet", "-f", "hashing", "--set", "dim"], exits.USAGE, "KEY=VALUE"),
        (["texts.parquet", "out.parquet", "-f", "hashing", "--vector", "text"], exits.USAGE, "both 'text'"),
        (["texts.parquet", "out.parquet", "-f", "hashing", "--on-error", "ignore"], exits.USAGE, "ignore"),
        (["texts.parquet", "out.parquet"], exits.USAGE, "--function NAME is needed"),
        (["texts.parquet", "-f", "hashing"], exits.USAGE, "give DST, or --estimate"),
        (["texts.parquet", "out.xlsx", "-f", "hashing"], exits.ERROR, "unknown format of output"),
        (["texts.parquet", "texts.parquet", "-f", "hashing", "--force"], exits.ERROR, "is what is being read"),
        (["texts.parquet", "there.parquet", "-f", "hashing"], exits.ERROR, "--force replaces it"),
        (["texts.parquet", "folder/out.parquet", "-f", "hashing", "--source", "id"], exits.ERROR, "id"),
        (["texts.parquet", "there.parquet/out.parquet", "-f", "hashing"], exits.ERROR, "is a file"),
        (["corrupt.parquet", "out.parquet", "-f", "hashing"], exits.ERROR, "cannot be read as parquet"),
        (["corrupt.jsonl", "out.parquet", "-f", "hashing"], exits.ERROR, "line 2"),
        (["texts.parquet", "out.parquet", "-f", "openai", "--set", "api_key=sk-live-123"], exits.ERROR, "hard-coded"),
        (["texts.parquet", "out.parquet", "-f", "openai", "--set", "api_key=$var:k"], exits.ERROR, "--env k=K"),
    ],
)
def test_bad_input_is_one_line_and_a_hint_and_writes_nothing(
    cli: Callable, texts: Path, tmp_path: Path, args: list[str], code: int, message: str
) -> None:
    """Each refusal has its exit code and a hint, shows no secret and leaves no file."""
    (tmp_path / "corrupt.parquet").write_bytes(b"PAR1" + b"x" * 50 + b"PAR1")
    (tmp_path / "corrupt.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "there.parquet").write_text("what was there")
    before = left(tmp_path)
    result = cli("embed", *args, expect=code)
    assert message in result.err
    assert "Traceback" not in result.err
    assert "sk-live" not in result.err + result.out
    assert code == exits.USAGE or "Hint: " in result.err
    assert left(tmp_path) == before
    assert (tmp_path / "there.parquet").read_text() == "what was there"


def test_bad_rows_follow_the_policy(cli: Callable, picky: tuple[str, ...], tmp_path: Path) -> None:
    """Raise stops before anything is written, null keeps the row, drop leaves it out; the report names it."""
    pq.write_table(pa.table({"text": ["good", "bad", "better"]}), tmp_path / "source.parquet")
    refused = cli("embed", "source.parquet", "out.parquet", *picky, expect=exits.ERROR)
    assert "row 1" in refused.err
    assert not Path("out.parquet").exists()
    kept = cli("embed", "source.parquet", "null.parquet", *picky, "--on-error", "null", "--json").json
    assert kept["bad"] == [
        {"input": "source.parquet", "row": 1, "column": "text", "key": None, "reason": "it says bad"}
    ]
    assert vectors("null.parquet") == [[1.0, 4.0], None, [1.0, 6.0]]
    cli("embed", "source.parquet", "drop.parquet", *picky, "--on-error", "drop")
    assert vectors("drop.parquet") == [[1.0, 4.0], [1.0, 6.0]]
    cli("embed", "source.parquet", "db/drop.lance", *picky, "--on-error", "drop")
    assert lancedb.connect("db").open_table("drop").count_rows() == 2
    stopped = cli(
        "embed", "source.parquet", "stop.parquet", *picky, "--on-error", "null", "--max-bad-rows", 0, expect=exits.ERROR
    )
    assert "max_bad_rows" in stopped.err


@pytest.mark.parametrize("name", ["out.parquet", "db/out.lance"])
def test_a_full_disk_leaves_the_earlier_data_intact(command: Callable, tmp_path: Path, name: str) -> None:
    """If writing fails, the error names it, the old output is complete, and no partial file stays."""
    pq.write_table(pa.table({"text": ["small"]}), tmp_path / "small.parquet")
    pq.write_table(pa.table({"text": [f"text number {n}" for n in range(3000)]}), tmp_path / "large.parquet")
    command("embed", "small.parquet", name, "-f", "hashing")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # A limit of 200 kB on each file is a disk that fills up, for one process.
    line = ["bash", "-c", 'ulimit -f 200; exec "$@"', "-", sys.executable, "-m", "embedreg"]
    line += ["embed", "large.parquet", name, "-f", "hashing", "--force"]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == exits.ERROR, result.stderr
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert "panicked" not in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("name", ["out.parquet", "out.lance"])
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, exits.INTERRUPTED), (signal.SIGTERM, exits.TERMINATED)])
def test_an_interruption_leaves_no_partial_files(
    picky: tuple[str, ...], tmp_path: Path, stop: signal.Signals, code: int, name: str
) -> None:
    """Ctrl-C and SIGTERM end it with their own exit codes and clean up."""
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(400)]}), tmp_path / "source.parquet")
    line = [sys.executable, "-m", "embedreg", "embed", "source.parquet", f"new/{name}", *picky]
    line += ["--set", "pause_s=0.2", "--batch-rows", "4"]
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any((tmp_path / "new").glob(f".{name}.*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert left(tmp_path) == ["picky.py", "source.parquet"]


def test_ctrl_c_within_an_import_has_its_exit_code(tmp_path: Path) -> None:
    """Also where it ends the `exec` of a text, after which Python itself would end by the signal."""
    (tmp_path / "slow.py").write_text("exec('raise KeyboardInterrupt')")
    line = [sys.executable, "-m", "embedreg", "functions", "--import", "slow.py"]
    ended = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == exits.INTERRUPTED
    assert ended.stderr.strip().splitlines()[-1] == "embedreg: stopped."
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(cli: Callable, texts: Path, tmp_path: Path) -> None:
    """What may not be written to is named."""
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "Permission denied" in cli("embed", texts, "closed/out.parquet", "-f", "hashing", expect=exits.ERROR).err


def test_an_estimate_writes_nothing_and_counts(cli: Callable, tmp_path: Path) -> None:
    """Rows, blanks and duplicates are counted; the time comes from a measured sample."""
    rows = [f"text {n % 50}" for n in range(200)] + [None, " "]
    pq.write_table(pa.table({"text": rows}), tmp_path / "source.parquet")
    [found] = cli("embed", "source.parquet", "--estimate", "-f", "hashing", "--json").json
    assert (found["rows"], found["empty"], found["duplicates"], found["to_embed"]) == (202, 2, 150, 50)
    assert found["exact"] is True
    assert found["seconds"] > 0
    assert found["rows_per_s"] > 0
    assert "150 (75.0%)" in cli("embed", "source.parquet", "--estimate", "-f", "hashing").out
    assert left(tmp_path) == ["source.parquet"]


def test_an_estimate_counts_tokens_and_what_would_be_truncated(cli: Callable, tmp_path: Path) -> None:
    """For a model with a tokenizer: tokens in all, and the share of rows longer than the model reads."""
    texts = ["one two three"] * 3 + ["word " * 1000]
    pq.write_table(pa.table({"text": texts}), tmp_path / "source.parquet")
    [found] = cli("embed", "source.parquet", "--estimate", "-f", "sentence-transformers", "--json").json
    assert found["tokens"] == 3 * 5 + 1002  # with the two tokens that frame each text
    assert found["max_tokens"] == 256
    assert found["truncated_share"] == 0.25


def test_distinct_values_are_counted_exactly_and_then_in_bounded_memory() -> None:
    """Up to its bound the count is exact; beyond it the estimate is within a few percent, with no more kept."""
    exact, rough = Distinct(), Distinct(keep=1000)
    for n in range(50_000):
        exact.add(f"text {n % 20_000}")
        rough.add(f"text {n % 20_000}")
    assert (exact.count, exact.exact) == (20_000, True)
    assert rough.exact is False
    assert len(rough._seen) <= 1000
    assert abs(rough.count - 20_000) < 2_000  # three standard errors: 1.2/sqrt(500 kept on average)


def test_vectors_equal_those_of_the_library(cli: Callable, minilm_path: Path, tmp_path: Path) -> None:
    """Through the command line, MiniLM's vectors are SentenceTransformer.encode's."""
    from sentence_transformers import SentenceTransformer

    rows = ["wait for a thread", "copy a file", "the quick brown fox " * 20]
    pq.write_table(pa.table({"text": rows}), tmp_path / "source.parquet")
    cli("embed", "source.parquet", "out.parquet", "-f", "sentence-transformers", "--set", "name=all-MiniLM-L6-v2")
    reference = SentenceTransformer(str(minilm_path), device="cpu").encode(rows, normalize_embeddings=True)
    cosines = (np.array(vectors("out.parquet")) * reference).sum(1)
    assert cosines.min() > 0.9999
