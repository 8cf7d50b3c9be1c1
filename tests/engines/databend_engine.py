"""The real Databend query engine (PyPI `databend`) in a process of its own, and the SQL of its tests.

The engine reads its configuration once, when it is imported, keeps its files in the working directory and locks them,
and may end with a panic: so each has a process and a folder to itself.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from typing import Self

_PROGRAM = """
import os, struct, sys
import pyarrow as pa

answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # whatever else prints must not come between the answers
questions = sys.stdin.buffer

from databend import SessionContext

context = SessionContext()
while head := questions.read(8):
    text = questions.read(struct.unpack("<Q", head)[0]).decode()
    try:
        table = context.sql(text).to_arrow_table()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        kind, body = b"T", sink.getvalue().to_pybytes()
    except BaseException as exc:  # a panic is not an Exception
        kind, body = b"E", str(exc).encode()
    answers.write(kind + struct.pack("<Q", len(body)) + body)
    answers.flush()
"""


class SqlError(Exception):
    """What the SQL user reads; the engine's own backtrace is left out."""


class Engine:
    """A running engine, as a context manager.

    Args:
        folder: where it keeps its files.
        addresses: of the servers that its functions may call.
        settings: further lines of the section [query].
    """

    def __init__(self, folder: Path, *addresses: str, settings: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        allowed = ", ".join(f'"{address}"' for address in addresses)
        config = folder / "config.toml"
        config.write_text(f"[query]\nenable_udf_server = true\nudf_server_allow_list = [{allowed}]\n{settings}")
        self._stderr = folder / "stderr.txt"
        with self._stderr.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env={**os.environ, "CONFIG_FILE": str(config)},
            )

    def send(self, text: str) -> None:
        """Send a statement without waiting for its answer."""
        assert self.process.stdin is not None
        data = text.encode()
        self.process.stdin.write(struct.pack("<Q", len(data)) + data)
        self.process.stdin.flush()

    def receive(self) -> pa.Table:
        """Return the answer to a statement that was sent, or raise SqlError."""
        assert self.process.stdout is not None
        head = self.process.stdout.read(9)
        if len(head) < 9:
            raise AssertionError(f"the engine ended: {self._stderr.read_text()[-2000:]}")
        body = self.process.stdout.read(struct.unpack("<Q", head[1:])[0])
        if head[:1] == b"E":
            raise SqlError(body.decode().partition("\n\n")[0])
        return pa.ipc.open_stream(body).read_all()

    def sql(self, text: str) -> pa.Table:
        """Run one statement."""
        self.send(text)
        return self.receive()

    def rows(self, text: str) -> list[dict[str, Any]]:
        """Run one query and return its rows."""
        return self.sql(text).to_pylist()

    def create(self, name: str, address: str, takes: str = "STRING") -> None:
        """Make a function of a server known."""
        self.sql(
            f"CREATE OR REPLACE FUNCTION {name} ({takes}) RETURNS ARRAY(FLOAT) "
            f"LANGUAGE PYTHON HANDLER = '{name}' ADDRESS = '{address}'"
        )

    def kill(self) -> None:
        """End the engine at once, as a cancelled query or a lost machine would."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
