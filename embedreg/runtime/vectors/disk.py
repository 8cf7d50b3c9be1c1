"""The vector cache on disk: inputs that an earlier run embedded are read from a file and not computed again.

It is opt-in, and applies to the whole process while it is open, since an engine calls from its own threads. A key is a
digest of the function (configuration and weights), the role and the input; it does not reveal the input.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import itertools
import json
import logging
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.arrow.kind import Read, VectorKind
from embedreg.core import modality
from embedreg.core.base import EmbeddingFunction
from embedreg.core.kinds import kind_of
from embedreg.core.role import Role
from embedreg.declaration import drift
from embedreg.declaration.fingerprint import fingerprint
from embedreg.errors import CallError, EmbedregError
from embedreg.runtime.vectors.cache_file import CacheFile
from embedreg.support.forks import ForkSafeLock

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MAX_BYTES", "VectorCache", "current", "use", "vector_cache"]

log = logging.getLogger("embedreg")

MAX_BYTES = 4 * 2**30  # two and a half million vectors of 384 dimensions
PROBE_BITS = 10  # significant bits of a probe: the others vary with the batch and the processor

_open: list[VectorCache] = []
_lock = ForkSafeLock()
_paused: contextvars.ContextVar[bool] = contextvars.ContextVar("embedreg_cache_paused", default=False)


@contextlib.contextmanager
def use(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Iterator[VectorCache]:
    """Cache the vectors of everything that this process embeds inside the block, and reuse the cached ones.

    Args:
        path: a file on a local disk; created if it does not exist. Several processes may use it at once.
        max_bytes: maximum size; the least recently used vectors are evicted first.
    Raises:
        StorageError: the path is not a cache, is a damaged cache, or cannot be written.
    """
    cache = VectorCache(Path(path), max_bytes)
    with _lock:
        _open.append(cache)
    try:
        yield cache
    finally:
        with _lock:
            _open.remove(cache)
        cache.close()


vector_cache = use  # its name in `embedreg`


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Bypass the cache in this block: this thread neither reads nor writes it."""
    token = _paused.set(True)
    try:
        yield
    finally:
        _paused.reset(token)


def current() -> VectorCache | None:
    """Return the most recently opened cache that is still open, or None."""
    if _paused.get():
        return None
    with _lock:
        return _open[-1] if _open else None


class VectorCache:
    """One open cache, with counts of hits and misses.

    A full disk or a held lock never fails the run: the cache is disabled with one warning.

    Attributes:
        hits: vectors that were read from the file.
        misses: inputs that were not in the file.
        stored: vectors that were added.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self.hits = self.misses = self.stored = 0
        self._lock = ForkSafeLock()
        self._file: CacheFile | None = None
        self._readable = self._writable = True
        self._owners: dict[int, tuple[weakref.ref[EmbeddingFunction], dict[tuple[str, str], bytes | None]]] = {}
        try:
            self._file = CacheFile(path, max_bytes)
        except sqlite3.Error as exc:
            self._give_up(exc)

    @property
    def evicted(self) -> int:
        """Number of evicted vectors."""
        return 0 if self._file is None else self._file.evicted

    def __len__(self) -> int:
        return 0 if self._file is None else len(self._file)

    def __repr__(self) -> str:
        return f"VectorCache({str(self.path)!r}, hits={self.hits}, misses={self.misses}, stored={self.stored})"

    def close(self) -> None:
        """Stop using the file."""
        self._readable = self._writable = False
        if self._file is not None:
            self._file.close()

    def through(
        self,
        function: EmbeddingFunction,
        role: Role,
        ndims: int,
        chunk: Any,
        compute: Callable[[Any], Read],
    ) -> tuple[Read, int]:
        """Return the vectors of a chunk of inputs: hits from the file, misses computed and stored.

        Args:
            chunk: m inputs, none of them null: an Arrow array or a list.
            compute: returns the vectors of some inputs, which of them are valid, and why the others are not.
        Returns:
            What `compute` would return for all of them, and the number of hits.
        """
        import numpy as np

        kinds = _contents(chunk, _takes_text(function, role)) if self._readable else None
        owner = None if kinds is None else self._owner(function, role)
        if kinds is None or owner is None:
            return compute(chunk), 0
        keys, kind = [_key(owner, *content) for content in kinds], kind_of(function)
        found = self._find(keys, kind, ndims)
        missing = [row for row, key in enumerate(keys) if key not in found]
        with self._lock:
            self.hits += len(keys) - len(missing)
            self.misses += len(missing)
        if not found:
            vectors = compute(chunk)
            self._keep(keys, kind, *vectors[:2])
            return vectors, 0
        valid, hits = np.ones(len(keys), bool), [row for row, key in enumerate(keys) if key in found]
        stored, _ = kind.unpacked([found[keys[row]] for row in hits], ndims)
        every = kind.put(kind.empty(len(keys), ndims), hits, stored)
        reasons: dict[int, str] = {}
        if missing:
            some = chunk.take(missing) if hasattr(chunk, "take") else [chunk[row] for row in missing]
            rows, good, why = compute(some)
            every = kind.put(every, missing, rows)
            valid[missing] = good
            reasons = {missing[row]: reason for row, reason in why.items()}
            self._keep([keys[row] for row in missing], kind, rows, good)
        return Read(every, valid, reasons), len(hits)

    # -- the file ---------------------------------------------------------------------------------------------------

    def _find(self, keys: list[bytes], kind: VectorKind, ndims: int) -> dict[bytes, bytes]:
        if self._file is None or not self._readable:
            return {}
        try:
            return _valid(self._file.find(keys, *kind.sizes(ndims)), kind, ndims)
        except sqlite3.Error as exc:
            self._give_up(exc)
            return {}

    def _keep(self, keys: list[bytes], kind: VectorKind, rows: Any, valid: np.ndarray) -> None:
        """Store the vectors of valid rows; a bad row is tried again the next time."""
        if self._file is None or not self._writable:
            return
        packed = zip(keys, kind.packed(rows), valid.tolist(), strict=True)
        try:
            stored = self._file.store({key: data for key, data, good in packed if good})
        except sqlite3.Error as exc:
            self._give_up(exc, writing=True)
        else:
            with self._lock:
                self.stored += stored

    def _give_up(self, exc: sqlite3.Error, writing: bool = False) -> None:
        """Stop using the file, or stop writing to it, and log one warning."""
        with self._lock:
            warned, self._writable = not self._writable, False
            self._readable = self._readable and writing
        if not warned:
            what = "written to" if writing else "used"
            log.warning("the vector cache %s is no longer %s: %s. The run continues.", self.path, what, exc)

    # -- functions --------------------------------------------------------------------------------------------------

    def _owner(self, function: EmbeddingFunction, role: Role) -> bytes | None:
        """Return the digest of a function in a role; None if its vectors cannot be distinguished from another's."""
        try:
            configuration = fingerprint(function)
        except EmbedregError:  # a function that can be used but not be stored
            return None
        address = id(function)  # not by value: instances of a redefined class compare equal
        with self._lock:
            if address not in self._owners:
                reference = weakref.ref(function, lambda _: self._owners.pop(address, None))
                self._owners[address] = reference, {}
            known = self._owners[address][1]
        name = configuration, role
        if name not in known:
            parts = _identity(function, role)
            text = None if parts is None else json.dumps([configuration, role, *parts])
            known[name] = None if text is None else hashlib.blake2b(text.encode(), digest_size=32).digest()
        return known[name]


def _identity(function: EmbeddingFunction, role: Role) -> list[str] | None:
    """Return what distinguishes a function from others of the same configuration, or None.

    This is its model identity. Without one it is the class of a remote function, and the probe's vector of a local one,
    since weights and code may change under the same name.
    """
    cls = type(function)
    home = f"{cls.__module__}:{cls.__qualname__}"
    if (known := function.model_identity()) is not None:
        return [known]
    if function.traits.remote:
        return [home]
    try:
        probe = drift.probe_vector(function, role)
    except CallError:
        raise
    except Exception as exc:  # noqa: BLE001  # the probe is not a valid input for it, so it has no identity
        log.debug("%s is not cached: its probe raises %s", cls.__name__, type(exc).__name__)
        return None
    if (known := function.model_identity()) is not None:  # the probe has downloaded the model
        return [known]
    return None if probe is None else [home, _rounded(kind_of(function).numbers(probe))]


def _rounded(probe: np.ndarray) -> str:
    import numpy as np

    fraction, exponent = np.frexp(probe.astype(np.float64))
    rounded = np.ldexp(np.rint(fraction * 2**PROBE_BITS), exponent - PROBE_BITS) + 0.0  # no negative zero
    return hashlib.blake2b(rounded.astype("<f8").tobytes(), digest_size=32).hexdigest()


def _valid(found: dict[bytes, bytes], kind: VectorKind, ndims: int) -> dict[bytes, bytes]:
    """Drop vectors that no function returns, such as those that are not finite: they are computed again."""
    if not found:
        return found
    good = kind.unpacked(list(found.values()), ndims)[1]
    return found if good.all() else {key: found[key] for key, right in zip(found, good.tolist(), strict=True) if right}


# -- contents ----------------------------------------------------------------------------------------------------------


def _key(owner: bytes, kind: bytes, content: Any) -> bytes:
    return hashlib.blake2b(content, digest_size=32, key=owner, person=kind).digest()


def _takes_text(function: EmbeddingFunction, role: Role) -> bool:
    """Return whether a string is a text to the function, not a path or URL, whose content may change."""
    if role == "query":
        return any(each.by_content for each in modality.modalities(function))
    return modality.source_modality(function).by_content


def _contents(chunk: Any, texts: bool) -> list[tuple[bytes, Any]] | None:
    """Return the kind and the bytes of each input; None if the inputs do not contain their own content.

    Args:
        texts: whether strings are texts. `PIL` images, and files behind paths, are not cached.
    """
    import pyarrow as pa

    if not isinstance(chunk, pa.Array):
        if texts and all(isinstance(value, str) for value in chunk):
            return [(b"text", value.encode("utf-8", "surrogatepass")) for value in chunk]
        return [(b"bytes", value) for value in chunk] if all(isinstance(value, bytes) for value in chunk) else None
    kind = chunk.type
    if texts and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return [(b"text", content) for content in _slices(chunk)]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [(b"bytes", content) for content in _slices(chunk)]
    return None


def _slices(array: Any) -> Iterator[memoryview]:
    """Yield the bytes of each string or binary, without a copy."""
    import numpy as np
    import pyarrow as pa

    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1].tolist()
    view = memoryview(b"" if data is None else data)
    for start, stop in itertools.pairwise(ends):
        yield view[start:stop]
