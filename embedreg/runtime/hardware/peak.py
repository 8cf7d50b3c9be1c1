"""Measures the machine's rate of matrix products, the limit that a model's speed is compared with."""

from __future__ import annotations

import time
from typing import Any

from embedreg.runtime.hardware import onednn, workers

__all__ = ["matmul_flops"]

SHAPES = ((384, 1536), (768, 3072), (1024, 1024))  # width and height of the weights of small and middling models
_TIMED_S = 0.15  # duration of one timing: long enough for the clock frequency to settle
_ROUNDS = 3


def matmul_flops(device: str = "cpu", dtype: str = "float32", *, stock: bool = False) -> float:
    """Return the best measured rate of matrix products, in FLOP/s, run as the runtime does: on a CPU one worker a core.

    Args:
        device: torch's name of it.
        dtype: "float32", "bfloat16" or "float16".
        stock: use `torch.mm` even if the runtime has a faster product.
    Source: a product of (m, k) and (k, n) takes 2mkn operations.
    """
    import torch

    on_cpu = device == "cpu"
    other = onednn.fastest() if on_cpu and dtype == "float32" and not stock else None
    tokens, threads = (1024, workers.worker_threads()) if on_cpu else (32_768, 1)
    best = 0.0
    for width, height in SHAPES:
        kind = getattr(torch, dtype)
        left = torch.ones(tokens, width, dtype=kind, device=device)
        right = torch.ones(height, width, dtype=kind, device=device)  # the layout of a layer's weights

        def multiply(repeats: int, left: Any = left, right: Any = right) -> None:
            for _ in range(repeats):
                torch.mm(left, right.t()) if other is None else other(left, right, None)
            if left.device.type == "cuda":
                torch.cuda.synchronize(left.device)

        def timed(repeats: int, multiply: Any = multiply) -> float:
            start = time.perf_counter()
            if on_cpu:
                list(workers.run(multiply, [repeats] * threads, threads))
            else:
                multiply(repeats)
            return time.perf_counter() - start

        timed(2)
        repeats = max(2, int(_TIMED_S / max(timed(4) / 4, 1e-6)))
        taken = min(timed(repeats) for _ in range(_ROUNDS))
        best = max(best, threads * repeats * 2.0 * tokens * width * height / taken)
    return best
