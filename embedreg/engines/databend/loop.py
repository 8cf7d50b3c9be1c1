"""The event loop of all servers of this process, in a thread of its own.

One for all: gRPC's poller writes to the log of every loop but the one whose turn it is.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run"]

T = TypeVar("T")

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: a forked one has no such thread


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the servers' loop, and return its result; called from other threads."""
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            # a daemon: a server that is never shut down must not keep its process
            threading.Thread(target=loop.run_forever, name="embedreg-server", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(work, loop).result()
