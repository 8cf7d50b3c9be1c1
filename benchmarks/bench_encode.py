"""Rows/s of all-MiniLM-L6-v2: embedreg's back ends against SentenceTransformer.encode and LanceDB's function.

The same texts and weights, rounds interleaved, medians of paired ratios. Two corpora: docstrings and README paragraphs
of every length, and sentences of one length, where there is no padding to save.

Usage: python -m benchmarks.bench_encode [--rows 2000] [--runs 5] [--device cpu|cuda] [--only WORD ...]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from benchmarks.common import interleaved, machine, minilm_folder, ratio, table, versions

TARGETS = {"torch": 1.8, "light": 2.3, "openvino": 2.3, "torch bfloat16": 3.4, "openvino bfloat16": 4.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "torch": {"backend": "torch"},
    "light": {"backend": "light"},
    "openvino": {"backend": "openvino"},
    "torch bfloat16": {"backend": "torch", "precision": "bfloat16"},
    "openvino bfloat16": {"backend": "openvino", "precision": "bfloat16"},
}
WORDS = "the a thread waits for another file to close and then writes what it has read into one list of names"
QUERIES = 200
TOP = 10


def mixed(rows: int) -> list[str]:
    """Return whole docstrings of installed modules and paragraphs of installed READMEs, of all lengths."""
    texts = []
    for distribution in sorted(metadata.distributions(), key=lambda each: each.metadata["Name"] or ""):
        body = distribution.metadata.get_payload() or distribution.metadata["Description"] or ""
        texts += [part.strip() for part in str(body).split("\n\n") if len(part.strip()) > 10]
    texts += docstrings()
    random.Random(0).shuffle(texts)
    return list(dict.fromkeys(texts))[:rows]


def docstrings() -> list[str]:
    """Return the whole docstrings of some modules that are on every machine."""
    import ast
    import sysconfig
    from pathlib import Path

    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                found.append(text)
    return found


def uniform(rows: int) -> list[str]:
    """Return sentences of 30 words, which have about the same number of tokens."""
    words = WORDS.split()
    chance = random.Random(0)
    return [" ".join(chance.choices(words, k=30)) + f" {row}" for row in range(rows)]


def flop_per_row(lengths: np.ndarray) -> float:
    """Return the arithmetic of a row in MiniLM's products, linears and attention, without padding."""
    linears = 6 * 2 * (4 * 384 * 384 + 2 * 384 * 1536)
    attention = 6 * 4 * 384 * lengths
    return float((lengths * (linears + attention)).mean())


def overlap(made: np.ndarray, exact: np.ndarray) -> float:
    """Return the mean share of the exact top ten that the vectors find, over some of the rows as queries."""
    shares = []
    for row in range(min(QUERIES, len(exact))):
        top = [set(np.argsort(-(rows @ rows[row]))[: TOP + 1].tolist()) - {row} for rows in (made, exact)]
        shares.append(len(top[0] & top[1]) / TOP)
    return statistics.mean(shares)


def measure(name: str, texts: list[str], args: argparse.Namespace) -> None:
    """Print the table of one corpus."""
    from sentence_transformers import SentenceTransformer

    import embedreg
    from embedreg.runtime import progress
    from embedreg.runtime.hardware.peak import matmul_flops

    function = embedreg.get("sentence-transformers")
    made = {
        key: function.create(name=minilm_folder(), device=args.device, truncate="silent", **config)
        for key, config in CONFIGS.items()
    }
    if args.device != "cpu":
        made = {key: each for key, each in made.items() if each.backend == "torch"}
    library = SentenceTransformer(minilm_folder(), device=args.device)  # its own: ours may multiply by another library
    calls: dict[str, Callable[[], Any]] = {
        "SentenceTransformer.encode": lambda: library.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    }
    if args.device != "cpu":  # its best batch size, in the same precision
        for size in (128, 512, 2048):
            calls[f"encode, batch_size={size}"] = lambda size=size: library.encode(
                texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False
            )
    try:
        from lancedb.embeddings.sentence_transformers import SentenceTransformerEmbeddings

        theirs = SentenceTransformerEmbeddings.create(name=minilm_folder(), device=args.device, trust_remote_code=False)
        calls["LanceDB's function"] = lambda: theirs.compute_source_embeddings(texts)
    except ImportError:
        pass
    for key, each in made.items():
        try:
            each.generate_embeddings(texts[:4])
        except embedreg.EmbedregError as exc:
            print(f"{key}: left out ({exc.message})")
            continue
        calls[f"embedreg, {key}"] = lambda each=each: each.generate_embeddings(texts)
    base = "SentenceTransformer.encode"
    calls = {
        key: call
        for key, call in calls.items()
        if key == base or not args.only or any(word in key for word in args.only)
    }
    vectors = {key: np.asarray(call()) for key, call in calls.items()}  # warms up too
    lengths = np.array(
        [len(ids) for ids in library.tokenizer(texts, truncation=True, max_length=library.max_seq_length)["input_ids"]]
    )
    floor = flop_per_row(lengths)
    peaks = {dtype: matmul_flops(args.device, dtype, stock=True) for dtype in ("float32", "bfloat16")}
    best_peak = matmul_flops(args.device)
    before = os.getloadavg()[0]
    taken = interleaved(calls, args.runs)
    after = os.getloadavg()[0]
    exact = vectors[base]
    rows = [
        (
            "way",
            "rows/s",
            "times encode",
            "target",
            "of torch's limit",
            "of the best",
            "max abs diff",
            "cosine min",
            "top-10",
        )
    ]
    for key, times in taken.items():
        best = len(texts) / statistics.median(times)
        dtype = "bfloat16" if "bfloat16" in key else "float32"
        apart = np.abs(vectors[key] - exact).max()
        cosine = float((vectors[key] * exact).sum(axis=1).min())
        target = TARGETS.get(key.removeprefix("embedreg, ")) if name == "mixed" else None
        cells = (
            f"{best:,.0f}",
            f"{ratio(taken, base, key):.2f}",
            str(target or ""),
            f"{best * floor / peaks[dtype]:.2f}",
            f"{best * floor / (best_peak if dtype == 'float32' else peaks[dtype]):.2f}",
            f"{apart:.1e}",
            f"{cosine:.5f}",
        )
        rows.append((key, *cells, f"{overlap(vectors[key], exact):.4f}"))
    steps: list[progress.Step] = []
    with progress.watch(steps.append):
        made["torch"].generate_embeddings(texts)
    waste = sum(step.padded for step in steps) / max(sum(step.tokens for step in steps), 1) - 1
    title = f"{name}: {len(texts):,} texts, {lengths.mean():.0f} tokens on average, 99% under"
    table(f"{title} {np.percentile(lengths, 99):.0f}; median of {args.runs}", rows)
    peak = ", ".join(f"{value / 1e9:,.0f} {dtype}" for dtype, value in peaks.items())
    peak += f" (torch's own; the best float32 {best_peak / 1e9:,.0f})"
    print(
        f"  padding of embedreg's plan {waste:.1%}; matmul peak in GFLOP/s: {peak}; load {before:.1f}, then {after:.1f}"
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", help="only ways whose names have one of these words")
    args = parser.parse_args()
    print(machine())
    print(versions("sentence-transformers", "torch", "embedreg"))
    measure("mixed", mixed(args.rows), args)
    measure("uniform", uniform(args.rows // 2), args)


if __name__ == "__main__":
    main()
