"""The clients of remote services, shared by equal configurations of this process."""

from __future__ import annotations

import os
from collections.abc import Hashable

from embedreg.runtime.cache import ModelCache

__all__ = ["client_key", "clients", "release"]

clients = ModelCache(max_models=32, survives_fork=lambda key: False)
"""API clients by `client_key`, with their connections; an evicted client stays alive while it is in use."""


def client_key(*parts: Hashable) -> Hashable:
    """Return a key for `clients` that is valid in this process only, since connections do not survive a fork."""
    return (os.getpid(), *parts)


def release() -> int:
    """Release every client and its connections; return their number. The next use connects again."""
    return clients.release()
