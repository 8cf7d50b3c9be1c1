"""What a job knows of itself, in `_embedreg/` of its destination.

One small file a record, each put in one step: on an object store nothing can be appended to, and on a disk an
appended file may end in half a line. A record that cannot be read counts as none, and its piece is done again.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from embedreg import manifest
from embedreg.errors import EmbedregError, StorageError
from embedreg.jobs.formats import Span, Unit
from embedreg.jobs.pieces import Outcome, Piece
from embedreg.jobs.sources import Input, Known
from embedreg.jobs.storage import Storage
from embedreg.table import BadRow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BAD_ROWS", "JOB", "PLAN", "RECORDS", "Ledger"]

FORMAT = 1
JOB = f"{manifest.FOLDER}/job.json"
PLAN = f"{manifest.FOLDER}/plan.json"
RECORDS = f"{manifest.FOLDER}/ledger"
BAD_ROWS = f"{manifest.FOLDER}/bad_rows.jsonl"
_READERS = 16  # records read side by side


class Ledger:
    """The records of one job.

    Args:
        root: the folder that holds `_embedreg/`.
    """

    def __init__(self, root: Storage) -> None:
        self.root = root

    # -- the job and its plan ---------------------------------------------------------------------------------------

    def job(self) -> dict[str, Any] | None:
        """Return what the job was begun with, or None where none was.

        Raises:
            StorageError: it cannot be read, or a later embedreg wrote it.
        """
        data = self.root.read(JOB)
        if data is None:
            return None
        found = _loaded(data)
        if found is None or found.get("format") != FORMAT:
            raise StorageError(
                f"{self.root.shown(JOB)} cannot be read by this version of embedreg.", "start anew with --fresh"
            )
        return found | {"schema": _schema(found["schema"])}

    def begin(self, schema: pa.Schema, **facts: Any) -> None:
        """Record what the job is begun with: the schema of its output, declarations included, and plain facts."""
        self.root.write(JOB, _dumped({"format": FORMAT, **facts, "schema": _text(schema)}))

    def plan(self) -> tuple[Known, frozenset[str]] | None:
        """Return what the last look at the source found, and the names that were planned; None for no plan."""
        found = _loaded(self.root.read(PLAN) or b"")
        if found is None or found.get("format") != FORMAT:
            return None
        inputs = {
            path: Input(path, facts["size"], facts["mtime_ns"], facts["etag"], tuple(Unit(*u) for u in facts["units"]))
            for path, facts in found["inputs"].items()
        }
        return Known(_schema(found["schema"]), inputs), frozenset(found["outputs"])

    def keep_plan(self, schema: pa.Schema, inputs: Iterable[Input], pieces: Iterable[Piece]) -> None:
        """Record the plan, before any of its names is written."""
        facts = {each.path: dataclasses.asdict(each) | {"units": [*map(_unit, each.units)]} for each in inputs}
        outputs = [piece.output for piece in pieces]
        self.root.write(PLAN, _dumped({"format": FORMAT, "schema": _text(schema), "inputs": facts, "outputs": outputs}))

    # -- pieces -----------------------------------------------------------------------------------------------------

    def records(self) -> dict[str, Outcome]:
        """Return what is recorded, by output, without the single bad rows; what cannot be read is left out."""
        names = [file.path for file in self.root.files(RECORDS) if file.path.endswith(".json")]
        with ThreadPoolExecutor(_READERS, "embedreg-ledger") as pool:
            found = pool.map(lambda name: _outcome(_loaded(self.root.read(name) or b"")), names)
            return {each.piece.output: dataclasses.replace(each, bad=()) for each in found if each is not None}

    def record(self, outcome: Outcome) -> None:
        """Record a piece that is published."""
        facts = dataclasses.asdict(outcome) | {"format": FORMAT, "bad": [list(_bad(row)) for row in outcome.bad]}
        del facts["piece"]["input"]["units"]
        self.root.write(self._name(outcome.piece.output), _dumped(facts))

    def forget(self, output: str) -> None:
        """Remove a record that may not be there."""
        self.root.remove(self._name(output))

    def bad_rows(self, outputs: Iterable[str]) -> Iterator[tuple[str, BadRow]]:
        """Yield the input and the bad rows of some pieces, holding those of one piece at a time."""
        for output in outputs:
            outcome = _outcome(_loaded(self.root.read(self._name(output)) or b""))
            for row in outcome.bad if outcome is not None else ():
                yield outcome.piece.input.path, row  # type: ignore[union-attr]  # it is not None where there are rows

    @staticmethod
    def _name(output: str) -> str:
        return f"{RECORDS}/{output}.json"


def _outcome(found: dict[str, Any] | None) -> Outcome | None:
    try:
        if found is None or found.pop("format") != FORMAT:
            return None
        piece = found.pop("piece")
        bad = tuple(BadRow(*row) for row in found.pop("bad"))
        return Outcome(Piece(piece["output"], Input(**piece["input"]), Span(**piece["span"])), bad=bad, **found)
    except (EmbedregError, KeyError, TypeError, ValueError):
        return None


def _bad(row: BadRow) -> tuple[int, str, str]:
    return row.row, row.column, row.reason


def _unit(unit: Unit) -> tuple[int, int, int | None, int]:
    return unit.start, unit.stop, unit.rows, unit.size


def _dumped(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _loaded(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def _schema(text: str) -> pa.Schema:
    import pyarrow as pa

    return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text)))
