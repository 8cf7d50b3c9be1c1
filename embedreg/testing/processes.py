"""Tests in a new process: `ndims()` loads no weights, and another process computes the same vectors."""

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

TIMEOUT_S = 600.0  # enough for a large model on a busy machine
ONLY_FIELDS = (
    "do not use hash(): it differs in each process, unlike hashlib; only the fields and the model may affect a vector"
)


class ProcessContract:
    """The function works in a new Python process, from a pickle and from a table's metadata."""

    def test_ndims_loads_no_weights(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """Creating a local function and calling `ndims()` loads no model; a remote one makes no request."""
        found = _in_a_new_process(function, inputs)
        if "ndims" not in found:
            pytest.skip(f"it cannot be determined: {found['problem']}")
        if function.traits.remote:
            require(
                not found["connected"],
                f"ndims() connected to {', '.join(found['connected'])}.",
                "keep a table of the widths of known models: NDIMS = {'model': 1536}, or add a field for the width",
            )
            return
        hint = "read the width from the model's configuration file, or keep a table of known models"
        require(not found["libraries"], f"ndims() imported {', '.join(found['libraries'])}.", hint)
        require(not found["models"], "ndims() loaded a model into the runtime's cache.", hint)
        size = found["tensor_bytes"]
        require(size <= elsewhere.MAX_TENSOR_BYTES, f"ndims() made {size} bytes of torch tensors.", hint)
        if found["already"] and "torch" not in found["already"]:
            pytest.skip(f"it cannot be determined: the class's own module imports {', '.join(found['already'])}")

    def test_another_process_gives_the_same_vectors(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """A new process with another hash seed unpickles the function and computes the same width and vectors."""
        found = _in_a_new_process(function, inputs)
        if "problem" in found:
            raise flaw(
                f"it does not work in a new process: {found['problem']}.",
                "define the class at the top level of a module that can be imported; keep what it needs in its fields",
            )
        _require_width(found["ndims"], function)
        agree(
            _vectors(found["vectors"], function, inputs),
            embed(function, list(inputs)),
            "this process and another",
            ONLY_FIELDS,
        )

    def test_metadata_rebuilds_the_function(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """The bytes in a table's schema rebuild the same function in a new process."""
        name = name_of(function)
        found = _in_a_new_process(function, inputs)
        if problem := found.get("problem") or found["stored"].get("problem"):
            raise flaw(f"a stored declaration of {name!r} cannot be read back: {problem}.", FROM_FIELDS)
        there = found["stored"]
        before, after = json.loads(_declaration(function))[0]["model"], json.loads(there["declaration"])[0]["model"]
        ours, theirs = before.pop(codec.RESERVED), after.pop(codec.RESERVED)
        require(not (changed := _changed(before, after)), f"read back, {changed} is another value.", FROM_FIELDS)
        require(
            not (changed := _changed(ours, theirs)),
            f"read back, its declaration has other values of {changed}.",
            "let vector_traits() and model_identity() depend only on fields and model, not on earlier calls",
        )
        _require_width(there["ndims"], function)
        agree(
            _vectors(there["vectors"], function, inputs),
            embed(function, list(inputs)),
            "the function and its stored form in a new process",
            ONLY_FIELDS,
        )


def _require_width(ndims: Any, function: EmbeddingFunction) -> None:
    require(ndims == function.ndims(), f"ndims() returns {ndims} in a new process.", "let it depend on the fields only")


def _vectors(data: bytes, function: EmbeddingFunction, inputs: Sequence[Any]) -> np.ndarray:
    return read(np.frombuffer(data, np.float64).reshape(len(inputs), -1), len(inputs), function.ndims())


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    return ", ".join(sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key)))


def _declaration(function: EmbeddingFunction) -> bytes:
    return codec.encode([function.bind("source", "vector")])


def _in_a_new_process(function: EmbeddingFunction, inputs: Sequence[Any]) -> dict[str, Any]:
    """Run `elsewhere` on a function and return its report, which has the key `problem` if it failed.

    It has the key `ndims` if the process came that far.
    """
    cls = type(function)
    names = {reference.name for reference in references.references(function.raw_fields())}
    try:
        pickled = pickle.dumps(function)
    except Exception as exc:  # noqa: BLE001 (another test checks pickles)
        return {"problem": f"{cls.__name__} cannot be pickled ({exc})"}
    task = {
        "path": [os.path.abspath(entry) for entry in sys.path],
        "module": cls.__module__,
        "file": getattr(sys.modules.get(cls.__module__), "__file__", None),
        "function": pickled,
        "declaration": _declaration(function) if registered_name(cls) is not None else None,
        "variables": {name: value for name in sorted(names) if (value := references.variables.find(name)) is not None},
        "inputs": pickle.dumps(list(inputs)),  # unpickled after `ndims()`: their library may be one of those looked for
    }
    return _ask(pickle.dumps(task))


@functools.lru_cache(maxsize=2)
def _ask(task: bytes) -> dict[str, Any]:
    """Send a task to a new process; cached, since three tests send the same one and loading a model is slow."""
    # Through pipes, so that secrets among the variables appear neither in a file nor in the process list.
    done = subprocess.run(
        [sys.executable, "-P", elsewhere.__file__],
        input=task,
        capture_output=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONHASHSEED": "20" if os.environ.get("PYTHONHASHSEED") == "10" else "10"},
    )
    _, mark, report = done.stdout.rpartition(elsewhere.MARK)
    found: dict[str, Any] = pickle.loads(report) if mark else {}
    if "vectors" not in found and "problem" not in found:  # it ended before its last report
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        found["problem"] = f"exit code {done.returncode}: {''.join(last)}"
    return found
