"""The light back end: the vectors of `SentenceTransformer.encode`, without torch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg import errors
from embedreg.declaration import codec
from embedreg.runtime.models.weights import ResolvedModel
from embedreg.runtime.text.execute import embed_texts
from embedreg.runtime.text.light import choice
from embedreg.runtime.text.light import model as light_model
from embedreg.runtime.text.light.architectures import find
from embedreg.runtime.text.light.model import LightModel, why_not
from embedreg.runtime.text.light.pipeline import LightPipeline
from embedreg.runtime.text.light.settings import Settings, Unsupported
from tests.runtime.text import light_models

CLOSE = 1e-5
TEXTS = [
    "wait for a thread to finish",
    "A",
    "json? (yes) or no; 'x' and more of it, much more, until the model's limit is reached and then some more words",
    "the sine of x",
    "In  Two   lines\nwith <pad> and [SEP] and </s> inside",
    "",
]


def light(folder: Path, prompt: str = "", task: str | None = None, **config: Any) -> Callable[[list[str]], np.ndarray]:
    """Return a function that embeds texts with the light back end, in batches and one after another."""
    assert why_not(folder) is None
    model = LightModel(folder)
    options = {"normalize": False, "truncate_dim": None, **config}

    def embed(texts: list[str]) -> np.ndarray:
        compiled = LightPipeline.compile(model, "float32", 2, None)
        pipeline = LightPipeline(model, "cpu", prompt, task, compiled=compiled, **options)
        whole = embed_texts(pipeline, texts, pipeline.one(texts[0])[0].shape[1], threads=2).vectors
        alone = LightPipeline(
            model, "cpu", prompt, task, compiled=LightPipeline.compile_for_queries(model, "float32", 2, None), **options
        )
        one = np.concatenate([alone.one(text)[0] for text in texts])
        np.testing.assert_allclose(one, whole, atol=CLOSE)
        return whole

    return embed


@pytest.mark.parametrize("kind", light_models.ARCHITECTURES)
def test_every_architecture_gives_the_librarys_vectors(kind: str, tmp_path: Path) -> None:
    """A tiny random model of each: long and short texts, alone and in batches, special tokens in the text."""
    expected = light_models.model(kind, tmp_path / "model").encode(TEXTS)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(light(tmp_path / "model")(TEXTS), expected, atol=CLOSE)


def modules(*names: str) -> list[Any]:
    """Return modules of the library with random weights, by a short name each; a pooling by its modes and '+'."""
    import torch
    from sentence_transformers.sentence_transformer import modules as library

    made: list[Any] = []
    width = light_models.WIDTH
    torch.manual_seed(5)
    for name in names:
        if name == "dense":
            made.append(library.Dense(width, 20))
            width = 20
        elif name == "linear":
            made.append(library.Dense(width, width, bias=False, activation_function=torch.nn.Identity()))
        elif name == "norm":
            made.append(library.LayerNorm(width))
            torch.nn.init.normal_(made[-1].norm.weight)
            torch.nn.init.normal_(made[-1].norm.bias)
        elif name == "unit":
            made.append(library.Normalize())
        else:
            modes = name.removeprefix("-").split("+")
            made.append(library.Pooling(width, tuple(modes), include_prompt=not name.startswith("-")))
            width *= len(modes)
    return made


CHAINS = [
    ["cls"],
    ["max"],
    ["mean_sqrt_len_tokens", "dense"],
    ["weightedmean", "norm", "unit"],
    ["lasttoken", "linear", "unit"],
    ["mean+cls+max", "dense"],
    ["-mean+weightedmean+max+cls+lasttoken"],
]


@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_every_pooling_and_head_gives_the_librarys_vectors(chain: list[str], tmp_path: Path) -> None:
    """Each mode, several at once, without the prompt's tokens; and the modules after them."""
    prompts = {"query": "query: ", "document": ""}
    made = light_models.model("bert", tmp_path / "model", modules(*chain), prompts, num_hidden_layers=1)
    for prompt in ("", "query: "):
        expected = made.encode(TEXTS, prompt=prompt)
        np.testing.assert_allclose(light(tmp_path / "model", prompt)(TEXTS), expected, atol=CLOSE)


@pytest.mark.parametrize("limit", [None, 9])
def test_texts_are_truncated_where_the_library_truncates(limit: int | None, tmp_path: Path) -> None:
    """At `max_seq_length`, or at what the tokenizer and the model take; the truncated rows are known."""
    made = light_models.model("bert", tmp_path / "model", limit=limit, num_hidden_layers=1)
    model = LightModel(tmp_path / "model")
    assert model.limit == made.get_max_seq_length()
    pipeline = LightPipeline(model, "cpu", "", None, False, None, LightPipeline.compile(model, "float32", 1, None))
    lengths = [len(made.tokenizer(text, truncation=False)["input_ids"]) for text in TEXTS]
    truncated = pipeline.tokenize(TEXTS).truncated
    assert truncated is not None
    assert truncated.tolist() == [length > made.get_max_seq_length() for length in lengths]
    assert [light_model.count_tokens(model, text) for text in TEXTS] == lengths


def test_a_width_and_lower_case_of_the_model_count(tmp_path: Path) -> None:
    """`truncate_dim` of a model and of a call, `do_lower_case`, and unit length after them."""
    made = light_models.model("roberta", tmp_path / "model", num_hidden_layers=1)
    lower_case = edited(tmp_path / "model", tmp_path / "lower", "sentence_bert_config.json", do_lower_case=True)
    edited(lower_case, tmp_path / "short", "config_sentence_transformers.json", truncate_dim=12)
    from sentence_transformers import SentenceTransformer

    again = SentenceTransformer(str(tmp_path / "short"), device="cpu", local_files_only=True)
    plain, lower = made.encode(["A Name"])[:, :12], again.encode(["A Name"])
    assert np.abs(plain - lower).max() > 1e-3
    for width in (None, 5):
        expected = again.encode(TEXTS, truncate_dim=width, normalize_embeddings=True)
        found = light(tmp_path / "short", normalize=True, truncate_dim=width)(TEXTS)
        np.testing.assert_allclose(found, expected, atol=CLOSE)


def test_static_models_run_in_numpy(tmp_path: Path) -> None:
    """StaticEmbedding, and model2vec's form of it with a mapping and weights of the tokens."""
    from safetensors.numpy import save_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = light_models.tokenizer("bert")
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=12), *modules("unit")]).save(
        str(tmp_path / "static"), create_model_card=False
    )
    random = np.random.default_rng(2)
    size = len(tokenizer)
    quantized = {
        "embeddings": random.normal(size=(7, 12)).astype(np.float32),
        "mapping": random.integers(0, 7, size),
        "weights": random.random(size),
    }
    shutil.copytree(tmp_path / "static", tmp_path / "quantized")
    save_file(quantized, next((tmp_path / "quantized").glob("**/model.safetensors")))
    for name in ("static", "quantized"):
        expected = SentenceTransformer(str(tmp_path / name), device="cpu", local_files_only=True).encode(TEXTS)
        assert LightModel(tmp_path / name).table is not None
        np.testing.assert_allclose(light(tmp_path / name)(TEXTS), expected, atol=CLOSE)


def test_minilm_is_exact(minilm_path: Path) -> None:
    """The real weights agree with `SentenceTransformer.encode` to 1e-6, over all lengths."""
    from sentence_transformers import SentenceTransformer

    texts = [" ".join(["thread", "Lock", "wait", "jöin"][: 1 + row % 4] * (1 + row * 3)) for row in range(34)]
    model = SentenceTransformer(str(minilm_path), device="cpu", local_files_only=True)
    expected = model.encode(texts, normalize_embeddings=True)
    assert np.abs(light(minilm_path, normalize=True)(texts) - expected).max() < 1e-6


# -- what it refuses ---------------------------------------------------------------------------------------------------


def edited(source: Path, folder: Path, file: str, **values: Any) -> Path:
    """Copy a model and change a JSON file of it; None removes a value."""
    shutil.copytree(source, folder)
    path = folder / file
    content = {**(json.loads(path.read_text()) if path.exists() else {}), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT."""
    folder = tmp_path_factory.mktemp("light") / "bert"
    light_models.model("bert", folder, num_hidden_layers=1)
    return folder


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        ("config.json", {"model_type": "gpt2"}, "its architecture is 'gpt2'"),
        ("config.json", {"auto_map": {"AutoModel": "m.M"}}, "code of its own"),
        ("config.json", {"hidden_act": "tanh"}, "hidden_act of its config.json is 'tanh'"),
        ("config.json", {"hidden_size": "32"}, "hidden_size of its config.json is '32'"),
        ("config.json", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("config.json", {"is_decoder": True}, "is_decoder"),
        ("config.json", {"dtype": "bfloat16"}, "dtype of its config.json is 'bfloat16'"),
        ("sentence_bert_config.json", {"model_args": {"attn_implementation": "eager"}}, "model_args"),
        ("sentence_bert_config.json", {"max_seq_length": 1000}, "takes 1000 tokens, and has"),
        ("tokenizer_config.json", {"do_lower_case": False}, "do not agree"),
        ("tokenizer_config.json", {"tokenizer_class": "CanineTokenizer"}, "its tokenizer is a 'CanineTokenizer'"),
        ("tokenizer_config.json", {"padding_side": "left"}, "padding_side"),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}, "chat_template"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "its pooling is 'attention'"),
        ("1_Pooling/config.json", {"head": "more"}, "its pooling has the setting 'head'"),
    ],
)
def test_a_model_that_would_differ_is_passed_over_by_name(
    bert: Path, tmp_path: Path, file: str, values: dict[str, Any], reason: str
) -> None:
    """A setting that is not known to give the library's vectors is the reason to leave the model to torch."""
    folder = edited(bert, tmp_path / "model", file, **values)
    assert reason in (why_not(folder) or "")
    with pytest.raises(errors.CallError, match="the light back end cannot run the model") as caught:
        light_model.load(ResolvedModel(folder, "local"), "mine", "cpu", code=False, own=True)
    assert "embedreg[sentence-transformers]" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["nomic_bert", "gte"])
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_type .* is 'yarn'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "ntk", "factor": 8.0}}, "rope_scaling, of an older form"),
        ({"head_dim": 4}, "head_dim"),
        ({"num_attention_heads": 5}, "not a multiple of its heads"),
    ],
)
def test_rotary_positions_are_read_strictly(kind: str, values: dict[str, Any], reason: str) -> None:
    """Scaled or partial rotation, and heads of another size, are left to torch."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = {"model_type": kind, "vocab_size": 40, "max_position_embeddings": 66, **sizes}
    assert find(Settings(config)).width == 32
    with pytest.raises(Unsupported, match=reason):
        find(Settings({**config, **values}))


def test_weights_are_read_where_they_are(bert: Path, tmp_path: Path) -> None:
    """Names that begin with the architecture's, other number types, missing ones, and entries outside of the file."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(bert / "model.safetensors")
    expected = light(bert)(TEXTS)
    folder = tmp_path / "model"
    shutil.copytree(bert, folder)
    save_file({f"bert.{name}": each for name, each in weights.items()}, folder / "model.safetensors")
    np.testing.assert_array_equal(light(folder)(TEXTS), expected)
    model = LightModel(folder)
    for changed, reason in (
        ({name: each.astype(np.float16) for name, each in weights.items()}, "in float16"),
        ({name: each for name, each in weights.items() if "query" not in name}, "query"),
        ({**weights, "embeddings.LayerNorm.weight": weights["embeddings.LayerNorm.weight"][:3]}, "the shape"),
    ):
        save_file(changed, folder / "model.safetensors")
        model = LightModel(folder)
        with pytest.raises(errors.CallError, match=reason):
            LightPipeline.compile(model, "float32", 1, None)
    whole = (bert / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-4])
    assert why_not(folder) == "its files cannot be read"


# -- the function ------------------------------------------------------------------------------------------------------


def test_a_stored_entry_runs_on_either_back_end(minilm_path: Path) -> None:
    """The stored form, the fingerprint and the identity are the same, and the other back end's probe agrees."""
    create = embedreg.get("sentence-transformers").create
    torch, light = (create(name="all-MiniLM-L6-v2", device="cpu", backend=name) for name in ("torch", "light"))
    assert codec.persisted_model(light) == codec.persisted_model(torch)
    table = embedreg.embed_table({"text": ["wait for a thread", "the sine of x"]}, torch.bind("text", "vector"))
    (entry,) = embedreg.inspect(embedreg.embed_table({"text": TEXTS[:2]}, light.bind("text", "vector")), backends=True)
    (other,) = embedreg.inspect(table)
    assert {**entry, "backend": None} == {**other, "backend": None}
    assert entry["backend"] == "light"
    embedreg.get_registry().reset()  # as a process that made nothing
    (drift,) = embedreg.check_drift(table)
    assert drift.verdict == "same"
    assert embedreg.functions_in(table)["vector"].function.chosen_backend().name == "light"


def test_auto_says_what_it_passed_over(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Torch for a model that light cannot run, a device other than a CPU, or without OpenVINO; each with its reason."""
    create = embedreg.get("sentence-transformers").create
    with caplog.at_level("INFO", "embedreg"):
        assert str(create(name=str(bert), device="cpu").chosen_backend()) == "light"
    assert [record.message for record in caplog.records] == [f"{bert} runs on the back end light"]
    other = edited(bert, tmp_path / "model", "config.json", is_decoder=True)
    found = create(name=str(other), device="cpu").chosen_backend()
    assert str(found) == "torch; not light: is_decoder of its config.json is True"
    assert "not on 'cuda'" in str(create(name=str(bert), device="cuda").chosen_backend())
    assert create(name=str(bert), device="cpu", precision="bfloat16").chosen_backend().name == "torch"
    monkeypatch.setattr(choice, "importable", lambda module: module != "openvino")
    assert str(create(name=str(bert), device="cpu").chosen_backend()) == "torch; not light: openvino is not installed"
    monkeypatch.setattr(choice, "importable", lambda module: module not in ("openvino", "torch"))
    with pytest.raises(errors.MissingExtraError, match="no back end"):
        create(name=str(bert), device="cpu").chosen_backend()
    monkeypatch.setattr(choice, "importable", lambda module: module != "torch")
    with pytest.raises(errors.CallError, match="is_decoder") as caught:
        create(name=str(other), device="cpu").chosen_backend()
    assert caught.value.hint == "pip install 'embedreg[sentence-transformers]'"


def test_the_function_embeds_with_prompts_limits_and_threads(tmp_path: Path) -> None:
    """Through the function: roles, truncation as a bad row, a width, several threads, and release."""
    made = light_models.model(
        "mpnet", tmp_path / "model", prompts={"query": "ask: ", "document": "tell: "}, limit=20, num_hidden_layers=1
    )
    create = embedreg.get("sentence-transformers").create
    fn = create(name=str(tmp_path / "model"), device="cpu", backend="light", truncate="silent", truncate_dim=8)
    texts = TEXTS[:-1] * 40
    options = {"normalize_embeddings": True, "truncate_dim": 8}
    np.testing.assert_allclose(fn.generate_embeddings(texts), made.encode_document(texts, **options), atol=CLOSE)
    query = fn.compute_query_embeddings("the sine of x")
    np.testing.assert_allclose(query, made.encode_query(["the sine of x"], **options), atol=CLOSE)
    assert fn.max_tokens() == 20
    assert embedreg.release(fn) == 3  # the model, compiled for columns and for queries
    strict = create(name=str(tmp_path / "model"), device="cpu", backend="light", truncate="error")
    rows = strict.compute_embeddings(TEXTS[:3])
    assert [isinstance(row, errors.RowError) for row in rows] == [True, False, True]


def test_no_torch_is_imported(run_python: Callable[..., str]) -> None:
    """A declaration, a column, a query, a table and its way back, with torch and its libraries blocked."""
    code = """
import sys
for name in ("torch", "transformers", "sentence_transformers", "safetensors"):
    sys.modules[name] = None
import embedreg
fn = embedreg.get("sentence-transformers").create(name="all-MiniLM-L6-v2", precision=sys.argv[1])
table = embedreg.embed_table({"text": ["wait for a thread", "the sine of x"]}, fn.bind("text", "vector"))
print(embedreg.functions_in(table)["vector"].function == fn, len(embedreg.embed_query(fn, "block")))
print(fn.chosen_backend(), embedreg.get_registry().describe("sentence-transformers")["missing"])
"""
    assert run_python(code, "float32").splitlines() == ["True 384", "light []"]
