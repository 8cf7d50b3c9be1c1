"""Prompts of remote text functions.

A service that takes plain texts leaves the model's prompts to the caller. Vectors without them are valid and worse, so
a model that is known to need them is named when it is used without.
"""

from __future__ import annotations

import logging
from typing import Any

from embedreg.core.instances import metadata_is_building
from embedreg.core.role import Role
from embedreg.runtime.models import families
from embedreg.runtime.remote.vendor import VendorFunction

__all__ = ["PromptedFunction", "missing", "prompt_of", "prompted", "with_known"]

log = logging.getLogger("embedreg")

_named: set[str] = set()
_FORMS = {"query_prompt_name", "document_prompt_name", "query_options", "source_options"}  # other fields for prompts


def prompted(function: Any, batch: list[str], role: Role) -> list[str]:
    """Return texts with the prompt of their role, and log once if the model needs prompts and has none.

    Args:
        function: has the fields `query_prompt`, `document_prompt` and `name`.
    """
    if (note := missing(function)) is not None:
        _log_once(note)
    prompt = prompt_of(function, role)
    return [prompt + text for text in batch] if prompt else batch


def with_known(config: dict[str, Any]) -> dict[str, Any]:
    """Return a new function's configuration with the prompts that its model is known to need.

    One that is rebuilt from stored metadata, or sets prompts in any form, is returned as it is.
    """
    name = config.get("name")
    if not isinstance(name, str) or metadata_is_building() or _FORMS & config.keys():
        return config
    family = families.find(name)
    return config if family is None else {"query_prompt": family.query, "document_prompt": family.document, **config}


def _log_once(note: str) -> None:
    if note not in _named:
        _named.add(note)
        log.warning("%s", note)


def prompt_of(function: Any, role: Role) -> str:
    """Return the text before queries or sources; "" for none."""
    return (function.query_prompt if role == "query" else function.document_prompt) or ""


def missing(function: Any) -> str | None:
    """Return a note about a function whose model needs prompts and has none; None otherwise."""
    return families.used_without(function.name or "", function.query_prompt, function.document_prompt)


class PromptedFunction(VendorFunction):
    """A function of a service that takes plain texts: a subclass has the fields `query_prompt` and `document_prompt`.

    None is no prompt, and "" is one: a model that needs prompts is then not named. A function that LanceDB does not
    have takes the prompts that its model is known to need, unless it is rebuilt from stored metadata.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__(**(with_known(config) if type(self).traits.stock_fields is None else config))

    def _prompted(self, batch: list[str], role: Role) -> list[str]:
        """Return texts with the prompt of their role."""
        if (note := self._missing()) is not None:
            _log_once(note)
        prompt = prompt_of(self, role)
        return [prompt + text for text in batch] if prompt else batch

    def _missing(self) -> str | None:
        return missing(self)

    def _remarks(self) -> list[str]:
        note = self._missing()
        return [*super()._remarks(), *([note] if note else [])]

    def _roles(self) -> tuple[str, str]:
        return prompt_of(self, "query"), prompt_of(self, "source")
