"""`open-clip` on the light back end, without torch and the library, against both: CLIPs with random weights."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import embedreg
from embedreg.errors import CallError
from embedreg.runtime.image import light, light_config
from embedreg.runtime.image.clip_files import ClipFiles
from embedreg.runtime.vectors import queries
from tests.tiny_clip import CONFIG, PREPROCESS, png, save, save_tokenizer

CLOSE = 1e-5
TEXTS = [
    "a red circle",
    "x",
    "",
    "A Blue  Square " * 9,
    "it's 10 o'clock! éàü ß İ 日本語 &amp; “quotes” <start_of_text> x <end_of_text> y",
    "(<end_of_text>) don'\u017f \u212a",
    "\x1b[31m don't I'LL we've 3.14159 ___ @@@\n\ttab",
]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Leave no loaded model and no recent query behind."""
    queries.recent.clear()
    yield
    embedreg.release()
    queries.recent.clear()


def made(folder: Path, **changes: Any) -> Path:
    """Save a CLIP with random weights as models of the hub are; `changes` are of its configuration."""
    import open_clip
    import torch

    config = {**CONFIG, **{name: value for name, value in changes.items() if name != "preprocess_cfg"}}
    pixels = {**PREPROCESS, **changes.get("preprocess_cfg", {})}
    torch.manual_seed(5)
    save(open_clip.model.CLIP(**config), folder)
    content = {"model_cfg": config, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with the tokenizer of its folder."""
    return made(tmp_path_factory.mktemp("clip") / "plain")


def create(folder: Path, **config: Any) -> Any:
    """Create the function on the CPU."""
    fixed = {"device": "cpu", "truncate": "silent"}
    return embedreg.get("open-clip").create(name=f"local-dir:{folder}", **{**fixed, **config})


def pictures() -> list[bytes]:
    """Return files of pictures of several shapes, the model's own among them."""
    chance = np.random.default_rng(1)
    shapes = [(32, 32), (31, 31), (40, 60), (61, 33), (333, 251), (32, 100), (100, 32), (1, 150)]
    return [png(Image.fromarray(chance.integers(0, 256, (*shape, 3), dtype=np.uint8))) for shape in shapes]


def everything(fn: Any) -> list[np.ndarray]:
    """Return the vectors of a column, of queries in a batch, and of one text and one image as queries."""
    files = pictures()
    return [
        embedreg.embed_column(fn, files).matrix,
        np.asarray(fn.compute_embeddings(TEXTS, "query")),
        np.asarray(fn.compute_query_embeddings("a blue ring")),
        np.asarray(fn.compute_query_embeddings(Image.open(io.BytesIO(files[3])))),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quick_gelu": True, "preprocess_cfg": {"interpolation": "bilinear", "mean": 0.4}},
        {"vision_cfg": {**CONFIG["vision_cfg"], "mlp_ratio": 2.5, "head_width": 16}},
    ],
    ids=["plain", "quick_gelu", "ratio"],
)
def test_both_towers_agree_with_the_library(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Texts and images, in batches and alone; other activations, filters and sizes."""
    folder = made(tmp_path / "clip", **changes)
    for ours, theirs in zip(
        everything(create(folder, backend="light")), everything(create(folder, backend="torch")), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=CLOSE)


def test_texts_have_the_librarys_tokens(clip: Path) -> None:
    """Any text, such as ones with entities, control characters and marks of the library's own."""
    from open_clip.tokenizer import SimpleTokenizer

    own, ours = SimpleTokenizer(), light._tokenizer(clip, CONFIG["text_cfg"]["vocab_size"])

    @settings(max_examples=150, deadline=None)
    @given(
        st.text()
        | st.lists(st.sampled_from(["a", "don't", "&lt;", "<end_of_text>", "I'M", "\u2019", "  "])).map("".join)
    )
    def check(text: str) -> None:
        assert ours(text) == [own.sot_token_id, *own.encode(text), own.eot_token_id]

    check()
    for text in TEXTS:
        assert ours(text) == [own.sot_token_id, *own.encode(text), own.eot_token_id]


def test_truncated_texts_are_known(clip: Path) -> None:
    """The rows that exceed the model's context are the library's, and an error under that policy."""
    rows = ["a red circle", "a blue square " * 9]
    for backend in ("light", "torch"):
        results = list(create(clip, backend=backend, truncate="error").compute_embeddings(rows, "query"))
        assert [isinstance(each, Exception) for each in results] == [False, True]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["vision_cfg"].update(timm_model_name="vit"), "timm_model_name"),
        (lambda c: c["vision_cfg"].update(attentional_pool=True), "attentional_pool"),
        (lambda c: c["vision_cfg"].update(qk_norm=True), "qk_norm"),
        (lambda c: c["vision_cfg"].update(image_size=33), "not a multiple of its patch_size"),
        (lambda c: c["text_cfg"].update(hf_tokenizer_name="a/b"), "hf_tokenizer_name"),
        (lambda c: c["text_cfg"].update(pool_type="last"), "pool_type"),
        (lambda c: c["text_cfg"].update(tokenizer_kwargs={"clean": "canonicalize"}), "tokenizer_kwargs"),
        (lambda c: c.update(multimodal_cfg={"layers": 1}), "multimodal_cfg"),
        (lambda c: c.update(embed_dim="48"), "embed_dim"),
    ],
)
def test_a_model_that_would_differ_is_passed_over_by_name(
    clip: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    """A setting that is not known to give the library's vectors is the reason to leave the model to torch."""
    content = json.loads((clip / "open_clip_config.json").read_text())
    change(content["model_cfg"])
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    for name in ("tokenizer.json", "open_clip_model.safetensors"):
        (tmp_path / name).symlink_to(clip / name)
    files = ClipFiles(tmp_path / "open_clip_model.safetensors", tmp_path, "local")
    assert reason in (light_config.why_not(files) or "")
    with pytest.raises(CallError, match="the light back end cannot run the model"):
        light.load("mine", files)


def test_another_vocabulary_is_refused(clip: Path, tmp_path: Path) -> None:
    """Tokens of another tokenizer would be other vectors."""
    content = json.loads((clip / "tokenizer.json").read_text())
    content["model"]["merges"][100:102] = reversed(content["model"]["merges"][100:102])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / name).symlink_to(clip / name)
    with pytest.raises(CallError, match="not of CLIP's vocabulary"):
        light.load("mine", ClipFiles(tmp_path / "open_clip_model.safetensors", tmp_path, "local"))


def test_auto_says_what_it_passed_over(clip: Path, tmp_path: Path) -> None:
    """Light where it can run the model; torch, and why, where it cannot."""
    assert str(create(clip).chosen_backend()) == "light"
    stored = [
        embedreg.get_registry().get_table_metadata([fn.bind("image", "vector")])
        for fn in (create(clip), create(clip, backend="torch"))
    ]
    assert stored[0] == stored[1]
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (bare / name).symlink_to(clip / name)
    assert str(create(bare).chosen_backend()) == "torch; not light: it has no tokenizer.json"
    assert create(clip, precision="bfloat16").chosen_backend().name == "torch"


def test_no_torch_is_imported(clip: Path, run_python: Callable[..., str]) -> None:
    """A process without torch and open_clip embeds texts and images, and searches by a text."""
    code = """
import sys
for name in ("torch", "open_clip", "torchvision", "transformers"):
    sys.modules[name] = None
from PIL import Image
import embedreg
fn = embedreg.get("open-clip").create(name="local-dir:" + sys.argv[1])
made = embedreg.embed_column(fn, [Image.new("RGB", (40, 50), colour) for colour in ("red", "blue")])
query = embedreg.embed_query(fn, "a red circle")
print(made.matrix.shape, made.valid.all(), query.shape, fn.chosen_backend())
"""
    assert run_python(code, clip).strip() == "(2, 48) True (48,) light"
