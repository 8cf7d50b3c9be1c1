"""What is sent to Ray workers, and what they run: payloads without secrets, the check at the start, blocks and pieces.

Nothing here imports Ray at its top. Over 400 lines: both sides of what is sent are one contract.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedreg._version import __version__
from embedreg.arrow.casting import ConversionError, cast_exactly
from embedreg.core.base import EmbeddingFunction
from embedreg.core.canonical import registered_name
from embedreg.declaration import codec, drift
from embedreg.declaration.quantization import quantizer_of
from embedreg.embedding import table as tables
from embedreg.embedding.schema import Resolved
from embedreg.errors import (
    BadRowsError,
    CallError,
    ConfigError,
    EmbedregError,
    HardcodedSecretError,
    InputError,
    MissingExtraError,
    StorageError,
)
from embedreg.media.allowances import ImagePolicy, allow_images, current_policy
from embedreg.runtime.remote import accounts
from embedreg.runtime.remote.budget import Limits
from embedreg.runtime.vectors import disk
from embedreg.security import grants, references
from embedreg.support import display
from embedreg.support.imports import attempt_import_or_raise, importable

if TYPE_CHECKING:
    import pyarrow as pa

    from embedreg.jobs import JobSpec, Outcome, Piece

__all__ = ["BlockEmbedder", "JobActor", "Payload", "Plan", "check", "located", "pack", "plan", "step", "unpack"]

log = logging.getLogger("embedreg")

SHIP = 'ray.init(runtime_env={"working_dir": "."}) sends this folder to every worker; or pip install it on every node'
MIN_SECRET_CHARS = 8  # a shorter secret occurs in any pickle by chance
_LIBRARY = re.compile(r"[/\\](site-packages|dist-packages)[/\\]|[/\\]lib[/\\]python3")


@dataclass(frozen=True)
class Payload:
    """A pickled value for the workers, with what its functions need there.

    Attributes:
        pickled: the value; classes of a script or notebook go along, those of modules are imported there.
        grants: what the driver's process has granted stored metadata: names of folders, hosts and variables.
        images: which folders and hosts the driver's process lets data name images in.
        folder: that relative paths are taken from.
        path: where modules are looked for.
        workers: how many of them share the budgets of remote functions.
        limits: what `embedreg.budget` set in the driver's process, by account.
        sent: what the driver's process has sent in the last minute, by account.
        version: of embedreg, which must be the worker's.
    """

    pickled: bytes
    grants: grants.Grant
    images: ImagePolicy
    folder: str
    path: tuple[str, ...]
    workers: int = 1
    limits: Mapping[accounts.Account, Limits] = field(default_factory=dict)
    sent: Mapping[accounts.Account, tuple[list[float], float]] = field(default_factory=dict)
    version: str = __version__


def pack(value: Any, functions: Collection[EmbeddingFunction], workers: int = 1) -> Payload:
    """Pickle a value that holds these functions, for a number of workers.

    Raises:
        MissingVariableError: one of them has a variable that only this process has.
        HardcodedSecretError: a secret would go along. ConfigError: a class cannot be pickled.
    """
    cloudpickle = attempt_import_or_raise("ray.cloudpickle", "ray[data]", extra="ray")
    try:
        with references.variables.leaving():
            pickled: bytes = cloudpickle.dumps(value)
    except EmbedregError:
        raise
    except Exception as exc:  # from anything in a user's class, or its globals
        raise ConfigError(
            f"a function cannot be sent to Ray's workers: {exc}.",
            "move its class from the script into a module of its own; " + SHIP,
        ) from exc
    for function in functions:
        if any(len(held) >= MIN_SECRET_CHARS and held.encode() in pickled for held in function._held_secrets()):
            raise HardcodedSecretError(
                f"what would be sent of {type(function).__name__} holds one of its secrets.",
                "read the secret from its field (self.api_key) where it is used; keep it in no global or default",
            )
    path = tuple(map(os.path.abspath, sys.path))
    for shown, limits in accounts.shared_limits(functions, workers):
        log.info("%s: the limits are shared by %d workers; each has %s", shown, workers, limits)
    given, sent = accounts.given(), accounts.spent()
    return Payload(pickled, grants.in_force(), current_policy(), os.getcwd(), path, workers, given, sent)


def unpack(payload: Payload) -> Any:
    """Unpickle a payload on a worker, within `granted`.

    Raises:
        MissingExtraError: a class cannot be imported here. ConfigError: the driver has another version of embedreg.
    """
    from ray import cloudpickle

    if payload.version != __version__:
        raise ConfigError(
            f"embedreg is {__version__} here and {payload.version} where the run was started.",
            f"pip install embedreg=={payload.version} on every node",
        )
    with contextlib.suppress(OSError):  # another machine need not have it
        os.chdir(payload.folder)
    sys.path += [folder for folder in payload.path if folder not in sys.path and os.path.isdir(folder)]
    accounts.set_workers(payload.workers, payload.limits, payload.sent)
    try:
        return cloudpickle.loads(payload.pickled)
    except EmbedregError:
        raise
    except (ImportError, AttributeError) as exc:
        raise MissingExtraError(f"the function's class cannot be imported: {exc}.", SHIP) from exc


@contextlib.contextmanager
def granted(payload: Payload) -> Iterator[None]:
    """Grant what the driver's process had granted, for as long as this work of its payload runs."""
    # a grant of this block alone: another thread may be inside the same payload, and ends its own
    with grants.trust(payload.grants), allow_images(payload.images):
        yield


def check(functions: Iterable[EmbeddingFunction]) -> None:
    """Check that functions can run in this process, before any work; and register their names in it.

    Raises:
        MissingExtraError: a library is not installed. MissingVariableError: a variable has no value here.
    """
    from embedreg import registry

    for function in functions:
        cls = type(function)
        for module in cls.traits.requires:
            if not importable(module):
                attempt_import_or_raise(module, extra=cls.traits.extra)
        reader = registered_name(cls) if function.from_metadata else None
        for reference in references.references(function.raw_fields()):
            references.variables.lookup(reference, function=reader)
        name = registered_name(cls)
        if name is not None:  # of a class that came along by value, the decorator ran in the driver only
            registry.get_registry().register(name)(cls)


# -- a dataset ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The plan of every block of a dataset.

    Attributes:
        given: the schema of the data; Ray may have dropped its metadata from the blocks.
        made: the schema of what it becomes, with the declarations.
        policy: `on_error`.
    """

    given: pa.Schema
    made: pa.Schema
    policy: dict[str, Any]


def plan(payload: Payload, given: pa.Schema, policy: dict[str, Any]) -> Plan | EmbedregError:
    """Check a worker, learn the probe, and return the plan of every block; a failure is returned, not raised.

    The driver needs neither the model nor its library: this runs on a worker with what the actors will have.
    """
    made: Plan | EmbedregError = _returning_errors(lambda: _plan(payload, given, policy), payload)
    return made


def _plan(payload: Payload, given: pa.Schema, policy: dict[str, Any]) -> Plan:
    schema: Resolved = unpack(payload)
    check(config.function for config in schema.configs)
    stored = {entry.vector_column: entry for entry in codec.entries(given.metadata)}
    _declared(given, schema, policy)  # what does not fit shows before any model is loaded
    for config in schema.configs:
        entry, own = stored.get(config.vector_column), codec.declared_by(config)
        fits = entry is not None and config.vector_column in given.names and codec.says_same(config, entry)
        known = entry.reserved if entry is not None and fits and not own else own
        drift.learn(config.function, known)  # what is known already, each actor compares for itself
    made = _declared(given, schema, policy)
    for entry in codec.entries(made.metadata):
        how = quantizer_of(entry.reserved)
        if how is not None and not how.known:
            raise ConfigError(
                f"the ranges of the {how.dtype} column {display.plain(entry.vector_column, 80)!r} are not known, and "
                "each actor would learn others from its own blocks.",
                "fn.bind('text', 'vector', dtype='int8', ranges=embedreg.calibrate(fn, texts))",
            )
    return Plan(given, made, policy)


def _declared(given: pa.Schema, schema: Resolved, policy: dict[str, Any]) -> pa.Schema:
    import pyarrow as pa

    nothing = pa.RecordBatchReader.from_batches(given, iter(()))  # Arrow makes no empty table of tensors
    return tables.embed_batches(nothing, schema, **policy).schema


class BlockEmbedder:
    """The class that Ray's actors run: it holds the functions, and embeds one block after the other."""

    def __init__(self, payload: Payload, plan: Plan) -> None:
        self._payload, self._plan = payload, plan
        self._schema: Resolved | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return a block with its vector columns filled in."""
        return step(lambda: self._fill(block), self._payload)

    def _fill(self, block: pa.Table) -> pa.Table:
        if self._schema is None:
            self._schema = self._unpacked()
        plan = self._plan
        given = self._given(block)
        try:
            made = tables.embed_table(given, self._schema, **plan.policy)
        except BadRowsError as exc:
            exc.message = f"in a block of {block.num_rows} rows, {exc.message}"
            exc.hint = "on_error='null' keeps such rows with a null vector, on_error='drop' leaves them out"
            raise
        return made.cast(plan.made)

    def _given(self, block: pa.Table) -> pa.Table:
        """Return a block as the run's first one is: with the metadata, and a type for columns of nulls.

        Raises:
            InputError: a value would change.
        """
        import pyarrow as pa

        if block.schema.equals(self._plan.given, check_metadata=True):
            return block
        vectors = {entry.vector_column for entry in codec.entries(self._plan.made.metadata)}
        columns = []
        for item in self._plan.given:
            chunks = block.column(item.name).chunks
            try:
                made = [cast_exactly(chunk, item.type, rounds=item.name in vectors) for chunk in chunks]
            except ConversionError as exc:
                raise InputError(
                    f"column {display.plain(item.name, 80)!r} of a block is {block.schema.field(item.name).type}, "
                    f"of the first one {item.type}: {exc.why}.",
                    "cast the column in a map_batches before",
                ) from None
            columns.append(pa.chunked_array(made, item.type))
        return pa.table(columns, schema=self._plan.given)

    def _unpacked(self) -> Resolved:
        schema: Resolved = unpack(self._payload)
        check(config.function for config in schema.configs)
        stored = {entry.vector_column: entry for entry in codec.entries(self._plan.made.metadata)}
        # with the probe: each actor's model is compared with the one that the run was declared with
        configs = [codec.recorded(stored[config.vector_column], config.function) for config in schema.configs]
        return Resolved(schema.arrow, configs)


# -- a job -------------------------------------------------------------------------------------------------------------


class JobActor:
    """An actor that runs the pieces of a job, one after the other; a failure is returned, not raised.

    It is called in two threads: one works, one reports progress.
    """

    def __init__(self, payload: Payload) -> None:
        self._payload, self._rows = payload, 0

    def start(self) -> EmbedregError | None:
        """Unpickle the payload, and check that this node can do the work."""
        failed: EmbedregError | None = _returning_errors(self._start, self._payload)
        return failed

    def _start(self) -> None:
        self._work: JobSpec = unpack(self._payload)
        check(self._work.functions.values())
        _check_storage(self._work)

    def run(self, piece: Piece, max_bad_rows: int | None) -> Outcome | EmbedregError:
        """Embed a piece and publish it."""
        made: Outcome | EmbedregError = _returning_errors(lambda: self._run(piece, max_bad_rows), self._payload)
        self._rows = 0
        return made

    def _run(self, piece: Piece, max_bad_rows: int | None) -> Outcome:
        from embedreg.jobs.ledger import Ledger

        cache, ledger = self._work.cache, Ledger(self._work.sink.root)
        ledger.check = self._work.sink.check
        usage = ledger.recorded_usage(piece.output)  # of workers that died at it, too
        with disk.use(cache) if cache is not None else contextlib.nullcontext():
            return self._work.run(piece, self._set_rows, max_bad_rows=max_bad_rows, usage=usage)

    def rows(self) -> int:
        """Return how many rows of the current piece are done."""
        return self._rows

    def _set_rows(self, rows: int) -> None:
        self._rows = rows


def _check_storage(work: JobSpec) -> None:
    """Check that this node reaches the data and the destination, and not others of the same name.

    Raises:
        StorageError: it does not.
    """
    from pyarrow.fs import FileType

    from embedreg.jobs.ledger import JOB

    source, root = work.source.place.storage, work.sink.root
    for storage, seen in ((source, source.info().type != FileType.NotFound), (root, root.read(JOB) is not None)):
        if not seen:
            raise StorageError(
                f"{storage.shown()} is not the folder that it is where the run was started.",
                "every node must reach both: use a shared disk, or an address such as s3://bucket/folder",
            )


# -- errors ------------------------------------------------------------------------------------------------------------


def located(exc: Exception) -> EmbedregError:
    """Return an error as one of ours that names its place, without the frames of the worker."""
    if isinstance(exc, EmbedregError):
        problem = exc
    else:
        where = _place(exc)
        problem = CallError(
            f"{type(exc).__name__}: {exc}" + (f" ({where})." if where else "."),
            "embed a few of these rows without Ray to see the whole traceback",
        )
    problem.message = f"on node {platform.node() or '?'}, {problem.message}"
    problem.args = (problem.message,)
    problem.__cause__ = problem.__context__ = None
    return problem.with_traceback(None)


def _place(exc: Exception) -> str:
    """Return where in the user's own code an error was raised."""
    frames = traceback.extract_tb(exc.__traceback__)
    own = [frame for frame in frames if not _LIBRARY.search(frame.filename) and not _is_ours(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""


def _is_ours(filename: str) -> bool:
    home = sys.modules["embedreg"].__file__ or ""
    return filename.startswith(home.removesuffix("__init__.py"))


def _returning_errors(work: Callable[[], Any], payload: Payload | None = None) -> Any:
    """Run some work, with the grants of its payload if it has one.

    An error is returned: one that is raised fills Ray's logs and stderr with its frames.
    """
    try:
        with contextlib.nullcontext() if payload is None else granted(payload):
            return work()
    except Exception as exc:  # noqa: BLE001  # the seam where a user's class, a vendor and Arrow meet Ray
        return located(exc)


def step(work: Callable[[], Any], payload: Payload | None = None) -> Any:
    """Run some work in a step of a Ray dataset; an error reaches the driver as one of ours, without Ray's frames."""
    made = _returning_errors(work, payload)
    if isinstance(made, EmbedregError):
        from ray.data import DataContext

        # For this worker's process from now on: otherwise Ray raises an error of its own without ours inside.
        DataContext.get_current().raise_original_map_exception = True
        raise in_ray(made)
    return made


def in_ray(problem: EmbedregError) -> EmbedregError:
    """Return an error that is both ours and, to Ray, the fault of a user's code: others it reports as its own bugs."""
    from ray.exceptions import UserCodeException

    kind = type(problem)
    own = {"__module__": kind.__module__, "__reduce__": lambda self: (in_ray, (problem,)), "embedreg_problem": problem}
    twin: EmbedregError = type(kind.__name__, (UserCodeException, kind), own)(problem.message, problem.hint)
    twin.__dict__.update(problem.__dict__)
    return twin


def plain(exc: EmbedregError) -> EmbedregError:
    """Return the error behind what `in_ray` made; any other as it is."""
    problem: EmbedregError = getattr(exc, "embedreg_problem", exc)
    return problem
