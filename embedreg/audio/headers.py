"""The format of a recording by its first bytes, before any decoder sees it, and whether its file is whole."""

from __future__ import annotations

import re
from collections.abc import Iterator

from embedreg.errors import RowError

__all__ = ["format_of", "refuse_cut", "without_tags"]

# The third byte of an MP3's frame: its bit rate and sampling rate, of which 0 and 15, and 3, are not used.
_RATES = re.escape(bytes(each for each in range(0x10, 0xF0) if each & 0x0C != 0x0C))
_FORMATS = (  # what libsndfile would decode by other first bytes is never passed to it
    ("WAV", rb"(RIFF|RF64).{4}WAVE"),
    ("FLAC", rb"fLaC"),
    ("OGG", rb"OggS"),
    ("MP3", rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][" + _RATES + rb"]"),  # the sync word, a version, and layer III
)
_OTHERS = (  # the first bytes of files that are often mistaken for recordings, and their description
    (rb"\s*<(!DOCTYPE html|html|head|body)", "an HTML page, not a recording"),
    (rb"version https://git-lfs", "a pointer to a file in Git LFS, not the file itself"),
    (rb".{4}ftyp", "an MP4 file (M4A, AAC), which is not supported"),
    (rb"\xff[\xf0-\xf1\xf8-\xf9]", "a stream of AAC, which is not supported"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a WMA file, which is not supported"),
    (rb"\x1a\x45\xdf\xa3", "a Matroska or WebM file, which is not supported"),
    (rb"FORM.{4}AIF[FC]", "an AIFF file, which is not supported"),
    (rb"caff", "a CAF file, which is not supported"),
    (rb"\.snd", "an AU file, which is not supported"),
    (rb"#!AMR", "an AMR file, which is not supported"),
    (rb"MThd", "a MIDI file, which holds notes, not sound"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "an image, not a recording"),
)
_TAG = 10  # bytes of the header of an ID3v2 tag, and of its footer
_MAX_TAGS = 8
_PAGE, _LAST = 27, 4  # bytes of the header of an Ogg page, and its flag at the end of a stream
_UNKNOWN = frozenset({0, 0xFFFFFFFF})  # the size of a stream in a WAV file whose writer could not go back


def without_tags(data: bytes) -> bytes:
    """Return a file without the ID3v2 tags in front of it, which hold pictures and texts, and no sound."""
    for _ in range(_MAX_TAGS):
        if data[:3] != b"ID3" or len(data) < _TAG:
            return data
        size = 0
        for part in data[6:_TAG]:
            size = size << 7 | (part & 0x7F)
        footer = _TAG if data[5] & 0x10 else 0
        data = data[_TAG + size + footer :].lstrip(b"\0")  # some writers pad behind the tag too
    raise RowError(f"the recording has more than {_MAX_TAGS} tags")


def format_of(data: bytes, formats: tuple[str, ...]) -> str:
    """Return the format of a recording: "WAV", "FLAC", "MP3" or "OGG".

    Args:
        data: the content, without tags.
        formats: the formats that are allowed.
    Raises:
        RowError: it is of another format, or of one that is not allowed.
    """
    head = data[:1024]
    for name, start in _FORMATS:
        if name in formats and re.match(start, head, re.DOTALL):
            return name
    allowed = ", ".join(formats)
    found = (text for start, text in _OTHERS if re.match(start, head, re.DOTALL | re.IGNORECASE))
    raise RowError(f"it is {next(found, f'not a recording of an allowed format ({allowed})')}")


def refuse_cut(data: bytes, name: str) -> None:
    """Raise if a file ends before its sound does: libsndfile would take what is there of a WAV or Ogg for the whole.

    Raises:
        RowError: it is truncated.
    """
    if name == "WAV":
        for kind, size, left in _chunks(data):
            if kind == b"data" and (size <= left or size in _UNKNOWN):
                return
        raise RowError("the recording is truncated")
    if name == "OGG" and not _ends(data):
        raise RowError("the recording is truncated")


def _ends(data: bytes) -> bool:
    """Return whether the last page of an Ogg file is whole, and that of the end of a stream."""
    page = data.rfind(b"OggS")
    header = data[page : page + _PAGE]
    if len(header) < _PAGE or not header[5] & _LAST:
        return False
    lengths = data[page + _PAGE : page + _PAGE + header[26]]
    return len(lengths) == header[26] and page + _PAGE + header[26] + sum(lengths) <= len(data)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name and stated size of each chunk of a WAV file, and the bytes that are left behind its header."""
    at, long = 12, None
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"ds64" and data[:4] == b"RF64":
            long = int.from_bytes(data[at + 16 : at + 24], "little")
        if kind == b"data" and size == 0xFFFFFFFF and long is not None:
            size = long
        yield kind, size, len(data) - at - 8
        at += 8 + size + size % 2
