"""Why stored vectors disagree with the declared function: each cause is tried on the rows, and named if it fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.columns import cuts
from embedreg.columns.candidates import PROMPTS, Vectors, described, each_role, installed, unprompted
from embedreg.columns.rows import Readable
from embedreg.columns.sampling import Rows, sources_of
from embedreg.columns.vectors import SAME, cosines
from embedreg.core.base import EmbeddingFunction
from embedreg.core.modality import source_modality
from embedreg.core.role import Role

if TYPE_CHECKING:
    import numpy as np

__all__ = ["EDITED", "KINDS", "OTHER_FUNCTION", "OTHER_TEXT", "Cause", "Search"]

KINDS = {
    "edited": "the text was changed after its vector was made",
    "cut": "the vector is that of the text's beginning",
    "text": "the vector is that of the text in another form",
    "form": "the vector is that of the image in another form",
    "prompt": "the vector was made with another prompt",
    "previous": "the vector is of the function before the migration",
    "candidate": "the vector is of another function",
    "foreign": "the row's digest names another function",
    "moved": "the vector is that of another row's text",
    "near": "the vector is near its text's, and no known cause fits",
    "unexplained": "the vector has nothing to do with its text, as far as the declared function goes",
}
"""The kinds of causes, in words."""

GROWN = ("text", "text without something that follows it now")
EDITED = "text changed since (row digest)"
OTHER_TEXT = frozenset({"edited", "cut", "text", "form", "near"})  # the declared function made these, of another text
OTHER_FUNCTION = frozenset({"prompt", "previous", "candidate", "foreign", "unexplained"})
NAMED = 0.95  # share of the disagreeing rows that a cause of all of them explains

_TRIAL = 16  # rows of either kind that a cause is tried on first
_PROMPTED = 4  # rows that each of many prompts is tried on first
_PICTURES = 3  # images, near and apart, that each of many forms is tried on first
_SHIFTED = 8  # rows up and down that a vector may have moved
_LOOKED_AROUND = 4  # rows whose neighbours are embedded
_INFORMATIVE = 20  # rows: among fewer, the nearest text is no evidence of the cause
_SEVERAL = 3  # rows that distinguish a cut from a text that has grown
_CUT_ROWS = 8  # rows in which a cut is looked for

TEXT_FORMS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("text without white space at its ends", str.strip),
    ("text in lower case", str.lower),
    ("text without its final punctuation", lambda text: text.rstrip().rstrip(".!?;:,…")),
    ("text with a full stop added", lambda text: f"{text.rstrip()}."),
    ("text with each run of white space as one blank", lambda text: " ".join(text.split())),
)


@dataclass(frozen=True)
class Cause:
    """A cause of disagreement.

    Attributes:
        kind: a key of `KINDS`.
        label: what exactly, on one line.
        rows: rows of the sample by row number that it explains.
        long_rows: the same of the longest sources.
        share: of all rows that disagree.
        named: whether it explains at least 95% of them, or proves itself otherwise.
    """

    kind: str
    label: str
    rows: int
    long_rows: int
    share: float
    named: bool


class Search:
    """The search for the causes of the disagreeing rows of a sample.

    Args:
        data: the rows by number.
        source: the source column.
        own: the declared function's vectors.
        rows: the whole sample, with m disagreeing rows.
        stored: (n, d) stored vectors of length 1.
        made: (n, d) the declared function's vectors of the same texts, of length 1.
        wrong: (m,) indices of the disagreeing rows.
    """

    def __init__(
        self,
        data: Readable,
        source: str,
        own: Vectors,
        rows: Rows,
        stored: np.ndarray,
        made: np.ndarray,
        wrong: Sequence[int],
    ) -> None:
        self._data, self._source, self._own = data, source, own
        self._rows, self._stored, self._made = rows, stored, made
        self._wrong = list(wrong)
        self._values = {index: rows.value(index) for index in self._wrong}
        self.found: dict[int, tuple[str, str]] = {}
        """index in the sample -> (kind, label)"""

    def run(self, previous: EmbeddingFunction | None, candidates: Sequence[EmbeddingFunction] | None) -> None:
        """Try every cause on the rows that no earlier one explained.

        Args:
            previous: the function before a migration.
            candidates: other functions; None for those that are installed, which are not loaded where every row is near
                its text's new vector, as no other model's are.
        """
        self._moved()
        self._try_forms()
        if self._only_long():
            self._cut()
        self._other_prompts()
        if previous is not None:
            self._try_function("previous", previous)
        if candidates is None:
            some = self._open()
            apart = len(self._rows) < _INFORMATIVE or len(self._near(some)) < len(some)
            candidates = installed(self._stored.shape[1]) if apart else ()
        for candidate in candidates:
            self._try_function("candidate", candidate)
        for prompt in PROMPTS if self._near(self._open()) else ():
            self._try_forms_of("prompt", f"{prompt!r} before each text", prompt.__add__, _PROMPTED)
        self._shifted()
        self._cut()

    def run_forms(
        self,
        forms: Iterable[tuple[str, str, Callable[[Any], Any]]],
        previous: EmbeddingFunction | None,
        candidates: Sequence[EmbeddingFunction] | None,
    ) -> None:
        """Try the causes of inputs that are not texts.

        Args:
            forms: kinds of causes, labels, and what makes another form of an input.
            previous, candidates: as in `run`; none are installed with this library.
        """
        self._moved()
        for kind, others in (("previous", [previous]), ("candidate", candidates or ())):
            for other in others:
                if other is not None and source_modality(other) is source_modality(self._own.function):
                    self._try_function(kind, other)
        for kind, label, form in forms:
            self._try_forms_of(kind, label, form, _PICTURES)
        self._shifted()

    def settle(self, foreign: Sequence[int]) -> None:
        """Label the rows that no cause explained.

        Args:
            foreign: indices of the rows whose digest names another function.
        """
        other = set(foreign)
        near = self._near(self._open())
        for index in self._open():
            if index in other:
                self.found[index] = ("foreign", "made by another function (row digest)")
            elif index in near:
                self.found[index] = ("near", "near its text's vector, no known cause")
            else:
                self.found[index] = ("unexplained", "no known cause")

    def causes(self, uniform: int) -> tuple[Cause, ...]:
        """Return what was found, most rows first.

        Args:
            uniform: the first so many rows are the sample by row number.
        """
        counts = Counter(self.found[index] for index in self._wrong)
        first = Counter(self.found[index] for index in self._wrong if index < uniform)
        total, made = len(self._wrong), []
        for found, rows in counts.most_common():
            named = rows >= NAMED * total or self._proven(found[0], rows)
            made.append(Cause(*found, first[found], rows - first[found], rows / total, named))
        return tuple(made)

    def _proven(self, kind: str, rows: int) -> bool:
        """Return whether vectors were shuffled over the whole: as many fit other sampled texts as that would give."""
        expected = len(self._wrong) * len(self._rows) / max(self._data.rows, 1)
        return kind == "moved" and rows >= 3 and rows >= expected / 2

    # -- trying ------------------------------------------------------------------------------------------------------

    def _open(self) -> list[int]:
        return [index for index in self._wrong if index not in self.found]

    def _try(self, kind: str, label: str, make: Callable[[list[int]], np.ndarray], trial: int = _TRIAL) -> None:
        """Compare a cause's vectors with the stored ones: first on some rows, then, if any fits, on all."""
        rows, near = self._open(), self._near(self._open())
        # of either kind: another function is found in those that are apart, another text in those that are near
        kinds = ([index for index in rows if index in near], [index for index in rows if index not in near])
        some = [index for kind in kinds for index in _spread(kind, trial)]
        rest = [index for index in rows if index not in set(some)]
        for part in (some, rest):
            if not part:
                return
            vectors = make(part)
            fits = (cosines(vectors, self._stored[part]) >= SAME) & vectors.any(axis=1)
            self.found |= {index: (kind, label) for index, fit in zip(part, fits.tolist(), strict=True) if fit}
            if not fits.any():
                return

    def _try_forms_of(self, kind: str, label: str, form: Callable[[Any], Any], trial: int = _TRIAL) -> None:
        """Try the vectors of the sources in another form; a form that is the same, blank or None is skipped."""
        import numpy as np

        def make(part: list[int]) -> np.ndarray:
            made = np.zeros((len(part), self._stored.shape[1]))
            changed = [form(self._values[index]) for index in part]
            pairs = zip(part, changed, strict=True)
            new = [at for at, (index, value) in enumerate(pairs) if not _blank(value) and value != self._values[index]]
            if new:
                made[new] = self._own.of([changed[at] for at in new])
            return made

        self._try(kind, label, make, trial)

    def _try_function(self, kind: str, function: EmbeddingFunction) -> None:
        if function.ndims() == self._stored.shape[1]:
            name = described(function)
            self._try_roles(kind, Vectors(function), {"source": name, "query": f"{name}, as queries"})

    def _try_roles(self, kind: str, vectors: Vectors, labels: Mapping[Role, str]) -> None:
        """Try the vectors of a function in the roles that have a label, if they differ from those of documents."""
        for role in each_role(vectors.function):
            if role in labels:

                def make(part: list[int], role: Role = role) -> np.ndarray:
                    return vectors.of([self._values[index] for index in part], role)

                self._try(kind, labels[role], make)

    # -- causes ------------------------------------------------------------------------------------------------------

    def _moved(self) -> None:
        """Match stored vectors with all sampled texts."""
        import numpy as np

        rows = self._open()
        fits = np.flatnonzero((self._stored[rows] @ self._made.T).max(axis=1) >= SAME)
        self.found |= {rows[at]: ("moved", "vectors of other rows' texts") for at in fits.tolist()}

    def _try_forms(self) -> None:
        for label, form in TEXT_FORMS:
            self._try_forms_of("text", label, form)

    def _only_long(self) -> bool:
        """Return whether all rows that no cause explained are longer than most of those that agree."""
        rows, wrong = self._open(), set(self._wrong)
        agreeing = sorted(len(self._rows.text(index)) for index in range(len(self._rows)) if index not in wrong)
        return bool(rows and agreeing) and min(len(self._values[row]) for row in rows) > agreeing[len(agreeing) // 2]

    def _shifted(self) -> None:
        """Match stored vectors with the texts of rows nearby; a shift that fits some is tried on all."""
        rows = self._open()
        own = self._near(rows)
        rows = [index for index in rows if index not in own][:_LOOKED_AROUND]
        shifts = [shift for shift in range(-_SHIFTED, _SHIFTED + 1) if shift]
        fitting: Counter[int] = Counter()
        for index in rows:
            near = [shift for shift in shifts if 0 <= self._rows.numbers[index] + shift < self._data.rows]
            vectors = self._of_rows([int(self._rows.numbers[index]) + shift for shift in near])
            fitting.update(
                shift for shift, cosine in zip(near, vectors @ self._stored[index], strict=True) if cosine >= SAME
            )
        for shift, _ in fitting.most_common(1):

            def make(part: list[int], shift: int = shift) -> np.ndarray:
                return self._of_rows([int(self._rows.numbers[index]) + shift for index in part])

            self._try("moved", f"vectors of the text {abs(shift)} row(s) {'below' if shift > 0 else 'above'}", make)

    def _of_rows(self, numbers: list[int]) -> np.ndarray:
        """Embed the sources of rows by number; zeros for rows that do not exist or have none."""
        import numpy as np

        made = np.zeros((len(numbers), self._stored.shape[1]))
        inside = [at for at, number in enumerate(numbers) if 0 <= number < self._data.rows]
        taken = self._data.take([numbers[at] for at in inside], [self._source])
        rows = Rows(np.asarray(inside, np.int64), sources_of(taken.column(0)), made)
        values = [rows.value(at) for at in range(len(inside))]
        filled = [(at, value) for at, value in zip(inside, values, strict=True) if not _blank(value)]
        if filled:
            made[[at for at, _ in filled]] = self._own.of([value for _, value in filled])
        return made

    def _other_prompts(self) -> None:
        plain = unprompted(self._own.function)
        if plain is not None:
            self._try_roles("prompt", Vectors(plain), {"source": "without the document prompt"})
        self._try_roles("prompt", self._own, {"query": "embedded as queries"})

    def _near(self, rows: Sequence[int]) -> set[int]:
        """Return the rows whose stored vector is nearer to its own text's new vector than to any other text's."""
        import numpy as np

        if not len(rows):
            return set()
        products = self._stored[list(rows)] @ self._made.T
        own = products[np.arange(len(rows)), list(rows)]
        return {row for row, mine, best in zip(rows, own, products.max(axis=1), strict=True) if mine >= best - 1e-9}

    def _cut(self) -> None:
        """Look for a length that long texts were cut at."""
        for cut in cuts.token_cuts(self._own.function):
            self._try_forms_of("cut", str(cut), cut.applied)
        near = self._near(self._open())
        for index in sorted(near, key=lambda index: -len(self._values[index]))[:_CUT_ROWS]:
            if index in self.found:
                continue
            for cut in cuts.found_in(self._values[index], self._stored[index], self._own):
                self._try_forms_of("cut", str(cut), cut.applied)
        lengths = {found: rows for found, rows in Counter(self.found.values()).items() if found[0] == "cut"}
        if len(lengths) > 1:  # one or two rows of each length: no cut, but texts that have grown
            for index, found in self.found.items():
                if lengths.get(found, _SEVERAL) < _SEVERAL:
                    self.found[index] = GROWN


def _blank(value: Any) -> bool:
    """Return whether a source is missing: null, empty, or only white space."""
    return not value or (isinstance(value, str) and not value.strip())


def _spread(rows: Sequence[int], count: int) -> list[int]:
    """Return at most so many of some rows, evenly spread."""
    return [rows[at * len(rows) // count] for at in range(count)] if len(rows) > count else list(rows)
