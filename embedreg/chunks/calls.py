"""`chunk` and `sync`: cut parents whose texts changed, embed the chunks that are new, and write whole parents."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from embedreg.chunks import settings as stored
from embedreg.chunks.child import Child
from embedreg.chunks.cutting import Cutter
from embedreg.chunks.files import FileChild
from embedreg.chunks.running import ChunkReport, OnError, Run
from embedreg.chunks.settings import Settings
from embedreg.chunks.spans import Span
from embedreg.chunks.splitters import named, splitter_of
from embedreg.columns.declare import rebuilt
from embedreg.core.base import EmbeddingFunctionConfig
from embedreg.datasets import places
from embedreg.datasets.sources import Source, open_source
from embedreg.declaration import codec
from embedreg.embedding.table import Progress
from embedreg.errors import ConfigError, InputError, MetadataError, StorageError
from embedreg.inspection.engines import child_of
from embedreg.runtime.vectors import disk
from embedreg.security.grants import path_granted, path_refusal

__all__ = ["chunk", "sync"]

KINDS: tuple[places.Kind, ...] = ("parquet", "arrow", "jsonl", "csv", "lance")
_FILES = (".parquet", ".pq", ".arrow", ".feather")
_made_here: set[tuple[str, str]] = set()  # (child, parent): named by this process's own calls


def chunk(
    data: str | os.PathLike[str],
    child: str | os.PathLike[str],
    declaration: EmbeddingFunctionConfig,
    *,
    key: str,
    source: str = "text",
    splitter: str | Callable[[str], Iterable[Span]] = "sentences",
    size: int | None = None,
    overlap: int | None = None,
    on_error: OnError = "raise",
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    resume: bool = True,
) -> ChunkReport:
    """Cut the texts of parents into chunks, and embed these into a child table; called again, it follows the parents.

    Args:
        data: the parents: a file, folder or pattern that `embedreg.embed` reads, or a Lance table.
        child: one `.parquet` or `.arrow` file, or `DB_DIR/name.lance`.
        declaration: `fn.bind("text", "vector")`: the child's columns of chunk texts and vectors.
        key: the parents' column that identifies them, of integers or texts; the child has it too.
        source: the parents' column of texts.
        splitter: "sentences"; "markdown", by headings, then paragraphs; "tokens", by words; "semchunk", the library of
            that name; a name given to `register_splitter`; "module:function"; or a callable. A callable takes a text
            and returns spans.
        size: the most tokens of a chunk, special tokens and prompt included, as the function counts them; by default
            256, or what the model takes if that is less.
        overlap: the most tokens that neighbours share; by default an eighth of `size`, at most 32.
        on_error: what a chunk that cannot be embedded does: "raise", or leave a "null" vector.
        cache: a file that keeps vectors over runs.
        progress: called with the parents done and in all.
        resume: False discards what an interrupted run left beside a file.
    Raises:
        ConfigError: an unknown splitter, or a size that the model does not take.
        MissingColumnError, InputError: the parents lack a column, a key is null, of another type, or a duplicate.
        StorageError: the child exists and holds no chunks, or it cannot be written. EmbedregError: as `embed_batches`.
    """
    if not isinstance(declaration, EmbeddingFunctionConfig) or declaration.template is not None:
        raise InputError("a declaration of the child's columns is needed.", "fn.bind('text', 'vector')")
    if on_error not in ("raise", "null"):
        raise ConfigError(f"invalid on_error={on_error!r}.", "on_error='raise' or 'null'")
    place, found = Path(os.fspath(child)), _opened(child)
    with _cached(cache):
        cutter = Cutter(declaration.function, splitter_of(splitter), size, overlap)
        made = cutter.settings(_related(os.fspath(data), found.folder), key, source, declaration.vector_column)
        _made_here.add((str(place.absolute()), made.parent))
        run = Run(found, _parents(os.fspath(data)), made, cutter, declaration, on_error, progress)
        return run.run(str(place), resume=resume)


def sync(
    child: str | os.PathLike[str],
    *,
    parent: str | os.PathLike[str] | None = None,
    splitter: str | Callable[[str], Iterable[Span]] | None = None,
    on_error: OnError = "raise",
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> ChunkReport:
    """Bring the chunks of a child up to date with its parents, as its metadata states; embed only changed chunks.

    Args:
        child: as for `chunk`, which made it.
        parent: the parents, if they are not where the metadata states. Metadata is untrusted: parents that this
            process has not named are read only if their path is granted.
        splitter: the callable that cut them, if it is the user's own and not registered.
        on_error, cache, progress: as for `chunk`.
    Raises:
        MetadataError: it is not a child table, or its metadata cannot be read. UntrustedError: a grant is missing, for
            the path of the parents, the splitter or the function. EmbedregError: as `chunk`.
    """
    place, found = Path(os.fspath(child)), _opened(child)
    schema = found.schema()
    settings = None if schema is None else stored.read(schema.metadata, found.shown)
    if schema is None or settings is None:
        raise MetadataError(
            f"{os.fspath(child)!r} is not a table of chunks: it has no metadata {stored.KEY!r}.",
            "make it: embedreg.chunk",
        ).for_shell("make it: embedreg chunk SRC DST")
    entries = {entry.vector_column: entry for entry in codec.entries(schema.metadata)}
    if settings.vector not in entries:
        raise MetadataError(f"{found.shown} declares no function for column {settings.vector!r}.", "embedreg.chunk")
    where = os.fspath(parent) if parent is not None else _stored_parent(settings, place, found.folder)
    with _cached(cache):
        config = rebuilt(entries[settings.vector])
        way = named(settings.splitter, stored=True) if splitter is None else splitter_of(splitter)
        cutter = Cutter(config.function, way, settings.size, settings.overlap)
        related = settings.parent if parent is None else _related(where, found.folder)
        made = cutter.settings(related, settings.key, settings.source, settings.vector)
        return Run(found, _parents(where), made, cutter, config, on_error, progress).run(str(place), resume=True)


def _opened(child: str | os.PathLike[str]) -> Child:
    path = Path(os.fspath(child))
    if (found := child_of(path)) is not None:
        made: Child = found
        return made
    if path.suffix.lower() not in _FILES or path.is_dir() or "://" in os.fspath(child):
        raise StorageError(
            f"chunks cannot be kept in {os.fspath(child)!r}.",
            "name a file, 'chunks.parquet', or a table, 'DB_DIR/chunks.lance'",
        )
    return FileChild(path)


def _parents(data: str) -> Source:
    return open_source(places.find(data, KINDS, remote=True))


def _related(data: str, folder: str) -> str:
    """Return the path of the parents as it is stored."""
    if "://" in data:
        return data
    with contextlib.suppress(ValueError):  # another drive
        return Path(os.path.relpath(os.path.abspath(data), os.path.abspath(folder))).as_posix()
    return os.path.abspath(data)


def _stored_parent(settings: Settings, child: Path, folder: str) -> str:
    """Return the path of the parents that metadata names, if this process named it or it is granted.

    Raises:
        UntrustedError: it is not.
    """
    path = settings.parent if "://" in settings.parent else os.path.normpath(os.path.join(folder, settings.parent))
    if (str(child.absolute()), settings.parent) not in _made_here and not path_granted(path):
        raise path_refusal(
            "the metadata of the chunks names the path of their parents, which has not been granted.", path
        )
    return path


@contextlib.contextmanager
def _cached(cache: str | os.PathLike[str] | None) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if cache is not None:
            stack.enter_context(disk.use(cache))
        yield
