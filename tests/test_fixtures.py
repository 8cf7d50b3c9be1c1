"""What an earlier embedreg wrote is read, continued and searched by today's: tests/fixtures/, see write.py there."""

from __future__ import annotations

import importlib.util as importlib_util
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.cli import main
from tests.fixtures import functions, write
from tests.fixtures.functions import Lengths

HERE = Path(__file__).resolve().parent / "fixtures"
GENERATIONS = ["v0"]
PICKLED = ["v0", "v1"]  # v1 has pickles alone: all else on disk is as it was
FOUND = "pay the electricity bill"  # what the query of the fixtures looks for
NEW = "an electricity bill to be paid"
WITH_TEXT = [row for row, text in enumerate(write.TEXTS) if text and text.strip()]


@pytest.fixture(params=GENERATIONS)
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the fixtures as a user has such files, of one's own and as old as they were: the working directory.

    No service can be reached, and the user's class is registered.
    """
    target = tmp_path / request.param
    shutil.copytree(HERE / request.param, target)
    for path in target.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    for folder in ("jobs/inputs", "plain"):
        write.set_times(target / folder)
    monkeypatch.chdir(target)
    monkeypatch.setenv("FIXTURE_KEY", "a-key")
    monkeypatch.setenv(write.ENDPOINT, "http://127.0.0.1:9/v1")
    functions.register()
    Lengths.seen.clear()
    yield target
    embedreg.release()


@pytest.fixture(params=PICKLED)
def pickled(request: pytest.FixtureRequest, kept: Path) -> Path:
    """The fixtures with the pickles of a generation."""
    shutil.rmtree("pickles")
    shutil.copytree(HERE / request.param / "pickles", "pickles")
    return kept


@pytest.fixture
def about(kept: Path) -> dict[str, Any]:
    """What the writer said of this generation."""
    found: dict[str, Any] = json.loads(Path("about.json").read_text())
    return found


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    """Run a command with --json in this process; gives what it prints."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str) -> Any:
        capsys.readouterr()
        code = main([*arguments, "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)

    yield call
    signal.signal(signal.SIGTERM, handler)


def declared(name: str) -> Any:
    """The function that a Parquet fixture was written with, made anew."""
    return {"hashing": write.hashing, "minilm": write.minilm, "lengths": lambda: Lengths(scale=2.0)}[name]()


@pytest.mark.parametrize("name", ["hashing", pytest.param("minilm", marks=pytest.mark.slow), "lengths"])
def test_a_parquet_file_is_read_searched_and_filled_up(
    kept: Path, about: dict[str, Any], cli: Callable, name: str
) -> None:
    """The declaration gives the function, whose vectors are those that lie there; a new row joins them."""
    path = f"{name}.parquet"
    config = embedreg.functions_in(path)["vector"]
    assert config.source_column == "text"
    function = config.function
    if name == "minilm":  # where it runs is not stored
        function = function.model_copy(update={"device": "cpu"})
    assert function == declared(name)
    (drift,) = embedreg.check_drift(path)
    assert drift.verdict == "same"
    assert drift.cosine == pytest.approx(1, abs=1e-5)
    stored = pq.read_table(path)
    made = embedreg.embed_column(declared(name), write.TEXTS)
    assert made.valid.nonzero()[0].tolist() == WITH_TEXT
    vectors = np.array(stored["vector"].take(WITH_TEXT).to_pylist(), np.float32)
    np.testing.assert_allclose(made.matrix[WITH_TEXT], vectors, atol=1e-6)
    if name in about["queries"]:
        np.testing.assert_allclose(
            np.asarray(embedreg.embed_query(function, write.QUERY)), about["queries"][name], atol=1e-6
        )
        hits = cli("search", path, write.QUERY, "--limit", "1")
        assert FOUND in json.dumps(hits, ensure_ascii=False)
    row = pa.table({"id": [99], "text": [NEW], "vector": pa.nulls(1, stored.schema.field("vector").type)})
    report = embedreg.Report()
    filled = embedreg.embed_table(pa.concat_tables([stored, row.cast(stored.schema)]), report=report)
    assert (report.embedded, report.given) == (1, len(WITH_TEXT))
    assert filled.slice(0, len(stored)) == stored
    np.testing.assert_allclose(
        filled["vector"][-1].as_py(), embedreg.embed_column(declared(name), [NEW]).matrix[0], atol=1e-6
    )


@pytest.mark.parametrize("name", ["notes", "marked"])
def test_a_lance_table_is_searched_and_added_to(kept: Path, cli: Callable, name: str) -> None:
    """By lancedb itself, by the engine and by the command line; what was declared stays byte for byte."""
    lancedb = pytest.importorskip("lancedb")
    from embedreg.engines import lancedb as engine

    table = lancedb.connect("lance").open_table(name)
    before = table.schema.metadata[b"embedding_functions"]
    rows = len(table)
    assert embedreg.functions_in(table)["vector"].function == write.hashing()
    assert table.search(write.QUERY).limit(1).to_list()[0]["text"] == FOUND
    table.add([{"id": 98, "text": "plums and pears"}])
    engine.add(table, [{"id": 99, "text": NEW}])
    assert len(table) == rows + 2
    assert table.search(NEW).limit(1).to_list()[0]["text"] == NEW
    assert table.search("plums and pears").limit(1).to_list()[0]["id"] == 98
    now = embedreg.functions_in(table)["vector"]
    assert (now.function, now.source_column) == (write.hashing(), "text")
    if name == "marked":  # lancedb's own first write had no probe, which the engine adds
        assert table.schema.metadata[b"embedding_functions"] == before
    hits = cli("search", f"lance/{name}", NEW, "--limit", "1")
    assert NEW in json.dumps(hits)


def test_a_dataset_folder_is_read_and_is_done(kept: Path) -> None:
    """Its manifest alone declares the function; the same job again finds that everything is done."""
    files = {path: pq.read_table(path) for path in sorted(Path("dataset").glob("*.parquet"))}
    assert len(files) == 2
    assert write.dataset().reused == 2
    assert {path: pq.read_table(path) for path in files} == files
    for path, table in files.items():
        pq.write_table(table.replace_schema_metadata(None), path)
    assert embedreg.functions_in("dataset")["vector"].function == write.hashing()
    assert [each.verdict for each in embedreg.check_drift("dataset")] == ["same"]


def texts_seen() -> list[str]:
    """The texts of the jobs that the function has embedded; the probe is none of them."""
    return [text for text in Lengths.seen if text.startswith("note")]


def rows_of(path: str) -> Any:
    """All rows of what a job wrote, with its schema's metadata."""
    if path.endswith(".lance"):
        import lance

        table = lance.dataset(path).to_table()
    elif path.endswith(".parquet"):
        table = pq.read_table(path)
    else:
        table = ds.dataset(path, format="parquet").to_table()
    return table


@pytest.mark.parametrize("name", write.JOBS)
def test_a_job_that_was_killed_is_continued(kept: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What was published is neither done again nor lost, and the end is that of a job that nobody stopped."""
    monkeypatch.chdir("jobs")
    dst = write.JOBS[name][1]
    kept_in = Path(dst) if name == "folder" else Path(dst).parent / f".{Path(dst).name}.embedreg"
    records = [json.loads(each.read_text()) for each in kept_in.glob("_embedreg/ledger/*.json")]
    done = sum(each["rows"] for each in records)
    assert 0 < done < len(write.job_rows())
    report = write.run_job(name)
    assert report.reused == len(records)
    assert texts_seen() == [row["text"] for row in write.job_rows()[done:]]
    bad = [(each.row, each.reason) for _, each in report.bad]
    assert bad == [(7, "the text is bad")]
    Lengths.seen.clear()
    Path("again").mkdir()
    monkeypatch.chdir("again")
    shutil.copytree("../inputs", "inputs")
    whole = write.run_job(name)
    assert whole.reused == 0
    assert len(texts_seen()) == 39
    expected = rows_of(dst)
    monkeypatch.chdir("..")
    got = rows_of(dst)
    assert got == expected
    assert got.schema.metadata == expected.schema.metadata
    assert len(got) == (39 if name == "file" else 40)
    assert name == "folder" or not kept_in.exists()


@pytest.mark.parametrize("made", [write.hashing, pytest.param(write.minilm, marks=pytest.mark.slow), write.letters])
def test_a_vector_cache_is_hit(kept: Path, made: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text in either role comes from the file: the function is known by its class or by its weights."""
    embedreg.get_registry().bind_env("fixture_key", "FIXTURE_KEY")
    texts = [write.TEXTS[row] for row in WITH_TEXT]
    with embedreg.vector_cache("vectors.sqlite") as cache:
        embedded = embedreg.embed_column(made(), texts)
        query = np.asarray(embedreg.embed_query(made(), write.QUERY))
    assert (cache.hits, cache.misses, cache.stored) == (len(texts) + 1, 0, 0)
    assert embedded.valid.all()
    if made is write.letters:  # nothing answers at its endpoint
        from tests.servers import vector_of

        np.testing.assert_array_equal(embedded.matrix, [vector_of(text, 8) for text in texts])
        np.testing.assert_array_equal(query, vector_of(write.QUERY, 8))
    else:
        np.testing.assert_allclose(embedded.matrix, embedreg.embed_column(made(), texts).matrix, atol=1e-6)


def test_a_conversion_is_used_and_not_made_again(
    kept: Path, about: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's form of a model is found by the model's files, though the folder has moved; nothing is converted.

    A conversion holds for the versions of the libraries that made it, so those are what this process reports.
    """
    pytest.importorskip("huggingface_hub")
    if importlib_util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    from huggingface_hub import constants

    versions, version = about["libraries"], metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or version(name))
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)  # as the package itself does: nothing is reported
    from openvino import frontend

    refused: list[str] = []

    def convert(*_: Any) -> Any:
        refused.append("converted")
        raise RuntimeError("this test converts nothing")

    monkeypatch.setattr(frontend, "FrontEndManager", convert)
    texts = [write.TEXTS[row] for row in WITH_TEXT[:3]]
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(kept / "nothing"))
    with pytest.raises(embedreg.EmbedregError, match="this test converts nothing"):
        write.tiny(backend="openvino").compute_source_embeddings(texts)
    assert refused
    embedreg.release()
    refused.clear()
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(kept / "assets"))
    made = write.tiny(backend="openvino").compute_source_embeddings(texts)
    np.testing.assert_allclose(made, write.tiny().compute_source_embeddings(texts), atol=1e-5)
    assert refused == []
    found = [path.parent.relative_to("assets").as_posix() for path in Path("assets").rglob("model.xml")]
    assert found == about["conversions"]


def unpickled(name: str) -> Any:
    """A pickle's value."""
    return pickle.loads(Path(f"pickles/{name}.pickle").read_bytes())


def test_pickles_of_functions_are_the_functions(pickled: Path) -> None:
    """A pickle names classes and modules of the version that wrote it: it gives an equal function today."""
    assert unpickled("hashing") == write.hashing()
    assert unpickled("lengths") == Lengths(scale=3.0)
    model = unpickled("sentence-transformers")
    assert (model.name, model.query_prompt, model.truncate_dim) == ("all-MiniLM-L6-v2", "query: ", 64)
    assert unpickled("open-clip") == embedreg.get("open-clip").create(device="cpu")
    assert unpickled("openai").raw_fields()["api_key"] == "$var:fixture_key"
    assert unpickled("openai").api_key == "a-key"
    vectors = unpickled("hashing").compute_source_embeddings([FOUND])
    np.testing.assert_array_equal(vectors, write.hashing().compute_source_embeddings([FOUND]))
    for path in Path("pickles").glob("*.pickle"):
        value = unpickled(path.stem)
        if path.stem not in ("embedded", "error"):  # arrays have no one truth value, and errors are equal to themselves
            assert pickle.loads(pickle.dumps(value)) == value


def test_pickles_of_declarations_are_the_declarations(pickled: Path) -> None:
    """What was bound, and what was found in metadata with its probe, which is still held to."""
    bound = unpickled("declaration")
    assert (bound.function, bound.source_column, bound.vector_column) == (write.hashing(), "text", "vector")
    found = unpickled("found")
    assert found.from_metadata
    assert found == write.hashing()
    lengths = unpickled("functions-in")
    assert lengths["vector"].function == unpickled("found-declaration").function == Lengths(scale=2.0)
    table = embedreg.embed_table(pa.table({"text": ["abc"]}), unpickled("found-declaration"))
    assert table["vector"].to_pylist() == [[6.0, 2.0 * sum(b"abc")]]


def test_pickles_of_results_are_the_results(pickled: Path) -> None:
    """Reports, drift and vectors that were kept beside the data."""
    report = unpickled("report")
    assert type(report) is embedreg.Report
    assert (report.embedded, [(bad.row, bad.reason) for bad in report.bad]) == (39, [(7, "the text is bad")])
    assert unpickled("drift") == embedreg.check_drift("hashing.parquet")[0]
    made, then = embedreg.embed_column(write.hashing(), write.TEXTS), unpickled("embedded")
    assert type(then) is type(made)
    np.testing.assert_array_equal(then.matrix[WITH_TEXT], made.matrix[WITH_TEXT])
    assert then.valid.tolist() == made.valid.tolist()
    assert unpickled("image-policy") == embedreg.ImagePolicy(hosts=("images.example.com",), max_bytes=1000)
    assert unpickled("traits") == Lengths.traits
    error = unpickled("error")
    assert (type(error), str(error)) == (embedreg.RowError, str(embedreg.RowError("the text is bad")))
    job = unpickled("job-report")
    assert (job.rows, job.embedded, job.path) == (len(write.TEXTS), len(WITH_TEXT), "one/dataset")


def test_pickles_load_where_nothing_is_imported_yet(pickled: Path, run_python: Callable[..., str]) -> None:
    """A new process has no part of embedreg loaded: the pickle names all that is needed."""
    code = "import pickle, sys; print(*(type(pickle.load(open(p, 'rb'))).__name__ for p in sys.argv[1:]))"
    paths = sorted(path for path in Path("pickles").glob("*.pickle"))
    names = run_python(code, *[path.resolve() for path in paths], path=[HERE.parent.parent]).split()
    assert len(names) == len(paths)
    assert dict(zip([path.stem for path in paths], names, strict=True))["hashing"] == "HashingEmbeddings"


def test_a_module_of_an_earlier_version_has_what_was_pickled_and_no_more(run_python: Callable[..., str]) -> None:
    """It loads nothing until a name is asked for, and does not stand in for the rest of what it had."""
    code = """
import embedreg.value, sys
assert "embedreg.core.value" not in sys.modules
from embedreg.value import _rebuild
assert _rebuild.__module__ == "embedreg.core.value"
try:
    from embedreg.value import Value
except ImportError as exc:
    print(exc)
"""
    assert "cannot import name 'Value' from 'embedreg.value'" in run_python(code)


def test_duckdb_s_comments_declare_the_function(kept: Path) -> None:
    """The SQL that was printed runs, and the table's comment gives the function, installed and searched with."""
    duckdb = pytest.importorskip("duckdb")
    from embedreg.engines import duckdb as engine

    with duckdb.connect() as con:
        statements = Path("sql/duckdb.sql").read_text()
        for statement in duckdb.extract_statements(statements):
            if "ai_embed" not in statement.query:
                con.execute(statement)
        assert engine.functions_in(con, "notes")["vector"].function == write.hashing()
        assert engine.install(con, con.table("notes")) == write.hashing()
        (search,) = [each for each in duckdb.extract_statements(statements) if "ai_embed" in each.query]
        asked = search.query.replace("what you look for", write.QUERY)
        assert con.execute(asked).fetchone()[1] == FOUND


@pytest.mark.parametrize("version", ["1.2.453", "current"])
def test_databend_s_comments_declare_the_function(kept: Path, cli: Callable, version: str) -> None:
    """The comment in the DDL gives the function, and its configuration file equals today's."""
    text = Path(f"sql/databend-{version}.sql").read_text()
    (comment,) = re.findall(r"COMMENT '((?:[^']|'')*)'", text)
    found = embedreg.functions_in_comments([None, comment.replace("''", "'")])
    assert (found["vector"].source_column, found["vector"].function) == ("text", write.hashing())
    now = cli("ddl", "databend", "--like", "hashing.parquet", "--as", "ai_embed", "--databend-version", version)
    assert tomllib.loads(now["server_config"]) == tomllib.loads(Path(f"sql/databend-query-{version}.toml").read_text())


def test_a_server_s_settings_are_read(kept: Path) -> None:
    """`serve databend --config` serves what the file of then says, with its limits, until it is stopped."""
    line = [sys.executable, "-m", "embedreg", "serve", "databend", "--config", "serve.toml", "--json"]
    with (
        open("stderr.txt", "w+") as errors,
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ}) as process,
    ):
        try:
            printed = ""
            for read in process.stdout:
                printed += read
                if read == "}\n":
                    break
            assert printed, Path("stderr.txt").read_text()
            found = json.loads(printed)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    served = {each["name"]: each["ndims"] for each in found["functions"]}
    assert served == {"ai_embed_64": 64, "notes_embed": 16}
