"""Import optional libraries on first use; the error for a missing one names the command that installs it."""

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
    """Import an optional module, or raise with the command that installs it.

    Args:
        module: the name to import, possibly dotted.
        package: the package to `pip install`, if it differs from the module.
        extra: the extra of embedreg that includes it, preferred in the hint.
    Raises:
        MissingExtraError: it is not installed. A broken installation keeps its own error.
    Source: the name and the first two arguments are those of LanceDB's `lancedb.util.attempt_import_or_raise`.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        root = module.partition(".")[0]
        if exc.name is not None and exc.name.partition(".")[0] != root:
            raise  # the library is installed but one of its dependencies is not: its own message is better
        found = importlib.util.find_spec(root) if module != root else None
        if found is not None and found.origin is not None:  # not a namespace, such as `google`, of other libraries
            raise MissingExtraError(
                f"the library {package or root!r} has no module {module!r}; it may be too old or too new.",
                f"pip install --upgrade {package or root}",
            ) from None
        what = f"'embedreg[{extra}]'" if extra else (package or root)
        raise MissingExtraError(f"the library {package or root!r} is not installed.", f"pip install {what}") from None


def importable(module: str) -> bool:
    """Return whether a module is installed, without importing it; its parent packages may be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing, or the module was created by hand
        return module in sys.modules


_LONGEST = 80  # characters of a name
_COMPARED = 500  # names


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? " for the closest known word, ignoring case, or an empty text."""
    if len(word) > _LONGEST:  # not a typo, and the cost of comparing is the product of the lengths
        return ""
    plain = {_plain(name): name for name in sorted(name for name in known if len(name) <= _LONGEST)[:_COMPARED]}
    close = difflib.get_close_matches(_plain(word), plain, n=1, cutoff=0.6)
    return f"did you mean {plain[close[0]]!r}? " if close else ""


def _plain(word: str) -> str:
    return word.casefold().replace("_", "-")
