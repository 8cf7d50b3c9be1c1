"""Local functions as authors write them: small torch modules of letters and of pictures; random weights, seeded."""

from __future__ import annotations

import functools
import threading
from typing import Any, ClassVar

import numpy as np

from embedreg import LocalFunction, LocalImageFunction, register

LIMIT = 80


@functools.cache
def letters_class() -> Any:
    """Return the class of the module; torch is imported when it is first used."""
    import torch

    class Letters(torch.nn.Module):
        """The mean over the letters of a text, each mixed with nothing but itself."""

        def __init__(self, dim: int) -> None:
            super().__init__()
            self.letters = torch.nn.Embedding(256, dim)
            self.mix = torch.nn.Linear(dim, dim)

        def forward(self, ids: Any, mask: Any) -> Any:
            hidden = torch.tanh(self.mix(self.letters(ids))) * mask[..., None]
            return hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True)

    return Letters


@register("letter-means")
class LetterMeans(LocalFunction):
    """Texts as the mean of their letters.

    Attributes:
        dim: dimensions of a vector.
        seed: another seed gives other weights.
        query_prompt: text to put before queries.
    """

    dim: int = 24
    seed: int = 0
    query_prompt: str = ""

    loads: ClassVar[list[str]] = []
    batches: ClassVar[list[tuple[int, int]]] = []
    threads: ClassVar[set[str]] = set()

    def ndims(self) -> int:
        return self.dim

    def load(self, device: str) -> Any:
        import torch

        self.loads.append(device)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return letters_class()(self.dim)

    def tokenize(self, model: Any, texts: list[str], role: str) -> Any:
        prompt = self.query_prompt if role == "query" else ""
        return [list((prompt + text).encode()) for text in texts]

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        self.batches.append(tuple(batch["input_ids"].shape))
        self.threads.add(threading.current_thread().name.partition("_")[0])
        return model(batch["input_ids"], batch["attention_mask"])

    def max_tokens(self) -> int:
        return LIMIT


@register("grid-projection")
class GridProjection(LocalImageFunction):
    """Pictures as a random projection of the colours of a 4 x 4 grid."""

    dim: int = 12

    loads: ClassVar[list[str]] = []
    batches: ClassVar[list[tuple[int, ...]]] = []

    def ndims(self) -> int:
        return self.dim

    def load(self, device: str) -> Any:
        import torch

        self.loads.append(device)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, self.dim))

    def prepare(self, model: Any, picture: Any) -> np.ndarray:
        return np.asarray(picture.resize((4, 4)))  # read-only, as PIL gives it

    def forward(self, model: Any, batch: Any) -> Any:
        self.batches.append(tuple(batch.shape))
        return model(batch.float() / 255)
