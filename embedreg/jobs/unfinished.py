"""What an unfinished job has done so far, and which batches of a service it waits for; read without a lock."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedreg.datasets import targets
from embedreg.errors import EmbedregError
from embedreg.jobs import claims
from embedreg.jobs.ledger import Ledger
from embedreg.jobs.opening import sink_for

__all__ = ["Unfinished", "unfinished"]


@dataclass(frozen=True)
class Unfinished:
    """A job that is not finished.

    Attributes:
        source: where its rows come from.
        pieces: the number of its pieces. done: how many of them are done. rows: the rows of these.
        batches: the batches of services that it waits for, each with `column`, `handle` (None while it is unknown
            whether the service has it), `inputs`, `sent` (seconds since 1970; None if it was not sent) and `ended`.
    """

    source: str
    pieces: int
    done: int
    rows: int
    batches: tuple[dict[str, Any], ...]


def unfinished(dst: str, storage_options: Mapping[str, Any] | None = None, filesystem: Any = None) -> Unfinished | None:
    """Return what an unfinished job at a destination has done; None if there is none, or it cannot be read."""
    with contextlib.suppress(EmbedregError):
        target = targets.destination(dst, options=storage_options, filesystem=filesystem)
        ledger = Ledger(sink_for(target).root)
        if not ledger.is_begun() or (target.kind == "folder" and claims.finished(target)):
            return None
        job, plan, records = ledger.job(), ledger.plan(), ledger.records()
        batches = [
            {"column": column, "handle": b.handle, "inputs": b.inputs, "sent": b.sent, "ended": b.ended}
            for output in sorted(set(ledger.submitted()) - records.keys())
            for column, submission in ledger.submissions(output).items()
            for b in submission.batches
        ]
        planned = records.keys() if plan is None else plan[1]
        done = [records[output] for output in planned if output in records]
        source = str((job or {}).get("source", ""))
        return Unfinished(source, len(planned), len(done), sum(each.rows for each in done), tuple(batches))
    return None
