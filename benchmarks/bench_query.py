"""The latency of one short query: embedreg against the bare model call and the library's encode_query.

Every query is another text, so that none comes from memory. Target: at most 1.1 of the bare call.

Usage: python -m benchmarks.bench_query [--runs 200] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.bench_lancedb import weights
from benchmarks.common import machine, seconds, table, versions


def main() -> None:
    """Print the latencies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    import torch
    from sentence_transformers import SentenceTransformer

    import embedreg

    function = embedreg.get("sentence-transformers").create(name=weights(), device=args.device)
    function.compute_query_embeddings("load the model")
    model: Any = function._loaded()
    stock = SentenceTransformer(weights(), device=args.device)

    def bare(text: str) -> Any:
        """Tokenize, run the modules, normalise: what no way to a vector can do without."""
        with torch.inference_mode():
            features = {
                name: value.to(model.device) if torch.is_tensor(value) else value
                for name, value in model.preprocess([text]).items()
            }
            return torch.nn.functional.normalize(model(features)["sentence_embedding"], dim=1).cpu().numpy()

    ways: dict[str, Callable[[str], Any]] = {
        "bare model call": bare,
        "embedreg, compute_query_embeddings": function.compute_query_embeddings,
        "embedreg, embed_query": lambda text: embedreg.embed_query(function, text),
        "SentenceTransformer.encode_query": lambda text: stock.encode_query([text], normalize_embeddings=True),
        "embedreg, the same query again": lambda text: function.compute_query_embeddings("load the model"),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(args.runs + 10):
        names = names[1:] + names[:1]  # whoever runs first in a round finds colder caches
        for name in names:
            text = f"how to wait for thread number {number} of {names.index(name)}"
            took = seconds(lambda text=text, name=name: ways[name](text))
            if number >= 10:
                taken[name].append(took)
    base = taken["bare model call"]
    rows = [("way", "median ms", "of the bare call", "paired", "90%")]
    for name, times in taken.items():
        middle = statistics.median(times)
        paired = statistics.median(a / b for a, b in zip(times, base, strict=True))
        rows.append(
            (
                name,
                f"{1000 * middle:.2f}",
                f"{middle / statistics.median(base):.2f}",
                f"{paired:.2f}",
                f"{1000 * statistics.quantiles(times, n=10)[-1]:.2f}",
            )
        )
    print(machine())
    print(versions("sentence-transformers", "torch", "embedreg"))
    table(f"one short query, all-MiniLM-L6-v2 on {args.device}, median of {args.runs} (target 1.1)", rows)
    print(f"  load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
