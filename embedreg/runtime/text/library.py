"""The sentence-transformers library where the runtime needs it whole: to load a model, and for its own `encode`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from embedreg.errors import CallError, MissingExtraError
from embedreg.runtime.models import integrity
from embedreg.runtime.models.weights import EXTRA, ResolvedModel
from embedreg.runtime.text.pipeline import serialise_tokenizing
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import numpy as np

__all__ = ["count_tokens", "encode", "flops_per_token", "load", "max_tokens", "transformers", "truncated"]

BATCH = 32  # rows, its own default
# The library leaves the prompt out of these models' pooling by their name, which a folder does not tell it.
PROMPT_NOT_POOLED = frozenset({"hkunlp/instructor-base", "hkunlp/instructor-large", "hkunlp/instructor-xl"})


def load(found: ResolvedModel, name: str, device: str, *, code: bool, own: bool, revision: str | None = None) -> Any:
    """Load a `SentenceTransformer`, ready to be called from several threads.

    Args:
        name: what the user calls it.
        device: as `device.resolve` names it.
        code: whether code that comes with the model may run.
        revision: which one the user asked for.
        own: whether the user's own code names the folder, so that pickled weights and parts of other models may load.
    Raises:
        UntrustedError: what it would run or read is not allowed. CallError: it cannot be loaded.
        MissingExtraError: the library is not installed.
    """
    integrity.check_safe(found.path, name, code=code, pickles=own, revision=revision)
    try:
        with _quiet():
            library = attempt_import_or_raise("sentence_transformers", "sentence-transformers", extra=EXTRA)
            model = library.SentenceTransformer(
                str(found.path),
                device=device,
                trust_remote_code=code,
                local_files_only=not code,  # a model's code may lie in another repository
                model_kwargs=None if own else {"use_safetensors": True},
            )
    except MissingExtraError:
        raise
    except Exception as exc:
        raise CallError(
            f"the model {name!r} cannot be loaded: {type(exc).__name__}: {exc}",
            "check its files and your versions with `embedreg doctor`; embedreg.release() frees memory",
        ) from exc
    if found.repository in PROMPT_NOT_POOLED:
        model.set_pooling_include_prompt(include_prompt=False)
    model.eval()  # encode would; the runtime calls the modules themselves
    serialise_tokenizing(model)
    return model


def encode(model: Any, rows: list[Any], method: str, **options: Any) -> np.ndarray:
    """Embed rows of text with a method of the library, for a model that the runtime cannot run itself.

    Args:
        method: "encode", "encode_query" or "encode_document".
        options: the method's own.
    Returns:
        (n, d) float32.
    """
    import numpy as np

    if not set(getattr(model, "modalities", ("text",))) <= {"text"}:
        rows = [{"text": row} for row in rows]  # else it would fetch what reads like the address of a picture
    vectors = getattr(model, method)(rows, show_progress_bar=False, convert_to_numpy=True, **options)
    return np.asarray(vectors, np.float32)


def count_tokens(model: Any, text: str) -> int:
    """Return how many tokens a text has, what frames it included, before any is cut off."""
    tokenizer = model.tokenizer
    if not callable(tokenizer):  # a static model holds the bare tokenizer
        return len(tokenizer.encode(text, add_special_tokens=False).ids)  # as such a model tokenizes
    return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])


def max_tokens(model: Any) -> int | None:
    """Return how many tokens of a text a model reads; None where there is no limit."""
    limit = model.get_max_seq_length()
    return None if limit is None or math.isinf(limit) else int(limit)


def truncated(model: Any, texts: list[str], n: int) -> np.ndarray:
    """Return which texts lose tokens to the model's limit: (n,) bool; none of them where no texts are given."""
    import numpy as np

    limit = max_tokens(model)
    if limit is None or not texts:
        return np.zeros(n, bool)
    return np.fromiter((count_tokens(model, text) > limit for text in texts), bool, n)


def transformers(model: Any) -> list[Any]:
    """Return the transformers among a model's modules, those that hold weights."""
    named = [part for part in model.modules() if type(part).__name__ == "Transformer"]
    return [part for part in named if next(part.parameters(), None) is not None]


def flops_per_token(model: Any) -> float | None:
    """Return the operations of the transformers' matrix products for a token, without attention's own; or None."""
    matrices = [
        module.weight
        for part in transformers(model)
        for module in part.modules()
        if any(kind.__name__ in ("Linear", "Conv1D") for kind in type(module).__mro__)
    ]
    return 2.0 * sum(weight.numel() for weight in matrices) or None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing a progress bar over a load that takes a moment."""
    logging = attempt_import_or_raise("transformers.utils.logging", "transformers", extra=EXTRA)
    shown = logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
