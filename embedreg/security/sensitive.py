"""What a secret looks like: by the name it stands under, and by its own form.

Pure functions over texts, each linear in their length: stored metadata is judged by them too.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

__all__ = ["holds_credentials", "items_judged", "looks_sensitive"]

LONGEST_NAME = 256  # characters; a longer name is judged by its end, which says what the thing is
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORDS = re.compile(r"[^\W_]+")
_DIGITS = re.compile(r"[0-9]+$")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A name is judged by its last words: `client_secret` is one, `secret_name` is not.
_LAST = _words(
    "apikey auth authkey authorization bearer cookie cred credential dsn jwt passcode passphrase passwd password"
    " pat pw pwd sas secret"
)
# A bare `..._key` or `..._token` is a column, a tokenizer's option or a count; these are not.
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
# What may follow the name of a secret and still mean the secret itself.
_FORMS = _words("b64 base64 hex json pem plaintext raw str value")
_RUN_TOGETHER = re.compile(
    r"(access|account|api|auth|client|encryption|license|master|private|secret|shared|signing|subscription)key(id)?s?$"
    r"|(access|api|auth|bearer|personal|private|refresh|secret|security|session)tokens?$"
    r"|(credential|passcode|passphrase|passwd|password|secret)s?$|(connection|conn)(string|str)s?$"
)
# Parameters of addresses that carry a key under a name which says nothing elsewhere.
_PARAMETERS = _words("key sig signature secret token xamzcredential xamzsignature xgoogcredential xgoogsignature")

# What is a secret wherever it stands, by its form alone.
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
    """Return whether a name (`Authorization`, `x-api-key`, `clientSecret`, `signing_keys`) is one that secrets have."""
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
    """Return whether a text is a secret by its form, or has one in it.

    A bearer token, an address with a password or with a key among its parameters, a connection string, a header's line,
    the forms that well-known services give their keys, a private key.
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
    """Yield what a text gives under a secret's name, in the spellings of addresses, connection strings and headers."""
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
    return not value.startswith(("$var:", "$", "{", "<", "***"))  # a reference, or a place to fill in


_NAME_KEYS, _VALUE_KEYS = ("name", "key", "header"), ("value", "val")


def items_judged(value: Any, items: list[tuple[object, Any]]) -> Iterator[tuple[object, Any, bool]]:
    """Yield the items of a container, each with whether what names it is a secret's name.

    What names an item is its key; in a dict like {"name": "Authorization", "value": ...}, the one beside it; in a list
    of pairs like [["Authorization", ...]], the first of its pair.
    """
    names = {key: item for key, item in items if key in _NAME_KEYS} if isinstance(value, dict) else {}
    named = any(looks_sensitive(name) for name in names.values())
    for key, item in items:
        if key is None and isinstance(item, list | tuple) and len(item) == 2 and looks_sensitive(item[0]):
            yield key, item, True
        else:
            yield key, item, looks_sensitive(key) or (named and key in _VALUE_KEYS)
