"""`embedreg serve`: embedding functions as SQL functions of a database, until the process gets a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedreg.cli import serve_config, terminal
from embedreg.cli.ddl import ReturnType, TokenEnv, Version, as_comment, described, notes, returns_of
from embedreg.cli.serve_config import Settings
from embedreg.cli.served import As, Function, Group, Grouped, Like, Set, Vector, build, wanted
from embedreg.cli.session import TRUST, AsJson, command

if TYPE_CHECKING:
    from typing import Self

    from embedreg.engines.databend.server import Server

__all__ = ["serve"]

serve = typer.Typer(
    help="Serve embedding functions to a database.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@command
def databend(
    ctx: typer.Context,
    function: Function = None,
    settings: Set = None,
    like: Like = None,
    as_: As = None,
    vector: Vector = None,
    bind: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where to listen; else 127.0.0.1:8815. Port 0 takes a free one."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="The address that Databend calls, if it differs from --bind.")
    ] = None,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="A PEM certificate (chain), for https.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="The certificate's key.")] = None,
    auth_token_env: TokenEnv = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Accept other machines without a token, in a network that is protected otherwise."
        ),
    ] = False,
    metrics_bind: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve /metrics, /live and /ready there over HTTP.")
    ] = None,
    version: Version = None,
    returns: ReturnType = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE.toml", help="Several functions, limits and the rest.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve functions to Databend over Arrow Flight, and print the SQL to paste.

    SIGTERM or Ctrl-C: calls in flight are finished, then the exit code is 0. A second one does not wait for them.
    """
    chosen = Settings() if config is None else serve_config.read(config)
    chosen = chosen.under(
        bind=bind,
        address=address,
        tls_cert=tls_cert,
        tls_key=tls_key,
        auth_token_env=auth_token_env,
        insecure=insecure or None,
        metrics_bind=metrics_bind,
        databend_version=version,
        function=(*chosen.function, *wanted(ctx)),
        returns=returns,
    )
    if not chosen.function:
        raise typer.BadParameter("--function NAME, --like DATA or --config FILE.toml is needed.")
    _bind_variables(chosen)
    # before torch is loaded: by default its idle threads spin, on the cores that read, encode and send
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sql_version = chosen.databend_version or "1.2.453"
    groups = [build(each, returns_of(sql_version, chosen.returns)) for each in chosen.function]
    # raise errors of the statements before anything is loaded
    _statements(groups, chosen, sql_version, chosen.address or "http://127.0.0.1:8815")
    with _Signals() as signals:
        try:
            # installed before the port opens: a client that gets a response may stop this process
            with terminal.status("loading the model"), signals.ending():
                server = _serve(groups, chosen)
        except _StoppedError:
            terminal.note("stopped before it was ready")
            return
        _until_stopped(server, signals, groups, chosen, as_json)


serve.command("databend", cls=Grouped, epilog=TRUST, short_help="To Databend, over Arrow Flight.")(databend)


def _until_stopped(server: Server, signals: _Signals, groups: list[Group], chosen: Settings, as_json: bool) -> None:
    """Print what is served, and wait for a signal and for the calls in flight."""
    with server:
        version = chosen.databend_version or "1.2.453"
        found = _statements(groups, chosen, version, chosen.address or server.address)
        _print(found | {"port": server.port, "metrics_port": server.metrics_port}, as_json)
        if server.metrics_port is not None:
            terminal.note(f"/metrics, /live and /ready over HTTP at {_metrics_place(chosen, server.metrics_port)}")
        terminal.note(f"serving at {found['address']}; Ctrl-C or SIGTERM stops it when its calls are done")
        signals.wait()
        threading.Thread(target=_drain, args=(server, signals), daemon=True).start()
        if second := signals.wait():
            os._exit(128 + second)  # at once: a call that hangs would block every other exit
    done = server.counts()
    failed = done["failed"] + done["expired"] + done["stalled"]
    terminal.note(f"stopped after {done['calls']:,} calls with {done['rows']:,} rows, {failed:,} of them failed")


_PASSED = ("bind", "tls_cert", "tls_key", "insecure", "limits", "metrics_bind", "on_error", "zero_vectors", "warm")


def _bind_variables(chosen: Settings) -> None:
    from embedreg import get_registry

    for name, variable in chosen.env.items():
        serve_config.check_variable(f"env.{name}", variable)
        get_registry().bind_env(name, variable)


def _serve(groups: list[Group], chosen: Settings) -> Server:
    import pyarrow as pa

    from embedreg.engines import databend

    # Arrow's own allocator would keep the memory of each thread's largest batch
    pa.set_memory_pool(pa.system_memory_pool())
    given: dict[str, Any] = {name: getattr(chosen, name) for name in _PASSED if getattr(chosen, name) is not None}
    return databend.serve(
        [item for group in groups for item in group.served], auth_token=_token(chosen.auth_token_env), **given
    )


def _token(variable: str | None) -> str | None:
    if variable is None:
        return None
    serve_config.check_variable("--auth-token-env", variable)
    return os.environ[variable]


def _metrics_place(chosen: Settings, port: int) -> str:
    return f"http://{str(chosen.metrics_bind).rpartition(':')[0]}:{port}"


def _statements(groups: list[Group], chosen: Settings, version: str, address: str) -> dict[str, Any]:
    from embedreg.engines.databend import sql

    token = chosen.auth_token_env is not None
    served = [item for group in groups for item in group.served]
    return {
        "address": address,
        "version": version,
        "functions": described(groups),
        "server_config": sql.server_config(address, version=version),
        "ddl": sql.create_functions(served, address, version=version, token=token),
        "notes": notes(version, token),
    }


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        terminal.print_json(found)
    else:
        config = as_comment("databend-query.toml, which Databend needs to call the server:", found["server_config"])
        sys.stdout.write("\n\n".join([config, as_comment("the functions", *found["notes"]), found["ddl"]]) + "\n")
    sys.stdout.flush()  # the parent process may wait for this output


def _drain(server: Server, signals: _Signals) -> None:
    try:
        server.shutdown()
    finally:
        signals.wake()


class _StoppedError(BaseException):
    """A signal before the server was ready. Not an Exception, so that no handler treats it as a failure."""


class _Signals:
    """SIGTERM and SIGINT as events to wait for.

    They are received through a socket that Python's own handler writes to. A signal may arrive in any thread, and a
    main thread that waits for a lock would not notice it.
    """

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before: dict[int, Any] = {}
        self._ending = False
        if threading.current_thread() is threading.main_thread():  # handlers can be set only in the main thread
            self._fd = signal.set_wakeup_fd(self._writer.fileno())
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def _heard(self, *_: object) -> None:
        if self._ending:
            self._ending = False
            raise _StoppedError

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Interrupt the block when a signal arrives; later signals are left to `wait`."""
        self._ending = True
        try:
            yield
        finally:
            self._ending = False

    def __exit__(self, *_: object) -> None:
        if self._before:
            signal.set_wakeup_fd(self._fd)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()

    def wait(self) -> int:
        """Return the number of the next signal; 0 for `wake`."""
        while (number := self._reader.recv(1)[0]) not in (0, *self._before):
            pass  # another signal
        return number

    def wake(self) -> None:
        """End the wait without a signal."""
        self._writer.send(b"\0")
