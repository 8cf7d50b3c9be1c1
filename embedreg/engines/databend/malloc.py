"""Return free memory to the system: by itself glibc keeps, for each thread, what its largest call took."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

__all__ = ["limit_heaps", "trim"]

_ARENA_MAX = -8  # of mallopt, in glibc's malloc.h
_ARENAS = 2
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE = 2**24  # bytes that go back as soon as they are free: more than a chunk's vectors, which come again and again
_KEPT = 2**26  # free bytes at the end of a heap that may stay until `trim`: else each message has fresh pages


@functools.cache
def _libc() -> Any:
    """Return the C library where it is glibc, else None."""
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
    except (OSError, TypeError):
        return None


@functools.cache
def limit_heaps() -> None:
    """Make threads share two heaps of C's malloc; by default glibc creates up to eight per processor."""
    if _libc() is not None:
        _libc().mallopt(_ARENA_MAX, _ARENAS)
        _libc().mallopt(_MMAP_THRESHOLD, _LARGE)
        _libc().mallopt(_TRIM_THRESHOLD, _KEPT)


def trim() -> None:
    """Return the free pages of all heaps to the system."""
    if _libc() is not None:
        _libc().malloc_trim(0)
