"""Memory that is lent again: never while anything looks at it."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pyarrow as pa

from embedreg.runtime.serving.buffers import KEPT, LARGEST, SMALLEST, BufferPool

D = 64
N = SMALLEST // (4 * D)


def address(matrix: np.ndarray) -> int:
    """Return where a matrix lies."""
    return matrix.__array_interface__["data"][0]


def test_it_is_a_matrix_like_any_other() -> None:
    """It can be filled and summed, and is contiguous."""
    matrix = BufferPool().empty(N, D)
    matrix[:] = 1
    assert (matrix.shape, matrix.dtype, matrix.flags.writeable) == ((N, D), np.float32, True)
    assert matrix.flags.c_contiguous
    assert matrix.sum() == N * D


def test_memory_is_lent_again_when_its_matrix_is_gone() -> None:
    """The next matrix lies where the last one did."""
    blocks = BufferPool()
    matrix = blocks.empty(N, D)
    first = address(matrix)
    del matrix
    assert len(blocks) == 1
    assert address(blocks.empty(N, D)) == first


def test_memory_is_kept_as_long_as_a_slice_looks_at_it() -> None:
    """A row outlives the matrix it was cut from."""
    blocks = BufferPool()
    row = blocks.empty(N, D)[7:8]
    row[:] = 3
    other = blocks.empty(N, D)
    other[:] = 5
    assert row.tolist() == [[3.0] * D]


def test_memory_is_kept_as_long_as_arrow_looks_at_it() -> None:
    """So does an Arrow array, which knows only a buffer."""
    blocks = BufferPool()
    matrix = blocks.empty(N, D)
    matrix[:] = 3
    array = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), D).slice(2, 1)
    del matrix
    gc.collect()
    assert len(blocks) == 0
    blocks.empty(N, D)[:] = 5
    assert array.to_pylist() == [[3.0] * D]
    del array
    assert len(blocks) == 2


def test_memory_that_is_far_too_large_is_not_lent_and_goes() -> None:
    """A small matrix does not hold on to a large block."""
    blocks = BufferPool()
    blocks.empty(8 * N, D)
    assert len(blocks) == 1
    small = blocks.empty(N, D)
    assert len(blocks) == 0
    del small


def test_small_and_huge_matrices_are_the_allocators() -> None:
    """Neither is worth keeping."""
    blocks = BufferPool()
    for n in (0, 1, N - 1, LARGEST // (4 * D) + 1):
        assert blocks.empty(n, D).shape == (n, D)
    assert len(blocks) == 0


def test_what_is_kept_is_bounded() -> None:
    """However many came back at once."""
    blocks = BufferPool()
    many = [blocks.empty(N, D) for _ in range(2 * KEPT)]
    many.clear()
    assert len(blocks) == KEPT


def test_threads_never_share_a_block() -> None:
    """What one thread wrote, it reads."""
    blocks, torn = BufferPool(), []

    def use(mark: int) -> None:
        for _ in range(200):
            matrix = blocks.empty(N, D)
            matrix[:] = mark
            if not (matrix == mark).all():
                torn.append(mark)

    threads = [threading.Thread(target=use, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torn
