"""The pieces of a resumable job on the actors of a Ray cluster, recorded by the driver as they come."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from embedreg.engines.ray.cluster import START_WARNING_S, ActorPool, connected, of_ray, warn_of_waiting
from embedreg.engines.ray.worker import JobActor, pack
from embedreg.errors import BadRowsError, CallError, ConfigError, EmbedregError

if TYPE_CHECKING:
    from embedreg.jobs import Job, JobReport, Outcome, Piece

__all__ = ["engine", "run_job"]

TICK_S = 1.0  # between two reports of progress
ATTEMPTS = 3  # at a piece whose worker dies: then the piece is the cause


def engine(
    *,
    actors: int | tuple[int, int],
    gpus_per_actor: float = 0,
    cpus_per_actor: float = 1,
    address: str | None = None,
    **options: Any,
) -> Callable[[Job], Generator[Outcome]]:
    """Return what runs a job's pieces on a Ray cluster: `embedreg.embed(src, dst, ..., engine=engine(actors=4))`.

    Each actor holds one model. One that dies is replaced, and its piece is run again. The source and the destination
    must be reachable from every node.

    Args:
        actors, gpus_per_actor, cpus_per_actor, options: as `embed_dataset`; (least, most) takes as many as fit.
        address: of a cluster ("auto", "host:6379"); None for the one that this process is connected to, else for
            RAY_ADDRESS, else for one of its own on this machine, which ends with the run.
    Raises:
        What `embed` does, and, when the job runs: MissingVariableError, HardcodedSecretError, MissingExtraError as
            `embed_dataset`; StorageError where a node does not reach the data; CallError where workers keep dying.
    """
    pool = ActorPool(actors, cpus_per_actor, gpus_per_actor, options)

    def run(job: Job) -> Generator[Outcome]:
        pieces = job.pending()
        if not pieces:
            return
        payload = pack(job.work, job.work.functions.values(), min(pool.most, len(pieces)))
        with connected(address) as check_signals:
            pool.refuse_impossible()
            _refuse_shared_cache(job.work.cache)
            with _Actors(pool, payload, min(pool.most, len(pieces)), check_signals) as running:
                yield from running.run(job, pieces)

    return run


def run_job(job: Job, **options: Any) -> JobReport:
    """Run an open job to its end on a Ray cluster; arguments and errors as `engine`."""
    with contextlib.closing(engine(**options)(job)) as outcomes:  # whatever happens, no actor outlives the run
        for outcome in outcomes:
            job.record(outcome)
    return job.finish()


class _Actors:
    """The actors of one run: started together, given a piece each, replaced when they die, stopped at the end."""

    def __init__(self, pool: ActorPool, payload: Any, number: int, check_signals: Callable[[], None]) -> None:
        import ray

        self._ray: Any = ray  # parts of which have no types
        self._number, self._check_signals = number, check_signals
        kind = self._ray.remote(max_concurrency=2, max_restarts=0)(JobActor).options(**pool.options)
        self._new: Callable[[], Any] = lambda: kind.remote(payload)
        self._running: dict[Any, tuple[Any, Piece | None]] = {}  # what is waited for -> the actor, and its piece
        self._ticks = 0

    def __enter__(self) -> _Actors:
        for _ in range(self._number):
            self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        for actor, _ in self._running.values():
            self._ray.kill(actor)

    def _start(self) -> None:
        actor = self._new()
        self._running[actor.start.remote()] = actor, None

    def run(self, job: Job, pieces: list[Piece]) -> Iterator[Outcome]:
        """Yield the outcomes of some pieces as they come.

        Raises:
            EmbedregError: a worker cannot start, a piece failed, or its workers keep dying.
        """
        waiting, died = deque(pieces), Counter[str]()
        while waiting or any(piece is not None for _, piece in self._running.values()):
            ready, _ = self._ray.wait([*self._running], timeout=TICK_S)
            self._check_signals()
            if not ready:
                self._wait_on(job)
                continue
            actor, piece = self._running.pop(ready[0])
            try:
                made = self._ray.get(ready[0])
            except self._ray.exceptions.RayError as exc:
                self._died(exc, piece, died)
                if piece is not None:
                    waiting.appendleft(piece)
                if waiting:
                    self._start()
                continue
            if isinstance(made, EmbedregError):
                self._running[ready[0]] = actor, None  # killed with the others
                raise _of_job(job, made)
            if waiting:
                following = waiting.popleft()
                self._running[actor.run.remote(following, job.bad_rows_left)] = actor, following
            else:
                self._ray.kill(actor)
            if made is not None:
                yield made

    def _died(self, exc: Exception, piece: Piece | None, died: Counter[str]) -> None:
        """Count the death of a worker; give up on a piece, or on starting, when it is always the same.

        Raises:
            EmbedregError: saying how the worker died.
        """
        name = piece.output if piece is not None else ""
        died[name] += 1
        problem = of_ray(exc)
        if not isinstance(problem, CallError) or died[name] >= ATTEMPTS:
            doing = f"at {name}" if name else "as they started"
            problem.message = f"{died[name]} worker(s) have died {doing}: {problem.message}"
            raise problem from None

    def _wait_on(self, job: Job) -> None:
        """Report how many rows of the current pieces are done, and warn once if no worker has been placed."""
        self._ticks += 1
        if self._ticks * TICK_S == START_WARNING_S and not any(piece for _, piece in self._running.values()):
            warn_of_waiting()
        job.advance(self._rows())

    def _rows(self) -> int:
        """Ask the workers how many rows of their pieces are done; one that does not answer at once counts as none."""
        asked = [actor.rows.remote() for actor, piece in self._running.values() if piece is not None]
        ready, _ = self._ray.wait(asked, num_returns=len(asked), timeout=TICK_S) if asked else ([], [])
        rows = 0
        for each in ready:
            try:
                rows += self._ray.get(each)
            except self._ray.exceptions.RayError:
                continue  # it has died, which the wait for its piece reports
        return rows


def _of_job(job: Job, problem: EmbedregError) -> EmbedregError:
    """Return a piece's failure as the job's: a piece counts only its own bad rows."""
    if isinstance(problem, BadRowsError) and job.work.on_error != "raise":
        return job.too_many_bad_rows(job.bad_rows + len(problem.rows))
    return problem


def _refuse_shared_cache(cache: str | None) -> None:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own has no types
    if cache is not None and len({node["NodeManagerAddress"] for node in nodes if node["Alive"]}) > 1:
        raise ConfigError(
            "the vector cache is one file, which processes on several machines cannot share.",
            "leave the cache out where a cluster has several nodes",
        )
