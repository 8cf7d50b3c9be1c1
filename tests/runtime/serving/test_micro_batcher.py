"""Requests that arrive together share a micro-batch; a lone request never waits, and a hung one blocks no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from embedreg.runtime.serving.micro_batcher import Abandoned, MicroBatch, MicroBatcher, Ticket

SMALL, LARGE = 1 / 256, 1.0


class Doubling:
    """Doubles numbers, one micro-batch at a time; each can be held until it is released, or takes some seconds."""

    def __init__(self, held: bool = False, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.sizes: list[int] = []
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0 if held else 10**6)
        self.running = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, items: Sequence[int], each: MicroBatch[int, int]) -> list[int]:
        with self._lock:
            self.sizes.append(len(items))
            self.running += 1
            self.most = max(self.most, self.running)
        self.started.release()
        try:
            while not self.go.acquire(timeout=0.01):
                each.check()
            time.sleep(self.takes_s)
        finally:
            with self._lock:
                self.running -= 1
        if any(item < 0 for item in items):
            raise ValueError("a negative number")
        return [2 * item for item in items]


def until(done: Callable[[], bool]) -> None:
    """Wait for a state that has no event."""
    over = time.monotonic() + 10
    while not done():
        assert time.monotonic() < over
        time.sleep(0.001)


def leave() -> None:
    """Raise, as a caller does that waits no longer."""
    raise TimeoutError("enough")


def test_requests_that_arrive_during_a_batch_form_the_next_one() -> None:
    """A request that finds the model idle runs at once and alone; the others run together, each with its own result."""
    work = Doubling(held=True)
    batcher = MicroBatcher(work)
    first = batcher.submit(1, SMALL)
    assert work.started.acquire(timeout=10)
    others = [batcher.submit(k, SMALL) for k in range(2, 17)]
    work.go.release(2)
    assert [ticket.wait() for ticket in [first, *others]] == [2 * k for k in range(1, 17)]
    assert work.sizes == [1, 15]


def test_a_lone_caller_never_waits_for_others() -> None:
    """Only callers that shared the previous micro-batch are waited for: a lone client's run without a wait."""
    batcher = MicroBatcher(Doubling(), window_s=5.0)
    began = time.monotonic()
    assert [batcher.submit(k, SMALL).wait() for k in range(50)] == [2 * k for k in range(50)]
    assert time.monotonic() - began < 5.0


def test_callers_that_come_back_are_waited_for() -> None:
    """Sixteen clients that each send a request after the response to the last share nearly every micro-batch."""
    work = Doubling(takes_s=0.01)
    batcher = MicroBatcher(work, window_s=0.009)
    start = threading.Barrier(16)  # or the first client may be done before the last one's thread has begun

    def client(name: int) -> None:
        start.wait()
        for turn in range(20):
            assert batcher.submit(100 * name + turn, SMALL).wait() == 2 * (100 * name + turn)

    with ThreadPoolExecutor(16) as clients:
        list(clients.map(client, range(16)))
    assert sum(work.sizes) == 320
    assert len(work.sizes) < 80


def test_nobody_is_waited_for_where_a_batch_takes_less_than_the_wait() -> None:
    """Two callers shared a micro-batch, and one comes back alone: its request runs at once."""
    work = Doubling(held=True)
    batcher = MicroBatcher(work, window_s=5.0)
    tickets = [batcher.submit(1, SMALL)]
    assert work.started.acquire(timeout=10)
    tickets += [batcher.submit(k, SMALL) for k in (2, 3)]
    work.go.release(10)
    assert [ticket.wait() for ticket in tickets] == [2, 4, 6]
    began = time.monotonic()
    assert batcher.submit(4, SMALL).wait() == 8
    assert time.monotonic() - began < 4.0
    assert work.sizes == [1, 2, 1]


def test_a_batch_holds_no_more_than_its_limit() -> None:
    """Requests of half a micro-batch run in pairs."""
    work = Doubling(held=True)
    batcher = MicroBatcher(work)
    tickets = [batcher.submit(k, 0.5) for k in range(7)]
    assert work.started.acquire(timeout=10)
    until(lambda: batcher.waiting >= 5)
    work.go.release(100)
    assert [ticket.wait() for ticket in tickets] == [2 * k for k in range(7)]
    assert max(work.sizes) == 2


def test_large_requests_run_alone_and_leave_a_worker_for_small_ones() -> None:
    """With two workers, a small request does not wait for a large one, and large ones wait for each other."""
    work = Doubling(held=True)
    batcher = MicroBatcher(work, max_workers=2)
    large = [batcher.submit(k, LARGE) for k in (1, 2)]
    assert work.started.acquire(timeout=10)
    small = batcher.submit(3, SMALL)
    assert work.started.acquire(timeout=10)
    assert batcher.waiting == 1
    work.go.release(3)
    assert [ticket.wait() for ticket in [*large, small]] == [2, 4, 6]
    assert work.sizes == [1, 1, 1]
    assert work.most == 2


def test_one_worker_runs_one_batch_at_a_time() -> None:
    """A function that is not safe in several threads never runs in two."""
    work = Doubling()
    batcher = MicroBatcher(work, max_workers=1)
    with ThreadPoolExecutor(8) as clients:
        weights = [SMALL, LARGE] * 20
        assert list(clients.map(lambda weight: batcher.submit(5, weight).wait(), weights)) == [10] * 40
    assert work.most == 1


def test_an_error_reaches_every_request_of_the_batch() -> None:
    """An outage fails every request: the micro-batch is not run again for each."""
    work = Doubling(held=True)
    batcher = MicroBatcher(work)
    blocker = batcher.submit(0, SMALL)
    assert work.started.acquire(timeout=10)
    tickets = [batcher.submit(k, SMALL) for k in (1, -1, 2)]
    work.go.release(100)
    assert blocker.wait() == 0
    for ticket in tickets:
        with pytest.raises(ValueError, match="a negative number"):
            ticket.wait()
    assert work.sizes == [1, 3]


def test_an_error_that_may_be_one_requests_own_stays_with_it() -> None:
    """Under `isolate` the requests of a failed micro-batch run again, each separately."""
    work = Doubling(held=True)
    batcher = MicroBatcher(work, isolate=lambda exc: isinstance(exc, ValueError))
    blocker = batcher.submit(0, SMALL)
    assert work.started.acquire(timeout=10)
    good, bad, better = (batcher.submit(k, SMALL) for k in (1, -1, 2))
    work.go.release(100)
    assert (blocker.wait(), good.wait(), better.wait()) == (0, 2, 4)
    with pytest.raises(ValueError, match="a negative number"):
        bad.wait()


def test_a_wrong_number_of_results_is_an_error() -> None:
    """Nobody gets another's result."""
    batcher: MicroBatcher[int, int] = MicroBatcher(lambda items, each: [])
    with pytest.raises(ValueError, match="zip"):
        batcher.submit(1, SMALL).wait()
    assert batcher.submit  # and the worker lives on
    with pytest.raises(ValueError, match="zip"):
        batcher.submit(1, SMALL).wait()


def test_a_cancelled_request_does_not_hold_the_others() -> None:
    """A cancelled request leaves the queue, or a micro-batch that continues for its other requests."""
    work = Doubling(held=True)
    batcher = MicroBatcher(work)
    first = batcher.submit(1, SMALL)
    assert work.started.acquire(timeout=10)
    queued, other = batcher.submit(2, SMALL), batcher.submit(3, SMALL)
    with pytest.raises(TimeoutError):
        queued.wait(leave)
    assert batcher.waiting == 1
    third = batcher.submit(4, SMALL)
    work.go.release()
    assert first.wait() == 2
    assert work.started.acquire(timeout=10)
    with pytest.raises(TimeoutError):
        third.wait(leave)  # it is in the running micro-batch
    work.go.release()
    assert other.wait() == 6
    assert work.sizes == [1, 2]


def test_a_batch_that_no_caller_waits_for_ends() -> None:
    """The work checks for it between its steps, and the next request gets the model."""
    ended: list[type[BaseException]] = []
    work = Doubling(held=True)

    def run(items: Sequence[int], each: MicroBatch[int, int]) -> list[int]:
        try:
            return work(items, each)
        except BaseException as exc:
            ended.append(type(exc))
            raise

    batcher = MicroBatcher(run)
    ticket = batcher.submit(1, LARGE)
    assert work.started.acquire(timeout=10)
    with pytest.raises(TimeoutError):
        ticket.wait(leave)
    follower = batcher.submit(2, LARGE)
    assert work.started.acquire(timeout=10)
    work.go.release()
    assert follower.wait() == 4
    assert ended == [Abandoned]


def test_a_worker_that_hangs_is_replaced() -> None:
    """A model that hangs costs one worker, not the service; if it returns, that worker ends."""
    stuck = threading.Event()
    runs: list[int] = []

    def run(items: Sequence[int], each: MicroBatch[int, int]) -> list[int]:
        runs.append(items[0])
        if items[0] == 0:
            assert stuck.wait(30)
        return [2 * item for item in items]

    batcher: MicroBatcher[int, int] = MicroBatcher(run, give_up_s=0.2)
    hanging = batcher.submit(0, SMALL)
    until(lambda: runs == [0])
    with pytest.raises(TimeoutError):
        hanging.wait(leave)
    assert batcher.submit(4, SMALL).wait() == 8
    stuck.set()
    until(lambda: batcher._lost == 0)
    assert batcher.submit(5, SMALL).wait() == 10
    assert batcher._workers == 1


def test_a_closed_one_refuses_requests() -> None:
    """Waiting requests fail; a running micro-batch finishes."""
    work = Doubling(held=True)
    batcher = MicroBatcher(work)
    running = batcher.submit(1, SMALL)
    assert work.started.acquire(timeout=10)
    waiting: Ticket[int, int] = batcher.submit(2, SMALL)
    batcher.close()
    for call in (waiting.wait, lambda: batcher.submit(3, SMALL)):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    work.go.release()
    assert running.wait() == 2


def test_many_clients_get_their_own_results() -> None:
    """Under load from threads that come, go and leave early, no result is lost, late or another's."""
    batcher = MicroBatcher(Doubling(), max_workers=3, window_s=0.001)
    left = 0

    def client(name: int) -> int:
        gone = 0
        for turn in range(60):
            ticket: Ticket[int, int] = batcher.submit(1000 * name + turn, SMALL if turn % 5 else LARGE)
            check: Any = leave if turn % 7 == 0 else None
            try:
                assert ticket.wait(check) == 2 * (1000 * name + turn)
            except TimeoutError:
                gone += 1
        return gone

    with ThreadPoolExecutor(24) as clients:
        left = sum(clients.map(client, range(24)))
    assert left <= 24 * 9
    assert batcher.waiting == 0
