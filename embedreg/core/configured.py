"""The protocol of an object with a configuration, for modules below the contract."""

from __future__ import annotations

from typing import Any, Protocol


class Configured(Protocol):
    """An object with a configuration, such as `Value` or `EmbeddingFunction`."""

    _original_args: dict[str, Any]
    _unknown: dict[str, Any]
    _declared: dict[str, Any]

    def raw_fields(self) -> dict[str, Any]:
        """Return the stored field values, references unresolved."""

    @property
    def from_metadata(self) -> bool:
        """Whether this instance was built from stored metadata."""

    def _held_secrets(self) -> list[str]: ...
