"""Access to files below an untrusted folder: plain relative names, no links, regular files only.

A folder may come from anyone: names may lead out of it (`..`, links), and an apparent file may be an endless pipe.
Folders are opened one by one, never through a link, and files are read, renamed or removed relative to the innermost
folder handle, so a link that is swapped in meanwhile has no effect.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedreg.errors import StorageError
from embedreg.support.unicode import is_valid

__all__ = [
    "Entry",
    "children",
    "entry",
    "exists",
    "is_plain",
    "listing",
    "make",
    "move",
    "move_folder",
    "parts",
    "read",
]
__all__ += ["refuse_links", "remove", "remove_empty", "remove_tree", "touch", "write"]

MAX_CHARACTERS = 4096  # of a name: the limit of a path on Linux
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # must not block on a pipe
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LEVELS = 64  # of folders; embedreg never creates a deeper tree


@dataclass(frozen=True)
class Entry:
    """An entry of a folder; links are not followed.

    Attributes:
        path: relative to the folder, with "/".
        kind: "file" for a regular one, "folder", "link", or "other" for a pipe, a socket or a device.
        size: in bytes.
        mtime_ns: the time of its last change.
        inode: its inode number.
    """

    path: str
    kind: str
    size: int
    mtime_ns: int
    inode: int


def parts(name: str) -> tuple[str, ...]:
    """Return the parts of a plain relative name: "a/b" gives ("a", "b").

    Raises:
        StorageError: it is absolute, contains `..`, has an empty part, a drive, a backslash or a control character, is
            invalid Unicode, or too long.
    """
    why = _problem(name)
    if why is not None:
        raise StorageError(
            f"the name {name[:200]!r} cannot be used below a folder: {why}.",
            "use a relative name without '..', backslashes or control characters",
        )
    return tuple(name.split("/"))


def is_plain(name: object) -> bool:
    """Return whether `parts` accepts a name."""
    return isinstance(name, str) and _problem(name) is None


def _problem(name: str) -> str | None:
    if len(name) > MAX_CHARACTERS:
        return f"it has {len(name):,} characters"
    if any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in name):
        return "it holds a control character"
    if not is_valid(name):
        return "it is not valid Unicode"
    if "\\" in name:
        return "it holds a backslash"
    if name.startswith("/") or (name[1:2] == ":" and name[:1].isascii() and name[:1].isalpha()):
        return "it is not relative"
    pieces = name.split("/")
    if ".." in pieces:
        return "it contains '..'"
    return "a part of it is empty" if not {"", "."}.isdisjoint(pieces) else None


# -- folders -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(root: Path, inner: Sequence[str], *, make: bool = False) -> Iterator[int]:
    """Open a folder below a root, never through a link.

    Args:
        make: whether missing folders are created, including the root.
    Raises:
        FileNotFoundError: it does not exist. StorageError: a part of it is a link or not a folder.
    """
    if make:
        root.mkdir(parents=True, exist_ok=True)
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the root is the user's choice and may be a link
    try:
        for number, part in enumerate(inner, 1):
            following = _step(here, part, root.joinpath(*inner[:number]), make)
            os.close(here)
            here = following
        yield here
    finally:
        os.close(here)


def _step(here: int, part: str, path: Path, make: bool) -> int:
    try:
        return os.open(part, _FOLDER, dir_fd=here)
    except FileNotFoundError:
        if not make:
            raise
    except OSError:
        _refuse_non_folder(here, part, path)
        raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(part, dir_fd=here)
    try:
        return os.open(part, _FOLDER, dir_fd=here)
    except OSError:
        _refuse_non_folder(here, part, path)
        raise


def _refuse_non_folder(here: int, part: str, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        kind = _kind(os.lstat(part, dir_fd=here))
        if kind == "link":
            raise _is_link(path)
        if kind != "folder":
            raise StorageError(f"{str(path)!r} is not a folder.", "remove it, or choose another place")


def _is_link(path: Path) -> StorageError:
    return StorageError(
        f"{str(path)!r} is a link: embedreg does not read or write through links below a job's folder.",
        "replace it by a folder or a file, or choose another place",
    )


def _kind(found: os.stat_result) -> str:
    if stat.S_ISREG(found.st_mode):
        return "file"
    if stat.S_ISDIR(found.st_mode):
        return "folder"
    return "link" if stat.S_ISLNK(found.st_mode) else "other"


# -- reading -----------------------------------------------------------------------------------------------------------


def entry(root: Path, inner: Sequence[str]) -> Entry | None:
    """Return the entry of a name, without following links; None if it does not exist."""
    try:
        with _opened(root, inner[:-1]) as folder:
            return _entry("/".join(inner), os.lstat(inner[-1], dir_fd=folder))
    except FileNotFoundError:
        return None


def _entry(path: str, found: os.stat_result) -> Entry:
    return Entry(path, _kind(found), found.st_size, found.st_mtime_ns, found.st_ino)


def exists(root: Path, inner: Sequence[str]) -> bool:
    """Return whether a name exists, even as a dangling link."""
    return entry(root, inner) is not None


def read(root: Path, inner: Sequence[str], limit: int) -> bytes | None:
    """Return the content of a regular file, at most one byte more than the limit; None if it does not exist.

    Raises:
        StorageError: it is a link, a pipe, a device or a folder. OSError: it cannot be read.
    """
    path = root.joinpath(*inner)
    try:
        with _opened(root, inner[:-1]) as folder:
            try:
                handle = os.open(inner[-1], _FILE, dir_fd=folder)
            except FileNotFoundError:
                return None
            except OSError:  # a link, or a socket
                if _kind(os.lstat(inner[-1], dir_fd=folder)) == "link":
                    raise _is_link(path) from None
                raise
    except FileNotFoundError:
        return None
    with open(handle, "rb", closefd=True) as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{str(path)!r} is not a regular file.", "remove it")
        return file.read(limit + 1)


def listing(root: Path, inner: Sequence[str] = ()) -> Iterator[Entry]:
    """Yield everything but folders below a folder, at any depth; links are yielded, not followed.

    Args:
        inner: the folder, below the root; nothing is yielded if it does not exist.
    """
    try:
        with _opened(root, inner) as folder:
            yield from _below(folder, "/".join(inner), _MAX_LEVELS)
    except FileNotFoundError:
        return


def _below(folder: int, path: str, levels: int) -> Iterator[Entry]:
    if levels == 0:
        raise StorageError(f"{path[:200]!r} is nested too deeply.", "remove it, or choose another place")
    with os.scandir(folder) as found:
        names = sorted(each.name for each in found)
    for name in names:
        at = f"{path}/{name}" if path else name
        try:
            entry = _entry(at, os.lstat(name, dir_fd=folder))
            if entry.kind != "folder":
                yield entry
                continue
            inner = os.open(name, _FOLDER, dir_fd=folder)
        except FileNotFoundError:  # removed since it was listed
            continue
        try:
            yield from _below(inner, at, levels - 1)
        finally:
            os.close(inner)


def refuse_links(root: Path, inner: Sequence[str]) -> None:
    """Raise if a folder is a link or contains one, before a library that follows links uses it.

    Raises:
        StorageError: it names the link.
    """
    for entry in listing(root, inner):
        if entry.kind == "link":
            raise _is_link(root / entry.path)


# -- writing -----------------------------------------------------------------------------------------------------------


def make(root: Path, inner: Sequence[str]) -> None:
    """Create a folder and its parents, if they are missing."""
    with _opened(root, inner, make=True):
        pass


def write(root: Path, inner: Sequence[str], data: bytes) -> None:
    """Write a small file atomically; an earlier file is replaced.

    Raises:
        StorageError: the name is a link, a pipe or a folder.
    """
    hidden = (*inner[:-1], f".{inner[-1]}.{uuid.uuid4().hex[:8]}.partial")
    make(root, inner[:-1])
    path = root.joinpath(*hidden)
    try:
        with open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "wb"
        ) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        move(root, hidden, inner)
    except BaseException:
        with contextlib.suppress(OSError):  # the original error matters more
            remove(root, hidden)
        raise


def move(root: Path, old: Sequence[str], new: Sequence[str]) -> None:
    """Rename a file atomically; missing folders are created, and an existing file is replaced.

    Raises:
        StorageError: the new name is a link, a pipe or a folder. FileNotFoundError: the old one does not exist.
    """
    with _opened(root, old[:-1]) as source:
        for _ in range(3):  # another run, which is ending, may remove the empty folder just made
            with contextlib.suppress(FileNotFoundError), _opened(root, new[:-1], make=True) as target:
                with contextlib.suppress(FileNotFoundError):
                    there = _kind(os.lstat(new[-1], dir_fd=target))
                    path = root.joinpath(*new)
                    if there == "link":
                        raise _is_link(path)
                    if there != "file":
                        raise StorageError(f"{str(path)!r} is not a regular file.", "remove it")
                os.lstat(old[-1], dir_fd=source)
                os.replace(old[-1], new[-1], src_dir_fd=source, dst_dir_fd=target)
                os.fsync(target)
                return
        raise FileNotFoundError(2, os.strerror(2), str(root.joinpath(*old)))


def touch(root: Path, inner: Sequence[str]) -> bool:
    """Set the time of a regular file to now; return whether it exists."""
    try:
        with _opened(root, inner[:-1]) as folder:
            if _kind(os.lstat(inner[-1], dir_fd=folder)) != "file":
                return False
            os.utime(inner[-1], dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def remove(root: Path, inner: Sequence[str]) -> None:
    """Remove a file or a link itself, if it exists.

    Raises:
        StorageError: it is a folder, or a part of its path is a link.
    """
    try:
        with _opened(root, inner[:-1]) as folder:
            if _kind(os.lstat(inner[-1], dir_fd=folder)) == "folder":
                path = root.joinpath(*inner)
                raise StorageError(f"{str(path)!r} is a folder, expected a file.", "remove it by hand")
            os.unlink(inner[-1], dir_fd=folder)
    except FileNotFoundError:
        return


def remove_tree(root: Path, inner: Sequence[str]) -> None:
    """Remove a folder and its content, if it exists; links in it are removed, not followed.

    Raises:
        StorageError: it is a link or not a folder. OSError: something in it cannot be removed.
    """
    for left in (2, 1, 0):
        try:
            with _opened(root, inner):
                pass
            with _opened(root, inner[:-1]) as folder:
                shutil.rmtree(inner[-1], dir_fd=folder)
        except FileNotFoundError:
            if not left or not exists(root, inner):
                return
        except OSError as exc:  # another process may have added a file meanwhile
            if exc.errno != errno.ENOTEMPTY or not left:
                raise
        else:
            return


def children(root: Path, inner: Sequence[str] = ()) -> list[Entry]:
    """Return the direct entries of a folder, including folders; empty if it does not exist."""
    found = []
    with contextlib.suppress(FileNotFoundError), _opened(root, inner) as folder:
        for name in sorted(os.listdir(folder)):
            with contextlib.suppress(FileNotFoundError):
                found.append(_entry(name, os.lstat(name, dir_fd=folder)))
    return found


def move_folder(root: Path, old: Sequence[str], new: Sequence[str]) -> None:
    """Rename a folder to a name that must not exist.

    Raises:
        StorageError: the old name is not a folder, or the new one exists.
    """
    with _opened(root, old):
        pass
    with _opened(root, old[:-1]) as source, _opened(root, new[:-1], make=True) as target:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(new[-1], dir_fd=target)
            raise StorageError(f"{str(root.joinpath(*new))!r} exists.", "remove it, or choose another place")
        os.rename(old[-1], new[-1], src_dir_fd=source, dst_dir_fd=target)
        os.fsync(target)


def remove_empty(root: Path, inner: Sequence[str]) -> None:
    """Remove a folder, if it exists and is empty."""
    with contextlib.suppress(OSError, StorageError), _opened(root, inner[:-1]) as folder:
        os.rmdir(inner[-1], dir_fd=folder)
