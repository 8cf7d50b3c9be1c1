"""The light back end for CLIP: both towers as OpenVINO graphs, built from open_clip's files, without torch.

Shapes: b images or texts, t tokens, d the width of the vectors. Source: Radford et al. 2021; the weights' names and the
preprocessing are open_clip's.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from embedreg.errors import CallError, RowError
from embedreg.runtime.hardware import workers
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image.clip_files import ClipFiles
from embedreg.runtime.image.light_config import TOKENIZER, Plan, Tower, read
from embedreg.runtime.image.preprocess import MAX_RATIO
from embedreg.runtime.models import folders
from embedreg.runtime.text import compilation
from embedreg.runtime.text.compilation import Requests
from embedreg.runtime.text.execute import Made
from embedreg.runtime.text.light import heads
from embedreg.runtime.text.light.graph import MASKED, Graph, Node
from embedreg.runtime.text.light.settings import Unsupported
from embedreg.runtime.text.light.tensors import Tensors
from embedreg.support.forks import ForkSafeLock
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LightClip", "load"]

EXTRA = "open-clip-light"
_EPSILON = 1e-5  # torch's, of LayerNorm
_TEXTS = 64  # texts of a forward pass
_START, _END = "<start_of_text>", "<end_of_text>"  # in a text, the library reads them as these tokens
# Of the vocabulary and its merges, which open_clip has in a file of its own and models in their `tokenizer.json`.
_VOCABULARY = "f9430f74fcb49461ec5d605ed227403a820314970ce78f6196c9f86f9ae5d9ff"
_SPLIT = rf"(?i){_START}|{_END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"


def load(name: str, files: ClipFiles) -> LightClip:
    """Load a model.

    Raises:
        CallError: it cannot be run without torch. ConfigError: invalid files.
    """
    try:
        return LightClip(files)
    except Unsupported as exc:
        raise CallError(
            f"the light back end cannot run the model {name!r}: {exc.message}.",
            "backend='torch' (pip install 'embedreg[open-clip]')",
        ) from exc


class LightClip:
    """A CLIP in memory: its tokenizer, its mapped weights, and its preprocessing.

    Attributes:
        side: width and height of its input images, in pixels.
    """

    def __init__(self, files: ClipFiles) -> None:
        self.plan = read(files)
        assert files.folder is not None
        self.side = self.plan.side
        self.preprocess = self
        self.encode = _tokenizer(files.folder, self.plan.words)
        self.tensors = Tensors(files.weights)
        self.nbytes = os.path.getsize(files.weights)
        self.towers: _Towers | None = None

    def compiled(self, precision: Precision, streams: int) -> LightClip:
        """Return the model with its towers, which are compiled when they are first used.

        Args:
            precision: number type of the computation.
            streams: number of batches computed in parallel, on one core each; a single input runs on all cores.
        """
        made: LightClip = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.preprocess, made.towers = made, _Towers(self, precision, streams)
        return made

    # -- images --------------------------------------------------------------------------------------------------------

    def prepare(self, picture: Any) -> np.ndarray:
        """Resize and crop an RGB image: (h, w, 3) uint8.

        Raises:
            RowError: the image is too narrow to be resized.
        """
        import numpy as np
        from PIL.Image import Resampling

        width, height = picture.size
        if max(width, height) > MAX_RATIO * min(width, height):
            raise RowError(
                f"it is {width} x {height} pixels, too narrow to be resized",
                f"crop it: one side may be up to {MAX_RATIO} times the other",
            )
        side = self.side
        size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
        if size != (width, height):
            picture = picture.resize(size, Resampling.BILINEAR if self.plan.bilinear else Resampling.BICUBIC)
        left, top = (round((each - side) / 2.0) for each in size)
        return np.asarray(picture.crop((left, top, left + side, top + side)))

    def embed_images(self, batch: np.ndarray, normalize: bool) -> np.ndarray:
        """Run the image tower on b prepared images: (b, d) float32."""
        import numpy as np

        plan, count = self.plan, self.side // self.plan.patch
        mean, std = np.array(plan.mean, np.float32), np.array(plan.std, np.float32)
        pixels = (batch.astype(np.float32) / np.float32(255) - mean) / std
        squares = pixels.reshape(len(batch), count, plan.patch, count, plan.patch, 3).transpose(0, 1, 3, 5, 2, 4)
        made = self._run("visual", [np.ascontiguousarray(squares).reshape(len(batch), count * count, -1)])
        return heads.unit(made) if normalize else made

    # -- texts ---------------------------------------------------------------------------------------------------------

    def embed_texts(self, texts: list[str], normalize: bool) -> Made:
        """Embed texts in this thread: (b, d) float32, and the texts that were truncated."""
        import numpy as np

        limit = self.plan.context
        rows = [self.encode(text) for text in texts]
        truncated = np.array([len(row) > limit for row in rows], bool)
        rows = [[*row[: limit - 1], row[-1]] if len(row) > limit else row for row in rows]
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)  # what follows a text's end does not change it
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
        ends = np.zeros(ids.shape, np.float32)
        ends[np.arange(len(ids)), ids.argmax(axis=1)] = 1.0  # the end has the largest number
        made = self._run("textual", [ids, ends])
        return Made(heads.unit(made) if normalize else made, truncated)

    def embed_many_texts(
        self, texts: list[str], normalize: bool, *, batch_size: int, threads: int | None
    ) -> Iterator[tuple[int, Made]]:
        """Embed texts in batches, and yield the first row of each with its vectors, in any order."""
        size = min(batch_size, _TEXTS)
        starts = range(0, len(texts), size)

        def work(start: int) -> tuple[int, Made]:
            return start, self.embed_texts(texts[start : start + size], normalize)

        if len(starts) == 1:
            yield workers.alone(work, 0)
        else:
            yield from workers.run(work, starts, threads or workers.worker_threads())

    def max_tokens(self) -> int:
        """Return the maximum number of tokens that the model reads of a text, special tokens included."""
        return self.plan.context

    def _run(self, tower: str, inputs: list[np.ndarray]) -> np.ndarray:
        import numpy as np

        assert self.towers is not None
        return np.array(self.towers(tower, inputs), np.float32)


class _Towers:
    """The compiled towers: each is compiled when it is first used, once for batches and once for single inputs."""

    def __init__(self, model: LightClip, precision: Precision, streams: int) -> None:
        self._model, self._precision, self._streams = model, precision, streams
        self._requests: dict[tuple[str, bool], Requests] = {}
        self._graphs: dict[str, Any] = {}
        self._table: np.ndarray | None = None
        self._lock = ForkSafeLock()
        self.nbytes = 2 * model.nbytes

    def __call__(self, tower: str, inputs: list[Any]) -> Any:
        """Run a tower on a batch: (b, d)."""
        alone = len(inputs[0]) == 1
        with self._lock:
            requests = self._requests.get((tower, alone))
            if requests is None:
                requests = self._requests[tower, alone] = self._compiled(tower, alone)
        if tower == "textual":
            assert self._table is not None
            inputs = [self._table[inputs[0]], inputs[1]]
        return requests(inputs)

    def _compiled(self, tower: str, alone: bool) -> Requests:
        openvino = compilation.library(extra=EXTRA)
        op = compilation.library("openvino.opset13", extra=EXTRA)
        if tower not in self._graphs:
            graph = Graph(op, self._model.tensors)
            build = _visual if tower == "visual" else _textual
            made, inputs = build(graph, self._model.plan)
            self._graphs[tower] = openvino.Model([made], inputs, f"embedreg-{tower}")
            self._table = graph.table if tower == "textual" else self._table
        streams, threads = (1, workers.worker_threads()) if alone else (self._streams, self._streams)
        model = compilation.compiled(self._graphs[tower], self._precision, streams=streams, threads=threads)
        return Requests(model)


# -- graphs ------------------------------------------------------------------------------------------------------------


def _visual(graph: Graph, plan: Plan) -> tuple[Node, list[Node]]:
    """Build the image tower: from squares of pixels, (b, n, 3 * patch * patch), to (b, d)."""
    op, width, inside = graph.op, plan.visual.width, 3 * plan.patch * plan.patch
    squares = graph.input("squares", inside)
    kernel = graph.tensors.float32("visual.conv1.weight", (width, 3, plan.patch, plan.patch))
    x = op.matmul(squares, graph.floats(kernel.reshape(width, inside)), False, True)
    first = op.gather(op.shape_of(x), graph.ints(0), graph.scalar(0))
    start = op.unsqueeze(graph.weight("visual.class_embedding", width), graph.ints(0, 1))
    x = op.concat([op.broadcast(start, op.concat([first, graph.ints(1, width)], 0)), x], 1)
    places = (plan.side // plan.patch) ** 2 + 1
    x = op.add(x, graph.weight("visual.positional_embedding", places, width))
    x = graph.norm(x, "visual.ln_pre", width, _EPSILON)
    x = _blocks(graph, x, "visual.transformer", plan.visual, plan.activation, graph.floats([[[[0.0]]]]))
    x = graph.norm(op.gather(x, graph.scalar(0), graph.scalar(1)), "visual.ln_post", width, _EPSILON)
    return op.matmul(x, graph.weight("visual.proj", width, plan.ndims), False, False), [squares]


def _textual(graph: Graph, plan: Plan) -> tuple[Node, list[Node]]:
    """Build the text tower: from token vectors and the place of each text's end, (b, t), to (b, d)."""
    op, width = graph.op, plan.textual.width
    x = graph.token_vectors("token_embedding.weight", plan.words, width)
    length = op.gather(op.shape_of(x), graph.scalar(1), graph.scalar(0))
    places = op.range(graph.scalar(0), length, graph.scalar(1), "i64")
    x = op.add(x, graph.look_up("positional_embedding", plan.context, width, places))
    later = op.greater(op.unsqueeze(places, graph.ints(0)), op.unsqueeze(places, graph.ints(1)))
    bias = op.unsqueeze(op.multiply(op.convert(later, "f32"), graph.floats(MASKED)), graph.ints(0, 1))
    x = _blocks(graph, x, "transformer", plan.textual, plan.activation, bias)
    x = graph.norm(x, "ln_final", width, _EPSILON)
    x = op.reduce_sum(op.multiply(x, op.unsqueeze(graph.mask, graph.ints(2))), graph.ints(1), False)
    made = op.matmul(x, graph.weight("text_projection", width, plan.ndims), False, False)
    return made, [graph.tokens, graph.mask]


def _blocks(graph: Graph, x: Node, at: str, tower: Tower, activation: str, bias: Node) -> Node:
    op, width = graph.op, tower.width
    for number in range(tower.layers):
        block = f"{at}.resblocks.{number}"
        inputs = graph.norm(x, f"{block}.ln_1", width, _EPSILON)
        names = f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias"
        query, key, value = graph.cut(inputs, *names, width, tower.heads)
        made = graph.attend(query, key, value, bias, width)
        x = op.add(x, graph.linear(made, f"{block}.attn.out_proj", width, width))
        inputs = graph.norm(x, f"{block}.ln_2", width, _EPSILON)
        made = graph.feed_forward(inputs, f"{block}.mlp.c_fc", f"{block}.mlp.c_proj", width, tower.inner, activation)
        x = op.add(x, made)
    return x


# -- the tokenizer -----------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Return a text as the library cleans it: repaired Unicode, HTML entities read, single spaces, lower case."""
    if not text.isascii() or "&" in text or not text.isprintable():  # there is nothing else to repair
        ftfy = attempt_import_or_raise("ftfy", extra=EXTRA)
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _tokenizer(folder: Any, words: int) -> Any:
    """Return a function from a text to the numbers of its tokens, with those of its start and end.

    Raises:
        Unsupported: the model's vocabulary is not that of open_clip's own tokenizer.
    """
    saved = folders.read_object(folder / TOKENIZER)
    model = saved.get("model")
    vocabulary, merges = _vocabulary(model if isinstance(model, dict) else {})
    if len(vocabulary) != words or digest(vocabulary, merges) != _VOCABULARY:
        raise Unsupported(f"its {TOKENIZER} is not of CLIP's vocabulary")
    library = attempt_import_or_raise("tokenizers", extra=EXTRA)
    made = library.Tokenizer(library.models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=None))
    words_of = library.pre_tokenizers.Split(library.Regex(_SPLIT), "removed", invert=True)
    alphabet = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = library.pre_tokenizers.Sequence([words_of, alphabet])
    special = {_START: words - 2, _END: words - 1}

    def encode(text: str) -> list[int]:
        cleaned = clean(text)
        parts = [cleaned]
        if any(mark in cleaned for mark in special):
            parts = [part for part, _ in words_of.pre_tokenize_str(cleaned)]
        ids = [special[_START]]
        for part in parts:
            ids += [special[part]] if part in special else made.encode(part, add_special_tokens=False).ids
        return [*ids, special[_END]]

    return encode


def _vocabulary(model: dict[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the tokens with their numbers, and the merges, of a stored tokenizer of byte pairs."""
    tokens, merges = model.get("vocab"), model.get("merges")
    if model.get("type") != "BPE" or not isinstance(tokens, dict) or not isinstance(merges, list):
        return {}, []
    listed = [each.split(" ") if isinstance(each, str) else each for each in merges]
    whole = all(isinstance(each, list) and len(each) == 2 and all(isinstance(p, str) for p in each) for each in listed)
    return (tokens, [(first, second) for first, second in listed]) if whole else ({}, [])


def digest(tokens: dict[str, int], merges: list[tuple[str, str]]) -> str:
    """Return a digest of a vocabulary, without its two special tokens, and of its merges."""
    import hashlib

    special = {len(tokens) - 2, len(tokens) - 1}
    parts = [sorted((number, token) for token, number in tokens.items() if number not in special), merges]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
