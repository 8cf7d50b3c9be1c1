"""A folder on any filesystem: this machine's, an object store, or what fsspec knows.

A name in it appears with its whole content or not at all: by a rename here, by one put on an object store.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg import secrets
from embedreg.errors import ConfigError, EmbedregError, StorageError
from embedreg.imports import attempt_import_or_raise
from embedreg.jobs import processes
from embedreg.writing import sync

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

__all__ = ["AGAIN", "SCRATCH", "File", "Storage", "is_uri"]

SCRATCH = "_embedreg/tmp"  # where local files grow: on the same disk, and in no reader's way
_TEMPORARY = "embedreg-"
_CHUNK_BYTES = 8 << 20
AGAIN = "run the same command again to go on where it stopped"


def is_uri(path: str) -> bool:
    """Say whether a path names a filesystem, as `s3://bucket/key` does."""
    return "://" in path


@dataclass(frozen=True)
class File:
    """A file as a listing shows it.

    Attributes:
        path: relative to the folder, with "/".
        size: in bytes.
        mtime_ns: when it was written, where the filesystem says.
    """

    path: str
    size: int
    mtime_ns: int | None


@dataclass(frozen=True)
class Storage:
    """A folder: the root of the paths that its methods take.

    It travels to other processes as its address and its options, `$var:` references unresolved; a filesystem object
    that a caller brought stays in this process, since it may hold keys.

    Attributes:
        uri: a local path, or an address like `s3://bucket/folder`.
        options: for the filesystem's constructor: pyarrow's own for `s3`, `gs`, `abfs` and `hdfs`, fsspec's for others.
        filesystem: a pyarrow or fsspec filesystem to use instead; `uri` is then a path in it.
    """

    uri: str
    options: Mapping[str, Any] = field(default_factory=dict)
    filesystem: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if secrets.holds_credentials(self.uri):
            raise ConfigError(
                "the address holds a password or a key.",
                "put keys into the environment, or storage_options={'key': '$var:key'}",
            )
        for name, value in self.options.items():
            sensitive = secrets.looks_sensitive(name) or name in ("key", "secret", "token")
            secrets.refuse_hardcoded(f"storage_options[{name!r}]", value, sensitive=sensitive)

    def __getstate__(self) -> dict[str, Any]:
        if self.filesystem is not None:
            raise ConfigError(
                "a filesystem object stays in the process that made it.", "give an address and storage_options instead"
            )
        names = {reference.name for reference in secrets.references(dict(self.options))}
        return {"uri": self.uri, "options": dict(self.options), "bindings": secrets.variables.bindings(names)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        secrets.variables.adopt(state["bindings"])
        for name in ("uri", "options"):
            object.__setattr__(self, name, state[name])
        object.__setattr__(self, "filesystem", None)

    # -- where ------------------------------------------------------------------------------------------------------

    @property
    def local(self) -> Path | None:
        """The folder on this machine; None for any other filesystem."""
        return None if is_uri(self.uri) or self.filesystem is not None else Path(self.uri)

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
            return _open(self.uri, secrets.resolve(dict(self.options), secrets.variables.lookup))

    @property
    def fs(self) -> FileSystem:
        """The filesystem, opened when it is first used."""
        return self._opened[0]

    def full(self, path: str) -> str:
        """Return a path as the filesystem takes it."""
        root = self._opened[1]
        return f"{root}/{path}" if path else root

    def shown(self, path: str = "") -> str:
        """Return a path as a person would type it."""
        if self.uri == "." and path:
            return path
        return f"{self.uri.rstrip('/')}/{path}" if path else self.uri

    def inside(self, path: str) -> Storage:
        """Return a folder of this folder."""
        return Storage(self.shown(path), self.options, self.filesystem)

    def parent(self) -> Storage:
        """Return the folder that holds this one."""
        head, slash, _ = self.uri.rstrip("/").rpartition("/")
        return Storage(head or slash or ".", self.options, self.filesystem)

    def refuse_for_lance(self) -> None:
        """Raise `ConfigError` where options are given that Lance, with a client of its own, would not hear of."""
        if (is_uri(self.uri) and self.options) or self.filesystem is not None:
            raise ConfigError(
                "a Lance table at an address takes its keys from the environment, not from options or a filesystem.",
                "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...",
            )

    # -- reading ----------------------------------------------------------------------------------------------------

    def info(self, path: str = "") -> FileInfo:
        """Look at one path: its type, size and time."""
        with self._errors(path):
            return self.fs.get_file_info(self.full(path))

    def files(self, path: str = "") -> list[File]:
        """List the files below a path, at any depth, sorted by path; none where there is no such folder."""
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
        """Open a file for random access."""
        with self._errors(path):
            return self.fs.open_input_file(self.full(path))

    def read(self, path: str) -> bytes | None:
        """Return a small file's content, or None where there is none."""
        from pyarrow.fs import FileType

        if self.info(path).type != FileType.File:
            return None
        with self._errors(path), self.fs.open_input_stream(self.full(path)) as stream:
            return bytes(stream.read())

    def etag(self, path: str) -> str | None:
        """Return what an object store calls the content's version, where it does."""
        if self.local is not None:
            return None
        fsspec = getattr(getattr(self.fs, "handler", None), "fs", None)
        with self._errors(path):
            if fsspec is not None:
                told: Mapping[Any, Any] = fsspec.info(self.full(path))
            else:
                with self.open(path) as file:
                    told = file.metadata() or {}
        value = told.get("ETag") or told.get(b"ETag")
        return (value.decode() if isinstance(value, bytes) else str(value)).strip('"') if value else None

    # -- writing ----------------------------------------------------------------------------------------------------

    def write(self, path: str, data: bytes) -> None:
        """Write a small file, whole."""
        with self.publish(path) as growing, self._errors(path):
            growing.write_bytes(data)

    def renew(self, path: str, data: bytes) -> bool:
        """Give a small file a new time if it is there; say whether it is. On an object store it is written anew.

        What is removed meanwhile does not come back, but for an object store, which has no step that does both.
        """
        if self.local is None:
            there = self.read(path) is not None
            if there:
                self.write(path, data)
            return there
        with self._errors(path):
            try:
                os.utime(self.local / path)
            except FileNotFoundError:
                return False
        return True

    @contextlib.contextmanager
    def publish(self, path: str) -> Iterator[Path]:
        """Give a new local path to write to; what is there at the end of the block appears under `path`, whole.

        Raises:
            StorageError: it cannot be stored; what stood there before is as it was.
        """
        if self.local is not None:
            with self._errors(path):
                scratch = self.local / SCRATCH
                scratch.mkdir(parents=True, exist_ok=True)
            growing = scratch / uuid.uuid4().hex
            try:
                yield growing
                with self._errors(path):
                    target = self.local / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    sync(growing)
                    growing.replace(target)
                    sync(target.parent)
            finally:
                growing.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix=f"{_TEMPORARY}{processes.tag()}-") as folder:
            growing = Path(folder) / "growing"
            yield growing
            self._upload(growing, path)

    def sweep(self) -> None:
        """Remove what killed runs left half written: here, and where this machine keeps temporary files."""
        self.remove_all(SCRATCH)
        for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
            if processes.is_dead_tag(folder.name.removeprefix(_TEMPORARY).rpartition("-")[0]):
                shutil.rmtree(folder, ignore_errors=True)

    def _upload(self, source: Path, path: str) -> None:
        """Put a finished file in one go; what did not arrive whole is removed again."""
        size = source.stat().st_size
        try:
            with self._errors(path):
                if not self._has_objects():
                    self.fs.create_dir(self.full(path).rpartition("/")[0], recursive=True)
                with source.open("rb") as file, self.fs.open_output_stream(self.full(path)) as stream:
                    while block := file.read(_CHUNK_BYTES):
                        stream.write(block)
            if (arrived := self.info(path).size) != size:
                raise StorageError(f"{self.shown(path)} arrived with {arrived} of {size} bytes.", AGAIN)
        except BaseException:
            with contextlib.suppress(EmbedregError):  # the error that brought us here is the one to show
                self.remove(path)
            raise

    def _has_objects(self) -> bool:
        """Say whether names need no folders, as on an object store."""
        return self.fs.type_name in ("s3", "gcs", "abfs")

    def remove(self, path: str) -> None:
        """Remove a file that may not be there."""
        from pyarrow.fs import FileType

        if self.info(path).type == FileType.File:
            with self._errors(path):
                self.fs.delete_file(self.full(path))

    def remove_all(self, path: str) -> None:
        """Remove a folder that may not be there, with what is in it."""
        from pyarrow.fs import FileType

        if self.local is not None:
            shutil.rmtree(self.local / path, ignore_errors=True)
        elif self.info(path).type == FileType.Directory:
            with self._errors(path):
                self.fs.delete_dir(self.full(path))

    @contextlib.contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Turn a filesystem's error into a `StorageError` that names the path."""
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
            raise StorageError(f"{self.shown(path)}: {why.rstrip('.')}.", AGAIN) from exc


def _walk(root: Path, folder: Path) -> Iterator[File]:
    # Links to folders are not followed: one of them may lead to where it lies.
    for current, _, names in os.walk(folder, onerror=_unless_absent):
        for name in names:
            path = Path(current, name)
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                stat = path.stat()
                yield File(path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)


def _unless_absent(exc: OSError) -> None:
    if not isinstance(exc, FileNotFoundError):
        raise exc


def _open(uri: str, options: dict[str, Any]) -> tuple[FileSystem, str]:
    """Open the filesystem of an address: pyarrow's where it has one, else fsspec's."""
    import pyarrow as pa
    from pyarrow import fs as arrow

    scheme, _, rest = uri.partition("://")
    own = {"s3": "S3FileSystem", "gs": "GcsFileSystem", "gcs": "GcsFileSystem", "abfs": "AzureFileSystem"}
    if scheme in own and options and hasattr(arrow, own[scheme]):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if scheme == "s3" and endpoint:  # which pyarrow reads when it is given no option at all
            options = {"endpoint_override": endpoint, **options}
        return getattr(arrow, own[scheme])(**options), rest.rstrip("/")
    if not options:
        try:
            opened, path = arrow.FileSystem.from_uri(uri)
            return opened, path.rstrip("/")
        except pa.ArrowInvalid as exc:
            if "Unrecognized filesystem" not in str(exc):
                raise
    fsspec = attempt_import_or_raise("fsspec")
    try:
        opened, path = fsspec.core.url_to_fs(uri, **options)
    except (ImportError, ValueError) as exc:
        raise StorageError(f"{uri}: {exc}", "check the address; its filesystem may need a package") from exc
    return arrow.PyFileSystem(arrow.FSSpecHandler(opened)), path.rstrip("/")
