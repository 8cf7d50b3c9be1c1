"""What `import embedreg` costs, beside `import pydantic` with one model class. Target: at most 1.3x."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.common import interleaved, machine, ratio, table, versions

CASES = {
    "pydantic, one model class": "import pydantic\nclass M(pydantic.BaseModel):\n    x: int = 0",
    "import embedreg": "import embedreg",
    "embedreg, a class registered and created": (
        "import embedreg\n"
        "@embedreg.register('mine')\n"
        "class Mine(embedreg.TextEmbeddingFunction):\n"
        "    def ndims(self): return 2\n"
        "    def generate_embeddings(self, texts): return [[0, 1] for _ in texts]\n"
        "embedreg.get('mine').create()"
    ),
    "python alone": "pass",
}


def main(runs: int = 15) -> None:
    """Print the ratios."""
    calls = {
        name: lambda code=code: subprocess.run([sys.executable, "-c", code], check=True) for name, code in CASES.items()
    }
    interleaved(calls, 2)  # bytecode and the file cache
    taken = interleaved(calls, runs)
    base = "pydantic, one model class"
    rows = [("case", "milliseconds", "ratio")]
    rows += [
        (name, f"{1000 * sorted(times)[len(times) // 2]:.0f}", f"{ratio(taken, name, base):.2f}")
        for name, times in taken.items()
    ]
    print(machine())
    print(versions("pydantic", "embedreg"))
    table(f"cold start of a process, median of {runs} (ratio to pydantic with one model class; target 1.3)", rows)


if __name__ == "__main__":
    main()
