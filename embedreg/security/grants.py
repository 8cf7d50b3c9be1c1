"""Grants: what stored metadata may use in this process.

`admission` holds the rules that check these grants; `docs/trust.md` documents them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from embedreg.errors import ConfigError, Grant, UntrustedError
from embedreg.security.addresses import folder_given, forms, is_path, local_path, parse_host, texts_given
from embedreg.support.forks import ForkSafeLock

__all__ = ["Grant", "Trust", "is_path", "path_granted", "refusal", "trust"]

LONGEST_PATH = 4096  # characters of a path in a message; the limit of Linux
_SPELLED = re.compile(r"(?i)(local-dir|file):")

_grants: list[Trust] = []
_lock = ForkSafeLock()


class Trust:
    """An active grant, returned by `trust(...)`; as a context manager it ends with the block.

    Equal grants are independent: each is revoked on its own.
    """

    def __init__(self, grant: Grant) -> None:
        self.grant = grant

    def __repr__(self) -> str:
        return f"<{'in force' if self in _grants else 'revoked'}: {self.grant}>"

    def __enter__(self) -> Self:
        with _lock:
            if self not in _grants:
                _grants.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self.revoke()

    def revoke(self) -> None:
        """Revoke the grant: functions rebuilt later lack it, and models are no longer read under it."""
        with _lock:
            if self in _grants:
                _grants.remove(self)


def trust(
    grant: Grant | None = None,
    *,
    paths: Iterable[str | Path] = (),
    hosts: Iterable[str] = (),
    variables: Iterable[str] = (),
    remote_code: Iterable[str] = (),
    fields: Iterable[str] = (),
) -> Trust:
    """Grant stored metadata more than the default, for this process or for a `with` block.

    A grant holds for every thread of the process, since an engine embeds in threads of its own.

    Args:
        grant: all grants in one value, such as the `needed` of an `UntrustedError`.
        paths: folders (and all below them) or files that a stored local path may name.
        hosts: allowed hosts of stored endpoints: `host` (any port), `host:port`, or `scheme://host[:port]`.
        variables: `$var:` names that metadata may use in any field, also together with an endpoint of its own.
        remote_code: model names (`name@revision` where a revision is stored, or "*") whose stored
            `trust_remote_code: true` is kept.
        fields: other guarded fields, written `function.field`, that metadata may set.
    Returns:
        The active grant: `.revoke()` it, or use it in a `with` statement.
    Raises:
        ConfigError: an invalid grant, such as an empty path.
    """
    if grant is not None and not isinstance(grant, Grant):
        raise ConfigError(f"trust() cannot take {grant!r}.", "trust(error.needed), or name it: trust(paths=['models'])")
    own = Grant(
        paths=tuple(folder_given("trust", "paths", item) for item in _given("paths", paths)),
        hosts=tuple(_authority(item) for item in _given("hosts", hosts)),
        variables=tuple(_given("variables", variables)),
        remote_code=tuple(_given("remote_code", remote_code)),
        fields=tuple(_given("fields", fields)),
    )
    if grant is None:
        return Trust(own).__enter__()
    return trust(**(grant | own))


_given = functools.partial(texts_given, "trust")


def _authority(text: str) -> str:
    host = parse_host(text)
    if host is None or not (host.bare or text.rstrip("/") == f"{host.scheme}://{host}"):
        raise ConfigError(
            f"trust(hosts=...) cannot grant {text!r}.", "write hosts=['host'], ['host:port'] or ['https://host']"
        )
    return text.rstrip("/")


def refusal(
    message: str, needed: Grant, *, lead: str = "if you trust where the data comes from", other: str = ""
) -> UntrustedError:
    """Return the error for stored metadata that needs a grant, with the granting call as the hint.

    Args:
        other: an alternative, at the end of the hint.
    """
    return UntrustedError(message, f"{lead}: {needed}{other}", needed)


def path_refusal(message: str, value: str) -> UntrustedError:
    """Return the error for a stored local model path that is not granted."""
    needed = path_needed(value)
    if needed is None:
        return UntrustedError(message, "name the model in your own code: its path here is spelled in several ways")
    return refusal(message, needed)


def reset() -> None:
    """Revoke every grant."""
    with _lock:
        _grants.clear()


def granted(kind: str) -> set[str]:
    """Return all granted values of one kind."""
    with _lock:
        return {value for each in _grants for value in each.grant[kind]}


def in_force() -> Grant:
    """Return all active grants as one value."""
    return Grant(**{kind.name: tuple(sorted(granted(kind.name))) for kind in dataclasses.fields(Grant)})


def path_granted(value: str) -> bool:
    """Return whether a stored local path is in a granted folder, in every spelling and after following links."""
    folders = granted("paths")
    return bool(folders) and all(_inside(form, folders) for form in forms(value))


def _inside(text: str, folders: set[str]) -> bool:
    path = local_path(text)
    if path is None:
        return False
    plain = Path(os.path.abspath(path))
    for folder in folders:
        real = os.path.realpath(folder)
        # First by its text alone: following the links of a stored path could already access a network share.
        if (plain.is_relative_to(folder) or plain.is_relative_to(real)) and Path(os.path.realpath(path)).is_relative_to(
            real
        ):
            return True
    return False


def path_needed(value: str) -> Grant | None:
    """Return the grant that a stored local path needs; None if one path does not cover all its spellings.

    It depends on the text alone, since the files of an ungranted path must not be accessed.
    """
    path = local_path(value) if _SPELLED.match(value) else value
    if path is None or not path.strip() or len(value) > LONGEST_PATH or local_path(path) is None:
        return None
    folder = folder_given("trust", "paths", path)
    for form in forms(value):
        inner = local_path(form)
        if inner is None or not Path(os.path.abspath(inner)).is_relative_to(folder):
            return None
    return Grant(paths=(path,))


def host_granted(value: str) -> bool:
    """Return whether a stored URL or host is granted."""
    host = parse_host(value)
    if host is None:
        return False
    known = (parse_host(item) for item in granted("hosts"))
    return any(item is not None and item.covers(host) for item in known)
