"""Worker threads: their own torch setting, nobody else's."""

import contextvars
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from embedreg.runtime.hardware import workers

word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="none")


def in_a_new_thread(call: Callable[[], Any]) -> Any:
    """Return what a call gives in a thread that is started for it."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("threads", [None, 3])
def test_thread_settings_stay_with_the_workers(run_python: Callable[..., str], threads: int | None) -> None:
    """Workers have one torch thread; the user's thread and their new threads keep theirs, during and after the work.

    In a process of its own, since the setting belongs to the process.
    """
    code = f"""
import threading, torch
from embedreg.runtime.hardware import workers

def fresh():
    found = []
    thread = threading.Thread(target=lambda: found.append(multiply()))
    thread.start(); thread.join()
    return found[0]

def multiply(item=None):
    torch.ones(400, 400) @ torch.ones(400, 400)
    return torch.get_num_threads()

if {threads}: torch.set_num_threads({threads})
before = torch.get_num_threads()
during = []
for inside in workers.run(multiply, range(20), 2):
    assert inside == 1, inside
    during += [torch.get_num_threads(), fresh()]
assert set(during) == {{before}}, during
assert torch.get_num_threads() == fresh() == before
torch.set_num_threads(5)
assert set(workers.run(lambda item: torch.get_num_threads(), range(9), 2)) == {{1}}
assert torch.get_num_threads() == 5
print(before)
"""
    assert int(run_python(code)) == (threads or torch.get_num_threads())


def test_all_items_are_worked_on_and_workers_bound_how_many_at_once() -> None:
    """Every item's result comes out once, and never more than the workers run together."""
    active: list[int] = []
    peak = []

    def work(item: int) -> int:
        active.append(item)
        peak.append(len(active))
        time.sleep(0.001)
        active.remove(item)
        return item

    assert sorted(workers.run(work, range(50), 2)) == list(range(50))
    assert max(peak) <= 2
    assert list(workers.run(work, [], 2)) == []


def test_the_first_error_comes_out_as_itself_and_stops_the_rest() -> None:
    """An error in a worker is raised to the caller with its traceback, and what waits behind it never begins."""
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 3:
            raise ZeroDivisionError("three")
        time.sleep(0.001)

    with pytest.raises(ZeroDivisionError, match="three") as caught:
        list(workers.run(work, range(1000), 2))
    assert caught.traceback[-1].name == "work"
    assert len(begun) < 20
    assert sorted(workers.run(lambda item: item, range(3), 2)) == [0, 1, 2]


def test_an_interrupt_stops_soon(run_python: Callable[..., str]) -> None:
    """Ctrl-C in the caller's thread ends the work after the batches that run, and the process with it."""
    code = """
import _thread, signal, threading, time
from embedreg.runtime.hardware import workers
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so their children
begun = []
def work(item):
    begun.append(item)
    if item == 4:
        _thread.interrupt_main()
    time.sleep(0.01)
try:
    for _ in workers.run(work, range(10_000), 2):
        pass
except KeyboardInterrupt:
    print("interrupted", len(begun) < 100)
"""
    assert run_python(code) == "interrupted True\n"


@pytest.mark.skipif(not hasattr(os, "getloadavg"), reason="no load average on this system")
def test_small_work_beside_other_work_has_one_torch_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """All torch threads otherwise: a product waits for the slowest, and there are no more cores for them."""
    load = [0.0]
    monkeypatch.setattr(os, "getloadavg", lambda: (load[0], 0.0, 0.0))
    wanted = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        beside = workers.run(lambda _: workers.alone(torch.get_num_threads), [0, 1], 1)
        found = [workers.alone(torch.get_num_threads)]
        assert next(beside) == 1  # in the worker itself
        found.append(workers.alone(torch.get_num_threads))
        beside.close()
        found.append(workers.alone(torch.get_num_threads))
        found.append(workers.alone(workers.alone, torch.get_num_threads))
        found.append(workers.alone(in_a_new_thread, lambda: workers.alone(torch.get_num_threads)))
        load[0] = 1000.0
        found.append(workers.alone(torch.get_num_threads))
    finally:
        torch.set_num_threads(wanted)
    assert found == [2, 1, 2, 2, 1, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no priority of its own")
def test_batches_yield_to_queries_that_come_while_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on they have a lower priority, for some seconds; the caller and the queries keep theirs."""

    def priority(_: object = None) -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    monkeypatch.setattr(workers, "_yielding", [0.0])
    usual = priority()
    assert workers.alone(priority) == usual
    assert set(workers.run(priority, range(4), 2)) == {usual}  # a query that found nothing running changes nothing
    found = []
    for number, seen in enumerate(workers.run(priority, range(20), 2)):
        found.append(seen)
        if number == 4:
            assert workers.alone(priority) == usual
    assert found[:5] == [usual] * 5
    assert found[-1] == min(usual + 10, 19)
    assert priority() == usual
    workers._yielding[0] = 0.0
    assert set(workers.run(priority, range(4), 2)) == {usual}


def test_workers_see_the_callers_context() -> None:
    """Context variables of the caller, such as grants, hold in the workers, and what a worker sets stays there."""
    token = word.set("mine")
    try:

        def work(item: int) -> str:
            seen = word.get()
            word.set(f"worker {item}")
            return seen

        assert set(workers.run(work, range(8), 2)) == {"mine"}
        assert word.get() == "mine"
        assert in_a_new_thread(lambda: list(workers.run(lambda item: word.get(), range(4), 2))) == ["none"] * 4
    finally:
        word.reset(token)


def test_callers_take_turns() -> None:
    """A short job that comes second does not wait for the whole of a long one."""
    started = threading.Event()
    ends: dict[str, float] = {}

    def long() -> None:
        def work(item: int) -> None:
            started.set()
            time.sleep(0.005)

        list(workers.run(work, range(200), 2))
        ends["long"] = time.perf_counter()

    thread = threading.Thread(target=long)
    thread.start()
    started.wait()
    list(workers.run(lambda item: None, range(4), 2))
    ends["short"] = time.perf_counter()
    thread.join()
    assert ends["short"] < ends["long"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_gets_workers_of_its_own(run_python: Callable[..., str]) -> None:
    """After a fork, which copies no threads, work still gets done."""
    code = """
import os, warnings
warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
from embedreg.runtime.hardware import workers
list(workers.run(lambda item: item, range(4), 2))
pid = os.fork()
if pid == 0:
    os._exit(int(sorted(workers.run(lambda item: item, range(4), 2)) != [0, 1, 2, 3]))
print(os.waitpid(pid, 0)[1])
"""
    assert run_python(code) == "0\n"


def test_cores_are_those_that_the_process_may_use() -> None:
    """At least one, and no more than the machine has."""
    assert 1 <= workers.cores() <= (os.cpu_count() or 1)
