"""Needed grants as command-line options."""

from __future__ import annotations

import shlex

from embedreg.errors import EmbedregError, Grant, UntrustedError

__all__ = ["TRUST_OPTIONS", "hint_of", "trusting"]

TRUST_OPTIONS = {
    "paths": "--trust-path",
    "hosts": "--trust-host",
    "variables": "--trust-variable",
    "remote_code": "--trust-remote-code",
    "fields": "--trust-field",
}


def trusting(needed: Grant) -> str:
    """Return the options for the needed grants, on one line to paste."""
    kinds = dict(needed).items()
    options = [f"{TRUST_OPTIONS[kind]} {shlex.quote(value)}" for kind, values in kinds for value in values]
    return f"if you trust where the data comes from: {' '.join(options)}"


def hint_of(exc: EmbedregError) -> str | None:
    """Return the hint of an error, worded for the command line."""
    if isinstance(exc, UntrustedError) and exc.needed:
        return trusting(exc.needed)
    return exc.shell_hint or exc.hint
