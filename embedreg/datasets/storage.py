"""`Storage`: a folder on any filesystem: this machine, an object store, or any filesystem of fsspec.

Writes are atomic: a rename on this machine, one put on an object store. Paths that are written, renamed or removed are
plain relative names, and on this machine never pass through a link (`support/confined.py`). Sources are read with
`info`, `files` and `open`, which follow links; embedreg's own files with `read`, `listing` and `exists`, which do not.

Over 400 lines: one class, whose methods share the confinement and the conversion of errors.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.errors import ConfigError, EmbedregError, StorageError
from embedreg.security import references
from embedreg.support import confined, processes
from embedreg.support.atomic import sync
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

__all__ = ["AGAIN", "SCRATCH", "File", "Storage", "is_uri"]

SCRATCH = "_embedreg/tmp"  # local files are written here first: same disk, and ignored by readers
_TEMPORARY = "embedreg-"
_CHUNK_BYTES = 8 << 20
_MAX_BYTES = 8 << 20  # of a file that is read at once, unless the caller allows more
AGAIN = "run the same command again to continue where it stopped"
_PLACE = "check the path and its permissions, or write to another place"
_REMEDIES = {
    errno.ENOSPC: f"free some space, and {AGAIN}",
    errno.EDQUOT: f"free some space, and {AGAIN}",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG), _PLACE),
}


def is_uri(path: str) -> bool:
    """Return whether a path is a URI with a filesystem, such as `s3://bucket/key`."""
    return "://" in path


@dataclass(frozen=True)
class File:
    """An entry of a listing.

    Attributes:
        path: relative to the folder, with "/".
        size: in bytes.
        mtime_ns: the time of its last change; None if the filesystem has none.
    """

    path: str
    size: int
    mtime_ns: int | None


@dataclass(frozen=True)
class Storage:
    """A folder: the root of the paths that its methods take.

    It is pickled as its URI and its options, with `$var:` references unresolved. A filesystem object of the caller
    cannot be pickled, since it may hold keys.

    Attributes:
        uri: a local path, or a URI like `s3://bucket/folder`.
        options: for the filesystem's constructor: of pyarrow for `s3`, `gs`, `abfs` and `hdfs`, of fsspec for others.
        filesystem: a pyarrow or fsspec filesystem to use instead; `uri` is then a path in it.
        inner: the part of `uri` that the user did not name: nothing is written through a link in it.
    """

    uri: str
    options: Mapping[str, Any] = field(default_factory=dict)
    filesystem: Any = field(default=None, compare=False, repr=False)
    inner: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if references.holds_credentials(self.uri):
            raise ConfigError(
                "the URI holds a password or a key.",
                "put keys into the environment, or storage_options={'key': '$var:key'}",
            ).for_shell(
                "put keys into the environment, or --storage-option 'key=$var:key' --env key=ENVIRONMENT_VARIABLE"
            )
        for name, value in self.options.items():
            sensitive = references.looks_sensitive(name) or name in ("key", "secret", "token")
            references.refuse_hardcoded(f"storage_options[{name!r}]", value, sensitive=sensitive)

    def __getstate__(self) -> dict[str, Any]:
        if self.filesystem is not None:
            raise ConfigError(
                "a filesystem object cannot be sent to another process.", "pass a URI and storage_options instead"
            )
        names = {reference.name for reference in references.references(dict(self.options))}
        bindings = references.variables.bindings(names)
        return {"uri": self.uri, "options": dict(self.options), "inner": self.inner, "bindings": bindings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        references.variables.adopt(state["bindings"])
        for name in ("uri", "options", "inner"):
            object.__setattr__(self, name, state[name])
        object.__setattr__(self, "filesystem", None)

    # -- paths ------------------------------------------------------------------------------------------------------

    @property
    def local(self) -> Path | None:
        """The folder on this machine; None for any other filesystem."""
        return None if is_uri(self.uri) or self.filesystem is not None else Path(self.uri)

    @property
    def _base(self) -> Path:
        """The folder on this machine that the user named: this one, or one above it."""
        path = Path(self.uri)
        return path.absolute().parents[len(self.inner) - 1] if self.inner else path

    def _at(self, path: str) -> tuple[Path, tuple[str, ...]] | None:
        """Return a name as (root, parts) for `confined`; None for a filesystem other than this machine's.

        Raises:
            StorageError: it is not a plain relative name, on any filesystem.
        """
        inner = confined.parts(path)
        return None if self.local is None else (self._base, (*self.inner, *inner))

    @functools.cached_property
    def _opened(self) -> tuple[FileSystem, str]:
        from pyarrow.fs import FileSystem as ArrowFileSystem
        from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

        if isinstance(self.filesystem, ArrowFileSystem):
            return self.filesystem, self.uri.rstrip("/")
        if self.filesystem is not None:
            return PyFileSystem(FSSpecHandler(self.filesystem)), self.uri.rstrip("/")
        if not is_uri(self.uri):
            return LocalFileSystem(), os.path.abspath(self.uri)
        with self._errors(""):
            return _open(self.uri, references.resolve(dict(self.options), references.variables.lookup))

    @property
    def fs(self) -> FileSystem:
        """The filesystem, opened on first use."""
        return self._opened[0]

    def full(self, path: str) -> str:
        """Return a path in the form that the filesystem expects."""
        root = self._opened[1]
        return f"{root}/{path}" if path else root

    def shown(self, path: str = "") -> str:
        """Return a path as a user would type it."""
        if self.uri == "." and path:
            return path
        return f"{self.uri.rstrip('/')}/{path}" if path else self.uri

    def inside(self, path: str) -> Storage:
        """Return a subfolder."""
        return Storage(self.shown(path), self.options, self.filesystem, (*self.inner, *confined.parts(path)))

    def parent(self) -> Storage:
        """Return the parent folder."""
        head, slash, _ = self.uri.rstrip("/").rpartition("/")
        return Storage(head or slash or ".", self.options, self.filesystem)

    def refuse_for_lance(self) -> None:
        """Raise `ConfigError` if options are given: Lance uses its own client, which would not get them."""
        if (is_uri(self.uri) and self.options) or self.filesystem is not None:
            raise ConfigError(
                "a Lance table at a URI takes its keys from the environment, not from options or a filesystem.",
                "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...",
            )

    # -- reading ----------------------------------------------------------------------------------------------------

    def info(self, path: str = "") -> FileInfo:
        """Return the type, size and time of one path."""
        with self._errors(path):
            return self.fs.get_file_info(self.full(path))

    def files(self, path: str = "") -> list[File]:
        """List the files below a path, at any depth, sorted by path; empty if the folder does not exist."""
        from pyarrow.fs import FileSelector, FileType

        if self.local is not None:
            with self._errors(path):
                return sorted(_walk(self.local, self.local / path), key=lambda file: file.path)
        with self._errors(path):
            found = self.fs.get_file_info(FileSelector(self.full(path), allow_not_found=True, recursive=True))
        start = len(self.full("")) + 1
        return sorted(
            (File(each.path[start:], each.size, each.mtime_ns) for each in found if each.type == FileType.File),
            key=lambda file: file.path,
        )

    def open(self, path: str) -> Any:
        """Open a file for random access.

        Raises:
            StorageError: it cannot be read, or is a pipe or a device, which may be endless.
        """
        with self._errors(path):
            if self.local is not None and not stat.S_ISREG(os.stat(self.full(path)).st_mode):
                raise StorageError(f"{self.shown(path)} is not a regular file.", "save its content to a file first")
            return self.fs.open_input_file(self.full(path))

    def read(self, path: str, limit: int = _MAX_BYTES) -> bytes | None:
        """Return a file's content, at most one byte more than the limit; None if it does not exist.

        Raises:
            StorageError: it cannot be read; on this machine also: it is behind a link, or is not a regular file.
        """
        from pyarrow.fs import FileType

        if (at := self._at(path)) is not None:
            with self._errors(path):
                return confined.read(*at, limit)
        if self.info(path).type != FileType.File:
            return None
        with self._errors(path), self.fs.open_input_stream(self.full(path)) as stream:
            return bytes(stream.read(limit + 1))

    def exists(self, path: str) -> bool:
        """Return whether a name exists, without reading it."""
        from pyarrow.fs import FileType

        if (at := self._at(path)) is not None:
            with self._errors(path):
                return confined.exists(*at)
        return bool(self.info(path).type != FileType.NotFound)

    def listing(self, path: str = "") -> list[File]:
        """List everything below a folder of embedreg, at any depth, sorted by path, without following links.

        An entry that is neither a file nor a folder has the size -1.
        """
        if self.local is None:
            return self.files(path)
        root, inner = self._base, (*self.inner, *(confined.parts(path) if path else ()))
        start = len("".join(f"{part}/" for part in self.inner))
        with self._errors(path):
            found = list(confined.listing(root, inner))
        return sorted(
            (File(each.path[start:], each.size if each.kind == "file" else -1, each.mtime_ns) for each in found),
            key=lambda file: file.path,
        )

    def entry(self, path: str) -> confined.Entry | None:
        """Return the entry of a name on this machine, without following links; None if it does not exist."""
        with self._errors(path):
            return confined.entry(self._base, (*self.inner, *confined.parts(path)))

    def etag(self, path: str) -> str | None:
        """Return the ETag of an object; None if the filesystem has none."""
        if self.local is not None:
            return None
        fsspec = getattr(getattr(self.fs, "handler", None), "fs", None)
        with self._errors(path):
            if fsspec is not None:
                facts: Mapping[Any, Any] = fsspec.info(self.full(path))
            else:
                with self.open(path) as file:
                    facts = file.metadata() or {}
        value = facts.get("ETag") or facts.get(b"ETag")
        return (value.decode() if isinstance(value, bytes) else str(value)).strip('"') if value else None

    # -- writing ----------------------------------------------------------------------------------------------------

    def write(self, path: str, data: bytes, check: Callable[[], object] | None = None) -> None:
        """Write a small file atomically; arguments and errors as `publish`."""
        for left in (2, 1, 0):
            try:
                with self.publish(path, check) as growing, self._errors(path):
                    growing.write_bytes(data)
            except StorageError as exc:  # another run, which is ending, may have removed the empty folder just made
                if self.local is None or not left or not isinstance(exc.__cause__, FileNotFoundError):
                    raise
            else:
                return

    def renew(self, path: str, data: bytes) -> bool:
        """Update the time of a small file, if it exists; return whether it does. On an object store it is rewritten.

        A file that is removed meanwhile stays removed, except on an object store, which has no atomic operation for it.
        """
        if (at := self._at(path)) is not None:
            with self._errors(path):
                return confined.touch(*at)
        there = self.read(path) is not None
        if there:
            self.write(path, data)
        return there

    @contextlib.contextmanager
    def publish(self, path: str, check: Callable[[], object] | None = None) -> Iterator[Path]:
        """Yield a new local path to write to; at the end of the block the file is published atomically as `path`.

        Args:
            check: raises if writing is no longer allowed; called first, and right before the file is published.
        Raises:
            StorageError: it cannot be stored, or the name is a link; an earlier file remains unchanged.
        """
        if self.local is not None:
            with self.scratch_file(check) as growing:
                yield growing
                self.rename(growing, self, path, check)
            return
        self._at(path)
        if check is not None:
            check()
        with tempfile.TemporaryDirectory(prefix=f"{_TEMPORARY}{processes.tag()}-") as folder:
            growing = Path(folder) / "growing"
            yield growing
            if check is not None:
                check()
            self._upload(growing, path, check)

    @contextlib.contextmanager
    def scratch_file(self, check: Callable[[], object] | None = None) -> Iterator[Path]:
        """Yield a new path in the scratch folder of a folder on this machine; a file that remains there is removed."""
        if check is not None:
            check()
        inner = (*self.inner, *confined.parts(SCRATCH))
        with self._errors(SCRATCH):
            confined.make(self._base, inner)
        name = uuid.uuid4().hex
        try:
            yield Path(self.uri, SCRATCH, name)
        finally:
            with contextlib.suppress(OSError):  # the next run removes it
                confined.remove(self._base, (*inner, name))

    def rename(self, growing: Path, target: Storage, path: str, check: Callable[[], object] | None = None) -> None:
        """Move a file from this folder's scratch folder to its final name, in this folder or one above it.

        The next run empties the scratch folder once it has the lock. So a run that was suspended after its last check,
        and continues after it has lost the lock, finds no file to rename.
        """
        old = (*self.inner, *confined.parts(SCRATCH), growing.name)
        new = (*target.inner, *confined.parts(path))
        with target._errors(path):
            if self._base.absolute() != target._base.absolute():
                raise StorageError(f"{self.uri} is not a folder in {target.uri}.", AGAIN)
            sync(growing)
            if check is not None:
                check()
            confined.move(self._base, old, new)

    def move(self, path: str, target: Storage, to: str, check: Callable[[], object]) -> None:
        """Rename a complete file of this folder, of this machine, to a name in this folder or one above it.

        An earlier file of that name is replaced.
        """
        with target._errors(to):
            if self.local is None or self._base.absolute() != target._base.absolute():
                raise StorageError(f"{self.uri} is not a folder in {target.uri}.", AGAIN)
            check()
            old, new = (*self.inner, *confined.parts(path)), (*target.inner, *confined.parts(to))
            confined.move(self._base, old, new)

    def swap(self, folder: str, target: Storage, path: str, check: Callable[[], object]) -> None:
        """Replace a folder of `target` by a subfolder of this one; the old one is moved to scratch, then removed."""
        scratch = (*self.inner, *confined.parts(SCRATCH))
        old = (*scratch, uuid.uuid4().hex)
        new = (*target.inner, *confined.parts(path))
        with target._errors(path):
            check()
            confined.make(self._base, scratch)
            if (there := confined.entry(self._base, new)) is not None:
                (confined.move_folder if there.kind == "folder" else confined.move)(self._base, new, old)
            confined.move_folder(self._base, (*self.inner, *confined.parts(folder)), new)
            if there is not None:
                (confined.remove_tree if there.kind == "folder" else confined.remove)(self._base, old)

    def sweep(self) -> None:
        """Remove incomplete files of killed runs: here, and in this machine's folder of temporary files."""
        self.remove_all(SCRATCH)
        for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
            if processes.is_dead_tag(folder.name.removeprefix(_TEMPORARY).rpartition("-")[0]):
                shutil.rmtree(folder, ignore_errors=True)

    def _upload(self, source: Path, path: str, check: Callable[[], object] | None) -> None:
        """Upload a finished file; an incomplete upload is removed again."""
        size = source.stat().st_size
        try:
            with self._errors(path):
                if not self._has_objects():
                    self.fs.create_dir(self.full(path).rpartition("/")[0], recursive=True)
                with source.open("rb") as file, self.fs.open_output_stream(self.full(path)) as stream:
                    while block := file.read(_CHUNK_BYTES):
                        stream.write(block)
            if (arrived := self.info(path).size) != size:
                raise StorageError(f"{self.shown(path)} was uploaded with {arrived} of {size} bytes.", AGAIN)
        except BaseException:
            with contextlib.suppress(EmbedregError):  # the original error matters more
                if check is not None:
                    check()
                self.remove(path)
            raise

    def _has_objects(self) -> bool:
        """Return whether this is an object store, where names need no folders."""
        return self.fs.type_name in ("s3", "gcs", "abfs")

    def remove(self, path: str) -> None:
        """Remove a file, if it exists; of a link, the link itself.

        Raises:
            StorageError: it is a folder, or a part of the path is a link.
        """
        from pyarrow.fs import FileType

        if (at := self._at(path)) is not None:
            with self._errors(path):
                confined.remove(*at)
        elif self.info(path).type == FileType.File:
            with self._errors(path):
                self.fs.delete_file(self.full(path))

    def remove_all(self, path: str) -> None:
        """Remove a folder and its content, if it exists.

        Raises:
            StorageError: a part of the path is a link.
        """
        from pyarrow.fs import FileType

        if (at := self._at(path)) is not None:
            with self._errors(path):
                confined.remove_tree(*at)
        elif self.info(path).type == FileType.Directory:
            with self._errors(path):
                self.fs.delete_dir(self.full(path))

    def clear(self, keep: str) -> None:
        """Remove everything in this folder except one subfolder.

        Raises:
            StorageError: something cannot be removed.
        """
        if self.local is None:
            for top in sorted({file.path.partition("/")[0] for file in self.files()} - {keep}):
                self.remove(top)
                self.remove_all(top)
            return
        with self._errors(""):
            for entry in confined.children(self._base, self.inner):
                if entry.path != keep:
                    at = (*self.inner, entry.path)
                    (confined.remove_tree if entry.kind == "folder" else confined.remove)(self._base, at)

    def remove_empty(self, path: str = "") -> None:
        """Remove a folder of this machine if it exists, is empty, and was not named by the user."""
        inner = (*self.inner, *(confined.parts(path) if path else ()))
        if self.local is not None and inner:
            confined.remove_empty(self._base, inner)

    def refuse_links(self, path: str) -> None:
        """Raise `StorageError` if a folder on this machine is a link or holds one: some libraries follow them."""
        if (at := self._at(path)) is not None:
            with self._errors(path):
                confined.refuse_links(*at)

    @contextlib.contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Convert a filesystem's error into a `StorageError` that names the path."""
        import pyarrow as pa

        try:
            yield
        except EmbedregError:
            raise
        except (OSError, pa.ArrowException) as exc:
            why = (
                (exc.strerror if isinstance(exc, OSError) else None)
                or str(exc).partition("\n")[0]
                or type(exc).__name__
            )
            hint = _REMEDIES.get(getattr(exc, "errno", None) or 0, AGAIN)
            raise StorageError(f"{self.shown(path)}: {why.rstrip('.')}.", hint) from exc


def _walk(root: Path, folder: Path) -> Iterator[File]:
    # Links to folders are not followed: one of them may lead to its own parent.
    for current, _, names in os.walk(folder, onerror=_unless_absent):
        for name in names:
            path = Path(current, name)
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                stat = path.stat()
                yield File(path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)


def _unless_absent(exc: OSError) -> None:
    if not isinstance(exc, FileNotFoundError):
        raise exc


def _open(uri: str, options: dict[str, Any]) -> tuple[FileSystem, str]:
    """Open the filesystem of a URI: pyarrow's if it has one, else fsspec's."""
    import pyarrow as pa
    from pyarrow import fs as arrow

    scheme, _, rest = uri.partition("://")
    own = {"s3": "S3FileSystem", "gs": "GcsFileSystem", "gcs": "GcsFileSystem", "abfs": "AzureFileSystem"}
    if scheme in own and options and hasattr(arrow, own[scheme]):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if scheme == "s3" and endpoint:  # pyarrow reads it only if no option is passed
            options = {"endpoint_override": endpoint, **options}
        return getattr(arrow, own[scheme])(**options), rest.rstrip("/")
    if not options:
        try:
            opened, path = arrow.FileSystem.from_uri(uri)
            return opened, path.rstrip("/")
        except pa.ArrowInvalid as exc:
            if "Unrecognized filesystem" not in str(exc):  # pyarrow also raises ArrowInvalid for an invalid URI
                raise
    fsspec = attempt_import_or_raise("fsspec")
    try:
        opened, path = fsspec.core.url_to_fs(uri, **options)
    except (ImportError, ValueError) as exc:
        raise StorageError(f"{uri}: {exc}", "check the URI; its filesystem may need a package") from exc
    return arrow.PyFileSystem(arrow.FSSpecHandler(opened)), path.rstrip("/")
