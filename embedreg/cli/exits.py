"""Exit codes: their meanings, and the code of each error."""

from __future__ import annotations

from embedreg import errors
from embedreg.errors import DriftError, EmbedregError, MissingExtraError, ModelNotFoundError, UntrustedError

__all__ = [
    "BROKEN_PIPE",
    "BUG",
    "DRIFT",
    "ERROR",
    "EXIT_CODES",
    "INTERRUPTED",
    "MISSING",
    "OK",
    "TERMINATED",
    "UNTRUSTED",
    "code_of",
]

OK, ERROR, USAGE, UNTRUSTED, DRIFT, MISSING, BUG = 0, 1, 2, 3, 4, 5, 70
INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # 128 + the signal number, as in shells

EXIT_CODES = {
    OK: "done",
    ERROR: "an error: a file, a column, a setting, a failed call, bad rows",
    USAGE: "the command line itself is wrong",
    UNTRUSTED: "stored metadata asks for what was not granted",
    DRIFT: "the function does not return the stored vectors, or an audit found others",
    MISSING: "a library or a model is not installed",
    BUG: "a bug in embedreg or in an imported module; see --debug",
    INTERRUPTED: "stopped by Ctrl-C; nothing half-written stays",
    BROKEN_PIPE: "the reader of the output closed it",
    TERMINATED: "stopped by SIGTERM; nothing half-written stays",
}

_BY_ERROR: tuple[tuple[type[BaseException], int], ...] = (
    (UntrustedError, UNTRUSTED),
    (DriftError, DRIFT),
    (MissingExtraError, MISSING),
    (ModelNotFoundError, MISSING),
    (EmbedregError, ERROR),
    (BrokenPipeError, BROKEN_PIPE),
    (OSError, ERROR),
    (MemoryError, ERROR),
    (KeyboardInterrupt, INTERRUPTED),
)


def code_of(error: BaseException) -> int:
    """Return the exit code of an error; unexpected errors are bugs, except those of a user's function."""
    if isinstance(error, Exception) and getattr(error, "raised_by", None) is not None:
        return ERROR
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), BUG)


def code_of_name(name: str) -> int:
    """Return the exit code of an embedreg error by its class name, as `embedreg.inspect` reports it."""
    return code_of(getattr(errors, name, errors.EmbedregError)(""))
