"""The Hugging Face hub: its cache on this machine, and downloads that fail early with a clear reason."""

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

CONNECT_TIMEOUT_S = 10.0  # for the first response of the hub; its own client would wait forever
CONNECT = "connect once so that it can be downloaded"
COPY = Words(
    "copy its folder here and give its path: name='/path/to/folder'",
    "copy its folder here and give its path: --set name=/path/to/folder",
)
LOOK_EVERY_S = 0.2  # interval at which the downloaded bytes are counted
HUB_ID = re.compile(r"(?!.*(--|\.\.))[\w][\w.-]{0,95}(/[\w][\w.-]{0,95})?")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOCAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
_NETWORK_LIBRARIES = frozenset({"httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"})


@dataclass(frozen=True)
class Refusal:
    """Why a download failed.

    Attributes:
        why: the reason, as part of a sentence.
        final: whether another repository would fail for the same reason.
        hint: what to do; None for the hint about an unknown name.
        copy: whether a copy of the files from another machine would help.
    """

    why: str
    final: bool
    hint: str | None = None
    copy: bool = False


def or_copy(hint: str, how: Words = COPY) -> Words:
    """Return a hint extended with the way to use a copy of the model."""
    return how.changed(lambda copy: f"{hint}, or {copy}")


def cache_folder(*own: str) -> Path | None:
    """Return the folder of the hub's cache on this machine; None if its client is not installed.

    Args:
        own: environment variables of a library that overrides the folder.
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
    """Return the commit of a branch or tag that the cache has recorded; None if there is none."""
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
    """Download files of a repository into the cache; return None on success, else the reason of the failure.

    Args:
        choose: returns the names or patterns to download, given the names of the repository's files.
        extra: the embedreg extra that installs the hub's client.
    """
    hub = attempt_import_or_raise("huggingface_hub", extra=extra)
    errors = attempt_import_or_raise("huggingface_hub.errors", extra=extra)
    try:
        # Called first, since it has a timeout and no retries: an unreachable hub fails early.
        info = hub.HfApi().model_info(repository, revision=revision, timeout=CONNECT_TIMEOUT_S, files_metadata=True)
        wanted = choose([each.rfilename for each in info.siblings or ()])
        chosen = hub.utils.filter_repo_objects(
            info.siblings or (), allow_patterns=wanted, key=lambda each: each.rfilename
        )
        folder = None if cache is None else storage_of(cache, repository) / "blobs"
        with _reported(f"downloading {repository}", folder, [each.size for each in chosen]):
            hub.snapshot_download(repository, revision=revision, cache_dir=cache, allow_patterns=wanted)
    except errors.OfflineModeIsEnabled:
        return Refusal("the hub can't be reached (HF_HUB_OFFLINE is set)", final=False, hint=CONNECT, copy=True)
    except errors.GatedRepoError:
        return Refusal(f"the hub requires that you accept the terms of {repository}", final=True)
    except errors.RevisionNotFoundError:
        return Refusal(f"the hub's {repository} has no revision {revision!r}", final=True)
    except errors.RepositoryNotFoundError:
        return Refusal("the hub has no such model, or it is private", final=False)
    except Exception as exc:  # the hub's client has used requests, httpx and httpx2, which share no error class
        if not _is_network(exc):
            raise
        return _refusal(exc)
    return None


def _refusal(exc: Exception) -> Refusal:
    """Return the reason of a failed download: on this machine, on the hub, or in the network."""
    if isinstance(exc, OSError) and exc.errno in _LOCAL:
        return Refusal(f"the download cannot be written here ({exc.strerror})", True, "free some space, or set HF_HOME")
    if isinstance(exc, json.JSONDecodeError):
        return Refusal(
            "the response is not from the hub", True, "check HF_ENDPOINT, the proxy and the network's log-in page"
        )
    status = http_status(exc)
    if status is None:
        return Refusal(f"the hub can't be reached ({type(exc).__name__})", True, CONNECT, copy=True)
    if status == 429 or status >= 500:
        return Refusal(f"the hub failed (HTTP {status})", True, "try again later", copy=True)
    return Refusal(
        f"the hub refused it (HTTP {status})", True, "log in: hf auth login; or check HF_ENDPOINT and HF_TOKEN"
    )


@contextlib.contextmanager
def _reported(what: str, folder: Path | None, sizes: list[int | None]) -> Iterator[None]:
    """Report a download as a stage; its progress is the number of bytes in a folder of the cache.

    The hub's client reports its progress only to the terminal, differently in each version.

    Args:
        folder: where files are written to.
        sizes: of the files; None if the hub did not report it.
    """
    total = sum(size for size in sizes if size is not None) if None not in sizes else None
    before = _bytes_in(folder)
    ended = threading.Event()
    with progress.stage(what) as update:

        def poll() -> None:
            while not ended.wait(LOOK_EVERY_S):
                done = _bytes_in(folder) - before
                update(done if total is None else min(done, total), total)

        poller = threading.Thread(target=poll, name="embedreg-download", daemon=True)
        poller.start()
        try:
            yield
        finally:
            ended.set()
            poller.join()
        if total is not None:
            update(total, total)


def _bytes_in(folder: Path | None) -> int:
    found = 0
    with contextlib.suppress(OSError):  # it does not exist yet, or a finished file has just been renamed
        for path in folder.iterdir() if folder is not None else ():
            found += path.stat().st_size
    return found


def _is_network(exc: BaseException) -> bool:
    return (
        isinstance(exc, OSError | json.JSONDecodeError) or type(exc).__module__.partition(".")[0] in _NETWORK_LIBRARIES
    )
