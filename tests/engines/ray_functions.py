"""Functions whose workers can be watched, held up and killed; Ray's workers import this file to know them."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from embedreg import RowError, TextEmbeddingFunction, Traits, register
from embedreg.images import current_policy
from embedreg.runtime.remote import RemoteTextFunction, Usage, report_usage
from embedreg.security import grants

KEY = "RAY_TEST_KEY"
"""The environment variable that the tests' cluster is started with."""


@register("ray-lengths")
class Lengths(TextEmbeddingFunction):
    """The length of a text, and what its text asks for: the file `log` records who embedded what."""

    log: str | None = None
    api_key: str | None = None
    max_retries: int = 0

    @staticmethod
    def runtime_keys() -> list[str]:
        return ["log"]

    def ndims(self) -> int:
        return 2

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        texts = list(texts)
        self.before(texts)
        if "leak" in texts:
            raise ConnectionError(f"401 for Bearer {self.api_key}")
        return np.array([[len(text), 1] for text in texts], np.float32)

    def before(self, texts: list[str]) -> None:
        """Write down the texts; one line a call is appended in one step, whoever else does the same."""
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write("".join(f"{text}\n" for text in texts))


@register("ray-mortal")
class Mortal(Lengths):
    """Kills the process that embeds a text that ends in "die": the first time, or always."""

    always: bool = False

    def before(self, texts: list[str]) -> None:
        super().before(texts)
        mark = Path(f"{self.log}.died")
        if any(text.endswith("die") for text in texts) and (self.always or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@register("ray-gated")
class Gated(Lengths):
    """Waits for the file `<log>.gate` before it embeds a text that ends in "wait"."""

    def before(self, texts: list[str]) -> None:
        super().before(texts)
        while any(text.endswith("wait") for text in texts) and not Path(f"{self.log}.gate").exists():
            time.sleep(0.05)


@register("ray-choosy")
class Choosy(Lengths):
    """Refuses the row "bad" by its own fault."""

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return [RowError("refused by hand") if text == "bad" else [len(text), 1] for text in texts]


@register("ray-keyed")
class Keyed(Lengths):
    """How long its key is: a worker that cannot read it gives something else."""

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return [[len(self.api_key or ""), 1] for _ in texts]


@register("ray-whereabouts")
class Whereabouts(TextEmbeddingFunction):
    """The process that embeds; a service as far as anybody knows, so no probe is compared."""

    traits: ClassVar[Traits] = Traits(remote=True)
    max_retries: int = 0

    def ndims(self) -> int:
        return 1

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return np.full((len(list(texts)), 1), os.getpid(), np.float32)


@register("ray-drifting")
class Drifting(Whereabouts):
    """Another vector in every process, as from nodes with different weights."""

    traits: ClassVar[Traits] = Traits()

    def ndims(self) -> int:
        return 8

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return np.random.default_rng(os.getpid()).normal(size=(len(list(texts)), 8)).astype(np.float32)


@register("ray-granted")
class Granted(Lengths):
    """How many folders stored metadata, and images in data, may be read from while it embeds."""

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return [[len(grants.granted("paths")), len(current_policy().dirs)] for _ in texts]


@register("ray-hosted")
class Hosted(RemoteTextFunction):
    """A service on loopback, asked for one text at a time; "die" kills the worker once the response is here."""

    host: str = ""
    window_s: float = 60.0
    batch_size: int = 1
    concurrency: int = 2
    max_retries: int = 0
    log: str | None = None

    @staticmethod
    def runtime_keys() -> list[str]:
        return [*RemoteTextFunction.runtime_keys(), "log", "window_s"]

    def ndims(self) -> int:
        return 2

    def budget(self) -> Any:
        """Return the budget of the account, which counts over a shorter period."""
        found = super().budget()
        found.window_s = self.window_s
        return found

    def request(self, batch: list[str]) -> Any:
        asked = urllib.request.Request(self.host, str(os.getpid()).encode())
        with urllib.request.urlopen(asked, timeout=20) as response:
            response.read()
        report_usage(Usage(1, len(batch), len(batch)))
        mark = Path(f"{self.log}.died")
        if self.log is not None and batch[0].endswith("die") and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [[len(text), 1] for text in batch]
