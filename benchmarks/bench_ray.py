"""What Ray costs around the model, and what a second actor adds: the same rows here, on one actor and on two.

Each way has one core for each model: torch's threads here, one CPU an actor. Starting costs (actors, their Python, the
model) are seconds, whatever the rows: each way embeds a handful of rows too, and its median is taken off.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import interleaved, machine, minilm_folder, table, versions

FEW = 8  # rows that show what starting costs


def corpus(rows: int, folder: Path, files: int) -> Path:
    """Write docstrings of the standard library as a folder of Parquet files; each text once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from embedreg.cli.corpus import collect

    texts = [f"{doc.text} ({row})" for row, doc in enumerate(collect(rows))]
    texts += [f"{texts[row % len(texts)]} ({row})" for row in range(len(texts), rows)]
    folder.mkdir()
    for part in range(files):
        pq.write_table(
            pa.table({"text": texts[part * rows // files : (part + 1) * rows // files]}), folder / f"{part}.parquet"
        )
    return folder


def function(name: str) -> Any:
    """Return the function to measure with."""
    import embedreg

    if name == "hashing":
        return embedreg.get("hashing").create(dim=384)
    return embedreg.get("sentence-transformers").create(name=minilm_folder(), device="cpu")


def bare(declared: Any, source: Path, target: Path) -> None:
    """Embed and write a dataset without a ledger: what the job and Ray are compared with."""
    import pyarrow.parquet as pq

    import embedreg

    target.mkdir()
    for path in sorted(source.glob("*.parquet")):
        pq.write_table(embedreg.embed_table(pq.read_table(path), declared), target / path.name)


def on_ray_data(actors: int, batch_rows: int, declared: Any, source: Path, target: Path) -> None:
    """Embed and write a Ray dataset."""
    import ray

    from embedreg.engines import ray as engine

    data = ray.data.read_parquet(str(source))
    out = engine.embed_dataset(data, declared, actors=actors, batch_rows=batch_rows)
    engine.write_parquet(out, str(target))


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--function", choices=("minilm", "hashing"), default="minilm")
    options = parser.parse_args()

    import ray
    import torch

    from embedreg import embed
    from embedreg.engines import ray as engine

    torch.set_num_threads(1)
    declared = function(options.function).bind("text", "vector")
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, object_store_memory=400 << 20, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    batch = -(-options.rows // options.files)
    ways: dict[str, Callable[[Path, Path], object]] = {
        "embed_table, here": partial(bare, declared),
        "embed (the job), here": lambda src, dst: embed(src, dst, declared),
        "embed, Ray, 1 actor": lambda src, dst: embed(src, dst, declared, engine=engine.engine(actors=1)),
        "embed, Ray, 2 actors": lambda src, dst: embed(src, dst, declared, engine=engine.engine(actors=2)),
        "embed_dataset, Ray, 1 actor": partial(on_ray_data, 1, batch, declared),
        "embed_dataset, Ray, 2 actors": partial(on_ray_data, 2, batch, declared),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many, few = corpus(options.rows, folder / "many", options.files), corpus(FEW, folder / "few", 2)
        number = iter(range(10**6))

        def run(call: Callable[[Path, Path], object], source: Path) -> None:
            call(source, folder / f"out-{next(number)}")

        calls = {(way, source): partial(run, call, source) for way, call in ways.items() for source in (many, few)}
        named = {f"{way} {source.name}": call for (way, source), call in calls.items()}
        named["embed_table, here few"]()  # the model of this process is loaded before anything is timed
        taken = interleaved(named, options.runs)
    starting = {way: statistics.median(taken[f"{way} few"]) for way in ways}
    net = {way: [time - starting[way] for time in taken[f"{way} many"]] for way in ways}
    base = "embed_table, here"
    lines = [("way", "starting, s", "rows/s after that", "time, of embed_table's")]
    for way, times in net.items():
        share = statistics.median(a / b for a, b in zip(times, net[base], strict=True))
        rate = (options.rows - FEW) / statistics.median(times)
        lines.append((way, f"{starting[way]:.1f}", f"{rate:,.0f}", f"{share:.2f}"))
    print(machine())
    print(versions("ray", "sentence-transformers", "torch", "pyarrow", "embedreg"))
    table(f"{options.rows:,} rows, {options.files} files, {options.function}, median of {options.runs}", lines)


if __name__ == "__main__":
    main()
