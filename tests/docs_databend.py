"""What a page of the documentation needs beside it: the servers that it starts, and the real Databend engine.

The page's port is everybody's; here each server takes a free one, and what the page says later is read with that.
"""

from __future__ import annotations

import atexit
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from tests.engines.databend_engine import Engine

PAGES_ADDRESS = "127.0.0.1:8815"
KEYS = {"enable_udf_server", "udf_server_allow_list"}  # what Engine's own configuration says


class Database:
    """One page's database and servers, in the working directory."""

    def __init__(self) -> None:
        self.servers: list[subprocess.Popen[str]] = []
        self.address = ""
        self.engine: Engine | None = None
        self.answered: list[dict[str, Any]] = []
        atexit.register(self.close)

    def serve(self, code: str) -> None:
        """Run a block whose last command is `embedreg serve ...`, and leave that running."""
        command = re.sub(r"(?m)^(embedreg serve .*)", r"exec \1 --bind 127.0.0.1:0 --json", code.replace("\\\n", " "))
        server = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = server.stdout.readline()
            if not line:
                raise SystemExit(f"the server ended with exit code {server.wait()}")
            text += line
        self.servers.append(server)
        # the first server is the one that the page's SQL speaks of
        self.address = self.address or json.loads(text)["address"].partition("://")[2]

    def toml(self, code: str) -> None:
        """Start the engine with the page's configuration."""
        query = tomllib.loads(code.replace(PAGES_ADDRESS, self.address))["query"]
        assert query.keys() == KEYS, query
        assert query["enable_udf_server"] is True
        self.engine = Engine(Path("databend").absolute(), *query["udf_server_allow_list"])

    def sql(self, code: str) -> None:
        """Run the statements of a block."""
        assert self.engine is not None, "the page gives no configuration before its SQL"
        for statement in code.replace(PAGES_ADDRESS, self.address).strip().removesuffix(";").split(";\n"):
            self.answered = self.engine.rows(statement)

    def answer(self, code: str) -> None:
        """Compare the answer to the last statement with what the page says it is."""
        found, said = lines_of(self.answered), [line.rstrip() for line in code.splitlines()]
        if found != said:
            raise SystemExit("\n".join(["the page says", *said, "and the database answers", *found]))

    def close(self) -> None:
        """Stop everything; a server that was asked to stop ends with exit code 0."""
        if self.engine is not None:
            self.engine.__exit__(None, None, None)
        servers, self.servers, self.engine = self.servers, [], None
        for server in servers:
            server.terminate()
        codes = [server.wait(60) for server in servers]
        assert not any(codes), codes


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """Lay rows out as a table, as database shells do."""
    names = list(rows[0]) if rows else []
    cells = [names, *([_shown(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return [lines[0], "-+-".join("-" * width for width in widths), *lines[1:]]


def _shown(value: Any) -> str:
    if value is None:
        return "NULL"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
