"""What a row costs among 10,000 and among 100,000, and how much memory that takes, with a tiny model.

The same 100,000 texts go through in one call and in ten calls of 10,000, one after the other in each round, so that
both do the same work; the ratio is of processor time, which other programs disturb less than they do the wall clock.
Target: within 10%. Peak memory is measured in a process of its own for each case.

Usage: python -m benchmarks.bench_scale [--rows 100000] [--runs 5] [--only WORD ...]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench_encode import WORDS
from benchmarks.common import machine, peak_mib, table, versions

PARTS = 10
BATCH = 8192  # rows of a stream's batch
TARGET = 1.10


def texts(rows: int) -> list[str]:
    """Return distinct texts of 1 to 40 words, in no order of length."""
    chance, words = random.Random(0), WORDS.split()
    return [" ".join(chance.choices(words, k=1 + row * 7 % 40)) + f" {row}" for row in range(rows)]


def tiny(folder: Path) -> Path:
    """Save a BERT of two layers of 32 with random weights, as the library saves it."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", *sorted({*WORDS.split(), *"0123456789", *(f"##{digit}" for digit in "0123456789")})]
    tokenizer = Tokenizer(models.WordPiece({word: row for row, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder / "plain")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    ).save_pretrained(folder / "plain")
    modules = [Transformer(str(folder / "plain")), Pooling(32, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def ways(folder: Path) -> dict[str, Callable[[list[str]], object]]:
    """Make the ways to embed a list of texts."""
    import pyarrow as pa

    import embedreg

    hashing = embedreg.get("hashing").create(dim=64)
    model = embedreg.get("sentence-transformers").create(name=str(folder), device="cpu", truncate="silent")

    def stream(rows: list[str]) -> None:
        batches = (pa.record_batch({"text": rows[start : start + BATCH]}) for start in range(0, len(rows), BATCH))
        reader = pa.RecordBatchReader.from_batches(pa.schema({"text": pa.string()}), batches)
        for _ in embedreg.embed_batches(reader, hashing.bind("text", "vector")):
            pass

    return {
        "hashing, embed_table": lambda rows: embedreg.embed_table({"text": rows}, hashing.bind("text", "vector")),
        "hashing, embed_batches": stream,
        "tiny BERT, embed_table": lambda rows: embedreg.embed_table({"text": rows}, model.bind("text", "vector")),
        "tiny BERT, function alone": model.generate_embeddings,
    }


def cost(call: Callable[[], object]) -> tuple[float, float]:
    """Run once and return the processor time of all threads and the wall time, in seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - processor, time.perf_counter() - wall


def one(name: str, rows: int, folder: Path) -> None:
    """Run one way once and print its peak memory above what was there before, as JSON."""
    call, data = ways(folder)[name], texts(rows)
    call(data[:100])
    print(json.dumps(peak_mib(lambda: call(data))))


def main() -> None:
    """Print the ratios and the peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="only ways whose names have one of these words")
    args = parser.parse_args()
    data, part = texts(args.rows), args.rows // PARTS
    heads = ("way", "s at once", "us a row", f"at once / in {PARTS} parts", "wall", "MiB", f"MiB of {part:,}")
    lines: list[tuple[str, ...]] = [heads]
    with tempfile.TemporaryDirectory() as scratch:
        folder = tiny(Path(scratch))
        for name, call in ways(folder).items():
            if args.only and not any(word in name for word in args.only):
                continue
            call(data[:part])
            ratios: list[tuple[float, float]] = []
            whole: list[float] = []
            for number in range(args.runs):
                pair = [
                    lambda call=call: call(data),
                    lambda call=call: [call(data[start : start + part]) for start in range(0, args.rows, part)],
                ]
                order = (0, 1) if number % 2 == 0 else (1, 0)
                taken = {which: cost(pair[which]) for which in order}
                ratios.append((taken[0][0] / taken[1][0], taken[0][1] / taken[1][1]))
                whole.append(taken[0][0])
            processor, wall = (statistics.median(values) for values in zip(*ratios, strict=True))
            middle = statistics.median(whole)
            peaks = [_peak(name, rows, folder) for rows in (args.rows, part)]
            cells = (f"{middle:.2f}", f"{1e6 * middle / args.rows:.1f}", f"{processor:.2f}", f"{wall:.2f}")
            lines.append((name, *cells, *(f"{peak:.0f}" for peak in peaks)))
    print(machine())
    print(versions("sentence-transformers", "torch", "pyarrow", "embedreg"))
    title = f"{args.rows:,} rows at once and in {PARTS} parts, median of {args.runs} pairs (target {TARGET})"
    table(f"{title}; processor seconds; peak memory above the input", lines)
    print(f"  load {os.getloadavg()[0]:.1f}")


def _peak(name: str, rows: int, folder: Path) -> float:
    command = [sys.executable, "-m", "benchmarks.bench_scale", name, str(rows), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    one(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])) if len(sys.argv) == 4 and sys.argv[2].isdigit() else main()
