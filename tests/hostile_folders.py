"""Damage to a model's folder: odd files, links, pipes; and an end to a reader that waits for ever."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

RAW = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"[" * 5000, b'{"a":' * 3000, b"\xff\xfe", b'{"hidden_size": 1e999}', b"1" * 5000]),
    st.integers(0, 2**64 - 1).map(lambda size: struct.pack("<Q", size) + b'{"embeddings": {"shape": [1, 4]}}'),
    st.sampled_from(
        [struct.pack("<Q", 10_000) + b"[" * 10_000, struct.pack("<Q", 33) + b'{"embeddings": {"shape": [1, 1e99]}}']
    ),
)


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Fail rather than wait for a pipe, or follow routes without end."""

    def late(*_: object) -> None:
        raise AssertionError("it goes on for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def write(path: Path, content: Any) -> None:
    """Write a JSON file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def damage(root: Path, what: str, name: str, how: Any) -> None:
    """Do one of these things to a model's folder."""
    path, outside = root / name, root.parent / "outside"
    with contextlib.suppress(OSError):
        if what in ("json", "raw") and path.is_dir():
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if what == "json":
            path.write_text(json.dumps(how), "utf-8", "surrogatepass")
        elif what == "raw":
            path.write_bytes(how)
        elif what == "link":
            path.symlink_to(outside / path.name if (outside / path.name).exists() else outside)
        elif what == "dangling":
            path.symlink_to(outside / "nothing")
        elif what == "around":
            path.symlink_to(path.parent, target_is_directory=True)
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
