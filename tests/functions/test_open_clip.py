"""The `open-clip` function against open_clip itself: a tiny CLIP trained here, and RN50 with random weights."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import embedreg
from embedreg import errors
from embedreg.declaration import codec
from embedreg.functions.open_clip import OpenClipEmbeddings
from embedreg.runtime import cache, progress
from embedreg.runtime.image.execute import embed_picture, embed_pictures
from embedreg.runtime.vectors import queries
from tests.tiny_clip import CAPTIONS, jpeg, pictures, png

BATCH_SIZES = (1, 7, 64)


@pytest.fixture(autouse=True)
def no_model_left() -> Iterator[None]:
    """Leave no loaded model behind."""
    yield
    embedreg.release()
    queries.recent.clear()


def create(folder: Path, **config: Any) -> OpenClipEmbeddings:
    """Create the function on the CPU."""
    return OpenClipEmbeddings.create(name=f"local-dir:{folder}", **{"device": "cpu", **config})


def stored(model: dict[str, Any], *granted: Path) -> OpenClipEmbeddings:
    """Rebuild the function from a stored declaration that is not vouched for, but for folders granted."""
    embedreg.get_registry().reset()
    embedreg.trust(paths=granted)
    entry = {"name": "open-clip", "model": model, "source_column": "image", "vector_column": "vector"}
    function = embedreg.get_registry().parse_functions({codec.KEY: json.dumps([entry])})["vector"].function
    assert isinstance(function, OpenClipEmbeddings)
    assert function.from_metadata
    return function


class ByHand:
    """open_clip called as its own documentation does, in eval mode, one picture or text at a time."""

    def __init__(self, name: str, pretrained: str | None = None) -> None:
        import open_clip

        self.model, _, self.preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(name)

    def images(self, pictures: list[Image.Image], normalize: bool = True) -> np.ndarray:
        """Embed pictures: (n, d)."""
        import torch

        with torch.no_grad():
            made = [self.model.encode_image(self.preprocess(each)[None], normalize=normalize) for each in pictures]
            return torch.cat(made).numpy()

    def texts(self, texts: list[str]) -> np.ndarray:
        """Embed texts: (n, d), of unit length."""
        import torch

        with torch.no_grad():
            return torch.cat([self.model.encode_text(self.tokenizer([text]), normalize=True) for text in texts]).numpy()


def stored_name(function: OpenClipEmbeddings) -> str:
    """Return the name that a declaration is stored under."""
    (entry,) = codec.entries({codec.KEY: codec.encode([function.bind("image", "vector")])})
    return entry.name


def cosines(a: Any, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows, in float64."""
    a, b = np.asarray(a, np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def opened(data: bytes) -> Image.Image:
    """Open an image by hand."""
    return Image.open(io.BytesIO(data)).convert("RGB")


# -- the same vectors --------------------------------------------------------------------------------------------------


def test_images_have_open_clips_own_vectors(tiny_clip: Path) -> None:
    """For batches of 1, 7 and 64, in any order, from every kind of column, of unit length and not."""
    drawn = [picture for side in (32, 100) for picture in pictures(1, seed=5, side=side)[1]]
    expected = ByHand(f"local-dir:{tiny_clip}").images(drawn)
    encoded = [png(picture) for picture in drawn]
    order = np.random.default_rng(0).permutation(len(drawn))
    for batch_size in BATCH_SIZES:
        function = create(tiny_clip, batch_size=batch_size)
        made = function.compute_source_embeddings_with_retry(pa.array(encoded))
        assert (made.shape, made.dtype) == ((60, 48), np.float32)
        assert cosines(made, expected).min() > 0.99999
        np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
        shuffled = function.compute_source_embeddings([encoded[row] for row in order])
        np.testing.assert_allclose(shuffled, made[order], atol=2e-6)
    for kind in (
        drawn,
        encoded,
        [np.asarray(picture) for picture in drawn],
        pa.chunked_array([encoded[:9], encoded[9:]]),
    ):
        assert cosines(function.compute_source_embeddings(kind), expected).min() > 0.99999
    assert cosines(embedreg.embed_column(function, encoded).matrix, expected).min() > 0.99999
    raw = create(tiny_clip, normalize=False).compute_source_embeddings(encoded)
    np.testing.assert_allclose(raw, ByHand(f"local-dir:{tiny_clip}").images(drawn, normalize=False), atol=1e-4)


def test_queries_have_open_clips_own_vectors(tiny_clip: Path) -> None:
    """A str is a text; a PIL image, bytes, a Path or an array is an image; each is one row of the same space."""
    function, by_hand = create(tiny_clip), ByHand(f"local-dir:{tiny_clip}")
    texts = np.concatenate([function.compute_query_embeddings_with_retry(text) for text in CAPTIONS])
    assert cosines(texts, by_hand.texts(CAPTIONS)).min() > 0.99999
    picture = pictures(1, seed=5)[1][3]
    (expected,) = by_hand.images([picture])
    file = tiny_clip / "query.png"
    file.write_bytes(png(picture))
    for query in (picture, png(picture), np.asarray(picture), file):
        assert cosines(function.compute_query_embeddings(query), expected[None]).min() > 0.99999
        assert embedreg.embed_query(function, query) @ expected > 0.99999
    assert function.generate_text_embeddings(CAPTIONS[0]) @ texts[0] > 0.99999  # LanceDB's own methods
    assert function.generate_image_embedding(picture) @ expected > 0.99999
    with pytest.raises(errors.BadRowsError, match="the query has no vector"):
        embedreg.embed_query(function, b"no image")


def test_queries_of_texts_and_images_are_one_batch(tiny_clip: Path) -> None:
    """Mixed and in any order; a path that the user gives needs no permission; a bad one fails alone."""
    drawn = pictures(1, seed=5)[1][:4]
    file = tiny_clip / "query.png"
    file.write_bytes(png(drawn[2]))
    mixed = [CAPTIONS[0], drawn[0], CAPTIONS[1], png(drawn[1]), file, np.asarray(drawn[3]), CAPTIONS[0]]
    function = create(tiny_clip)
    alone = np.stack([embedreg.embed_query(function, query) for query in mixed])
    for order in (range(7), [6, 3, 0, 5, 2, 4, 1]):
        queries.recent.clear()
        given, wanted = [mixed[row] for row in order], alone[list(order)]
        made = embedreg.embed_column(function, given, "query")
        np.testing.assert_allclose(made.matrix, wanted, atol=2e-6)
        np.testing.assert_allclose(np.stack(list(function.compute_embeddings(given, "query"))), wanted, atol=2e-6)
    made = embedreg.embed_column(function, [CAPTIONS[0], b"no image", drawn[0], None], "query")
    assert made.valid.tolist() == [True, False, True, False]
    assert list(made.reasons) == [1]
    texts = function.compute_embeddings(CAPTIONS, "query")
    assert (texts.shape, texts.dtype) == ((len(CAPTIONS), 48), np.float32)
    assert function.compute_embeddings([], "query").shape == (0, 48)


def test_a_thousand_text_queries_are_run_in_batches(tiny_clip: Path) -> None:
    """By the batch size, not one by one; a second time they come from memory."""
    function = create(tiny_clip)
    calls: list[int] = []
    handle = function._loaded().model.ln_final.register_forward_hook(lambda *_: calls.append(1))
    texts = [f"a red circle {number}" for number in range(1000)]
    made = embedreg.embed_column(function, texts, "query").matrix
    assert len(calls) <= 1 + 1000 // 16 + 1
    calls.clear()
    np.testing.assert_array_equal(function.compute_embeddings(texts, "query"), made)
    assert calls == []
    handle.remove()


def test_overrides_of_a_subclass_are_honoured_in_batches(tiny_clip: Path) -> None:
    """Its query method for each query, its source method for each batch."""

    class Upper(OpenClipEmbeddings):
        def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_query_embeddings("a red circle" if isinstance(query, str) else query)

        def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_source_embeddings(self.sanitize_input(images)[::-1])

    function, plain = (
        cls.create(name=f"local-dir:{tiny_clip}", pretrained="", device="cpu") for cls in (Upper, OpenClipEmbeddings)
    )
    wanted = plain.compute_query_embeddings("a red circle")[0]
    for made in (
        function.compute_embeddings(["x", "y"], "query"),
        embedreg.embed_column(function, ["x", "y"], "query").matrix,
    ):
        np.testing.assert_allclose(np.stack(list(made)), [wanted, wanted], atol=2e-6)
    encoded = [png(picture) for picture in pictures(1, seed=5)[1][:3]]
    np.testing.assert_allclose(
        function.compute_embeddings(encoded), plain.compute_source_embeddings(encoded)[::-1], atol=2e-6
    )


@pytest.mark.slow
def test_a_model_with_batch_normalisation_gives_the_same_in_any_company(tmp_path: Path) -> None:
    """RN50, by the library's name and a checkpoint: always in eval mode, so a row's vector is its own."""
    import open_clip
    import torch

    torch.manual_seed(3)
    model = open_clip.create_model("RN50", load_weights=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics of their own: in training mode others would be used
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    weights = tmp_path / "rn50.pt"
    torch.save(model.state_dict(), weights)
    del model
    drawn = pictures(1, seed=5, side=240)[1][:9]
    by_hand = ByHand("RN50", str(weights))
    expected = by_hand.images(drawn)
    middle = expected.mean(axis=0)  # with random weights all point much the same way: what differs is compared
    by_hand.model.train()
    assert cosines(by_hand.images(drawn) - middle, expected - middle).min() < 0.5
    for batch_size in BATCH_SIZES:
        function = OpenClipEmbeddings.create(name="RN50", pretrained=str(weights), device="cpu", batch_size=batch_size)
        assert function.ndims() == 1024
        assert cosines(function.compute_source_embeddings(drawn) - middle, expected - middle).min() > 0.9999
        assert cosines(function.compute_source_embeddings(drawn[::-1])[::-1] - middle, expected - middle).min() > 0.9999
        assert cosines(function.compute_query_embeddings(drawn[0]) - middle, expected[:1] - middle).min() > 0.9999


def test_a_draft_is_close_and_only_where_it_is_asked_for(tiny_clip: Path) -> None:
    """JPEGs are decoded whole; under draft=True large ones at a fraction, stored under another name."""
    by_hand = ByHand(f"local-dir:{tiny_clip}")
    encoded = [jpeg(picture) for picture in pictures(1, seed=6, side=700)[1][:12]]
    expected = by_hand.images([opened(data) for data in encoded])
    np.testing.assert_allclose(create(tiny_clip).compute_source_embeddings(encoded), expected, atol=1e-5)
    draft = create(tiny_clip, draft=True)
    assert 0.997 < cosines(draft.compute_source_embeddings(encoded), expected).min() < 0.999999
    assert stored_name(draft) == "embedreg:open-clip"
    small = [jpeg(picture) for picture in pictures(1, seed=6, side=60)[1]]
    exact = by_hand.images([opened(data) for data in small])
    np.testing.assert_allclose(draft.compute_source_embeddings(small), exact, atol=1e-5)


def test_texts_are_a_source_where_that_is_said(tiny_clip: Path) -> None:
    """Under source_type="text" strings go through the text tower; else they name images, whatever they look like."""
    texts = [*CAPTIONS, "a red circle, and much more of it than the sixteen tokens that this model reads at a time"]
    expected = ByHand(f"local-dir:{tiny_clip}").texts(texts)
    function = create(tiny_clip, source_type="text")
    steps: list[progress.Step] = []
    with progress.watch(steps.append):
        made = function.compute_source_embeddings(pa.array(texts))
    assert sum(step.rows for step in steps) == len(texts)
    assert cosines(made, expected).min() > 0.99999
    assert cosines(
        create(tiny_clip, source_type="text", batch_size=1).compute_source_embeddings(texts), expected
    ).min() > (0.99999)
    with pytest.raises(errors.InputError, match="row 1 is bytes, not text"):
        function.compute_source_embeddings(["a", b"b"])
    image = create(tiny_clip).compute_source_embeddings(["a red circle"])
    assert isinstance(image[0], errors.RowError)
    assert [type(function) for function in (create(tiny_clip), create(tiny_clip, source_type="text"))] == [
        OpenClipEmbeddings
    ] * 2
    assert stored_name(create(tiny_clip)) == "open-clip"
    assert stored_name(function) == "embedreg:open-clip"


def test_a_bad_image_fails_alone(tiny_clip: Path, tmp_path: Path) -> None:
    """Its row has no vector and a reason; nulls have neither; a path is read where that is allowed."""
    picture = pictures(1, seed=5)[1][0]
    file = tmp_path / "picture.png"
    file.write_bytes(png(picture))
    function = create(tiny_clip)
    embedded = embedreg.embed_column(function, [png(picture), None, b"bad", png(picture)[:40], png(picture)])
    assert embedded.valid.tolist() == [True, False, False, False, True]
    assert set(embedded.reasons) == {2, 3}
    refused = embedreg.embed_column(function, [str(file)])
    assert "allow_images(dirs=" in refused.reasons[0]
    with embedreg.allow_images(dirs=[tmp_path]):
        read = embedreg.embed_column(function, [str(file), file.as_uri(), str(tmp_path / "missing.png")])
    assert read.valid.tolist() == [True, True, False]
    np.testing.assert_allclose(read.matrix[:2], [embedded.matrix[0]] * 2, atol=2e-6)


def quick(precision: str) -> bool:
    """Say whether this processor multiplies in a precision."""
    import torch

    probes = {
        "bfloat16": ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        "float16": ("_is_amx_fp16_supported",),
    }
    return any(getattr(torch.cpu, probe, bool)() for probe in probes[precision])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_fewer_bits_come_close(tiny_clip: Path, precision: str) -> None:
    """Where the hardware is faster with it; elsewhere it is refused with what to take, but not for stored vectors."""
    drawn = pictures(1, seed=5)[1]
    expected = ByHand(f"local-dir:{tiny_clip}").images(drawn)
    function = create(tiny_clip, precision=precision)
    if quick(precision):
        made = function.compute_source_embeddings(drawn)
        assert made.dtype == np.float32
        assert 0.99 < cosines(made, expected).min() < 1
    else:
        with pytest.raises(errors.ConfigError, match=rf"no arithmetic in {precision}[^\0]*Hint: precision="):
            function.compute_source_embeddings(drawn)
    theirs = stored({"name": f"local-dir:{tiny_clip}", "precision": precision}, tiny_clip)
    assert cosines(theirs.compute_source_embeddings(drawn[:2]), expected[:2]).min() > 0.99


# -- the model ---------------------------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Count how often open_clip builds a model."""
    import open_clip

    loads: list[Any] = []
    build = open_clip.create_model

    def create_model(*args: Any, **kwargs: Any) -> Any:
        loads.append(args)
        return build(*args, **kwargs)

    monkeypatch.setattr(open_clip, "create_model", create_model)
    return loads


def test_a_model_is_loaded_once(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By equal configurations, copies and pickles, for images and texts, in many threads at once; until released."""
    loads = counted(monkeypatch)
    picture = png(pictures(1, seed=5)[1][0])
    first = create(tiny_clip)
    functions = [first, create(tiny_clip, batch_size=3), copy.copy(first), pickle.loads(pickle.dumps(first))]
    functions += [create(tiny_clip, normalize=False), create(tiny_clip, source_type="text")]
    assert [function.ndims() for function in functions] == [48] * 6
    assert loads == []
    threads = [
        threading.Thread(target=call, args=(argument,))
        for function in functions
        for call, argument in (
            (function.compute_query_embeddings, "a red circle"),
            (function.compute_query_embeddings, picture),
            (function.compute_source_embeddings, ["a"] if function.source_type == "text" else [picture] * 20),
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(cache.models.keys()) == 1
    assert embedreg.release(first) == 1
    assert cache.models.keys() == []
    first.compute_query_embeddings(picture)
    assert len(loads) == 2


def test_a_query_comes_from_memory_the_second_time(tiny_clip: Path) -> None:
    """An equal configuration's equal text is not computed again."""
    function = create(tiny_clip)
    first = function.compute_query_embeddings("a red circle")
    calls: list[Any] = []
    handle = function._loaded().model.ln_final.register_forward_hook(lambda *_: calls.append(1))
    np.testing.assert_array_equal(create(tiny_clip, batch_size=3).compute_query_embeddings("a red circle"), first)
    assert calls == []
    assert np.linalg.norm(create(tiny_clip, normalize=False).compute_query_embeddings("a red circle")) > 1.01
    function.compute_query_embeddings("a blue ring")
    assert len(calls) == 2
    handle.remove()


def test_loading_leaves_the_process_as_it_was(tiny_clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No handler for the root logger, which open_clip would give it, no remark of its own, no thread setting."""
    import torch

    root = logging.getLogger()
    before = list(root.handlers), list(root.filters), root.level, torch.get_num_threads(), torch.is_grad_enabled()
    function = create(tiny_clip)
    function.compute_source_embeddings(pictures(1, seed=5)[1])
    assert before == (
        list(root.handlers),
        list(root.filters),
        root.level,
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    assert caplog.records == []
    assert not function._loaded().model.training


def test_ndims_needs_no_library(tiny_clip: Path, run_python: Callable[..., str]) -> None:
    """The width of any model of the library, and of a folder, is known without torch or open_clip."""
    code = """
import json, sys
import embedreg
make = embedreg.get("open-clip").create
print([make(name=name).ndims() for name in ("ViT-B-32", "ViT-B/32", "RN50", "ViT-H-14", sys.argv[1])])
print([name for name in ("torch", "open_clip", "PIL", "transformers") if name in sys.modules])
"""
    widths, loaded = run_python(code, f"local-dir:{tiny_clip}", flags=("-W", "error")).splitlines()
    assert (widths, loaded) == ("[512, 512, 1024, 1024, 48]", "[]")


def test_identity_is_what_the_files_hold(tiny_clip: Path, tmp_path: Path) -> None:
    """Moving a folder changes neither it nor the fingerprint; other weights or another preprocessing change it."""
    from embedreg.declaration.fingerprint import fingerprint

    moved = Path(shutil.copytree(tiny_clip, tmp_path / "moved"))
    first, second = create(tiny_clip), create(moved)
    assert first.model_identity() == second.model_identity()
    assert fingerprint(first) == fingerprint(second)
    config = json.loads((moved / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0, 0, 0]
    (moved / "open_clip_config.json").write_text(json.dumps(config))
    assert create(moved).model_identity() not in (None, first.model_identity())
    weights = [tmp_path / "one.pt", tmp_path / "two.pt"]
    for file in weights:
        file.write_bytes(b"the same")
    one, two = (OpenClipEmbeddings.create(pretrained=str(file)) for file in weights)
    assert one.model_identity() == two.model_identity() != first.model_identity()
    assert fingerprint(one) == fingerprint(two)
    assert OpenClipEmbeddings.create().model_identity() is None  # not on this machine


def test_anybodys_image_function_takes_the_pipeline() -> None:
    """What `docs/open-clip.md` shows: a model of two methods gets threads, batches, bad rows and progress for free."""

    class Greys:
        device, side = "cpu", None

        def prepare(self, picture: Image.Image) -> np.ndarray:
            return np.asarray(picture.convert("L").resize((4, 4)))

        def forward(self, batch: np.ndarray) -> np.ndarray:
            return batch.reshape(len(batch), -1) / np.float32(255)

    @embedreg.register("greys")
    class GreyEmbeddings(embedreg.EmbeddingFunction):
        traits = embedreg.Traits(modality="image")

        def ndims(self) -> int:
            return 16

        def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
            return embed_pictures(Greys(), self.sanitize_input(images), self.ndims())

        def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return embed_picture(Greys(), query)

    function = GreyEmbeddings.create()
    drawn = pictures(1, seed=5)[1]
    embedded = embedreg.embed_column(function, [*(png(picture) for picture in drawn), b"bad", None])
    assert embedded.valid.tolist() == [True] * 30 + [False] * 2
    assert list(embedded.reasons) == [30]
    np.testing.assert_allclose(embedreg.embed_query(function, drawn[3]), embedded.matrix[3])


def test_progress_moves_within_a_window(tiny_clip: Path) -> None:
    """A column shows its progress batch by batch, and ends at all rows."""
    told: list[int] = []
    rows = [*(png(picture) for picture in pictures(2, seed=5)[1]), None, b"bad"]
    embedreg.embed_column(create(tiny_clip), rows, on_window=told.append)
    assert sum(told) == len(rows)
    assert len(told) > 5


def test_it_can_be_declared_by_its_fields(tiny_clip: Path) -> None:
    """LanceDB's fields and defaults; a declaration states what stock LanceDB's own class would read."""
    function = OpenClipEmbeddings.create()
    assert (function.name, function.pretrained, function.batch_size, function.normalize) == (
        "ViT-B-32",
        "laion2b_s34b_b79k",
        64,
        True,
    )
    (entry,) = codec.entries({codec.KEY: codec.encode([create(tiny_clip).bind("image", "vector")])})
    assert entry.name == "open-clip"
    assert {key: entry.model[key] for key in ("name", "pretrained", "normalize")} == {
        "name": f"local-dir:{tiny_clip}",
        "pretrained": "laion2b_s34b_b79k",
        "normalize": True,
    }
    assert "device" not in entry.model
    for wrong in ({"source_type": "images"}, {"batch_size": 0}, {"precision": "int8"}, {"device": 3}):
        with pytest.raises(errors.ConfigError):
            OpenClipEmbeddings.create(**wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_gives_the_same_vectors(tiny_clip: Path, precision: str) -> None:
    """On a CUDA device, queued batches and single queries give the vectors of the CPU."""
    encoded = [png(picture) for picture in pictures(9, seed=5)[1]]
    expected = create(tiny_clip).compute_source_embeddings(encoded)
    for batch_size in BATCH_SIZES:
        function = create(tiny_clip, device="cuda", precision=precision, batch_size=batch_size)
        made = function.compute_source_embeddings(encoded)
        assert cosines(made, expected).min() > (0.9999 if precision == "float32" else 0.99)
    assert cosines(function.compute_query_embeddings(encoded[0]), expected[:1]).min() > 0.99
    assert (
        cosines(
            function.compute_query_embeddings("a red ring"), create(tiny_clip).compute_query_embeddings("a red ring")
        ).min()
        > 0.99
    )
