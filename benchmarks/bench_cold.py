"""Whole processes from a cold start, file caches warm: time and peak memory, the light back end against torch.

Targets on two cores: `embedreg search` of the demo's table 2.0 s and 400 MB, the first vector from `python -c` 1.2 s,
`embedreg --help` 0.4 s. `--python` names the interpreter of an environment with `embedreg[light,lancedb]` alone, and
`--torch-python` that of one with torch; the same one by default.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import machine, table

_QUERY = "read a file line by line"
_FIRST = (
    "import embedreg\n"
    "fn = embedreg.get('sentence-transformers').create(name='all-MiniLM-L6-v2', device='cpu', backend={!r})\n"
    f"assert len(embedreg.embed_query(fn, {_QUERY!r})) == 384\n"
)
# What `embedreg search` did before: torch, and lancedb to read the table.
_SEARCH_BY_TORCH = (
    "import sys, lancedb\n"
    "for name in ('openvino', 'lance'):\n"
    "    sys.modules[name] = None\n"
    "from embedreg.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)
_PLAIN = (
    "from sentence_transformers import SentenceTransformer\n"
    "from embedreg.runtime.models.weights import resolve_model\n"
    "path = resolve_model('all-MiniLM-L6-v2', allow_local=False, download=False).path\n"
    f"assert len(SentenceTransformer(str(path), device='cpu').encode_query({_QUERY!r})) == 384\n"
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--rows", type=int, default=2500, help="of the demo's table")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--torch-python", default=sys.executable)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = _Runner(Path(folder))
        run([asked.python, "-m", "embedreg", "demo", "--dir", "demo", "--rows", str(asked.rows)])
        search = ["search", "demo/docstrings", _QUERY, "--json"]
        light, torch = asked.python, asked.torch_python
        cases = {
            "embedreg --help": ([light, "-m", "embedreg", "--help"], 0.4, None),
            "first vector, light": ([light, "-c", _FIRST.format("light")], 1.2, None),
            "first vector, torch": ([torch, "-c", _FIRST.format("torch")], None, None),
            "first vector, sentence-transformers alone": ([torch, "-c", _PLAIN], None, None),
            "embedreg search, light": ([light, "-m", "embedreg", *search], 2.0, 400),
            "embedreg search, torch": ([torch, "-c", _SEARCH_BY_TORCH, *search], None, None),
        }
        for command, _, _ in cases.values():
            run(command)  # bytecode and the file cache
        taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
        for _ in range(asked.runs):
            for name, (command, _, _) in cases.items():
                taken[name].append(run(command))
    rows = [("process", "s", "processor s", "peak MB", "target s", "target MB")]
    for name, (_, seconds, megabytes) in cases.items():
        wall, used, peak = (statistics.median(each) for each in zip(*taken[name], strict=True))
        targets = ("" if each is None else f"{each:g}" for each in (seconds, megabytes))
        rows.append((name, f"{wall:.2f}", f"{used:.2f}", f"{peak:.0f}", *targets))
    print(machine())
    print(f"load before: {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "")
    table(f"whole processes, medians of {asked.runs}", rows)


class _Runner:
    """Runs commands in a folder, with bytecode kept and without the network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)

    def __call__(self, command: list[str]) -> tuple[float, float, float]:
        """Run a command; return its wall time and its processor's, in seconds, and its peak memory in MB."""
        code = (
            "import os, resource, subprocess, sys, time\n"
            "start = time.perf_counter()\n"
            "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)\n"
            "took = time.perf_counter() - start\n"
            "sys.stderr.buffer.write(done.stderr) if done.returncode else None\n"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
            "print(took, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)\n"
            "sys.exit(done.returncode)\n"
        )
        printed = subprocess.run(
            [sys.executable, "-c", code, *command],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        wall, used, peak = map(float, printed.split())
        return wall, used, peak


if __name__ == "__main__":
    main()
