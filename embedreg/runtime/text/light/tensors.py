"""`Tensors`: the arrays of a model's safetensors files, mapped into memory and not copied.

The safetensors library copies each array, so that the weights would be held twice while a graph is built.
Source: the format's description, https://huggingface.co/docs/safetensors (8 bytes of length, a JSON header, the data).
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.runtime.models import folders
from embedreg.runtime.text.light.settings import Unsupported

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Tensors"]

_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1"}


class Tensors:
    """The arrays of one file by name; read-only.

    Args:
        path: a safetensors file.
    Raises:
        ConfigError: invalid files. Unsupported: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise Unsupported(f"it has no {path.name}")
        header = folders.safetensors_header(path)
        header.pop("__metadata__", None)
        with path.open("rb") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
            # private and writable, as OpenVINO wants its arrays; nothing writes, so that no page is copied
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._entries = dict(_checked(path, header, begin, os.path.getsize(path)))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> np.ndarray:
        """Return an array as stored.

        Raises:
            Unsupported: there is none of this name, or its number type has no numpy form.
        """
        import numpy as np

        if name not in self._entries:
            raise Unsupported(f"its weights have no {name!r}")
        kind, shape, start = self._entries[name]
        if kind not in _KINDS:
            raise Unsupported(f"its weights are in {kind}")
        count = math.prod(shape)
        return np.frombuffer(self._mapped, np.dtype(_KINDS[kind]), count, start).reshape(shape)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array."""
        return {name: shape for name, (_, shape, _) in self._entries.items()}

    def float32(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array of float32 in a shape.

        Raises:
            Unsupported: it has another shape or number type: the library computes in the type of the weights.
        """
        found = self[name]
        if found.shape != shape:
            raise Unsupported(f"{name!r} of its weights has the shape {found.shape}, not {shape}")
        if found.dtype.str != "<f4":
            raise Unsupported(f"its weights are in {found.dtype.name}")
        return found

    def forget(self) -> None:
        """Let the system free the pages of the file that were read; they are read again when they are needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            with contextlib.suppress(OSError, ValueError):
                self._mapped.madvise(mmap.MADV_DONTNEED)


def _checked(
    path: Path, header: dict[str, Any], begin: int, size: int
) -> Iterator[tuple[str, tuple[str, tuple[int, ...], int]]]:
    """Yield the entries of a header, (type, shape, first byte); raise ConfigError for one outside of the file."""
    sizes = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
    for name, entry in header.items():
        try:
            kind, shape, (start, stop) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
            plain = all(type(each) is int and each >= 0 for each in (*shape, start, stop))
        except (KeyError, TypeError, ValueError):
            plain = False
        if not plain or begin + stop > size:
            raise folders.broken(path)
        if kind in sizes and stop - start != math.prod(shape) * sizes[kind]:
            raise folders.broken(path)
        yield name, (kind, shape, begin + start)
