"""A Ray cluster seen from the driver: a quiet connection, the actor pool, one error of ours for each of Ray's."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from embedreg.errors import CallError, ConfigError, EmbedregError, MissingExtraError
from embedreg.support.display import first_line
from embedreg.support.imports import attempt_import_or_raise

__all__ = ["ActorPool", "connected", "plain_errors", "result_of"]

log = logging.getLogger("embedreg")

CONNECT_TIMEOUT_S = 10.0
START_WARNING_S = 30.0  # without a first worker, after which a warning is logged
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}  # of a cluster of our own: nothing is sent from it


class ActorPool:
    """The size of a pool of actors, and the resources that each of them requests.

    Args:
        actors: how many, or the least and the most.
        cpus_per_actor: logical CPUs; torch uses that many threads in it.
        gpus_per_actor: a share such as 0.5 lets two of them have one GPU.
        options: more of what Ray calls actor options (`memory`, `resources`, `accelerator_type`, `runtime_env`).
    Raises:
        ConfigError: numbers that no cluster could have.
    """

    def __init__(
        self,
        actors: int | tuple[int, int],
        cpus_per_actor: float,
        gpus_per_actor: float,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        pair = actors if isinstance(actors, tuple) else (actors, actors)
        if len(pair) != 2 or not all(type(n) is int for n in pair) or not 1 <= pair[0] <= pair[1]:
            raise ConfigError(
                f"invalid actors={actors!r}; expected a number of actors, or (least, most).",
                "actors=4, or actors=(1, 8)",
            )
        for name, value in (("cpus_per_actor", cpus_per_actor), ("gpus_per_actor", gpus_per_actor)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigError(f"invalid {name}={value!r}; expected a finite number, 0 or more.", f"{name}=1")
        self.least, self.most = pair
        self.options: dict[str, Any] = {**(options or {}), "num_cpus": cpus_per_actor, "num_gpus": gpus_per_actor}

    def refuse_impossible(self) -> None:
        """Refuse a pool that the connected cluster is too small for, unless the cluster can grow.

        Raises:
            ConfigError: naming the resource.
        """
        import ray

        if _grows():
            return
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's own has no types
        for name, option, kind in (("num_cpus", "cpus_per_actor", "CPU"), ("num_gpus", "gpus_per_actor", "GPU")):
            wanted, have = self.options[name] * self.least, there.get(kind, 0)
            if wanted > have:
                raise ConfigError(
                    f"{self.least} actor(s) of {self.options[name]:g} {kind}(s): the cluster has {have:g} in all.",
                    f"fewer actors, or a smaller {option}",
                )


def _grows() -> bool:
    """Return whether the cluster has an autoscaler, which may add the missing resources."""
    from ray._private.state import state  # there is no public call that asks

    try:
        return state.get_cluster_config() is not None
    except AttributeError:  # another version of Ray: let it wait rather than refuse what might work
        return True


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Callable[[], None]]:
    """Connect to Ray for the `with` block; a connection that this process already has is used as it is.

    Without an address a local cluster is started, and stopped at the end of the block.

    Args:
        address: of a cluster ("auto", "host:6379"); None for RAY_ADDRESS, else for one of its own.
    Yields:
        A callable, to be called between two calls of Ray, so that a SIGTERM takes effect.
    Raises:
        MissingExtraError: Ray is not installed. ConfigError: there is no such cluster.
    """
    ray = attempt_import_or_raise("ray", "ray[data]", extra="ray")
    if ray.is_initialized():
        yield lambda: None
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own = {"include_dashboard": False} if address == "local" else {}
    problem: ConfigError | None = None
    with Termination() as termination:
        with _environment(_QUIET if own else {}):
            try:
                _check_reachable(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
            except (OSError, RuntimeError, ValueError) as exc:
                problem = ConfigError(
                    f"there is no Ray cluster at {address!r}: {first_line(exc).rstrip('.')}.",
                    "leave the address out for one on this machine, or `ray start --head` and address='auto'",
                )
        if problem is not None:
            raise problem
        termination.hold()
        try:
            yield termination.deliver
        finally:
            ray.shutdown()


class Termination:
    """Defers a SIGTERM while Ray's code may run, since Ray turns an exception of a handler into an exit of its own.

    `ray.init` replaces the handler; if the process had one, `deliver` calls it.
    """

    def __init__(self) -> None:
        self._before: Any = None
        self._asked: tuple[Any, ...] | None = None

    def hold(self) -> None:
        """Replace the handler that Ray has installed."""
        if callable(self._before):
            signal.signal(signal.SIGTERM, self._note)

    def deliver(self) -> None:
        """Call the process's own handler if a SIGTERM has arrived."""
        asked, self._asked = self._asked, None
        if asked is not None:
            self._before(*asked)

    def _note(self, *asked: Any) -> None:
        self._asked = asked

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = signal.getsignal(signal.SIGTERM)
        return self

    def __exit__(self, *exc: object) -> None:
        if callable(self._before):
            signal.signal(signal.SIGTERM, self._before)
        self.deliver()


def _check_reachable(address: str) -> None:
    """Check that an address accepts connections: Ray itself would retry for many minutes.

    Raises:
        OSError: it does not.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a block, except those that the user has set."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def result_of(reference: Any) -> Any:
    """Wait for a task's result; a failure that it returned, or Ray's own about it, is raised as one of ours.

    Raises:
        EmbedregError: what the task returned. MissingExtraError: the worker lacks embedreg. CallError: it died.
    """
    import ray

    ready, _ = ray.wait([reference], timeout=START_WARNING_S)
    if not ready:
        warn_of_waiting()
    problem: EmbedregError
    try:
        made = ray.get(reference)
    except ray.exceptions.RayError as exc:
        problem = of_ray(exc)
    else:
        if not isinstance(made, EmbedregError):
            return made
        problem = made
    raise problem


def warn_of_waiting() -> None:
    """Log that no worker has been placed yet."""
    log.warning("Ray has started no worker for %d s: is the cluster busy, or still growing?", START_WARNING_S)


def of_ray(exc: BaseException) -> EmbedregError:
    """Return one of our errors for one of Ray's: the one that it carries, else a CallError with its last line."""
    ours = carried(exc)
    if ours is not None:
        return ours
    text = str(exc)
    if "No module named 'embedreg'" in text:  # Ray passes only the text of the worker's traceback
        return MissingExtraError(
            "embedreg is not installed on a node of the Ray cluster.",
            'pip install embedreg on every node, or ray.init(runtime_env={"pip": ["embedreg"]})',
        )
    return CallError(
        f"a Ray worker failed: {type(exc).__name__}: {_last_line(text)}",
        "out of memory? fewer actors on a node, a smaller batch_rows; Ray's logs are in /tmp/ray/session_latest/logs",
    )


def carried(exc: BaseException) -> EmbedregError | None:
    """Return our error inside one of Ray's, as the plain error that it was on the worker."""
    from embedreg.engines.ray.worker import plain

    seen: set[int] = set()
    each: BaseException | None = exc
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, EmbedregError) and not hasattr(each, "cause"):
            return plain(each)
        each = getattr(each, "cause", None) or each.__cause__
    return None


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise an error of ours that Ray has wrapped in this block as itself, without Ray's frames."""
    problem: EmbedregError | None = None
    try:
        yield
    except Exception as exc:
        problem = carried(exc)
        if problem is None:
            raise
    if problem is not None:
        raise problem


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
