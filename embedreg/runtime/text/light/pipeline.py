"""The light back end's pipeline: texts -> tokens -> OpenVINO or numpy -> vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from embedreg.errors import CallError
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.text import compilation
from embedreg.runtime.text.light import heads, static, tokenizer
from embedreg.runtime.text.light.model import EXTRA, TORCH, LightModel
from embedreg.runtime.text.light.settings import Unsupported
from embedreg.runtime.text.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LightPipeline"]

_POOLED = "pooled_mask"  # the kind of tokens that marks which are pooled


class Compiled:
    """A model's graph, compiled for this processor.

    Args:
        model: with a transformer.
        precision: number type of the computation.
        streams: number of batches computed in parallel.
        threads: cores of all of them.
    """

    def __init__(self, model: LightModel, precision: Precision, streams: int, threads: int) -> None:
        openvino = compilation.library(extra=EXTRA)
        op = compilation.library("openvino.opset13", extra=EXTRA)
        try:
            graph, self._table = model.build(openvino, op)
        except Unsupported as exc:
            raise CallError(f"the light back end cannot run the model: {exc.message}.", TORCH) from exc
        self._requests = compilation.Requests(compilation.compiled(graph, precision, streams=streams, threads=threads))
        self.size = model.nbytes
        if model.tensors is not None:
            model.tensors.forget()

    def __call__(self, batch: dict[str, Any]) -> np.ndarray:
        """Return the pooled vectors of a padded batch: (b, n) float32."""
        import numpy as np

        masks = [batch[kind].astype(np.float32) for kind in ("attention_mask", _POOLED) if kind in batch]
        ids = batch["input_ids"]
        made: np.ndarray = self._requests([self._table[ids], ids, *masks])
        return made


@dataclass(frozen=True)
class LightPipeline:
    """A model in one role; the attributes are those of `TextPipeline`, and `model` is a `LightModel`."""

    label: ClassVar[str] = "the light back end"
    devices: ClassVar[frozenset[str]] = frozenset({"cpu"})
    compiles: ClassVar[bool] = True
    queries_compiled: ClassVar[bool] = True
    library: ClassVar[str] = "embedreg.runtime.text.light.model"
    torch: ClassVar[bool] = False

    model: LightModel
    device: str
    prompt: str
    task: str | None
    normalize: bool
    truncate_dim: int | None
    compiled: Any = None

    @classmethod
    def compile(cls, model: LightModel, precision: Precision, threads: int, identity: str | None) -> Any:
        """Compile a model to compute `threads` batches in parallel, on one core each."""
        return static.Table(model.table) if model.table is not None else Compiled(model, precision, threads, threads)

    @classmethod
    def compile_for_queries(cls, model: LightModel, precision: Precision, threads: int, identity: str | None) -> Any:
        """Compile a model to compute one batch on `threads` cores."""
        return static.Table(model.table) if model.table is not None else Compiled(model, precision, 1, threads)

    def usable(self, texts: list[str]) -> bool:
        """Return True: a model that could not be run would not have been loaded."""
        return True

    def tokenize(self, texts: list[str]) -> Tokens:
        """Tokenize texts with the prompt before each, without padding."""
        import itertools

        import numpy as np

        model = self.model
        rows = [self.prompt + text for text in texts] if self.prompt else texts
        found = model.tokenizer.encode_batch_fast(rows, add_special_tokens=model.special)  # no places: not needed
        ids = [each.ids for each in found]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        joined = np.fromiter(itertools.chain.from_iterable(ids), np.int64, int(lengths.sum()))
        kinds = {"input_ids": joined, "attention_mask": np.ones(len(joined), np.int64)}
        if model.excludes_prompt:
            count = tokenizer.prompt_length(model.tokenizer, model.folder, self.prompt) if self.prompt else 0
            places = np.arange(len(joined)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            kinds[_POOLED] = (places >= count).astype(np.int64)
        truncated = np.zeros(len(ids), bool)
        if model.limit is not None:
            full = np.flatnonzero(lengths >= model.limit)  # the others were not truncated; asking each is slow
            truncated[full] = [bool(found[row].overflowing) for row in full]
        return Tokens(kinds, lengths, dict.fromkeys(kinds, 0), left=False, truncated=truncated)

    def forward(self, batch: dict[str, Any]) -> np.ndarray:
        """Embed a padded batch: (b, d) float32, truncated and normalised as configured."""
        import numpy as np

        made = self.model.finish(np.asarray(self.compiled(batch), np.float32))
        width = self.truncate_dim if self.truncate_dim is not None else self.model.truncate_dim
        made = made if width is None else made[:, :width]
        return heads.unit(made) if self.normalize else made

    def one(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Embed one text in this thread: (1, d) float32, and (1,) bool: whether it was truncated."""
        import numpy as np

        tokens = self.tokenize([text])
        assert tokens.truncated is not None
        return np.array(self.forward(tokens.padded(np.arange(1)))), tokens.truncated
