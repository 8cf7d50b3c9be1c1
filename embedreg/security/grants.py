"""What this process lets stored metadata have.

`admission` holds the rules that ask here; `docs/trust.md` tells them to readers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embedreg.errors import ConfigError
from embedreg.security.addresses import folder_given, forms, is_path, local_path, parse_host, texts_given
from embedreg.support.forks import ForkSafeLock

if TYPE_CHECKING:
    pass

__all__ = ["Grant", "is_path", "path_granted", "trust"]

_grants: list[Grant] = []
_lock = ForkSafeLock()


@dataclass(frozen=True, eq=False)
class Grant:
    """What one `trust(...)` call allows; as a context manager it ends with the block."""

    paths: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    remote_code: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()

    def __enter__(self) -> Grant:
        with _lock:
            if self not in _grants:
                _grants.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self.revoke()

    def revoke(self) -> None:
        """Take the grant back: what is rebuilt from now on lacks it, and no model is read for it any more."""
        with _lock:
            if self in _grants:
                _grants.remove(self)


def trust(
    *,
    paths: Iterable[str | Path] = (),
    hosts: Iterable[str] = (),
    variables: Iterable[str] = (),
    remote_code: Iterable[str] = (),
    fields: Iterable[str] = (),
) -> Grant:
    """Grant stored metadata more than it gets by default, for this process or for a `with` block.

    A grant holds for every thread of the process, since an engine embeds in threads of its own.

    Args:
        paths: folders (and all below them) or files that a stored local path may name.
        hosts: what a stored endpoint may lead to: `host` (any port), `host:port`, or `scheme://host[:port]`.
        variables: `$var:` names that metadata may have in any field, and beside an endpoint that it names.
        remote_code: model names (`name@revision` where a revision is stored, or "*") whose stored
            `trust_remote_code: true` is kept.
        fields: other guarded fields, written `function.field`, that metadata may set.
    Returns:
        The grant: `.revoke()` it, or use it in a `with` statement.
    Raises:
        ConfigError: something that could not grant what it seems to, such as an empty path.
    """
    grant = Grant(
        paths=tuple(folder_given("trust", "paths", item) for item in _given("paths", paths)),
        hosts=tuple(_authority(item) for item in _given("hosts", hosts)),
        variables=tuple(_given("variables", variables)),
        remote_code=tuple(_given("remote_code", remote_code)),
        fields=tuple(_given("fields", fields)),
    )
    return grant.__enter__()


_given = functools.partial(texts_given, "trust")


def _authority(text: str) -> str:
    host = parse_host(text)
    if host is None or not (host.bare or text.rstrip("/") == f"{host.scheme}://{host}"):
        raise ConfigError(
            f"trust(hosts=...) cannot grant {text!r}.", "write hosts=['host'], ['host:port'] or ['https://host']"
        )
    return text.rstrip("/")


def reset() -> None:
    """Take every grant back."""
    with _lock:
        _grants.clear()


def granted(kind: str) -> set[str]:
    """Return everything granted of one kind."""
    with _lock:
        return {value for grant in _grants for value in getattr(grant, kind)}


def path_granted(value: str) -> bool:
    """Say whether a stored local path lies in a granted folder, however it is read and wherever its links lead."""
    folders = granted("paths")
    return bool(folders) and all(_inside(form, folders) for form in forms(value))


def _inside(text: str, folders: set[str]) -> bool:
    path = local_path(text)
    if path is None:
        return False
    plain = Path(os.path.abspath(path))
    for folder in folders:
        real = os.path.realpath(folder)
        # First by its letters alone: following the links of a stored path could already reach for a network share.
        if (plain.is_relative_to(folder) or plain.is_relative_to(real)) and Path(os.path.realpath(path)).is_relative_to(
            real
        ):
            return True
    return False


def host_granted(value: str) -> bool:
    """Say whether a stored URL, or a bare host, leads to a granted host."""
    host = parse_host(value)
    if host is None:
        return False
    known = (parse_host(item) for item in granted("hosts"))
    return any(item is not None and item.covers(host) for item in known)
