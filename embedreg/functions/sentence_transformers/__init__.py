"""The `sentence-transformers` function: any model of that library, run by it or by the light back end.

It has the fields and defaults of LanceDB's function of this name, except that a model's own code runs only on request.
Sources are embedded as by the library's `encode_document` and queries as by `encode_query`: with the prompt that the
model was trained with. Only batching and scheduling are embedreg's.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from embedreg.core.base import Metric, Traits
from embedreg.core.role import Role
from embedreg.errors import ConfigError
from embedreg.runtime import cache, progress
from embedreg.runtime.hardware import precision, workers
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.local import LocalFunction
from embedreg.runtime.models import families, folders, kinds, weights
from embedreg.runtime.text import backend, library
from embedreg.runtime.text.backend import BackendName, ModelBackend
from embedreg.runtime.text.execute import Made
from embedreg.runtime.text.light import choice
from embedreg.runtime.text.light.choice import Choice
from embedreg.runtime.text.truncation import Truncate
from embedreg.security import grants
from embedreg.security.references import is_reference

__all__ = ["SentenceTransformerEmbeddings"]

log = logging.getLogger("embedreg")

TASKS: dict[Role, Literal["query", "document"]] = {"query": "query", "source": "document"}  # the library's names


class SentenceTransformerEmbeddings(LocalFunction):
    """Text embeddings with the sentence-transformers library.

    Attributes:
        name: a model of the hub ("BAAI/bge-small-en-v1.5"; without an owner, sentence-transformers' own), or a folder.
        device: "auto" (all CUDA devices, else Apple's, else the CPU), "cpu", "cuda", "cuda:<index>", "mps", or several
            that share the rows of a column: "cuda:0,1".
        normalize: whether vectors have unit length.
        trust_remote_code: whether code that comes with the model may run.
        revision: a branch, tag or commit of the hub; None for the one that is cached, else the newest.
        batch_size: maximum rows of a forward pass; None for a number that depends on the device and their tokens.
        num_threads: worker threads on a CPU; None for one per core that torch may use.
        truncate: policy for a text longer than the model takes: "warn" embeds its beginning and logs the number of such
            rows, "silent" embeds its beginning, "error" makes it a bad row.
        truncate_dim: number of leading dimensions to keep (Matryoshka models), normalised again under `normalize`; None
            for the model's own setting.
        precision: number type of the transformer's computation; vectors are always float32. Types other than "float32"
            are allowed only on hardware that is faster with them.
        backend: "torch"; on a CPU also "light" (the extra [light], without torch), or "openvino" (the extra
            [openvino]), which converts torch's model; all agree to 1e-5. "auto" is torch if there is a GPU, else light
            if it can run the model, else torch.
        query_prompt, document_prompt: text to prepend to queries and sources; None for the model's own, "" for none. A
            model of the hub whose files have none, and that is known to want them (docs/runtime.md), gets them.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = (
        "sentence-transformers"  # also where it is imported directly
    )
    traits: ClassVar[Traits] = replace(
        LocalFunction.traits,
        requires=("sentence_transformers",),
        alternatives=(choice.REQUIRED[choice.LIGHT],),
        extra="sentence-transformers",
        stock_fields=frozenset({"name", "device", "normalize", "trust_remote_code", "max_retries"}),
    )

    name: str = "all-MiniLM-L6-v2"
    device: str = "auto"  # inherited, as others below: declared again for their order in declarations and listings
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

    _chosen: tuple[Hashable, Choice] | None = PrivateAttr(default=None)
    _reads_own_prompts: ClassVar[bool] = True  # whether the prompts in the model's files are used
    _known_prompts: dict[bool, tuple[str, str]] = PrivateAttr(default_factory=dict)

    @staticmethod
    def runtime_keys() -> list[str]:
        """Return the names of the fields that cannot change a returned vector."""
        return ["backend", *LocalFunction.runtime_keys()]

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        name = self.raw_fields()["name"]
        folder = None if self.from_metadata else weights.absolute_folder(name)
        if folder is not None:
            self.name = folder
        family = None if self.from_metadata or is_reference(name) or grants.is_path(self.name) else self._family()
        if family is not None and not (family.own and self._reads_own_prompts):
            self.query_prompt = family.query if self.query_prompt is None else self.query_prompt
            self.document_prompt = family.document if self.document_prompt is None else self.document_prompt

    # -- overridden by the other functions of this library's models ---------------------------------------------------

    def _model_id(self) -> str:
        """Return the model to load: a name of the hub, or a folder."""
        return self.name

    def _unit(self) -> bool:
        """Return whether vectors are scaled to unit length."""
        return self.normalize

    def _width(self, path: Path) -> int | None:
        """Return the width of the model's vectors from its files; None if they do not determine it."""
        return folders.ndims(path)

    def _ends_normalized(self, path: Path) -> bool:
        """Return whether the model's last module normalises the vectors."""
        return folders.ends_normalized(path)

    def _family(self) -> families.Family | None:
        """Return the model's family, if it is known to want prompts."""
        return families.find(self._model_id())

    def _own_prompts(self, path: Path) -> tuple[dict[str, str], str | None]:
        """Return the prompts in the model's files by name, and the name of the default prompt."""
        return folders.prompts(path)

    def _choose(self, path: Path) -> Choice:
        """Choose the back end of a model under "auto"."""
        return choice.choose(path, self.name, self.device, self.precision)

    # -- the contract -------------------------------------------------------------------------------------------------

    def ndims(self) -> int:
        """Return the width of the vectors from the model's files; load the model only if it has unknown modules."""
        if self._ndims is None:
            width = self._width(self._files().path)
            if width is None:
                width = int(workers.alone(self._library().ndims, self._loaded()))
            self._ndims = width if self.truncate_dim is None else min(width, self.truncate_dim)
        return int(self._ndims)

    def vector_traits(self) -> dict[str, Any]:
        """Return the traits of the vectors; `prompts` is None if queries and sources are embedded alike."""
        path = self._files().path
        unit = self._unit() or (self._ends_normalized(path) and self.truncate_dim is None)
        query, document = self._prompts()
        alike = query == document == "" and not folders.routed(path)
        return {
            "dtype": "float32",
            "normalized": unit,
            "metric": self._metric(path, unit),
            "prompts": None if alike else {"query": query, "document": document},
        }

    def _metric(self, path: Path, unit: bool) -> Metric:
        """Return the model's similarity as a metric; for unit vectors, cosine gives the same order."""
        own = folders.similarity(path)
        if unit and own != "manhattan":
            return "cosine"
        if own == "manhattan":
            raise ConfigError(
                f"the model {self.name!r} compares vectors by manhattan distance, which no engine supports.",
                "use a model that compares by cosine, dot product or euclidean distance",
            )
        metrics: dict[str, Metric] = {"dot": "dot", "euclidean": "l2"}
        return metrics.get(own, "cosine")

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a source text before truncation, prompt and special tokens included."""
        return int(self._library().count_tokens(self._loaded(), self._prompts()[1] + text))

    def max_tokens(self) -> int | None:
        """Return the maximum number of tokens that the model reads of a text; None if there is no limit."""
        limit: int | None = self._library().max_tokens(self._loaded())
        return limit

    def flops_per_token(self) -> float | None:
        """Return the operations of the transformer's matrix products per token, without attention scores; or None."""
        flops: float | None = self._library().flops_per_token(self._loaded())
        return flops

    # -- the model --------------------------------------------------------------------------------------------------

    def _find_files(self, *, download: bool) -> weights.ResolvedModel:
        return self._resolve(download=download)

    def _resolve(self, *, download: bool, beside: bool = False) -> weights.ResolvedModel:
        found = self._resolved(
            self._model_id(),
            self.revision,
            trust_remote_code=self.trust_remote_code,
            download=download,
            beside=beside,
        )
        self._refuse_other_kinds(found.path)
        return found

    def _refuse_other_kinds(self, path: Path) -> None:
        kinds.refuse_other_kinds(path, self.name)

    def weights_key(self) -> tuple[Hashable, ...]:
        """Return the model's folder and the settings that change its weights: prompts, width and back end do not."""
        files = self._files()
        stamp = files.stamp() if files.origin == "local" else 0
        kind = self._kind()
        key = "sentence-transformers", str(files.path), stamp, self.trust_remote_code, self._weights_precision()
        return key if kind.torch else (*key, kind.library)  # torch's back ends share one copy

    def _weights_precision(self) -> Precision:
        return "float32" if self._kind().compiles else self.precision  # compiled from float32 weights

    def load(self, device: str) -> Any:
        """Load the model with its library, or the light back end."""
        files = self._files()
        own = files.origin == "local" and not self.from_metadata
        return self._library().load(
            files, self.name, device, code=self.trust_remote_code, own=own, revision=self.revision
        )

    def _narrow(self, model: Any, on: str) -> None:
        parts = library.transformers(model)
        if not parts:
            raise ConfigError(f"the model {self.name!r} has no transformer to convert.", "precision='float32'")
        precision.convert(parts, self.precision, on, lambda: model(model.preprocess(["a", "and some more words"])))

    def chosen_backend(self, *, download: bool = True) -> Choice:
        """Return the back end that runs the model here, and why others were passed over.

        Args:
            download: whether the model's files may be downloaded, which the choice depends on.
        Raises:
            ModelNotFoundError: the model is not available. MissingExtraError, CallError: no back end can run it.
        """
        if self.backend != backend.AUTO:
            return Choice(self.backend)
        files = self._files(download=download)
        if self._chosen is None or self._chosen[0] is not files:  # once for each instance, as its weights
            found = self._choose(files.path)
            log.info("%s runs on the back end %s", self.name, found)
            self._chosen = files, found
        return self._chosen[1]

    def _kind(self) -> type[ModelBackend]:
        return backend.find(self.chosen_backend().name)

    def _library(self) -> Any:
        """Return the module with the functions for a loaded model; see `ModelBackend.library`."""
        return importlib.import_module(self._kind().library)

    def _named_devices(self, name: str) -> tuple[str, ...]:
        if name == "auto" and not self._kind().torch:
            return ("cpu",)
        return super()._named_devices(name)

    def _compiled(self, model: Any, *, alone: bool) -> Any:
        kind, devices = self._kind(), self._devices()
        if kind.devices and (len(devices) > 1 or devices[0] not in kind.devices):
            allowed = " or ".join("a CPU" if name == "cpu" else name for name in sorted(kind.devices))
            raise ConfigError(
                f"backend={self.chosen_backend().name!r} runs on {allowed}, not on {self.device!r}.",
                f"device={min(kind.devices)!r}",
            )
        self._check_precision(devices[0])
        threads, group = self.num_threads or workers.worker_threads(), self._cache_key()
        name = self.chosen_backend().name
        key = (*group, devices[0], name, cache.THREADED, self.precision, threads, *(["alone"] if alone else []))
        prepare = kind.compile_for_queries if alone else kind.compile

        def compiled() -> Any:
            # the identity does not cover the model's own code
            identity = None if self.trust_remote_code else self.model_identity()
            with progress.stage(f"preparing {self.name} for {kind.label}"):
                return prepare(model, self.precision, threads, identity)

        return cache.get(key, lambda: workers.alone(compiled), lambda made: made.size, group=group)

    # -- encoding ---------------------------------------------------------------------------------------------------

    def _as_stock(self) -> bool:
        """Return whether stock LanceDB wrote the declaration: it embeds queries and sources alike, by `encode`."""
        return self.from_metadata and not self._declared

    def _prompts(self) -> tuple[str, str]:
        """Return the prompts of queries and of sources; the model's files are read once."""
        model, stock, kept = self._files(), self._as_stock(), self._known_prompts
        if stock not in kept:
            known, default = self._own_prompts(model.path)
            alike = known.get(default or "", "")
            query = known["query"] if self.query_prompt is None else self.query_prompt
            document = known["document"] if self.document_prompt is None else self.document_prompt
            kept[stock] = (alike, alike) if stock else (query, document)
            if kept[stock] == ("", "") and self.query_prompt is None and (missed := self._missed_prompts()):
                log.warning("%s", missed)
        return kept[stock]

    def _missed_prompts(self) -> str | None:
        """Return a note on a model that needs prompts, if its own are not used and none are given."""
        if self._family() is None:
            return None
        return families.used_without(self._model_id(), self.query_prompt, self.document_prompt)

    def _remarks(self) -> list[str]:
        reads = self._reads_own_prompts and not self._as_stock()
        family = self._family()
        missed = None if family is None or (family.own and reads) else self._missed_prompts()
        return [*super()._remarks(), *([missed] if missed else [])]

    def _backend(self, on: str, role: Role, *, alone: bool = False, few: bool = False) -> ModelBackend:
        query, document = self._prompts()
        prompt = query if role == "query" else document
        task = None if self._as_stock() else TASKS[role]
        model, kind = self._loaded(on), self._kind()
        single = (alone or few) and kind.queries_compiled
        by_torch = kind.compiles and alone and not single and self.precision == "float32"  # see ModelBackend.compiles
        compiled = self._compiled(model, alone=single) if kind.compiles and not by_torch else None
        made = backend.find(choice.TORCH) if by_torch else kind
        return made(model, on, prompt, task, self._unit(), self.truncate_dim, compiled)

    def _runs_alone(self, role: Role) -> bool:
        # so that the probe of a table's first query does not compile the model for columns
        return role == "query" or self._kind().queries_compiled

    def _embed_otherwise(self, first: ModelBackend, rows: list[str], role: Role) -> Made | None:
        """Embed rows with the library's `encode` if the runtime cannot run the model."""
        if first.usable(rows):
            return None
        if self._kind().compiles:
            raise ConfigError(
                f"{self._kind().label} cannot run the model {self.name!r} as the library does.", "backend='torch'"
            )
        model = self._loaded()
        with self._failing(len(rows)):
            vectors = workers.alone(self._encode, first, rows, role, self.batch_size or library.BATCH)
            counted = [] if self.truncate == "silent" else rows
            return Made(vectors, library.truncated(model, [first.prompt + text for text in counted], len(rows)))

    def _encode(self, first: ModelBackend, rows: list[str], role: Role, batch_size: int) -> Any:
        """Embed rows with the library's own method."""
        return library.encode(
            self._loaded(),
            rows,
            "encode" if self._as_stock() else f"encode_{TASKS[role]}",
            prompt=first.prompt,
            batch_size=batch_size,
            normalize_embeddings=self._unit(),
            truncate_dim=self.truncate_dim,
        )

    def _vector_key(self) -> Hashable:
        options = (self._as_stock(), self._unit(), self.truncate_dim, self.precision)
        return self._cache_key(), self._prompts()[0], *options
