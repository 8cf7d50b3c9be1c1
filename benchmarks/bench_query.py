"""The latency of one short query, on each back end: alone, and while a table is embedded in the same process.

Alone: embedreg against the bare model call, which is sentence-transformers' own model for torch and the model's own
graph for light, and against the library's encode_query. Every query is another text, so that none is cached.
Targets: at most 1.1 of the bare call; under load a p99 of at most 3 times the idle one.

Usage: python -m benchmarks.bench_query [--runs 200] [--device cpu|cuda] [--backends light torch] [--load]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.bench_lancedb import texts
from benchmarks.common import machine, minilm_folder, seconds, table, versions

BACKENDS = {"light": "openvino", "torch": "sentence_transformers"}
"""Back end -> the library that it needs."""
WARM_UP = 10
PERIODS = 5  # of idleness and of load, in turns
PAUSE_S = 0.03  # between two queries on average; they come at random


def bare_torch(device: str) -> Callable[[str], Any]:
    """Return sentence-transformers' own model as a call: tokenize, run the modules, normalise."""
    import torch
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(minilm_folder(), device=device)

    def call(text: str) -> Any:
        with torch.inference_mode():
            features = {
                name: value.to(model.device) if torch.is_tensor(value) else value
                for name, value in model.preprocess([text]).items()
            }
            return torch.nn.functional.normalize(model(features)["sentence_embedding"], dim=1).cpu().numpy()

    return call


def bare_light(device: str) -> Callable[[str], Any]:
    """Return the model's own graph as a call: tokenize, look up, infer, normalise."""
    from pathlib import Path

    import openvino
    from openvino import opset13

    from embedreg.runtime.hardware import workers
    from embedreg.runtime.text.light.model import LightModel

    model = LightModel(Path(minilm_folder()))
    graph, rows = model.build(openvino, opset13)
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": workers.worker_threads(),
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()

    def call(text: str) -> Any:
        ids = np.array([model.tokenizer.encode(text).ids])
        inputs = [rows[ids], ids, np.ones(ids.shape, np.float32)]
        made = model.finish(np.array(request.infer(inputs, share_inputs=True, share_outputs=True)[0]))
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    return call


BARE = {"light": bare_light, "torch": bare_torch}


def ways(backend: str, device: str) -> dict[str, Callable[[str], Any]]:
    """Return the ways to a query's vector; the bare call is the first."""
    import embedreg

    function = embedreg.get("sentence-transformers").create(name=minilm_folder(), device=device, backend=backend)
    known = "a query that was embedded before"
    function.compute_query_embeddings(known)
    found = {
        f"{backend}: bare model call": BARE[backend](device),
        f"{backend}: compute_query_embeddings": function.compute_query_embeddings,
        f"{backend}: embed_query": lambda text: embedreg.embed_query(function, text),
        f"{backend}: the same query again": lambda _text: function.compute_query_embeddings(known),
    }
    if backend == "torch":
        from sentence_transformers import SentenceTransformer

        stock = SentenceTransformer(minilm_folder(), device=device)
        found["SentenceTransformer.encode_query"] = lambda text: stock.encode_query([text], normalize_embeddings=True)
    return found


def alone(backends: list[str], device: str, runs: int) -> None:
    """Print the latencies of queries that nothing else disturbs, all back ends in one run."""
    every = {backend: ways(backend, device) for backend in backends}
    calls = {name: call for made in every.values() for name, call in made.items()}
    bases = {name: next(iter(made)) for made in every.values() for name in made}
    vectors = [np.ravel(call("the sine of x")) for name, call in calls.items() if "again" not in name]
    apart = max(float(np.abs(each - vectors[0]).max()) for each in vectors)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(runs + WARM_UP):
        names = names[1:] + names[:1]  # whoever runs first in a round finds colder caches
        for name in names:
            text = f"how to wait for thread number {number} of {list(calls).index(name)}"
            took = seconds(lambda text=text, name=name: calls[name](text))
            if number >= WARM_UP:
                taken[name].append(took)
    rows = [("way", "median ms", "of the bare call", "paired", "p90 ms")]
    for name, times in taken.items():
        base = taken[bases[name]]
        middle = statistics.median(times)
        paired = statistics.median(a / b for a, b in zip(times, base, strict=True))
        of_bare = f"{middle / statistics.median(base):.2f}"
        ninety = f"{1000 * statistics.quantiles(times, n=10)[-1]:.2f}"
        rows.append((name, f"{1000 * middle:.2f}", of_bare, f"{paired:.2f}", ninety))
    table(f"one short query, all-MiniLM-L6-v2 on {device}, median of {runs} (target 1.1)", rows)
    print(f"  largest difference between the ways {apart:.1e}")


def under_load(backend: str, device: str, runs: int) -> list[tuple[str, ...]]:
    """Time queries that come at random, with and without a table being embedded by the same function.

    Returns:
        A row for idleness and one for load: medians, p99 in ms, its ratio to the idle one, rows/s of the table.
    """
    import embedreg

    function = embedreg.get("sentence-transformers").create(
        name=minilm_folder(), device=device, backend=backend, truncate="silent"
    )
    corpus = texts(4000)
    function.generate_embeddings(corpus[:64])
    chance, number = random.Random(0), 0

    def queries(count: int) -> list[float]:
        nonlocal number
        found = []
        for _ in range(count):
            time.sleep(chance.uniform(0, 2 * PAUSE_S))
            number += 1
            text = f"how to wait for thread number {number}"
            found.append(seconds(lambda text=text: embedreg.embed_query(function, text)))
        return found

    queries(WARM_UP)
    idle: list[float] = []
    loaded: list[float] = []
    rows_done, busy_s = 0, 0.0
    for _ in range(PERIODS):
        idle += queries(runs // PERIODS)
        stop = threading.Event()
        done: list[int] = []

        def embed(stop: threading.Event = stop, done: list[int] = done) -> None:
            at = 0
            while not stop.is_set():
                some = corpus[at : at + 512]
                function.generate_embeddings(some)
                done.append(len(some))
                at = (at + 512) % len(corpus)

        table_ = threading.Thread(target=embed)
        began = time.perf_counter()
        table_.start()
        time.sleep(0.5)
        loaded += queries(runs // PERIODS)
        stop.set()
        table_.join()
        busy_s += time.perf_counter() - began
        rows_done += sum(done)
    lines = []
    idle_99 = _percentile(idle, 99)
    for name, times in (("idle", idle), ("a table is embedded", loaded)):
        high = _percentile(times, 99)
        cells = f"{1000 * statistics.median(times):.1f}", f"{1000 * high:.1f}", f"{high / idle_99:.2f}"
        lines.append((backend, name, *cells, "" if name == "idle" else f"{rows_done / busy_s:.0f}"))
    return lines


def _percentile(times: list[float], percent: int) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]


def main() -> None:
    """Print the latencies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backends", nargs="*", choices=BACKENDS)
    parser.add_argument("--load", action="store_true", help="only queries while a table is embedded")
    args = parser.parse_args()
    installed = [name for name, library in BACKENDS.items() if find_spec(library) is not None]
    backends = args.backends or [name for name in installed if name != "light" or args.device == "cpu"]
    print(machine())
    print(versions(*(BACKENDS[name].replace("_", "-") for name in backends), "embedreg"))
    if not args.load:
        alone(backends, args.device, args.runs)
    rows = [("back end", "meanwhile", "median ms", "p99 ms", "of the idle p99", "rows/s of the table")]
    for backend in backends:
        rows += under_load(backend, args.device, args.runs)
    table(f"queries that come at random, {args.runs} of each (target 3)", rows)
    print(f"  load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
