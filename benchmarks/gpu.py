"""Measure a GPU in one run of at most eight minutes: no network, random weights, one table and one JSON file.

It runs the tests that need a GPU, then measures models of the shapes of all-MiniLM-L6-v2 and bge-base in three
precisions against `SentenceTransformer.encode` at its best batch size, texts of several lengths, and images with their
decoding. Beside each stands the floor: what the card's own rate of products and its own bandwidth allow. The part that
is furthest from its floor is profiled. Both outputs list what could not run
because a library was missing or time was short.

It needs torch, sentence-transformers and transformers, for the tests pytest, and for images Pillow, torchvision and, if
it is there, open_clip. A bare checkout is enough. Over 400 lines: one file runs by itself there.

Usage: PYTHONPATH=. python benchmarks/gpu.py [--device cuda] [--rows 20000] [--seconds 450] [--out gpu.json]
       [--skip tests images profile] [--tiny]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bench_images import photographs  # noqa: E402 (the checkout may not be installed)
from benchmarks.common import machine, table  # noqa: E402

# name -> layers, width, heads, width of the feed-forward part
SHAPES = {"MiniLM": (6, 384, 12, 1536), "bge-base": (12, 768, 12, 3072)}
TINY = {"MiniLM": (1, 32, 2, 64), "bge-base": (2, 48, 2, 96)}
PRECISIONS = ("bfloat16", "float16", "float32")
SIZES = (32, 128, 512, 2048)  # batch sizes of `encode`
LENGTHS = (16, 128, 512)  # tokens of all texts of a corpus
WORDS = 30_000
LIMIT = 512  # tokens
ROUNDS = 3
TARGETS = {"times encode": 5.0, "of the floor": 0.5}
TESTS = (
    "tests/runtime/hardware/test_device.py",
    "tests/runtime/text/test_execute.py",
    "tests/functions/test_sentence_transformers_runtime.py",
    "tests/functions/test_open_clip.py",
)
TESTS_S = 100
# Numbers that a layer reads and writes for each token, in units of its width, if nothing is fused: inputs and outputs
# of the joined query, key and value (1 + 3), attention (3 + 1), its output (1 + 1), the two sums with norms (3 + 3),
# and the feed-forward part with its activation (1 + 4, 4 + 4, 4 + 1).
MOVED = 34


class Run:
    """The state of a run: its options, the time that is left, and what was found."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.began = time.monotonic()
        self.found: dict[str, Any] = {"left out": {}, "texts": [], "images": []}
        self.shapes = TINY if args.tiny else SHAPES
        self.sizes = SIZES[:2] if args.tiny else SIZES

    def left(self) -> float:
        """Return the seconds that are left."""
        return float(self.args.seconds - (time.monotonic() - self.began))

    @contextmanager
    def part(self, name: str, needs_s: float) -> Iterator[bool]:
        """Yield whether a part may run; an error in it is recorded, and the run continues."""
        if name in self.args.skip:
            self.found["left out"][name] = "as asked"
            yield False
            return
        if self.left() < needs_s:
            self.found["left out"][name] = f"{self.left():.0f} s were left of {needs_s:.0f}"
            yield False
            return
        start = time.monotonic()
        try:
            yield True
        except Exception as exc:  # noqa: BLE001 (a run on a borrowed machine brings back whatever it can)
            self.found["left out"][name] = f"{type(exc).__name__}: {exc}"[:400]
        finally:
            print(f"[{time.monotonic() - self.began:5.0f} s] {name}: {time.monotonic() - start:.1f} s", flush=True)

    def synchronize(self) -> None:
        """Wait for the device."""
        import torch

        if self.args.device.startswith("cuda"):
            torch.cuda.synchronize()

    def timed(self, call: Callable[[], Any]) -> float:
        """Run once and return the seconds."""
        self.synchronize()
        start = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - start


# -- the machine -------------------------------------------------------------------------------------------------------


def look(run: Run) -> None:
    """Record the card, the versions, and the rates that set the floors."""
    import torch

    from embedreg.runtime.hardware.peak import matmul_flops

    device, on_gpu = run.args.device, run.args.device.startswith("cuda")
    run.found["machine"] = machine()
    run.found["card"] = torch.cuda.get_device_name() if on_gpu else "none"
    names = ("torch", "sentence-transformers", "transformers", "open-clip-torch", "numpy", "pyarrow")
    run.found["versions"] = {name: _version(name) for name in names}
    flops = {kind: matmul_flops(device, kind) for kind in (("float32",) if run.args.tiny else PRECISIONS)}
    numbers = 2**22 if run.args.tiny else 2**28
    source = torch.ones(numbers, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    copies = min(run.timed(lambda: target.copy_(source)) for _ in range(5))
    run.found["TFLOP/s"] = {kind: value / 1e12 for kind, value in flops.items()}
    run.found["GB/s"] = 2 * 4 * numbers / copies / 1e9


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def run_tests(run: Run) -> None:
    """Run the tests that need a GPU in a process of their own."""
    if importlib.util.find_spec("pytest") is None:
        run.found["tests"] = "not run: pytest is not installed"
        return
    clip = importlib.util.find_spec("open_clip") is not None
    files = [name for name in TESTS if clip or "open_clip" not in name]
    line = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-rs", *files]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    limit = min(TESTS_S, run.left() / 4)
    try:
        done = subprocess.run(
            line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
        said = (done.stdout.strip() or done.stderr.strip()).splitlines()
        run.found["tests"] = {"exit": done.returncode, "said": said[-12:]}
    except subprocess.TimeoutExpired:
        run.found["tests"] = f"stopped after {limit:.0f} s"


# -- texts -------------------------------------------------------------------------------------------------------------


def words() -> list[str]:
    """Return different words of one token each."""
    syllables = [a + b for a, b in itertools.product("bdfgklmnprstvz", "aeiou")]
    return ["".join(parts) for parts in itertools.islice(itertools.product(syllables, repeat=3), WORDS)]


def save_model(run: Run, name: str) -> Path:
    """Save a BERT of a shape with random weights, mean pooling and unit length, and a tokenizer of words."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    layers, width, heads, inner = run.shapes[name]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words()]
    tokenizer = Tokenizer(models.WordPiece({word: row for row, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    base = run.folder / f"{name}-base"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LIMIT, **special).save_pretrained(base)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=LIMIT,
    )
    BertModel(config).save_pretrained(base)
    made = SentenceTransformer(modules=[Transformer(str(base)), Pooling(width, "mean"), Normalize()], device="cpu")
    made.save(str(run.folder / name), create_model_card=False)
    return run.folder / name


def corpus(rows: int, length: int | None) -> list[str]:
    """Return texts of one number of tokens, or of all lengths: 59 tokens on average, one in a hundred over 300."""
    chance, known = random.Random(1), words()
    made = []
    for _ in range(rows):
        count = length - 2 if length is not None else round(chance.lognormvariate(3.67, 0.9))
        made.append(" ".join(chance.choices(known, k=max(1, min(count, LIMIT - 2)))))
    return made


def floors(run: Run, name: str, texts: list[str], precision: str) -> dict[str, float]:
    """Return the seconds that the card's products and its bandwidth allow for the real tokens of some texts."""
    layers, width, _, inner = run.shapes[name]
    lengths = np.array([min(text.count(" ") + 3, LIMIT) for text in texts], np.float64)
    linears = 2.0 * (4 * width * width + 2 * width * inner)
    operations = float((layers * (lengths * linears + 4 * width * lengths**2)).sum())
    moved = float(lengths.sum()) * layers * MOVED * width * (4 if precision == "float32" else 2)
    rate = run.found["TFLOP/s"].get(precision) or run.found["TFLOP/s"]["float32"]
    return {"operations_s": operations / rate / 1e12, "bytes_s": moved / run.found["GB/s"] / 1e9}


def measure_texts(run: Run, name: str, precision: str, length: int | None, rows: int) -> None:
    """Measure one corpus: embedreg, and `encode` in the same precision at its best batch size."""
    import torch
    from sentence_transformers import SentenceTransformer

    import embedreg

    folder, device = run.folder / name, run.args.device
    texts = corpus(rows, length)
    kind = getattr(torch, precision)
    library = SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": kind})
    ours = embedreg.get("sentence-transformers").create(
        name=str(folder), device=device, precision=precision, backend="torch", truncate="silent"
    )

    def encode(some: list[str], size: int) -> Any:
        return library.encode(some, batch_size=size, normalize_embeddings=True, show_progress_bar=False)

    few = texts[: max(len(texts) // 8, 64)]
    vectors = ours.generate_embeddings(few), encode(few, 32).astype(np.float32)
    cosine = float(np.einsum("nd,nd->n", *vectors).min())
    encode(few, run.sizes[-1])  # warm
    by_size = {size: len(few) / run.timed(lambda size=size: encode(few, size)) for size in run.sizes}
    best = max(by_size, key=by_size.__getitem__)
    ours.generate_embeddings(texts)
    taken = [
        (run.timed(lambda: ours.generate_embeddings(texts)), run.timed(lambda: encode(texts, best)))
        for _ in range(ROUNDS)
    ]
    own = statistics.median(a for a, _ in taken)
    floor = floors(run, name, texts, precision)
    run.found["texts"].append(
        {
            "model": name,
            "precision": precision,
            "tokens": "mixed" if length is None else length,
            "rows": len(texts),
            "rows/s": len(texts) / own,
            "encode rows/s": len(texts) / statistics.median(b for _, b in taken),
            "encode batch size": best,
            "encode by batch size": {str(size): rate for size, rate in by_size.items()},
            "times encode": statistics.median(b / a for a, b in taken),
            **floor,
            "of the floor": max(floor.values()) / own,
            "cosine min": cosine,
        }
    )
    embedreg.release()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


# -- images ------------------------------------------------------------------------------------------------------------


def image_function(run: Run) -> tuple[str, Callable[..., Any]]:
    """Return a ViT-B-32 with random weights: open_clip's, or where that is not installed a SigLIP of its shape."""
    import torch

    import embedreg

    small = run.args.tiny
    if importlib.util.find_spec("open_clip") is not None and not small:
        import open_clip

        name, path = "ViT-B-32", run.folder / "weights.pt"
        torch.manual_seed(0)
        torch.save(open_clip.create_model(name, pretrained_text=False).state_dict(), path)
        return name, lambda **config: embedreg.get("open-clip").create(name=name, pretrained=str(path), **config)
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    layers, width, heads, inner = (1, 32, 2, 64) if small else (12, 768, 12, 3072)
    size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner}
    folder = run.folder / "siglip"
    special = {"vocab_size": 100, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = {"projection_size": width, **special, **size}
    config = SiglipConfig(vision_config={"image_size": 224, "patch_size": 32, **size}, text_config=text)
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    for file in (run.folder / "MiniLM-base").glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return "SigLIP of the shape of ViT-B-32", lambda **config: embedreg.get("siglip").create(
        model_name=str(folder), **config
    )


def measure_images(run: Run) -> None:
    """Measure JPEGs of 640 x 480 from bytes to vectors, and how fast they can be decoded alone."""
    import torch

    import embedreg
    from embedreg.images import open_image
    from embedreg.runtime.hardware import workers

    name, create = image_function(run)
    count = 16 if run.args.tiny else 512
    files = photographs(16 if run.args.tiny else 64)
    files = [files[row % len(files)] for row in range(count)]
    threads = workers.cores()
    opened = run.timed(lambda: list(workers.run(open_image, files, threads)))
    for precision in ("float32",) if run.args.tiny else PRECISIONS:
        fn = create(device=run.args.device, precision=precision, num_threads=threads)
        fn.compute_source_embeddings(files[:8])
        taken = statistics.median(run.timed(lambda fn=fn: fn.compute_source_embeddings(files)) for _ in range(ROUNDS))
        run.found["images"].append(
            {
                "model": name,
                "precision": precision,
                "images": count,
                "images/s": count / taken,
                "decoded/s": count / opened,
                "threads": threads,
                "of the decoding": opened / taken,
            }
        )
        embedreg.release()
    if run.args.device.startswith("cuda"):
        torch.cuda.empty_cache()


# -- the slowest part --------------------------------------------------------------------------------------------------


def profile(run: Run) -> None:
    """Profile the texts that were furthest from their floor: which operations, and how long the device was idle."""
    import torch

    import embedreg

    worst = min(run.found["texts"], key=lambda each: each["of the floor"])
    length = None if worst["tokens"] == "mixed" else worst["tokens"]
    texts = corpus(max(worst["rows"] // 4, 64), length)
    fn = embedreg.get("sentence-transformers").create(
        name=str(run.folder / worst["model"]),
        device=run.args.device,
        precision=worst["precision"],
        backend="torch",
        truncate="silent",
    )
    fn.generate_embeddings(texts)
    on_gpu = run.args.device.startswith("cuda")
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if on_gpu else []
    # on a CPU the work is done by other threads than this one
    every = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(activities=kinds, acc_events=True, experimental_config=every) as made:
        took = run.timed(lambda: fn.generate_embeddings(texts))
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(made.key_averages(), key=lambda event: -getattr(event, by))
    busy = sum(getattr(event, by) for event in events) / 1e6
    run.found["profile"] = {
        "of": {key: worst[key] for key in ("model", "precision", "tokens", "of the floor")},
        "seconds": took,
        "busy_s": busy,
        "idle": max(0.0, 1 - busy / took) if on_gpu else None,
        "operations": [
            {"name": event.key[:80], "ms": getattr(event, by) / 1e3, "calls": event.count} for event in events[:12]
        ],
    }


# -- the run -----------------------------------------------------------------------------------------------------------


def report(run: Run) -> None:
    """Print the tables."""
    found = run.found
    print(f"\n{found.get('card')}; {found.get('machine')}; {found.get('versions')}")
    print(f"products, TFLOP/s: {found.get('TFLOP/s')}; copying: {found.get('GB/s', 0):.0f} GB/s")
    print(f"tests: {found.get('tests')}")
    rows = [("model", "precision", "tokens", "rows/s", "encode (batch)", "times encode", "of the floor", "cosine min")]
    for each in found["texts"]:
        encode = f"{each['encode rows/s']:.0f} ({each['encode batch size']})"
        last = (f"{each['times encode']:.2f}", f"{each['of the floor']:.3f}", f"{each['cosine min']:.6f}")
        rows.append((each["model"], each["precision"], str(each["tokens"]), f"{each['rows/s']:.0f}", encode, *last))
    table(f"texts (targets: {TARGETS['times encode']} times encode, {TARGETS['of the floor']} of the floor)", rows)
    rows = [("model", "precision", "images/s", "decoded/s", "threads")]
    for each in found["images"]:
        rate, decoded = f"{each['images/s']:.0f}", f"{each['decoded/s']:.0f}"
        rows.append((each["model"], each["precision"], rate, decoded, str(each["threads"])))
    table("images of 640 x 480, from JPEG", rows)
    if profiled := found.get("profile"):
        rows = [("operation", "ms", "calls")]
        rows += [(each["name"], f"{each['ms']:.2f}", str(each["calls"])) for each in profiled["operations"]]
        table(f"profile of {profiled['of']}: {profiled['seconds']:.2f} s, idle {profiled['idle']}", rows)
    for name, why in found["left out"].items():
        print(f"left out: {name}: {why}")


def main(arguments: list[str] | None = None) -> None:
    """Run every part that time allows, print the tables, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="torch's name of the device")
    parser.add_argument("--rows", type=int, default=20_000, help="texts of a corpus")
    parser.add_argument("--seconds", type=float, default=450, help="when to stop starting parts")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="where the figures are written")
    parser.add_argument("--skip", nargs="*", default=(), help="parts to leave out: tests, images, profile")
    parser.add_argument("--tiny", action="store_true", help="tiny models and corpora: whether the script runs")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="embedreg-gpu-") as folder:
        run = Run(args, Path(folder))
        with run.part("the machine", 5) as may:
            if may:
                look(run)
        with run.part("tests", 25) as may:
            if may:
                run_tests(run)
        with run.part("models", 5) as may:
            if may:
                for name in run.shapes:
                    save_model(run, name)
        cases = [(name, kind, None, args.rows) for name in run.shapes for kind in PRECISIONS]
        cases += [(name, PRECISIONS[0], length, args.rows // 4) for name in run.shapes for length in LENGTHS]
        for name, kind, length, rows in cases[-2:] + cases[2:3] if args.tiny else cases:
            kind = "float32" if args.tiny else kind
            with run.part(f"texts, {name}, {kind}, {length or 'mixed'} tokens", 15) as may:
                if may:
                    measure_texts(run, name, kind, length, rows)
        with run.part("images", 25) as may:
            if may:
                measure_images(run)
        with run.part("profile", 20) as may:
            if may and run.found["texts"]:
                profile(run)
        run.found["seconds"] = time.monotonic() - run.began
    report(run)
    args.out.write_text(json.dumps(run.found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
