"""Classification of texts as local paths or network addresses, in every spelling that some library accepts.

Pure functions over texts: they access neither files nor the network. `grants` decides what may be used.
"""

from __future__ import annotations

import ipaddress
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from embedreg.errors import ConfigError

__all__ = ["Host", "folder_given", "forms", "is_path", "kind_of", "local_path", "parse_host", "texts_given"]

# A scheme has two letters at least: one letter and a colon is a Windows drive. Lax parsers also take "https:host",
# "https:/host" and "https:\\host" for addresses.
_URL = re.compile(r"[a-z][a-z0-9+.-]+:[/\\]|(https?|wss?|ftps?|unix|npipe):\S", re.IGNORECASE | re.ASCII)
_SPELLED_PATH = re.compile(r"(local-dir|file):", re.IGNORECASE | re.ASCII)
# A backslash anywhere is a path on Windows. "q: " and the like are prompts, "q:x" lies on a drive.
_PATH = re.compile(r"[/~]|\.{1,2}([/\\]|$)|[a-z]:\S|(.*[/\\])?\.\. *([/\\]|$)|.*\\", re.IGNORECASE | re.DOTALL)
# Only forms that every parser reads alike: no user, no backslash, no final dot, ASCII letters only.
_AUTHORITY = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]+)://)?"
    r"(?P<host>[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<rest>[/?#][!-\[\]-~]*)?",
    re.IGNORECASE | re.ASCII,
)
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_LONGEST = 2**16  # characters; no system takes a path, and no server an address, that is this long when decoded
_NORMALIZED = 4096  # characters
_SPACE = re.compile(r"\s")  # in prompts, which may mention an address
_MARKS = re.compile(r"[!-~]")  # characters that occur in every address or path
_DECODINGS = 3  # a path that is percent-encoded more often than any chain of libraries decodes it


class Host(NamedTuple):
    """The host part of an address.

    Attributes:
        host: in lower case; an IP address in its canonical form.
        port: the port, if given.
        scheme: the scheme, if given.
        bare: whether the text holds only host and port.
    """

    host: str
    port: int | None
    scheme: str | None
    bare: bool

    @property
    def effective_port(self) -> int | None:
        """The given port, else the scheme's default."""
        return self.port if self.port is not None else _PORTS.get(self.scheme or "")

    def covers(self, other: Host) -> bool:
        """Return whether a grant for this host covers an address; a given scheme or port must match."""
        if self.host != other.host or (self.scheme is not None and self.scheme != other.scheme):
            return False
        return self.effective_port is None or self.effective_port == other.effective_port

    def __str__(self) -> str:
        return self.host if self.port is None else f"{self.host}:{self.port}"


def parse_host(text: str) -> Host | None:
    """Parse `host`, `host:port` or a URL; return None if parsers could disagree on the host."""
    match = _AUTHORITY.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None or len(match["host"]) > 253:  # the limit of the DNS
        return None
    host = match["host"].lower()
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return None
    port = int(match["port"]) if match["port"] else None
    scheme = match["scheme"].lower() if match["scheme"] else None
    if scheme is None and "://" in text:
        return None  # "name/http://host"
    return Host(host, port, scheme, bare=not match["rest"] and scheme is None)


def forms(text: str) -> set[str]:
    """Return a text and the forms that a library may convert it to: cleaned, NFKC, percent-decoded.

    Each step takes linear time, since stored metadata may hold a megabyte crafted to be slow.
    """
    found = {text}
    cleaned = text.translate({ord(c): None for c in set(text) if unicodedata.category(c) in ("Cc", "Cf")}).strip()
    for form in {cleaned, _compatible(cleaned)}:
        for _ in range(_DECODINGS):
            found.add(form)
            if "%" not in form:
                break
            form = unquote(form).strip() if len(form) <= _LONGEST else form
        found.add(form)
    return found - {""}


def _compatible(text: str) -> str:
    """Return a text in Unicode's form NFKC; in a long one, only characters that normalize to ASCII are converted.

    Normalizing orders runs of combining marks in quadratic time, and makes eighteen characters of some single ones.
    """
    if text.isascii():
        return text
    if len(text) <= _NORMALIZED:
        return unicodedata.normalize("NFKC", text)
    made = {c: unicodedata.normalize("NFKC", c) for c in set(text) if not c.isascii()}
    return text.translate({ord(c): new for c, new in made.items() if _MARKS.search(new)})


def kind_of(text: str) -> Literal["url", "path"] | None:
    """Return whether a text is an address or a local path, on any platform and in any spelling."""
    kinds = {_plain_kind(form) for form in forms(text)}
    own = _plain_kind(text)
    return own or ("path" if "path" in kinds else "url" if "url" in kinds else None)


def _plain_kind(text: str) -> Literal["url", "path"] | None:
    if _SPELLED_PATH.match(text):
        return "path"
    if _URL.match(text) or ("://" in text and not _SPACE.search(text)):  # litellm: "huggingface/https://host"
        return "url"
    return "path" if _PATH.match(text) else None


def is_path(text: str) -> bool:
    """Return whether a text is a local path on any platform and in any spelling; a relative name is not."""
    return kind_of(text) == "path"


def local_path(text: str) -> str | None:
    """Return the path in a text, without `local-dir:` or `file:` and with `~` expanded; None if it is not local."""
    text = re.sub(r"(?i)^local-dir:", "", text)
    if text[:5].lower() == "file:":
        try:
            parts = urlsplit(text)
        except ValueError:
            return None
        if parts.netloc.lower() not in ("", "localhost"):
            return None
        text = unquote(parts.path)
    return os.path.expanduser(text) if text and "\0" not in text else None


# -- arguments of `trust` and `allow_images` ---------------------------------------------------------------------------


def texts_given(call: str, kind: str, values: Any) -> Iterator[str]:
    """Yield the texts of an argument, one or many; folders may also be paths.

    Raises:
        ConfigError: another type, or an empty text, whose meaning is ambiguous.
    """
    if isinstance(values, str | os.PathLike) or not isinstance(values, Iterable):
        values = [values]
    for value in values:
        text = os.fspath(value) if isinstance(value, os.PathLike) and kind in ("dirs", "paths") else value
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{call}({kind}=...) cannot take {value!r}.", f"{call}({kind}=['...'])")
        yield text


def folder_given(call: str, kind: str, text: str) -> str:
    """Return the absolute path of a folder or file in an argument, since the working directory may change."""
    path = local_path(text)
    if path is None:
        raise ConfigError(f"{call}({kind}=...) cannot take {text!r}.", "name a folder of this machine")
    return os.path.abspath(path)
