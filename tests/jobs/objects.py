"""An S3 server on loopback, and a proxy to it that can be interrupted."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

__all__ = ["Line", "s3_server"]

# Forwards each connection; a process of its own, so that killing it is what a cable pulled out is.
_FORWARD = """
import asyncio, sys
here, there = map(int, sys.argv[1:])
async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()
async def serve(reader, writer):
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", there)
    await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", here) as server:
        await server.serve_forever()
asyncio.run(main())
"""


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server listens there."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)  # there is no event to wait for: the port is another process's


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """Run an S3 server; yield its port."""
    port = free_port()
    line = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


class Line:
    """A proxy to a server on a fixed port, which can be interrupted and restored."""

    def __init__(self, port: int) -> None:
        self.port, self._far = free_port(), port
        self.mend()

    def mend(self) -> None:
        """Let everything through."""
        self._process = subprocess.Popen([sys.executable, "-c", _FORWARD, str(self.port), str(self._far)])
        wait_for(self.port, self._process)

    def cut(self) -> None:
        """End every connection, and let none through."""
        self._process.kill()
        self._process.wait()
