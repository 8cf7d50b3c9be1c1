"""Read files of this machine that data names, such as images: only regular files below the allowed folders."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from embedreg.errors import RowError
from embedreg.media.allowances import ImagePolicy, not_allowed
from embedreg.media.kinds import IMAGE, Kind

__all__ = ["path_of", "read"]

# A drive letter or a network share; except on Windows a backslash is an ordinary character.
_WINDOWS = re.compile(r"[a-z]:[\\/]|\\\\", re.IGNORECASE | re.ASCII)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE | re.ASCII)
_FOLDER = "it is a folder, not {0.article} {0.file}"
_CANNOT = {
    errno.ENOENT: "there is no such {0.file}",
    errno.ENOTDIR: "there is no such {0.file}",
    errno.EACCES: "the {0.file} may not be read by this user",
    errno.EPERM: "the {0.file} may not be read by this user",
    errno.ENAMETOOLONG: "the name of the {0.file} is too long",
    errno.ELOOP: "the links to the {0.file} form a loop",
    errno.EISDIR: _FOLDER,
}


def path_of(text: str, kind: Kind = IMAGE, *, windows: bool = os.name == "nt") -> Path:
    """Return the path of a text: a path of this system, or a `file:` URL.

    Args:
        text: anything but an http(s) URL.
        kind: what messages call it.
        windows: whether paths are Windows paths.
    Raises:
        RowError: a URL of another scheme, a file of another machine, or a path of another system.
    """
    if text[:5].lower() == "file:":
        text = _path_of_url(text, kind, windows)
    elif not windows and _WINDOWS.match(text):
        raise RowError(f"the {kind.noun} has a Windows path, which this system cannot read")
    elif not _WINDOWS.match(text) and (scheme := _SCHEME.match(text)) and text[scheme.end() :].startswith("//"):
        raise RowError(f"{kind.plural} cannot be read from {scheme[1].lower()}: URLs")
    elif text[:5].lower() == "data:":
        raise RowError(f"{kind.plural} cannot be read from data: URLs; store their bytes")
    if "\0" in text:
        raise RowError(f"the name of the {kind.noun} holds a null character")
    return Path(text)


def _path_of_url(text: str, kind: Kind, windows: bool) -> str:
    """Return the path of a `file:` URL (RFC 8089)."""
    try:
        parts = urlsplit(text)
    except ValueError:
        raise RowError(f"the {kind.noun} has an invalid file: URL") from None
    if parts.netloc.lower() not in ("", "localhost"):
        raise RowError(f"the {kind.noun} has a file: URL of another machine")
    if parts.query or parts.fragment:
        raise RowError(f"the {kind.noun} has a file: URL with a ? or # in it: write them as %3F and %23")
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if windows and re.match(r"/[a-zA-Z]:", path):
        return path[1:].replace("/", "\\")
    if windows and path.startswith("//"):
        raise RowError(f"the {kind.noun} has a file: URL of another machine")
    return path


def read(path: Path, policy: ImagePolicy, kind: Kind = IMAGE, *, granted: bool = False) -> bytes:
    """Read an image file, or a file of another kind.

    A relative path is resolved against the working directory; if that is not a file in an allowed folder, against each
    allowed folder in turn.

    Args:
        path: of the file.
        policy: the allowed folders and the maximum size.
        kind: what messages call it.
        granted: whether the user rather than data named it, so that it may be anywhere.
    Raises:
        RowError: it is not allowed, missing, not a regular file, too large, or cannot be read.
    """
    try:
        found = str(path.expanduser()) if granted else _allowed(str(path), policy.dirs, kind)
        return _read(found, policy.max_bytes, kind)
    except RowError:
        raise
    except (OSError, ValueError, RuntimeError) as exc:  # an invalid file name, or no home directory for ~
        number = getattr(exc, "errno", None)
        raise RowError(_CANNOT.get(number or 0, "the {0.file} cannot be read").format(kind)) from None


def _allowed(path: str, dirs: tuple[str, ...], kind: Kind) -> str:
    """Return the real path, if it is in an allowed folder.

    Nothing outside these folders is accessed: errors must not reveal whether a file exists there, and following the
    links of a path could already contact another machine.
    """
    rooted = os.path.isabs(path) or bool(os.path.splitdrive(path)[0])
    places = [path] if rooted else [path, *(os.path.join(folder, path) for folder in dirs)]
    inside = [real for place in places if (real := _inside(os.path.abspath(place), dirs)) is not None]
    for real in inside:
        if os.path.lexists(real):
            return real
    if inside:
        return inside[0]  # reading it raises the right error
    folder = os.path.dirname(os.path.abspath(path))
    raise not_allowed(f"{kind.plural} may not be read from the folder {folder!r}; allow it: ", "dirs", folder)


def _inside(plain: str, dirs: tuple[str, ...]) -> str | None:
    """Return the real path of an absolute path, if both are in one allowed folder."""
    for folder in dirs:
        real = os.path.realpath(folder)
        if (_below(plain, folder) or _below(plain, real)) and _below(found := os.path.realpath(plain), real):
            return found
    return None


def _below(path: str, folder: str) -> bool:
    path, folder = os.path.normcase(path), os.path.normcase(folder)
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _read(path: str, max_bytes: int, kind: Kind) -> bytes:
    # Checked before it is opened, since opening may wake a device or block on a pipe, and again after.
    _regular_size(os.stat(path), kind)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb", buffering=0) as file:
        size = _regular_size(os.fstat(handle), kind)
        if size > max_bytes:
            raise RowError(f"the {kind.file} has {size:,} bytes, over max_bytes={max_bytes:,}")
        parts, left = [], max_bytes + 1
        while left > 0 and (part := file.read(min(left, 2**20 if size < 2**20 else size + 1))):
            parts.append(part)
            left -= len(part)
    if left <= 0:
        raise RowError(f"the {kind.file} has over max_bytes={max_bytes:,} bytes")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _regular_size(found: os.stat_result, kind: Kind) -> int:
    if stat.S_ISDIR(found.st_mode):
        raise RowError(_FOLDER.format(kind))
    if not stat.S_ISREG(found.st_mode):
        raise RowError(f"it is a device, a pipe or a socket, not {kind.article} {kind.file}")
    return found.st_size
