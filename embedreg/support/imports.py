"""Optional libraries: imported when they are first used, and asked for by name when they are missing."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from types import ModuleType

from embedreg.errors import MissingExtraError

__all__ = ["attempt_import_or_raise", "did_you_mean", "importable"]


def attempt_import_or_raise(module: str, package: str | None = None, *, extra: str | None = None) -> ModuleType:
    """Import an optional module, or say how to install it.

    Args:
        module: the name to import, dotted if need be.
        package: what to `pip install`, when it differs from the module.
        extra: the embedreg extra that brings it, preferred in the hint.
    Raises:
        MissingExtraError: it is not installed. A broken installation keeps its own error.
    Source: LanceDB's `lancedb.util.attempt_import_or_raise`, whose name and first two arguments these are.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        root = module.partition(".")[0]
        if exc.name is not None and exc.name.partition(".")[0] != root:
            raise  # the library is there and one of its own needs is not: its message is the better one
        if module != root and importlib.util.find_spec(root) is not None:
            raise MissingExtraError(
                f"the library {package or root!r} has no module {module!r}; it may be too old or too new.",
                f"pip install --upgrade {package or root}",
            ) from None
        what = f"'embedreg[{extra}]'" if extra else (package or root)
        raise MissingExtraError(f"the library {package or root!r} is not installed.", f"pip install {what}") from None


def importable(module: str) -> bool:
    """Say whether a module is installed, without importing it; a parent package of it may be."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing, or a module was made by hand
        return module in sys.modules


_LONGEST = 80  # characters of a name
_COMPARED = 500  # names


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? " for the closest known word, whatever its case, or nothing."""
    if len(word) > _LONGEST:  # nobody mistyped that; and comparing takes the product of the lengths
        return ""
    plain = {_plain(name): name for name in sorted(name for name in known if len(name) <= _LONGEST)[:_COMPARED]}
    close = difflib.get_close_matches(_plain(word), plain, n=1, cutoff=0.6)
    return f"did you mean {plain[close[0]]!r}? " if close else ""


def _plain(word: str) -> str:
    return word.casefold().replace("_", "-")
