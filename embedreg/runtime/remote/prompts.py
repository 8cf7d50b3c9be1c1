"""Prompts of remote text functions.

A service that takes plain texts leaves the model's prompts to the caller. Vectors without them are valid and worse, so
a model that is known to need them is named when it is used without.
"""

from __future__ import annotations

import logging

from embedreg.core.role import Role
from embedreg.runtime.models import families
from embedreg.runtime.remote.vendor import VendorFunction

__all__ = ["PromptedFunction"]

log = logging.getLogger("embedreg")

_named: set[str] = set()


class PromptedFunction(VendorFunction):
    """A function of a service that takes plain texts: a subclass has the fields `query_prompt` and `document_prompt`.

    None is no prompt, and "" is one: a model that needs prompts is then not named.
    """

    def _prompted(self, batch: list[str], role: Role) -> list[str]:
        """Return texts with the prompt of their role."""
        prompt = self._prompt_of(role)
        if (said := self._missing()) is not None and said not in _named:
            _named.add(said)
            log.warning("%s", said)
        return [prompt + text for text in batch] if prompt else batch

    def _prompt_of(self, role: Role) -> str:
        return getattr(self, "query_prompt" if role == "query" else "document_prompt", None) or ""

    def _missing(self) -> str | None:
        prompts = (getattr(self, name, None) for name in ("query_prompt", "document_prompt"))
        return families.used_without(getattr(self, "name", "") or "", *prompts)

    def _remarks(self) -> list[str]:
        said = self._missing()
        return [*super()._remarks(), *([said] if said else [])]

    def _roles(self) -> tuple[str, str]:
        return self._prompt_of("query"), self._prompt_of("source")
