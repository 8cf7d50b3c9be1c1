"""The Hugging Face hub: its cache on this machine, and downloads that fail soon and in words."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from embedreg.errors import Words
from embedreg.runtime import progress
from embedreg.support.imports import attempt_import_or_raise
from embedreg.support.retry import http_status

__all__ = ["HUB_ID", "Refusal", "cache_folder", "commit_of", "download", "storage_of"]

CONNECT_TIMEOUT_S = 10.0  # for the first answer of the hub; its own client would wait for ever
CONNECT = "connect once so that it can be downloaded"
COPY = Words(
    "copy its folder here and give its path: name='/path/to/folder'",
    "copy its folder here and give its path: --set name=/path/to/folder",
)
LOOK_EVERY_S = 0.2  # how often the bytes that have come are counted
HUB_ID = re.compile(r"(?!.*(--|\.\.))[\w][\w.-]{0,95}(/[\w][\w.-]{0,95})?")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOCAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
_NETWORK_LIBRARIES = frozenset({"httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"})


@dataclass(frozen=True)
class Refusal:
    """Why the hub gave nothing.

    Attributes:
        why: what to tell, as part of a sentence.
        final: whether asking for another repository in its place is of no use.
        hint: what to do; None for what to do about a name that the hub does not know.
        copy: whether a copy from elsewhere would do as well.
    """

    why: str
    final: bool
    hint: str | None = None
    copy: bool = False


def or_copy(hint: str, how: Words = COPY) -> Words:
    """Return a hint that also says how a copy of the model is named."""
    return how.changed(lambda said: f"{hint}, or {said}")


def cache_folder(*own: str) -> Path | None:
    """Return where the hub's models lie on this machine; None where its client is not installed.

    Args:
        own: environment variables of a library that keeps them elsewhere.
    """
    for name in own:
        if value := os.environ.get(name):
            return Path(value).expanduser()
    try:
        from huggingface_hub import constants
    except ModuleNotFoundError:
        return None
    return Path(constants.HF_HUB_CACHE)


def storage_of(cache: Path, repository: str) -> Path:
    """Return the folder of a repository in the cache."""
    return cache / f"models--{repository.replace('/', '--')}"


def commit_of(storage: Path, revision: str | None) -> str | None:
    """Return the commit of a branch or tag that the cache has last seen; None where it has not."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        return (storage / "refs" / (revision or "main")).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def download(
    repository: str,
    revision: str | None,
    cache: Path | None,
    choose: Callable[[list[str]], list[str]],
    *,
    extra: str,
) -> Refusal | None:
    """Download files of a repository into the cache; return why not, or None once they are there.

    Args:
        choose: called with the names of the repository's files, gives the names or patterns that are wanted.
        extra: the embedreg extra that brings the hub's client.
    """
    hub = attempt_import_or_raise("huggingface_hub", extra=extra)
    errors = attempt_import_or_raise("huggingface_hub.errors", extra=extra)
    try:
        # Asked first, since this call has a timeout and no retries: an unreachable hub is known at once.
        info = hub.HfApi().model_info(repository, revision=revision, timeout=CONNECT_TIMEOUT_S, files_metadata=True)
        wanted = choose([each.rfilename for each in info.siblings or ()])
        chosen = hub.utils.filter_repo_objects(
            info.siblings or (), allow_patterns=wanted, key=lambda each: each.rfilename
        )
        folder = None if cache is None else storage_of(cache, repository) / "blobs"
        with _watched(f"downloading {repository}", folder, [each.size for each in chosen]):
            hub.snapshot_download(repository, revision=revision, cache_dir=cache, allow_patterns=wanted)
    except errors.OfflineModeIsEnabled:
        return Refusal("the hub can't be reached (HF_HUB_OFFLINE is set)", final=False, hint=CONNECT, copy=True)
    except errors.GatedRepoError:
        return Refusal(f"the hub gives {repository} only to those who have accepted its terms", final=True)
    except errors.RevisionNotFoundError:
        return Refusal(f"the hub's {repository} has no revision {revision!r}", final=True)
    except errors.RepositoryNotFoundError:
        return Refusal("the hub has no such model, or shows it to its owner only", final=False)
    except Exception as exc:  # the hub's client has used requests, httpx and httpx2: no common error
        if not _is_network(exc):
            raise
        return _not_had(exc)
    return None


def _not_had(exc: Exception) -> Refusal:
    """Say why a download failed: by this machine's fault, the hub's, or of what lies between."""
    if isinstance(exc, OSError) and exc.errno in _LOCAL:
        return Refusal(
            f"what the hub gives cannot be written here ({exc.strerror})", True, "free some space, or set HF_HOME"
        )
    if isinstance(exc, json.JSONDecodeError):
        return Refusal(
            "what answers there is not the hub", True, "check HF_ENDPOINT, the proxy and the network's log-in page"
        )
    status = http_status(exc)
    if status is None:
        return Refusal(f"the hub can't be reached ({type(exc).__name__})", True, CONNECT, copy=True)
    if status == 429 or status >= 500:
        return Refusal(f"the hub fails (HTTP {status})", True, "try again later", copy=True)
    return Refusal(
        f"the hub refuses it (HTTP {status})", True, "log in: hf auth login; or check HF_ENDPOINT and HF_TOKEN"
    )


@contextlib.contextmanager
def _watched(what: str, folder: Path | None, sizes: list[int | None]) -> Iterator[None]:
    """Tell how many bytes lie in a folder of the cache while they come.

    The hub's client tells of its progress to the terminal only, and each version in another way.

    Args:
        folder: where files are written to.
        sizes: of what is to come; None for what the hub did not say.
    """
    total = sum(size for size in sizes if size is not None) if None not in sizes else None
    before = _bytes_in(folder)
    ended = threading.Event()
    with progress.stage(what) as tell:

        def look() -> None:
            while not ended.wait(LOOK_EVERY_S):
                come = _bytes_in(folder) - before
                tell(come if total is None else min(come, total), total)

        looker = threading.Thread(target=look, name="embedreg-download", daemon=True)
        looker.start()
        try:
            yield
        finally:
            ended.set()
            looker.join()
        if total is not None:
            tell(total, total)


def _bytes_in(folder: Path | None) -> int:
    found = 0
    with contextlib.suppress(OSError):  # not there yet, or a part that has just become a whole
        for path in folder.iterdir() if folder is not None else ():
            found += path.stat().st_size
    return found


def _is_network(exc: BaseException) -> bool:
    return (
        isinstance(exc, OSError | json.JSONDecodeError) or type(exc).__module__.partition(".")[0] in _NETWORK_LIBRARIES
    )
