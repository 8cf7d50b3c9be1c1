"""`content_of`: the bytes of an input that data holds or names, under the policy in effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedreg.errors import RowError
from embedreg.media import fetching, files
from embedreg.media.allowances import ImagePolicy
from embedreg.media.kinds import Kind

__all__ = ["content_of"]


def content_of(value: Any, policy: ImagePolicy, kind: Kind, *, from_query: bool) -> bytes:
    """Return the encoded content of an input.

    Args:
        value: bytes; a Path; a str that names a path, a `file:` URL or an http(s) URL.
        policy: what may be read, and the limits.
        kind: what messages call it, and what a server may send.
        from_query: whether the value comes from the user rather than from data: a Path may then be anywhere.
    Raises:
        RowError: it is too large, not available, or not allowed.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        size = value.nbytes if isinstance(value, memoryview) else len(value)
        if size > policy.max_bytes:
            raise RowError(f"the {kind.noun} has {size:,} bytes, over max_bytes={policy.max_bytes:,}")
        return bytes(value)
    if isinstance(value, Path):
        return files.read(value, policy, kind, granted=from_query)
    if not isinstance(value, str):
        raise RowError(f"a {type(value).__name__} is not {kind.article} {kind.noun}")
    if not value.strip():
        raise RowError(f"the name of the {kind.noun} is blank")
    if fetching.is_url(value):
        return fetching.fetch(value, policy, kind)
    return files.read(files.path_of(value, kind), policy, kind)
