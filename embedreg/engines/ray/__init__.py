"""Ray: embedding a Ray dataset, or the pieces of a resumable job, on the actors of a cluster; one model an actor.

`docs/ray.md` is the page about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

if TYPE_CHECKING:
    from embedreg.engines.ray.cluster import plain_errors
    from embedreg.engines.ray.datasets import embed_dataset
    from embedreg.engines.ray.jobs import engine, run_job
    from embedreg.engines.ray.sinks import write_lance, write_parquet
else:
    __getattr__, __dir__ = index(
        __name__,
        {
            "embed_dataset": "datasets",
            "engine": "jobs",
            "plain_errors": "cluster",
            "run_job": "jobs",
            "write_lance": "sinks",
            "write_parquet": "sinks",
        },
    )

__all__ = ["embed_dataset", "engine", "plain_errors", "run_job", "write_lance", "write_parquet"]
