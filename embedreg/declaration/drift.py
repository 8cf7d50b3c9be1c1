"""Drift: compare a function with the stored probe of a column.

A fixed input was embedded when the column was made. Its vector is compared by cosine with the function's vector now. A
different fingerprint with an agreeing probe is a note; a disagreeing probe is an error that names what changed.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from embedreg.arrow.columns import column_of
from embedreg.arrow.kind import Read, VectorKind
from embedreg.core import role as contract
from embedreg.core.base import EmbeddingFunction, metric_of
from embedreg.core.canonical import registered_name
from embedreg.core.held import declared_for, findings, probe_of
from embedreg.core.kinds import kind_of, kind_recorded
from embedreg.core.modality import accepted, source_modality
from embedreg.core.role import Role
from embedreg.declaration.fingerprint import fingerprint, producer
from embedreg.errors import CallError, DriftError, InputError, MetadataError
from embedreg.security.redaction import called, guarded
from embedreg.support.retry import call_with_retry, is_outage

__all__ = ["Drift", "compare", "learn", "probe_input", "probe_vector", "verify_once"]

log = logging.getLogger("embedreg")

# The same weights in another precision or on another device stay above .9999 (docs/benchmarks.md); another revision
# or another prompt falls well below .99.
PROBE_COSINE = 0.999
PROBE_LENGTH = 0.01  # relative difference allowed in vector length, for metrics that depend on it
_SHOWN = 60  # characters of a stored value that a message shows


@dataclass(frozen=True)
class Drift:
    """The comparison of a function with what a column declares.

    Attributes:
        column: the vector column.
        verdict: "same", "note" (another configuration, the same vectors), "drift" or "unknown" (nothing to compare).
        changed: what differs, in words.
        cosine: the probe's agreement, -1 to 1; None where it could not be run.
    """

    column: str
    verdict: str
    changed: tuple[str, ...] = ()
    cosine: float | None = None

    def __str__(self) -> str:
        agreement = "" if self.cosine is None else f" (probe cosine {self.cosine:.5f})"
        return f"{self.column}: {self.verdict}{agreement}" + (f": {'; '.join(self.changed)}" if self.changed else "")


def learn(function: EmbeddingFunction, declared: Mapping[str, Any] | None = None) -> None:
    """Compute the probe (base64 of what the kind of vectors stores) and the model's identity, once, at the first write.

    The probe input is embedded in the source role, so this loads the model or calls the service. A function that
    cannot embed that input gets no probe.

    Args:
        declared: the recorded properties; by default those that the function was rebuilt with.
    Raises:
        CallError: the call failed; the write would fail too.
    """
    state = findings(function)
    if probe_of(function._declared if declared is None else declared) or state.learnt:
        return
    with state.turn:
        if state.learnt:
            return
        try:
            vector = probe_vector(function)
        except CallError:
            raise
        except Exception as exc:  # noqa: BLE001  # the function may reject the probe's input and still embed the rows
            log.debug("%s has no probe: %s", type(function).__name__, type(exc).__name__)
            return
        if vector is None:
            return
        probe = base64.b64encode(kind_of(function).probe_bytes(vector)).decode()
        identity = function.model_identity()
        state.learnt.update({"probe": probe, **({} if identity is None else {"identity": identity})})
        state.verified.add(probe)


def probe_vector(function: EmbeddingFunction, role: Role = "source") -> Any | None:
    """Embed the fixed input: a vector as `embed_query` returns it, or None if the function returns none for it."""
    column = column_of([probe_input(function)], accepted(function))
    rows, valid, _ = _answer(function, column, role, function.ndims())
    return kind_of(function).one(rows, 0) if valid[0] else None


@guarded
def _answer(function: EmbeddingFunction, column: Any, role: Role, ndims: int) -> Read:
    """Call a function and check its result. An error that the probe may cause is not retried."""
    kind = kind_of(function)
    if role == "query":
        return kind.read(contract.compute(function, column, role), 1, ndims)
    if not function.traits.retry:
        return kind.read(contract.compute(function, column, role, retry=False), 1, ndims)
    rows = call_with_retry(
        contract.compute,
        function,
        column,
        role,
        retry=False,
        max_retries=function.max_retries,
        called=called(function),
        transient=is_outage,
    )
    return kind.read(rows, 1, ndims)


def probe_input(function: EmbeddingFunction) -> Any:
    """Return the fixed input for the modality of a function's source rows."""
    modality = source_modality(function)
    if modality.probe is None:
        raise InputError(f"there is no probe for the modality {modality.name!r}.", "compare a sample of your own rows")
    return modality.probe


def compare(function: EmbeddingFunction, declared: Mapping[str, Any], column: str = "vector") -> Drift:
    """Compare a function with the reserved part of a stored declaration; run the function once if a probe is stored.

    Raises:
        EmbedregError: the function cannot be run.
    """
    kind, recorded = kind_of(function), _recorded(declared)
    changed = list(_differences(function, declared))
    if declared and recorded is not kind:
        before = "vectors of another kind" if recorded is None else recorded.plural
        return Drift(column, "drift", (*changed, f"the function returns {kind.plural}, stored are {before}"))
    stored = _decode(probe_of(declared), kind, declared.get("ndims"))
    if stored is None:
        if not declared:
            return Drift(column, "unknown", ("another client wrote the declaration: neither fingerprint nor probe",))
        why = "the stored probe cannot be read" if declared.get("probe") else "no probe was stored"
        return Drift(column, "note" if changed else "unknown", (*changed, why))
    now = probe_vector(function)
    if now is None:
        return Drift(column, "drift", (*changed, "the function no longer returns a vector for the probe"))
    cosine, lengths, why = kind.agreement(now, stored)
    if cosine is None:
        return Drift(column, "drift", (*changed, why))
    if abs(lengths[0] - lengths[1]) > PROBE_LENGTH * max(lengths):
        changed.append(f"the vectors' length {lengths[0]:.4g} -> {lengths[1]:.4g}")
        if metric_of(function) != "cosine":
            return Drift(column, "drift", tuple(changed), cosine)
    if cosine < PROBE_COSINE:
        return Drift(column, "drift", tuple(changed) or ("the same configuration returns other vectors",), cosine)
    return Drift(column, "note" if changed else "same", tuple(changed), cosine)


def verify_once(function: EmbeddingFunction, declared: Mapping[str, Any] | None = None) -> None:
    """Check a function against a stored probe before its first use; remote functions only in `check_drift`.

    Equal declarations of several tables may share a function, so each probe is checked once. Only the function's own
    lock is held: it may embed with another function, in its own threads.

    Args:
        declared: the table's recorded properties; by default those of the declaration the function was read from.
    Raises:
        DriftError: it returns other vectors than those stored; the message names what changed.
    """
    if declared is None:
        declared = declared_for(function) or function._declared
    probe, state = probe_of(declared), findings(function)
    if probe is None or probe in state.verified or function.traits.remote:
        return
    with state.turn:
        if probe in state.verified:
            return
        drift = compare(function, declared)
        if drift.verdict == "drift":
            raise drift_error(function, drift)
        state.verified.add(probe)


def drift_error(function: EmbeddingFunction, drift: Drift) -> DriftError:
    """Return the error for a disagreeing probe."""
    name = registered_name(type(function))
    cosine = "" if drift.cosine is None else f" (cosine {drift.cosine:.4f})"
    return DriftError(
        f"{name!r} no longer returns the stored vectors{cosine}: {'; '.join(drift.changed)}.",
        "restore the model or version that made the column, or embed it again; `embedreg inspect --check` shows both",
    )


def _differences(function: EmbeddingFunction, declared: Mapping[str, Any]) -> Iterator[str]:
    found = False
    if declared.get("fingerprint") not in (None, fingerprint(function)):
        found = True
        yield "the configuration's fingerprint"
    if declared.get("ndims") not in (None, function.ndims()):
        found = True
        yield f"ndims {_shown(declared['ndims'])} -> {function.ndims()}"
    before, now = declared.get("identity"), function.model_identity() if declared.get("identity") else None
    # a hash and a hub revision cannot be compared: one model can be identified by either
    if isinstance(before, str) and now is not None and _kind(before) == _kind(now) and before != now:
        found = True
        yield "the model's weights or revision"
    versions, own = declared.get("producer"), producer(function)
    if found and isinstance(versions, dict):  # different versions alone are not drift
        for name in own.keys() & versions.keys():
            if versions[name] != own[name]:
                yield f"{name} {_shown(versions[name])} -> {own[name]}"


def _kind(identity: str) -> str:
    return identity.partition(":")[0] if ":" in identity else "revision"


def _shown(value: Any) -> str:
    """Return a stored value as text, escaped for a terminal and shortened."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _decode(text: str | None, kind: VectorKind, ndims: Any) -> Any | None:
    """Return the stored vector of the fixed input; None if there is none, or it cannot be read."""
    if text is None:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    width = ndims if isinstance(ndims, int) and not isinstance(ndims, bool) and 0 < ndims <= kind.max_ndims else None
    return kind.probe_read(data, width)


def _recorded(declared: Mapping[str, Any]) -> VectorKind | None:
    try:
        return kind_recorded(declared)
    except MetadataError:
        return None
