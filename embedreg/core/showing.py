"""What prints or serializes an instance shows no secret, whatever its class computes or prints by itself."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, core_schema

from embedreg.core import instances
from embedreg.core.instances import state_of
from embedreg.errors import EmbedregError
from embedreg.security import redaction

if TYPE_CHECKING:
    from embedreg.core.configured import Configured

__all__ = ["METHODS", "CachedApart", "plain_errors", "serialize_cleaned", "shown"]

# What prints, or is iterated over, as an instance; a class may define its own.
METHODS = (
    *("__format__", "__iter__", "__pretty__", "__repr__", "__repr_args__", "__repr_str__", "__rich_repr__", "__str__"),
    *("_repr_html_", "_repr_json_", "_repr_latex_", "_repr_markdown_", "_repr_mimebundle_", "_repr_pretty_"),
)


def serialize_cleaned(schema: Any) -> None:
    """Let a model's schema serialize through `_cleaned`, around a serializer that its class may define."""
    own = schema.get("serialization")
    if own is not None and own.get("function") is _cleaned:
        return  # a class that another model holds brings its finished schema along
    inner = None if own is None else {key: value for key, value in schema.items() if key != "ref"}
    schema["serialization"] = core_schema.wrap_serializer_function_ser_schema(_cleaned, schema=inner)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Let an error of ours leave a serializer as it is: pydantic would raise one of its own with our text in it."""
    try:
        yield
    except PydanticSerializationError as exc:
        problem = exc.__cause__
        if not isinstance(problem, EmbedregError):
            raise
    else:
        return
    raise problem.with_traceback(None)


def _cleaned(instance: Any, serialize: Callable[[Any], Any]) -> Any:
    """Serialize an instance; what its computed fields and own serializers give is cleaned of its secrets."""
    made = serialize(instance)
    held = instance._held_secrets() if hasattr(type(instance), "_held_secrets") else ()
    return redaction.cleaned(made, held) if held else made


def shown(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of a class's own that prints an instance: what it gives is cleaned of the instance's secrets."""

    @functools.wraps(method)
    def show(self: Configured, *args: Any, **kwargs: Any) -> Any:
        made = method(self, *args, **kwargs)
        held = self._held_secrets()
        return (
            iter(redaction.cleaned(list(made), held)) if isinstance(made, Iterator) else (redaction.cleaned(made, held))
        )

    return redaction.guarded(show)


class CachedApart(functools.cached_property[Any]):
    """A cached property whose value, where it holds a secret, is kept outside of the instance's `__dict__`."""

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        if instance is None:
            return self
        name, cache = str(self.attrname), state_of(instance).cached
        if name not in cache:
            value = super().__get__(instance, owner)
            if not instances.holds_any(value, instance._held_secrets()):
                return value
            cache[name] = value
            instance.__dict__.pop(name, None)
        return cache[name]
