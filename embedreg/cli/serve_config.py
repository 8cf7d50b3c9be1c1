"""The file of `embedreg serve --config`: what is served, where, and how much at a time.

Secrets do not stand in it: the token is named by its environment variable, a function's keys are `$var:` references.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from embedreg.cli.served import Wanted
from embedreg.errors import ConfigError, StorageError
from embedreg.security import references
from embedreg.security.sensitive import looks_sensitive
from embedreg.support.display import plain
from embedreg.support.imports import did_you_mean

if TYPE_CHECKING:
    from embedreg.engines.databend.spec import Limits, Returns

__all__ = ["Settings", "check_variable", "read"]

# What each value has to be, and what an error calls it.
_KINDS: dict[type, str] = {str: "a text", bool: "true or false", dict: "a table", list: "a list of tables"}
_FUNCTION: dict[str, type] = {
    "name": str, "like": str, "as": str, "vector": str, "role": str, "input": str, "returns": str, "set": dict,
}  # fmt: skip
# What is shown of a variable that is not set: words in capitals, with a number behind them at most. A key has digits.
_SHOWN = re.compile(r"[A-Z]{1,16}(?:_[A-Z]{1,16}){0,5}(?:_[0-9]{1,2})?")
_SECRETS = {"auth_token": "auth_token_env", "token": "auth_token_env"}


@dataclass(frozen=True)
class Settings:
    """How a server is set up; None where nothing was said.

    Attributes:
        bind, metrics_bind: where it listens, "host:port".
        address: how Databend reaches it, where that is not what `bind` says.
        databend_version: the SQL that is printed is for it.
        returns: what functions return that do not say it themselves.
        on_error: what becomes of a bad row, "null" or "raise".
        zero_vectors: what becomes of a vector of zeros, "null", "keep" or "error".
        warm: whether models are loaded before the first call.
        insecure: whether other machines are let in without a token.
        tls_cert, tls_key: PEM files.
        auth_token_env: the environment variable that holds the token.
        env: variable of a `$var:` reference -> environment variable.
        limits: what it takes on.
        function: what it serves.
    """

    bind: str | None = None
    metrics_bind: str | None = None
    address: str | None = None
    databend_version: str | None = None
    returns: Returns | None = None
    on_error: str | None = None
    zero_vectors: str | None = None
    warm: bool | None = None
    insecure: bool | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    auth_token_env: str | None = None
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limits: Limits | None = None
    function: tuple[Wanted, ...] = ()

    def under(self, **given: Any) -> Settings:
        """Return these settings, but for what the command line says otherwise; None says nothing."""
        return dataclasses.replace(self, **{name: value for name, value in given.items() if value is not None})


def read(path: str) -> Settings:
    """Read a file; the paths in it are taken from its folder.

    Raises:
        StorageError: it cannot be read. ConfigError: it is not valid TOML, or has an unknown setting.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # editors on Windows begin a file with a byte order mark
        found = tomllib.loads(text)
    except OSError as exc:
        raise StorageError(f"{path} cannot be read: {exc.strerror}.", "check the path") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as exc:
        # the parser's message names a place, and at most one character of what stands there
        where = str(exc) if isinstance(exc, tomllib.TOMLDecodeError) else "it is not what TOML looks like"
        raise ConfigError(f"{path} is not valid TOML: {where}", 'write key = "value"') from None
    return _settings(path, found)


def check_variable(what: str, variable: str) -> None:
    """Refuse what is not the name of an environment variable that is set; it may be a secret, and is not shown then.

    Raises:
        ConfigError: naming what said it.
    """
    if os.environ.get(variable):
        return
    if _SHOWN.fullmatch(variable) is None:
        raise ConfigError(
            f"{what} is not the name of an environment variable that is set; secrets are not written here.",
            "the variable's name, such as OPENAI_API_KEY, and export OPENAI_API_KEY=...",
        )
    raise ConfigError(f"{what}: the environment variable {variable!r} is not set.", f"export {variable}=...")


def _settings(path: str, found: dict[str, Any]) -> Settings:
    from embedreg.engines.databend.spec import Limits

    kinds: dict[str, type] = {
        **dict.fromkeys(("warm", "insecure"), bool),
        **dict.fromkeys(("env", "limits"), dict),
        "function": list,
    }
    _check(path, "", found, {field.name: kinds.get(field.name, str) for field in dataclasses.fields(Settings)})
    folder = Path(path).parent
    for name in ("tls_cert", "tls_key"):
        if name in found:
            found[name] = str(folder / found[name])
    _check(path, "env.", found.get("env", {}), dict.fromkeys(found.get("env", {}), str))
    for name, value in found.items():
        if name not in ("env", "function", "limits"):  # a function's fields are judged by its class
            references.refuse_hardcoded(f"{path}: {name}", value, sensitive=False)
    if "limits" in found:
        limits = found["limits"]
        _known(path, "limits.", limits, [field.name for field in dataclasses.fields(Limits)])
        try:
            found["limits"] = Limits(**limits)
        except ConfigError as exc:
            raise ConfigError(f"{path}: limits.{exc.message}", exc.hint) from None
    _choice(path, "", found, "returns")
    wanted = tuple(_wanted(path, f"function[{n}].", each, folder) for n, each in enumerate(found.pop("function", [])))
    return Settings(**found, function=wanted)


def _wanted(path: str, where: str, found: Any, folder: Path) -> Wanted:
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: {where.rstrip('.')} is not a table.", "write [[function]] above its lines")
    _check(path, where, found, _FUNCTION)
    if ("name" in found) == ("like" in found):
        raise ConfigError(f"{path}: {where.rstrip('.')} has to say either name or like.", 'name = "hashing"')
    for key, other in (("set", "like"), ("vector", "name")):
        if key in found and other in found:
            raise ConfigError(f"{path}: {where}{key} does not go with {other}.", f"take {key} out")
    for key in ("role", "input", "returns"):
        _choice(path, where, found, key)
    for key in ("name", "like", "as"):
        references.refuse_hardcoded(f"{path}: {where}{key}", found.get(key), sensitive=False)
    like = str(folder / found["like"]) if "like" in found else None
    chosen = {key: found[key] for key in ("vector", "role", "input", "returns") if key in found}
    return Wanted(function=found.get("name"), like=like, name=found.get("as"), settings=found.get("set", {}), **chosen)


def _check(path: str, where: str, found: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Refuse what is not known, and what is of another kind; values are not shown, they may be secrets."""
    _known(path, where, found, kinds)
    for key, value in found.items():
        if type(value) is not kinds[key]:
            raise ConfigError(f"{path}: {where}{key} is not {_KINDS[kinds[key]]}.", "see docs/databend.md")


def _known(path: str, where: str, found: Mapping[str, Any], known: Collection[str]) -> None:
    for key in found:
        if key in known:
            continue
        if not where and key in _SECRETS:
            raise ConfigError(
                f"{path}: a token does not stand in a file.", f'{_SECRETS[key]} = "THE_ENVIRONMENT_VARIABLE"'
            )
        if looks_sensitive(key):
            raise ConfigError(
                f"{path}: {plain(f'{where}{key}', 80)} is not a setting, and a secret does not stand in a file.",
                'a field of set = { ... } as "$var:name", and its environment variable under [env]',
            )
        hint = f"{did_you_mean(key, known)}known: {', '.join(known)}"
        raise ConfigError(f"{path}: unknown setting {f'{where}{key}'!r}.", hint)


def _choice(path: str, where: str, found: Mapping[str, Any], key: str) -> None:
    from embedreg.core.role import Role
    from embedreg.engines.databend.spec import Returns, inputs

    choices = {"input": tuple(inputs()), "returns": get_args(Returns), "role": get_args(Role)}[key]
    if key in found and found[key] not in choices:
        raise ConfigError(f"{path}: invalid {where}{key} = {found[key]!r}.", " or ".join(map(repr, choices)))
