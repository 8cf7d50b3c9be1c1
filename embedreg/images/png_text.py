"""Remove the text chunks of a PNG file that Pillow would keep: a few kilobytes can hold 64 MiB of compressed text.

No pixel depends on them. The few that may contain an orientation stay: EXIF as ImageMagick writes it, and XMP.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["without_text"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTATIONS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


def without_text(data: bytes) -> bytes:
    """Return a PNG file without its text chunks; of those that may contain an orientation, the first of each stays.

    Data of other formats, and a PNG file without such chunks, are returned unchanged. So is what follows a damaged
    chunk, which the decoder refuses.
    """
    if not data.startswith(_SIGNATURE) or not any(kind in data for kind in _TEXTS):
        return data
    kept = list(_kept(data))
    return data if kept == [(0, len(data))] else b"".join(data[start:stop] for start, stop in kept)


def _kept(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the ranges of bytes that stay, in order."""
    start, at = 0, len(_SIGNATURE)
    seen: set[bytes | None] = set()
    while at + 12 <= len(data):
        kind, size = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4])
        stop = at + 12 + size  # length, type and checksum are 4 bytes each
        if stop > len(data):
            break
        if kind in _TEXTS:
            keyword = next((each for each in _ORIENTATIONS if data.startswith(each, at + 8)), None)
            if keyword is None or keyword in seen:
                yield start, at
                start = stop
            seen.add(keyword)
        at = stop
    yield start, len(data)
