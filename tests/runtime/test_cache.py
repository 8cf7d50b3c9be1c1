"""The model cache: one load a key under threads, bounds, release, and what a forked child finds."""

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from embedreg import errors
from embedreg.runtime.cache import ModelCache, release


class Model:
    """Something that is loaded and can be seen to be freed."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.itself = self  # models of real libraries hold reference cycles too


def run(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work` in threads that start together; return results or errors, in order."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def body(index: int) -> None:
        barrier.wait()
        try:
            results[index] = work(index)
        except Exception as exc:  # noqa: BLE001 (handed to the test)
            results[index] = exc

    threads = [threading.Thread(target=body, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return results


def test_threads_load_a_key_once() -> None:
    """Sixteen threads that want one model get the same one, loaded once."""
    cache, loads = ModelCache(), []

    def load() -> Model:
        loads.append(1)
        time.sleep(0.05)
        return Model()

    models = run(16, lambda _: cache.get("a", load))
    assert len(loads) == 1
    assert len(set(map(id, models))) == 1


def test_one_load_does_not_hold_up_another() -> None:
    """A second key loads, and a loaded one is given out, while a first key is loading."""
    cache, inside, go = ModelCache(), threading.Event(), threading.Event()

    def slow() -> Model:
        inside.set()
        assert go.wait(30)
        return Model()

    thread = threading.Thread(target=cache.get, args=("slow", slow))
    thread.start()
    assert inside.wait(30)
    other = cache.get("other", Model)
    assert cache.get("other", Model) is other
    go.set()
    thread.join(30)
    assert set(cache.keys()) == {"slow", "other"}


def test_a_failed_load_is_not_remembered() -> None:
    """The thread that tried gets the error, the next one tries again, and then all have the model."""
    cache, tries = ModelCache(), []

    def load() -> Model:
        tries.append(1)
        time.sleep(0.01)
        if len(tries) <= 2:
            raise OSError("the disk is gone")
        return Model()

    results = run(8, lambda _: cache.get("a", load))
    assert sum(isinstance(result, OSError) for result in results) == 2
    assert len({id(result) for result in results if isinstance(result, Model)}) == 1
    assert len(tries) == 3


def test_the_least_recently_used_goes_first() -> None:
    """Over the bound of models, the one that was asked for longest ago is freed."""
    cache = ModelCache(max_models=2)
    gone = weakref.ref(cache.get("a", Model))
    kept = cache.get("b", Model)
    cache.get("a", Model)
    cache.get("c", Model)
    assert cache.keys() == ["a", "c"]
    assert gone() is not None
    assert cache.get("b", Model) is not kept
    assert cache.keys() == ["c", "b"]
    assert gone() is None


def test_bytes_are_bounded_where_known() -> None:
    """Over the bound of bytes models go until the rest fits; a single model too large for it is still usable."""
    cache = ModelCache(max_bytes=100)
    for key, size in (("a", 40), ("b", 40), ("c", 40)):
        cache.get(key, lambda size=size: Model(size), lambda model: model.size)
    assert cache.keys() == ["b", "c"]
    cache.get("huge", lambda: Model(1000), lambda model: model.size)
    assert cache.keys() == ["huge"]
    cache.configure(max_models=1)
    cache.get("a", Model)
    assert cache.keys() == ["a"]
    for bounds in ({"max_models": 0}, {"max_bytes": 0}):
        with pytest.raises(errors.ConfigError):
            cache.configure(**bounds)


def test_release_frees_what_is_chosen() -> None:
    """release() counts and frees; what is in use lives on until its user lets go."""
    cache = ModelCache()
    used = cache.get("a", Model)
    freed = weakref.ref(cache.get("b", Model))
    assert cache.release(lambda key: key == "b") == 1
    assert freed() is None
    alive = weakref.ref(used)
    assert cache.release() == 1
    assert cache.release() == 0
    assert alive() is used
    del used
    gc.collect()
    assert alive() is None


def test_release_of_a_function_without_a_model() -> None:
    """Functions that keep nothing here release nothing."""

    class Other:
        def ndims(self) -> int:
            return 3

    assert release(Other()) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_forked_child_starts_with_free_locks(run_python: Callable[..., str]) -> None:
    """A child forked while another thread loads a model and holds a lock can load that model and take that lock."""
    code = """
import os, threading, warnings
from embedreg.runtime.cache import ForkSafeLock, ModelCache

warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads, which is what is tested here
cache, lock, inside, go = ModelCache(), ForkSafeLock(), threading.Event(), threading.Event()
loaded = cache.get("loaded", object)

def slow():
    with lock, cache._lock:
        inside.set()
        assert go.wait(30)
    return object()

thread = threading.Thread(target=cache.get, args=("slow", slow))
thread.start()
assert inside.wait(30)
child = os.fork()
if child == 0:
    threading.Timer(20, os._exit, (2,)).start()  # a held lock would keep it for ever
    with lock:
        good = cache.get("slow", object) is not None and cache.get("loaded", object) is loaded
    os._exit(0 if good else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
go.set()
thread.join(30)
print(status)
"""
    assert run_python(code).strip() == "0"
