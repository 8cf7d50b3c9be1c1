"""The check of staged vectors before a switch: a sample is embedded again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.core.base import EmbeddingFunctionConfig
from embedreg.errors import DriftError
from embedreg.inspection.attach import compared, refuse_other_vectors

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SAMPLE", "refuse_unproven"]

SAMPLE = 100  # rows; finds a share of 3% of other vectors with a probability of 95%


def refuse_unproven(config: EmbeddingFunctionConfig, source: pa.Array, vector: pa.Array, shown: str) -> None:
    """Raise if a function does not return the vectors that were staged for some sources.

    This finds a cache with vectors of something else, and a function that returns other vectors each time.

    Args:
        config: the declaration.
        source, vector: (n,) sources and staged vectors, without nulls.
        shown: the data, in the message.
    Raises:
        DriftError: they differ.
    """
    if not len(source):
        return
    cosines, lengths = compared(config, source, vector)
    if not len(cosines):
        return
    try:
        refuse_other_vectors(cosines, lengths, config)
    except DriftError as exc:
        raise DriftError(
            f"what was staged for {config.vector_column!r} of {shown} is not what the function returns now: "
            f"{exc.message}",
            "abandon the migration, and begin it again without the vector cache",
        ).for_shell(f"embedreg column abandon {shown}, then migrate without that --cache") from exc
