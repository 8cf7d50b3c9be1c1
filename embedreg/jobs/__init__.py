"""Resumable jobs: datasets embedded in pieces, each piece exactly once, also after interruptions.

An engine drives a job as `embed` does:

    with Job.open(src, dst, declaration) as job:
        for outcome in ...:         # job.work.run(piece) for each of job.pending(), in any process and any order
            job.record(outcome)     # here, in the driver
        report = job.finish()

`job.work`, the pieces and the outcomes can be pickled, are small, and hold no secret. `embed(..., engine=call)` does
the same with any generator `call(job)` of outcomes.
"""

from __future__ import annotations

from embedreg.jobs.pieces import Outcome, Piece
from embedreg.jobs.run import Engine, Job, JobReport, embed
from embedreg.jobs.work import JobSpec

__all__ = ["Engine", "Job", "JobReport", "JobSpec", "Outcome", "Piece", "embed"]
