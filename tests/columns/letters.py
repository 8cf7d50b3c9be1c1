"""A function whose vectors can be computed by hand and that counts what it embeds, and processes that are killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import embedreg


class Letters(embedreg.TextEmbeddingFunction):
    """The length of a text and its first letter, times a scale; a text "bad" fails. Counts the texts it embeds."""

    scale: float = 1.0
    seen: ClassVar[list[str]] = []

    def ndims(self) -> int:
        return 2

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        from embedreg.core.modality import PROBE_TEXT

        self.seen.extend(text for text in texts if text != PROBE_TEXT)
        return [
            embedreg.RowError("it says bad") if text == "bad" else [len(text), self.scale * ord(text[0])]
            for text in texts
        ]


class Fickle(Letters):
    """Another direction with each call."""

    calls: ClassVar[int] = 0

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        type(self).calls += 1
        return [[1.0, float(self.calls**4 * (-1) ** self.calls)] for _ in texts]


def registered() -> None:
    """Register both functions, with nothing counted."""
    embedreg.register("letters")(Letters)
    embedreg.register("fickle")(Fickle)
    Letters.seen.clear()


def vector_of(text: str | None, scale: float) -> list[float] | None:
    """Return the vector that `Letters` gives a text; None for what it gives none."""
    return [len(text), scale * ord(text[0])] if text and text != "bad" else None


def died(call: Callable[[], object], arm: Callable[[Callable[[], None]], object], step: int) -> bool:
    """Make a call in a child process that is gone at its n-th step; return whether it got that far.

    Args:
        arm: is given what each step has to call, in the child alone.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    count = 0

    def reached() -> None:
        nonlocal count
        count += 1
        if count == step:
            os._exit(9)

    try:
        arm(reached)
        call()
        os._exit(0)
    except BaseException:  # noqa: BLE001  # the child must not go on with the tests
        os._exit(1)
