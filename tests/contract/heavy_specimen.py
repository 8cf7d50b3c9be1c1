"""A broken function whose own module imports torch, so that only its tensors give it away."""

import functools

import torch

from tests.contract.specimens import WIDTH, Good


@functools.cache
def weights() -> torch.Tensor:
    """Return tensors, as loading a model would."""
    return torch.zeros(WIDTH, 100_000)


class LoadsTensorsForItsWidth(Good):
    """Loads the weights to measure them."""

    def ndims(self) -> int:
        return int(weights().shape[0])
