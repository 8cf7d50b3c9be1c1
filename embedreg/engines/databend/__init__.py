"""Databend: registered functions as SQL functions, served over Arrow Flight.

    with serve({"ai_embed_384": function}) as server:
        print(server.ddl())
        server.wait()

Databend calls the server for each block of rows. Null, blank and bad rows become NULL; a call that fails (model,
memory, network, key) fails the query, in one line that names the SQL function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

if TYPE_CHECKING:
    from embedreg.engines.databend.server import Server, serve
    from embedreg.engines.databend.spec import DEFAULT_BIND, Limits, Served
    from embedreg.engines.databend.worker import queries_differ
else:
    __getattr__, __dir__ = index(
        __name__,
        {
            "DEFAULT_BIND": "spec",
            "Limits": "spec",
            "Served": "spec",
            "Server": "server",
            "queries_differ": "worker",
            "serve": "server",
        },
    )

__all__ = ["DEFAULT_BIND", "Limits", "Served", "Server", "queries_differ", "serve"]
