"""Model folders from strangers: read from regular files below the folder, or refused; no code and no pickle is run."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedreg import errors
from embedreg.errors import EmbedregError
from embedreg.runtime.models import folders, integrity, kinds
from tests.hostile_folders import RAW, damage, patience, write
from tests.watched import nothing_touched

KIND = "sentence_transformers.models."
FILES = (
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "pytorch_model.bin",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "2_Dense/pytorch_model.bin",
    "3_Router/router_config.json",
    "3_Router/a/config.json",
    "1_Pooling",
    "3_Router/a",
)
KINDS = ("Transformer", "Pooling", "Dense", "Normalize", "Router", "Asym", "LayerNorm", "StaticEmbedding", "CLIPModel")
KINDS += ("WeightedLayerPooling", "WordEmbeddings", "BoW", "CNN", "LSTM", "Dropout", "somebody.Module")
PATHS = (
    "",
    ".",
    "1_Pooling",
    "2_Dense",
    "3_Router",
    "a",
    "..",
    "../outside",
    "/etc",
    "C:\\x",
    "a\0b",
    "\ud800",
    "x" * 300,
)
WORDS = (*PATHS, "1.safetensors", "../outside/model.safetensors", "pytorch_model.bin", "hub/kernel", "mean", "cls")
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 4, 8, 10**12, 2**70, float("inf"), float("nan"), 1.5]),
    st.sampled_from(WORDS),
    st.sampled_from([KIND + kind for kind in KINDS]),
)
NAMES = (
    "hidden_size",
    "out_features",
    "word_embedding_dimension",
    "pooling_mode",
    "dimension",
    "truncate_dim",
    "text_config",
)
NAMES += (
    "prompts",
    "default_prompt_name",
    "similarity_fn_name",
    "model_type",
    "auto_map",
    "types",
    "structure",
    "weight_map",
)
NAMES += (
    "model_args",
    "model_kwargs",
    "config_args",
    "tokenizer_args",
    "tokenizer_name_or_path",
    "attn_implementation",
)
NAMES += (
    "gguf_file",
    "subfolder",
    "trust_remote_code",
    "sentence_transformers",
    "vocab",
    "kernel_sizes",
    "bidirectional",
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES + PATHS), inner, max_size=3)
)
CHAIN = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from([KIND + kind for kind in KINDS]) | ODD, "path": st.sampled_from(PATHS) | ODD}
    ),
    max_size=4,
)
ROUTER = st.fixed_dictionaries(
    {
        "types": st.dictionaries(
            st.sampled_from(PATHS), st.sampled_from([KIND + kind for kind in KINDS]) | ODD, max_size=3
        ),
        "structure": st.dictionaries(
            st.sampled_from(["query", "document"]), st.lists(st.sampled_from(PATHS), max_size=3) | ODD
        ),
    }
)
CONTENTS: st.SearchStrategy[Any] = st.one_of(
    VALUES,
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4),
    CHAIN,
    ROUTER,
    st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(max_size=3), st.sampled_from(WORDS), max_size=3)}),
)


def whole(root: Path) -> Path:
    """Write a folder with a module of many kinds, and what lies outside of it."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Router": "Router"}
    write(root / "modules.json", [{"path": path, "type": KIND + kind} for path, kind in kinds.items()])
    for name in ("config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer.json"):
        write(root / name, {})
    write(root / "config.json", {"hidden_size": 4})
    write(root / "1_Pooling" / "config.json", {"embedding_dimension": 4})
    write(root / "2_Dense" / "config.json", {"out_features": 3})
    write(root / "3_Router" / "router_config.json", {"types": {"a": KIND + "LayerNorm"}, "structure": {"query": ["a"]}})
    write(root / "3_Router" / "a" / "config.json", {"dimension": 3})
    for name in ("model.safetensors", "2_Dense/model.safetensors", "3_Router/a/model.safetensors"):
        (root / name).write_bytes(struct.pack("<Q", 2) + b"{}")
    outside = root.parent / "outside"
    outside.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (outside / name).write_text("{}")
    return root


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, str, Any]]:
    """Draw what is done to a model's folder."""
    done: list[tuple[str, str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        what = draw(
            st.sampled_from(["json", "json", "json", "raw", "link", "dangling", "around", "pipe", "folder", "remove"])
        )
        name = draw(st.sampled_from(FILES))
        if what == "json" and name == "modules.json":
            how = draw(CHAIN | CONTENTS)
        elif what == "json" and name.endswith("router_config.json"):
            how = draw(ROUTER | CONTENTS)
        else:
            how = draw(CONTENTS) if what == "json" else draw(RAW) if what == "raw" else None
        done.append((what, name, how))
    return done


READS: tuple[Callable[[Path], object], ...] = (
    lambda root: kinds.refuse_other_kinds(root, "m"),
    folders.ndims,
    folders.prompts,
    folders.similarity,
    folders.routed,
    folders.ends_normalized,
    lambda root: list(folders.flat(folders.modules(root))),
    lambda root: integrity.missing(root, lambda _: False, code=True),
    lambda root: integrity.missing(root, lambda _: True),
    integrity.stamp,
    integrity.weights_identity,
    lambda root: integrity.check_safe(root, "m", code=False, pickles=True),
)


@settings(
    max_examples=int(os.environ.get("EMBEDREG_EXAMPLES", "120")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(done=damages())
def test_whatever_lies_in_a_model_folder_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, done: list[tuple[str, str, Any]]
) -> None:
    """Any JSON, bytes, links, pipes and routes: an answer, or an error of ours; what is safe lies below the folder."""
    root = whole(tmp_path_factory.mktemp("any") / "model")
    for each in done:
        damage(root, *each)
    with patience(), nothing_touched(*(root.parent / "outside").iterdir(), below=root):  # links are followed
        for read in READS:
            with contextlib.suppress(EmbedregError):
                read(root)
        with contextlib.suppress(EmbedregError):
            width = folders.ndims(root)
            assert width is None or (type(width) is int and 0 < width <= 65_536)
    with patience(), nothing_touched(below=root):
        try:
            integrity.check_safe(root, "m", code=False, pickles=False)
        except EmbedregError:
            safe = False
        else:
            safe = True
    if safe:
        assert all(path.resolve().is_relative_to(root.resolve()) for path in root.rglob("*"))
        for module in folders.flat(folders.modules(root)):
            assert module.own
            read_first = ("model.safetensors", "model.safetensors.index.json")
            pickled = (module.folder / "pytorch_model.bin").is_file()
            assert not pickled or any((module.folder / name).is_file() for name in read_first)
    shutil.rmtree(root.parent)


@pytest.mark.parametrize(
    "options",
    [
        {"model_args": {"subfolder": "../outside"}},
        {"model_kwargs": {"attn_implementation": "somebody/kernel"}},
        {"config_args": {"gguf_file": "x.gguf"}},
        {"model_kwargs": {"use_kernels": True}},
        {"processor_kwargs": {"vocab_file": "/etc/passwd"}},
        {"model_args": ["trust_remote_code"]},
    ],
)
def test_options_that_lead_elsewhere_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """What a configuration passes on to the transformers library names no file, code or other model."""
    root = whole(tmp_path / "model")
    write(root / "sentence_bert_config.json", {"model_args": {"dtype": "float16", "tie_word_embeddings": False}})
    integrity.check_safe(root, "m", code=False, pickles=False)
    write(root / "sentence_bert_config.json", options)
    with pytest.raises(errors.UntrustedError, match="options for the transformers library that are not allowed"):
        integrity.check_safe(root, "m", code=False, pickles=False)
    integrity.check_safe(root, "m", code=False, pickles=True)


def test_shards_are_safetensors_beside_their_index(tmp_path: Path) -> None:
    """An index that names a pickle, or a file outside, is refused, also where the file is there."""
    root = whole(tmp_path / "model")
    (root / "model.safetensors").unlink()
    (root / "pytorch_model.bin").write_text("pickled")
    for name in ("pytorch_model.bin", "../outside/model.safetensors", "/etc/passwd", 3):
        write(root / "model.safetensors.index.json", {"weight_map": {"a": name}})
        with pytest.raises(errors.ConfigError, match=r"model\.safetensors\.index\.json"):
            integrity.check_safe(root, "m", code=False, pickles=False)
    write(root / "model.safetensors.index.json", {})
    (root / "other.safetensors").write_bytes(b"")  # which the library would not look at
    with pytest.raises(errors.UntrustedError, match="pickles"):
        integrity.check_safe(root, "m", code=False, pickles=False)


def test_a_link_out_of_the_folder_needs_a_grant_of_its_own(tmp_path: Path) -> None:
    """Granting a folder grants no file elsewhere; a link within it is as good as the file."""
    import embedreg

    root = whole(tmp_path / "model")
    (root / "more.json").symlink_to(root / "config.json")
    integrity.check_safe(root, "m", code=False, pickles=False)
    (root / "config.json").unlink()
    (root / "config.json").symlink_to(tmp_path / "outside" / "config.json")
    with pytest.raises(errors.UntrustedError, match="a link out of the model's folder") as caught:
        integrity.check_safe(root, "m", code=False, pickles=False)
    assert str(tmp_path / "outside" / "config.json") in str(caught.value.hint)
    with embedreg.trust(paths=[tmp_path / "outside"]):
        integrity.check_safe(root, "m", code=False, pickles=False)
    integrity.check_safe(root, "m", code=False, pickles=True)
