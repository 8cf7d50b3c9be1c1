"""The picture pipeline: whole batches, bad rows alone, bounded memory, the same vectors on every way through it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import embedreg
from embedreg.errors import RowError
from embedreg.runtime import progress
from embedreg.runtime.hardware import workers
from embedreg.runtime.image import execute
from embedreg.runtime.image.execute import embed_picture, embed_pictures
from tests.tiny_clip import jpeg, png

NDIMS = 3


class Means:
    """A model by hand: a picture's mean colours. It records how it was used."""

    def __init__(self, device: str = "cpu", side: int | None = None) -> None:
        self.device, self.side = device, side
        self.batches: list[int] = []
        self.sizes: set[tuple[int, int]] = set()
        self.threads: dict[str, set[int]] = {"prepare": set(), "forward": set()}
        self.torch_threads: set[int] = set()
        self.alive = self.most = 0
        self.lock = threading.Lock()

    def prepare(self, picture: Image.Image) -> np.ndarray:
        self.threads["prepare"].add(threading.get_ident())
        self.sizes.add(picture.size)
        if picture.getpixel((0, 0)) == (1, 2, 3):
            raise RowError("it is the colour of nothing")
        made = np.asarray(picture.resize((8, 8)), np.float32)
        with self.lock:
            self.alive += 1
            self.most = max(self.most, self.alive)
        weakref.finalize(made, self.gone)
        return made

    def gone(self) -> None:
        with self.lock:
            self.alive -= 1

    def forward(self, batch: Any) -> Any:
        self.threads["forward"].add(threading.get_ident())
        self.torch_threads.add(torch.get_num_threads())
        self.batches.append(len(batch))
        return batch.mean((1, 2))


def colour(row: int) -> tuple[int, int, int]:
    """A colour of a row's own."""
    return row % 256, row * 7 % 256, 200 - row % 100


def flat(row: int) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", (16, 12), colour(row))


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # torch's name for the CPU as one device among others
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 50])
def test_each_row_gets_its_own_vector(device: str, batch_size: int, rows: int) -> None:
    """Whatever the batches are and wherever they run, in order; batches are no larger than asked."""
    model = Means(device)
    made = embed_pictures(model, [flat(row) for row in range(rows)], NDIMS, batch_size=batch_size)
    assert made.dtype == np.float32
    assert made.shape == (rows, NDIMS)
    np.testing.assert_allclose(made, np.array([colour(row) for row in range(rows)], np.float32).reshape(-1, NDIMS))
    most = min(batch_size, 8) if device == "cpu" else batch_size + 3  # there, whole parts of four join
    assert sum(model.batches) == rows
    assert max(model.batches, default=0) <= most


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_a_bad_picture_fails_alone(device: str) -> None:
    """A null stays null; what cannot be opened, or prepared, has a RowError in its place; the others are embedded."""
    encoded = [png(flat(row)) for row in range(20)]
    encoded[3], encoded[11], encoded[19] = b"no picture", encoded[11][:50], png(Image.new("RGB", (9, 9), (1, 2, 3)))
    column = pa.array([*encoded, None])
    steps: list[progress.Step] = []
    with progress.watch(steps.append):
        made = embed_pictures(Means(device), column, NDIMS, batch_size=4)
    assert sum(step.rows for step in steps) == len(column)
    assert {row for row, vector in enumerate(made) if isinstance(vector, RowError)} == {3, 11, 19}
    assert made[20] is None
    assert made[19].message == "it is the colour of nothing"
    for row in set(range(20)) - {3, 11, 19}:
        np.testing.assert_allclose(made[row], colour(row))
    every = embed_pictures(Means(device), [b"bad"] * 9, NDIMS)
    assert [type(vector) for vector in every] == [RowError] * 9


def test_every_kind_of_picture_is_one() -> None:
    """Files' contents, PIL pictures, arrays, in lists and in Arrow."""
    picture = flat(5)
    for kinds in ([picture, png(picture), np.asarray(picture)], pa.array([png(picture)] * 3), [png(picture)] * 3):
        np.testing.assert_allclose(embed_pictures(Means(), kinds, NDIMS), [colour(5)] * 3)
    np.testing.assert_allclose(embed_picture(Means(), picture), [colour(5)])
    with pytest.raises(RowError):
        embed_picture(Means(), b"bad")


def test_memory_is_bounded_by_the_depth_of_the_pipeline() -> None:
    """Of 400 pictures, no more are held at once than the threads and batches under way take."""
    rows = [png(flat(row)) for row in range(400)]
    for device, bound in (("cpu", 2 * 8), ("cpu:0", 16 + 3 * 2 * 4 + execute._IN_FLIGHT * 16)):
        model = Means(device)
        embed_pictures(model, rows, NDIMS, batch_size=16, threads=2)
        assert 0 < model.most <= bound
        assert model.alive == 0


def test_large_jpegs_are_decoded_small_and_others_never() -> None:
    """A JPEG is decoded at a fraction that leaves twice what the model sees, or as it is; a PNG always is."""
    large = Image.effect_noise((1024, 768), 60).convert("RGB")
    for side, size in ((None, (1024, 768)), (96, (256, 192)), (192, (512, 384)), (250, (1024, 768)), (32, (128, 96))):
        model = Means(side=side)
        embed_pictures(model, [jpeg(large)], NDIMS)
        assert model.sizes == {size}
    model = Means(side=32)
    embed_pictures(model, [png(large), large], NDIMS)
    assert model.sizes == {(1024, 768)}


def test_workers_have_one_thread_and_the_user_keeps_his() -> None:
    """Batches run in workers of one torch thread each, a single picture in one beside the caller's; nothing leaks."""
    before = torch.get_num_threads()
    together = threading.Barrier(2)

    class Meeting(Means):
        def forward(self, batch: Any) -> Any:
            if not self.batches:
                together.wait(60)  # both workers are at it, or neither
            return super().forward(batch)

    model = Meeting()
    embed_pictures(model, [flat(row) for row in range(40)], NDIMS, threads=2)
    assert len(model.threads["forward"]) == 2
    assert model.threads["forward"] == model.threads["prepare"]
    assert model.torch_threads == {1}
    alone = Means()
    embed_pictures(alone, [flat(1)], NDIMS)
    assert len(alone.threads["forward"]) == 1
    assert alone.threads["forward"].isdisjoint({threading.get_ident(), *model.threads["forward"]})  # it may fork
    assert torch.get_num_threads() == before


def test_an_error_that_is_no_pictures_own_ends_the_call() -> None:
    """Out of the model or its preparation it comes out as itself, on every way; the workers are free afterwards."""

    class Broken(Means):
        def forward(self, batch: Any) -> Any:
            raise ArithmeticError("the model broke")

    class Unprepared(Means):
        def prepare(self, picture: Image.Image) -> np.ndarray:
            raise LookupError("no preparation")

    rows = [flat(row) for row in range(60)]
    for device in ("cpu", "cpu:0"):
        with pytest.raises(ArithmeticError, match="the model broke"):
            embed_pictures(Broken(device), rows, NDIMS, threads=2)
        with pytest.raises(LookupError, match="no preparation"):
            embed_pictures(Unprepared(device), rows, NDIMS, threads=2)
    assert list(workers.run(abs, [-1], 2)) == [1]


@pytest.mark.parametrize("fits", [0, 5])
def test_a_device_without_memory_gets_half_batches(fits: int, caplog: pytest.LogCaptureFixture) -> None:
    """Once for all, with a warning; where that does not help either, the error comes out."""

    class Small(Means):
        def forward(self, batch: Any) -> Any:
            if len(batch) > fits:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(batch)

    model = Small("cpu:0")
    rows = [flat(row) for row in range(32)]
    if not fits:
        with pytest.raises(torch.OutOfMemoryError):
            embed_pictures(model, rows, NDIMS, batch_size=8)
        return
    made = embed_pictures(model, rows, NDIMS, batch_size=8)
    np.testing.assert_allclose(made, [colour(row) for row in range(32)])
    assert set(model.batches) == {4}
    assert caplog.messages == ["cpu:0 is out of memory for 8 images; continuing with half"]


# -- over a network ----------------------------------------------------------------------------------------------------


@contextmanager
def served(together: int) -> Iterator[str]:
    """Serve `/<row>.png`; each answer waits until so many are asked for, so that only fetching ahead gets any."""
    gate = threading.Barrier(together)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gate.wait(60)
            body = png(flat(int(Path(self.path).stem)))
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_pictures_are_fetched_side_by_side_and_run_in_batches(device: str) -> None:
    """Eight addresses are asked at once, more than there are workers; the model runs in its own threads, in batches."""
    model = Means(device)
    with served(together=8) as address, embedreg.allow_images(private_hosts=[address.removeprefix("http://")]):
        made = embed_pictures(
            model,
            [f"{address}/{row}.png" for row in range(32)],
            NDIMS,
            batch_size=4,
            threads=2 if device == "cpu" else 8,
        )
    np.testing.assert_allclose(made, [colour(row) for row in range(32)])
    if device == "cpu":
        assert set(model.batches) == {4}
        assert not model.threads["forward"] & model.threads["prepare"]
