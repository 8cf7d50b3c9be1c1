"""One exchange with a service over plain HTTP: no redirects, bounded responses, errors with status and headers.

The connections are shared by all functions of the process. Keys are headers of a single request, cookies are not kept,
and a proxy of the environment is used for https only, where it cannot read what passes.
"""

from __future__ import annotations

import contextlib
import functools
import http.cookiejar
import json
import math
import os
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from embedreg._version import __version__
from embedreg.errors import CallError, ConfigError, EmbedregError
from embedreg.runtime.remote.answers import report_headers
from embedreg.runtime.remote.connections import client_key, clients
from embedreg.security.addresses import parse_host
from embedreg.support.display import plain
from embedreg.support.imports import attempt_import_or_raise

__all__ = ["MAX_ANSWER_BYTES", "PACKING", "HttpError", "bound", "endpoint", "exchange", "in_path", "key_for_header"]
__all__ += ["message_of", "of_this_environment", "parsed", "transfer", "unsendable"]

MAX_ANSWER_BYTES = 256 * 2**20  # more than 2,048 vectors of 4,096 numbers in JSON
PACKING = {"Accept-Encoding": "gzip"}
"""The header for what `bound` can unpack."""
_UNPACKED_BYTES = 2**20  # at a time
_LAST_PORT = 2**16 - 1
_LONGEST_MESSAGE = 10_000  # characters that are looked through
_MESSAGES = ("message", "msg", "detail", "error", "errors", "error_message", "title")
_HEADERS = {"User-Agent": f"embedreg/{__version__}", "Accept": "application/json", **PACKING}


class HttpError(Exception):
    """A response that is not a success.

    Attributes:
        status_code: the HTTP status.
        headers: the headers; names are case-insensitive.
        body: the content as JSON, or as text.
        retry_after_s: the seconds to wait, if the service states them in the body.
    """

    def __init__(self, status_code: int, headers: Mapping[str, str], body: Any) -> None:
        super().__init__(message_of(body))
        self.status_code, self.headers, self.body = status_code, headers, body
        self.retry_after_s: float | None = None


def message_of(body: Any) -> str:
    """Return the message in the content of an error response, in the forms that services use."""
    for _ in range(8):
        if isinstance(body, list):
            body = body[0] if body else ""
        elif isinstance(body, dict):
            body = next((body[name] for name in _MESSAGES if body.get(name)), "")
        else:
            break
    text = body[:_LONGEST_MESSAGE] if isinstance(body, str) else ""
    return "" if text.lstrip().startswith("<") else text  # a web page


def endpoint(text: str, field: str) -> str:
    """Return the address of a service without a final slash.

    Raises:
        ConfigError: not http or https, a user name in it, or a host that parsers could read differently; what follows
            "?" or "#", before which the paths of requests would have to stand.
    """
    if "?" in text or "#" in text:
        raise ConfigError(
            f"{field} ends at its path: nothing may follow it after '?' or '#'.", "leave that part of the address out"
        )
    host = parse_host(text)
    if host is None or host.scheme not in ("http", "https") or not 0 < (host.port or 443) <= _LAST_PORT:
        raise ConfigError(
            f"{field} is not the address of a service: http:// or https:// and a host, without a user name, in ASCII.",
            f"create(..., {field}='https://host/path')",
        ).for_shell(f"--set {field}=https://host/path")
    return text.rstrip("/")


def key_for_header(key: str, service: str) -> str:
    """Return a key without the white space around it, such as the line break of a file that it was read from.

    Raises:
        ConfigError: it has characters that no header can hold, or no others.
    """
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        what = "has characters that no key has" if key else "is blank"
        raise ConfigError(f"the key for {service} {what}.", "set the variable to the key alone")
    return key


def in_path(text: str) -> str:
    """Return a text as one segment of a URL's path.

    Raises:
        ConfigError: a name that would lead to another path.
    """
    if text in ("", ".", ".."):
        raise ConfigError(f"{text!r} cannot be a part of an address.", "check the name of the model")
    return quote(text, safe="")


def exchange(
    url: str,
    body: Any = None,
    *,
    form: Mapping[str, str] | None = None,
    method: str = "POST",
    headers: Mapping[str, str],
    timeout_s: float,
    extra: str | None = None,
) -> Any:
    """Send one request and return the JSON of its response.

    Args:
        url: from `endpoint`, and a path.
        body: sent as JSON. form: sent as a form instead.
        timeout_s: of connecting, and of reading the response.
        extra: the extra of embedreg that installs the client.
    Raises:
        HttpError: the status is not a success; a redirect is one of these, and is not followed.
        CallError: the response is a web page, or too long.
        ValueError: the response is not JSON.
    """
    content = transfer(url, body, form=form, method=method, headers=headers, timeout_s=timeout_s, extra=extra)
    return parsed(content)


def parsed(content: bytes) -> Any:
    """Return the JSON of a response.

    Raises:
        ValueError: JSONDecodeError or UnicodeDecodeError, also for what Python refuses to read.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # an integer of thousands of digits
        raise json.JSONDecodeError("a number that is too long", "", 0) from None


def transfer(
    url: str,
    body: Any = None,
    *,
    form: Mapping[str, str] | None = None,
    upload: tuple[str, bytes] | None = None,
    method: str = "POST",
    headers: Mapping[str, str],
    timeout_s: float,
    extra: str | None = None,
) -> bytes:
    """Send one request and return the content of its response; arguments and errors as `exchange`.

    Args:
        upload: the name and the content of a file, sent beside the fields of `form`.
    """
    client = clients.get(client_key("http"), functools.partial(_connect, extra)).client
    sent: dict[str, Any] = {"headers": {**headers}, "timeout": timeout_s}
    if form is not None:
        sent["data"] = dict(form)
        if upload is not None:
            sent["files"] = {"file": (*upload, "application/jsonl")}
    elif body is not None:
        sent["headers"]["Content-Type"] = "application/json"
        sent["content"] = _json(body)
    try:
        response = client.send(client.build_request(method, url, **sent), stream=True)
    except Exception as exc:
        if not unsendable(exc):
            raise
        unsent = True
    else:
        unsent = False
    if unsent:  # outside the except block: the client's words repeat the header, and with it a key
        raise ConfigError(
            "the address or a header is not one that can be sent.", "check the host's name and the headers"
        )
    try:
        content: bytes = response.read()
    except CallError:  # too long, or packed in another way
        if response.is_success:
            raise
        content = b""  # the status is enough
    finally:
        response.close()
    if not response.is_success:
        raise HttpError(response.status_code, response.headers, _lenient(content))
    if content.lstrip()[:1] == b"<":
        raise CallError("the endpoint returned a web page.", "check the endpoint's path")
    return content


def unsendable(exc: BaseException) -> bool:
    """Return whether httpx or httpx2 refused an address or a header before anything was sent."""
    return isinstance(exc, UnicodeError) or type(exc).__name__ in ("InvalidURL", "LocalProtocolError")


def _json(body: Any) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can only escape
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _lenient(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content[:_LONGEST_MESSAGE].decode("utf-8", "replace")


class _Connections:
    """A client of the library and the process that made it."""

    def __init__(self, client: Any) -> None:
        self.client = client


@contextlib.contextmanager
def of_this_environment() -> Iterator[None]:
    """Make a client inside of this block, whose proxies and certificates are those of the environment.

    Raises:
        ConfigError: one of them cannot be used.
    """
    reason: str | None = None
    try:
        yield
    except (ImportError, OSError) as exc:
        reason = plain(exc).rstrip(".")
    except Exception as exc:
        if isinstance(exc, EmbedregError):
            raise
        reason = type(exc).__name__  # its words may repeat a proxy's password
    if reason is not None:
        raise ConfigError(
            f"a proxy or a certificate of the environment cannot be used: {reason}.",
            "check the variables HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR",
        )


def _connect(extra: str | None) -> _Connections:
    httpx2 = attempt_import_or_raise("httpx2", extra=extra)
    no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    with of_this_environment():
        client = httpx2.Client(
            headers=_HEADERS,
            cookies=no_cookies,
            follow_redirects=False,  # following one would send texts and keys to another host
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),  # `concurrency` is the limit
            # never through a proxy, which could read what is not encrypted
            mounts={"http://": httpx2.HTTPTransport(limits=httpx2.Limits(max_connections=None))},
            event_hooks={"response": [bound]},
        )
    held = _Connections(client)
    # Not at exit, when sockets are closed anyway, nor in a forked child, since the parent uses them.
    weakref.finalize(held, _close, client, os.getpid()).atexit = False
    return held


def _close(client: Any, process: int) -> None:
    if os.getpid() == process:
        client.close()


class _Bounded:
    """Ends a response that exceeds the maximum size or the time limit of a request.

    It is unpacked here, since a client that unpacks it has no limit: half a megabyte of gzip can hold 512 MiB.
    """

    def __init__(self, response: Any) -> None:
        self._stream, self._left = response.stream, MAX_ANSWER_BYTES
        self._packed: str = response.headers.pop("content-encoding", "identity").strip().lower()
        if self._packed != "identity":
            response.headers.pop("content-length", None)
        limit_s = response.request.extensions.get("timeout", {}).get("read")
        self._until = math.inf if limit_s is None else time.monotonic() + limit_s

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._unpacked():
            self._left -= len(chunk)
            if self._left < 0:
                raise CallError(
                    f"the server's response is longer than {MAX_ANSWER_BYTES // 2**20} MiB.",
                    "check the endpoint, or choose a smaller batch_size",
                )
            if time.monotonic() > self._until:
                raise TimeoutError("the response is too slow")
            yield chunk

    def _unpacked(self) -> Iterator[bytes]:
        """Yield the content, of gzip in pieces of a bounded size."""
        if self._packed == "identity":
            yield from self._stream
            return
        if self._packed not in ("gzip", "x-gzip"):
            raise CallError(
                "the server's response is compressed in a way that was not requested.",
                "check the endpoint, or a proxy before it",
            )
        import zlib

        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        for packed in self._stream:
            while packed:
                try:
                    chunk = unpacker.decompress(packed, _UNPACKED_BYTES)
                except zlib.error:
                    raise CallError("the server's response is not valid gzip.", "check the endpoint") from None
                yield chunk
                packed = unpacker.unconsumed_tail
        yield unpacker.flush(_UNPACKED_BYTES)

    def close(self) -> None:
        self._stream.close()


def bound(response: Any) -> None:
    """Limit a response's body: a hook of httpx's client, or httpx2's, which needs that library's own stream."""
    report_headers(response.headers)
    library = sys.modules[type(response).__module__.partition(".")[0]]
    response.stream = type("Bounded", (_Bounded, library.SyncByteStream), {})(response)
