"""The model cache: loaded models, shared by equal configurations, one copy per process and device.

The cache is bounded and can be released. A model that is evicted while a call uses it stays alive until that call ends.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from cachetools import LRUCache

from embedreg.errors import ConfigError
from embedreg.support import forks
from embedreg.support.forks import ForkSafeLock

__all__ = ["ForkSafeLock", "ModelCache", "configure", "get", "held_bytes", "release"]

T = TypeVar("T")

THREADED = "threaded"  # part of the key of a model with its own threads, which a forked child does not have
MAX_MODELS = 4  # a query and a document model, and two to compare with; more is often a leak

_caches: weakref.WeakSet[ModelCache] = weakref.WeakSet()


class ModelCache:
    """Models by key; the least recently used one is evicted first.

    Args:
        max_models: maximum number of models, at least 1; the copies and compiled forms of one model count as one.
        max_bytes: maximum memory of all models whose size is known; one model is always kept. None: no limit.
        survives_fork: returns whether the model of a key can be used in a forked child; None: every model can.
    """

    def __init__(
        self,
        max_models: int = MAX_MODELS,
        max_bytes: int | None = None,
        survives_fork: Callable[[Hashable], bool] | None = None,
    ) -> None:
        self._lock = ForkSafeLock()
        self._loading: dict[Hashable, threading.Lock] = {}
        self._sizes: dict[Hashable, int] = {}
        self._groups: dict[Hashable, Hashable] = {}
        self._models: LRUCache[Hashable, Any] = LRUCache(maxsize=sys.maxsize)
        self.max_models, self.max_bytes = max_models, max_bytes
        self._survives_fork = survives_fork
        self.configure(max_models, max_bytes)
        _caches.add(self)

    def configure(self, max_models: int = MAX_MODELS, max_bytes: int | None = None) -> None:
        """Set the limits, and evict the models that no longer fit.

        Raises:
            ConfigError: a limit below one model or one byte.
        """
        if max_models < 1 or (max_bytes is not None and max_bytes < 1):
            raise ConfigError(
                f"invalid limits of the model cache: max_models={max_models}, max_bytes={max_bytes}.",
                f"configure(max_models={MAX_MODELS}, max_bytes=None); release() empties it",
            )
        with self._lock:
            self.max_models, self.max_bytes = max_models, max_bytes
            evicted = self._evict()
        _free(evicted)

    def get(
        self,
        key: Hashable,
        load: Callable[[], T],
        size: Callable[[T], int] | None = None,
        group: Hashable | None = None,
    ) -> T:
        """Return the model of a key; load it on a cache miss.

        Concurrent calls with the same key load it once and do not block other keys. A failed load is not cached: its
        error is raised in the thread that loaded, and the next call tries again.

        Args:
            load: builds the model.
            size: returns the bytes that a built model holds.
            group: key that the copies and compiled forms of one model share, so that they count as one; None: the key.
        """
        while True:
            with self._lock:
                if key in self._models:
                    return self._models[key]  # type: ignore[no-any-return]  # what this key's load returned
                key_lock = self._loading.setdefault(key, threading.Lock())
            with key_lock:
                with self._lock:
                    if self._loading.get(key) is not key_lock:
                        continue  # meanwhile another thread has loaded it, or has failed to
                try:
                    model = load()
                    held = size(model) if size is not None else 0
                except BaseException:
                    with self._lock:
                        self._loading.pop(key, None)
                    raise
                with self._lock:
                    self._loading.pop(key, None)
                    self._models[key], self._sizes[key] = model, held
                    self._groups[key] = key if group is None else group
                    evicted = self._evict()
                _free(evicted)
                return model

    def release(self, chosen: Callable[[Hashable], bool] | None = None) -> int:
        """Release the models whose keys are chosen, or all models; return their number."""
        with self._lock:
            keys = [key for key in list(self._models) if chosen is None or chosen(key)]
            released = [self._drop(key) for key in keys]
        count = len(released)
        _free(released)
        return count

    def keys(self) -> list[Hashable]:
        """Return the keys of the loaded models, least recently used first."""
        with self._lock:
            return list(self._models)

    def in_child(self) -> None:
        """Reset the cache in a forked child: loads in progress belong to threads that the child does not have.

        A model that the child cannot use is leaked on purpose: its destructor would wait for threads that do not exist,
        or close the parent's connections.
        """
        self._loading = {}
        survives = self._survives_fork
        for key in list(self._models):
            if survives is not None and not survives(key):
                # never decremented: the memory is freed when the process ends
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._drop(key)))

    def _drop(self, key: Hashable) -> Any:
        self._sizes.pop(key, None)
        self._groups.pop(key, None)
        return self._models.pop(key)

    def _evict(self) -> list[Any]:
        """Remove and return the models that do not fit; the caller frees them outside the lock, since that is slow."""
        evicted = []
        while len(set(self._groups.values())) > self.max_models or (
            self.max_bytes is not None and len(self._models) > 1 and sum(self._sizes.values()) > self.max_bytes
        ):
            key, model = self._models.popitem()
            self._sizes.pop(key, None)
            self._groups.pop(key, None)
            evicted.append(model)
        return evicted


def _free(models: list[Any]) -> None:
    """Free models, and return torch's cached memory to the devices if torch is loaded."""
    if not models:
        return
    models.clear()
    gc.collect()  # a transformers model has reference cycles: without this its memory stays in use
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _in_child() -> None:
    for each in list(_caches):
        each.in_child()


forks.in_child(_in_child)


def _survives_fork(key: Hashable) -> bool:
    return not (isinstance(key, tuple) and THREADED in key)


models = ModelCache(survives_fork=_survives_fork)
get = models.get
configure = models.configure


def release(function: Any = None) -> int:
    """Release loaded models, and the clients of remote services.

    Args:
        function: an embedding function, whose model is released (equal functions share it); or a predicate of cache
            keys; or None for every model and client.
    Returns:
        The number of models and clients released. The next use loads them again.
    """
    if function is None:
        return sum(each.release() for each in list(_caches))
    cache_key = getattr(function, "cache_key", None)
    if cache_key is None:
        # other embedding functions have no model in this cache; any other callable is a predicate
        return models.release(function) if callable(function) and not hasattr(function, "ndims") else 0
    key = cache_key()
    # copies on other devices and compiled forms have keys that start with the model's key
    return models.release(lambda loaded: loaded == key or _starts_with(loaded, key))


def held_bytes(model: Any) -> int:
    """Return the bytes of a torch module's parameters and buffers, or of an array; 0 for other objects."""
    if not (hasattr(model, "parameters") and hasattr(model, "buffers")):
        return int(getattr(model, "nbytes", 0))
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def _starts_with(loaded: Hashable, key: Any) -> bool:
    return isinstance(loaded, tuple) and isinstance(key, tuple) and loaded[: len(key)] == key
