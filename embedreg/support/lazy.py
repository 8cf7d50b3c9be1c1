"""Lazy package attributes: names are loaded on first use, including those of modules of earlier versions."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def load(path: str) -> Any:
    """Import what a table names as "module:Class"; the name may be dotted.

    Raises:
        ImportError, AttributeError: it is not there. Anything: the module may fail as it is imported.
    """
    module, _, attributes = path.partition(":")
    return functools.reduce(getattr, attributes.split("."), importlib.import_module(module))


def index(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__` (PEP 562).

    Args:
        package: the package's `__name__`.
        homes: public name -> the module that defines it, relative to the package; below its parent with a dot in front.
    """

    def attribute(name: str) -> Any:
        try:
            home = homes[name]
        except KeyError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        value = getattr(importlib.import_module(f".{home}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*homes, *getattr(sys.modules[package], "__all__", ())})

    return attribute, names


def keep_old_modules(package: str, homes: Mapping[str, Mapping[str, str]]) -> None:
    """Keep the modules of earlier versions importable: a pickle contains module names of the version that wrote it.

    Args:
        package: the package's `__name__`.
        homes: old module -> name -> the module that defines it now, both relative to the package.
    """
    for name, moved in homes.items():
        module = ModuleType(f"{package}.{name}", "Names of an earlier version, for its pickles.")
        module.__getattr__ = _finder(package, name, moved)  # type: ignore[method-assign]  # PEP 562
        sys.modules.setdefault(module.__name__, module)


def _finder(package: str, module: str, moved: Mapping[str, str]) -> Callable[[str], Any]:
    def find(name: str) -> Any:
        if name not in moved:
            raise AttributeError(f"module '{package}.{module}' has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{moved[name]}"), name)

    return find
