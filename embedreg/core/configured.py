"""What the modules below the contract know of an embedding function: that it has a configuration."""

from __future__ import annotations

from typing import Any, Protocol


class Configured(Protocol):
    """An embedding function as a configuration; `Value` and `EmbeddingFunction` are such."""

    _original_args: dict[str, Any]
    _unknown: dict[str, Any]
    _declared: dict[str, Any]

    def raw_fields(self) -> dict[str, Any]:
        """Return the field values as they are kept."""

    @property
    def from_metadata(self) -> bool:
        """Whether stored metadata asked for this instance."""

    def _held_secrets(self) -> list[str]: ...
