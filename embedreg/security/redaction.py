"""Redaction: secrets are removed from a function's errors, their causes, notes and tracebacks."""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import json
import logging
import re
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any
from urllib.parse import quote, quote_plus

from embedreg.errors import CallError, EmbedregError, RowError, Words, changed, reason_of
from embedreg.support import containers

__all__ = ["called", "carried", "cleaned", "guarded", "redact", "redacted"]

log = logging.getLogger("embedreg")
MARK = "***"
SHORT = 4  # characters; replacing a shorter secret wherever its letters occur would leave no message to read
_DEEP = 64  # nesting levels of containers
_PART = 8  # characters; shorter lines or words of a long secret are not redacted on their own
_STORED = frozenset({"model_identity", "vector_traits"})  # what these return is stored with the data
_guarding = threading.local()


def redact(text: str, values: Iterable[str]) -> str:
    """Replace each secret value in a text by `***`, longest first, in every spelling that vendors use.

    A secret shorter than four characters is replaced only between spaces or punctuation: inside a longer word it
    may occur by chance.
    """
    spellings = {form for value in values if value for form in _spellings(value) if form}
    for form in sorted(spellings, key=lambda form: (-len(form), form)):
        if len(form) < SHORT:
            text = re.sub(rf"(?<![^\W_]){re.escape(form)}(?![^\W_])", MARK, text)
        else:
            text = text.replace(form, MARK)
    return text


def _spellings(value: str) -> Iterator[str]:
    """Yield a secret as vendors' messages may spell it: whole or by line, quoted, escaped, encoded."""
    parts = {value, value.strip()}
    parts |= {line.strip() for line in value.splitlines() if len(line.strip()) >= _PART}  # a PEM key
    if (words := value.split()) and len(words) == 2 and len(words[1]) >= _PART:
        parts.add(words[1])  # "Bearer <key>": a message may show only the key
    for part in parts:
        yield from (part, part.upper(), part.lower()) if len(part) >= _PART else (part,)
        for quoted in (quote(part, safe=""), quote(part), quote_plus(part)):
            yield quoted
            yield re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), quoted)
        yield repr(part)[1:-1]
        yield json.dumps(part)[1:-1]
        yield html.escape(part)
        data = part.encode("utf-8", "surrogatepass")
        if len(data) >= _PART:
            yield data.hex()
            yield from _base64_cores(data)


def _base64_cores(data: bytes) -> Iterator[str]:
    """Yield the base64 form of bytes at each offset, without the characters that depend on neighbouring bytes.

    HTTP's basic authentication encodes "user:secret", so the secret seldom starts at a multiple of three bytes.
    """
    for offset in range(3):
        first, last = -(-offset * 8 // 6), (offset + len(data)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * offset + data).decode()[first:last]


def guarded(method: Any, *, whole: bool = False, check: Callable[[Any, Any], Any] | None = None) -> Callable[..., Any]:
    """Wrap a method so that no secret leaves it in an error, a traceback, or the reason for a failed row.

    The outermost guarded call of an instance redacts, so that retries inside it still see the vendor's own error. An
    error that is not one of embedreg's gets the function's name: as a note, and for a user's own class as `raised_by`.

    Args:
        method: a function, or another callable that a class may hold as a method (`functools.lru_cache` makes one).
        whole: convert a returned iterator to a list, so that its errors are raised inside the guard.
        check: called with the instance and the result of the outermost call.
    """
    plain = isinstance(method, FunctionType)
    call = method if plain else lambda self, *args, **kwargs: method.__get__(self, type(self))(*args, **kwargs)
    described = getattr(method, "__name__", "") in _STORED

    @functools.wraps(method)
    def guard(self: Any, *args: Any, **kwargs: Any) -> Any:
        active = _active()
        if id(self) in active:
            return call(self, *args, **kwargs)
        active.add(id(self))
        try:
            result = call(self, *args, **kwargs)
            if whole and isinstance(result, Iterator):
                result = list(result)
            if check is not None:
                return check(self, result)
            if type(result) in (list, tuple) or isinstance(result, RowError):
                return _rows_cleaned(self, result)
            return cleaned(result, _held_secrets(self)) if described else result
        except Exception as exc:
            if (problem := _stand_in(self, exc)) is None:
                _blame(self, exc)
                raise
        except BaseException as exc:  # an interrupt is raised unchanged, for its handlers
            _scrub(exc, _held_secrets(self))
            raise
        finally:
            active.discard(id(self))
        del args, kwargs  # inputs: some tools show the variables of each frame in a traceback
        # Outside the except block: inside it, the vendor's error would become the __context__.
        raise problem

    guard.__dict__["__embedreg_guarded__"] = True
    if not plain:  # attributes of functools.lru_cache and cachetools that wraps() does not copy
        guard.__dict__.update({name: getattr(method, name) for name in dir(method) if name.startswith("cache")})
    return guard


def _active() -> set[int]:
    """Return the instances that this thread guards now; a function, since `guard` is pickled with its globals."""
    active: set[int] = _guarding.__dict__.setdefault("active", set())
    return active


def is_active(instance: object) -> bool:
    """Return whether this thread runs a guarded method of an instance now."""
    return id(instance) in _active()


def carried(work: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap work for another thread, so that it guards the same instances; the waiting thread redacts."""
    mine = frozenset(_active())

    def carry(*args: Any) -> Any:
        active = _active()
        added = mine - active
        active |= added
        try:
            return work(*args)
        finally:
            active -= added

    return carry


def is_guarded(method: object) -> bool:
    """Return whether a method was wrapped by `guarded`."""
    return getattr(method, "__embedreg_guarded__", False) is True


def _held_secrets(holder: Any) -> list[str]:
    held: Callable[[], list[str]] | None = getattr(holder, "_held_secrets", None)
    return held() if held is not None else []


def _rows_cleaned(holder: Any, rows: Any) -> Any:
    """Return a function's result with secrets redacted from its RowErrors; the original result is unchanged."""
    if isinstance(rows, RowError):
        return _row_cleaned(rows, held) if (held := _held_secrets(holder)) else rows
    if not any(isinstance(row, RowError) for row in rows) or not (held := _held_secrets(holder)):
        return rows
    return type(rows)([_row_cleaned(row, held) if isinstance(row, RowError) else row for row in rows])


def _row_cleaned(problem: RowError, values: list[str]) -> RowError:
    """Return a plain RowError with the same message, redacted, and without a cause."""
    hint = getattr(problem, "hint", None)
    reason = changed(reason_of(problem), lambda text: redact(text, values))
    hint = hint if hint is None or isinstance(hint, str) else str(hint)
    twin = RowError(reason, None if hint is None else changed(hint, lambda text: redact(text, values)))
    for note in _notes(problem):
        twin.add_note(redact(note, values))
    return twin


def called(holder: Any) -> str:
    """Return the name of a function for messages: its registered name, marked if it is the user's own."""
    name = repr(_name_of(holder))
    return f"your function {name}" if _is_users(holder) else name


def _name_of(holder: Any) -> str:
    return vars(type(holder)).get("__embedding_function_registry_alias__") or type(holder).__name__


def _is_users(holder: Any) -> bool:
    return not type(holder).__module__.startswith("embedreg.")


def _blame(holder: Any, exc: Exception) -> None:
    """Add the function's name to an error that is not one of embedreg's."""
    if isinstance(exc, EmbedregError) or hasattr(exc, "raised_by"):
        return
    with contextlib.suppress(Exception):  # an immutable error class, such as a frozen dataclass
        exc.add_note(f"raised by {called(holder)} ({type(holder).__module__}.{type(holder).__qualname__})")
    with contextlib.suppress(Exception):
        exc.raised_by = _name_of(holder) if _is_users(holder) else None  # type: ignore[attr-defined]  # see EmbedregError


def _stand_in(holder: Any, exc: Exception) -> EmbedregError | None:
    """Return the error to raise in place of another, if a secret is held or the error would be misinterpreted."""
    values = _held_secrets(holder)
    if values:
        problem = redacted(exc, values)
    elif isinstance(exc, StopIteration | StopAsyncIteration):  # it would end the stream that the rows come from
        problem = CallError(_in_words(exc), "next(iterator, default) raises no StopIteration")
        problem.__cause__ = exc
    else:
        return None
    if problem is not exc and _is_users(holder):
        problem.raised_by = _name_of(holder)
    return problem


def redacted(exc: Exception, values: list[str]) -> EmbedregError:
    """Return a replacement for an error: its type and redacted message, without cause and frames.

    An embedreg error is redacted in place.
    """
    trace = redact("".join(traceback.format_exception(exc)), values)
    log.debug("%s", trace)
    if isinstance(exc, EmbedregError):
        _scrub(exc, values)
        return exc.with_traceback(None)
    from embedreg.support import retry

    twin = CallError(
        redact(_in_words(exc), values),
        "the function holds a secret, so its own traceback is withheld; logging 'embedreg' at DEBUG shows it, cleaned",
        transient=retry.is_transient(exc),  # worker threads are guarded separately, and retries see only this error
        retry_after_s=retry.retry_after_s(exc),
    )
    for note in _notes(exc):
        twin.add_note(redact(note, values))
    twin.trace = trace
    return twin


def _in_words(exc: BaseException) -> str:
    kind = f"{type(exc).__module__}.{type(exc).__qualname__}".removeprefix("builtins.")
    try:
        text = str(exc)
    except Exception as broken:  # noqa: BLE001 (the __str__ of a third-party error may raise anything)
        text = f"(its message failed with {type(broken).__name__})"
    members = "; ".join(_in_words(member) for member in exc.exceptions) if isinstance(exc, BaseExceptionGroup) else ""
    return f"{kind}: {text}" + (f": {members}" if members else "")


def _notes(exc: BaseException) -> list[str]:
    notes = getattr(exc, "__notes__", None)
    return [str(note) for note in notes] if isinstance(notes, list | tuple) else []


def _scrub(exc: BaseException, values: list[str]) -> None:
    """Redact an error in place: its texts, notes and members; if a secret is held, its chain is removed."""
    if not values:
        return
    exc.__cause__ = exc.__context__ = None
    notes = _notes(exc)
    for name, value in list(vars(exc).items()):
        vars(exc)[name] = cleaned(value, values)
    exc.args = tuple(cleaned(value, values) for value in exc.args)
    if notes:
        vars(exc)["__notes__"] = [redact(note, values) for note in notes]
    if isinstance(exc, SystemExit):  # the interpreter prints it at exit
        exc.code = cleaned(exc.code, values)
    if isinstance(exc, BaseExceptionGroup):
        for member in exc.exceptions:
            _scrub(member, values)


def cleaned(value: Any, values: Iterable[str], depth: int = 0) -> Any:
    """Return a value with the secrets in its texts redacted, at any depth of containers, models and keys."""
    if isinstance(value, Words):
        return value.changed(lambda text: redact(text, values))
    if isinstance(value, str):
        return value if (text := redact(value, values)) == value else text  # keep a str enum
    if isinstance(value, bytes | bytearray):
        plain = value.decode("latin-1")  # one character per byte, as in the secrets' spellings
        text = redact(plain, [secret.encode("utf-8", "surrogatepass").decode("latin-1") for secret in values])
        return value if text == plain else type(value)(text.encode("latin-1"))
    if depth > _DEEP:
        return MARK  # too deep, or recursive: not worth showing

    if isinstance(value, deque):
        return deque((cleaned(item, values, depth + 1) for item in value), value.maxlen)
    if containers.items_of(value) is None:
        return value
    if isinstance(value, Mapping):
        return {cleaned(key, values, depth + 1): cleaned(item, values, depth + 1) for key, item in value.items()}
    return containers.rebuilt(value, lambda key, item: cleaned(item, values, depth + 1))
