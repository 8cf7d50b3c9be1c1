"""What a declared column is embedded from: a column of the data, or the texts that a template makes of several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.arrow.templates import Template
from embedreg.declaration import templates
from embedreg.declaration.entries import Entry
from embedreg.errors import MissingColumnError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Source", "differs"]


@dataclass(frozen=True)
class Source:
    """The source of a declared column.

    Attributes:
        name: the source column; with a template, that of the rendered texts.
        template: what renders them; None for a plain column.
    """

    name: str
    template: Template | None = None

    @classmethod
    def of(cls, entry: Entry) -> Source:
        """Return the source of a declaration.

        Raises:
            MetadataError: its template is invalid.
        """
        return cls(entry.source_column, templates.stored(entry))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read for it."""
        return (self.name,) if self.template is None else self.template.columns

    def refuse_missing(self, names: list[str], vector: str, shown: str) -> None:
        """Raise `MissingColumnError` if data lacks one of these columns.

        Args:
            names: the columns of the data.
            vector: what is embedded.
            shown: the data's name.
        """
        if self.template is not None:
            self.template.refuse_missing(names, vector)
        elif self.name not in names:
            raise MissingColumnError(
                f"{shown} has no column {self.name!r}, from which {vector!r} is embedded.",
                f"columns: {', '.join(names)}",
            )

    def values(self, batch: Any) -> pa.Array:
        """Return the inputs of a record batch's rows: (n,)."""
        if self.template is None:
            return batch.column(self.name)
        return self.template.render({name: batch.column(name) for name in self.template.columns})

    def stored(self, batch: Any) -> pa.Array | None:
        """Return the texts of a template as they are stored; None without a template, or if there are none."""
        return batch.column(self.name) if self.template is not None and self.name in batch.schema.names else None


def differs(stored: pa.Array | None, rendered: pa.Array) -> np.ndarray:
    """Return the rows whose stored text is not what their template renders now: (n,) bool; none without texts."""
    import numpy as np
    import pyarrow.compute as pc

    if stored is None:
        return np.zeros(len(rendered), bool)
    same = pc.fill_null(pc.equal(stored.cast(rendered.type), rendered), False)
    both_null = pc.and_(pc.is_null(stored), pc.is_null(rendered))
    return ~np.asarray(pc.or_(same, both_null))
