"""How long something may take, in a processor's own time, on whatever machine."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
import unicodedata
from collections.abc import Iterator

USUAL_S = 0.028  # what `_work` takes on a common server processor of 2024, alone on the machine


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise AssertionError if the block takes this process more time than this, on a slower machine in proportion."""
    started = time.process_time()
    yield
    took = time.process_time() - started
    if took >= seconds:  # measured afterwards: the same neighbours that slowed the block slow the comparison
        assert took < seconds * max(1.0, _slowness()), (
            f"{took:.1f} s, and this machine is {_slowness():.1f} times slower"
        )


def _slowness() -> float:
    """Return how many times longer this machine takes than the usual one."""
    return min(_work() for _ in range(5)) / USUAL_S


def _work() -> float:
    """Return the seconds of a fixed piece of the work that reading metadata is."""
    started = time.process_time()
    for _ in range(3):
        text = _text()
        json.loads(text)
        unicodedata.normalize("NFKC", text)
        re.sub(r"[a-z]+", lambda found: found[0].upper(), text)
    return time.process_time() - started


@functools.cache
def _text() -> str:
    return json.dumps(
        [{"name": f"name {number}", "value": "\ufdfa e\u0301 " * 3} for number in range(2000)], ensure_ascii=False
    )
