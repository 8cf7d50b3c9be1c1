"""Attach a declaration to data that has none, after checking on a sample that the function made its vectors."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embedreg.arrow.quantized import FLOATS, QUANTIZED
from embedreg.core import canonical
from embedreg.core.base import EmbeddingFunctionConfig, metric_of
from embedreg.core.kinds import kind_of
from embedreg.declaration import codec, drift, manifest, parquet_footer, templates
from embedreg.embedding import schema as schemas
from embedreg.embedding.column import embed_column
from embedreg.embedding.quantizing import given_values
from embedreg.errors import (
    ConfigError,
    DriftError,
    EmbedregError,
    InputError,
    MetadataError,
    MissingColumnError,
    StorageError,
)
from embedreg.inspection import locate
from embedreg.inspection.engines import Attachable, engine_of
from embedreg.runtime.vectors import disk
from embedreg.support.imports import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Agreement", "attach", "compared", "refuse_other_vectors"]

SAMPLE = 100  # rows: finds a share of 1/30 of other vectors with a probability of 97%
PIECES = 32  # row groups in a sample; each is read from its start
BATCH_ROWS = 4096


@dataclass(frozen=True)
class Agreement:
    """The result of comparing stored vectors with a function's vectors for the same rows.

    Attributes:
        rows: number of rows in the data.
        compared: number of rows in the sample; each has a source and a vector.
        lowest, median: cosines of stored and new vectors, -1 to 1.
        written: the path that now holds the declaration; None if the data already had it.
    """

    rows: int
    compared: int
    lowest: float
    median: float
    written: Path | None


def attach(
    data: str | os.PathLike[str], declaration: EmbeddingFunctionConfig, *, sample: int = SAMPLE, seed: int = 0
) -> Agreement:
    """Declare which function made the vectors of data, after embedding a sample of its rows again.

    For a Parquet file or a Lance table it is written into the schema, for a folder into the manifest. No vector is
    changed, and the declarations of other columns stay.

    Args:
        data: the path of a Parquet file, a folder of them, or a `.lance` folder.
        declaration: the function and its columns: `fn.bind("text", "vector")`.
        sample: how many rows to embed; all if there are fewer.
        seed: selects the rows.
    Returns:
        The agreement of the sample.
    Raises:
        DriftError: stored and new vectors differ. MetadataError: the column has another declaration.
        MissingColumnError, VectorError: there is no such column, or it has another width.
        InputError: no row can be compared. StorageError: the data cannot be read or written.
    """
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
        raise ConfigError(f"invalid sample={sample!r}; expected a number of rows, 1 or more.", f"sample={SAMPLE}")
    found = _open(Path(data))
    if (template := templates.of(declaration)) is not None:
        template.refuse_missing(found.schema.names, declaration.vector_column)
        if declaration.source_column not in found.schema.names:
            raise MissingColumnError(
                f"{str(data)!r} has no column {declaration.source_column!r}, where the texts of the template are kept.",
                "add it, with the texts that were embedded",
            )
    for column in (declaration.source_column, declaration.vector_column):
        if column not in found.schema.names:
            hint = f"{did_you_mean(column, found.schema.names)}columns: {', '.join(found.schema.names)}"
            raise MissingColumnError(f"{str(data)!r} has no column {column!r}.", hint)
    entry = locate.functions_in(found.path).entries.get(declaration.vector_column)
    known = entry is not None and _says(declaration, entry)
    if entry is not None and not known:
        raise MetadataError(
            f"column {declaration.vector_column!r} is declared already, as filled from {entry.source_column!r} by "
            f"{entry.name!r} in another configuration.",
            "`embedreg inspect` shows it; take the entry out of the metadata first if it is wrong",
        )
    cosines, rows = _compare(found, declaration, sample, seed)
    refuse_other_vectors(cosines, rows, declaration)
    written = None
    if not known:
        drift.learn(declaration.function, {})
        kind = found.schema.field(declaration.vector_column).type
        typed = EmbeddingFunctionConfig(
            source_column=declaration.source_column,
            vector_column=declaration.vector_column,
            function=declaration.function,
            value_type=_value_type(declaration, kind),
            template=declaration.template,
            ranges=declaration.ranges,
        )
        written = found.declare(codec.encode([typed], found.declared()))
    import numpy as np

    return Agreement(found.rows, len(cosines), float(cosines.min()), float(np.median(cosines)), written)


def _value_type(declaration: EmbeddingFunctionConfig, kind: pa.DataType) -> str | None:
    """Return the type of a column's values, which for integers only the declaration records."""
    name = schemas.value_name(kind_of(declaration.function).value_type(kind))
    return declaration.value_type if declaration.value_type in QUANTIZED else name if name in FLOATS else None


def _says(declaration: EmbeddingFunctionConfig, entry: codec.Entry) -> bool:
    same = declaration.source_column == entry.source_column and codec.says_same(declaration, entry)
    return same and declaration.template == entry.reserved.get(templates.KEY)


# -- comparing ---------------------------------------------------------------------------------------------------------


def _compare(
    data: Attachable, declaration: EmbeddingFunctionConfig, sample: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Embed a sample again and compare it, as `compared`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    source, vector = declaration.source_column, declaration.vector_column
    pieces = [data.schema.empty_table().select([source, vector])]
    for piece in data.sample([source, vector], sample, seed):
        pieces.append(piece.filter(pc.and_(piece[source].is_valid(), piece[vector].is_valid())))
    rows = pa.concat_tables(pieces, promote_options="permissive")
    rows = rows.take(np.random.default_rng(seed).permutation(len(rows))[:sample]).combine_chunks()
    found = compared(declaration, rows[source].combine_chunks(), rows[vector].combine_chunks())
    if not len(found[0]):
        raise InputError(
            f"no row of {str(data.path)!r} has both {source!r} and {vector!r}, so nothing can be compared.",
            "embed it: embedreg embed",
        )
    return found


def compared(declaration: EmbeddingFunctionConfig, source: pa.Array, vector: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Embed rows again: (m,) cosines with their vectors, and (m,) relative differences of the lengths.

    The cosine is -1 for a row without a new vector; rows with a blank source are left out.

    Args:
        source, vector: (n,) inputs and vectors, without nulls.
    Raises:
        VectorError: the vectors have another width. EmbedregError: as `embed_column`.
    """
    import numpy as np
    import pyarrow as pa

    with disk.paused():  # the cache must not return stored vectors
        made = embed_column(declaration.function, source, zero_vectors="keep")
    blank = ~made.valid
    blank[list(made.reasons)] = False
    one = vector.combine_chunks() if isinstance(vector, pa.ChunkedArray) else vector
    kind, quantizer = made.kind, codec.quantizer(declaration)
    if quantizer is None:
        stored, _, broken = kind.given(one, declaration.function.ndims(), declaration.vector_column)
    else:
        given, broken, _ = given_values(one, quantizer, declaration.vector_column)
        made.matrix, stored = quantizer.settled(made.matrix, given.matrix), quantizer.decode(given.matrix)
    cosines, lengths = kind.agreements(made.vectors, stored)
    longest = np.maximum(*lengths)
    cosines[[*made.reasons, *broken]] = -1
    return cosines[~blank], (np.abs(lengths[0] - lengths[1]) / np.where(longest > 0, longest, 1))[~blank]


def refuse_other_vectors(cosines: np.ndarray, lengths: np.ndarray, declaration: EmbeddingFunctionConfig) -> None:
    """Raise `DriftError` if a function returns other vectors than those compared, see `compared`."""
    import numpy as np

    name = canonical.persisted_name(declaration.function)
    other = cosines < drift.PROBE_COSINE
    if other.any():
        raise DriftError(
            f"{int(other.sum())} of {len(cosines)} sampled rows have other vectors than {name!r} returns: cosine "
            f"{cosines.min():.4f} at the lowest, {np.median(cosines):.4f} at the median.",
            "another model, setting or prompt made them, or the texts were changed since; embed the data again with "
            "`embedreg embed`",
        )
    longer = lengths > drift.PROBE_LENGTH
    if metric_of(declaration.function) != "cosine" and longer.any():
        raise DriftError(
            f"{int(longer.sum())} of {len(cosines)} sampled rows have vectors of another length than {name!r} returns: "
            f"by {lengths.max():.1%} at the most.",
            "were they normalized? see the function's settings: embedreg functions",
        )


# -- data --------------------------------------------------------------------------------------------------------------


def _open(path: Path) -> Attachable:
    if (engine := engine_of(path)) is not None:
        return engine.attachable(path)
    if path.is_dir():
        return _Folder(path)
    if not path.is_file():
        raise StorageError(f"there is no file or folder {str(path)!r}.", "check the path")
    with path.open("rb") as file:
        if file.read(4) != parquet_footer.MAGIC:
            raise StorageError(
                f"{str(path)!r} is not a Parquet file.", "a Parquet file, a folder of them or a Lance table can declare"
            )
    return _Parquet(path)


class _Parquet:
    """A Parquet file with declarations in its footer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = self._data_files()
        self._pieces = [(file, group, rows) for file in self._files for group, rows in enumerate(_groups(file))]
        self.schema = _schema(self._files[0])
        self.rows = sum(rows for *_, rows in self._pieces)

    def _data_files(self) -> list[Path]:
        return [self.path]

    def sample(self, columns: list[str], rows: int, seed: int) -> Iterator[pa.Table]:
        import numpy as np
        import pyarrow.parquet as pq

        generator = np.random.default_rng(seed)
        pieces = [piece for piece in self._pieces if piece[2]]
        # one row group from each stretch, to spread the sample over the data for any seed
        edges = np.linspace(0, len(pieces), min(len(pieces), PIECES, rows) + 1).astype(int)
        for first, last in itertools.pairwise(edges.tolist()):
            file, group, count = pieces[generator.integers(first, last)]
            start = int(generator.integers(0, max(1, count - rows)))
            with _read_errors(file), pq.ParquetFile(file) as opened:
                if missing := [name for name in columns if name not in opened.schema_arrow.names]:
                    raise MissingColumnError(f"{str(file)!r} has no column {missing[0]!r}.", "check the folder's files")
                yield _some(opened.iter_batches(BATCH_ROWS, [group], columns), start, rows, generator)

    def declared(self) -> list[codec.Entry]:
        return codec.entries(locate.file_schema(self.path)[0])

    def declare(self, text: bytes) -> Path:
        parquet_footer.write_metadata(self.path, {codec.KEY.encode(): text})
        return self.path


class _Folder(_Parquet):
    """A folder of Parquet files with declarations in its manifest; those in the files are ignored."""

    def _data_files(self) -> list[Path]:
        files = locate.data_files(self.path, (".parquet", ".pq"))
        if not files:
            raise StorageError(f"the folder {str(self.path)!r} holds no Parquet file.", "check the path")
        return files

    def declared(self) -> list[codec.Entry]:
        text = manifest.read(self.path)
        return [] if text is None else codec.entries({codec.KEY: text})

    def declare(self, text: bytes) -> Path:
        return manifest.write(self.path, text)


def _some(batches: Iterator[pa.RecordBatch], start: int, rows: int, generator: np.random.Generator) -> pa.Table:
    """Return rows of the batch that holds row `start`, in random order; earlier batches are skipped."""
    import pyarrow as pa

    seen = 0
    for batch in batches:
        seen += batch.num_rows
        if seen > start:
            return pa.Table.from_batches([batch]).take(generator.permutation(batch.num_rows)[: 4 * rows])
    raise StorageError("a row group holds fewer rows than its file records.", "is the Parquet file complete?")


def _groups(file: Path) -> list[int]:
    import pyarrow.parquet as pq

    with _read_errors(file):
        footer = pq.read_metadata(file)
    return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]


@contextlib.contextmanager
def _read_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except EmbedregError:
        raise
    except (OSError, ValueError) as exc:  # Arrow's errors are subclasses of these
        problem = str(exc).partition("\n")[0]
        raise StorageError(f"{str(file)!r} cannot be read: {problem}", "is the Parquet file complete?") from exc


def _schema(file: Path) -> pa.Schema:
    import pyarrow.parquet as pq

    with _read_errors(file):
        return pq.read_schema(file)
