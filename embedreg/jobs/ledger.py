"""The ledger: the records of a job, in `_embedreg/` of its destination.

Each record is one small file with an atomic write: an object store cannot append, and on a disk an appended file may
end in half a line. A record that cannot be read is ignored, and its piece runs again. The files are untrusted input:
`embedreg.jobs.stored` validates them.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from embedreg.datasets.formats import Unit
from embedreg.datasets.reading import Reading
from embedreg.datasets.sources import Input, Known
from embedreg.datasets.storage import Storage
from embedreg.declaration import manifest
from embedreg.embedding.table import BadRow
from embedreg.errors import Words
from embedreg.jobs import stored
from embedreg.jobs.pieces import Outcome, Piece
from embedreg.jobs.stored import FORMAT, MAX_BYTES
from embedreg.jobs.submissions import Submission
from embedreg.runtime.remote.usage import TotalUsage
from embedreg.support.strict_json import Malformed

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BAD_ROWS", "DONE", "JOB", "OPENING", "PLAN", "RECORDS", "Ledger", "digest"]

log = logging.getLogger("embedreg")

JOB = f"{manifest.FOLDER}/job.json"
PLAN = f"{manifest.FOLDER}/plan.json"
DONE = f"{manifest.FOLDER}/done.json"
RECORDS = f"{manifest.FOLDER}/ledger"
BAD_ROWS = f"{manifest.FOLDER}/bad_rows.jsonl"
OPENING = "opening"
_USED = ".usage"
_BATCHES = ".batches"
_READERS = 16  # threads that read records


class Ledger:
    """The records of one job.

    Args:
        root: the folder that holds `_embedreg/`.

    Attributes:
        check: raises if this run does not hold the lock; called before anything is written.
    """

    def __init__(self, root: Storage) -> None:
        self.root = root
        self.check: Callable[[], object] | None = None

    def check_now(self) -> None:
        """Raise `StorageError` if another run has taken over the job."""
        if self.check is not None:
            self.check()

    # -- the job and its plan ---------------------------------------------------------------------------------------

    def is_begun(self) -> bool:
        """Return whether a job was begun, without reading its record."""
        return self.root.exists(JOB)

    def stamp(self) -> tuple[Any, ...] | None:
        """Return a value that identifies the job record, without reading it."""
        if self.root.local is not None:
            found = self.root.entry(JOB)
            return None if found is None else (found.kind, found.inode, found.mtime_ns, found.size)
        info = self.root.info(JOB)
        return (info.type, info.size, info.mtime_ns)

    def job(self) -> dict[str, Any] | None:
        """Return the settings that the job was begun with, or None if no job was begun.

        Raises:
            StorageError: the record cannot be read, or a later embedreg wrote it.
        """
        data = self.root.read(JOB, MAX_BYTES)
        if data is None:
            return None
        try:
            found = stored.read(stored.Job, data)
            return found.model_dump(by_alias=True) | {"schema": stored.schema_of(found.schema_)}
        except Malformed as exc:
            raise stored.refused(self.root.shown(JOB), str(exc)) from None

    def begin(self, schema: pa.Schema, **facts: Any) -> None:
        """Record the settings of a new job: the schema of its output, declarations included, and plain facts."""
        self._write(JOB, {"format": FORMAT, **facts, "schema": _text(schema)})

    def plan(self) -> tuple[Known, frozenset[str]] | None:
        """Return the source as it was last listed, and the planned output names; None if there is no plan.

        A plan that cannot be read is ignored, and the inputs are listed again.
        """
        found = self._read(stored.Plan, PLAN)
        if found is None:
            return None
        try:
            reading = Reading.from_facts(found.reading)
            return Known(stored.schema_of(found.schema_), stored.inputs_of(found), reading), frozenset(found.outputs)
        except Malformed as exc:
            log.warning("%s is ignored: %s", self.root.shown(PLAN), exc)
            return None

    def keep_plan(self, schema: pa.Schema, inputs: Iterable[Input], pieces: Iterable[Piece], reading: Reading) -> None:
        """Record the plan, before any of its outputs is written."""
        facts = {each.path: dataclasses.asdict(each) | {"units": [*map(_unit, each.units)]} for each in inputs}
        outputs = [piece.output for piece in pieces]
        plan = {
            "format": FORMAT,
            "schema": _text(schema),
            "inputs": facts,
            "outputs": outputs,
            "reading": reading.facts(),
        }
        if len(data := _dumped(plan)) > MAX_BYTES:
            data = _dumped(plan | {"inputs": {}})  # the next run lists them again
        self.root.write(PLAN, data, self.check)

    # -- pieces -----------------------------------------------------------------------------------------------------

    def recorded(self) -> list[str]:
        """Return the outputs that have a record, without reading the records."""
        names = []
        for file in self.root.listing(RECORDS):
            output = file.path.removeprefix(f"{RECORDS}/").removesuffix(".json")
            if file.path.endswith(".json") and stored.is_output(output):
                names.append(output)
        return names

    def records(self) -> dict[str, Outcome]:
        """Return the readable records by output, without their lists of bad rows.

        Raises:
            StorageError: one of them is a link or not a regular file.
        """
        with ThreadPoolExecutor(_READERS, "embedreg-ledger") as pool:
            found = pool.map(self._outcome, self.recorded())
            return {each.piece.output: dataclasses.replace(each, bad=()) for each in found if each is not None}

    def record(self, outcome: Outcome) -> None:
        """Record a published piece."""
        facts = dataclasses.asdict(outcome) | {"format": FORMAT, "bad": [list(_bad(row)) for row in outcome.bad]}
        del facts["piece"]["input"]["units"]
        self._write(self._name(outcome.piece.output), facts)

    def submitted(self) -> list[str]:
        """Return the outputs for which something was submitted to a batch API."""
        names = [file.path.removeprefix(f"{RECORDS}/") for file in self.root.listing(RECORDS)]
        outputs = [name.removesuffix(_BATCHES) for name in names if name.endswith(_BATCHES)]
        return [output for output in outputs if stored.is_output(output)]

    def submissions(self, output: str) -> dict[str, Submission]:
        """Return what was submitted for a piece, by column.

        Raises:
            StorageError: the record cannot be read: its content must not be submitted again.
        """
        name = f"{RECORDS}/{output}{_BATCHES}"
        data = self.root.read(name, MAX_BYTES)
        if data is None:
            return {}
        try:
            return stored.submissions_of(stored.read(stored.Submitted, data))
        except Malformed as exc:
            raise stored.refused(self.root.shown(name), str(exc)) from None

    def keep_submissions(self, output: str, known: Mapping[str, Submission]) -> None:
        """Record what was or will be submitted for a piece; nothing removes the record."""
        name = f"{RECORDS}/{output}{_BATCHES}"
        if not known:
            self.root.remove(name)
            return
        self._write(name, {"format": FORMAT, "columns": {key: dataclasses.asdict(each) for key, each in known.items()}})

    def used(self, name: str) -> TotalUsage:
        """Return what was spent on a piece that has no record, or on the job itself under the name `OPENING`."""
        found = self._read(stored.Used, f"{RECORDS}/{name}{_USED}")
        return TotalUsage() if found is None else stored.usage_of(found)

    def keep_used(self, name: str, usage: TotalUsage) -> None:
        """Record what was spent on a piece before it has a record, or on the job itself."""
        self._write(f"{RECORDS}/{name}{_USED}", {"format": FORMAT, "usage": usage.to_dict()})

    def recorded_usage(self, output: str) -> TotalUsage:
        """Return what was spent on a piece so far; whatever is added to it is recorded at once.

        So the usage of a run or a worker that is killed is known to the next one. On an object store it is recorded
        once a second.
        """
        usage, last = self.used(output), -math.inf

        def keep(usage: TotalUsage) -> None:
            nonlocal last
            now = time.monotonic()
            if self.root.local is not None or now - last >= 1.0:
                self.keep_used(output, usage)
                last = now

        usage.on_change = keep
        return usage

    def forget_used(self, name: str) -> None:
        """Remove such a record, if it exists."""
        self.root.remove(f"{RECORDS}/{name}{_USED}")

    def forget(self, output: str) -> None:
        """Remove a record, if it exists, and what was submitted."""
        self.root.remove(self._name(output))
        self.root.remove(f"{RECORDS}/{output}{_BATCHES}")

    def bad_rows(self, outputs: Iterable[str]) -> Iterator[tuple[str, BadRow]]:
        """Yield (input, bad row) of the given outputs; the rows of one piece are in memory at a time."""
        for output in outputs:
            outcome = self._outcome(output)
            for row in outcome.bad if outcome is not None else ():
                yield outcome.piece.input.path, row  # type: ignore[union-attr]  # it is not None if there are rows

    def _outcome(self, output: str) -> Outcome | None:
        found = self._read(stored.Record, self._name(output))
        if found is None:
            return None
        try:
            outcome = stored.outcome_of(found)
        except Malformed:
            return None
        return outcome if outcome.piece.output == output else None

    # -- the end ----------------------------------------------------------------------------------------------------

    def done(self) -> stored.Done | None:
        """Return the record of a file or table that was published or about to be; None if there is none."""
        return self._read(stored.Done, DONE)

    def end(self, schema: pa.Schema, **facts: Any) -> None:
        """Record that a file or table is about to be published: its stamp and the job's totals."""
        self._write(DONE, {"format": FORMAT, **facts, "schema": _text(schema)})

    # -- files ------------------------------------------------------------------------------------------------------

    def _read(self, kind: type[stored.Kept], name: str) -> stored.Kept | None:
        data = self.root.read(name, MAX_BYTES)
        if data is None:
            return None
        try:
            return stored.read(kind, data)
        except Malformed:
            return None

    def _write(self, name: str, facts: dict[str, Any]) -> None:
        self.root.write(name, _dumped(facts), self.check)

    @staticmethod
    def _name(output: str) -> str:
        return f"{RECORDS}/{output}.json"


def digest(inputs: Iterable[Input]) -> str:
    """Return a digest that identifies the inputs."""
    facts = [(each.path, each.size, each.mtime_ns, each.etag) for each in inputs]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _bad(row: BadRow) -> tuple[Any, ...]:
    facts = row.row, row.column, row.reason, row.key
    return (*facts, row.reason.shell) if isinstance(row.reason, Words) else facts


def _unit(unit: Unit) -> tuple[int, int, int | None, int]:
    return unit.start, unit.stop, unit.rows, unit.size


def _dumped(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _text(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()
