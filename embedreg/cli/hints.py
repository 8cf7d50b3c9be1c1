"""What errors say to do, in options of the command line where the library says it in Python."""

from __future__ import annotations

import re
import shlex

from embedreg.errors import EmbedregError, Grant, UntrustedError

__all__ = ["TRUST_OPTIONS", "hint_of", "in_options", "trusting", "with_options"]

TRUST_OPTIONS = {
    "paths": "--trust-path",
    "hosts": "--trust-host",
    "variables": "--trust-variable",
    "remote_code": "--trust-remote-code",
    "fields": "--trust-field",
}

_BINDING = re.compile(r"bind_env\('(\w+)', '(\w+)'\)")
_REFERENCE = re.compile(r"\b(\w+)='(\$var:\w+)'")
_ALLOWANCE = re.compile(r"allow_images\((dir|host|private_host)s=\['([^']+)'\]")
_CALL = re.compile(
    r"embedreg\.allow_images\((dir|host|private_host)s=\['([^']+)'\]\), or --allow-[\w-]+ on the command line"
)
# What a hint that names an option says for callers in Python, at the end of a sentence or a part of one.
_PYTHON = re.compile(r" \(in Python: .*?\)(?=$|[;,.])")
_FIELD = re.compile(r"(?<![\w.(])(name|pretrained)='((?:local-dir:)?/path/[^']*)'")
_MEANT = re.compile(r"did you mean [^?]+\? ")


def trusting(needed: Grant) -> str:
    """Return the options that grant what is needed, in one line to paste."""
    options = [
        f"{TRUST_OPTIONS[kind]} {shlex.quote(value)}" for kind, values in dict(needed).items() for value in values
    ]
    return f"if you trust where the data comes from: {' '.join(options)}"


def hint_of(exc: EmbedregError) -> str | None:
    """Return what an error says to do, as it is done on the command line."""
    if isinstance(exc, UntrustedError) and exc.needed:
        return trusting(exc.needed)
    return exc.shell_hint or in_options(exc.hint)


def in_options(hint: str | None) -> str | None:
    """Return the options that do here what a hint says in Python; any other hint without what only Python needs."""
    if hint is None:
        return None
    allowed = _ALLOWANCE.findall(hint)
    options = [_allow(kind, value) for kind, value in allowed]
    bindings = _BINDING.findall(hint)
    options += [f"--set '{field}={reference}'" for field, reference in _REFERENCE.findall(hint) if bindings]
    options += [f"--env {name}={variable}" for name, variable in bindings]
    if not options:
        return _FIELD.sub(r"--set \1=\2", _PYTHON.sub("", hint))
    meant = _MEANT.match(hint)
    note = ", with the value in that environment variable" if bindings else ""
    return f"{meant.group() if meant else ''}{' '.join(dict.fromkeys(options))}{note}"


def with_options(message: str) -> str:
    """Return a message, such as the reason of a bad row, that allows by an option and not by a call."""
    return _CALL.sub(lambda call: _allow(*call.groups()), message)


def _allow(kind: str, value: str) -> str:
    return f"--allow-{kind.replace('_', '-')} {shlex.quote(value)}"
