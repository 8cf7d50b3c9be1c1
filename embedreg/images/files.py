"""Image files on this machine that data names: read only below the folders that are allowed, and only plain files."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from embedreg.errors import RowError
from embedreg.images.allowances import ImagePolicy, not_allowed

__all__ = ["path_of", "read"]

# A drive, or a share of another machine; on other systems than Windows a backslash is a letter like any other.
_WINDOWS = re.compile(r"[a-z]:[\\/]|\\\\", re.IGNORECASE | re.ASCII)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE | re.ASCII)
_CANNOT = {
    errno.ENOENT: "there is no such image file",
    errno.ENOTDIR: "there is no such image file",
    errno.EACCES: "the image file may not be read by this user",
    errno.EPERM: "the image file may not be read by this user",
    errno.ENAMETOOLONG: "the name of the image file is too long",
    errno.ELOOP: "the links to the image file lead in a circle",
    errno.EISDIR: "it is a folder, not an image file",
}


def path_of(text: str, *, windows: bool = os.name == "nt") -> Path:
    """Return the path that a text names: a path as this system writes it, or a `file:` URL.

    Args:
        text: no http(s) URL.
        windows: whether this system's paths are those of Windows.
    Raises:
        RowError: an address of another kind, another machine's file, or a path of another system.
    """
    if text[:5].lower() == "file:":
        text = _path_of_url(text, windows)
    elif not windows and _WINDOWS.match(text):
        raise RowError("the image is named by a path of Windows, which this system does not have")
    elif not _WINDOWS.match(text) and (scheme := _SCHEME.match(text)) and text[scheme.end() :].startswith("//"):
        raise RowError(f"images are not read from {scheme[1].lower()}: addresses")
    elif text[:5].lower() == "data:":
        raise RowError("images are not read from data: addresses; store their bytes")
    if "\0" in text:
        raise RowError("the name of the image holds a null character")
    return Path(text)


def _path_of_url(text: str, windows: bool) -> str:
    """Return the path of a `file:` URL, as RFC 8089 has them."""
    try:
        parts = urlsplit(text)
    except ValueError:
        raise RowError("the image is named by a file: URL that cannot be read") from None
    if parts.netloc.lower() not in ("", "localhost"):
        raise RowError("the image is named by a file: URL of another machine")
    if parts.query or parts.fragment:
        raise RowError("the image is named by a file: URL with a ? or # in it: write them as %3F and %23")
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if windows and re.match(r"/[a-zA-Z]:", path):
        return path[1:].replace("/", "\\")
    if windows and path.startswith("//"):
        raise RowError("the image is named by a file: URL of another machine")
    return path


def read(path: Path, policy: ImagePolicy, *, granted: bool = False) -> bytes:
    """Read an image file.

    A relative path is taken from the working directory; where that leads to no file of an allowed folder, from each
    allowed folder in turn.

    Args:
        path: where it is.
        policy: the folders that are allowed, and how many bytes.
        granted: whether the caller's own user named it, so that it may be anywhere.
    Raises:
        RowError: it is not allowed, not there, no plain file, too large, or cannot be read.
    """
    try:
        return _read(str(path.expanduser()) if granted else _allowed(str(path), policy.dirs), policy.max_bytes)
    except RowError:
        raise
    except (OSError, ValueError, RuntimeError) as exc:  # no name of a file; no home for its ~
        number = getattr(exc, "errno", None)
        raise RowError(_CANNOT.get(number or 0, "the image file cannot be read")) from None


def _allowed(path: str, dirs: tuple[str, ...]) -> str:
    """Return where a path really leads, if that lies in an allowed folder.

    Nothing outside these folders is touched: whether a file is there is nobody's business, and to follow the links of
    a path could already reach for another machine.
    """
    rooted = os.path.isabs(path) or bool(os.path.splitdrive(path)[0])
    places = [path] if rooted else [path, *(os.path.join(folder, path) for folder in dirs)]
    inside = [real for place in places if (real := _inside(os.path.abspath(place), dirs)) is not None]
    for real in inside:
        if os.path.lexists(real):
            return real
    if inside:
        return inside[0]  # reading it says what is wrong
    folder = os.path.dirname(os.path.abspath(path))
    raise not_allowed(f"images may not be read from the folder {folder!r}; allow it: ", "dirs", folder)


def _inside(plain: str, dirs: tuple[str, ...]) -> str | None:
    """Return where an absolute path really leads, if both it and that place lie in one allowed folder."""
    for folder in dirs:
        real = os.path.realpath(folder)
        if (_below(plain, folder) or _below(plain, real)) and _below(found := os.path.realpath(plain), real):
            return found
    return None


def _below(path: str, folder: str) -> bool:
    path, folder = os.path.normcase(path), os.path.normcase(folder)
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _read(path: str, max_bytes: int) -> bytes:
    # Looked at before it is opened, which wakes a device or waits for the other end of a pipe, and once more after.
    _plain_file(os.stat(path))
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb", buffering=0) as file:
        size = _plain_file(os.fstat(handle))
        if size > max_bytes:
            raise RowError(f"the image file has {size:,} bytes, over max_bytes={max_bytes:,}")
        parts, left = [], max_bytes + 1
        while left > 0 and (part := file.read(min(left, 2**20 if size < 2**20 else size + 1))):
            parts.append(part)
            left -= len(part)
    if left <= 0:
        raise RowError(f"the image file has over max_bytes={max_bytes:,} bytes")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _plain_file(found: os.stat_result) -> int:
    if stat.S_ISDIR(found.st_mode):
        raise RowError("it is a folder, not an image file")
    if not stat.S_ISREG(found.st_mode):
        raise RowError("it is a device, a pipe or a socket, not an image file")
    return found.st_size
