"""Fetch what URLs in data name, such as images: only from allowed hosts, and only over IP addresses that were checked.

A host is resolved once, all of its addresses must be public, and the connection goes to one of these addresses, so a
second DNS lookup cannot lead elsewhere (DNS rebinding). Python's own HTTP client does the rest, over a socket with a
deadline for the whole request: a server that sends a byte now and then gets no more time than one that sends nothing.
Proxies, cookies, passwords and settings from the environment are not used.
"""

from __future__ import annotations

import functools
import http.client
import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from embedreg._version import __version__
from embedreg.errors import CallError, RowError
from embedreg.media import allowances
from embedreg.media.allowances import ImagePolicy
from embedreg.media.kinds import IMAGE, Kind
from embedreg.security.addresses import Host, parse_host
from embedreg.support import retry

__all__ = ["fetch", "is_url", "url_retrieve"]

RETRIES = 2
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_UNTYPED = frozenset(
    {"", "application/octet-stream", "binary/octet-stream", "application/binary", "application/unknown"}
)
_URL = re.compile(r"https?:", re.IGNORECASE | re.ASCII)
# Some resolvers read a name with such an ending as an IPv4 address, of which there are many spellings.
_NUMERIC = re.compile(r"(.*\.)?(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE | re.ASCII)
_HEADERS = {
    "User-Agent": f"embedreg/{__version__}",
    "Accept-Encoding": "identity",
    "Connection": "close",
}
_NAT64 = 0x64FF9B << 64  # 64:ff9b::/96, in which the last four bytes are an IPv4 address (RFC 6052)
_CHUNK = 2**16  # bytes


def is_url(text: str) -> bool:
    """Return whether a text is a URL for `fetch`."""
    return _URL.match(text.strip()) is not None


def url_retrieve(url: str) -> bytes:
    """Fetch an image, as `allow_images` currently allows.

    It has the name and arguments of `lancedb.embeddings.utils.url_retrieve`, for functions that were written for it.

    Raises:
        RowError: it is not allowed or not available.
    """
    return fetch(url, allowances.current_policy())


def fetch(url: str, policy: ImagePolicy, kind: Kind = IMAGE) -> bytes:
    """Fetch an image, or an input of another kind.

    Transient errors (a lost connection, a busy server) are retried at most twice, within `timeout_s`.

    Args:
        url: an http(s) URL.
        policy: the allowed hosts, and the limits of bytes, redirects and seconds.
        kind: what the server may send, and what messages call it.
    Raises:
        RowError: the host, one of its addresses or a redirect is not allowed; the response is of another kind, is too
            long, or does not arrive in time.
    """
    deadline = time.monotonic() + policy.timeout_s
    if not is_url(url):
        raise RowError(f"the address of the {kind.noun} is not an http(s) URL")
    try:
        return retry.call_with_retry(
            _follow, url.strip(), policy, kind, deadline, max_retries=RETRIES, deadline_s=policy.timeout_s
        )
    except CallError as exc:
        raise RowError(exc.message) from None


def _follow(url: str, policy: ImagePolicy, kind: Kind, deadline: float) -> bytes:
    """Fetch a URL and its redirects, each of which is checked."""
    for _ in range(policy.max_redirects + 1):
        target = _checked_target(url, policy, kind)
        answer = _get(target, policy, deadline)
        if isinstance(answer, bytes):
            return answer
        try:
            url = urljoin(url, answer)
        except ValueError:
            url = ""
        if not is_url(url):
            raise RowError(f"the {kind.noun}'s server redirects to an address that is not an http(s) URL")
    raise RowError(f"the {kind.noun}'s server redirects more than max_redirects={policy.max_redirects} times")


# -- checking a URL ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """A URL that is allowed: its host, its path, whether it may be in a private network, and the kind of input."""

    host: Host
    path: str
    private: bool
    kind: Kind

    @property
    def name(self) -> str:
        """The host name for the resolver and the certificate."""
        return self.host.host.strip("[]")

    @property
    def port(self) -> int:
        return self.host.effective_port or 80


def _checked_target(url: str, policy: ImagePolicy, kind: Kind) -> _Target:
    """Return the target of a URL, if its host is allowed.

    Raises:
        RowError: it is not allowed, or parsers could disagree on its host.
    """
    # Spaces and non-ASCII letters are quoted as browsers do; a backslash stays, so that it is refused.
    url = quote(url, safe="!#$%&'()*+,/:;=?@[]~\\", errors="replace")
    host = parse_host(url)
    if host is None or host.scheme not in ("http", "https") or (host.port is not None and not 0 < host.port < 65536):
        raise RowError(
            f"the address of the {kind.noun} has a user name, a non-ASCII host, or a spelling that parsers read "
            "differently"
        )
    private = allowances.host_covered(policy.private_hosts, host)
    if not private and not allowances.host_covered(policy.hosts, host):
        said = f"{kind.plural} may not be fetched from {str(host)!r}; allow it: "
        raise allowances.not_allowed(said, "hosts", str(host))
    if host.host.startswith("[") or _NUMERIC.fullmatch(host.host):  # an IP address in its canonical spelling only
        try:
            ipaddress.ip_address(host.host.strip("[]"))
        except ValueError:
            raise RowError(f"the address of the {kind.noun} has an ambiguous number as its host") from None
        if not private and not _is_public(host.host.strip("[]")):
            raise _not_public(host)
    parts = urlsplit(url)
    return _Target(host, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), private, kind)


def _addresses(target: _Target, deadline: float) -> list[tuple[Any, ...]]:
    """Resolve a host: return (family, kind, protocol, sockaddr) of each address, all of them allowed.

    Raises:
        RowError: one is not public. CallError: the lookup failed or took too long.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            answers.put(socket.getaddrinfo(target.name, target.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as exc:
            answers.put(exc)

    # In its own thread: a lookup cannot be cancelled, and the system's timeout may be longer than ours.
    threading.Thread(target=resolve, daemon=True, name="embedreg-resolve").start()
    try:
        found = answers.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise _timed_out(target.kind) from None
    if isinstance(found, Exception):
        transient = getattr(found, "errno", None) == socket.EAI_AGAIN
        raise CallError(f"the host of the {target.kind.noun} is unknown", transient=transient)
    if not target.private and not all(_is_public(place[0]) for *_, place in found):
        raise _not_public(target.host)
    return [(family, kind, protocol, place) for family, kind, protocol, _, place in found]


def _not_public(host: Host) -> RowError:
    message = f"the host {str(host)!r} has an address that is not public; if that is intended, allow it: "
    return allowances.not_allowed(message, "private_hosts", str(host))


def _is_public(text: str) -> bool:
    """Return whether an IP address is public, and so is any other address that is embedded in it."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        translated = int(address) >> 32 == _NAT64
        if not translated and int(address) >> 125 != 1:  # all allocated addresses are in 2000::/3
            return False
        inner = [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)] if translated else []
        inner += [each for each in (address.sixtofour, *(address.teredo or ())) if each is not None]
        # newer Pythons call no 6to4 address global: it is as public as the embedded address
        outer = address.is_global or address.sixtofour is not None
        return outer and all(_is_public(str(each)) for each in inner)
    return address.is_global and not (address.is_multicast or address.is_reserved)


# -- one request -------------------------------------------------------------------------------------------------------


class _Timed:
    """A socket for Python's HTTP client with a deadline for all of its operations, however slow the server is."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock, self.deadline = sock, deadline

    def limit(self) -> None:
        """Limit the next operation to the time until the deadline."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)

    def sendall(self, data: Any) -> None:
        self.limit()
        self.sock.sendall(data)

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self), _CHUNK)

    def recv_into(self, buffer: Any) -> int:
        self.limit()
        return self.sock.recv_into(buffer)

    def close(self) -> None:
        """Do nothing: the client closes the socket before it reads the response; `_get` closes it at the end."""


class _Reader(io.RawIOBase):
    def __init__(self, sock: _Timed) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._sock.recv_into(buffer)


def _get(target: _Target, policy: ImagePolicy, deadline: float) -> bytes | str:
    """Send one request.

    Returns:
        The bytes of the input, or the location of a redirect.
    Raises:
        RowError: as `fetch`. CallError: the request failed.
    """
    connection = http.client.HTTPConnection(target.name, target.port)
    if target.host.scheme == "https":
        connection.default_port = 443  # so that the Host header omits the default port
    timed = None
    try:
        connection.sock = timed = _connected(target, deadline)
        connection.request("GET", target.path, headers={**_HEADERS, "Accept": target.kind.accept})
        return _read(connection.getresponse(), policy, target.kind)
    except TimeoutError:
        raise _timed_out(target.kind) from None
    except ssl.SSLCertVerificationError:
        raise RowError(f"the certificate of the {target.kind.noun}'s server is not valid for it") from None
    except (OSError, http.client.HTTPException) as exc:
        server = f"the {target.kind.noun}'s server"
        what = f"{server} cannot be reached, or its response is invalid ({type(exc).__name__})"
        raise CallError(what, transient=True) from None
    finally:
        if timed is not None:
            timed.sock.close()


def _connected(target: _Target, deadline: float) -> Any:
    """Connect to the first address of a host that answers."""
    failure: OSError = ConnectionError()
    for family, kind, protocol, place in _addresses(target, deadline):
        sock = socket.socket(family, kind, protocol)
        timed = _Timed(sock, deadline)
        try:
            timed.limit()
            sock.connect(place)
            if target.host.scheme == "https":
                timed.limit()
                timed.sock = _tls().wrap_socket(sock, server_hostname=target.name)
            return timed
        except OSError as exc:
            sock.close()
            failure = exc
            if time.monotonic() >= deadline or isinstance(exc, ssl.SSLError):
                break
        except BaseException:
            sock.close()
            raise
    raise failure


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _read(response: http.client.HTTPResponse, policy: ImagePolicy, kind: Kind) -> bytes | str:
    """Read a response, up to the allowed size."""
    if response.status in _REDIRECTS:
        location = response.getheader("Location")
        if not location:
            raise RowError(f"the {kind.noun}'s server answers HTTP {response.status} without a Location")
        return location.encode("latin-1", "replace").decode("utf-8", "replace")  # as browsers read it
    if response.status != 200:
        answer = _Status(response)
        raise CallError(
            f"the {kind.noun}'s server answers HTTP {response.status}",
            transient=retry.is_transient(answer),
            retry_after_s=retry.retry_after_s(answer),
        )
    sent = response.getheader("Content-Type", "").partition(";")[0].strip().lower()
    if not sent.startswith(kind.types) and sent not in _UNTYPED:
        shown = sent if re.fullmatch(r"[\w.+-]+/[\w.+-]+", sent) else "something else"
        raise RowError(f"the {kind.noun}'s server sends {shown}, not {kind.article} {kind.noun}")
    if response.getheader("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise RowError(f"the {kind.noun}'s server sends it compressed, which was not requested")
    length = response.length
    if length is not None and length > policy.max_bytes:
        raise RowError(f"the {kind.noun} has {length:,} bytes, over max_bytes={policy.max_bytes:,}")
    parts, got = [], 0
    while part := response.read1(_CHUNK):
        parts.append(part)
        got += len(part)
        if got > policy.max_bytes:
            raise RowError(f"the {kind.noun} has over max_bytes={policy.max_bytes:,} bytes")
    if length is not None and got < length:
        raise CallError(f"the {kind.noun}'s server ended the connection too soon", transient=True)
    return b"".join(parts)


class _Status(Exception):
    """An HTTP error response, in the form that `retry` expects from HTTP clients."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        super().__init__()
        self.status, self.headers = response.status, response.headers


def _timed_out(kind: Kind) -> CallError:
    return CallError(f"the {kind.noun} did not arrive within the time that timeout_s allows")
