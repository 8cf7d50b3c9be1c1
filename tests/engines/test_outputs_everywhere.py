"""Vectors of zeros, outages and reasons that hold a key: each engine does with them what `embed_column` decided."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg import RowError, TextEmbeddingFunction, Traits
from embedreg.embedding.schema import resolve
from embedreg.engines import duckdb as duckdb_engine
from embedreg.engines import lancedb as lancedb_engine
from embedreg.engines.databend import serve
from embedreg.engines.ray.worker import BlockEmbedder, pack, plan
from embedreg.errors import ConfigError, InputError
from tests.engines.databend_flight import Client

KEY = "sk-0123456789-of-an-engine"
TEXTS = ["one", "zero", None, "two"]


@embedreg.register("zeros-everywhere")
class Zeros(TextEmbeddingFunction):
    """Embeds "zero" as zeros; under "down" it gives NaN for all, under "refusing" it repeats its key."""

    traits: ClassVar[Traits] = Traits(retry=False)
    how: str = ""
    api_key: str | None = None

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    def ndims(self) -> int:
        return 2

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        texts = list(texts)
        if self.how == "down":
            return np.full((len(texts), 2), np.nan)
        if self.how == "refusing":
            return [RowError(f"refused with {self.api_key}") if text == "two" else [1, 2] for text in texts]
        return np.array([[0, 0] if text == "zero" else [1, 2] for text in texts], np.float32)


@embedreg.register("zeros-everywhere-by-dot")
class ZerosByDot(Zeros):
    """The same, to be compared by dot product."""

    traits: ClassVar[Traits] = Traits(retry=False, metric="dot")


Engine = Callable[..., list[Any]]


def by_table(function: Zeros, folder: Path, **options: Any) -> list[Any]:
    """Embed a table."""
    made = embedreg.embed_table({"text": TEXTS}, function.bind("text", "vector"), on_error="null", **options)
    return list(made["vector"].to_pylist())


def by_job(function: Zeros, folder: Path, **options: Any) -> list[Any]:
    """Embed a file into a folder of files."""
    pq.write_table(pa.table({"text": TEXTS}), folder / "in.parquet")
    bound = function.bind("text", "vector")
    embedreg.embed(folder / "in.parquet", folder / "out", bound, on_error="null", **options)
    return list(pq.read_table(folder / "out" / "in.parquet")["vector"].to_pylist())


def by_lancedb(function: Zeros, folder: Path, **options: Any) -> list[Any]:
    """Add to a LanceDB table."""
    import lancedb

    bound = function.bind("text", "vector")
    schema = embedreg.embed_table(pa.table({"text": pa.array([], pa.string())}), bound).schema
    table = lancedb_engine.create_table(lancedb.connect(folder), "t", schema)
    lancedb_engine.add(table, {"text": TEXTS}, **options)
    return list(table.to_arrow()["vector"].to_pylist())


def by_duckdb(function: Zeros, folder: Path, **options: Any) -> list[Any]:
    """Call it in DuckDB."""
    con = duckdb.connect()
    duckdb_engine.install(con, function, "f", **options)
    con.register("texts", pa.table({"row": range(len(TEXTS)), "text": TEXTS}))
    found = con.sql("SELECT f(text) FROM texts ORDER BY row").fetchall()
    return [None if value is None else list(value) for (value,) in found]


def by_databend(function: Zeros, folder: Path, **options: Any) -> list[Any]:
    """Call it as Databend does."""
    with serve({"f": function}, bind="127.0.0.1:0", warm=False, **options) as server:
        return list(Client(server.address).call("f", TEXTS).to_pylist())


def by_ray(function: Zeros, folder: Path, **options: Any) -> list[Any]:
    """Fill a block as an actor of Ray does, in this process."""
    schema = resolve([function.bind("text", "vector")])
    block = pa.table({"text": TEXTS})
    payload = pack(schema, [function])
    planned: Any = plan(payload, block.schema, {"on_error": "null", "batch_rows": 8, **options})
    if isinstance(planned, Exception):  # which the driver raises
        raise planned
    return list(BlockEmbedder(payload, planned)(block)["vector"].to_pylist())


ENGINES: dict[str, Engine] = {
    "table": by_table,
    "job": by_job,
    "lancedb": by_lancedb,
    "duckdb": by_duckdb,
    "databend": by_databend,
    "ray": by_ray,
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("kind", "options", "zero"),
    [(Zeros, {}, None), (Zeros, {"zero_vectors": "keep"}, [0, 0]), (ZerosByDot, {}, [0, 0])],
    ids=["cosine", "kept", "dot"],
)
def test_zero_vectors_are_the_same_everywhere(
    engine: str, kind: type[Zeros], options: Any, zero: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Null under cosine, kept where asked for and under another metric."""
    monkeypatch.chdir(tmp_path)
    assert ENGINES[engine](kind.create(), tmp_path, **options) == [[1, 2], zero, None, [1, 2]]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unknown_policy_is_refused_everywhere(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, with the ones that there are."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="zero_vectors='none'"):
        ENGINES[engine](Zeros.create(), tmp_path, zero_vectors="none")


@pytest.mark.parametrize("engine", ["table", "job", "lancedb", "duckdb", "databend"])
def test_an_outage_is_no_column_of_nulls(engine: str, tmp_path: Path) -> None:
    """NaN for every row fails the call in each engine, whatever its policy on bad rows."""
    with pytest.raises(Exception, match="none of the 3 vectors that the function returned is finite"):
        ENGINES[engine](Zeros.create(how="down"), tmp_path)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_engine_shows_the_key_of_a_refused_row(
    engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A returned RowError with the key in it: neither logs nor files nor the answer have it."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("EVERYWHERE_KEY", KEY)
    embedreg.get_registry().bind_env("everywhere_key", "EVERYWHERE_KEY")
    made = ENGINES[engine](Zeros.create(how="refusing", api_key="$var:everywhere_key"), tmp_path)
    assert made == [[1, 2], [1, 2], None, None]
    assert KEY not in caplog.text
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    if engine in ("duckdb", "databend"):
        assert "refused with ***" in caplog.text


def test_a_job_keeps_to_one_policy(tmp_path: Path) -> None:
    """What is done under one policy is not mixed with what would be done under another."""
    bound = Zeros.create().bind("text", "vector")
    by_job(Zeros.create(), tmp_path)
    report = embedreg.embed(tmp_path / "in.parquet", tmp_path / "out", bound, on_error="null")
    assert report.zeros == 1
    with pytest.raises(ConfigError, match="1 vector\\(s\\) of zeros under zero_vectors=None, this run has 'keep'"):
        embedreg.embed(tmp_path / "in.parquet", tmp_path / "out", bound, on_error="null", zero_vectors="keep")


def test_a_text_that_is_not_unicode_is_null_in_sql(caplog: pytest.LogCaptureFixture) -> None:
    """Bytes of a client that are not UTF-8 cost their own row."""
    raw = pa.array([b"one", b"caf\xe9", None]).view(pa.string())
    with (
        serve({"f": Zeros.create()}, bind="127.0.0.1:0", warm=False) as server,
        caplog.at_level(logging.INFO, "embedreg"),
    ):
        assert Client(server.address).call("f", raw).to_pylist() == [[1, 2], None, None]
    assert "not valid Unicode" in caplog.text


def test_a_block_of_another_type_is_kept_or_named() -> None:
    """Ray's blocks need not agree: a float is not rounded to the first one's type, an integer may become a float."""
    function = embedreg.get("hashing").create(dim=4)
    schema = resolve([function.bind("text", "vector")])
    first = pa.table({"text": ["a"], "v": pa.array([0.5], pa.float32())})
    payload = pack(schema, [function])
    embedder = BlockEmbedder(payload, plan(payload, first.schema, {"on_error": "null", "batch_rows": 8}))
    assert embedder(first)["v"].to_pylist() == [0.5]
    assert embedder(pa.table({"text": ["b"], "v": [3]}))["v"].to_pylist() == [3.0]
    with pytest.raises(InputError, match=r"column 'v' of a block is double, of the first one float: 0\.1 is not float"):
        embedder._given(pa.table({"text": ["b"], "v": [0.1]}))  # what `__call__` raises, Ray's own clothes apart
