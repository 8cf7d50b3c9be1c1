"""The script that `processes` runs in a new process: it rebuilds one function and writes a report.

It is run by its path, so that nothing of embedreg is imported before the caller's `sys.path` is set. It writes the
report once after `ndims()`, and once more with the vectors, which may end the process.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["MARK", "MAX_TENSOR_BYTES"]

MARK = b"\n--- embedreg.testing report ---\n"  # a function may print something before
# Libraries that only run models: `ndims()` must not import them.
LIBRARIES = ("ctranslate2", "jax", "llama_cpp", "onnxruntime", "openvino", "tensorflow", "torch")
MAX_TENSOR_BYTES = 2**20  # torch creates small tensors itself; the smallest models have megabytes


def main() -> None:
    """Read a task from stdin, and write a report to stdout."""
    task = pickle.load(sys.stdin.buffer)
    sys.path[:] = task["path"]
    report: dict[str, Any] = {}
    try:
        _fill(report, task)
    except Exception as exc:  # noqa: BLE001 (every error is reported)
        report["problem"] = f"{type(exc).__name__}: {exc}"
    _write(report)


def _write(report: dict[str, Any]) -> None:
    sys.stdout.buffer.write(MARK + pickle.dumps(report))
    sys.stdout.buffer.flush()


def _fill(report: dict[str, Any], task: dict[str, Any]) -> None:
    _import(task["module"], task["file"])
    from embedreg.runtime import cache
    from embedreg.security.variables import variables

    already, tensors = _loaded(), _tensor_bytes()
    connected: set[str] = set()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            connected.add(str(arguments[1][0]))

    sys.addaudithook(note)
    with variables.scope(task["variables"]):
        function = pickle.loads(task["function"])
        report |= {
            "ndims": function.ndims(),
            "already": sorted(already),
            "libraries": sorted(_loaded() - already),
            "models": len(cache.models.keys()),
            "tensor_bytes": _tensor_bytes() - tensors,
            "connected": sorted(connected),
        }
        _write(report)
        inputs = pickle.loads(task["inputs"])
        report["vectors"] = _vectors(function, inputs)
        if task["declaration"] is not None:
            report["stored"] = _from_stored(task, function, inputs)


def _from_stored(task: dict[str, Any], original: Any, inputs: list[Any]) -> dict[str, Any]:
    """Rebuild the function from its declaration with everything granted: trust is not tested here."""
    from embedreg.core.canonical import registered_name
    from embedreg.declaration import codec
    from embedreg.registry import get_registry
    from embedreg.security import references
    from embedreg.security.addresses import is_path, parse_host
    from embedreg.security.grants import trust

    name, fields = registered_name(type(original)), original.raw_fields()
    texts = list(_texts(fields))
    with trust(
        paths=[text for text in texts if is_path(text)],
        hosts=[str(host) for text in texts if "://" in text and (host := parse_host(text)) is not None],
        variables=sorted({reference.name for reference in references.references(fields)}),
        remote_code=["*"],
        fields=[f"{name}.{field}" for field in fields],
    ):
        found = get_registry().parse_functions({codec.KEY: task["declaration"]})
        if found.problems:
            return {"problem": str(found.problems["vector"])}
        function = found["vector"].function
        return {
            "ndims": function.ndims(),
            "vectors": _vectors(function, inputs),
            "declaration": codec.encode([function.bind("source", "vector")]),
        }


def _vectors(function: Any, inputs: list[Any]) -> bytes:
    import numpy as np

    from embedreg.arrow.vectors import as_matrix

    matrix = as_matrix(function.compute_source_embeddings(list(inputs)), len(inputs), function.ndims())[0]
    return matrix.astype(np.float64).tobytes()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _import(name: str, file: str | None) -> None:
    """Import the module of the function's class; a test file may be outside of the import path."""
    if file is not None:
        parts, path = name.split("."), Path(file)
        sys.path.append(str(path.parents[len(parts) - (path.stem == parts[-1])]))
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        spec = importlib.util.spec_from_file_location(name, file) if file is not None else None
        if spec is None or spec.loader is None:
            raise
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def _loaded() -> set[str]:
    return {name for name in LIBRARIES if name in sys.modules}


def _tensor_bytes() -> int:
    """Return the bytes of all torch tensors in this process; 0 if torch is not loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    held = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    return sum(item.numel() * item.element_size() for item in held)


if __name__ == "__main__":
    main()
