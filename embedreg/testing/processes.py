"""The promises that only a new process can show: `ndims()` loads no weights, and the vectors are the same elsewhere."""

from __future__ import annotations

import functools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from embedreg.core.base import EmbeddingFunction
from embedreg.core.canonical import registered_name
from embedreg.declaration import codec
from embedreg.security import references
from embedreg.testing import elsewhere
from embedreg.testing.checks import Agreement, embed, flaw, read, require
from embedreg.testing.values import FROM_FIELDS, name_of

__all__ = ["ProcessContract"]

PATIENCE_S = 600.0  # a large model on a busy machine; a hang is a finding all the same
ONLY_FIELDS = (
    "use no hash(): it differs in each process, hashlib does not; "
    "nothing but the fields and the model may change a vector"
)


class ProcessContract:
    """The function, sent to a new Python process as a pickle and as a table's metadata."""

    def test_ndims_loads_no_weights(self, function: EmbeddingFunction) -> None:
        """Creating a local function and asking for its width loads no model; a remote one asks nobody."""
        told = _in_a_new_process(function, None)
        if "problem" in told:
            pytest.skip(f"it cannot be told: {told['problem']}")
        if function.traits.remote:
            require(
                not told["connected"],
                f"ndims() connected to {', '.join(told['connected'])}.",
                "keep a table of the widths of known models: NDIMS = {'model': 1536}, or make the width a field",
            )
            return
        hint = "read the width from the model's configuration file, or keep a table of known models"
        require(not told["libraries"], f"ndims() imported {', '.join(told['libraries'])}.", hint)
        require(not told["models"], "ndims() loaded a model into the runtime's cache.", hint)
        size = told["tensor_bytes"]
        require(size <= elsewhere.MAX_TENSOR_BYTES, f"ndims() made {size} bytes of torch tensors.", hint)
        if told["already"] and "torch" not in told["already"]:
            pytest.skip(f"it cannot be told: the class's own module imports {', '.join(told['already'])}")

    def test_another_process_gives_the_same_vectors(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """A new process, with another hash seed, unpickles the function and gets the same width and vectors."""
        told = _in_a_new_process(function, inputs)
        if "problem" in told:
            raise flaw(
                f"it does not work in a new process: {told['problem']}.",
                "define the class at the top level of a module that can be imported; keep what it needs in its fields",
            )
        _require_width(told["ndims"], function)
        agree(
            _vectors(told["vectors"], function, inputs),
            embed(function, list(inputs)),
            "this process and another",
            ONLY_FIELDS,
        )

    def test_metadata_rebuilds_the_function(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """The bytes in a table's schema rebuild the same function in a process that has never seen it."""
        name = name_of(function)
        told = _in_a_new_process(function, inputs)
        if problem := told.get("problem") or told["stored"].get("problem"):
            raise flaw(f"a stored declaration of {name!r} cannot be read back: {problem}.", FROM_FIELDS)
        there = told["stored"]
        before, after = json.loads(_declaration(function))[0]["model"], json.loads(there["declaration"])[0]["model"]
        ours, theirs = before.pop(codec.RESERVED), after.pop(codec.RESERVED)
        require(not (changed := _changed(before, after)), f"read back, {changed} is another value.", FROM_FIELDS)
        require(
            not (changed := _changed(ours, theirs)),
            f"read back, its declaration says something else of {changed}.",
            "let vector_traits() and model_identity() depend on fields and model alone, not on what was used before",
        )
        _require_width(there["ndims"], function)
        agree(
            _vectors(there["vectors"], function, inputs),
            embed(function, list(inputs)),
            "the function and its stored form in a new process",
            ONLY_FIELDS,
        )


def _require_width(ndims: Any, function: EmbeddingFunction) -> None:
    require(ndims == function.ndims(), f"ndims() gives {ndims} in a new process.", "let it depend on the fields alone")


def _vectors(data: bytes, function: EmbeddingFunction, inputs: Sequence[Any]) -> np.ndarray:
    return read(np.frombuffer(data, np.float64).reshape(len(inputs), -1), len(inputs), function.ndims())


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    return ", ".join(sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key)))


def _declaration(function: EmbeddingFunction) -> bytes:
    return codec.encode([function.bind("source", "vector")])


def _in_a_new_process(function: EmbeddingFunction, inputs: Sequence[Any] | None) -> dict[str, Any]:
    """Run `elsewhere` on a function and return what it found; `problem` is there where it could not."""
    cls = type(function)
    names = {reference.name for reference in references.references(function.raw_fields())}
    try:
        pickled = pickle.dumps(function)
    except Exception as exc:  # noqa: BLE001 (another test is about pickles)
        return {"problem": f"{cls.__name__} cannot be pickled ({exc})"}
    task = {
        "path": [os.path.abspath(entry) for entry in sys.path],
        "module": cls.__module__,
        "file": getattr(sys.modules.get(cls.__module__), "__file__", None),
        "function": pickled,
        "declaration": _declaration(function) if inputs is not None and registered_name(cls) is not None else None,
        "variables": {name: value for name in sorted(names) if (value := references.variables.find(name)) is not None},
        "inputs": None if inputs is None else list(inputs),
    }
    return _ask(pickle.dumps(task))


@functools.lru_cache(maxsize=2)
def _ask(task: bytes) -> dict[str, Any]:
    """Send a task to a new process; two tests ask the same, and a model takes seconds to load."""
    # Through pipes: the secrets among the variables are in no file and in no list of processes.
    done = subprocess.run(
        [sys.executable, "-P", elsewhere.__file__],
        input=task,
        capture_output=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONHASHSEED": "20" if os.environ.get("PYTHONHASHSEED") == "10" else "10"},
    )
    _, mark, report = done.stdout.rpartition(elsewhere.MARK)
    if not mark:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return {"problem": f"exit code {done.returncode}: {''.join(last)}"}
    told: dict[str, Any] = pickle.loads(report)
    return told
