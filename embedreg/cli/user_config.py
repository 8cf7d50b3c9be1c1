"""The settings file that every command reads: own functions, keys, and what stored metadata and data may name.

Two files are read: the user's own, and the one named by `--config`. The working folder is not searched, since it may be
untrusted. The files contain no secrets: a key is named by its environment variable.

    import = ["my_functions.py"]           # as --import

    [env]                                  # as --env: $var:openai_key is read from OPENAI_API_KEY
    openai_key = "OPENAI_API_KEY"

    [trust]                                # as --trust-path, --trust-host, --trust-variable, ...
    paths = ["models"]
    hosts = ["http://localhost:11434"]
    variables = ["openai_key"]
    remote_code = ["org/model"]
    fields = ["openai.default_headers"]

    [allow]                                # as --allow-dir, --allow-host, --allow-private-host
    dirs = ["photos"]
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from embedreg.errors import ConfigError, StorageError
from embedreg.support.imports import did_you_mean

__all__ = ["VARIABLE", "Granted", "own_file", "read"]

VARIABLE = "EMBEDREG_CONFIG"  # the path of the user's file; empty for none
_MAX_BYTES = 2**20
_TRUST = ("paths", "hosts", "variables", "remote_code", "fields")
_ALLOW = ("dirs", "hosts", "private_hosts")
_ENVIRONMENT_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass
class Granted:
    """The settings of a command, from the files and the command line.

    Attributes:
        imports: modules or files that register functions.
        env: variable of a `$var:` reference -> environment variable.
        trust: "paths", "hosts", "variables", "remote_code", "fields" -> grants for stored metadata.
        allow: "dirs", "hosts", "private_hosts" -> allowed sources of images named by data.
    """

    imports: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    trust: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in _TRUST})
    allow: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in _ALLOW})


def own_file() -> Path | None:
    """Return the path of the user's settings file; None if there is none."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named).expanduser() if named else None
    try:
        path = Path(typer.get_app_dir("embedreg")) / "config.toml"
        return path if path.is_file() else None
    except (OSError, RuntimeError):  # no home folder
        return None


def read(path: Path, into: Granted) -> None:
    """Add the settings of a file; relative paths in it are relative to its folder.

    Raises:
        StorageError: it cannot be read, or other users may write to it. ConfigError: it is invalid.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise StorageError(f"{path} is not a regular file.", "name a TOML file")
            if os.name == "posix" and found.st_mode & stat.S_IWOTH:
                raise StorageError(f"{path} can be changed by every user of this machine.", f"chmod o-w {path}")
            data = file.read(_MAX_BYTES + 1)
    except StorageError:
        raise
    except OSError as exc:
        raise StorageError(f"{path} cannot be read: {exc.strerror}.", "check the path") from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path} has more than {_MAX_BYTES:,} bytes.", "name a settings file")
    try:
        settings = tomllib.loads(data.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as exc:
        # the parser's message contains a position and at most one character of the file
        where = str(exc) if isinstance(exc, tomllib.TOMLDecodeError) else "it is not text in UTF-8"
        raise ConfigError(f"{path} is not valid TOML: {where}", 'write key = "value"') from None
    _add(path, settings, into)


def _add(path: Path, found: dict[str, Any], into: Granted) -> None:
    _known(path, "", found, ("import", "env", "trust", "allow"))
    folder = path.parent.resolve()
    into.imports += [
        str(folder / each) if each.endswith(".py") else each for each in _texts(path, "import", found.get("import", []))
    ]
    for name, variable in _table(path, "env", found).items():
        # the value is not shown, since it may be a secret
        if not isinstance(variable, str) or not _ENVIRONMENT_VARIABLE.fullmatch(variable):
            raise ConfigError(
                f"{path}: env.{name} is not the name of an environment variable.",
                f'{name} = "THE_ENVIRONMENT_VARIABLE", and the key itself in the environment',
            )
        into.env[name] = variable
    for section, names, target in (("trust", _TRUST, into.trust), ("allow", _ALLOW, into.allow)):
        table = _table(path, section, found)
        _known(path, f"{section}.", table, names)
        for name, values in table.items():
            texts = _texts(path, f"{section}.{name}", values)
            folders = name in ("paths", "dirs")
            target[name] += [str(folder / Path(text).expanduser()) for text in texts] if folders else texts


def _table(path: Path, name: str, found: dict[str, Any]) -> dict[str, Any]:
    table = found.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name} is not a table.", f"write [{name}] above its lines")
    return table


def _texts(path: Path, name: str, values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise ConfigError(f"{path}: {name} is not a list of texts.", f'{name.rpartition(".")[2]} = ["..."]')
    return values


def _known(path: Path, where: str, found: dict[str, Any], known: Collection[str]) -> None:
    for key in found:
        if key not in known:
            hint = f"{did_you_mean(key, known)}known: {', '.join(known)}"
            raise ConfigError(f"{path}: unknown setting {f'{where}{key}'!r}.", hint)
