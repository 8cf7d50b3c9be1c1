"""The file of `embedreg serve --config`: functions, addresses and limits.

It contains no secrets: the token is named by its environment variable, a function's keys are `$var:` references.
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

# The type of each value, and its name in errors.
_KINDS: dict[type, str] = {str: "a text", bool: "true or false", dict: "a table", list: "a list of tables"}
_FUNCTION: dict[str, type] = {
    "name": str, "like": str, "as": str, "vector": str, "role": str, "input": str, "returns": str, "set": dict,
}  # fmt: skip
# Only such names of unset variables are shown: capital words, optionally with a final number. A key would differ.
_SHOWN = re.compile(r"[A-Z]{1,16}(?:_[A-Z]{1,16}){0,5}(?:_[0-9]{1,2})?")
_SECRETS = {"auth_token": "auth_token_env", "token": "auth_token_env"}


@dataclass(frozen=True)
class Settings:
    """The settings of a server; None if not set.

    Attributes:
        bind, metrics_bind: where it listens, "host:port".
        address: the address that Databend uses, if it differs from `bind`.
        databend_version: the version of the printed SQL.
        returns: the default result type of functions.
        on_error: the policy for bad rows, "null" or "raise".
        zero_vectors: the policy for vectors of zeros, "null", "keep" or "error".
        warm: whether models are loaded before the first call.
        insecure: whether other machines may connect without a token.
        tls_cert, tls_key: PEM files.
        auth_token_env: the environment variable that holds the token.
        env: variable of a `$var:` reference -> environment variable.
        limits: the limits of admission control.
        function: the functions to serve.
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
        """Return these settings overridden by those of the command line that are not None."""
        return dataclasses.replace(self, **{name: value for name, value in given.items() if value is not None})


def read(path: str) -> Settings:
    """Read a file; paths in it are relative to its folder.

    Raises:
        StorageError: it cannot be read. ConfigError: it is not valid TOML, or has an unknown setting.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # editors on Windows begin a file with a byte order mark
        found = tomllib.loads(text)
    except OSError as exc:
        raise StorageError(f"{path} cannot be read: {exc.strerror}.", "check the path") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as exc:
        # the parser's message contains a position and at most one character of the file
        where = str(exc) if isinstance(exc, tomllib.TOMLDecodeError) else "it is not UTF-8 text, or nested too deeply"
        raise ConfigError(f"{path} is not valid TOML: {where}", 'write key = "value"') from None
    return _settings(path, found)


def check_variable(what: str, variable: str) -> None:
    """Raise unless a text names an environment variable that is set; the text is not shown if it may be a secret.

    Raises:
        ConfigError: the message names the setting.
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
        if name not in ("env", "function", "limits"):  # a function's fields are checked by its class
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
        raise ConfigError(f"{path}: {where.rstrip('.')} needs either name or like.", 'name = "hashing"')
    for key, other in (("set", "like"), ("vector", "name")):
        if key in found and other in found:
            raise ConfigError(f"{path}: {where}{key} cannot be combined with {other}.", f"take {key} out")
    for key in ("role", "input", "returns"):
        _choice(path, where, found, key)
    for key in ("name", "like", "as"):
        references.refuse_hardcoded(f"{path}: {where}{key}", found.get(key), sensitive=False)
    like = str(folder / found["like"]) if "like" in found else None
    chosen = {key: found[key] for key in ("vector", "role", "input", "returns") if key in found}
    return Wanted(function=found.get("name"), like=like, name=found.get("as"), settings=found.get("set", {}), **chosen)


def _check(path: str, where: str, found: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Raise for unknown settings and wrong types; values are not shown, since they may be secrets."""
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
                f"{path}: a token must not be written in a file.", f'{_SECRETS[key]} = "THE_ENVIRONMENT_VARIABLE"'
            )
        if looks_sensitive(key):
            raise ConfigError(
                f"{path}: {plain(f'{where}{key}', 80)} is not a setting, and a secret must not be written in a file.",
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
