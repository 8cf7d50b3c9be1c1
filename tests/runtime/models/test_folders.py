"""What model files say, with files written by hand: old and new spellings, hostile ones, whole and partial folders."""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

import embedreg
from embedreg import errors
from embedreg.runtime.models import folders, integrity, kinds

OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules."


def write(path: Path, content: Any) -> None:
    """Write a JSON file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def chain(root: Path, *modules: tuple[str, str, Any]) -> Path:
    """Write a chain: (class, folder, the module's config.json or None)."""
    write(root / "modules.json", [{"idx": i, "path": path, "type": kind} for i, (kind, path, _) in enumerate(modules)])
    for _, path, config in modules:
        if config is not None:
            write(root / path / "config.json", config)
    return root


def tensors(path: Path, **shapes: list[int]) -> None:
    """Write the header of a safetensors file; the data is not looked at."""
    header = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())


@pytest.mark.parametrize(
    ("pooling", "width"),
    [
        ({"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, 8),
        ({"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, 16),
        (
            {"word_embedding_dimension": 8, "pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_lasttoken": True},
            16,
        ),
        ({"word_embedding_dimension": 8}, 8),
        ({"embedding_dimension": 8, "pooling_mode": "cls"}, 8),
        ({"embedding_dimension": 8, "pooling_mode": ["cls", "mean", "max"]}, 24),
        ({"pooling_mode": "mean"}, 12),
    ],
)
def test_pooling_in_every_spelling(tmp_path: Path, pooling: dict[str, Any], width: int) -> None:
    """Each pooling mode that is on adds the width once, in the old form and the new."""
    chain(tmp_path, (OLD + "Transformer", "", {"hidden_size": 12}), (OLD + "Pooling", "1_Pooling", pooling))
    assert folders.ndims(tmp_path) == width


@pytest.mark.parametrize(
    ("config", "width"),
    [({"hidden_size": 7}, 7), ({"d_model": 7}, 7), ({"dim": 7}, 7), ({"n_embd": 7}, 7), ({"emb_dim": 7}, 7),
     ({"text_config": {"hidden_size": 7}}, 7), ({"model_type": "new"}, None)],
)  # fmt: skip
def test_plain_models(tmp_path: Path, config: dict[str, Any], width: int | None) -> None:
    """A plain Hugging Face folder is as wide as its hidden state, however its family calls that."""
    write(tmp_path / "config.json", config)
    assert folders.ndims(tmp_path) == width


def test_heads_and_routes(tmp_path: Path) -> None:
    """Dense, LayerNorm and Normalize count; the model's own truncate_dim does; an unknown class leaves it open."""
    transformer = (OLD + "Transformer", "", {"hidden_size": 12})
    dense = (NEW + "Dense", "2_Dense", {"in_features": 12, "out_features": 5})
    aside = (NEW + "Dense", "3_Dense", {"out_features": 99, "module_output_name": "other"})
    chain(tmp_path, transformer, dense, aside, (NEW + "Normalize", "4_Normalize", None))
    assert folders.ndims(tmp_path) == 5
    assert folders.ends_normalized(tmp_path)
    write(tmp_path / "config_sentence_transformers.json", {"truncate_dim": 3, "prompts": {"query": "q: "}})
    assert folders.ndims(tmp_path) == 3
    assert folders.prompts(tmp_path) == ({"query": "q: ", "document": ""}, None)
    chain(tmp_path, transformer, ("somebody.Module", "2_Own", {}))
    assert folders.ndims(tmp_path) is None
    assert not folders.ends_normalized(tmp_path)
    router = {"types": {"a": OLD + "Dense"}, "structure": {"query": ["a"], "document": ["a"]}}
    chain(tmp_path, (OLD + "Asym", "0_Asym", router))
    write(tmp_path / "0_Asym" / "a" / "config.json", {"out_features": 2})
    assert folders.ndims(tmp_path) == 2
    assert folders.routed(tmp_path)


def test_tables_of_words(tmp_path: Path) -> None:
    """The width of an embedding table is read from the header of its file."""
    chain(tmp_path, (NEW + "StaticEmbedding", "0_StaticEmbedding", None))
    tensors(tmp_path / "0_StaticEmbedding" / "model.safetensors", **{"embedding.weight": [100, 6]})
    assert folders.ndims(tmp_path) == 6
    tensors(tmp_path / "0_StaticEmbedding" / "model.safetensors", embeddings=[100, 9])
    assert folders.ndims(tmp_path) == 9


def test_other_kinds_of_models_count_as_plain(tmp_path: Path) -> None:
    """A cross-encoder's folder gets the library's default modules, and none of its prompts."""
    chain(tmp_path, (OLD + "Transformer", "", {"hidden_size": 12}), (OLD + "Dense", "1_Dense", {"out_features": 1}))
    write(tmp_path / "config_sentence_transformers.json", {"model_type": "CrossEncoder", "prompts": {"query": "q"}})
    assert folders.ndims(tmp_path) == 12
    assert folders.prompts(tmp_path)[0]["query"] == ""


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", '{"a": 1}', "[" * 100_000, '[{"type": "x", "path": "../x"}]', '[{"type": "x", "path": "/etc"}]',
     '[{"type": "x", "path": "C:\\\\x"}]', "\ud800".encode("utf-8", "surrogatepass").decode("latin1")],
)  # fmt: skip
def test_hostile_module_lists(tmp_path: Path, content: str) -> None:
    """A list of modules that no library writes, or that leaves the folder, is refused as one's own error."""
    (tmp_path / "modules.json").write_text(content, "latin1")
    with pytest.raises(errors.ConfigError):
        folders.ndims(tmp_path)


@pytest.mark.parametrize("config", [{"hidden_size": "12"}, {"hidden_size": None}, {"text_config": {}}])
def test_values_that_are_no_numbers(tmp_path: Path, config: dict[str, Any]) -> None:
    """A width that is not a number is unknown."""
    assert folders.ndims(chain(tmp_path, (OLD + "Transformer", "", config))) is None


@pytest.mark.parametrize("config", [{"text_config": 5}, {"text_config": [1]}])
def test_values_of_wrong_kinds(tmp_path: Path, config: dict[str, Any]) -> None:
    """Values of kinds that no library writes are refused, and not by a stray TypeError."""
    with pytest.raises(errors.ConfigError):
        folders.ndims(chain(tmp_path, (OLD + "Transformer", "", config)))


def whole(root: Path) -> Path:
    """Write a folder that has all the files of a sentence-transformers model."""
    chain(
        root, (OLD + "Transformer", "", {"hidden_size": 4}), (OLD + "Pooling", "1_Pooling", {"embedding_dimension": 4})
    )
    for name in ("config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer.json"):
        write(root / name, {})
    tensors(root / "model.safetensors", weight=[1])
    return root


@pytest.mark.parametrize(
    "name",
    ["modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "config.json", "tokenizer.json",
     "model.safetensors", "1_Pooling/config.json"],
)  # fmt: skip
def test_partial_snapshots_are_seen(tmp_path: Path, name: str) -> None:
    """Each file whose lack would change the vectors, or fail, is missed; not where the model is known to have none."""
    assert integrity.missing(whole(tmp_path), lambda _: False) == []
    (tmp_path / name).unlink()
    assert integrity.missing(tmp_path, lambda _: False) == [name]
    known = integrity.missing(tmp_path, lambda _: True)
    assert known == ([name] if name == "model.safetensors" else [])


def test_every_shard_counts(tmp_path: Path) -> None:
    """A model in shards is whole only with all of them."""
    (whole(tmp_path) / "model.safetensors").unlink()
    write(tmp_path / "model.safetensors.index.json", {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    tensors(tmp_path / "1.safetensors", a=[1])
    assert integrity.missing(tmp_path, lambda _: False) == ["model.safetensors"]
    tensors(tmp_path / "2.safetensors", b=[1])
    assert integrity.missing(tmp_path, lambda _: False) == []


def test_parts_of_another_model_are_refused(tmp_path: Path) -> None:
    """An adapter, or a tokenizer from elsewhere, would make the library read what the files name."""
    integrity.check_safe(whole(tmp_path), "m", code=False, pickles=False)
    write(tmp_path / "sentence_bert_config.json", {"tokenizer_name_or_path": "/home/me/other"})
    with pytest.raises(errors.UntrustedError, match="refers to files of another model"):
        integrity.check_safe(tmp_path, "m", code=False, pickles=False)
    integrity.check_safe(tmp_path, "m", code=False, pickles=True)
    write(tmp_path / "sentence_bert_config.json", {})
    write(tmp_path / "adapter_config.json", {})
    with pytest.raises(errors.UntrustedError, match="refers to files of another model"):
        integrity.check_safe(tmp_path, "m", code=False, pickles=False)


def test_identity_ignores_who_saved_the_files(tmp_path: Path) -> None:
    """Versions and old paths in the configuration change nothing; a number that matters, and the weights, do."""
    first = integrity.weights_identity(whole(tmp_path))
    write(tmp_path / "config.json", {"transformers_version": "9", "_name_or_path": "/old", "hidden_size": 4})
    assert integrity.weights_identity(tmp_path) == first
    write(tmp_path / "config.json", {"hidden_size": 4, "layer_norm_eps": 1})
    second = integrity.weights_identity(tmp_path)
    tensors(tmp_path / "model.safetensors", weight=[2])
    assert len({first, second, integrity.weights_identity(tmp_path)}) == 3
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(errors.ModelNotFoundError):
        integrity.weights_identity(tmp_path)


def test_the_name_of_a_blob_counts_in_the_hubs_own_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's folder that is laid out as the cache does not pass for the model whose digest it borrows."""
    cache, stranger = tmp_path / "hub", tmp_path / "stranger"
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(cache))
    borrowed = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    for root, trusted in ((cache, True), (stranger, False), (cache / "models--o--m" / "more", False)):
        blob = root / "models--o--m" / "blobs" / borrowed
        blob.parent.mkdir(parents=True)
        blob.write_bytes(b"forged")
        link = root / "models--o--m" / "snapshots" / "1" / "model.safetensors"
        link.parent.mkdir(parents=True)
        link.symlink_to(blob)
        assert (integrity.digest(link) == borrowed) is trusted
        assert (integrity.digest(blob) == borrowed) is trusted
    plain = tmp_path / "model" / "blobs" / borrowed
    plain.parent.mkdir(parents=True)
    plain.write_bytes(b"forged")
    assert integrity.digest(plain) == hashlib.sha256(b"forged").hexdigest()


def test_a_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    """Also by one of the same size and the same time of change."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    first, when = integrity.digest(path), path.stat().st_mtime_ns
    other = tmp_path / "other"
    other.write_bytes(b"two")
    other.replace(path)
    os.utime(path, ns=(when, when))
    assert integrity.digest(path) != first


@pytest.mark.parametrize("kind", ["SparseEncoder", "CrossEncoder", "MultiVectorEncoder", "ColBERT", "NewKind", 7])
def test_a_folder_of_another_kind_of_model_is_refused(tmp_path: Path, kind: object) -> None:
    """What another class of the library saved is named by its kind, with what reads it."""
    write(tmp_path / "modules.json", [])
    write(tmp_path / "config_sentence_transformers.json", {"model_type": kind})
    write(tmp_path / "config.json", {})
    function = embedreg.get("sentence-transformers").create(name=str(tmp_path), device="cpu")
    for use in (function.ndims, lambda: function.generate_embeddings(["a"]), function.vector_traits):
        with pytest.raises(errors.ConfigError, match=f"is a {kind}") as caught:
            use()
        assert caught.value.hint


def test_a_cross_encoder_is_known_by_its_config(tmp_path: Path) -> None:
    """A CrossEncoder that leaves no file of its own reports it in the configuration of its transformer."""
    write(tmp_path / "config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}})
    with pytest.raises(errors.ConfigError, match="is a CrossEncoder"):
        kinds.refuse_other_kinds(tmp_path, "m")
