"""No secret leaves a function in an error, its cause or its traceback."""

from __future__ import annotations

import copy
import functools
import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any

from embedreg.errors import CallError, EmbedregError
from embedreg.secrets import redact

__all__ = ["guarded", "redacted"]

log = logging.getLogger("embedreg")
_guarding = threading.local()


def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a contract method so that no secret leaves it in an error or its traceback.

    The outermost guarded call of an instance redacts, so that retries inside it still see the vendor's own error.
    """

    @functools.wraps(method)
    def guard(self: Any, *args: Any, **kwargs: Any) -> Any:
        active: set[int] = _guarding.__dict__.setdefault("active", set())
        if id(self) in active:
            return method(self, *args, **kwargs)
        active.add(id(self))
        try:
            return method(self, *args, **kwargs)
        except Exception as exc:
            values = self._held_secrets()
            if not values:
                raise
            problem = redacted(exc, values)
        finally:
            active.discard(id(self))
        # Outside the except block: inside it the vendor's error would ride along as __context__.
        raise problem

    return guard


def redacted(exc: Exception, values: list[str]) -> EmbedregError:
    """Build a stand-in for an error: its type and cleaned message, with neither cause nor frames of the original."""
    log.debug("%s", redact("".join(traceback.format_exception(exc)), values))
    if isinstance(exc, EmbedregError):
        twin = copy.copy(exc)
        twin.__cause__ = twin.__context__ = twin.__traceback__ = None
        twin.message = redact(exc.message, values)
        twin.hint = None if exc.hint is None else redact(exc.hint, values)
        twin.args = (twin.message,)
        return twin
    kind = f"{type(exc).__module__}.{type(exc).__qualname__}".removeprefix("builtins.")
    return CallError(
        f"{kind}: {redact(str(exc), values)}",
        "the function holds a secret, so its own traceback is kept back; logging 'embedreg' at DEBUG shows it, cleaned",
    )
