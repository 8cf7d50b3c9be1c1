"""Splitters by name: those of embedreg, a library's, and the user's own callables."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from embedreg.chunks.spans import LEVELS, Measure, Span, cut, fitted, sections
from embedreg.errors import ConfigError, InputError, UntrustedError
from embedreg.support.display import plain
from embedreg.support.imports import attempt_import_or_raise, did_you_mean

__all__ = ["NAMES", "Splitter", "named", "register_splitter", "splitter_of"]

_VERSION = "1"  # of embedreg's own; changed when they cut differently
_MAX_VERSION = 100
Cut = Callable[[str, Measure, int, int], Iterable[Span]]
_F = TypeVar("_F", bound=Callable[[str], Iterable[Span]])


@dataclass(frozen=True)
class Splitter:
    """A way to cut texts.

    Attributes:
        name: as it is stored.
        version: another one may cut differently; "" if it is not known.
    """

    name: str
    version: str
    _cut: Cut

    def spans(self, text: str, measure: Measure, size: int, overlap: int) -> list[Span]:
        """Return the spans of a text's chunks: not blank, without white space at their ends, at most `size` tokens."""
        return list(fitted(text, self._cut(text, measure, size, overlap), measure, size))


def _by(levels: str) -> Cut:
    def spans(text: str, measure: Measure, size: int, overlap: int) -> Iterator[Span]:
        yield from cut(text, (0, len(text)), measure, size, overlap, LEVELS[levels]) if text else ()

    return spans


def _markdown(text: str, measure: Measure, size: int, overlap: int) -> Iterator[Span]:
    for section in sections(text):
        yield from cut(text, section, measure, size, overlap, LEVELS["markdown"])


def _semchunk(text: str, measure: Measure, size: int, overlap: int) -> Iterator[Span]:
    library = attempt_import_or_raise("semchunk", extra="chunks")
    # it counts parts without special tokens and prompts, for which room is left
    room = max(size - measure.own, 1)
    _, spans = library.chunk(text, room, measure.cost, memoize=False, offsets=True, overlap=min(overlap, room - 1))
    yield from spans


_OWN: dict[str, Cut] = {
    "markdown": _markdown,
    "sentences": _by("sentences"),
    "tokens": _by("tokens"),
}
NAMES = (*_OWN, "semchunk")
_registered: dict[str, Callable[[str], Iterable[Span]]] = {}


def register_splitter(name: str) -> Callable[[_F], _F]:
    """Register a callable as a splitter: it takes a text and returns spans, (start, end) in characters.

    What is too long for the function is cut further. An attribute `version` of the callable is stored; a new version
    cuts all parents again.

    Raises:
        ConfigError: a name that is taken or invalid.
    """
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 80 or ":" in name or name in NAMES:
        raise ConfigError(f"invalid name of a splitter {name!r}.", "a name of your own, such as 'legal-sections'")

    def keep(call: _F) -> _F:
        _registered[name] = call
        return call

    return keep


def splitter_of(given: str | Callable[[str], Iterable[Span]]) -> Splitter:
    """Return the splitter that the caller names: "sentences", a registered name, "module:function", or a callable.

    Raises:
        ConfigError: an unknown name, or nothing that can be called there.
    """
    if callable(given):
        module, name = getattr(given, "__module__", ""), getattr(given, "__qualname__", type(given).__name__)
        known = next((key for key, call in _registered.items() if call is given), None)
        return _of(known or f"{module}:{name}", given)
    if not isinstance(given, str):
        raise ConfigError(f"a {type(given).__name__} is not a splitter.", f"splitter='{NAMES[0]}', or a callable")
    module, colon, attribute = given.partition(":")
    if not colon:
        return named(given)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ConfigError(
            f"the splitter {plain(given, 80)!r} cannot be imported: {exc}.", "splitter='module:function'"
        ) from exc
    if not callable(found):
        raise ConfigError(f"the splitter {plain(given, 80)!r} cannot be called.", "splitter='module:function'")
    return _of(given, found)


def named(name: str, *, stored: bool = False) -> Splitter:
    """Return a splitter of embedreg, of the library, or a registered one.

    Args:
        stored: whether metadata names it: nothing is imported for such a name.
    Raises:
        ConfigError: an unknown name. UntrustedError: metadata names a callable that the caller has not passed.
    """
    if name in _OWN:
        return Splitter(name, _VERSION, _OWN[name])
    if name == "semchunk":
        attempt_import_or_raise("semchunk", extra="chunks")
        from importlib.metadata import version

        return Splitter(name, version("semchunk"), _semchunk)
    if name in _registered:
        return _of(name, _registered[name])
    known = [*NAMES, *_registered]
    if stored:
        raise UntrustedError(
            f"the chunks were cut by {plain(name, 80)!r}, which this process has not registered.",
            f"sync(child, splitter=...), or embedreg.chunks.register_splitter({plain(name, 80)!r})",
        ).for_shell("pass it, if you trust it: embedreg chunk SRC DST --splitter module:function")
    hint = f"{did_you_mean(name, known)}known: {', '.join(known)}; or 'module:function'"
    raise ConfigError(f"there is no splitter {plain(name, 80)!r}.", hint)


def _of(name: str, call: Callable[[str], Iterable[Span]]) -> Splitter:
    """Return a user's callable as a splitter whose spans are checked."""

    def spans(text: str, measure: Measure, size: int, overlap: int) -> Iterator[Span]:
        before = 0
        for found in call(text):
            try:
                start, stop = (int(each) for each in found)
            except (TypeError, ValueError):
                raise InputError(
                    f"the splitter {name!r} returned {plain(repr(found), 80)}, not a span.", "return (start, end) pairs"
                ) from None
            if not before <= start < stop <= len(text):
                raise InputError(
                    f"the splitter {name!r} returned the span ({start}, {stop}) of a text of {len(text)} characters, "
                    f"after one that starts at {before}.",
                    "return spans in the order of the text and within it",
                )
            before = start
            yield start, stop

    return Splitter(name, str(getattr(call, "version", ""))[:_MAX_VERSION], spans)
