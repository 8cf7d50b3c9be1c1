"""Detection of secrets, by the name of a field or key and by the form of the value.

Pure functions over texts, each in linear time, since they are also applied to stored metadata.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

__all__ = ["holds_credentials", "items_judged", "looks_sensitive"]

LONGEST_NAME = 256  # characters; of a longer name only the end is checked
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORDS = re.compile(r"[^\W_]+")
_DIGITS = re.compile(r"[0-9]+$")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The last words of a name count: `client_secret` is a secret, `secret_name` is not.
_LAST = _words(
    "apikey auth authkey authorization bearer cookie cred credential dsn jwt passcode passphrase passwd password"
    " pat pw pwd sas secret"
)
# Other names in `..._key` or `..._token` are columns, tokenizer options or counts.
_KEYS = _words(
    "access account admin anthropic api app application auth azure client cohere consumer decryption deploy"
    " encryption function functions gemini"
    " google hmac jina license master mistral openai pgp private rsa secret service session"
    " shared signing ssh ssl subscription tls voyage webhook"
)
_TOKENS = _words(
    "access api auth authorization bearer csrf github gitlab hf hub huggingface huggingfacehub oauth personal private"
    " refresh replicate sas secret security session slack vault wandb xsrf"
)
_ONE_TOKEN = _words("account admin app bot client deploy device id identity login registration service")
_PASS = _words("admin auth db login mysql pg redis root smtp user")
# Suffixes after a secret's name that still denote the secret.
_FORMS = _words("b64 base64 hex json pem plaintext raw str value")
_RUN_TOGETHER = re.compile(
    r"(access|account|api|auth|client|encryption|license|master|private|secret|shared|signing|subscription)key(id)?s?$"
    r"|(access|api|auth|bearer|personal|private|refresh|secret|security|session)tokens?$"
    r"|(credential|passcode|passphrase|passwd|password|secret)s?$|(connection|conn)(string|str)s?$"
)
# URL parameters that hold keys, under names that are harmless elsewhere.
_PARAMETERS = _words("key sig signature secret token xamzcredential xamzsignature xgoogcredential xgoogsignature")

# Secrets by their form, in any place.
_SCHEMES = re.compile(r"Bearer \S+|Basic [A-Za-z0-9+/]{8,}=*|(?i:bearer|token) (?=\S*[0-9])\S{16,}")
_PASSWORD = re.compile(r"//[^/\s?#@:]*:[^/\s?#@]+@")
_BARE_PASSWORD = re.compile(r"(?!(?i:mailto|acct|sip|sips|xmpp):)[^\s:@/]+:[^\s@/]+@[A-Za-z0-9.-]+(:[0-9]+)?(/\S*)?")
_KNOWN = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"sk-(?:[a-z0-9]{2,8}-){0,2}[A-Za-z0-9_]{20,}|(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}|gh[opsur]_[A-Za-z0-9]{30,}"
    r"|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|AIza[A-Za-z0-9_-]{35}|xox[abeoprs]-[A-Za-z0-9-]{10,}|npm_[A-Za-z0-9]{36}|gsk_[A-Za-z0-9]{40,}|r8_[A-Za-z0-9]{36,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----"
)
_PARAMETER = re.compile(r"[?&;#]([^\s=?&;#]{1,80})=([^\s&;#]+)")
_PAIR = re.compile(r"(?:^|[;\s,])([A-Za-z][\w.-]{0,40}(?: [\w.-]{1,40})?) ?= ?([^;\s]+)")
_HEADER = re.compile(r"^[ \t]*([A-Za-z][\w-]{1,64}):[ \t]*(\S+)", re.MULTILINE)
_QUOTED = re.compile(r"""["']([\w.-]{1,80})["'] ?: ?["']([^"'\s]+)""")


def looks_sensitive(name: object) -> bool:
    """Return whether a name is typical of secrets: `Authorization`, `x-api-key`, `clientSecret`, `signing_keys`."""
    return isinstance(name, str) and _sensitive(name[-LONGEST_NAME:])


@functools.lru_cache(maxsize=4096)
def _sensitive(name: str) -> bool:
    if not name.isascii():
        name = unicodedata.normalize("NFKC", name)[-LONGEST_NAME:]
    words = [word.lower() for word in _WORDS.findall(_CAMEL.sub("_", name))]
    while words and not (last := _DIGITS.sub("", words[-1])):
        words.pop()  # api_key_2
    if not words:
        return False
    if len(words) > 1 and last in _FORMS and words[-2] != "conn":
        words.pop()
        last = words[-1]
    before = words[-2] if len(words) > 1 else ""
    one = last if last in ("pass", "sas") else last.removesuffix("s")
    if one == "pass":
        return before == "" or before in _PASS
    if one in _LAST:
        return True
    if one == "key" or (one == "id" and before == "key" and len(words) > 2 and words[-3] == "access"):
        return one == "id" or before in _KEYS
    if one == "token":
        singular = last == "token"
        if before in _TOKENS or (singular and (before == "" or before in _ONE_TOKEN)):
            return True
        return singular and re.search(r"-tokens?$", name, re.IGNORECASE) is not None  # a header's spelling
    return _RUN_TOGETHER.search(before + last) is not None


def holds_credentials(text: object) -> bool:
    """Return whether a text has the form of a secret, or contains one.

    Detected are bearer tokens, addresses with a password or with a key in a parameter, connection strings, header
    lines, key formats of well-known services, and private keys.
    """
    if not isinstance(text, str) or len(text) < 6:
        return False
    stripped = text.strip()
    if _SCHEMES.fullmatch(stripped) or _KNOWN.search(text) or _PASSWORD.search(text):
        return True
    if "@" in text and _BARE_PASSWORD.fullmatch(stripped):
        return True
    return any(_is_written_out(value) for name, value in _named(text))


def _named(text: str) -> Iterator[tuple[str, str]]:
    """Yield (name, value) pairs in a text, in the syntax of addresses, connection strings and headers."""
    if "=" in text:
        for name, value in _PARAMETER.findall(text):
            name = unquote(name)
            if looks_sensitive(name) or re.sub(r"[\W_]", "", name.lower()) in _PARAMETERS:
                yield name, value
        yield from ((name, value) for name, value in _PAIR.findall(text) if looks_sensitive(name))
    if ":" in text:
        for name, value in _HEADER.findall(text):
            if ("-" in name or name.lower() in ("authorization", "cookie")) and looks_sensitive(name):
                yield name, value
        yield from ((name, value) for name, value in _QUOTED.findall(text) if looks_sensitive(name))


def _is_written_out(value: str) -> bool:
    return not value.startswith(("$var:", "$", "{", "<", "***"))  # a reference or a placeholder


_NAME_KEYS, _VALUE_KEYS = ("name", "key", "header"), ("value", "val")


def items_judged(value: Any, items: list[tuple[object, Any]]) -> Iterator[tuple[object, Any, bool]]:
    """Yield the items of a container, each with whether its name is typical of secrets.

    The name is the item's key; in a dict like {"name": "Authorization", "value": ...}, the value of "name"; in a list
    of pairs like [["Authorization", ...]], the first of the pair.
    """
    names = {key: item for key, item in items if key in _NAME_KEYS} if isinstance(value, dict) else {}
    named = any(looks_sensitive(name) for name in names.values())
    for key, item in items:
        if key is None and isinstance(item, list | tuple) and len(item) == 2 and looks_sensitive(item[0]):
            yield key, item, True
        else:
            yield key, item, looks_sensitive(key) or (named and key in _VALUE_KEYS)
