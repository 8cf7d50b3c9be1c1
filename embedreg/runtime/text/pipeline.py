"""The torch back end: a sentence-transformers model with its own preprocessing and modules, run in planned batches.

Prompts, truncation, routes, pooling and heads are the library's. Only padding is embedreg's, and it is compared with
the library's once for each model and prompt. A model that is not a plain chain of modules from text tokens is run by
the library's `encode`.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from embedreg.runtime.text.tokens import Tokens
from embedreg.support.forks import ForkSafeLock

if TYPE_CHECKING:
    import numpy as np

    from embedreg.runtime.hardware.precision import Precision

__all__ = ["TextPipeline", "first_module", "serialise_tokenizing"]

log = logging.getLogger("embedreg")

# The library accepts these per call since 5.5: no padding, no tensors.
_UNPADDED = {"text": {"padding": False}, "common": {"return_tensors": None}}
# Their frequencies depend on the longest text so far, so that other rows and threads would change a vector.
_STATEFUL_ROPE = frozenset({"dynamic", "longrope"})

_checked: weakref.WeakKeyDictionary[Any, dict[tuple[str, str | None], bool]] = weakref.WeakKeyDictionary()
_lock = ForkSafeLock()


@dataclass(frozen=True)
class TextPipeline:
    """One model in one role.

    Attributes:
        model: a `SentenceTransformer`.
        device: where it is.
        prompt: text that is prepended to each text; "" for none.
        task: "query", "document", or None for neither: the library's name of the role.
        normalize: whether vectors are scaled to unit length.
        truncate_dim: number of leading dimensions to keep; None for the model's own setting.
        compiled: what `compile` returned; None for a back end that runs the model itself.
    """

    label: ClassVar[str] = "torch"
    devices: ClassVar[frozenset[str]] = frozenset()
    compiles: ClassVar[bool] = False
    queries_compiled: ClassVar[bool] = False
    library: ClassVar[str] = "embedreg.runtime.text.library"
    torch: ClassVar[bool] = True

    model: Any
    device: str
    prompt: str
    task: str | None
    normalize: bool
    truncate_dim: int | None
    compiled: Any = None

    @classmethod
    def compile(cls, model: Any, precision: Precision, threads: int, identity: str | None) -> Any:
        """Return the compiled form that the back end runs instead of the model: see `ModelBackend`."""
        raise NotImplementedError(f"{cls.label} runs the model itself")

    @classmethod
    def compile_for_queries(cls, model: Any, precision: Precision, threads: int, identity: str | None) -> Any:
        """Return the compiled form that a single query runs on if `queries_compiled`: by default that of `compile`."""
        return cls.compile(model, precision, threads, identity)

    def usable(self, texts: list[str]) -> bool:
        """Return whether the runtime can run this model with the same vectors as the library.

        Args:
            texts: at least one, for the comparison of the padding.
        """
        with _lock:
            known = _checked.setdefault(self.model, {})
        key = (self.prompt, self.task)
        if key not in known:
            known[key] = _plain(self.model, self.task) and self._expands_nothing() and self._pads_alike(texts)
            if not known[key]:
                log.debug("the runtime cannot run this model: using the library's encode")
        return known[key]

    def tokenize(self, texts: list[str]) -> Tokens:
        """Tokenize with the model's own preprocessing, without padding."""
        import numpy as np

        features = dict(self._preprocess(texts, processing_kwargs=_UNPADDED))
        encodings = features.pop("", None)
        tokenizer = first_module(self.model, self.task).tokenizer
        pads = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id, "attention_mask": 0}
        rows = {kind: value for kind, value in features.items() if isinstance(value, list)}
        extras = {kind: value for kind, value in features.items() if kind not in rows}
        truncated = None
        if encodings is not None:
            truncated = np.fromiter((bool(each.overflowing) for each in encodings), bool, len(texts))
        left = tokenizer.padding_side == "left"
        return Tokens.from_rows(rows, pads, left=left, extras=extras, truncated=truncated)

    def forward(self, batch: dict[str, Any]) -> Any:
        """Run the modules on a padded batch: (b, d) float32, on the model's device."""
        import numpy as np
        import torch

        features = {
            kind: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for kind, value in batch.items()
        }
        return self.vectors(features)

    def one(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Embed one text in this thread, without planning or padding.

        Returns:
            (1, d) float32, and (1,) bool: whether the text was truncated.
        """
        import numpy as np

        features = dict(self._preprocess([text]))
        encodings = features.pop("", None)
        if self.device != "cpu":
            features = {k: v.to(self.device) if hasattr(v, "to") else v for k, v in features.items()}
        made: np.ndarray = self.vectors(features).cpu().numpy()
        return made, np.array([encodings is not None and bool(encodings[0].overflowing)])

    def vectors(self, features: dict[str, Any]) -> Any:
        """Run the modules on tensors: (b, d) float32, truncated and normalised as configured."""
        import torch

        with torch.inference_mode():
            made = self._run(features)
            width = self.truncate_dim if self.truncate_dim is not None else self.model.truncate_dim
            if width is not None:
                made = made[..., :width]
            made = made.float()  # numpy has no bfloat16, and normalising needs the precision
            return torch.nn.functional.normalize(made, p=2, dim=1) if self.normalize else made

    def _run(self, features: dict[str, Any]) -> Any:
        return self.model(features, **self._kwargs())["sentence_embedding"]

    def _kwargs(self) -> dict[str, Any]:
        return {} if self.task is None else {"task": self.task}

    def _preprocess(self, texts: list[str], **options: Any) -> dict[str, Any]:
        """Return the library's features, and under "" the tokenizer's encodings of the rows if it has them."""
        made = self.model.preprocess(texts, prompt=self.prompt or None, **self._kwargs(), **options)
        encodings = getattr(made, "encodings", None)
        return {**made, "": encodings} if encodings is not None else dict(made)

    def _expands_nothing(self) -> bool:
        """Return whether texts are embedded without the tokens that some models add to queries."""
        return self._expansion() is None

    def _expansion(self) -> Any:
        first = first_module(self.model, self.task)
        return getattr(first, "query_expansion", None) if self.task == "query" else None

    def _pads_alike(self, texts: list[str]) -> bool:
        """Return whether the runtime pads as the library does, on the shortest and the longest of some texts."""
        import numpy as np

        some = sorted(texts[:512], key=len)
        # odd lengths too, which detect padding to a multiple of eight
        for sample in ([some[0], some[-1]], [some[0]], ["odd", some[-1] + " and one more"], ["even odd"]):
            try:
                ours = self.tokenize(sample)
            except (KeyError, TypeError, ValueError):
                return False
            theirs = self._preprocess(sample)
            theirs.pop("", None)
            made = ours.padded(np.arange(len(sample)))
            if made.keys() != theirs.keys():
                return False
            for kind, value in made.items():
                if not np.array_equal(value, np.asarray(theirs[kind])):
                    return False
        return True


def first_module(model: Any, task: str | None) -> Any:
    """Return the module that tokenizes: the first, or in a Router the first of the task's route."""
    first = model[0]
    routes = getattr(first, "sub_modules", None)
    if routes is None:
        return first
    name = task if task in routes else getattr(first, "default_route", None)
    return routes[name][0] if name in routes else None


def _plain(model: Any, task: str | None) -> bool:
    """Return whether a model takes only text, with a fast tokenizer and a stateless torch module."""
    first = first_module(model, task)
    config = getattr(first, "config", None)
    tokenizer = getattr(first, "tokenizer", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {value.get("rope_type") for value in [rope, *rope.values()] if isinstance(value, dict)}
    return (
        hasattr(model, "preprocess")
        and type(first).__name__ == "Transformer"
        and list(getattr(model, "modalities", ())) == ["text"]
        and getattr(first, "backend", "torch") == "torch"
        and getattr(tokenizer, "is_fast", False)
        and isinstance(getattr(tokenizer, "pad_token_id", None), int)
        and not getattr(first, "can_flatten_inputs", False)
        and getattr(model, "_distributed_inference", None) is None
        and not kinds & _STATEFUL_ROPE
    )


def serialise_tokenizing(model: Any) -> None:
    """Let one thread at a time tokenize; the forward pass, which takes most of the time, stays parallel.

    A fast tokenizer stores its padding and truncation settings: if one thread changes them while another tokenizes, it
    raises "Already borrowed" or pads wrongly.
    """
    lock = ForkSafeLock()

    def serialised(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with lock:
                return method(*args, **kwargs)

        return call

    for name in ("preprocess", "tokenize"):  # `preprocess` since 5.4, `tokenize` before
        method = getattr(model, name, None)
        if method is not None:
            setattr(model, name, serialised(method))
