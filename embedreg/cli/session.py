"""The session of a command: common options, grants, user imports, and error reporting."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import typer

from embedreg.cli import exits, signals, terminal, user_config
from embedreg.cli.hints import hint_of
from embedreg.errors import EmbedregError, Grant, in_shell
from embedreg.support.display import plain
from embedreg.support.imports import did_you_mean

__all__ = ["TRUST", "AsJson", "Dtype", "UserCodeError", "command", "common_arguments", "report"]

_PAIR = "NAME=ENVIRONMENT_VARIABLE"
# The end of each command's help; the options themselves are hidden, since they would fill the screen.
TRUST = "\n".join(
    [
        "\b",
        "What metadata or data may ask for is granted by",
        "--trust-path DIR, --trust-host HOST,",
        "--trust-variable NAME, --trust-field FUNCTION.FIELD,",
        "--trust-remote-code MODEL, --allow-dir DIR,",
        "--allow-host HOST, --allow-private-host HOST, or",
        "in a settings file: docs/command-line.md",
    ]
)

Dtype = Annotated[
    Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"] | None,
    typer.Option(
        "--dtype",
        help="The type of stored values: quantised to a byte (int8, uint8) or a bit (binary, ubinary) a dimension, "
        "with ranges learnt from the first rows. [default: float32]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for a program to read.")]


def _common(
    import_: Annotated[
        list[str] | None,
        typer.Option(
            "--import", metavar="MODULE_OR_FILE", help="Import this first: it registers your own functions. Repeatable."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Settings in TOML: imports, keys, what is trusted.",
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar=_PAIR, help="Bind a `$var:NAME` to an environment variable. Repeatable."),
    ] = None,
    trust_path: Annotated[
        list[str] | None,
        typer.Option(
            "--trust-path",
            metavar="DIR",
            hidden=True,
            help="Let stored metadata name models in this folder. Repeatable.",
        ),
    ] = None,
    trust_host: Annotated[
        list[str] | None,
        typer.Option(
            "--trust-host", metavar="HOST", hidden=True, help="Let stored metadata name a service there. Repeatable."
        ),
    ] = None,
    trust_variable: Annotated[
        list[str] | None,
        typer.Option(
            "--trust-variable",
            metavar="NAME",
            hidden=True,
            help="Let stored metadata send this `$var:` to a trusted host. Repeatable.",
        ),
    ] = None,
    trust_remote_code: Annotated[
        list[str] | None,
        typer.Option(
            "--trust-remote-code",
            metavar="MODEL",
            hidden=True,
            help="Allow a model's own code where stored metadata requests it; MODEL@REVISION if one is stored. "
            "Repeatable.",
        ),
    ] = None,
    trust_field: Annotated[
        list[str] | None,
        typer.Option(
            "--trust-field",
            metavar="FUNCTION.FIELD",
            hidden=True,
            help="Let stored metadata set this guarded field. Repeatable.",
        ),
    ] = None,
    allow_dir: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-dir",
            metavar="DIR",
            hidden=True,
            help="Let data name files of images or audio in this folder. Repeatable.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="HOST",
            hidden=True,
            help="Let data name images or audio on this web host. Repeatable.",
        ),
    ] = None,
    allow_private_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-private-host",
            metavar="HOST",
            hidden=True,
            help="The same for a host of a private network. Repeatable.",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Define the options of every command; `command` adds them to its signature."""


_given: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar(
    "embedreg_cli_options", default=MappingProxyType({})
)
_OPTIONS = inspect.signature(_common, eval_str=True).parameters


class UserCodeError(EmbedregError, RuntimeError):
    """The module or file of `--import` could not be imported."""


def command(body: Callable[..., None]) -> Callable[..., None]:
    """Return a function as a command with the common options, run in a session."""
    own = inspect.signature(body, eval_str=True)
    shared = {
        name: each for name, each in _OPTIONS.items() if name not in own.parameters
    }  # `serve` has its own --config

    @functools.wraps(body)
    def run(**options: Any) -> None:
        common = {name: options.pop(name) for name in shared}
        token = _given.set(common)
        try:
            with _session(**common):
                body(**options)
        finally:
            _given.reset(token)

    # The signature for typer, which must not use that of the body, without the common options.
    del run.__wrapped__
    parameters = [*own.parameters.values(), *shared.values()]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]  # typeshed has no such attribute
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def common_arguments() -> list[str]:
    """Return the common options of the running command as arguments, for a child process."""
    arguments = []
    for name, value in _given.get().items():
        flag = f"--{name.rstrip('_').replace('_', '-')}"
        if value is True:
            arguments.append(flag)
        for each in value if isinstance(value, list) else [str(value)] if isinstance(value, Path) else ():
            arguments += [flag, each]
    return arguments


@contextlib.contextmanager
def _session(
    import_: list[str] | None,
    env: list[str] | None,
    trust_path: list[str] | None,
    trust_host: list[str] | None,
    trust_variable: list[str] | None,
    trust_remote_code: list[str] | None,
    trust_field: list[str] | None,
    allow_dir: list[str] | None,
    allow_host: list[str] | None,
    allow_private_host: list[str] | None,
    debug: bool,
    config: Path | None = None,
) -> Iterator[None]:
    """Run a command's body with its grants, and report an error as one line, a hint and an exit code.

    Raises:
        typer.Exit: with a code of `exits.EXIT_CODES`, after an error was printed.
    """
    try:
        granted = _granted(config)
        granted.env.update(_pairs(env or []))
        _bind(granted.env)
        for target in (*granted.imports, *(import_ or ())):
            _import(target)
        from stamina.instrumentation import set_on_retry_hooks  # imported here, since `--help` does not need it

        from embedreg import allow_images, trust

        set_on_retry_hooks(())  # stamina's hooks may print to stdout, which is reserved for JSON
        # the hub's client would draw its own progress bars, even without a terminal
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        asked = {
            "paths": trust_path,
            "hosts": trust_host,
            "variables": trust_variable,
            "remote_code": trust_remote_code,
            "fields": trust_field,
        }
        trusted = trust(Grant(**{kind: (*granted.trust[kind], *(values or ())) for kind, values in asked.items()}))
        allow = granted.allow
        allowed = allow_images(
            dirs=[*allow["dirs"], *(allow_dir or ())],
            hosts=[*allow["hosts"], *(allow_host or ())],
            private_hosts=[*allow["private_hosts"], *(allow_private_host or ())],
        )
        with trusted, allowed, _short_warnings(), terminal.stages():
            yield
        sys.stdout.flush()  # detects a full disk or a closed pipe before the exit code is set
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001  # converts errors to exit codes
        if debug:
            traceback.print_exc()
            if isinstance(exc, EmbedregError) and exc.trace is not None:
                sys.stderr.write(exc.trace)
        raise typer.Exit(report(exc, debug=debug)) from None
    except SystemExit as exc:
        if exc.code == exits.TERMINATED:
            raise
        # called by user code: the work is not done, for any exit code
        if debug:
            traceback.print_exc()
        terminal.error(f"your own code called sys.exit({exc.code!r}).", "raise an error instead; --debug shows where")
        raise typer.Exit(exits.ERROR) from None


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Print warnings as one line, without the source position that Python adds."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: terminal.note(f"warning: {plain(message)}")
        yield


def _granted(config: Path | None) -> user_config.Granted:
    """Read the user's own settings, then the file that `--config` names."""
    granted = user_config.Granted()
    for path in (user_config.own_file(), config):
        if path is not None:
            user_config.read(path, granted)
    return granted


def _pairs(pairs: list[str]) -> Iterator[tuple[str, str]]:
    for pair in pairs:
        name, equals, variable = pair.partition("=")
        if not (name and equals and variable):
            raise typer.BadParameter(f"write --env as {_PAIR}.")  # not quoted: it may be a secret
        yield name, variable


def _bind(env: Mapping[str, str]) -> None:
    if not env:
        return
    from embedreg import get_registry

    for name, variable in env.items():
        get_registry().bind_env(name, variable)


def report(exc: BaseException, *, debug: bool = False) -> int:
    """Print an error in one line and a hint; return its exit code.

    Args:
        debug: whether the traceback was printed; if so, the hint does not suggest --debug.
    """
    code = signals.asked() or exits.code_of(exc)
    if code == exits.BROKEN_PIPE:
        # stdout is closed: buffered output must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif code in (exits.INTERRUPTED, exits.TERMINATED):
        terminal.error("stopped.", None)
    elif (name := getattr(exc, "raised_by", None)) is not None:
        message = exc.message if isinstance(exc, EmbedregError) else f"{type(exc).__name__}: {exc}"
        terminal.error(
            f"your function {name!r} raised {message}", None if debug else "run it again with --debug for its traceback"
        )
    elif isinstance(exc, EmbedregError):
        terminal.error(in_shell(exc.message), hint_of(exc))
    elif isinstance(exc, OSError):
        what = f"{exc.filename}: " if exc.filename else ""
        terminal.error(
            f"{what}{exc.strerror or exc}",
            "free some space, or write to another disk" if exc.errno == errno.ENOSPC else None,
        )
    elif isinstance(exc, MemoryError):
        terminal.error("out of memory.", "a smaller --batch-rows needs less")
    else:
        how = "please report it" if debug else "run it again with --debug for the traceback, and please report it"
        terminal.error(f"{type(exc).__name__}: {exc}", how)
    return code


def _import(target: str) -> None:
    """Import a module by name, or a .py file by path, for what it registers.

    Raises:
        UserCodeError: it does not exist, or it raised.
    """
    path = Path(target)
    is_file = target.endswith(".py") or os.sep in target
    if is_file and not path.is_file():
        near = did_you_mean(path.name, [other.name for other in path.parent.glob("*.py")])
        raise UserCodeError(f"--import {target}: there is no such file.", f"{near}a path is taken from {Path.cwd()}")
    # As with `python FILE`, modules beside it can be imported, but they do not shadow installed libraries.
    folder = str(path.resolve().parent) if is_file else os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        if is_file:
            _import_file(path)
        else:
            importlib.import_module(target)
    except ModuleNotFoundError as exc:
        if not is_file and exc.name == target.partition(".")[0]:
            raise UserCodeError(
                f"--import {target}: there is no module {exc.name!r}.",
                "install it, or give a file: --import ./my_functions.py",
            ) from None
        raise UserCodeError(f"--import {target}: {exc}.", f"pip install {exc.name}") from exc
    except EmbedregError:
        raise
    except Exception as exc:
        raise UserCodeError(f"--import {target} raised {type(exc).__name__}: {exc}", "--debug shows where") from exc


def _import_file(path: Path) -> None:
    loaded = getattr(sys.modules.get(path.stem), "__file__", str(path.resolve()))
    ours = path.stem not in sys.stdlib_module_names and loaded == str(path.resolve())
    name = path.stem if ours else f"embedreg_import_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UserCodeError(f"--import {path} is not a Python file.", "give a module's name or a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before running it: pydantic looks up a class's module during class creation
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
