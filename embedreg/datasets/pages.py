"""A folder of PDF files as rows of pages, drawn as images: what `colpali` and other functions of images embed.

Each page is a row of its file's path, its number from 1, and its image. A file that cannot be read is one row, page 0,
whose image is not an image either, so that it is a bad row and not an error of the run.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from embedreg.datasets import files
from embedreg.datasets.formats import Input, Span, Unit, cut
from embedreg.datasets.places import Place
from embedreg.support.forks import ForkSafeLock
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["changed", "inputs", "read", "schema"]

COLUMNS = ("path", "page", "image")
DRAWN = COLUMNS[-1]
DPI = 144
LONGEST = 1536  # pixels of a page's longer side: the models shrink pages to less
MAX_BYTES = 2**28  # of a file
MAX_PAGES = 100_000  # of a file
AT_A_TIME = 16  # pages in memory: an image has about a megabyte

_UNREADABLE = b"%PDF: a page that cannot be drawn"  # `open_image` refuses it as a PDF document
_lock = ForkSafeLock()  # PDFium is not thread-safe


def schema() -> pa.Schema:
    """Return the schema: `path`, `page` from 1, and `image`, a PNG."""
    import pyarrow as pa

    types = (pa.string(), pa.int32(), pa.binary())
    return pa.schema([pa.field(name, kind) for name, kind in zip(COLUMNS, types, strict=True)])


def inputs(place: Place) -> tuple[Input, ...]:
    """Return one input per folder, with one unit per file; its ETag is that of a folder of other files."""
    made = []
    for name, found in files.folders(place).items():
        facts = json.dumps([(file.path, file.size, file.mtime_ns) for file in found])
        units = tuple(
            Unit(number, number + 1, max(_pages(place.storage.full(file.path), file.mtime_ns), 1), file.size)
            for number, file in enumerate(found)
        )
        size = sum(file.size for file in found)
        made.append(Input(name, size, None, hashlib.sha256(facts.encode()).hexdigest(), units))
    return tuple(made)


def changed(place: Place, before: Sequence[Input]) -> list[str]:
    """Return the folders in which a file has changed."""
    return files.changed(place, before)


def read(
    place: Place, path: str, span: Span, columns: Sequence[str] | None, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Read a span of one folder's pages; they are drawn only if `DRAWN` is among the columns."""
    found = files.folders(place).get(path, [])[span.start : span.stop]
    wanted = [name for name in columns or COLUMNS if name in COLUMNS]

    def batches() -> Iterator[pa.RecordBatch]:
        skip = span.skip
        for file in found:
            where = place.storage.full(file.path)
            pages = _pages(where, file.mtime_ns)
            numbers = list(range(1, pages + 1)) or [0]
            for start in range(0, len(numbers), AT_A_TIME):
                some = numbers[start : start + AT_A_TIME]
                # pages before the span are counted and not drawn
                drawn = _drawn(where, some[min(skip, len(some)) :]) if DRAWN in wanted else []
                skip = max(skip - len(some), 0)
                yield _batch(where, some, [b""] * (len(some) - len(drawn)) + drawn, wanted)

    yield from cut(batches(), span, batch_rows)


def _batch(path: str, pages: list[int], images: list[bytes], wanted: list[str]) -> pa.RecordBatch:
    import pyarrow as pa

    columns: dict[str, Any] = dict(zip(COLUMNS, ([path] * len(pages), pages, images), strict=True))
    fields = [schema().field(name) for name in wanted]
    return pa.RecordBatch.from_arrays(
        [pa.array(columns[each.name], each.type) for each in fields], schema=pa.schema(fields)
    )


@functools.lru_cache(maxsize=4096)
def _pages(path: str, mtime_ns: int | None) -> int:
    """Return the number of pages of a file, which a change of its time counts again; 0 if it cannot be read."""
    with _lock:
        document = _opened(path)
        if document is None:
            return 0
        try:
            return min(len(document), MAX_PAGES)
        finally:
            document.close()


def _drawn(path: str, pages: list[int]) -> list[bytes]:
    """Draw pages as PNG files; what cannot be drawn becomes a text with the reason, which is not an image."""
    made = []
    with _lock:
        document = _opened(path) if pages and pages != [0] else None
        try:
            made = [
                b"%PDF: a page that cannot be drawn" if document is None else _png(document, page) for page in pages
            ]
        finally:
            if document is not None:
                document.close()
    return made


def _png(document: Any, page: int) -> bytes:
    try:
        sheet = document[page - 1]
        longest = max(*sheet.get_size(), 1)
        image = sheet.render(scale=min(DPI / 72, LONGEST / longest)).to_pil().convert("RGB")
    except Exception:  # noqa: BLE001 (the file is untrusted, and PDFium's errors are of several kinds)
        return _UNREADABLE
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _opened(path: str) -> Any:
    """Open a document; None if it is too large, damaged or encrypted. The caller holds the lock."""
    pdfium = attempt_import_or_raise("pypdfium2", "pypdfium2", extra="pdf")
    attempt_import_or_raise("PIL.Image", "pillow", extra="images")
    if os.path.getsize(path) > MAX_BYTES:
        return None
    try:
        return pdfium.PdfDocument(path)
    except pdfium.PdfiumError:
        return None
