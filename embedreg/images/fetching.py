"""Images on the web that data names: fetched only from allowed hosts, over addresses that were checked.

A host is looked up once, every address of it must be public, and the connection goes to one of these very addresses,
so that no second look-up can lead elsewhere. Python's own HTTP client does the rest, over a socket that knows when time
is up: a server that sends a byte now and then gets no more of it than one that sends nothing. No proxy, no cookie, no
password and no setting from the environment is used.
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
from embedreg.images import allowances
from embedreg.images.allowances import ImagePolicy
from embedreg.security.addresses import Host, parse_host
from embedreg.support import retry

__all__ = ["fetch", "is_url", "url_retrieve"]

RETRIES = 2
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_UNTYPED = frozenset(
    {"", "application/octet-stream", "binary/octet-stream", "application/binary", "application/unknown"}
)
_URL = re.compile(r"https?:", re.IGNORECASE | re.ASCII)
# What a name that ends so is read as by some resolvers: one of the many spellings of an IPv4 address.
_NUMERIC = re.compile(r"(.*\.)?(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE | re.ASCII)
_HEADERS = {
    "User-Agent": f"embedreg/{__version__}",
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}
_NAT64 = 0x64FF9B << 64  # 64:ff9b::/96, in which the last four bytes are an IPv4 address (RFC 6052)
_CHUNK = 2**16  # bytes


def is_url(text: str) -> bool:
    """Say whether a text is an address for `fetch`."""
    return _URL.match(text.strip()) is not None


def url_retrieve(url: str) -> bytes:
    """Fetch an image under what `allow_images` allows now.

    LanceDB's `lancedb.embeddings.utils.url_retrieve`, by name and arguments, for functions that were written for it.

    Raises:
        RowError: it is not allowed or cannot be had.
    """
    return fetch(url, allowances.current_policy())


def fetch(url: str, policy: ImagePolicy) -> bytes:
    """Fetch an image.

    What may pass by itself (a lost connection, a busy server) is tried again, twice at the most, within `timeout_s`.

    Args:
        url: an http(s) address.
        policy: which hosts, how many bytes, redirects and seconds.
    Raises:
        RowError: the host, an address of it or where it redirects to is not allowed; the answer is no image, too long,
            or does not come in time.
    """
    deadline = time.monotonic() + policy.timeout_s
    if not is_url(url):
        raise RowError("the address of the image is not an http(s) URL")
    try:
        return retry.call_with_retry(
            _follow, url.strip(), policy, deadline, max_retries=RETRIES, deadline_s=policy.timeout_s
        )
    except CallError as exc:
        raise RowError(exc.message) from None


def _follow(url: str, policy: ImagePolicy, deadline: float) -> bytes:
    """Fetch an address, and those that it redirects to, each judged by itself."""
    for _ in range(policy.max_redirects + 1):
        target = _judged(url, policy)
        answer = _get(target, policy, deadline)
        if isinstance(answer, bytes):
            return answer
        try:
            url = urljoin(url, answer)
        except ValueError:
            url = ""
        if not is_url(url):
            raise RowError("the image's server redirects to what is no http(s) address")
    raise RowError(f"the image's server redirects more than max_redirects={policy.max_redirects} times")


# -- where an address leads --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """An address that may be asked: its host, what to ask for, and whether it may lie in a private network."""

    host: Host
    path: str
    private: bool

    @property
    def name(self) -> str:
        """The host as a resolver and a certificate have it."""
        return self.host.host.strip("[]")

    @property
    def port(self) -> int:
        return self.host.effective_port or 80


def _judged(url: str, policy: ImagePolicy) -> _Target:
    """Say what an address leads to, if its host is allowed.

    Raises:
        RowError: it is not, or parsers could differ on where it leads.
    """
    # Spaces and letters beyond ASCII become what browsers send for them; a backslash stays, to be refused.
    url = quote(url, safe="!#$%&'()*+,/:;=?@[]~\\", errors="replace")
    host = parse_host(url)
    if host is None or host.scheme not in ("http", "https") or (host.port is not None and not 0 < host.port < 65536):
        raise RowError(
            "the address of the image has a user name, letters beyond ASCII in its host, or a spelling that could lead "
            "to different places"
        )
    private = allowances.host_covered(policy.private_hosts, host)
    if not private and not allowances.host_covered(policy.hosts, host):
        raise allowances.not_allowed(f"images may not be fetched from {str(host)!r}; allow it: ", "hosts", str(host))
    if host.host.startswith("[") or _NUMERIC.fullmatch(host.host):  # an IP address, and no other spelling of one
        try:
            ipaddress.ip_address(host.host.strip("[]"))
        except ValueError:
            raise RowError("the address of the image spells a number for a host") from None
        if not private and not _is_public(host.host.strip("[]")):
            raise _not_public(host)
    parts = urlsplit(url)
    return _Target(host, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), private)


def _addresses(target: _Target, deadline: float) -> list[tuple[Any, ...]]:
    """Look a host up: (family, kind, protocol, sockaddr) of each address, all of them allowed.

    Raises:
        RowError: one is not public. CallError: the look-up failed or took too long.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(socket.getaddrinfo(target.name, target.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as exc:
            answers.put(exc)

    # In a thread of its own: a look-up cannot be cut off, and the system's patience with it may be longer than ours.
    threading.Thread(target=look_up, daemon=True, name="embedreg-look-up").start()
    try:
        found = answers.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise _late() from None
    if isinstance(found, Exception):
        passing = getattr(found, "errno", None) == socket.EAI_AGAIN
        raise CallError("the host of the image is not known", transient=passing)
    if not target.private and not all(_is_public(place[0]) for *_, place in found):
        raise _not_public(target.host)
    return [(family, kind, protocol, place) for family, kind, protocol, _, place in found]


def _not_public(host: Host) -> RowError:
    said = f"the host {str(host)!r} has an address that is not public; if that is meant, allow it: "
    return allowances.not_allowed(said, "private_hosts", str(host))


def _is_public(text: str) -> bool:
    """Say whether an IP address is one of the public internet, and no other one is hidden in it."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        translated = int(address) >> 32 == _NAT64
        if not translated and int(address) >> 125 != 1:  # all that is given out lies in 2000::/3
            return False
        inner = [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)] if translated else []
        inner += [each for each in (address.sixtofour, *(address.teredo or ())) if each is not None]
        # newer Pythons call no 6to4 address global: it is as public as the one inside it
        outer = address.is_global or address.sixtofour is not None
        return outer and all(_is_public(str(each)) for each in inner)
    return address.is_global and not (address.is_multicast or address.is_reserved)


# -- one request -------------------------------------------------------------------------------------------------------


class _Timed:
    """A socket for Python's HTTP client on which nothing outlasts a deadline, however slowly the other end goes on."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock, self.deadline = sock, deadline

    def limit(self) -> None:
        """Let the next operation last no longer than until the deadline."""
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
        """Leave it open: the client closes it before it reads the answer; `_get` closes it at the end."""


class _Reader(io.RawIOBase):
    def __init__(self, sock: _Timed) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._sock.recv_into(buffer)


def _get(target: _Target, policy: ImagePolicy, deadline: float) -> bytes | str:
    """Ask for a target once.

    Returns:
        The image's bytes, or where the server redirects to.
    Raises:
        RowError, CallError: as `fetch` has them; CallError for what may pass.
    """
    connection = http.client.HTTPConnection(target.name, target.port)
    if target.host.scheme == "https":
        connection.default_port = 443  # so that the Host header leaves the scheme's own port out
    timed = None
    try:
        connection.sock = timed = _connected(target, deadline)
        connection.request("GET", target.path, headers=_HEADERS)
        return _read(connection.getresponse(), policy)
    except TimeoutError:
        raise _late() from None
    except ssl.SSLCertVerificationError:
        raise RowError("the certificate of the image's server is not valid for it") from None
    except (OSError, http.client.HTTPException) as exc:
        what = f"the image's server cannot be reached, or gives no proper answer ({type(exc).__name__})"
        raise CallError(what, transient=True) from None
    finally:
        if timed is not None:
            timed.sock.close()


def _connected(target: _Target, deadline: float) -> Any:
    """Connect to one of a host's addresses, the first that answers."""
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


def _read(response: http.client.HTTPResponse, policy: ImagePolicy) -> bytes | str:
    """Read an answer, no more of it than is allowed."""
    if response.status in _REDIRECTS:
        location = response.getheader("Location")
        if not location:
            raise RowError(f"the image's server answers HTTP {response.status} without saying where to")
        return location.encode("latin-1", "replace").decode("utf-8", "replace")  # as browsers read it
    if response.status != 200:
        answer = _Status(response)
        raise CallError(
            f"the image's server answers HTTP {response.status}",
            transient=retry.is_transient(answer),
            retry_after_s=retry.retry_after_s(answer),
        )
    kind = response.getheader("Content-Type", "").partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind not in _UNTYPED:
        shown = kind if re.fullmatch(r"[\w.+-]+/[\w.+-]+", kind) else "something else"
        raise RowError(f"the image's server sends {shown}, not an image")
    if response.getheader("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise RowError("the image's server sends it compressed, which was not asked for")
    length = response.length
    if length is not None and length > policy.max_bytes:
        raise RowError(f"the image has {length:,} bytes, over max_bytes={policy.max_bytes:,}")
    parts, got = [], 0
    while part := response.read1(_CHUNK):
        parts.append(part)
        got += len(part)
        if got > policy.max_bytes:
            raise RowError(f"the image has over max_bytes={policy.max_bytes:,} bytes")
    if length is not None and got < length:
        raise CallError("the image's server ended the connection too soon", transient=True)
    return b"".join(parts)


class _Status(Exception):
    """An answer that is no success, as `retry` judges the errors of HTTP clients."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        super().__init__()
        self.status, self.headers = response.status, response.headers


def _late() -> CallError:
    return CallError("the image did not arrive within the time that timeout_s allows")
