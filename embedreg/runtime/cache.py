"""Loaded models, shared by equal configurations: one copy a process and device, loaded once, bounded, releasable.

Weights are a cache. What is evicted or released while a call is using it stays alive until that call ends.
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

THREADED = "threaded"  # in the key of a model that has threads of its own, which a forked child does not have
MAX_MODELS = 4  # a query model, a document model and one of each being compared; more is a leak as often as a wish

_caches: weakref.WeakSet[ModelCache] = weakref.WeakSet()


class ModelCache:
    """Models by key, least recently used out first.

    Args:
        max_models: how many models may stay, at least 1; the copies and compiled forms of one model count as one.
        max_bytes: how much memory they may hold in all, where sizes are known; one model always may. None: no bound.
        stays: says of a key whether its model can be used in a forked child; None for yes.
    """

    def __init__(
        self,
        max_models: int = MAX_MODELS,
        max_bytes: int | None = None,
        stays: Callable[[Hashable], bool] | None = None,
    ) -> None:
        self._lock = ForkSafeLock()
        self._loading: dict[Hashable, threading.Lock] = {}
        self._sizes: dict[Hashable, int] = {}
        self._groups: dict[Hashable, Hashable] = {}
        self._models: LRUCache[Hashable, Any] = LRUCache(maxsize=sys.maxsize)
        self.max_models, self.max_bytes = max_models, max_bytes
        self._stays = stays
        self.configure(max_models, max_bytes)
        _caches.add(self)

    def configure(self, max_models: int = MAX_MODELS, max_bytes: int | None = None) -> None:
        """Set the bounds, and evict what no longer fits.

        Raises:
            ConfigError: a bound that leaves no room for any model.
        """
        if max_models < 1 or (max_bytes is not None and max_bytes < 1):
            raise ConfigError(
                f"a model cache of {max_models} models and {max_bytes} bytes cannot hold one.",
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
        """Return the model of a key, loading it if need be.

        Threads that ask for one key load it once; other keys are not held up. A failed load is not remembered: its
        error goes to the thread that tried, and the next one tries again.

        Args:
            load: builds the model.
            size: tells the bytes that a built model holds.
            group: what it is a copy or another form of, so that they count as one model; None for the key itself.
        """
        while True:
            with self._lock:
                if key in self._models:
                    return self._models[key]  # type: ignore[no-any-return]  # what this key's load returned
                turn = self._loading.setdefault(key, threading.Lock())
            with turn:
                with self._lock:
                    if self._loading.get(key) is not turn:
                        continue  # another thread has loaded it, or failed to, meanwhile
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
        """Let go of the models whose keys are chosen, or of all; return how many there were."""
        with self._lock:
            keys = [key for key in list(self._models) if chosen is None or chosen(key)]
            released = [self._drop(key) for key in keys]
        count = len(released)
        _free(released)
        return count

    def keys(self) -> list[Hashable]:
        """Return the keys of what is loaded, least recently used first."""
        with self._lock:
            return list(self._models)

    def in_child(self) -> None:
        """Start afresh in a forked child: loads that were under way belong to threads that are not there.

        What the child cannot use is not freed but forgotten: to end its threads or connections would be to wait for
        them, or to end the parent's.
        """
        self._loading = {}
        stays = self._stays
        for key in list(self._models):
            if stays is not None and not stays(key):
                ctypes.pythonapi.Py_IncRef(
                    ctypes.py_object(self._drop(key))
                )  # for good: the end of a process frees too

    def _drop(self, key: Hashable) -> Any:
        self._sizes.pop(key, None)
        self._groups.pop(key, None)
        return self._models.pop(key)

    def _evict(self) -> list[Any]:
        """Take out what does not fit; the caller frees it outside the lock, since that may take long."""
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
    """Drop models, and give the memory that torch keeps for itself back to the devices, if torch is there at all."""
    if not models:
        return
    models.clear()
    gc.collect()  # a transformers model is full of reference cycles: without this it would linger
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


def _outlives_fork(key: Hashable) -> bool:
    return not (isinstance(key, tuple) and THREADED in key)


models = ModelCache(stays=_outlives_fork)
get = models.get
configure = models.configure


def release(function: Any = None) -> int:
    """Free loaded models, and the clients of remote services.

    Args:
        function: an embedding function, whose model goes (equal functions share it); or a predicate of cache keys; or
            None for every model and client.
    Returns:
        How many were let go. The next use loads anew.
    """
    if function is None:
        return sum(each.release() for each in list(_caches))
    cache_key = getattr(function, "cache_key", None)
    if cache_key is None:
        # A function of another kind keeps no model here; anything else that can be called is a predicate.
        return models.release(function) if callable(function) and not hasattr(function, "ndims") else 0
    key = cache_key()
    # what was made of a model, such as its copy on another device, is kept under the model's key and more
    return models.release(lambda loaded: loaded == key or _begins(loaded, key))


def held_bytes(model: Any) -> int:
    """Return how much memory the parameters and buffers of a torch module take, or an array; else 0."""
    if not (hasattr(model, "parameters") and hasattr(model, "buffers")):
        return int(getattr(model, "nbytes", 0))
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def _begins(loaded: Hashable, key: Any) -> bool:
    return isinstance(loaded, tuple) and isinstance(key, tuple) and loaded[: len(key)] == key
