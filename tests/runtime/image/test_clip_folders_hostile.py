"""open_clip's model folders from strangers: regular files below the folder are read, or the folder is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import embedreg
from embedreg import errors
from embedreg.errors import EmbedregError
from embedreg.runtime.image import clip_files
from embedreg.runtime.models import integrity
from tests.hostile_folders import RAW, damage, patience, write
from tests.watched import nothing_touched

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 4,
        "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 8, "head_width": 4, "layers": 1},
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {},
}
FILES = (
    "open_clip_config.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "other.pth",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "a/b/c/d/e/vocab.txt",
    "vocab.json",
    "merges.txt",
    "x.model",
)
ODD: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 4, 8, 10**12, 2**70, 2**16, 1e300, float("inf"), float("nan"), 1.5])
    | st.sampled_from(
        ["", ".", "a/b", "bert-base", "../outside", "/etc", "local-dir:/etc", "hf-hub:a/b", "a\0b", "\ud800"]
    )
    | st.sampled_from(["OUTSIDE/config.json", "../outside/model.safetensors", "/etc/passwd", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["width", "vocab_file", "x"]), inner),
    max_leaves=4,
)
PLACES = st.sampled_from(
    [
        *(("model_cfg", "embed_dim"), ("model_cfg",), ("model_cfg", "text_cfg"), ("model_cfg", "vision_cfg")),
        *(("model_cfg", "text_cfg", name) for name in ("width", "layers", "vocab_size", "context_length", "eos_id")),
        *(("model_cfg", "text_cfg", name) for name in ("hf_tokenizer_name", "hf_model_name", "tokenizer_kwargs")),
        *(("model_cfg", "vision_cfg", name) for name in ("width", "layers", "image_size", "patch_size", "mlp_ratio")),
        *(("model_cfg", "vision_cfg", "timm_model_name"), ("model_cfg", "multimodal_cfg"), ("preprocess_cfg",)),
    ]
)
KEYS = ("vocab_file", "merges_file", "gguf_file", "tokenizer_file", "auto_map", "sp_model_kwargs")
NAMES = st.dictionaries(st.sampled_from((*KEYS, "unk_token", "backbone")), ODD, max_size=3)


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, str, Any]]:
    """Draw what is done to a model's folder."""
    done: list[tuple[str, str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        what = draw(
            st.sampled_from(["config", "config", "names", "raw", "link", "dangling", "around", "pipe", "remove"])
        )
        name = draw(st.sampled_from(FILES))
        how: Any = None
        if what == "config":
            how = copy.deepcopy(CONFIG)
            for *parents, last in draw(st.lists(PLACES, min_size=1, max_size=2)):
                into: Any = how
                for part in parents:
                    into = into.get(part) if isinstance(into, dict) else None
                if isinstance(into, dict):
                    into[last] = draw(ODD)
            name = "open_clip_config.json"
        elif what == "names":
            how, name = draw(NAMES), draw(st.sampled_from(["tokenizer_config.json", "special_tokens_map.json"]))
        elif what == "raw":
            how = draw(RAW)
        done.append(("json" if what in ("config", "names") else what, name, how))
    return done


def whole(root: Path) -> Path:
    """Write a model's folder with two kinds of weights and a tokenizer, and what lies outside of it."""
    write(root / "open_clip_config.json", CONFIG)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        write(root / name, {})
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        (root / name).write_bytes(bytes(4096))
    (root / "a/b/c/d/e").mkdir(parents=True)
    outside = root.parent / "outside"
    outside.mkdir()
    for name in ("open_clip_config.json", "config.json", "model.safetensors", "other.pth", "vocab.txt"):
        (outside / name).write_text("{}")
    return root


def texts(value: Any) -> list[str]:
    """Return all texts of a JSON value."""
    if isinstance(value, dict | list):
        return [text for each in (value.values() if isinstance(value, dict) else value) for text in texts(each)]
    return [value] if isinstance(value, str) else []


def numbers(value: Any) -> list[float]:
    """Return all numbers of a JSON value."""
    if isinstance(value, dict | list):
        return [number for each in (value.values() if isinstance(value, dict) else value) for number in numbers(each)]
    return [value] if isinstance(value, int | float) else []


@settings(
    max_examples=int(os.environ.get("EMBEDREG_EXAMPLES", "150")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(done=damages())
@example([("link", "a/b/c/d/e/vocab.txt", None)])  # deep
@example([("remove", "open_clip_model.safetensors", None)])  # pickles alone
@example([("json", "tokenizer_config.json", {"vocab_file": "OUTSIDE/config.json"})])
@example([("json", "open_clip_config.json", CONFIG | {"model_cfg": CONFIG["model_cfg"] | {"x": [1e300]}})])
@example([("json", "tokenizer_config.json", {"sp_model_kwargs": {"x": ["../outside/model.safetensors"]}})])
def test_whatever_lies_in_a_clip_folder_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, done: list[tuple[str, str, Any]]
) -> None:
    """A stored declaration's folder, though granted, leads nowhere else: no link, no pickle, no name, no huge model."""
    root = whole(tmp_path_factory.mktemp("any") / "model")
    for what, name, how in done:
        if what == "json":
            how = json.loads(json.dumps(how).replace("OUTSIDE", str(root.parent / "outside")))
        damage(root, what, name, how)
    name, found = f"local-dir:{root}", None
    with patience(), nothing_touched(below=root):
        with contextlib.suppress(EmbedregError):
            found = clip_files.resolve(name, None, allow_local=True, safe_only=True)
        if found is not None:
            with contextlib.suppress(EmbedregError):
                assert 0 < clip_files.ndims(lambda: found, name) <= 65_536
            found.identity(), found.stamp()
    with (
        patience(),
        nothing_touched(*(root.parent / "outside").iterdir(), below=root),
        contextlib.suppress(EmbedregError),
    ):
        by_code = clip_files.resolve(name, None, allow_local=True, safe_only=False)  # links are followed
        clip_files.ndims(lambda: by_code, name), by_code.identity(), by_code.stamp()
    if found is not None:
        assert found.weights.suffix == ".safetensors"
        assert all(path.resolve().is_relative_to(root.resolve()) for path in root.rglob("*"))
        config = json.loads((root / "open_clip_config.json").read_text())["model_cfg"]
        assert all(abs(number) <= 2**22 for number in numbers(config))
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            if (root / file).is_file():
                found_texts = texts(json.loads((root / file).read_text()))
                paths = [root / text for text in found_texts if "/" in text and "\0" not in text and len(text) < 255]
                assert all(path.resolve().is_relative_to(root.resolve()) for path in paths if path.exists())
    shutil.rmtree(root.parent)


def test_a_stored_folder_is_read_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links, pickles, names of other files and sizes beyond the weights are refused by name; own code may do more."""
    root = whole(tmp_path / "model")
    name, outside = f"local-dir:{root}", tmp_path / "outside"

    def refused(kind: type[EmbedregError], words: str, *, own: bool = True) -> None:
        with pytest.raises(kind, match=words):
            clip_files.resolve(name, None, allow_local=True, safe_only=True)
        if own:
            clip_files.resolve(name, None, allow_local=True, safe_only=False)

    (root / "a/b/c/d/e/vocab.txt").symlink_to(outside / "vocab.txt")
    refused(errors.UntrustedError, r"'a/b/c/d/e/vocab\.txt' of the model .* is a link out of the model's folder")
    with embedreg.trust(paths=[outside]):
        clip_files.resolve(name, None, allow_local=True, safe_only=True)
    (root / "a/b/c/d/e/vocab.txt").unlink()

    write(root / "tokenizer_config.json", {"vocab_file": str(outside / "vocab.txt"), "name_or_path": str(outside)})
    refused(errors.UntrustedError, r"'tokenizer_config\.json' of the model .* names a file outside .* in 'vocab_file'")
    write(root / "tokenizer_config.json", {"vocab_file": "/nowhere/vocab.txt", "name_or_path": str(outside)})
    clip_files.resolve(name, None, allow_local=True, safe_only=True)  # another machine's path, and a note

    config = copy.deepcopy(CONFIG)
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "bert-tiny"
    write(root / "open_clip_config.json", config)
    clip_files.resolve(name, None, allow_local=True, safe_only=True)
    (tmp_path / "bert-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    refused(errors.UntrustedError, "names a file outside of the model's folder in 'hf_model_name'")

    config["model_cfg"]["text_cfg"] = {**CONFIG["model_cfg"]["text_cfg"], "width": 4096, "layers": 400}
    write(root / "open_clip_config.json", config)
    refused(errors.ConfigError, "describes a larger model than the weights 'open_clip_model.safetensors'")
    config["model_cfg"]["text_cfg"]["layers"] = 10**9
    write(root / "open_clip_config.json", config)
    refused(errors.ConfigError, r"open_clip_config\.json is not a valid model file", own=False)

    write(root / "open_clip_config.json", CONFIG)
    (root / "open_clip_model.safetensors").unlink()
    refused(errors.UntrustedError, "are pickles, which can run code when loaded")


def test_a_sentence_transformers_folder_names_no_file_elsewhere(tmp_path: Path) -> None:
    """The same reader: a tokenizer's file in a module's folder, and a backbone from this machine, are refused."""
    root, outside = tmp_path / "model", tmp_path / "outside"
    outside.mkdir()
    write(root / "modules.json", [{"path": "0_T", "type": "sentence_transformers.models.Transformer"}])
    write(root / "0_T" / "config.json", {"hidden_size": 4, "_name_or_path": str(outside)})
    (root / "0_T" / "model.safetensors").write_bytes(bytes(8))
    integrity.check_safe(root, "m", code=False, pickles=False)
    for file, key, value in (
        ("tokenizer_config.json", "gguf_file", "../../outside"),
        ("tokenizer_config.json", "tokenizer_file", str(outside)),
        ("config.json", "backbone", str(outside)),
        ("processor_config.json", "path", "../../outside"),
    ):
        write(root / "0_T" / file, {"hidden_size": 4, "inner": [{key: value}]})
        with pytest.raises(errors.UntrustedError, match=rf"'0_T/{file}' of the model 'm' names a file .* in '{key}'"):
            integrity.check_safe(root, "m", code=False, pickles=False)
        integrity.check_safe(root, "m", code=False, pickles=True)
        write(root / "0_T" / file, {"hidden_size": 4})
