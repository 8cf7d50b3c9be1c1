"""The engines: one file per engine, each imported only where its library already is or is asked for.

The core above never imports an engine. What it needs of one (markers in a schema, the news of a registration) goes
through the few functions here, which do nothing until that engine's library is loaded in this process.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["adapted", "adopt_vector_type", "announce", "called_from", "field_info", "mark", "unwrap", "watch"]

# module of the engine's library -> our adapter, which is installed once that module is loaded
HOOKS = {"lancedb.embeddings": "embedreg.engines.lancedb"}


def loaded(library: str) -> ModuleType | None:
    """Return our engine module for a library that this process has loaded, else None."""
    module = sys.modules.get(library)
    if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
        return None
    return importlib.import_module(HOOKS[library])


def field_info(function: Any, role: str, source: str | None, kwargs: dict[str, Any]) -> Any:
    """Build the pydantic field that marks a source or vector column.

    Args:
        function: the embedding function.
        role: "source_column_for" or "vector_column_for", LanceDB's keys.
        source: for a vector column, the name of its source field where that is not plain.
        kwargs: the rest, for `pydantic.Field`.
    """
    from embedreg import schema

    extra = dict(kwargs.pop("json_schema_extra", None) or {})
    return schema.marked_field(function, role, source, extra, kwargs)


def adapted(function: Any) -> Any:
    """Return what a schema marker should hold: the loaded engine's adapter for a function, else the function."""
    for library in HOOKS:
        if (engine := loaded(library)) is not None:
            return engine.adapter_for(function)
    return function


def mark(owner: type, markers: Any) -> None:
    """Let the loaded engines settle the source/vector pairs of a foreign model class."""
    for library in HOOKS:
        if (engine := loaded(library)) is not None:
            engine.mark(owner, *markers)


def adopt_vector_type(vector_type: type) -> None:
    """Make our vector type one that the loaded engines accept in their models."""
    for library in HOOKS:
        if (engine := loaded(library)) is not None:
            engine.adopt_vector_type(vector_type)


def unwrap(function: Any) -> Any:
    """Return our own function where an engine's adapter stands for it; anything else as it is."""
    return getattr(function, "embedreg_function", function)


def announce(name: str) -> None:
    """Tell the engines that are loaded that a function name is now registered."""
    for library in HOOKS:
        if (engine := loaded(library)) is not None:
            engine.offer(name)


def called_from(library: str, depth: int = 2) -> bool:
    """Say whether the code that called our caller belongs to a library.

    LanceDB gives a function object no other sign of whether it is storing or rebuilding a declaration.
    """
    module = sys._getframe(depth).f_globals.get("__name__", "")
    return module == library or module.startswith(f"{library}.")


class _Watcher(importlib.abc.MetaPathFinder):
    """Waits for an engine's library to be imported, then installs our adapter in it, whichever came first."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in HOOKS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return spec
        spec.loader = _Loader(spec.loader, HOOKS[fullname])
        return spec


class _Loader(importlib.abc.Loader):
    """The library's own loader, followed by the installation of our adapter."""

    def __init__(self, loader: Any, engine: str) -> None:
        self._loader = loader
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        importlib.import_module(self._engine).install()


def watch() -> None:
    """Install adapters in the libraries that are loaded, now, and in the others when they are."""
    for library in HOOKS:
        if (engine := loaded(library)) is not None:
            engine.install()
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())
