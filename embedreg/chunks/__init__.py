"""Documents longer than a model's input limit, cut into chunks: a child table with a row per chunk, kept up to date.

    chunk(parents, child, fn.bind("text", "vector"), key="id", source="body")
    sync(child)                                         # after the parents changed
    best_chunks(rows, "id")                             # a search's rows, nearest first: the best chunk of each parent

`parents` is whatever `embedreg.embed` reads; `child` is one `.parquet` or `.arrow` file, or `DB_DIR/name.lance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

if TYPE_CHECKING:
    from embedreg.chunks.best import best_chunks
    from embedreg.chunks.calls import chunk, sync
    from embedreg.chunks.running import ChunkReport
    from embedreg.chunks.splitters import register_splitter
else:
    __getattr__, __dir__ = index(
        __name__,
        {
            "ChunkReport": "running",
            "best_chunks": "best",
            "chunk": "calls",
            "register_splitter": "splitters",
            "sync": "calls",
        },
    )

__all__ = ["ChunkReport", "best_chunks", "chunk", "register_splitter", "sync"]
