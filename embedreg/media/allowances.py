"""Allowances: the folders and hosts from which images and recordings in data may be read, and the limits.

`files`, `fetching` and the decoders check them; `docs/images.md` and `docs/audio.md` describe the rules.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from embedreg.errors import ConfigError, RowError, Words
from embedreg.security.addresses import Host, folder_given, parse_host, texts_given
from embedreg.support.forks import ForkSafeLock

__all__ = ["Allowance", "ImagePolicy", "allow_images", "current_policy", "host_covered", "reset"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
AUDIO_FORMATS = ("WAV", "FLAC", "MP3", "OGG")


@dataclass(frozen=True)
class ImagePolicy:
    """The files and hosts that images and recordings in data may be read from. By default none.

    Bytes, PIL images and arrays are always allowed.

    Attributes:
        dirs: folders (including everything below them) or single files that may be read.
        hosts: hosts that may be fetched from, if all of their addresses are public: `host` (any port),
            `host:port`, `https://host`, `*.example.com` (its subdomains), or `*` (any, on the ports 80 and 443).
        private_hosts: the same without a `*`, for hosts whose addresses are private or this machine's own.
        max_bytes: the maximum size of one encoded image or recording.
        max_pixels: the maximum number of pixels of one image. A decoded pixel takes four bytes. Decoding may take at
            most eight bytes for each of max_pixels, so formats that take more (WebP: 16) may have fewer pixels.
        max_aspect: the maximum ratio of the longer to the shorter side: models scale the shorter side to their size,
            which would make a line of pixels enormous.
        timeout_s: the maximum seconds for fetching one of them, including DNS lookup, redirects and retries.
        max_redirects: the maximum number of redirects, each checked like the first URL.
        formats: Pillow's names of the formats of images that are decoded, regardless of file extensions.
        max_seconds: the maximum length of one recording.
        max_channels: the maximum number of channels of one recording.
        max_samples: the maximum number of decoded samples of one recording, of all channels together.
        audio_formats: the formats of recordings that are decoded, regardless of file extensions: "WAV", "FLAC", "MP3"
            and "OGG" (Vorbis and Opus).
    """

    dirs: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()
    max_bytes: int = 64 * 2**20
    max_pixels: int = 2**26  # 8192 x 8192: more than cameras have, except those of 100 megapixels
    max_aspect: float = 100.0
    timeout_s: float = 20.0
    max_redirects: int = 5
    formats: tuple[str, ...] = FORMATS
    max_seconds: float = 600.0
    max_channels: int = 16
    max_samples: int = 2**26  # 600 s of stereo at 48 kHz are 2**25.8
    audio_formats: tuple[str, ...] = AUDIO_FORMATS

    def __post_init__(self) -> None:
        made = {
            "dirs": tuple(folder_given("allow_images", "dirs", text) for text in _given("dirs", self.dirs)),
            "hosts": tuple(_checked("hosts", text) for text in _given("hosts", self.hosts)),
            "private_hosts": tuple(
                _checked("private_hosts", text) for text in _given("private_hosts", self.private_hosts)
            ),
            "formats": tuple(text.upper() for text in _given("formats", self.formats)),
            "audio_formats": tuple(text.upper() for text in _given("audio_formats", self.audio_formats)),
        }
        if unknown := sorted(set(made["audio_formats"]) - set(AUDIO_FORMATS)):
            raise ConfigError(f"unknown audio format {unknown[0]!r}.", f"audio_formats={AUDIO_FORMATS}")
        for name, value in made.items():
            object.__setattr__(self, name, value)
        for name in LIMITS:
            value = getattr(self, name)
            whole = name not in _NOT_WHOLE
            kinds: Any = int if whole else int | float
            least = 0 if name == "max_redirects" else 1 if name == "max_aspect" else 1e-3
            if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
                raise ConfigError(f"invalid limit {name}={value!r}.", f"{name}={getattr(ImagePolicy, name)}")


LIMITS = (
    "max_bytes",
    "max_pixels",
    "max_aspect",
    "timeout_s",
    "max_redirects",
    "max_seconds",
    "max_channels",
    "max_samples",
)
_NOT_WHOLE = frozenset({"max_aspect", "max_seconds", "timeout_s"})


@dataclass(frozen=True, eq=False)
class Allowance:
    """The allowance of one `allow_images(...)` call; as a context manager it ends with the block."""

    given: dict[str, Any]

    def __enter__(self) -> Allowance:
        with _lock:
            if self not in _allowances:
                _allowances.append(self)
                _combine()
        return self

    def __exit__(self, *exc: object) -> None:
        self.revoke()

    def revoke(self) -> None:
        """Revoke the allowance: from now on it permits nothing."""
        with _lock:
            if self in _allowances:
                _allowances.remove(self)
                _combine()


_lock = ForkSafeLock()
_allowances: list[Allowance] = []


def allow_images(
    policy: ImagePolicy | None = None,
    *,
    dirs: Iterable[str | os.PathLike[str]] = (),
    hosts: Iterable[str] = (),
    private_hosts: Iterable[str] = (),
    **limits: Any,
) -> Allowance:
    """Allow images and recordings in data to be read from folders and hosts, for this process or for a `with` block.

    It applies to all threads of the process, since engines embed in their own threads. Several allowances add up; a
    later limit replaces an earlier one.

    Args:
        policy: everything in one value, including limits.
        dirs, hosts, private_hosts, limits: see `ImagePolicy`.
    Returns:
        The allowance: call `.revoke()`, or use it in a `with` statement.
    Raises:
        ConfigError: an entry is invalid, such as an empty path.
    """
    if policy is not None and not isinstance(policy, ImagePolicy):
        raise ConfigError(f"expected an ImagePolicy, got a {type(policy).__name__}.", "allow_images(dirs=['photos'])")
    known = {*LIMITS, "formats", "audio_formats"}
    if unknown := sorted(limits.keys() - known):
        raise ConfigError(f"unknown limit {unknown[0]!r}.", f"limits: {', '.join(sorted(known))}")
    own = ImagePolicy(dirs=dirs, hosts=hosts, private_hosts=private_hosts, **limits)  # type: ignore[arg-type]  # converted to tuples there
    given = {name: getattr(own, name) for name in ("dirs", "hosts", "private_hosts", *limits)}
    if policy is not None:
        whole = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
        given = whole | given | {name: (*whole[name], *given[name]) for name in _ADDING}
    return Allowance(given).__enter__()


def not_allowed(message: str, kind: str, value: str) -> RowError:
    """Return the error for an input that is not allowed: the message, and how to allow it in Python and in a shell."""
    call, flag = f"embedreg.allow_images({kind}=[{value!r}])", f"--allow-{kind.removesuffix('s').replace('_', '-')}"
    shell = f"{flag} {shlex.quote(value)}"
    return RowError(Words(f"{message}{call}, or {flag} on the command line", message + shell), Words(call, shell))


def current_policy() -> ImagePolicy:
    """Return the policy that is currently in effect in this process."""
    return _current


def reset() -> None:
    """Revoke all allowances."""
    with _lock:
        _allowances.clear()
        _combine()


_ADDING = ("dirs", "hosts", "private_hosts")


def _combine() -> None:
    global _current
    made: dict[str, Any] = {}
    for allowance in _allowances:
        for name, value in allowance.given.items():
            made[name] = tuple(dict.fromkeys((*made.get(name, ()), *value))) if name in _ADDING else value
    _current = ImagePolicy(**made)


_given = functools.partial(texts_given, "allow_images")


# -- hosts -------------------------------------------------------------------------------------------------------------


def host_covered(rules: Iterable[str], host: Host) -> bool:
    """Return whether a policy's `hosts` or `private_hosts` include a host with its scheme and port."""
    return any(_covers(text, host) for text in rules)


def _covers(text: str, host: Host) -> bool:
    rule, below = _rule(text)
    if rule is None or (rule.scheme is not None and rule.scheme != host.scheme):
        return False
    if text.endswith("*"):  # any host, but only on the default ports
        return host.port is None or host.effective_port == host._replace(port=None).effective_port
    if not below:
        return rule.covers(host)
    return host.host.endswith(f".{rule.host}") and rule._replace(host=host.host).covers(host)


@functools.lru_cache(maxsize=1024)
def _rule(text: str) -> tuple[Host | None, bool]:
    """Parse one entry: return its host, and whether it means the subdomains."""
    scheme, mark, rest = text.rpartition("://")
    if rest == "*":
        return parse_host(f"{scheme}{mark}any"), False
    below = rest.startswith("*.")
    return parse_host(f"{scheme}{mark}{rest.removeprefix('*.')}"), below


def _checked(kind: str, text: str) -> str:
    text = text.rstrip("/")
    rule, below = _rule(text)
    bare = rule is not None and (rule.bare or text.replace("*.", "") == f"{rule.scheme}://{rule}" or text.endswith("*"))
    if rule is None or not bare or (kind == "private_hosts" and "*" in text) or (below and "." not in rule.host):
        raise ConfigError(
            f"allow_images({kind}=...) cannot allow {text!r}.",
            f"write {kind}=['host'], ['host:port'], ['https://host']"
            + (", ['*.example.com'] or ['*']" if kind == "hosts" else ""),
        )
    return text.lower()


_current = ImagePolicy()  # all current allowances, combined
