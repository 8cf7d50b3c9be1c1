"""`LocalFunction`, the base class of local text functions; a subclass loads a model, tokenizes and runs batches."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from embedreg.core.base import TextEmbeddingFunction, Traits
from embedreg.core.role import Role, in_batches
from embedreg.errors import InputError, VectorError
from embedreg.runtime.hardware import workers
from embedreg.runtime.local.model import Loaded, LocalModel, run
from embedreg.runtime.serving.shared_queries import embed_shared
from embedreg.runtime.text import truncation
from embedreg.runtime.text.execute import Made, embed_texts
from embedreg.runtime.text.tokens import Tokens
from embedreg.runtime.text.truncation import Truncate
from embedreg.runtime.vectors import queries
from embedreg.runtime.vectors.packed import Packed

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LocalFunction", "texts_of"]

ROWS_A_DEVICE = 512  # fewer rows are not worth a copy of the weights on another device
FEW_CHARACTERS = 768  # of texts that make one small batch, of about 192 tokens
_OF_A_ROW = 8  # characters that its special tokens count as
_HOOKS = frozenset({"tokenize", "forward"})
_SAMPLE = ["a", "and some more words"]


class LocalFunction(LocalModel, TextEmbeddingFunction):
    """A text embedding function whose model runs on this machine.

    A subclass defines `ndims()`, `load(device)`, `tokenize(model, texts, role)` and `forward(model, batch)`. The
    runtime tokenizes texts once and plans batches by padded tokens. Batches run in worker threads on a CPU, or are
    queued on one or several devices, where out-of-memory halves them. Equal functions share one copy of the weights on
    each device, which is loaded on first use and freed by `embedreg.release()`.

    Attributes:
        device: "auto" (all CUDA devices, else Apple's, else the CPU), "cpu", "cuda", "cuda:<index>", "mps", or several
            that share the rows of a column: "cuda:0,1".
        batch_size: maximum rows of a forward pass; None for a number that depends on the device and their tokens.
        num_threads: worker threads on a CPU; None for one per core that torch may use.
        precision: number type of the model's computation; vectors are always float32. Types other than "float32" are
            allowed only on hardware that is faster with them.
        truncate: policy for a text longer than the model takes: "warn" embeds its beginning and logs the number of such
            rows, "silent" embeds its beginning, "error" makes it a bad row.
    """

    traits: ClassVar[Traits] = Traits(
        requires=("torch",),
        retry=False,  # a local failure is not transient
        window=32_768,  # the runtime plans thousands of rows at once, and tokenizes the next ones meanwhile
        concurrency=2,  # callers share the runtime's workers, so that a query does not wait for a whole table
    )

    truncate: Truncate = "warn"

    _packed: ClassVar[bool] = False  # whether the back end returns `Packed` rows

    @staticmethod
    def runtime_keys() -> list[str]:
        """Return the names of the fields that cannot change a returned vector."""
        return ["truncate"]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls._backend is not LocalFunction._backend:  # a class with its own back ends needs neither hook
            cls.__abstractmethods__ = frozenset(cls.__abstractmethods__ - _HOOKS)

    # -- defined by a subclass --------------------------------------------------------------------------------------

    @abc.abstractmethod
    def tokenize(self, model: Any, texts: list[str], role: Role) -> Any:
        """Tokenize n texts, without padding; called in one thread at a time.

        Args:
            model: what `load` returned.
            role: "source" or "query", for models with a prompt for each.
        Returns:
            n rows of ints, as lists or arrays; or kind -> such rows, as a Hugging Face tokenizer returns them; or
            `Tokens`, which also has the padding values. Plain rows become the kinds "input_ids" and "attention_mask".
        """

    @abc.abstractmethod
    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """Embed a padded batch; called in several threads on a CPU.

        Args:
            model: what `load` returned.
            batch: kind -> (b, t) int64 tensor on the model's device, padded with 0 unless `tokenize` returned `Tokens`;
                no gradients are recorded.
        Returns:
            (b, d), a tensor or an array of floats.
        """

    def max_tokens(self) -> int | None:
        """Return the maximum number of tokens that the model reads of a text; None if there is no limit."""
        return None

    # -- the contract -----------------------------------------------------------------------------------------------

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed texts: (n, d) float32; under truncate="error", a list with a RowError for each row that is too long.

        A function of several vectors a row, or of sparse vectors, returns n arrays (k, d), or n pairs of (k,) indices
        and values.

        Raises:
            InputError: a row is not text. CallError: the model failed.
        """
        import numpy as np

        rows = texts_of(self.sanitize_input(inputs))
        ndims = self.ndims()
        if not rows:
            return [] if self._packed else np.empty((0, ndims), np.float32)
        devices = self._devices()
        # before the model: a query that is known needs none
        cached = role == "query" and not self._packed
        known = queries.recent.look_up(self._vector_key(), rows) if cached else None
        if known is not None and not len(known.missing):
            return self._settled(Made(*queries.known(known)), role)
        alone = len(rows) == 1 and self._runs_alone(role)
        few = sum(map(len, rows)) + _OF_A_ROW * len(rows) <= FEW_CHARACTERS
        first = self._backend(devices[0], role, alone=alone, few=few)
        otherwise = self._embed_otherwise(first, rows, role)
        if otherwise is not None:
            return self._settled(otherwise, role)

        def embed(some: list[str]) -> tuple[Any, np.ndarray]:
            with self._failing(len(some)):
                if alone:
                    # not in the caller's thread, which may fork: see `workers`
                    vector, cut = workers.alone(first.one, *some) if devices[0] == "cpu" else first.one(*some)
                    return vector.rows() if isinstance(vector, Packed) else vector, cut
                more = devices[1 : len(some) // ROWS_A_DEVICE]
                made = embed_texts(
                    [first, *(self._backend(other, role) for other in more)],
                    some,
                    ndims,
                    budget=self._budget(devices[0]),
                    max_rows=self.batch_size,
                    threads=self.num_threads,
                    whole=self.truncate == "error",
                    packed=self._packed,
                )
                return made.vectors, made.truncated

        made = embed(rows) if known is None else queries.joined(known, *embed([*known.missing_keys()]))
        return self._settled(Made(*made), role)

    async def acompute_query_embeddings(self, query: Any) -> Any:
        """Embed a query as `compute_query_embeddings_with_retry` does, without blocking the event loop.

        Queries that wait together share a forward pass.
        """
        if in_batches(self, "query"):
            return await embed_shared(self, query)
        return await super().acompute_query_embeddings(query)

    # -- overridden by functions with their own back ends -----------------------------------------------------------

    def _backend(self, on: str, role: Role, *, alone: bool = False, few: bool = False) -> Any:
        """Return the model on a device as a `Backend` with a method `one(text)`, as `ModelBackend` has it.

        Args:
            alone: whether it embeds a single query.
            few: whether it embeds one small batch, which should use all cores.
        """
        return _InRole(self, self._held(on), on, role, self.ndims())

    def _embed_otherwise(self, first: Any, rows: list[str], role: Role) -> Made | None:
        """Embed rows with a model that the runtime cannot run; None if it can."""
        return None

    def _runs_alone(self, role: Role) -> bool:
        """Return whether a single text runs without workers and a plan."""
        return role == "query"

    def _vector_key(self) -> Hashable:
        """Return everything that the vector of a query depends on, except its text."""
        return *self._cache_key(), self._vector_fields()

    def _budget(self, on: str) -> int | None:
        """Return the maximum number of padded tokens of a batch; None for the default of the device."""
        return None

    def _limit(self, role: Role) -> int | None:
        """Return the maximum number of tokens that the model reads of a text in a role; None if there is no limit."""
        return self.max_tokens()

    def _settled(self, made: Made, role: Role) -> Any:
        if not made.truncated.any():
            return made.vectors
        limit = self._limit(role)
        return truncation.settled(made.vectors, made.truncated, self.truncate, limit, self._model_name())

    def _try(self, model: Any, on: str) -> None:
        _InRole(self, Loaded(model), on, "source", self.ndims()).run(_SAMPLE)


@dataclass(frozen=True)
class _InRole:
    """The `Backend` of a function that defines `tokenize` and `forward`."""

    function: LocalFunction
    model: Loaded
    device: str
    role: Role
    ndims: int

    def tokenize(self, texts: list[str]) -> Tokens:
        with self.model.lock:
            made = self.function.tokenize(self.model.model, texts, self.role)
        tokens = _tokens(made, self.function.max_tokens())
        if len(tokens) != len(texts):
            raise VectorError(
                f"tokenize() returned {len(tokens)} row(s) for {len(texts)} text(s).", "return one row for each text"
            )
        return tokens

    def forward(self, batch: dict[str, Any]) -> Any:
        import numpy as np
        import torch

        tensors = {
            kind: torch.from_numpy(each) if isinstance(each, np.ndarray) else each for kind, each in batch.items()
        }
        rows = next(len(each) for each in tensors.values() if torch.is_tensor(each))
        return run(self.function, self.model.model, tensors, rows, self.ndims)

    def one(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Embed one text in this thread: (1, d) float32, and (1,) bool: whether it was truncated."""
        return self.run([text])

    def run(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embed a few texts in one batch, in this thread."""
        import numpy as np
        import torch

        tokens = self.tokenize(texts)
        batch = tokens.padded(np.arange(len(texts)))
        for kind in tokens.joined:
            batch[kind] = torch.from_numpy(batch[kind]).to(self.device)
        cut = np.zeros(len(texts), bool) if tokens.truncated is None else tokens.truncated
        made: np.ndarray = self.forward(batch).cpu().numpy()
        return made, cut


def _tokens(made: Any, limit: int | None) -> Tokens:
    """Convert the result of `tokenize` to `Tokens`; rows over the limit are truncated."""
    import numpy as np

    if isinstance(made, Tokens):
        return made
    plain = not isinstance(made, Mapping)
    kinds = {"input_ids": list(made)} if plain else {kind: list(rows) for kind, rows in made.items()}
    lengths = np.fromiter((len(row) for row in next(iter(kinds.values()), [])), np.int64)
    cut = np.zeros(len(lengths), bool)
    if limit is not None and (cut := lengths > limit).any():
        kinds = {kind: [row[:limit] for row in rows] for kind, rows in kinds.items()}
        lengths = np.minimum(lengths, limit)
    if plain:
        kinds["attention_mask"] = [[1] * length for length in lengths.tolist()]
    return Tokens.from_rows(kinds, dict.fromkeys(kinds, 0), truncated=cut)


def texts_of(values: Any) -> list[str]:
    """Return rows as a list of texts; raise InputError for a row that is not text."""
    rows = [values] if isinstance(values, str) else list(values)
    bad = next((index for index, row in enumerate(rows) if not isinstance(row, str)), None)
    if bad is not None:
        raise InputError(
            f"row {bad} is {type(rows[bad]).__name__}, not text.",
            "embed_table and embed_column return null vectors for null inputs; cast other columns to string",
        )
    return rows
