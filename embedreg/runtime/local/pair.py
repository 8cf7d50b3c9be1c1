"""`LocalPairFunction`, the base class of local functions with texts and images or recordings in one vector space."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from embedreg.core.modality import TEXT, modalities, source_modality
from embedreg.core.role import Role
from embedreg.errors import InputError
from embedreg.runtime import progress
from embedreg.runtime.hardware import workers
from embedreg.runtime.local.media import LocalMediaFunction
from embedreg.runtime.text import truncation
from embedreg.runtime.text.execute import Made
from embedreg.runtime.text.truncation import Truncate
from embedreg.runtime.vectors import queries

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LocalPairFunction", "TextTower"]


class TextTower(Protocol):
    """The part of a model that embeds texts, on a device."""

    def embed_texts(self, texts: list[str], normalize: bool) -> Made:
        """Embed texts in this thread."""

    def embed_many_texts(
        self, texts: list[str], normalize: bool, *, batch_size: int, threads: int | None
    ) -> Iterator[tuple[int, Made]]:
        """Embed texts in batches, and yield the first row of each with its vectors, in any order."""

    def max_tokens(self) -> int:
        """Return the maximum number of tokens that the model reads of a text, special tokens included."""


class LocalPairFunction(LocalMediaFunction):
    """A function of texts and of images or recordings whose model runs on this machine, with a `TextTower`.

    A subclass has a field `source_type`: the meaning of a string in a source column.

    Attributes:
        batch_size: maximum inputs of a forward pass; on a CPU at most 8 images or recordings, which is fastest.
        normalize: whether vectors have unit length.
        truncate: policy for a text longer than the model takes.
    """

    batch_size: int = Field(default=64, ge=1)
    normalize: bool = True
    truncate: Truncate = "warn"

    @staticmethod
    def runtime_keys() -> list[str]:
        """Return the names of the fields that cannot change a returned vector."""
        return ["truncate"]

    # -- texts and others --------------------------------------------------------------------------------------------

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed source rows, or queries, each of which may be a text: (n, d) float32.

        If rows fail, the result is a list with a RowError for each input that could not be opened, and under
        truncate="error" for each text that is too long.

        Raises:
            InputError: under source_type="text", a source row that is not text.
        """
        rows = self.sanitize_input(inputs)
        if role == "source":
            return self._embed_texts(rows) if source_modality(self) is TEXT else super().compute_embeddings(rows, role)
        rows = rows.to_pylist() if hasattr(rows, "to_pylist") else list(rows)
        others = [number for number, row in enumerate(rows) if not isinstance(row, str)]
        if len(others) in (0, len(rows)):
            return super().compute_embeddings(rows, role) if others else self._embed_queries(rows)
        found: list[Any] = [None] * len(rows)
        texts = [number for number, row in enumerate(rows) if isinstance(row, str)]
        for numbers, embed in ((texts, self._embed_queries), (others, self._embed_other_queries)):
            for number, vector in zip(numbers, embed([rows[number] for number in numbers]), strict=True):
                found[number] = vector
        return found

    def _embed_other_queries(self, rows: list[Any]) -> Any:
        return super().compute_embeddings(rows, "query")

    def _embed_queries(self, texts: list[str]) -> Any:
        if not texts:
            return self._embed_texts(texts)
        loaded = self._as_run(self._loaded())

        def embed(some: list[str]) -> tuple[np.ndarray, np.ndarray]:
            with self._failing(len(some)):
                if len(some) == 1:
                    made = workers.alone(loaded.embed_texts, some, self.normalize)
                else:
                    made = self._in_batches(loaded, some)
            return made.vectors, made.truncated

        key = (*self._cache_key(), self.normalize, self.precision)
        found = queries.recent.look_up(key, texts)
        some = [*found.missing_keys()]
        return self._settled(Made(*(queries.joined(found, *embed(some)) if some else queries.known(found))), loaded)

    def _embed_texts(self, rows: Any) -> Any:
        texts = rows.to_pylist() if hasattr(rows, "to_pylist") else list(rows)
        odd = next((index for index, text in enumerate(texts) if not isinstance(text, str)), None)
        if odd is not None:
            other = modalities(self)[0]
            raise InputError(
                f"row {odd} is {type(texts[odd]).__name__}, not text.",
                f"source_type={other.name!r} embeds a column of {other.plural}",
            )
        loaded = self._as_run(self._loaded())
        with self._failing(len(texts)):
            return self._settled(self._in_batches(loaded, texts), loaded)

    def _in_batches(self, loaded: TextTower, texts: list[str]) -> Made:
        import numpy as np

        whole = Made(np.empty((len(texts), self.ndims()), np.float32), np.zeros(len(texts), bool))
        for start, made in loaded.embed_many_texts(
            texts, self.normalize, batch_size=self.batch_size, threads=self.num_threads
        ):
            stop = start + len(made.vectors)
            whole.vectors[start:stop], whole.truncated[start:stop] = made.vectors, made.truncated
            progress.report(progress.Step(rows=len(made.vectors)))
        return whole

    def _settled(self, made: Made, loaded: TextTower) -> Any:
        return truncation.settled(made.vectors, made.truncated, self.truncate, loaded.max_tokens(), self._model_name())

    def _narrow(self, model: Any, on: str) -> None:
        """Do nothing: `load` has converted the model."""
