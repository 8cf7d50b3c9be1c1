"""Ray datasets: the vectors and declarations of a local run, whatever the blocks; secrets stay; one error is one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.cloudpickle
import ray.data

import embedreg
from embedreg.declaration import codec
from embedreg.embedding.schema import resolve
from embedreg.engines import ray as engine
from embedreg.engines.ray import sinks
from embedreg.engines.ray.worker import pack
from embedreg.errors import (
    BadRowsError,
    CallError,
    ConfigError,
    DriftError,
    MissingColumnError,
    MissingExtraError,
    MissingVariableError,
    SchemaError,
    StorageError,
    VectorError,
)
from tests.engines.conftest import RAY_WARNS, Cluster
from tests.engines.ray_functions import KEY, Drifting, Granted, Lengths, Mortal, Whereabouts
from tests.kinds import ROWS, of_each_kind

pytestmark = RAY_WARNS


def texts(rows: int) -> pa.Table:
    """Texts of several lengths, some of them twice, some null or blank."""
    made = [
        None if row % 97 == 0 else " " if row % 89 == 0 else f"note {row % 9973} " * (row % 5 + 1)
        for row in range(rows)
    ]
    return pa.table({"id": range(rows), "text": made})


def in_order(blocks: list[pa.Table]) -> pa.Table:
    """The rows of some blocks, as they were before Ray shared them out."""
    return pa.concat_tables(blocks).sort_by("id").combine_chunks()


def matrix(table: pa.Table, column: str = "vector") -> np.ndarray:
    """The vectors that are there, (n, d)."""
    vectors = table[column].combine_chunks().drop_null()
    return vectors.flatten().to_numpy().reshape(len(vectors), -1)


def blocks_of(ds: Any) -> list[pa.Table]:
    """The blocks of a materialized dataset."""
    return [ray.get(block) for block in ds.to_arrow_refs()]


@pytest.fixture
def hidden(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """A runtime environment in whose workers a package cannot be imported."""

    def hide(package: str) -> dict[str, Any]:
        (tmp_path / "sitecustomize.py").write_text(
            "import sys\n"
            "class Hider:\n"
            "    def find_spec(self, name, path, target=None):\n"
            f"        if name.partition('.')[0] == {package!r}:\n"
            "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
            "sys.meta_path.insert(0, Hider())\n"
        )
        root = Path(embedreg.__file__).parent.parent
        return {"env_vars": {"PYTHONPATH": f"{tmp_path}:{root}"}}

    return hide


def test_two_actors_make_what_embed_table_makes(cluster: Cluster) -> None:
    """20,000 texts through two actors have the vectors, the nulls and the schema, bytes included, of a local run."""
    data = texts(20_000)
    declared = embedreg.get("hashing").create(dim=64).bind("text", "vector")
    out = engine.embed_dataset(ray.data.from_arrow(data), declared, actors=2, batch_rows=2500)
    made = blocks_of(out.materialize())
    local = embedreg.embed_table(data, declared)
    assert len(made) == 8
    assert all(block.schema.equals(local.schema, check_metadata=True) for block in made)
    together = in_order(made)
    assert together["vector"].combine_chunks().is_valid().equals(local["vector"].combine_chunks().is_valid())
    np.testing.assert_allclose(matrix(together), matrix(local), atol=1e-5)


@pytest.mark.slow
def test_a_real_model_gives_the_same_vectors_in_actors(cluster: Cluster, minilm_path: Path) -> None:
    """500 texts through MiniLM in two actors agree with a local run, the declaration included."""
    data = texts(500)
    declared = embedreg.get("sentence-transformers").create(name=str(minilm_path), device="cpu").bind("text", "vector")
    out = engine.embed_dataset(ray.data.from_arrow(data), declared, actors=2, batch_rows=250)
    made = blocks_of(out.materialize())
    local = embedreg.embed_table(data, declared)
    np.testing.assert_allclose(matrix(in_order(made)), matrix(local), atol=1e-5)
    stored = embedreg.functions_in(local)["vector"]
    assert all(embedreg.functions_in(block)["vector"] == stored for block in made)


def test_blocks_of_nulls_and_lost_metadata_do_no_harm(cluster: Cluster, tmp_path: Path) -> None:
    """Parquet whose metadata Ray drops from its blocks, with a declared column beside, keeps both declarations."""
    first = embedreg.get("hashing").create(dim=8).bind("text", "first")
    given = embedreg.embed_table(pa.table({"text": ["a", "b", None, "c"]}), first)
    pq.write_table(given, tmp_path / "in.parquet")
    ds = ray.data.read_parquet(str(tmp_path / "in.parquet"))
    second = embedreg.get("hashing").create(dim=16).bind("text", "second")
    [block] = blocks_of(engine.embed_dataset(ds, second, actors=1).materialize())
    assert [*embedreg.functions_in(block)] == ["first", "second"]
    assert block["first"].combine_chunks().equals(given["first"].combine_chunks())
    assert block["second"].null_count == 1
    bare = ray.data.from_arrow(given.drop_columns(["first"]))
    [block] = blocks_of(engine.embed_dataset(bare, actors=1).materialize())  # by what the data itself declares
    assert matrix(block, "first").tolist() == matrix(given, "first").tolist()


def test_every_actor_gets_work(cluster: Cluster) -> None:
    """One block of Ray's becomes many, so that two actors share it."""
    data = pa.table({"text": [f"text {row}" for row in range(400)]})
    declared = Whereabouts.create().bind("text", "process")
    out = engine.embed_dataset(ray.data.from_arrow(data), declared, actors=2, batch_rows=10)
    assert len({row["process"][0] for row in out.take_all()}) == 2


def test_a_schema_class_casts_and_adds_columns(cluster: Cluster) -> None:
    """A Schema is obeyed as in `embed_table`: types are cast, absent columns are there as nulls."""
    fn = embedreg.get("hashing").create(dim=8)

    class Notes(embedreg.Schema):
        text: str | None = fn.SourceField()
        vector: embedreg.Vector(8, "float16") = fn.VectorField()  # type: ignore[valid-type]
        title: str | None = None

    data = pa.table({"text": ["a", None, "c"]})
    [block] = blocks_of(engine.embed_dataset(ray.data.from_arrow(data), Notes, actors=1).materialize())
    local = embedreg.embed_table(data, Notes)
    assert block.schema.equals(local.schema, check_metadata=True)
    assert block.combine_chunks().equals(local.combine_chunks())


# -- sinks -------------------------------------------------------------------------------------------------------------


def test_parquet_has_the_declaration_in_each_file_and_beside(cluster: Cluster, tmp_path: Path) -> None:
    """A folder that `write_parquet` made is read back by `functions_in`, also when its files have lost the metadata."""
    declared = embedreg.get("hashing").create(dim=8).bind("text", "vector")
    data = pa.table({"id": range(40), "text": [f"text {row}" for row in range(40)]})
    out = engine.embed_dataset(ray.data.from_arrow(data), declared, actors=1, batch_rows=20)
    engine.write_parquet(out, str(tmp_path / "out"))
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(files) == 2
    local = embedreg.embed_table(data, declared)
    assert {pq.read_schema(file).metadata[b"embedding_functions"] for file in files} == {
        local.schema.metadata[b"embedding_functions"]
    }
    for file in files:
        pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    assert embedreg.functions_in(tmp_path / "out")["vector"].function == declared.function
    other = embedreg.get("hashing").create(dim=8, seed=1).bind("text", "vector")
    with pytest.raises(DriftError, match="another configuration"):
        engine.write_parquet(engine.embed_dataset(ray.data.from_arrow(data), other, actors=1), str(tmp_path / "out"))


def test_what_rows_and_numpy_lose_the_sinks_put_back(cluster: Cluster, tmp_path: Path) -> None:
    """After a step on rows, Ray's blocks have lost declaration and type; the sinks give both back."""
    declared = embedreg.get("hashing").create(dim=8).bind("text", "vector")
    data = pa.table({"id": range(40), "text": [None if row == 7 else f"text {row}" for row in range(40)]})
    out = engine.embed_dataset(ray.data.from_arrow(data), declared, actors=1)
    some = out.map(lambda row: row | {"even": row["id"] % 2 == 0})
    with pytest.raises(ConfigError, match="not known"):
        engine.write_parquet(some, str(tmp_path / "out"))
    engine.write_parquet(some, str(tmp_path / "out"), declared_by=out)
    local = embedreg.embed_table(data, declared)
    back = pq.read_table(tmp_path / "out", partitioning=None)
    assert back.schema.field("vector").type.list_size == 8
    assert back.schema.metadata[b"embedding_functions"] == local.schema.metadata[b"embedding_functions"]
    np.testing.assert_array_equal(matrix(back.sort_by("id")), matrix(local))
    with pytest.raises(VectorError, match="numpy has neither nulls"):
        engine.write_parquet(out.map_batches(lambda batch: batch), str(tmp_path / "not"), declared_by=out)


def test_columns_of_every_kind_are_those_of_a_local_run(cluster: Cluster, tmp_path: Path) -> None:
    """Multi-vectors, sparse vectors, quantised ones and a template: the blocks and both sinks keep them."""
    configs = [*of_each_kind().values()]
    local = embedreg.embed_table(ROWS, configs)
    lazy = engine.embed_dataset(ray.data.from_arrow(ROWS), configs, actors=1, batch_rows=20)
    out = lazy.materialize()
    made = blocks_of(out)
    assert all(block.schema.equals(local.schema, check_metadata=True) for block in made)
    assert in_order(made).equals(local)
    engine.write_parquet(out, str(tmp_path / "out"), declared_by=lazy)
    back = pq.read_table(tmp_path / "out", partitioning=None).sort_by("id")
    assert back.schema.metadata == local.schema.metadata
    assert back.cast(local.schema).equals(local)  # Parquet has a name of its own for the items of lists
    with pytest.raises(SchemaError, match="'uint8' would hold uint8 vectors"):
        engine.write_lance(out, str(tmp_path / "t.lance"), declared_by=lazy)


def test_vectors_made_otherwise_are_not_added() -> None:
    """Those by other ranges, of another dtype or by another template, to a folder or a table that has some."""
    kinds = of_each_kind()
    hashing, there = kinds["int8"].function, codec.encode([*kinds.values()])
    for other, why in (
        (hashing.bind("text", "int8", dtype="int8", ranges=[[-1] * 16, [1] * 16]), "another set of ranges in 'int8'"),
        (hashing.bind("text", "int8", dtype="binary"), "another dtype in 'int8'"),
        (hashing.bind("text", "int8"), "another dtype in 'int8'"),
        (hashing.bind(template="{text}", vector="template"), "another template in 'template'"),
    ):
        with pytest.raises(DriftError, match=why):
            sinks._refuse_mixture(there, codec.encode([other]), "a folder")
    sinks._refuse_mixture(there, there, "a folder")


def test_a_dataset_without_rows_has_its_columns(cluster: Cluster, tmp_path: Path) -> None:
    """As Parquet and as Lance, a reader finds the columns, the vectors' type and the declaration, and no row."""
    declared = embedreg.get("hashing").create(dim=8).bind("text", "vector")
    data = pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())})
    out = engine.embed_dataset(ray.data.from_arrow(data), declared, actors=1).materialize()
    lazy = engine.embed_dataset(ray.data.from_arrow(data), declared, actors=1)
    engine.write_parquet(out, str(tmp_path / "out"), declared_by=lazy)
    engine.write_lance(out, str(tmp_path / "out.lance"), declared_by=lazy)
    want = embedreg.embed_table(data, declared).schema
    for schema in (
        pq.read_table(tmp_path / "out", partitioning=None).schema,
        lance.dataset(tmp_path / "out.lance").schema,
    ):
        assert schema.names == want.names
        assert schema.field("vector").type.list_size == 8
        assert embedreg.functions_in(schema)["vector"].function == declared.function


def test_lance_is_made_in_one_commit(cluster: Cluster, tmp_path: Path) -> None:
    """A Lance table has the rows, the vectors' type and the declaration; it is not replaced unasked, and can grow."""
    declared = embedreg.get("hashing").create(dim=8).bind("text", "vector")
    data = pa.table({"id": range(40), "text": [f"text {row}" for row in range(40)]})
    out = engine.embed_dataset(ray.data.from_arrow(data), declared, actors=1, batch_rows=10).materialize()
    uri = str(tmp_path / "notes.lance")
    lazy = engine.embed_dataset(ray.data.from_arrow(data), declared, actors=1, batch_rows=10)
    engine.write_lance(out, uri, declared_by=lazy, rows_per_fragment=20)
    made = lance.dataset(uri)
    assert (made.version, made.count_rows(), len(made.get_fragments())) == (1, 40, 2)
    assert embedreg.functions_in(uri)["vector"].function == declared.function
    local = embedreg.embed_table(data, declared)
    np.testing.assert_array_equal(matrix(made.to_table().sort_by("id")), matrix(local))
    with pytest.raises(StorageError, match="exists"):
        engine.write_lance(out, uri, declared_by=lazy)
    engine.write_lance(out, uri, mode="append", declared_by=lazy)
    assert lance.dataset(uri).count_rows() == 80


# -- errors ------------------------------------------------------------------------------------------------------------
def embedded(function: Any, column: list[Any], **options: Any) -> Any:
    """A dataset of some texts with their vectors, by one actor."""
    data = ray.data.from_arrow(pa.table({"text": pa.array(column, pa.string())}))
    return engine.embed_dataset(data, function.bind("text", "vector"), actors=1, **options)


def test_bad_rows_follow_the_policy(cluster: Cluster) -> None:
    """A row that fails by its own fault is kept without a vector, left out, or ends the run, as `on_error` sets."""
    choosy = embedreg.get("ray-choosy").create()
    with engine.plain_errors():
        kept = embedded(choosy, ["a", "bad", None], on_error="null").take_all()
        dropped = embedded(choosy, ["a", "bad", None], on_error="drop").take_all()
    assert [row["vector"] for row in kept] == [[1.0, 1.0], None, None]
    assert [row["text"] for row in dropped] == ["a", None]
    with pytest.raises(
        BadRowsError, match=r"in a block of 2 rows, 1 row\(s\) have no vector: row 1 \(text\)"
    ) as caught:
        embedded(choosy, ["a", "bad"]).take_all()
    assert caught.value.rows == (1,)


def test_a_failed_call_is_one_error_without_the_secret(cluster: Cluster, tmp_path: Path) -> None:
    """A service's error that shows the key comes out as one CallError, cleaned, and so it stands in Ray's logs."""
    embedreg.get_registry().bind_env("k", KEY)
    out = embedded(Lengths.create(api_key="$var:k"), ["leak"])
    with pytest.raises(CallError, match=r"^on node .+, (builtins\.)?ConnectionError: 401 for Bearer \*\*\*") as caught:
        engine.write_parquet(out, str(tmp_path / "out"))
    assert type(caught.value) is CallError
    assert caught.value.__cause__ is None
    with pytest.raises(CallError, match=r"401 for Bearer \*\*\*"):  # also without our own door
        out.take_all()
    assert not holders(cluster.key, cluster.folder)


def test_secrets_stay_where_they_are(cluster: Cluster) -> None:
    """A bound variable is resolved on the workers; neither what is sent to them nor Ray's files hold its value."""
    embedreg.get_registry().bind_env("k", KEY)
    function = embedreg.get("ray-keyed").create(api_key="$var:k")
    declared = function.bind("text", "vector")
    rows = embedded(function, ["a"]).take_all()
    assert rows[0]["vector"] == [float(len(cluster.key)), 1.0]  # so it was read there
    assert cluster.key.encode() not in ray.cloudpickle.dumps(pack([declared], [function]))
    assert not holders(cluster.key, cluster.folder)
    assert holders("ray-", cluster.folder)  # the search finds what is there


def holders(text: str, folder: Path) -> list[Path]:
    """The files below a folder that hold a text."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_variable_of_this_process_alone_is_refused_before_anything_starts(cluster: Cluster) -> None:
    """What `set_var` or a scope holds cannot reach a worker: the error reports it, and how to bind it."""
    registry = embedreg.get_registry()
    registry.set_var("k", "set-here-only")
    with pytest.raises(MissingVariableError, match="in this process only") as caught:
        embedded(Lengths.create(api_key="$var:k"), ["a"])
    assert "bind_env('k', 'K')" in str(caught.value)
    registry.bind_env("k", KEY)
    with registry.variables(k="in-a-scope"), pytest.raises(MissingVariableError, match="in this process only"):
        embedded(Lengths.create(api_key="$var:k"), ["a"])


def test_a_variable_that_a_worker_lacks_is_named_with_its_node(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment variable that only the driver has fails before any row is embedded."""
    monkeypatch.setenv("ONLY_HERE", "5ecret")
    embedreg.get_registry().bind_env("k", "ONLY_HERE")
    with pytest.raises(MissingVariableError, match=r"^on node .*ONLY_HERE, which is not set"):
        embedded(Lengths.create(api_key="$var:k"), ["a"])


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("sentence_transformers", "^on node .+, the library 'sentence_transformers' is not installed"),
        ("embedreg", "embedreg is not installed on a node"),
    ],
)
def test_a_package_that_a_worker_lacks_is_named(
    cluster: Cluster, hidden: Callable[[str], dict[str, Any]], minilm_path: Path, package: str, said: str
) -> None:
    """A worker without a library fails as the run is prepared, with the line that installs it."""
    function = embedreg.get("sentence-transformers").create(name=str(minilm_path))
    with pytest.raises(MissingExtraError, match=said) as caught:
        embedded(function, ["a"], runtime_env=hidden(package))
    assert "pip install" in str(caught.value.hint)


def test_what_does_not_fit_is_told_before_anything_runs(cluster: Cluster) -> None:
    """A missing column, an absent GPU and an impossible number of actors are errors of the call itself."""
    hashing = embedreg.get("hashing").create(dim=8)
    data = ray.data.from_arrow(pa.table({"txt": ["a"]}))
    with pytest.raises(MissingColumnError, match="no column 'text'"):
        engine.embed_dataset(data, hashing.bind("text", "vector"), actors=1)
    with pytest.raises(ConfigError, match="the cluster has 0"):
        embedded(hashing, ["a"], gpus_per_actor=1)
    for actors in (0, (2, 1), True, "2"):
        with pytest.raises(ConfigError, match="expected a number of actors"):
            engine.embed_dataset(data, hashing.bind("txt", "vector"), actors=actors)  # type: ignore[arg-type]


def test_an_actor_whose_model_differs_is_refused(cluster: Cluster) -> None:
    """Each actor's vectors are compared with the probe of the run: other weights on one node do not get in."""
    with pytest.raises(DriftError, match="no longer returns the stored vectors"):
        embedded(Drifting.create(), ["a"]).take_all()


def test_an_actor_that_is_killed_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    """`kill -9` of an actor in the middle of a block loses no row and doubles none."""
    column = [f"text {row}" for row in range(40)] + ["die"]
    out = embedded(Mortal.create(log=str(tmp_path / "log")), column, batch_rows=10)
    rows = out.take_all()
    assert (tmp_path / "log.died").exists()
    assert sorted(row["text"] for row in rows) == sorted(column)
    assert all(row["vector"] == [float(len(row["text"])), 1.0] for row in rows)


# -- users' classes ----------------------------------------------------------------------------------------------------

SCRIPT = """
import logging, sys
import ray, ray.data, embedreg
from embedreg.engines import ray as engine

STEP = 3

@embedreg.register("of-a-script")
class OfAScript(embedreg.TextEmbeddingFunction):
    first: int = 4
    api_key: str | None = None

    def __init__(self, **config):
        super().__init__(**config)
        self._ndims = self.first

    def ndims(self):
        return self._ndims

    def generate_embeddings(self, texts):
        return [[STEP * len(text) + at for at in range(self.first)] for text in texts]

embedreg.get_registry().bind_env("k", "RAY_TEST_KEY")
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
fn = OfAScript.create(first=5, api_key="$var:k")
data = ray.data.from_items([{"text": "a"}, {"text": "bcd"}])
out = engine.embed_dataset(data, fn.bind("text", "vector"), actors=1)
again = engine.embed_dataset(out, fn.bind("text", "vector_2"), actors=1)  # its name is known on the workers
engine.write_parquet(again, sys.argv[2])
"""


def test_a_class_of_a_script_works_in_actors(cluster: Cluster, run_python: Callable[..., str], tmp_path: Path) -> None:
    """A class that only the user's script defines goes along, is registered there, and keeps its secrets' rules."""
    run_python(SCRIPT, cluster.address, tmp_path / "out")
    table = pq.read_table(tmp_path / "out", partitioning=None).sort_by("text")
    assert table["vector"].to_pylist() == [[3, 4, 5, 6, 7], [9, 10, 11, 12, 13]]
    entries = embedreg.functions_in(tmp_path / "out").entries
    assert {column: entry.name for column, entry in entries.items()} == dict.fromkeys(
        ["vector", "vector_2"], "of-a-script"
    )


def test_a_class_that_the_workers_cannot_import_is_named(cluster: Cluster) -> None:
    """A class of a module that only this process knows fails before the run; the hint explains how to ship it."""
    home = type(sys)("only_here")
    sys.modules["only_here"] = home
    code = "import embedreg\n@embedreg.register('only-here')\nclass OnlyHere(embedreg.get('hashing')):\n    pass\n"
    try:
        exec(compile(code, "only_here.py", "exec"), home.__dict__)
        with pytest.raises(MissingExtraError, match=r"^on node .*No module named 'only_here'") as caught:
            embedded(home.OnlyHere.create(dim=8), ["a"])
    finally:
        del sys.modules["only_here"]
    assert "working_dir" in str(caught.value.hint)


def test_a_class_of_a_script_is_the_same_class_elsewhere(run_python: Callable[..., str], tmp_path: Path) -> None:
    """Pickled by value it is made empty and filled afterwards; its sensitive field still refuses written-out keys."""
    home = (
        "import sys, embedreg, ray.cloudpickle\n"
        "@embedreg.register('of-a-script')\n"
        "class OfAScript(embedreg.TextEmbeddingFunction):\n"
        "    size: int = 4\n"
        "    api_key: str | None = None\n"
        "    def ndims(self): return self.size\n"
        "    def generate_embeddings(self, texts): return [[0.0] * self.size for _ in texts]\n"
        "fn = OfAScript.create(size=5)\n"
        "open(sys.argv[1], 'wb').write(ray.cloudpickle.dumps(fn))\n"
        "print(embedreg.embed_table({'text': ['a']}, fn.bind('text', 'vector')).schema.metadata)\n"
    )
    away = (
        "import sys, embedreg, ray.cloudpickle\n"
        "fn = ray.cloudpickle.loads(open(sys.argv[1], 'rb').read())\n"
        "try:\n"
        "    type(fn)(api_key='sk-0123456789')\n"
        "except embedreg.EmbedregError as exc:\n"
        "    print(type(exc).__name__, file=sys.stderr)\n"
        "else:\n"
        "    sys.exit('a hard-coded secret was taken')\n"
        "assert fn == type(fn)(size=5) and hash(fn) == hash(type(fn)(size=5)) and fn != type(fn)()\n"
        "print(embedreg.embed_table({'text': ['a']}, fn.bind('text', 'vector')).schema.metadata)\n"
    )
    assert run_python(home, tmp_path / "pickled") == run_python(away, tmp_path / "pickled")


def test_a_secret_in_a_class_of_a_script_is_refused(run_python: Callable[..., str]) -> None:
    """A class pickled by value would take a global's value along: where that is its own secret, it is refused."""
    code = (
        "import os, embedreg\n"
        "from embedreg.engines.ray.worker import pack\n"
        "from embedreg.errors import HardcodedSecretError\n"
        "os.environ['K'] = KEY = 'sk-0123456789'\n"
        "class Careless(embedreg.get('hashing')):\n"
        "    api_key: str | None = None\n"
        "    def generate_embeddings(self, texts):\n"
        "        return super().generate_embeddings([KEY + text for text in texts])\n"
        "embedreg.register('careless')(Careless)\n"
        "embedreg.get_registry().bind_env('k', 'K')\n"
        "fn = Careless.create(api_key='$var:k')\n"
        "try:\n"
        "    pack(fn, [fn])\n"
        "except HardcodedSecretError as exc:\n"
        "    print(exc)\n"
    )
    said = run_python(code)
    assert "holds one of its secrets" in said
    assert "sk-0123456789" not in said


def test_what_data_may_name_images_in_goes_along(run_python: Callable[..., str], tmp_path: Path) -> None:
    """The folders that the driver lets data name images in are allowed on a worker, and nothing else is."""
    code = (
        "import embedreg\n"
        "from embedreg.engines.ray.worker import granted, pack, unpack\n"
        "from embedreg.images import current_policy\n"
        f"with embedreg.allow_images(dirs=[{str(tmp_path)!r}], max_pixels=10_000):\n"
        "    payload, policy = pack('nothing', []), current_policy()\n"
        "before = current_policy()\n"
        "with granted(payload), granted(payload):\n"
        "    assert unpack(payload) == 'nothing'\n"
        "    during = current_policy()\n"
        "print(during == policy and current_policy() == before != policy)\n"
    )
    assert run_python(code).strip() == "True"


class Looker:
    """An actor that fills blocks, and states what its process holds between them."""

    def __init__(self, payload: Any, made: Any) -> None:
        from embedreg.engines.ray.worker import BlockEmbedder

        self.embedder = BlockEmbedder(payload, made)

    def fill(self, block: pa.Table) -> pa.Table:
        """Fill a block."""
        return self.embedder(block)

    def holds(self, stored: dict[str, str]) -> tuple[set[str], tuple[str, ...], str]:
        """Return the granted folders, those of images, and what comes of a declaration with a path."""
        from embedreg.images import current_policy
        from embedreg.security import grants

        problem = embedreg.functions_in(stored).problems.get("vector")
        return grants.granted("paths"), current_policy().dirs, type(problem).__name__


def test_grants_hold_on_a_worker_only_while_it_works_for_their_payload(cluster: Cluster, tmp_path: Path) -> None:
    """They are there while a block is filled, in each block, and gone before and after: also where filling fails."""
    from embedreg.engines.ray.worker import pack, plan

    data = pa.table({"text": ["a", None]})
    schema = resolve([Granted.create().bind("text", "vector")])
    with embedreg.trust(paths=[tmp_path]), embedreg.allow_images(dirs=[tmp_path]):
        payload = pack(schema, [config.function for config in schema.configs])
    made = plan(payload, data.schema, {"on_error": "raise"})
    entry = {"name": "sentence-transformers", "model": {"name": str(tmp_path)}, "source_column": "text"}
    told = json.dumps([entry])
    stored, nothing = {"embedding_functions": told}, (set(), (), "UntrustedError")
    looker = ray.remote(num_cpus=1)(Looker).remote(payload, made)
    assert ray.get(looker.holds.remote(stored)) == nothing
    for _ in range(2):
        block = ray.get(looker.fill.remote(data))
        assert matrix(block).tolist() == [[1, 1]]
        assert ray.get(looker.holds.remote(stored)) == nothing
    with pytest.raises(ray.exceptions.RayTaskError):
        ray.get(looker.fill.remote(pa.table({"other": ["a"]})))
    assert ray.get(looker.holds.remote(stored)) == nothing
    assert embedreg.functions_in(stored).problems  # in the driver, which worked for the payload as it planned
