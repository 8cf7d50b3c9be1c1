"""lancedb and embedreg meet in one process whichever came first, and lancedb itself stays as it is."""

from __future__ import annotations

import copy
import os
import pickle
import sys
import warnings
from typing import Any

import lancedb.embeddings
import lancedb.pydantic
import pytest

import embedreg
from embedreg import Schema, TextEmbeddingFunction, Vector, register
from embedreg.engines.lancedb import create_table
from embedreg.errors import ConfigError
from tests.engines.lancedb_functions import Letters, counts

# A digest of everything that lancedb's modules and classes hold.
SNAPSHOT = """
def snapshot():
    import sys
    seen = {}
    for name, module in sorted(sys.modules.items()):
        if name != "lancedb" and not name.startswith("lancedb."):
            continue
        for key, value in vars(module).items():
            if key in ("__builtins__", "__warningregistry__"):
                continue
            seen[name, key] = id(value)
            if isinstance(value, type) and value.__module__.startswith("lancedb"):
                for attribute, held in vars(value).items():
                    if not attribute.startswith("_abc"):
                        seen[name, key, attribute] = id(held)
    return seen
"""


def test_nothing_in_lancedb_is_patched(new_process: Any) -> None:
    """Every attribute of lancedb's modules and classes is the same object before and after, use included."""
    new_process(
        f"""
import lancedb, lancedb.pydantic, lancedb.table, lancedb.query, lancedb.embeddings.registry
{SNAPSHOT}
import pyarrow, pandas
before, functions = snapshot(), dict(lancedb.embeddings.get_registry()._functions)
import embedreg, lancedb_functions
from embedreg.engines.lancedb import add, create_table
fn = lancedb_functions.Letters.create()
class Foods(lancedb.pydantic.LanceModel):
    text: str = fn.SourceField()
    vector: embedreg.Vector(fn.ndims) = fn.VectorField()
table = create_table(lancedb.connect(folder), "t", Foods)
add(table, [{{"text": "fig"}}])
assert table.search("fig").limit(1).to_list()
after = snapshot()
changed = [key for key, value in before.items() if after.get(key) != value]
assert not changed, changed
# Modules that lancedb imported meanwhile appear in their packages; in those that there were, nothing else does.
added = [key for key in set(after) - set(before) if (key[0], "__name__") in before]
added = [key for key in added if f"{{key[0]}}.{{key[1]}}" not in sys.modules]
assert not added, added
ours = {{name for name, cls in lancedb.embeddings.get_registry()._functions.items() if functions.get(name) is not cls}}
assert ours >= {{"letter-counts", "hashing", "sentence-transformers", "embedreg:hashing"}}
assert functions["sentence-transformers"].__embedding_function_registry_alias__ == "sentence-transformers"
"""
    )


def test_lancedb_is_not_imported_by_embedreg(new_process: Any) -> None:
    """The hook only waits; importing lancedb later works with warnings as errors."""
    new_process(
        """
import embedreg, lancedb_functions
assert not [name for name in sys.modules if name.partition(".")[0] in ("lancedb", "lance")]
import lancedb
assert lancedb.embeddings.get_registry().get("letter-counts").create().ndims() == 26
""",
        flags=("-W", "error"),
    )


def test_the_import_hook_is_a_good_citizen(new_process: Any) -> None:
    """Specs can be asked for, other finders are asked in their turn, loaders serve resources, reloading works."""
    new_process(
        """
import importlib, importlib.util, importlib.resources, pickle
import embedreg

asked = []
class Other:
    def find_spec(self, name, path=None, target=None):
        asked.append(name)
sys.meta_path.insert(0, Other())

spec = importlib.util.find_spec("lancedb.embeddings")
assert spec.name == "lancedb.embeddings" and spec.submodule_search_locations
assert spec.loader.get_source("lancedb.embeddings")
assert importlib.util.find_spec("lancedb.embeddings.nothing") is None
assert importlib.util.find_spec("no_such_library") is None

import lancedb, lancedb.embeddings
from importlib.machinery import SourceFileLoader
assert "lancedb.embeddings" in asked
assert type(lancedb.embeddings.__loader__) is type(lancedb.embeddings.__spec__.loader) is SourceFileLoader
assert importlib.util.find_spec("lancedb.embeddings") is lancedb.embeddings.__spec__
assert importlib.resources.files("lancedb.embeddings").joinpath("registry.py").is_file()
cls = lancedb.embeddings.EmbeddingFunctionRegistry
assert pickle.loads(pickle.dumps(cls)) is cls

again = importlib.reload(lancedb.embeddings)
assert again is lancedb.embeddings and type(again.__loader__) is SourceFileLoader
assert again.get_registry().get("hashing").create(dim=8).ndims() == 8
assert importlib.reload(embedreg) is embedreg
assert sum(type(finder).__module__ == "embedreg.core.lancedb_hooks" for finder in sys.meta_path) == 1
"""
    )


def test_a_library_in_a_zip_file_can_be_hooked(new_process: Any, tmp_path: Any) -> None:
    """The hook hands everything to the library's own loader, of whatever kind it is."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        archive.writestr("zipped/__init__.py", "from zipped import embeddings")
        archive.writestr("zipped/embeddings.py", "value = 7")
        archive.writestr("zipped_engine.py", "from zipped.embeddings import value as seen")
    new_process(
        f"""
import embedreg
embedreg.core.lancedb_hooks.HOOKS["zipped.embeddings"] = "zipped_engine"
sys.path.insert(0, {str(tmp_path / "zipped.zip")!r})
import zipped
assert sys.modules["zipped_engine"].seen == 7
assert type(zipped.embeddings.__loader__).__name__ == "zipimporter"
"""
    )


def test_lancedb_can_be_imported_even_if_our_adapter_cannot(new_process: Any) -> None:
    """A lancedb that embedreg cannot follow still imports, and a warning says what does not work and why."""
    new_process(
        """
import warnings, embedreg
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "embedreg.engines.lancedb.adapter":
            raise ImportError("another lancedb")
sys.meta_path.insert(0, Broken())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import lancedb
[warning] = [str(item.message) for item in caught if item.category is RuntimeWarning]
assert warning == "embedreg's functions are not known to lancedb.embeddings: ImportError: another lancedb", warning
assert lancedb.embeddings.get_registry().get("openai")
import lancedb_functions  # registers, marks and embeds without lancedb
fn = lancedb_functions.Letters.create()
class Notes(embedreg.Schema):
    text: str = fn.SourceField()
    vector: embedreg.Vector(fn.ndims) = fn.VectorField()
assert embedreg.embed_table([{"text": "fig"}], Notes)["vector"].to_pylist() == [lancedb_functions.counts("fig")]
""",
        flags=("-W", "error"),
    )


def test_threads_may_import_both_at_once(new_process: Any) -> None:
    """Two threads that import lancedb and our engine at the same time both end with a working pair."""
    new_process(
        """
import threading, embedreg, lancedb_functions
def one(): import lancedb
def two(): import embedreg.engines.lancedb
threads = [threading.Thread(target=target) for target in (one, two, one, two)]
for thread in threads: thread.start()
for thread in threads: thread.join(60)
assert not any(thread.is_alive() for thread in threads)
import lancedb
assert lancedb.embeddings.get_registry().get("letter-counts").create().ndims() == 26
"""
    )


# -- names -------------------------------------------------------------------------------------------------------------


def table_of(db: Any, fn: Any, name: str = "t") -> Any:
    """Create a table whose vectors a function fills."""

    class Model(Schema):
        text: str = fn.SourceField()
        vector: Vector(fn.ndims) = fn.VectorField()

    return create_table(db, name, Model)


def test_register_tells_lancedb(db: Any) -> None:
    """A class registered after lancedb was imported is found by lancedb's own registry."""

    @register("told-later")
    class ToldLater(TextEmbeddingFunction):
        def ndims(self) -> int:
            return 2

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return [[1.0, float(len(text))] for text in texts]

    table = table_of(db, ToldLater.create())
    table.add([{"text": "fig"}])
    assert table.to_arrow()["vector"].to_pylist() == [[1.0, 3.0]]


def test_a_notebook_cell_can_be_run_again(db: Any) -> None:
    """Registering a class anew under its name makes tables that are open use the new one."""

    def cell(factor: float) -> Any:
        @register("cell")
        class Cell(TextEmbeddingFunction):
            def ndims(self) -> int:
                return 1

            def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
                return [[factor * len(text)] for text in texts]

        return Cell

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = table_of(db, cell(1.0).create())
        table.add([{"text": "fig"}])
        cell(2.0)
        table.add([{"text": "fig"}])
    assert table.to_arrow()["vector"].to_pylist() == [[3.0], [6.0]]


def test_a_plug_in_reaches_lancedb(db: Any, plugin: Any, new_process: Any) -> None:
    """A function that an installed distribution brings is found by lancedb too, in a new process as well."""
    table = table_of(db, embedreg.get("letters").create())  # the plug-in's
    table.add([{"text": "fig"}])
    assert table.count_rows() == 1
    new_process(
        """
import lancedb, embedreg
table = lancedb.connect(folder).open_table("t")
assert table.search("fig").limit(1).to_list()[0]["text"] == "fig"
""",
        env={"PYTHONPATH": os.pathsep.join([str(plugin), os.environ.get("PYTHONPATH", "")])},
    )


def test_lancedbs_registry_creates_with_a_users_rights() -> None:
    """`lancedb.embeddings.get_registry().get(name).create(...)` refuses typos and hard-coded secrets as ours does."""
    theirs = lancedb.embeddings.get_registry()
    with pytest.raises(ConfigError, match="did you mean 'dim'"):
        theirs.get("hashing").create(dimm=8)
    with pytest.raises(ConfigError, match="hard-coded"):
        theirs.get("openai").create(api_key="sk-live")
    adapter = theirs.get("hashing").create(dim=8)
    assert adapter.ndims() == 8
    assert adapter.dim == 8
    assert adapter.embedreg_function == embedreg.get("hashing").create(dim=8)
    with pytest.raises(ConfigError, match=r"get\('hashing'\)\.create"):
        theirs.get("hashing")().ndims()


def test_what_lancedbs_registry_created_marks_models_as_ours_does(db: Any) -> None:
    """Its fields, its pairs and its width are the function's own."""
    fn = lancedb.embeddings.get_registry().get("letter-counts").create()

    class Foods(lancedb.pydantic.LanceModel):
        title: str = fn.SourceField()
        body: str = fn.SourceField()
        vector: lancedb.pydantic.Vector(fn.ndims()) = fn.VectorField(source="body")

    table = db.create_table("t", schema=Foods)
    table.add([{"title": "ape", "body": "fig"}])
    assert table.to_arrow()["vector"].to_pylist() == [counts("fig")]
    config = lancedb.embeddings.EmbeddingFunctionConfig(source_column="text", vector_column="vector", function=fn)
    other = db.create_table("u", data=[{"text": "kiwi"}], embedding_functions=[config])
    assert other.search("kiwi").limit(1).to_list()[0]["_distance"] == 0
    assert embedreg.functions_in(other)["vector"].function is fn.embedreg_function


def test_metadata_is_read_leniently_where_a_user_is_refused(db: Any) -> None:
    """An unknown field that the metadata holds is kept, not refused: another version may have written it."""
    import json

    import pyarrow as pa

    entry = {
        "name": "letter-counts",
        "model": {"first": 3, "later": 1},
        "source_column": "text",
        "vector_column": "vector",
    }
    schema = pa.schema(
        [("text", pa.string()), ("vector", pa.list_(pa.float32(), 3))],
        metadata={"embedding_functions": json.dumps([entry])},
    )
    table = db.create_table("t", schema=schema)
    table.add([{"text": "cab"}])
    assert table.to_arrow()["vector"].to_pylist() == [counts("cab", 3)]
    with pytest.raises(ConfigError, match="later"):
        lancedb.embeddings.get_registry().get("letter-counts").create(first=3, later=1)


def test_adapters_pickle_and_compare_by_their_function() -> None:
    """What lancedb's registry gave out can go to another process."""
    adapter = lancedb.embeddings.get_registry().get("letter-counts").create(first=3)
    twin = pickle.loads(pickle.dumps(adapter))
    assert twin == adapter
    assert hash(twin) == hash(adapter)
    assert twin.ndims() == 3
    assert adapter != lancedb.embeddings.get_registry().get("letter-counts").create(first=4)
    assert copy.copy(Letters.create().SourceField()).json_schema_extra.get("source_column_for")


def test_the_module_of_the_hook_is_in_place() -> None:
    """The process of these tests has exactly one watcher."""
    assert sum(type(finder).__module__ == "embedreg.core.lancedb_hooks" for finder in sys.meta_path) == 1
