"""Strict JSON for untrusted input: bounded, and read in the same way by all parsers."""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from embedreg.support.containers import WRAPPERS, unwrapped
from embedreg.support.unicode import is_valid

__all__ = ["Malformed", "check", "document", "dumps", "jsonable", "split"]

MAX_CHARACTERS = 4 * 2**20  # a declaration is a few kilobytes; anything near this is an attack on the parser
MAX_TEXT = 2**20  # characters of one text; a probe of 4096 dimensions has 22 thousand
MAX_KEY = 1024  # characters; keys are read often, and shown
MAX_VALUES = 100_000  # values and keys in total: each costs a hundred times its characters in memory
MAX_ITEMS = 1000  # of a list of declarations: a table has a few vector columns
MAX_DEPTH = 32  # more than configurations need, and safe for recursion
_SPACE = re.compile(r"[ \t\n\r]*")


class Malformed(ValueError):
    """Raised for JSON that is not accepted; the message gives the reason and quotes nothing."""


def split(text: str) -> Iterator[tuple[Any, str]]:
    """Yield the items of a JSON list, each with its exact text.

    Raises:
        Malformed: not a JSON list, too large, too deep, or ambiguous between parsers: a duplicate key, NaN, an infinite
            or very large number, half a surrogate pair.
    """
    if len(text) > MAX_CHARACTERS:
        raise Malformed(f"it holds {len(text)} characters")
    position = _after_space(text, 0)
    if text[position : position + 1] != "[":
        raise Malformed("it is empty" if not text.strip() else "it is not a JSON list")
    position = _after_space(text, position + 1)
    more = text[position : position + 1] != "]"
    items = values = 0
    while more:
        items += 1
        if items > MAX_ITEMS:
            raise Malformed(f"it holds more than {MAX_ITEMS} entries")
        try:
            item, stop = _DECODER.raw_decode(text, position)
        except Malformed:
            raise
        except ValueError:
            raise Malformed("it is not JSON") from None
        except RecursionError:
            raise Malformed("it is nested too deeply") from None
        values += check(item)
        if values > MAX_VALUES:
            raise Malformed("it holds too many values")
        yield item, text[position:stop]
        position = _after_space(text, stop)
        more = text[position : position + 1] == ","
        if more:
            position = _after_space(text, position + 1)
        elif text[position : position + 1] != "]":
            raise Malformed("it is not JSON")
    if text[position + 1 :].strip():
        raise Malformed("something follows the list")


def document(
    data: bytes,
    *,
    max_bytes: int = MAX_CHARACTERS,
    max_text: int = MAX_TEXT,
    max_key: int = MAX_KEY,
    max_values: int | None = None,
) -> dict[str, Any]:
    """Parse a file that contains one JSON object.

    Args:
        data: its content.
        max_bytes, max_text, max_key, max_values: the limits of the content, of one text, of one key, and of values.
    Raises:
        Malformed: as `split`, or it is not UTF-8 or not an object.
    """
    if len(data) > max_bytes:
        raise Malformed(f"it holds {len(data)} bytes")
    try:
        found = _DECODER.decode(data.decode("utf-8"))
    except Malformed:
        raise
    except UnicodeDecodeError:
        raise Malformed("it is not UTF-8") from None
    except ValueError:
        raise Malformed("it is not JSON") from None
    except (RecursionError, MemoryError):
        raise Malformed("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise Malformed("it is not a JSON object")
    check(found, max_text=max_text, max_key=max_key, max_values=max_values)
    return found


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Malformed("a key appears twice")
    return found


def _no_constant(name: str) -> Any:
    raise Malformed(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Malformed("a number is too large")
    return value


def _short(text: str) -> int:
    if len(text) > 20:
        raise Malformed("an integer has more than 64 bits")
    return int(text)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_short
)


def check(value: Any, *, max_text: int = MAX_TEXT, max_key: int = MAX_KEY, max_values: int | None = None) -> int:
    """Check a value of JSON types, without recursion; return the number of its values and keys.

    Raises:
        Malformed: nested deeper than `MAX_DEPTH`, more than `MAX_VALUES` values (or `max_values`), a text that is too
            long or invalid Unicode, an integer of more than 64 bits, or a float that is not finite.
    """
    waiting: list[tuple[Any, int]] = [(value, 1)]
    count = 0
    while waiting:
        item, depth = waiting.pop()
        count += 1
        if count + len(waiting) > (MAX_VALUES if max_values is None else max_values):
            raise Malformed("it holds too many values")
        if depth > MAX_DEPTH:
            raise Malformed("it is nested too deeply")
        if isinstance(item, dict):
            if any(isinstance(key, str) and len(key) > max_key for key in item):
                raise Malformed("a key is too long")
            waiting += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list):
            waiting += [(part, depth + 1) for part in item]
        elif isinstance(item, str):
            if len(item) > max_text:
                raise Malformed("a text is too long")
            if not is_valid(item):
                raise Malformed("a text holds half a surrogate pair")
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise Malformed("a number is not finite")
        elif isinstance(item, int) and not -(2**63) <= item < 2**64:
            raise Malformed("an integer has more than 64 bits")
    return count


def jsonable(value: Any) -> Any:
    """Convert a configuration value to JSON types: references unresolved, sets sorted.

    Raises:
        ValueError, TypeError: it has no JSON form.
    """
    if isinstance(value, WRAPPERS):
        return unwrapped(value)
    if isinstance(value, enum.Enum):
        return jsonable(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, BaseModel):
        return jsonable(value.model_dump(by_alias=True))
    if isinstance(value, Mapping):
        return {_key(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((jsonable(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return to_jsonable_python(value)


def _key(key: Any) -> str:
    return key if type(key) is str else str(next(iter(to_jsonable_python({key: None}))))


def dumps(value: Any) -> str:
    """Write JSON that `split` can read, in the layout of LanceDB's Python client.

    Raises:
        Malformed, TypeError, ValueError: it could not be read back.
    """
    check(value)
    return json.dumps(value, indent=2, allow_nan=False)
