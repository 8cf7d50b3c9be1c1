"""Hooks between the core and LanceDB: schema markers, registration events, and detection of lancedb's calls.

The hooks do nothing until lancedb is loaded in this process. The core never imports an engine: the adapter is imported
by name once its library is loaded.
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

_unusable: set[str] = set()  # libraries whose adapter failed to import

SOURCE, VECTOR, EXPLICIT, TEMPLATE = "source_column_for", "vector_column_for", "embedreg_source", "embedreg_template"
MARKERS = (SOURCE, VECTOR, EXPLICIT, TEMPLATE)
_TEXTS = (EXPLICIT, TEMPLATE)  # markers that are texts, not functions


def loaded(library: str) -> ModuleType | None:
    """Return our engine module for a library that this process has loaded, else None."""
    module = sys.modules.get(library)
    if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
        return None
    return _engine(library)


def _engine(library: str) -> ModuleType | None:
    """Import our engine module; if that fails, warn once and return None."""
    if library in _unusable:
        return None
    try:
        return importlib.import_module(HOOKS[library])
    except Exception as exc:  # noqa: BLE001 - a failing adapter must not break the import of either library
        _unusable.add(library)
        problem = f"{type(exc).__name__}: {exc}"
        warnings.warn(f"embedreg's functions are not known to {library}: {problem}", RuntimeWarning, stacklevel=3)
        return None


class Marks(dict[str, Any]):
    """The `json_schema_extra` of a marked field: the user's extras, and the markers.

    An engine reads the markers with `get`, as LanceDB does, and gets its adapter for the model that it is reading.
    A JSON schema reads the dict's own items, which do not include the markers.
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
            if key not in _TEXTS and (engine := loaded(library)) is not None:
                value = engine.answer(value, key, sys._getframe(1))
        return value

    # When pydantic merges two fields of one Annotated, it unpacks both with `**`, which uses these three methods.
    def __getitem__(self, key: str) -> Any:
        if key not in self._markers:
            return super().__getitem__(key)
        return self._markers[key] if key in _TEXTS else adapted(self._markers[key])

    def __iter__(self) -> Iterator[str]:
        return iter([*super().__iter__(), *self._markers])

    def keys(self) -> Any:
        return dict.fromkeys(self).keys()

    def __bool__(self) -> bool:
        return True  # LanceDB skips extras that are false


def field_info(
    function: Any, role: str, source: str | None, kwargs: dict[str, Any], template: str | None = None
) -> Any:
    """Build the pydantic field that marks a source or vector column.

    Args:
        function: the embedding function.
        role: `SOURCE` or `VECTOR`, LanceDB's keys.
        source: for a vector column, the name of its source field, if it is ambiguous.
        kwargs: the other arguments of `pydantic.Field`.
        template: for a source column, what it is rendered from.
    """
    from pydantic import Field  # not above: `import embedreg` loads this module, and not pydantic

    extra = Marks(kwargs.pop("json_schema_extra", None) or {})
    extra[role] = function
    if template is not None:
        from embedreg.arrow.templates import parse

        extra[TEMPLATE] = parse(template).text
        kwargs.setdefault("default", None)  # as computed columns are
    if role == VECTOR:
        kwargs.setdefault("default", None)  # computed columns are optional
        if source is not None:
            extra[EXPLICIT] = source
    return Field(json_schema_extra=extra, **kwargs)


def adapted(function: Any) -> Any:
    """Return the loaded engine's adapter for a function; without one, the function."""
    for library in HOOKS:
        if (engine := loaded(library)) is not None:
            return engine.adapter_for(function)
    return function


def adopt_vector_type(vector_type: type) -> None:
    """Make our vector type acceptable in the models of the loaded engines."""
    for library in HOOKS:
        if (engine := loaded(library)) is not None:
            engine.adopt_vector_type(vector_type)


def unwrap(function: Any) -> Any:
    """Return the function behind an engine's adapter; any other value unchanged."""
    return getattr(function, "embedreg_function", function)


def announce(name: str) -> None:
    """Notify the loaded engines of a newly registered function name."""
    for library in HOOKS:
        if (engine := loaded(library)) is not None:
            engine.offer(name)


def called_from(library: str, depth: int = 2) -> bool:
    """Return whether the code that called our caller belongs to a library.

    LanceDB does not otherwise indicate whether it is storing or rebuilding a declaration.
    """
    module = str(sys._getframe(depth).f_globals.get("__name__", ""))
    return module == library or module.startswith(f"{library}.")


class _Watcher(importlib.abc.MetaPathFinder):
    """An import hook that installs our adapter once an engine's library is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in HOOKS:
            return None
        for finder in sys.meta_path:  # try the other finders in order, as the import system does
            find = None if isinstance(finder, _Watcher) else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):  # other kinds of loaders cannot be wrapped
                    spec.loader = _Loader(spec.loader, fullname)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """The library's own loader, followed by the installation of our adapter.

    Other requests to the loader (resources, source) go to the library's own one, which is put back before the module
    runs.
    """

    def __init__(self, loader: Any, library: str) -> None:
        self._loader = loader
        self._library = library

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_loader":  # copy and pickle look these up before `_loader` is set
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
    """Install adapters in the libraries that are loaded, and in the others when they are imported."""
    for library in HOOKS:
        loaded(library)
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())
