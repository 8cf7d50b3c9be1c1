"""`sentence-transformers`: any model of that library, run by the library itself.

LanceDB's function of this name, with its fields and defaults, except that a model's own code never runs unasked.
Sources are embedded as the library's `encode_document` does it and queries as `encode_query`: each gets the prompt that
its model was trained with. The runtime only batches and runs them in its own way.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from embedreg import grants
from embedreg.base import TEXT, TextEmbeddingFunction, Traits
from embedreg.errors import CallError, ConfigError, InputError, ModelNotFoundError, RowError
from embedreg.imports import attempt_import_or_raise
from embedreg.runtime import cache, device, folder, integrity, openvino, precision, queries, weights, workers
from embedreg.runtime.execute import embed_texts
from embedreg.runtime.pipeline import TextPipeline, serialise_tokenizing
from embedreg.runtime.precision import Precision
from embedreg.secrets import is_reference

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SentenceTransformerEmbeddings"]

log = logging.getLogger("embedreg")

EXTRA = "sentence-transformers"
LIBRARY_BATCH = 32  # rows, its own default
# The library leaves the prompt out of these models' pooling by their name, which a folder does not tell it.
PROMPT_NOT_POOLED = frozenset({"hkunlp/instructor-base", "hkunlp/instructor-large", "hkunlp/instructor-xl"})


class SentenceTransformerEmbeddings(TextEmbeddingFunction):
    """Text embeddings with the sentence-transformers library.

    Attributes:
        name: a model of the hub ("BAAI/bge-small-en-v1.5"; without an owner, sentence-transformers' own), or a folder.
        device: "auto", "cpu", "cuda", "cuda:<index>" or "mps".
        normalize: whether vectors have unit length.
        trust_remote_code: whether code that comes with the model may run.
        revision: a branch, tag or commit of the hub; None for the one that is cached, else the newest.
        batch_size: the most rows a forward pass; None for as many as suit the device, by their tokens.
        num_threads: worker threads on a CPU; None for one per core that torch may use.
        truncate: what becomes of a text longer than the model takes: its vector is that of its beginning, with
            ("warn") or without ("silent") a line in the log that counts such rows; or ("error") it has none, and fails
            as a row.
        truncate_dim: how many leading dimensions to keep (Matryoshka models), normalised anew under `normalize`; None
            for what the model says.
        precision: what the transformer computes in; vectors are float32 all the same. Other than "float32" only where
            the hardware is quicker so.
        backend: "torch", or "openvino" on a CPU (the extra [openvino]), which is quicker and agrees to 1e-5; "auto" is
            "torch".
        query_prompt, document_prompt: text to put before queries and sources; None for what the model says, "" for
            none.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = (
        "sentence-transformers"  # also where it is imported directly
    )
    traits: ClassVar[Traits] = Traits(
        requires=("sentence_transformers",),
        extra=EXTRA,
        retry=False,  # what fails on this machine fails again
        window=32_768,  # the runtime plans some thousand rows at once, and tokenizes the next ones meanwhile
        stock_fields=frozenset({"name", "device", "normalize", "trust_remote_code", "max_retries"}),
    )

    name: str = "all-MiniLM-L6-v2"
    device: str = "auto"
    normalize: bool = True
    trust_remote_code: bool = False
    revision: str | None = None
    batch_size: int | None = Field(default=None, ge=1)
    num_threads: int | None = Field(default=None, ge=1)
    truncate: Literal["warn", "error", "silent"] = "warn"
    precision: Precision = "float32"
    backend: Literal["auto", "torch", "openvino"] = "auto"
    truncate_dim: int | None = Field(default=None, ge=1)
    query_prompt: str | None = None
    document_prompt: str | None = None

    _resolved: weights.ResolvedModel | None = PrivateAttr(default=None)
    _key: tuple[Any, ...] | None = PrivateAttr(default=None)
    _said: dict[bool, tuple[str, str]] = PrivateAttr(default_factory=dict)

    @staticmethod
    def runtime_keys() -> list[str]:
        """Name what cannot change a vector that is given out."""
        return ["backend", "truncate"]

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        name = self.raw_fields()["name"]
        if not self.from_metadata and not is_reference(name) and not os.path.isabs(name) and os.path.isdir(name):
            # a stored relative path would name nothing, or another model on the hub, from any other folder
            self.name = os.path.abspath(name)

    def ndims(self) -> int:
        """Return the width of the vectors, from the model's files; only a model of unknown parts is loaded for it."""
        if self._ndims is None:
            width = folder.ndims(self._model_folder().path)
            if width is None:
                width = int(self._loaded().encode(["x"], show_progress_bar=False).shape[1])
            self._ndims = width if self.truncate_dim is None else min(width, self.truncate_dim)
        return int(self._ndims)

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
        """Embed one query: (1, d) float32; under truncate="error", a list of one RowError for one that is too long."""
        (text,) = _checked(self.sanitize_input(query))
        model, key = self._loaded(), self._cache_key()
        pipeline = self._pipeline(model, "query")
        if not pipeline.usable([text]):
            return self._encode_by_the_library(model, [text], "encode_query", self.query_prompt)
        name = (key, pipeline.prompt, pipeline.task, self.normalize, self.truncate_dim, self.precision)
        known = queries.recent.get(name, text)
        if known is not None:
            return known
        with self._failing(1):
            vector, truncated = pipeline.one(text)
        if truncated and self.truncate == "error":
            return [self._too_long(model)]
        if truncated:
            self._tell_of_truncated(1, 1, model)
        else:
            queries.recent.put(name, text, vector)
        return vector

    async def acompute_query_embeddings(self, query: str) -> Any:
        """Embed one query as `compute_query_embeddings` does, without blocking the event loop."""
        return await queries.acompute(self, query)

    def generate_embeddings(self, texts: TEXT, *args: Any, **kwargs: Any) -> Any:
        """Embed source texts: (n, d) float32; a list with a RowError for each row that is too long and has to be whole.

        Raises:
            InputError: a row that is not text.
        """
        rows = _checked(texts)
        ndims = self.ndims()
        if not rows:
            import numpy as np

            return np.empty((0, ndims), np.float32)
        model = self._loaded()
        pipeline = self._pipeline(model, "document")
        if not pipeline.usable(rows):
            return self._encode_by_the_library(model, rows, "encode_document", self.document_prompt)
        with self._failing(len(rows)):
            made = embed_texts(
                pipeline,
                rows,
                ndims,
                max_rows=self.batch_size,
                lanes=self.num_threads,
                whole=self.truncate == "error",
            )
        count = int(made.truncated.sum())
        if count and self.truncate == "error":
            problem = self._too_long(model)
            return [problem if cut else row for row, cut in zip(made.vectors, made.truncated, strict=True)]
        if count:
            self._tell_of_truncated(count, len(rows), model)
        return made.vectors

    def vector_traits(self) -> dict[str, Any]:
        """Say what the vectors are; `prompts` is None where queries and sources are embedded alike."""
        path = self._model_folder().path
        unit = self.normalize or (folder.ends_normalized(path) and self.truncate_dim is None)
        query, document = self._prompts()
        alike = query == document == "" and not folder.routed(path)
        return {
            "dtype": "float32",
            "normalized": unit,
            "prompts": None if alike else {"query": query, "document": document},
        }

    def model_identity(self) -> str | None:
        """Return a hash of the model's files, the same wherever they lie; None where they are not on this machine."""
        try:
            return integrity.weights_identity(self._model_folder(download=False).path)
        except ModelNotFoundError:
            return None

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a source text has, its prompt and what frames it included, before any is cut off."""
        tokenizer = self._loaded().tokenizer
        text = self._prompts()[1] + text
        if not callable(tokenizer):  # a static model holds the bare tokenizer
            return len(tokenizer.encode(text).ids)
        return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def max_tokens(self) -> int | None:
        """Return how many tokens of a text the model reads; None where there is no limit."""
        limit = self._loaded().get_max_seq_length()
        return None if limit is None else int(limit)

    def flops_per_token(self) -> float | None:
        """Return the operations of the transformer's matrix products for a token, without attention's own; or None."""
        matrices = [
            module.weight
            for part in self._loaded().modules()
            if type(part).__name__ == "Transformer"
            for module in part.modules()
            if type(module).__name__ in ("Linear", "Conv1D")
        ]
        return 2.0 * sum(weight.numel() for weight in matrices) or None

    def cache_key(self) -> tuple[Any, ...] | None:
        """Return what this function's model is kept under in memory; None where the model is not on this machine."""
        try:
            return self._cache_key(download=False)
        except ModelNotFoundError:
            return None

    # -- the model --------------------------------------------------------------------------------------------------

    def _model_folder(self, *, download: bool = True) -> weights.ResolvedModel:
        allowed = grants.may_read(self, self.name)
        if self._resolved is None or (self._resolved.origin == "local" and not allowed):  # a grant can be revoked
            self._resolved = weights.resolve_model(
                self.name,
                self.revision,
                allow_local=allowed,
                trust_remote_code=self.trust_remote_code,
                download=download,
            )
        return self._resolved

    def _cache_key(self, *, download: bool = True) -> tuple[Any, ...]:
        model = self._model_folder(download=download)
        if self._key is None:
            stamp = integrity.stamp(model.path) if model.origin == "local" else 0
            precision = "float32" if self.backend == "openvino" else self.precision  # what OpenVINO is made from
            self._key = (
                "sentence-transformers",
                str(model.path),
                stamp,
                self._device(),
                self.trust_remote_code,
                precision,
            )
        return self._key

    def _device(self) -> str:
        try:
            return device.resolve(self.device)
        except ConfigError:
            if not self.from_metadata:
                raise
            return device.resolve("auto")  # it was another machine's device, and no device changes a vector

    def _loaded(self) -> Any:
        return cache.get(self._cache_key(), self._load, _held_bytes)

    def _load(self) -> Any:
        library = attempt_import_or_raise("sentence_transformers", "sentence-transformers", extra=EXTRA)
        found = self._model_folder()
        own = found.origin == "local" and not self.from_metadata
        integrity.check_safe(found.path, self.name, code=self.trust_remote_code, pickles=own)
        try:
            with _quiet_loading():
                model = library.SentenceTransformer(
                    str(found.path),
                    device=self._device(),
                    trust_remote_code=self.trust_remote_code,
                    local_files_only=not self.trust_remote_code,  # a model's code may lie in another repository
                    model_kwargs=None if own else {"use_safetensors": True},
                )
        except Exception as exc:
            raise CallError(
                f"the model {self.name!r} cannot be loaded: {type(exc).__name__}: {exc}",
                "check its files and your versions with `embedreg doctor`; embedreg.release() frees memory",
            ) from exc
        if found.repository in PROMPT_NOT_POOLED:
            model.set_pooling_include_prompt(include_prompt=False)
        if self.precision != "float32" and self.backend != "openvino":
            self._check_precision()
            if not precision.convert(model, self.precision):
                raise ConfigError(f"the model {self.name!r} has no transformer to convert.", "precision='float32'")
        model.eval()  # encode would; the runtime calls the modules themselves
        serialise_tokenizing(model)
        return model

    def _check_precision(self) -> None:
        if not self.from_metadata:  # stored vectors have to be matched, at whatever speed
            precision.check(self.precision, self._device())

    def _compiled(self, model: Any) -> openvino.Compiled:
        if self._device() != "cpu":
            raise ConfigError(f"backend='openvino' runs on a CPU, not on {self.device!r}.", "device='cpu'")
        self._check_precision()
        streams = self.num_threads or workers.lanes()
        key = (*self._cache_key(), "openvino", self.precision, streams)
        return cache.get(key, lambda: openvino.Compiled(model, self.precision, streams), lambda made: made.size)

    # -- encoding ---------------------------------------------------------------------------------------------------

    def _as_stock(self) -> bool:
        """Say whether stock LanceDB wrote the declaration: it embeds queries and sources alike, through `encode`."""
        return self.from_metadata and not self._declared

    def _prompts(self) -> tuple[str, str]:
        """Return what is put before queries and before sources; the model's files are read once."""
        model, stock = self._model_folder(), self._as_stock()
        if stock not in self._said:
            known, default = folder.prompts(model.path)
            alike = known.get(default or "", "")
            query = known["query"] if self.query_prompt is None else self.query_prompt
            document = known["document"] if self.document_prompt is None else self.document_prompt
            self._said[stock] = (alike, alike) if stock else (query, document)
        return self._said[stock]

    def _pipeline(self, model: Any, role: Literal["query", "document"]) -> TextPipeline:
        query, document = self._prompts()
        prompt = query if role == "query" else document
        task = None if self._as_stock() else role
        role_of = (model, self._device(), prompt, task, self.normalize, self.truncate_dim)
        if self.backend != "openvino" or (role == "query" and self.precision == "float32"):
            return TextPipeline(*role_of)  # for one short text torch has all cores at work, and agrees
        return openvino.OpenVinoPipeline(*role_of, compiled=self._compiled(model))

    def _encode_by_the_library(self, model: Any, rows: list[Any], method: str, prompt: str | None) -> np.ndarray:
        import numpy as np

        if self.backend == "openvino":
            raise ConfigError(f"OpenVINO cannot run the model {self.name!r} as the library does.", "backend='torch'")
        if not set(getattr(model, "modalities", ("text",))) <= {"text"}:
            rows = [{"text": row} for row in rows]  # else it would fetch what reads like the address of a picture
        with self._failing(len(rows)):
            vectors = getattr(model, "encode" if self._as_stock() else method)(
                rows,
                prompt=prompt,
                batch_size=self.batch_size or LIBRARY_BATCH,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=self.normalize,
                truncate_dim=self.truncate_dim,
            )
        return np.asarray(vectors, np.float32)

    @contextmanager
    def _failing(self, rows: int) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            raise CallError(
                f"the model {self.name!r} failed on {rows} row(s): {type(exc).__name__}: {exc}",
                "for a lack of memory, a small batch_size; embedreg.release() frees other models",
            ) from exc

    def _too_long(self, model: Any) -> RowError:
        return RowError(
            f"it is longer than the {model.max_seq_length} tokens that the model {self.name!r} takes",
            "cut it into passages, or truncate='warn' to embed its beginning",
        )

    def _tell_of_truncated(self, count: int, rows: int, model: Any) -> None:
        if self.truncate == "warn":
            log.warning(
                "%d of %d text(s) are longer than the %s tokens that %s takes: only their beginning was embedded "
                "(truncate='error' or 'silent' changes that)",
                count,
                rows,
                model.max_seq_length,
                self.name,
            )


def _checked(texts: Any) -> list[Any]:
    rows = [texts] if isinstance(texts, str) else list(texts)
    bad = next((index for index, row in enumerate(rows) if not isinstance(row, str)), None)
    if bad is not None:
        raise InputError(
            f"row {bad} is {type(rows[bad]).__name__}, not text.",
            "embed_table and embed_column give null inputs null vectors; cast other columns to string",
        )
    return rows


def _held_bytes(model: Any) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def _quiet_loading() -> Iterator[None]:
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
