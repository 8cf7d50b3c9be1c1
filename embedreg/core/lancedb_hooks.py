"""What the core needs of LanceDB: markers in a schema, the news of a registration, lancedb's own calls recognised.

Nothing here does anything until lancedb is loaded in this process, and the core never imports an engine: the adapter is
imported by its name, once its library is.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["Marks", "adapted", "adopt_vector_type", "announce", "called_from", "field_info", "unwrap", "watch"]

# module of the engine's library -> our adapter, which is installed once that module is loaded
HOOKS = {"lancedb.embeddings": "embedreg.engines.lancedb.adapter"}

_unusable: set[str] = set()  # libraries that are not as our engine needs them

SOURCE, VECTOR, EXPLICIT = "source_column_for", "vector_column_for", "embedreg_source"
MARKERS = (SOURCE, VECTOR, EXPLICIT)


def loaded(library: str) -> ModuleType | None:
    """Return our engine module for a library that this process has loaded, else None."""
    module = sys.modules.get(library)
    if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
        return None
    return _engine(library)


def _engine(library: str) -> ModuleType | None:
    """Import our engine module; where it cannot be, say so once and do without."""
    if library in _unusable:
        return None
    try:
        return importlib.import_module(HOOKS[library])
    except Exception as exc:  # noqa: BLE001 - neither library may fail to import through the other, whatever it is
        _unusable.add(library)
        problem = f"{type(exc).__name__}: {exc}"
        warnings.warn(f"embedreg's functions are not known to {library}: {problem}", RuntimeWarning, stacklevel=3)
        return None


class Marks(dict[str, Any]):
    """The `json_schema_extra` of a marked field: the user's own extras, and beside them the markers.

    An engine finds the markers with `get`, as LanceDB does, and is answered with its adapter for the model that it is
    reading. A JSON schema reads the dict's own items, among which they are not.
    """

    def __init__(self, extra: dict[str, Any]) -> None:
        super().__init__()
        self._markers: dict[str, Any] = {}
        for key, value in extra.items():
            self[key] = value

    def __setitem__(self, key: str, value: Any) -> None:
        if key in MARKERS:
            self._markers[key] = unwrap(value)
        else:
            super().__setitem__(key, value)

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self._markers:
            return super().get(key, default)
        value = self._markers[key]
        for library in HOOKS:
            if key != EXPLICIT and (engine := loaded(library)) is not None:
                value = engine.answer(value, key, sys._getframe(1))
        return value

    # Where two fields of one Annotated are merged, pydantic unpacks both with `**`, which goes by these three.
    def __getitem__(self, key: str) -> Any:
        if key not in self._markers:
            return super().__getitem__(key)
        return self._markers[key] if key == EXPLICIT else adapted(self._markers[key])

    def __iter__(self) -> Iterator[str]:
        return iter([*super().__iter__(), *self._markers])

    def keys(self) -> Any:
        return dict.fromkeys(self).keys()

    def __bool__(self) -> bool:
        return True  # LanceDB skips extras that are false


def field_info(function: Any, role: str, source: str | None, kwargs: dict[str, Any]) -> Any:
    """Build the pydantic field that marks a source or vector column.

    Args:
        function: the embedding function.
        role: `SOURCE` or `VECTOR`, LanceDB's keys.
        source: for a vector column, the name of its source field where that is not plain.
        kwargs: the rest, for `pydantic.Field`.
    """
    from pydantic import Field  # not above: `import embedreg` loads this module, and not pydantic

    extra = Marks(kwargs.pop("json_schema_extra", None) or {})
    extra[role] = function
    if role == VECTOR:
        kwargs.setdefault("default", None)  # what is to be computed need not be given
        if source is not None:
            extra[EXPLICIT] = source
    return Field(json_schema_extra=extra, **kwargs)


def adapted(function: Any) -> Any:
    """Return what an engine's model may hold in a function's place: the loaded engine's adapter, else the function."""
    for library in HOOKS:
        if (engine := loaded(library)) is not None:
            return engine.adapter_for(function)
    return function


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
    module = str(sys._getframe(depth).f_globals.get("__name__", ""))
    return module == library or module.startswith(f"{library}.")


class _Watcher(importlib.abc.MetaPathFinder):
    """Waits for an engine's library to be imported, then installs our adapter in it, whichever came first."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in HOOKS:
            return None
        for finder in sys.meta_path:  # the other finders, asked in their order, as the import system would
            find = None if isinstance(finder, _Watcher) else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):  # else it is loaded in a way that we cannot follow
                    spec.loader = _Loader(spec.loader, fullname)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """The library's own loader, followed by the installation of our adapter.

    Whatever else is asked of a loader (resources, source) the library's own one answers; it takes its place back
    before the module runs.
    """

    def __init__(self, loader: Any, library: str) -> None:
        self._loader = loader
        self._library = library

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_loader":  # copy and pickle ask before there is one
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _engine(self._library)


def watch() -> None:
    """Install adapters in the libraries that are loaded, now, and in the others when they are."""
    for library in HOOKS:
        loaded(library)
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())
