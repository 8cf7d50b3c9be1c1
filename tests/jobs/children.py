"""Code that the job tests run in processes that are killed: a job with a function that records its inputs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import embedreg
from embedreg.jobs import embed

__all__ = ["Logged", "embedded", "run", "run_killed_at_sync"]


class Logged(embedreg.TextEmbeddingFunction):
    """Appends each text that it embeds to a file, in one write a call, and takes a while.

    A vector can be computed by hand: the text's length, and its bytes' sum. `before` is what a test wants to happen.
    A multi-vector has one such vector for each word, a sparse vector the length under the index 0.
    """

    traits: ClassVar[embedreg.Traits] = embedreg.Traits(vectors="dense+multi+sparse")

    vectors: str = "dense"
    log: str = ""
    pause_s: float = 0.0
    scale: float = 1.0
    before: ClassVar[Callable[[list[str]], object]] = staticmethod(lambda texts: None)

    @staticmethod
    def runtime_keys() -> list[str]:
        """Neither changes a vector."""
        return ["log", "pause_s"]

    def ndims(self) -> int:
        return 2

    def generate_embeddings(self, texts: Any) -> Any:
        type(self).before(texts)
        if self.log:
            with open(self.log, "ab", buffering=0) as file:
                file.write("".join(f"{text}\n" for text in texts).encode())
        time.sleep(self.pause_s)
        if self.vectors == "multi":
            return [[[len(word), sum(word.encode())] for word in text.split()] for text in texts]
        if self.vectors == "sparse":
            return [{0: len(text)} for text in texts]
        return [
            embedreg.RowError("it says bad") if "bad" in text else [self.scale * len(text), sum(text.encode())]
            for text in texts
        ]


def register() -> None:
    """Register the function, as a user's module does."""
    embedreg.register("logged")(Logged)


def embedded(log: Path) -> list[str]:
    """Return every text that reached the function, in order, without truncated lines and the probe."""
    from embedreg.core.modality import PROBE_TEXT

    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [line for line in lines if line != PROBE_TEXT]


def of_each_kind(log: str, pause_s: float = 0.0) -> list[embedreg.EmbeddingFunctionConfig]:
    """Declare a column of each kind of vectors, of each dtype and of a template; the first records its inputs."""
    first = Logged(log=log, pause_s=pause_s).bind("text", "vector")
    hashing = embedreg.get("hashing").create(dim=8)
    return [
        first,
        *(Logged(vectors=kind).bind("text", kind) for kind in ("multi", "sparse")),
        *(hashing.bind("text", dtype, dtype=dtype) for dtype in ("int8", "ubinary")),
        hashing.bind(template="{id}: {text}", vector="template"),
    ]


def run(src: str, dst: str, log: str, pause_s: float = 0.0, every_kind: bool = False, **options: Any) -> None:
    """Run a job to its end, unless this process is killed."""
    register()
    one = Logged(log=log, pause_s=pause_s).bind("text", "vector")
    embed(src, dst, of_each_kind(log, pause_s) if every_kind else one, **options)


def run_killed_at_sync(number: int, *args: Any, **options: Any) -> None:
    """Run a job and kill this process at its nth sync to the disk.

    All that has to be there before something else is pushed; so these are the moments at which order matters.
    """
    left, sync = [number], os.fsync

    def counting(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    os.fsync = counting
    run(*args, **options)


def run_killed_at_removal(number: int, src: str, dst: str, *args: Any, **options: Any) -> None:
    """Run a job and kill this process before its nth removal after the destination was published."""
    left, target = [number], Path(dst)

    def counting(event: str, _: tuple[Any, ...]) -> None:
        if event in ("os.remove", "os.rmdir") and target.exists():
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(counting)
    run(src, dst, *args, **options)


def run_elsewhere(life_s: float, environment: dict[str, str], *args: Any, **options: Any) -> None:
    """Run a job like a process of another machine, with a lock of the given lifetime: it cannot be checked."""
    from embedreg.jobs import lock
    from embedreg.support import processes

    machine = f"machine of {os.getpid()}"
    processes._boot = lambda: machine  # type: ignore[assignment]
    lock.STALE_S, lock._RENEW_S = life_s, life_s / 5
    os.environ.update(environment)
    run(*args, **options)


def submit_killed(point: str, vendor: str, url: str, src: str, dst: str, **options: Any) -> None:
    """Run a job through a batch API, and kill this process around the creation of a batch.

    Args:
        point: "before" it is sent, "after" its answer is here, or "collected", once its results are read.
    """
    from embedreg.jobs import batches
    from embedreg.runtime.remote import batch_api, batch_calls
    from tests.batches import CONFIGS, KEY

    cls = embedreg.get(vendor)
    embedreg.get_registry().set_var("vendor_key", KEY)
    function = cls.create(**CONFIGS[vendor](url))
    create = type(function.batch_api()).create  # type: ignore[attr-defined]
    collect = batch_calls.collect

    def creating(self: batch_api.BatchApi, tag: str, prepared: Any) -> str:
        if point == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        handle: str = create(self, tag, prepared)
        if point == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return handle

    def collecting(*args: Any) -> Any:
        collect(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    type(function.batch_api()).create = creating  # type: ignore[attr-defined]
    batch_calls.collect = collecting
    embed(src, dst, function.bind("text", "vector"), engine=batches.engine(0.01, 0.0), **options)
