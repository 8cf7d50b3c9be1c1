"""Printing and serializing instances without secrets, including output of a class's own methods."""

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

__all__ = ["METHODS", "SecretSafeCachedProperty", "plain_errors", "serialize_cleaned", "shown"]

# Methods that print or iterate over an instance; a class may override them.
METHODS = (
    *("__format__", "__iter__", "__pretty__", "__repr__", "__repr_args__", "__repr_str__", "__rich_repr__", "__str__"),
    *("_repr_html_", "_repr_json_", "_repr_latex_", "_repr_markdown_", "_repr_mimebundle_", "_repr_pretty_"),
)


def serialize_cleaned(schema: Any) -> None:
    """Wrap a model's schema to serialize through `_cleaned`, around any serializer of its class."""
    own = schema.get("serialization")
    if own is not None and own.get("function") is _cleaned:
        return  # the schema of a class nested in another model is already complete
    inner = None if own is None else {key: value for key, value in schema.items() if key != "ref"}
    schema["serialization"] = core_schema.wrap_serializer_function_ser_schema(_cleaned, schema=inner)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise our errors unchanged from a serializer; pydantic would wrap our text in its own error."""
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
    """Serialize an instance and redact its secrets from the output of computed fields and custom serializers."""
    made = serialize(instance)
    held = instance._held_secrets() if hasattr(type(instance), "_held_secrets") else ()
    return redaction.cleaned(made, held) if held else made


def shown(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a printing method that a class defines: the instance's secrets are redacted from its result."""

    @functools.wraps(method)
    def show(self: Configured, *args: Any, **kwargs: Any) -> Any:
        made = method(self, *args, **kwargs)
        held = self._held_secrets()
        return (
            iter(redaction.cleaned(list(made), held)) if isinstance(made, Iterator) else (redaction.cleaned(made, held))
        )

    return redaction.guarded(show)


class SecretSafeCachedProperty(functools.cached_property[Any]):
    """A cached property that keeps values with secrets outside the instance's `__dict__`."""

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
