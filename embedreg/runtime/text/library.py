"""Calls of the sentence-transformers library: loading a model, its own `encode`, and the model's token limit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.errors import CallError, MissingExtraError
from embedreg.runtime.models import integrity
from embedreg.runtime.models.weights import EXTRA, PROMPT_NOT_POOLED, ResolvedModel
from embedreg.runtime.text.pipeline import serialise_tokenizing
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "count_tokens",
    "encode",
    "flops_per_token",
    "load",
    "max_tokens",
    "ndims",
    "takes_images",
    "transformers",
    "truncated",
]

BATCH = 32  # rows, the library's default
_SINCE = {"MultiVectorEncoder": "6.0", "SparseEncoder": "5.0"}


def load(
    found: ResolvedModel,
    name: str,
    device: str,
    *,
    code: bool,
    own: bool,
    revision: str | None = None,
    plain: bool = False,
    kind: str = "SentenceTransformer",
    dtype: str | None = None,
) -> Any:
    """Load a model of the library, ready to be called from several threads.

    Args:
        name: the name in the user's configuration, for messages.
        device: as `device.resolve` returns it.
        code: whether code that comes with the model may run.
        revision: the requested revision.
        own: whether the user's own code names the folder, so that pickled weights and parts of other models may load.
        plain: whether the modules of the folder are ignored: its transformer, and the mean over all tokens.
        kind: its class: "SentenceTransformer", "MultiVectorEncoder" or "SparseEncoder".
        dtype: the number type that its weights are loaded in; None for that of its files.
    Raises:
        UntrustedError: it would run code or read files that are not allowed. CallError: it cannot be loaded.
        MissingExtraError: the library is not installed.
    """
    integrity.check_safe(found.path, name, code=code, pickles=own, revision=revision)
    try:
        with _quiet():
            library = attempt_import_or_raise("sentence_transformers", "sentence-transformers", extra=EXTRA)
            options = {"trust_remote_code": code, "local_files_only": not code}  # code may be in another repository
            weights: dict[str, Any] = {} if own else {"use_safetensors": True}
            if dtype is not None:
                weights["dtype"] = dtype
            if plain:
                model = library.SentenceTransformer(modules=_plain(found.path, options, weights), device=device)
            else:
                made = getattr(library, kind, None)
                if made is None:
                    raise MissingExtraError(
                        f"the installed sentence-transformers {library.__version__} has no {kind}.",
                        f"pip install 'sentence-transformers>={_SINCE[kind]}'",
                    )
                model = made(str(found.path), device=device, model_kwargs=weights or None, **options)
    except MissingExtraError:
        raise
    except Exception as exc:
        raise CallError(
            f"the model {name!r} cannot be loaded: {type(exc).__name__}: {exc}",
            "check its files and your versions with `embedreg doctor`; embedreg.release() frees memory",
        ) from exc
    if found.repository in PROMPT_NOT_POOLED:
        model.set_pooling_include_prompt(include_prompt=False)
    model.eval()  # `encode` does this; the runtime calls the modules directly
    serialise_tokenizing(model)
    return model


def _plain(path: Path, options: dict[str, Any], weights: dict[str, Any]) -> list[Any]:
    """Return the modules of a plain Hugging Face model: `AutoModel`, and the mean of its last hidden states."""
    modules = attempt_import_or_raise("sentence_transformers.sentence_transformer.modules", extra=EXTRA)
    first = modules.Transformer(
        str(path), model_kwargs={**options, **weights}, processor_kwargs=dict(options), config_kwargs=dict(options)
    )
    if first.tokenizer.pad_token is None:  # of a generative model: what is padded is masked
        first.tokenizer.pad_token = first.tokenizer.eos_token
    return [first, modules.Pooling(first.get_embedding_dimension(), "mean")]


def encode(model: Any, rows: list[Any], method: str, **options: Any) -> np.ndarray:
    """Embed texts with a method of the library, for a model that the runtime cannot run.

    Args:
        method: "encode", "encode_query" or "encode_document".
        options: the method's own.
    Returns:
        (n, d) float32.
    """
    import numpy as np

    if not set(getattr(model, "modalities", ("text",))) <= {"text"}:
        rows = [{"text": row} for row in rows]  # otherwise the library fetches a text that looks like an image URL
    vectors = getattr(model, method)(rows, show_progress_bar=False, convert_to_numpy=True, **options)
    return np.asarray(vectors, np.float32)


def count_tokens(model: Any, text: str) -> int:
    """Return the number of tokens of a text before truncation, special tokens included."""
    tokenizer = model.tokenizer
    if not callable(tokenizer):  # a static model has a `tokenizers.Tokenizer`
        return len(tokenizer.encode(text, add_special_tokens=False).ids)  # as such a model tokenizes
    return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])


def ndims(model: Any) -> int:
    """Return the width of a model's vectors, before `truncate_dim`: if the model does not know, by embedding a text."""
    if type(model).__name__ == "MultiVectorEncoder":
        return int(model.get_embedding_dimension())
    if type(model).__name__ == "SparseEncoder":  # which reports another width until it has embedded something
        return int(model.encode(["x"], show_progress_bar=False).shape[1])
    return int(encode(model, ["x"], "encode").shape[1])


def max_tokens(model: Any) -> int | None:
    """Return the maximum number of tokens that a model reads of a text; None if there is no limit."""
    limit = model.get_max_seq_length()
    return None if limit is None or math.isinf(limit) else int(limit)


def takes_images(model: Any) -> bool:
    """Return whether a model embeds images as well as texts."""
    return {"text", "image"} <= set(getattr(model, "modalities", ("text",)))


def truncated(model: Any, texts: list[str], n: int) -> np.ndarray:
    """Return which texts exceed the model's limit of tokens: (n,) bool; all False if no texts are given."""
    import numpy as np

    limit = max_tokens(model)
    if limit is None or not texts:
        return np.zeros(n, bool)
    return np.fromiter((count_tokens(model, text) > limit for text in texts), bool, n)


def transformers(model: Any) -> list[Any]:
    """Return a model's transformer modules that have weights."""
    named = [part for part in model.modules() if type(part).__name__ == "Transformer"]
    return [part for part in named if next(part.parameters(), None) is not None]


def flops_per_token(model: Any) -> float | None:
    """Return the operations of the transformers' matrix products per token, without attention scores; or None."""
    matrices = [
        module.weight
        for part in transformers(model)
        for module in part.modules()
        if any(kind.__name__ in ("Linear", "Conv1D") for kind in type(module).__mro__)
    ]
    return 2.0 * sum(weight.numel() for weight in matrices) or None


@contextmanager
def _quiet() -> Iterator[None]:
    """Disable the progress bar of transformers, which is only useful for a long load."""
    logging = attempt_import_or_raise("transformers.utils.logging", "transformers", extra=EXTRA)
    shown = logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
