"""Embedding in Databend: embedreg's server against the one of Databend's own page, on the real engine.

Three tables. Ready-made vectors: rows/s where the model costs nothing, so that only the transport is measured.
Databend's own query over articles, with all-MiniLM-L6-v2, for the first time and again. Small calls: requests/s and
their latency for some clients at once, with and without sharing forward passes.

Every server and the engine are processes of their own; rounds are interleaved. Targets: at least 15 times the rows/s of
`@udf(batch_mode=True)` with ready-made vectors.

Usage: python -m benchmarks.bench_databend [--quick] [--rounds 3] [--seconds 10]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_lancedb import texts
from benchmarks.common import interleaved, machine, minilm_folder, seconds, table, versions

D = 384
READY_ROWS = 100_000
QUESTION = "machine learning techniques"
THEIRS, BATCH, OURS = "databend-udf, @udf", "databend-udf, @udf(batch_mode=True)", "embedreg serve"


# -- servers, each in a process of its own -----------------------------------------------------------------------------


def ready_made() -> np.ndarray:
    """Return the vectors that need no model: (100,000, 384) float32."""
    return np.random.default_rng(0).standard_normal((READY_ROWS, D), np.float32)


def serve_udf(kind: str, port: int, batch: bool) -> None:
    """Serve as Databend's page does, a row at a time or a list of them."""
    from databend_udf import UDFServer, udf

    if kind == "ready":
        vectors = ready_made()

        def encode(inputs: Any) -> Any:
            return vectors[int(inputs)] if isinstance(inputs, str) else vectors[[int(text) for text in inputs]]

    else:
        from sentence_transformers import SentenceTransformer

        encode = SentenceTransformer(minilm_folder(), device="cpu").encode

    @udf(input_types=["STRING"], result_type="ARRAY(FLOAT)", batch_mode=batch)
    def ai_embed(inputs: Any, headers: Any) -> list[Any]:
        return [each.tolist() for each in encode(inputs)]

    server = UDFServer(f"127.0.0.1:{port}")
    server.add_function(ai_embed)
    print(f"http://127.0.0.1:{port}", flush=True)
    server.serve()


def serve_ours(kind: str, **limits: Any) -> None:
    """Serve the same through embedreg."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `embedreg serve` does
    import embedreg
    from embedreg.engines.databend import Limits, serve

    if kind == "ready":
        vectors = ready_made()

        class Ready(embedreg.EmbeddingFunction):
            """Looks its vectors up."""

            traits = embedreg.Traits(modality="text", window=65_536)

            def ndims(self) -> int:
                return D

            def compute_source_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
                import pyarrow.compute as pc

                return vectors[pc.cast(texts, "int64").to_numpy()]

            def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
                return vectors[[int(query)]]

        function: Any = Ready()
    else:
        function = embedreg.get("sentence-transformers").create(name=minilm_folder(), device="cpu")
    with serve({"ai_embed": function}, bind="127.0.0.1:0", limits=Limits(**limits), warm=kind != "ready") as server:
        print(server.address, flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def server(way: str, kind: str, **limits: Any) -> Iterator[str]:
    """Start a server; give its address once it serves."""
    if way == OURS:
        code = f"serve_ours({kind!r}, **{limits!r})"
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        code = f"serve_udf({kind!r}, {port}, {way == BATCH})"
    process = subprocess.Popen(
        [sys.executable, "-c", f"from benchmarks.bench_databend import *; {code}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise SystemExit(f"{way} ended with exit code {process.wait()}")
        host, _, port_text = address.rpartition("/")[2].rpartition(":")
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port_text)), timeout=1):
                break
            time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def engine(addresses: dict[str, str]) -> Iterator[Any]:
    """Start the engine with a function for each server: ai_0, ai_1, ..."""
    from tests.engines.databend_engine import Engine

    with tempfile.TemporaryDirectory() as folder, Engine(Path(folder), *addresses.values()) as running:
        for number, address in enumerate(addresses.values()):
            running.sql(
                f"CREATE FUNCTION ai_{number} (STRING) RETURNS ARRAY(FLOAT) LANGUAGE PYTHON "
                f"HANDLER = 'ai_embed' ADDRESS = '{address}'"
            )
        yield running


# -- the three tables --------------------------------------------------------------------------------------------------


def rows_a_second(rounds: int, rows: dict[str, int]) -> None:
    """Time a query that needs every vector; nothing is kept between rounds."""
    with contextlib.ExitStack() as stack:
        addresses = {
            way: stack.enter_context(server(way, "ready", **({"cache_rows": 0} if way == OURS else {}))) for way in rows
        }
        running = stack.enter_context(engine(addresses))
        for number, count in enumerate(rows.values()):
            running.sql(f"CREATE TABLE t{number} AS SELECT to_string(number) AS content FROM numbers({count})")
        calls: dict[str, Callable[[], object]] = {
            way: lambda number=number: running.sql(f"SELECT max(length(ai_{number}(content))) FROM t{number}")
            for number, way in enumerate(rows)
        }
        for call in calls.values():
            call()
        taken = interleaved(calls, rounds)
    speeds = {way: [rows[way] / took for took in times] for way, times in taken.items()}
    lines = [("server", "rows a query", "rows/s", "of batch_mode")]
    for way, speed in speeds.items():
        paired = statistics.median(a / b for a, b in zip(speed, speeds[BATCH], strict=True))
        lines.append((way, f"{rows[way]:,}", f"{statistics.median(speed):,.0f}", f"{paired:.2f}"))
    table(f"ready-made vectors of {D}, through the engine, median of {rounds} rounds (target 15)", lines)


def pages_query(rounds: int, articles: dict[str, int]) -> None:
    """Time the query of Databend's page; every round has articles of its own, so that none is known."""
    corpus = iter(texts(rounds * max(articles.values())))
    with contextlib.ExitStack() as stack:
        addresses = {way: stack.enter_context(server(way, "model")) for way in articles}
        running = stack.enter_context(engine(addresses))
        running.sql("CREATE TABLE articles (round INT, id INT, content STRING)")
        for number in range(rounds):
            rows = itertools.islice(corpus, max(articles.values()))
            values = ", ".join(f"({number}, {row}, {_literal(text)})" for row, text in enumerate(rows))
            running.sql(f"INSERT INTO articles VALUES {values}")
        taken: dict[str, list[float]] = {way: [] for way in articles}
        again: list[float] = []
        for number in range(rounds):
            for place, (way, count) in enumerate(articles.items()):
                query = (
                    f"SELECT id, cosine_distance(ai_{place}(content), ai_{place}('{QUESTION}')) AS similarity "
                    f"FROM articles WHERE round = {number} AND id < {count} ORDER BY similarity ASC LIMIT 5"
                )
                taken[way].append(seconds(lambda query=query: running.sql(query)))
                if way == OURS:
                    again.append(seconds(lambda query=query: running.sql(query)))
    lines = [("server", "articles", "seconds", "articles/s")]
    taken = {**taken, f"{OURS}, the same again": again}
    for way, times in taken.items():
        count, middle = articles[way.partition(", the")[0]], statistics.median(times)
        lines.append((way, f"{count:,}", f"{middle:.3f}", f"{count / middle:,.0f}"))
    table(f"the page's query, all-MiniLM-L6-v2, median of {rounds} rounds", lines)


def small_calls(clients: Sequence[int], duration_s: float) -> None:
    """Count one-row calls, each of another text, from some clients at once."""
    ways = {"sharing forward passes": {}, "each its own": {"coalesce_rows": 1, "coalesce_window_s": 0.0}}
    lines = [("clients", "passes", "requests/s", "p50 ms", "p99 ms", "of its own")]
    counter = itertools.count()
    with contextlib.ExitStack() as stack:
        addresses = {way: stack.enter_context(server(OURS, "model", **limits)) for way, limits in ways.items()}
        for count in clients:
            found = {way: _call_for(address, count, duration_s, counter) for way, address in addresses.items()}
            base = len(found["each its own"])
            for way, times in found.items():
                cuts = statistics.quantiles(times, n=100, method="inclusive")
                speed = len(times) / duration_s
                cells = (
                    f"{speed:,.0f}",
                    f"{1000 * cuts[49]:.1f}",
                    f"{1000 * cuts[98]:.1f}",
                    f"{len(times) / base:.2f}",
                )
                lines.append((str(count), way, *cells))
    table(f"one-row calls over Flight, all-MiniLM-L6-v2, {duration_s:g} s each", lines)


def _call_for(address: str, clients: int, duration_s: float, counter: Iterator[int]) -> list[float]:
    """Return the seconds of each call that was over in time."""
    from tests.engines.databend_flight import Client

    taken: list[float] = []
    start = threading.Barrier(clients)

    def call() -> None:
        client = Client(address)
        client.call("ai_embed", [f"hello {next(counter)}"])
        start.wait()
        stop = time.perf_counter() + duration_s
        while True:
            text = f"wait for worker number {next(counter)} to finish its part"
            took = seconds(lambda text=text: client.call("ai_embed", [text]))
            if time.perf_counter() > stop:
                return
            taken.append(took)

    threads = [threading.Thread(target=call) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def _literal(text: str) -> str:
    from embedreg.engines.databend.sql import literal

    return literal(text)


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement of small calls")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(machine())
    print(versions("databend", "databend-udf", "pyarrow", "sentence-transformers", "torch", "embedreg"))
    # a row at a time is too slow for as many
    rows_a_second(args.rounds, {THEIRS: 500, BATCH: 2_000, OURS: 20_000} if args.quick else {
        THEIRS: 20_000, BATCH: READY_ROWS, OURS: READY_ROWS,
    })  # fmt: skip
    pages_query(
        args.rounds, {THEIRS: 10, BATCH: 30, OURS: 30} if args.quick else dict.fromkeys((THEIRS, BATCH, OURS), 1000)
    )
    small_calls((1, 4) if args.quick else (1, 4, 16, 64), min(args.seconds, 1.5) if args.quick else args.seconds)
    print(f"  load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
