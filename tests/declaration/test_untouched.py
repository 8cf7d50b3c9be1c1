"""Reading metadata does nothing: no file, no socket, no import, no model; and the whole way with a real one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

import embedreg
from embedreg import register
from tests.hostile import KEY, Base

# -- nothing happens while metadata is read ----------------------------------------------------------------------------

AUDITED = """
import json, sys, warnings
import pyarrow, numpy
import embedreg
names = ["sentence-transformers", "openai", "hashing"]
for name in names:  # our own modules are imported before the audit; what they would import is not
    own = [{"name": name, "model": {}, "source_column": "t", "vector_column": "v"}]
    embedreg.inspect({b"embedding_functions": json.dumps(own).encode()})
events = []
def hook(event, args):
    if event in ("open", "os.listdir", "os.scandir", "subprocess.Popen", "os.system", "exec", "compile"):
        events.append((event, str(args[0])[:200]))
    elif event.startswith(("socket.", "urllib.", "http.", "ctypes.")) or event == "import":
        events.append((event, str(args[0])[:200]))
sys.addaudithook(hook)
model, folder = sys.argv[1], sys.argv[2]
hostile = [
    {"name": model}, {"name": folder}, {"name": "all-MiniLM-L6-v2"}, {"name": "org/evil", "trust_remote_code": True},
    {"name": "org/x", "revision": "refs/pr/1"}, {"base_url": "http://127.0.0.1:9", "api_key": "$var:k"},
    {"dim": 4}, {"name": "$var:HOME"}, {"name": "$var:no:$var:HOME"}, {"name": "//server/share"},
    {"name": "\\\\\\\\server\\\\share"}, {"device": "cuda:99"}, {"name": "os:system"}, {"x": "y"},
]
entries = [
    {"name": name, "model": m, "source_column": "t", "vector_column": f"{name}{i}"}
    for name in [*names, "os.path:join", "evil.module", "torch"] for i, m in enumerate(hostile)
]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    before = len(events)
    found = embedreg.functions_in({b"embedding_functions": json.dumps(entries).encode()})
    looked = embedreg.inspect({b"embedding_functions": json.dumps(entries).encode()})
during = events[before:]
heavy = {"torch", "transformers", "sentence_transformers", "openai", "evil", "huggingface_hub"} & set(sys.modules)
print(json.dumps({"events": during, "heavy": sorted(heavy), "found": len(found), "problems": len(found.problems)}))
"""


def test_reading_metadata_opens_imports_and_contacts_nothing(
    run_python: Callable[..., str], minilm_path: Path, tmp_path: Path
) -> None:
    """No file is opened or folder listed, no socket made, no module imported, whatever is declared."""
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    told = json.loads(run_python(AUDITED, minilm_path, tmp_path, cwd=tmp_path))
    assert told["heavy"] == []
    assert told["events"] == []
    assert told["found"] > 10
    assert told["problems"] > 30


def test_reading_metadata_calls_no_function() -> None:
    """Neither ndims() nor an embedding method is called; inspect() calls none either."""
    called: list[str] = []

    @register("watched")
    class Watched(Base):
        """Notes what is asked of it."""

        def ndims(self) -> int:
            called.append("ndims")
            return 1

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            called.append("generate")
            return super().generate_embeddings(texts)

        def model_identity(self) -> str | None:
            called.append("identity")
            return None

        def vector_traits(self) -> dict[str, Any]:
            called.append("traits")
            return {}

    entry = {
        "name": "watched",
        "model": {"embedreg": {"probe": "AACAPw==", "fingerprint": "x", "ndims": 9}},
        "source_column": "text",
        "vector_column": "vector",
    }
    data = {KEY: json.dumps([entry]).encode()}
    assert embedreg.functions_in(data)["vector"]
    assert embedreg.inspect(data)[0]["status"] == "ready"
    assert called == []


# -- the whole way, with a real model ----------------------------------------------------------------------------------

BARE = """
import sys, pyarrow as pa, pyarrow.parquet as pq
import embedreg
from embedreg.errors import UntrustedError
table, model, how = sys.argv[1:4]
if how == "grant":
    embedreg.trust(paths=[model])
if how == "create":
    embedreg.get("sentence-transformers").create(name=model)
found = embedreg.functions_in(table)
if how == "bare":
    problem = found.problems["vector"]
    assert isinstance(problem, UntrustedError), problem
    assert f"embedreg.trust(paths=[{model!r}])" in str(problem), problem
    assert "torch" not in sys.modules
else:
    made = embedreg.embed_table({"text": ["a wheel"]}, pq.read_schema(table))
    print(made["vector"][0].as_py()[:3])
"""


@pytest.fixture(scope="module")
def stored_path(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file whose function is a local model's."""
    import pyarrow.parquet as pq

    function = embedreg.get("sentence-transformers").create(name=str(minilm_path))
    made = embedreg.embed_table({"text": ["a wheel"]}, function.bind("text", "vector"))
    path = tmp_path_factory.mktemp("stored") / "t.parquet"
    pq.write_table(made, path)
    return path


@pytest.mark.parametrize("how", ["bare", "grant", "create"])
def test_a_local_model_opens_with_a_grant_or_the_readers_own_code(
    how: Literal["bare", "grant", "create"], run_python: Callable[..., str], stored_path: Path, minilm_path: Path
) -> None:
    """Refused in a bare new process, with the grant to paste; it loads after trust() or after create()."""
    printed = run_python(BARE, stored_path, minilm_path, how, cwd=stored_path.parent)
    assert bool(printed.strip()) == (how != "bare")


def test_a_hub_name_needs_no_grant_and_never_means_a_folder_here(
    run_python: Callable[..., str], minilm_path: Path, tmp_path: Path
) -> None:
    """`all-MiniLM-L6-v2` loads from the verified wheel although the working directory has a folder of that name."""
    decoy = tmp_path / "all-MiniLM-L6-v2"
    decoy.mkdir()
    (decoy / "modules.json").write_text("[]")
    entry = {
        "name": "sentence-transformers",
        "model": {"name": "all-MiniLM-L6-v2"},
        "source_column": "text",
        "vector_column": "vector",
    }
    code = (
        "import sys, embedreg; found = embedreg.functions_in({b'embedding_functions': sys.argv[1].encode()});"
        "print(found['vector'].function.ndims())"
    )
    assert run_python(code, json.dumps([entry]), cwd=tmp_path).strip() == "384"
    assert os.listdir(decoy) == ["modules.json"]
