"""`sentence-transformers`: any model of that library, run by the library itself.

LanceDB's function of this name, with its fields and defaults, except that a model's own code never runs unasked.
Sources are embedded as the library's `encode_document` does it and queries as `encode_query`: each gets the prompt that
its model was trained with. The runtime only batches and runs them in its own way.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from embedreg.core import vouched
from embedreg.core.base import TEXT, Metric, TextEmbeddingFunction, Traits
from embedreg.core.role import Role, asked, role_of
from embedreg.errors import CallError, ConfigError, InputError, ModelNotFoundError
from embedreg.runtime import cache, progress
from embedreg.runtime.hardware import device, onednn, precision, workers
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.models import folders, integrity, weights
from embedreg.runtime.text import backend, library, truncation
from embedreg.runtime.text.backend import BackendName, ModelBackend
from embedreg.runtime.text.execute import Made, embed_texts
from embedreg.runtime.text.truncation import Truncate
from embedreg.runtime.vectors import queries
from embedreg.security.references import is_reference

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SentenceTransformerEmbeddings"]

ROWS_A_DEVICE = 512  # fewer are not worth the copy of the weights that another device would get


class SentenceTransformerEmbeddings(TextEmbeddingFunction):
    """Text embeddings with the sentence-transformers library.

    Attributes:
        name: a model of the hub ("BAAI/bge-small-en-v1.5"; without an owner, sentence-transformers' own), or a folder.
        device: "auto" (all CUDA devices, else Apple's, else the CPU), "cpu", "cuda", "cuda:<index>", "mps", or several
            that share the rows of a column: "cuda:0,1".
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
        extra="sentence-transformers",
        retry=False,  # what fails on this machine fails again
        window=32_768,  # the runtime plans some thousand rows at once, and tokenizes the next ones meanwhile
        concurrency=2,  # callers share the runtime's workers: a query need not wait for a whole table
        stock_fields=frozenset({"name", "device", "normalize", "trust_remote_code", "max_retries"}),
    )

    name: str = "all-MiniLM-L6-v2"
    device: str = "auto"
    normalize: bool = True
    trust_remote_code: bool = False
    revision: str | None = None
    batch_size: int | None = Field(default=None, ge=1)
    num_threads: int | None = Field(default=None, ge=1)
    truncate: Truncate = "warn"
    precision: Precision = "float32"
    backend: BackendName = "auto"
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
            width = folders.ndims(self._model_folder().path)
            if width is None:
                width = int(workers.alone(library.encode, self._loaded(), ["x"], "encode").shape[1])
            self._ndims = width if self.truncate_dim is None else min(width, self.truncate_dim)
        return int(self._ndims)

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed texts, sources or queries, as `generate_embeddings` does; queries get the prompt of queries."""
        if role == "source":
            return super().compute_embeddings(inputs, role)
        with asked(self, role):
            return self.generate_embeddings(inputs)

    def generate_embeddings(self, texts: TEXT, *args: Any, **kwargs: Any) -> Any:
        """Embed texts: (n, d) float32; a list with a RowError for each row that is too long and has to be whole.

        Raises:
            InputError: a row that is not text.
        """
        rows = _checked(texts)
        role: Literal["query", "document"] = "query" if role_of(self) == "query" else "document"
        ndims = self.ndims()
        if not rows:
            import numpy as np

            return np.empty((0, ndims), np.float32)
        devices = self._devices()
        model = self._loaded(devices[0])
        alone = role == "query" and len(rows) == 1
        pipeline = self._pipeline(model, role, devices[0], alone=alone)
        if not pipeline.usable(rows):
            return self._settled(self._encode_by_the_library(model, rows, role), model)

        def embed(some: list[str]) -> tuple[np.ndarray, np.ndarray]:
            with self._failing(len(some)):
                if alone:
                    # not in this thread, from which a child may be forked: see `workers`
                    return workers.alone(pipeline.one, *some) if devices[0] == "cpu" else pipeline.one(*some)
                more = devices[1 : len(some) // ROWS_A_DEVICE]
                made = embed_texts(
                    [pipeline, *(self._pipeline(self._loaded(other), role, other) for other in more)],
                    some,
                    ndims,
                    max_rows=self.batch_size,
                    threads=self.num_threads,
                    whole=self.truncate == "error",
                )
                return made.vectors, made.truncated

        if role == "document":
            return self._settled(Made(*embed(rows)), model)
        name = (self._cache_key(), pipeline.prompt, pipeline.task, self.normalize, self.truncate_dim, self.precision)
        return self._settled(Made(*queries.recent.through(name, rows, embed)), model)

    def vector_traits(self) -> dict[str, Any]:
        """Say what the vectors are; `prompts` is None where queries and sources are embedded alike."""
        path = self._model_folder().path
        unit = self.normalize or (folders.ends_normalized(path) and self.truncate_dim is None)
        query, document = self._prompts()
        alike = query == document == "" and not folders.routed(path)
        return {
            "dtype": "float32",
            "normalized": unit,
            "metric": self._metric(path, unit),
            "prompts": None if alike else {"query": query, "document": document},
        }

    def _metric(self, path: Path, unit: bool) -> Metric:
        """Return the model's own similarity as a metric; of vectors of unit length, the cosine gives the same order."""
        own = folders.similarity(path)
        if unit and own != "manhattan":
            return "cosine"
        if own == "manhattan":
            raise ConfigError(
                f"the model {self.name!r} compares vectors by their manhattan distance, which no engine here knows.",
                "use a model that compares by cosine, dot product or euclidean distance",
            )
        metrics: dict[str, Metric] = {"dot": "dot", "euclidean": "l2"}
        return metrics.get(own, "cosine")

    def model_identity(self) -> str | None:
        """Return a hash of the model's files, the same wherever they lie; None where they are not on this machine."""
        try:
            return integrity.weights_identity(self._model_folder(download=False).path)
        except ModelNotFoundError:
            return None

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a source text has, its prompt and what frames it included, before any is cut off."""
        return library.count_tokens(self._loaded(), self._prompts()[1] + text)

    def max_tokens(self) -> int | None:
        """Return how many tokens of a text the model reads; None where there is no limit."""
        return library.max_tokens(self._loaded())

    def flops_per_token(self) -> float | None:
        """Return the operations of the transformer's matrix products for a token, without attention's own; or None."""
        return library.flops_per_token(self._loaded())

    def cache_key(self) -> tuple[Any, ...] | None:
        """Return what this function's model is kept under in memory, on whatever device; None where it is not here."""
        try:
            return self._cache_key(download=False)
        except ModelNotFoundError:
            return None

    # -- the model --------------------------------------------------------------------------------------------------

    def _model_folder(self, *, download: bool = True) -> weights.ResolvedModel:
        allowed = vouched.may_read(self, self.name)
        if self._resolved is None or (self._resolved.origin == "local" and not allowed):  # a grant can be revoked
            resolved = weights.resolve_model(
                self.name,
                self.revision,
                allow_local=allowed,
                trust_remote_code=self.trust_remote_code,
                download=download,
            )
            if resolved.origin == "local" and self.from_metadata:
                integrity.refuse_links(resolved.path, self.name)  # before anything is read
            folders.refuse_other_kinds(resolved.path, self.name)
            self._resolved = resolved
        return self._resolved

    def _cache_key(self, *, download: bool = True) -> tuple[Any, ...]:
        model = self._model_folder(download=download)
        if self._key is None:
            stamp = integrity.stamp(model.path) if model.origin == "local" else 0
            precision = "float32" if self._kind().compiles else self.precision  # what a compiled form is made from
            self._key = (
                "sentence-transformers",
                str(model.path),
                stamp,
                self.trust_remote_code,
                precision,
            )
        return self._key

    def _devices(self) -> tuple[str, ...]:
        try:
            return device.resolve_all(self.device)
        except ConfigError:
            if not self.from_metadata:
                raise
            return device.resolve_all("auto")  # it was another machine's device, and no device changes a vector

    def _loaded(self, on: str | None = None) -> Any:
        """Return the model, loaded on one of the devices; None for the first."""
        on, key = on or self._devices()[0], self._cache_key()
        return cache.get((*key, on), lambda: workers.alone(self._load, on), library.held_bytes, group=key)

    def _load(self, on: str) -> Any:
        found = self._model_folder()
        own = found.origin == "local" and not self.from_metadata
        model = library.load(found, self.name, on, code=self.trust_remote_code, own=own, revision=self.revision)
        if self.precision != "float32" and not self._kind().compiles:
            self._check_precision(on)
            if not precision.convert(model, self.precision):
                raise ConfigError(f"the model {self.name!r} has no transformer to convert.", "precision='float32'")
        onednn.quicken(model)
        return model

    def _check_precision(self, on: str) -> None:
        if not self.from_metadata:  # stored vectors have to be matched, at whatever speed
            precision.check(self.precision, on)

    def _kind(self) -> type[ModelBackend]:
        return backend.find(self.backend)

    def _compiled(self, model: Any) -> Any:
        kind, devices = self._kind(), self._devices()
        if kind.devices and (len(devices) > 1 or devices[0] not in kind.devices):
            allowed = " or ".join("a CPU" if name == "cpu" else name for name in sorted(kind.devices))
            raise ConfigError(
                f"backend={self.backend!r} runs on {allowed}, not on {self.device!r}.",
                f"device={min(kind.devices)!r}",
            )
        self._check_precision(devices[0])
        threads, group = self.num_threads or workers.lanes(), self._cache_key()
        key = (*group, devices[0], self.backend, cache.THREADED, self.precision, threads)
        identity = None if self.trust_remote_code else self.model_identity()  # code of its own is not in the identity

        def compiled() -> Any:
            with progress.stage(f"preparing {self.name} for {kind.label}"):
                return kind.compile(model, self.precision, threads, identity)

        return cache.get(key, lambda: workers.alone(compiled), lambda made: made.size, group=group)

    # -- encoding ---------------------------------------------------------------------------------------------------

    def _as_stock(self) -> bool:
        """Say whether stock LanceDB wrote the declaration: it embeds queries and sources alike, through `encode`."""
        return self.from_metadata and not self._declared

    def _prompts(self) -> tuple[str, str]:
        """Return what is put before queries and before sources; the model's files are read once."""
        model, stock = self._model_folder(), self._as_stock()
        if stock not in self._said:
            known, default = folders.prompts(model.path)
            alike = known.get(default or "", "")
            query = known["query"] if self.query_prompt is None else self.query_prompt
            document = known["document"] if self.document_prompt is None else self.document_prompt
            self._said[stock] = (alike, alike) if stock else (query, document)
        return self._said[stock]

    def _pipeline(
        self, model: Any, role: Literal["query", "document"], on: str, *, alone: bool = False
    ) -> ModelBackend:
        query, document = self._prompts()
        prompt = query if role == "query" else document
        task = None if self._as_stock() else role
        kind = self._kind()
        alone = kind.compiles and alone and self.precision == "float32"  # see ModelBackend.compiles
        compiled = self._compiled(model) if kind.compiles and not alone else None
        made = backend.find(backend.AUTO) if alone else kind
        return made(model, on, prompt, task, self.normalize, self.truncate_dim, compiled)

    def _encode_by_the_library(self, model: Any, rows: list[str], role: Literal["query", "document"]) -> Made:
        if self._kind().compiles:
            raise ConfigError(
                f"{self._kind().label} cannot run the model {self.name!r} as the library does.", "backend='torch'"
            )
        said = self._prompts()[role == "document"]
        with self._failing(len(rows)):
            encode = functools.partial(
                library.encode,
                model,
                rows,
                "encode" if self._as_stock() else f"encode_{role}",
                prompt=self.query_prompt if role == "query" else self.document_prompt,
                batch_size=self.batch_size or library.BATCH,
                normalize_embeddings=self.normalize,
                truncate_dim=self.truncate_dim,
            )
            vectors = workers.alone(encode)
            counted = [] if self.truncate == "silent" else rows
            return Made(vectors, library.truncated(model, [said + text for text in counted], len(rows)))

    def _settled(self, made: Made, model: Any) -> Any:
        return truncation.settled(made.vectors, made.truncated, self.truncate, model.max_seq_length, self.name)

    @contextmanager
    def _failing(self, rows: int) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            raise CallError(
                f"the model {self.name!r} failed on {rows} row(s): {type(exc).__name__}: {exc}",
                "for a lack of memory, a small batch_size; embedreg.release() frees other models",
            ) from exc


def _checked(texts: Any) -> list[Any]:
    rows = [texts] if isinstance(texts, str) else list(texts)
    bad = next((index for index, row in enumerate(rows) if not isinstance(row, str)), None)
    if bad is not None:
        raise InputError(
            f"row {bad} is {type(rows[bad]).__name__}, not text.",
            "embed_table and embed_column give null inputs null vectors; cast other columns to string",
        )
    return rows
