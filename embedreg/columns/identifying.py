"""`identify`: which function made vectors without a declaration, from a few rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from embedreg.arrow.quantized import Quantizer
from embedreg.columns import candidates as functions
from embedreg.columns import sampling
from embedreg.columns.arguments import no_column, refuse_count
from embedreg.columns.candidates import PROMPTS, Vectors
from embedreg.columns.decoded import declaration_of, read_as_floats
from embedreg.columns.rows import Readable
from embedreg.columns.store import ColumnStore
from embedreg.columns.tables import TableRows, readable
from embedreg.columns.vectors import SAME, STORAGE, cosines, refuse_type, storage_of, unit
from embedreg.core.base import EmbeddingFunction
from embedreg.errors import EmbedregError, MissingColumnError, VectorError, option
from embedreg.runtime.text.truncation import unreported
from embedreg.support.display import plain

if TYPE_CHECKING:
    import numpy as np

__all__ = ["UNKNOWN", "Guess", "identify"]

UNKNOWN = "unknown"
_SHOWN = 400  # characters of a message
_MOST = 0.5  # share of the rows that must agree for a function to have made the column
_TEXTS = ("string", "large_string", "string_view")
_MAX_COLUMNS = 8  # text columns that are tried where no source is named


@dataclass(frozen=True)
class Guess:
    """A function that may have made a column. `str()` describes it in words.

    Attributes:
        function: the function and the fields that are not its defaults; "unknown" in a guess that no candidate fits.
        source: the column of the texts.
        variant: how it was called, if not as for documents: "as queries", "with 'query: ' before each text", ...
        compared: rows embedded.
        agree: of these, rows whose vectors agree.
        lowest, median: cosines of stored and new vectors.
        storage: the number type that the stored vectors went through; None for their own.
        fits: whether it made at least half of the rows.
        problem: why it could not be tried.
    """

    function: str
    source: str | None = None
    variant: str | None = None
    compared: int = 0
    agree: int = 0
    lowest: float | None = None
    median: float | None = None
    storage: str | None = None
    fits: bool = False
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the guess in JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        return _line(self)


def identify(
    data: Any, vector: str, *, source: str | None = None, candidates: Any = None, sample: int = 30, seed: int = 0
) -> list[Guess]:
    """Name the functions that may have made the vectors of a column, best first; nothing is written.

    Args:
        data: an Arrow table, a path, or a table object of an engine. A declaration in it is ignored.
        vector: the vector column.
        source: the column that it was made of; by default each text column is tried.
        candidates: embedding functions; by default those that are installed and need no key, host or download.
        sample: rows that are embedded with each candidate.
        seed: selects the rows.
    Returns:
        The candidates that could be tried, best first. If none of them made the vectors, the first guess is "unknown".
    Raises:
        MissingColumnError: there is no such column, or no column of texts. VectorError: it holds no vectors.
        InputError, StorageError: the data cannot be read. ConfigError: invalid arguments.
    """
    refuse_count("sample", sample, 30)
    given, opened = functions.checked(candidates), readable(data)
    names = opened.schema.names
    for name in (vector, source):
        if name is not None and name not in names:
            raise no_column(opened.shown, name, names)
    refuse_type(opened.schema.field(vector).type, vector)
    floats, quantizer = _as_floats(opened, vector)
    texts = [field.name for field in opened.schema if str(field.type) in _TEXTS and not field.name.endswith("_digest")]
    sources = [source] if source is not None else texts[:_MAX_COLUMNS]
    if not sources:
        raise MissingColumnError(
            f"{opened.shown} has no column of texts.", option("--source NAME names another column", "source='name'")
        )
    made: list[Guess] = []
    with unreported():
        for name in sources:
            rows = sampling.draw(floats, vector, name, sample=sample, seed=seed, long_rows=())
            if len(rows):
                width = rows.matrix.shape[1]
                for function in functions.installed(width) if given is None else given:
                    made += _tried(function, rows, name, quantizer)
    made.sort(key=_order)
    if not any(guess.fits for guess in made):
        made.insert(0, Guess(UNKNOWN, source, compared=max((guess.compared for guess in made), default=0)))
    return made


def _as_floats(data: ColumnStore | TableRows, vector: str) -> tuple[Readable, Quantizer | None]:
    """Return data whose vectors are read as floats, and how they were quantised if a declaration records it.

    Raises:
        VectorError: bytes of unknown meaning.
    """
    import pyarrow as pa

    floats, quantizer = read_as_floats(data, declaration_of(data, vector))
    if quantizer is not None and quantizer.known:
        return floats, quantizer
    kind = data.schema.field(vector).type.value_type
    if pa.types.is_integer(kind):
        raise VectorError(
            f"column {vector!r} holds {kind} numbers, and no declaration records which vectors they stand for.",
            "declare how they were quantised: embedreg.attach(data, fn.bind(source, vector, dtype=..., ranges=...))",
        ).for_shell("declare how they were quantised, in Python: embedreg.attach with dtype and ranges")
    return data, None


def _tried(function: EmbeddingFunction, rows: sampling.Rows, source: str, quantizer: Quantizer | None) -> list[Guess]:
    """Compare one function with the sample: the best of its variants."""
    name = functions.described(function)
    try:
        best: Guess | None = None
        for variant, matrix in _variants(function, rows):
            if quantizer is not None:  # the function's vectors as they would be read back once stored
                matrix = quantizer.settled(matrix, quantizer.encode(rows.matrix))
            guess = _compared(name, source, variant, rows, matrix)
            guess = guess if quantizer is None else replace(guess, storage=quantizer.dtype)
            if best is None or (guess.agree, guess.median or 0) > (best.agree, best.median or 0):
                best = guess
            if guess.fits:
                break
    except EmbedregError as exc:  # a candidate that cannot run here is not a candidate
        return [Guess(name, source, problem=str(exc))]
    return [] if best is None else [best]


def _variants(function: EmbeddingFunction, rows: sampling.Rows) -> Iterator[tuple[str | None, np.ndarray]]:
    """Yield ways to call a function, and its vectors: (n, d) float32."""
    made = functions.embedded(function, rows.sources)
    width = rows.matrix.shape[1]
    if made.shape[1] > width:
        yield f"the first {width} of {made.shape[1]} dimensions", made[:, :width]
        return
    if made.shape[1] < width:
        return
    yield None, made
    for role in functions.each_role(function):
        if role != "source":
            yield "as queries", functions.embedded(function, rows.sources, role)
    if (plain := functions.unprompted(function)) is not None:
        yield "without the document prompt", functions.embedded(plain, rows.sources)
    if function.traits.remote or str(rows.sources.type) not in _TEXTS or not _near(unit(rows.matrix), unit(made)):
        return
    vectors, stored = Vectors(function), unit(rows.matrix)
    texts, few = [rows.text(index) for index in range(len(rows))], min(len(rows), 3)
    for prompt in PROMPTS:
        first = vectors.of([prompt + text for text in texts[:few]])
        if (cosines(first, stored[:few]) >= SAME).sum() * 2 > few:
            yield f"with {prompt!r} before each text", vectors.of([prompt + text for text in texts])


def _order(guess: Guess) -> tuple[float, bool, float]:
    """Return the place of a guess; of equal ones, a function as it is comes before a variant of one."""
    share = guess.agree / max(guess.compared, 1)
    return -share, guess.variant is not None, 0.0 if share == 1 or guess.median is None else -guess.median


def _near(stored: np.ndarray, made: np.ndarray) -> bool:
    """Return whether most stored vectors are nearest to the new vector of their own text: the same space."""
    import numpy as np

    return bool(((stored @ made.T).argmax(axis=1) == np.arange(len(stored))).mean() > _MOST)


def _compared(name: str, source: str, variant: str | None, rows: sampling.Rows, made: np.ndarray) -> Guess:
    import numpy as np

    agreement = cosines(unit(rows.matrix), unit(made))
    agrees = agreement >= SAME
    return Guess(
        name,
        source,
        variant,
        compared=len(rows),
        agree=int(agrees.sum()),
        lowest=float(agreement.min()),
        median=float(np.median(agreement)),
        storage=storage_of(rows.matrix, made, agreement),
        fits=bool(agrees.mean() >= _MOST),
    )


def _line(guess: Guess) -> str:
    """Return a guess as one line."""
    name = plain(guess.function, _SHOWN) + (f", {plain(guess.variant, 120)}" if guess.variant else "")
    if guess.problem is not None:
        return f"{name}: not tried: {plain(guess.problem, _SHOWN)}"
    if guess.median is None:
        return f"{name}: none of the candidates made these vectors"
    verdict = "made these vectors" if guess.fits else "did not make these vectors"
    storage = f", {STORAGE[guess.storage]}" if guess.storage else ""
    return (
        f"{name}, of {plain(guess.source, 80)}: {verdict}{storage}: {guess.agree:,} of {guess.compared:,} rows agree, "
        f"cosine {guess.median:.4f} at the median"
    )
