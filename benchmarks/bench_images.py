"""Images/s of a CLIP: embedreg's `open-clip` against LanceDB's, on the same JPEGs and weights.

Weights are random, which costs what trained ones cost. Rounds are interleaved, ratios are medians over the rounds.
Beside them are the limits: the model alone on ready tensors, and the model with exact preprocessing, perfectly
overlapped (on a CPU both need the same cores, on a GPU the slower of the two decides).

Usage: python -m benchmarks.bench_images [--images 128] [--runs 5] [--device cpu|cuda] [--model ViT-B-32]
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import interleaved, machine, ratio, table, versions

SIZE = (640, 480)
QUALITY = 90
ON_CPU = {"embedreg": 1.9, "embedreg bfloat16": 3.5, "embedreg OpenVINO": 2.0, "embedreg bfloat16 OpenVINO": 3.9}
TARGETS = {"cpu": ON_CPU, "cuda": {"embedreg": 10.0, "embedreg bfloat16": 10.0}}
OF_THE_LIMIT = 0.9


def photographs(count: int) -> list[bytes]:
    """Make JPEGs whose detail falls off with its fineness as in photographs, so that they decode as those do."""
    from PIL import Image

    chance = np.random.default_rng(0)
    width, height = SIZE
    made = []
    for _ in range(count):
        picture = np.zeros((height, width, 3), np.float32)
        for octave in range(2, 9):
            coarse = chance.normal(size=(3, 2**octave * height // width + 1, 2**octave)).astype(np.float32)
            for channel in range(3):
                fine = Image.fromarray(coarse[channel]).resize(SIZE, Image.Resampling.BICUBIC)
                picture[..., channel] += np.asarray(fine) / 2**octave
        picture = (picture - picture.min()) / np.ptp(picture) * 255
        buffer = io.BytesIO()
        Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
        made.append(buffer.getvalue())
    return made


def save_weights(model: str, folder: Path) -> Path:
    """Save random weights of a model, so that all sides load the same."""
    import open_clip
    import torch

    torch.manual_seed(0)
    path = folder / "weights.pt"
    torch.save(open_clip.create_model(model, pretrained_text=False).state_dict(), path)
    return path


class Parts:
    """The steps of embedreg's way, each by itself, with the threads that it has there."""

    def __init__(self, function: Any, images: list[bytes], threads: int) -> None:
        from embedreg.images import open_image
        from embedreg.runtime.image.execute import CPU_BATCH

        self.model, self.images, self.threads = function._pictures(), images, threads
        self.batch_size = CPU_BATCH if self.model.device == "cpu" else function.batch_size
        self.open: Callable[[bytes], Any] = open_image
        self.opened = [open_image(image) for image in images]
        self.ready = np.stack([self.model.prepare(picture) for picture in self.opened])

    def decode(self) -> None:
        """Open every image."""
        self._each(lambda row: self.open(self.images[row]))

    def preprocess(self) -> None:
        """Prepare every open image."""
        self._each(lambda row: self.model.prepare(self.opened[row]))

    def both(self) -> None:
        """Open and prepare every image."""
        self._each(lambda row: self.model.prepare(self.open(self.images[row])))

    def forward(self) -> None:
        """Run the model on ready tensors."""
        import torch

        from embedreg.runtime.hardware import workers

        starts = range(0, len(self.ready), self.batch_size)
        batches = [torch.from_numpy(self.ready[at : at + self.batch_size]).to(self.model.device) for at in starts]

        def run(batch: Any) -> None:
            with torch.inference_mode():
                self.model.forward(batch)

        if self.model.device == "cpu":
            list(workers.run(run, batches, self.threads))
            return
        for batch in batches:
            run(batch)
        torch.cuda.synchronize()

    def _each(self, work: Callable[[int], Any]) -> None:
        from embedreg.runtime.hardware import workers

        def some(start: int) -> None:
            for row in range(start, min(start + 4, len(self.images))):
                work(row)

        list(workers.run(some, range(0, len(self.images), 4), self.threads))


def measure(args: argparse.Namespace, weights: Path) -> None:
    """Time every way and every part, and print the tables."""
    from lancedb.embeddings.open_clip import OpenClipEmbeddings

    import embedreg
    from embedreg.errors import ConfigError
    from embedreg.runtime.hardware import workers

    images = photographs(args.images)
    common = {"name": args.model, "pretrained": str(weights), "device": args.device}
    ways: dict[str, Any] = {"LanceDB": OpenClipEmbeddings.create(**common), "embedreg": None, "embedreg bfloat16": None}
    create = embedreg.get("open-clip").create
    tried: dict[str, dict[str, str]] = {"embedreg": {}, "embedreg bfloat16": {"precision": "bfloat16"}}
    if args.device == "cpu":
        tried |= {f"{name} OpenVINO": {**options, "backend": "openvino"} for name, options in tried.items()}
    for name, options in tried.items():
        try:
            ways[name] = create(**common, **options)
            ways[name].compute_query_embeddings("warm")
        except ConfigError as exc:  # a processor that is not faster in it
            print(exc.message)
            ways.pop(name, None)
    parts = {name: Parts(way, images, workers.worker_threads()) for name, way in ways.items() if name != "LanceDB"}
    calls: dict[str, Callable[[], object]] = {
        name: lambda way=way: way.compute_source_embeddings(images) for name, way in ways.items()
    }
    calls |= {f"{name}: model": part.forward for name, part in parts.items()}
    calls |= {"both": parts["embedreg"].both, "decode": parts["embedreg"].decode}
    calls["preprocess"] = parts["embedreg"].preprocess
    vectors = {name: np.asarray(calls[name](), np.float64) for name in ways}  # also the warm-up
    before = os.getloadavg()[0]
    taken = interleaved(calls, args.runs)
    report(args, taken, vectors, list(ways))
    print(f"  load {before:.1f}, then {os.getloadavg()[0]:.1f}; {workers.worker_threads()} workers")


def report(args: argparse.Namespace, taken: dict[str, list[float]], vectors: dict[str, Any], ways: list[str]) -> None:
    """Print what each way reached, beside its limits, and where the time goes."""
    on_cpu = args.device == "cpu"
    targets = TARGETS["cpu" if on_cpu else "cuda"]
    rows = [("way", "images/s", "of LanceDB's", "target", "of model alone", "of overlapped", "cosine min")]
    for name in ways:
        rate = args.images / statistics.median(taken[name])
        cells = ["", "", "", ""]
        if name != "LanceDB":
            model = taken[f"{name}: model"]
            ideal = [a + b if on_cpu else max(a, b) for a, b in zip(model, taken["both"], strict=True)]
            of_ideal = statistics.median(a / b for a, b in zip(ideal, taken[name], strict=True))
            wanted = f" (want {OF_THE_LIMIT})" if name == "embedreg" else ""
            of_model = ratio(taken, f"{name}: model", name)
            cells = [f"{targets[name]:.1f}", f"{of_model:.2f}", f"{of_ideal:.2f}{wanted}", cosine(vectors, name)]
        rows.append((name, f"{rate:.1f}", f"{ratio(taken, 'LanceDB', name):.2f}", *cells))
    table(f"{args.images} JPEGs of {SIZE[0]} x {SIZE[1]}, {args.model}, median of {args.runs} rounds", rows)
    split = [("part", "ms an image", "images/s")]
    for name in ("decode", "preprocess", "both", *(f"{way}: model" for way in ways if way != "LanceDB")):
        each = statistics.median(taken[name]) / args.images
        label = "decode and preprocess" if name == "both" else name
        split.append((label, f"{1e3 * each:.2f}", f"{1 / each:.1f}"))
    table("each part by itself, all threads at it", split)


def cosine(vectors: dict[str, Any], name: str) -> str:
    """Return the least cosine of a way's vectors with LanceDB's."""
    a, b = vectors[name], vectors["LanceDB"]
    return f"{((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min():.6f}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="ViT-B-32")
    args = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")  # LanceDB draws a progress bar for every batch
    print(machine())
    print(versions("open-clip-torch", "torch", "pillow", "lancedb", "embedreg"))
    with tempfile.TemporaryDirectory() as folder:
        measure(args, save_weights(args.model, Path(folder)))


if __name__ == "__main__":
    main()
