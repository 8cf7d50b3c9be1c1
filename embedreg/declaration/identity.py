"""Is this still the function that made these vectors? The fingerprint (configuration) and the probe (behaviour).

The probe decides: a fixed input was embedded when the column was made, and is compared by cosine with what the
function gives now. Another fingerprint beside an agreeing probe is a note; a disagreeing probe is an error that names
what changed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata as distributions
from typing import TYPE_CHECKING, Any, Literal

from embedreg.core.base import EmbeddingFunction, metric_of, registered_name
from embedreg.core.canonical import MODEL_FIELDS, semantic_config
from embedreg.core.fields import sensitive_fields
from embedreg.core.value import shared
from embedreg.declaration.admission import guard_of
from embedreg.errors import CallError, ConfigError, DriftError, InputError
from embedreg.security import references
from embedreg.security.addresses import is_path
from embedreg.support.forks import ForkSafeLock
from embedreg.support.strict_json import jsonable

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Drift", "compare", "declared_for", "fingerprint", "forget", "held_to", "learn", "learnt", "verify_once"]

log = logging.getLogger("embedreg")

PROBE_TEXT = "The quick brown fox jumps over the lazy dog; 3.14 is close to π."
# A picture of 8 x 8 pixels, two gradients and a disc, as PNG: any decoder gives the same pixels.
PROBE_IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAcklEQVR42h2OUQ0AUQjDKgYxiEEMYiZmYkh2L/e7NF0BChoGFgSG45+r6GKK"
    "LVS4uMc+uJpuptlGjZt7hqeoSU9msoMGD/e8bGrTm9nsRouXe28opbQyyioSFvcacMppZ5x1ZGzulb20uvRlLnvo8HHHB/dGU+why/E+AAAAAElF"
    "TkSuQmCC"
)
# The same weights in another precision or on another device stay above .9999 (docs/benchmarks.md); another revision
# or another prompt falls well below .99.
PROBE_COSINE = 0.999
PROBE_LENGTH = 0.01  # relative: by how much a vector's length may differ where the metric looks at it
MAX_PROBE = 2**19  # characters: no vector has 98 thousand dimensions
_SHOWN = 60  # characters of a stored value that a message shows


@dataclass(frozen=True)
class Drift:
    """How a function compares with what a column declares.

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


@dataclass
class _State:
    """What this process found out about one instance: probes that it agrees with, and its own probe and identity."""

    verified: set[str] = field(default_factory=set)
    learnt: dict[str, str] = field(default_factory=dict)
    turn: ForkSafeLock = field(default_factory=lambda: ForkSafeLock(outer=True))
    declared: Mapping[str, Any] | None = None  # of the one column that it was found by


_states: dict[int, tuple[weakref.ref[EmbeddingFunction], _State]] = {}  # by identity: equal instances may be drifting
_lock = ForkSafeLock()


def _state(function: EmbeddingFunction) -> _State:
    key = id(function)
    with _lock:
        if key not in _states:
            _states[key] = weakref.ref(function, lambda _: _states.pop(key, None)), _State()
        return _states[key][1]


def fingerprint(function: EmbeddingFunction) -> str:
    """Return a digest of what determines the vectors: the name, and every semantic field as it takes effect.

    A local model counts by the hash of its files, not by where it lies; a secret does not count at all.

    Raises:
        ConfigError: a field's value has no JSON form. MissingVariableError: a field refers to what is not set.
    """
    cls = type(function)
    sensitive = sensitive_fields(cls)
    try:
        config = semantic_config(function, strict=True)
    except (TypeError, ValueError):
        raise ConfigError(
            f"the configuration of {cls.__name__} cannot be stored as JSON.", "use str, numbers, lists and dicts"
        ) from None
    # a field that a later version adds, null by default, must not change the fingerprint of what is stored
    fields = {k: _effect(function, k, v, sensitive) for k, v in config.items() if k not in sensitive and v is not None}
    content = json.dumps([registered_name(cls), fields], sort_keys=True)
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def _effect(function: EmbeddingFunction, name: str, value: Any, sensitive: frozenset[str]) -> Any:
    """Return what a field's value comes to: references looked up, secrets left out, a model by its identity."""
    if references.is_reference(value):
        value = jsonable(getattr(function, name))
    local = name in MODEL_FIELDS or guard_of(type(function), name) == "path"
    if local and isinstance(value, str) and is_path(value):
        return function.model_identity() or "unknown"
    reader = registered_name(type(function)) if function.from_metadata else None
    return references.resolve(
        _without_secrets(value, sensitive), lambda reference: references.variables.lookup(reference, function=reader)
    )


def _without_secrets(value: Any, sensitive: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_secrets(item, sensitive)
            for key, item in value.items()
            if key not in sensitive and not references.looks_sensitive(key)
        }
    return [_without_secrets(item, sensitive) for item in value] if isinstance(value, list) else value


def producer(function: EmbeddingFunction) -> dict[str, str]:
    """Return the versions of embedreg and of the libraries that a function runs on, without importing them."""
    from embedreg._version import __version__

    versions = {"embedreg": __version__}
    for module in function.traits.requires:
        name = module.replace("_", "-")
        try:
            versions[name] = distributions.version(name)
        except distributions.PackageNotFoundError:
            continue
    return versions


def learn(function: EmbeddingFunction, declared: Mapping[str, Any] | None = None) -> None:
    """Find out the probe (base64 of little-endian float32) and the model's identity, once: at the first write.

    The probe input is embedded in the source role, so this loads the model or calls the service. A function that
    cannot embed that input goes without.

    Args:
        declared: what is recorded already; by default what the function was rebuilt with.
    Raises:
        CallError: the call failed, as the write would.
    """
    state = _state(function)
    if _probe_of(function._declared if declared is None else declared) or state.learnt:
        return
    with state.turn:
        if state.learnt:
            return
        try:
            vector = probe_vector(function)
        except CallError:
            raise
        except Exception as exc:  # noqa: BLE001  # a vocabulary or a validator of its own: the rows decide, not this
            log.debug("%s has no probe: %s", type(function).__name__, type(exc).__name__)
            return
        if vector is None:
            return
        probe = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        identity = function.model_identity()
        state.learnt.update({"probe": probe, **({} if identity is None else {"identity": identity})})
        state.verified.add(probe)


def learnt(function: EmbeddingFunction) -> dict[str, Any]:
    """Return what `learn` found out: `probe` and `identity`; empty before the first write."""
    return dict(_state(function).learnt)


def forget(function: EmbeddingFunction) -> None:
    """Forget what was found out about an instance, whose model may have been changed in place."""
    state = _state(function)
    with state.turn:
        state.verified.clear()
        state.learnt.clear()


def probe_vector(function: EmbeddingFunction, role: Literal["source", "query"] = "source") -> np.ndarray | None:
    """Embed the fixed input: (d,) float32, or None where the function gives no vector for it."""
    import numpy as np

    from embedreg.embedding.column import embed_column

    embedded = embed_column(function, [probe_input(function)], role, probing=True)
    return np.asarray(embedded.matrix[0], dtype=np.float32) if embedded.valid[0] else None


def probe_input(function: EmbeddingFunction) -> Any:
    """Return the fixed input of a function's modality, the first one it names: what a string in its column means."""
    if function.traits.modality.startswith("image") and getattr(function, "source_type", "image") == "image":
        return PROBE_IMAGE
    if "text" in function.traits.modality:
        return PROBE_TEXT
    raise InputError(
        f"there is no probe for the modality {function.traits.modality!r}.", "compare a sample of your own rows"
    )


def compare(function: EmbeddingFunction, declared: Mapping[str, Any], column: str = "vector") -> Drift:
    """Compare a function with the reserved part of a stored declaration; runs the function once if it holds a probe.

    Raises:
        EmbedregError: the function cannot be run.
    """
    import numpy as np

    changed = list(_differences(function, declared))
    stored = _decode(_probe_of(declared))
    if stored is None:
        if not declared:
            return Drift(column, "unknown", ("another client wrote the declaration: neither fingerprint nor probe",))
        why = "the stored probe cannot be read" if declared.get("probe") else "no probe was stored"
        return Drift(column, "note" if changed else "unknown", (*changed, why))
    now = probe_vector(function)
    if now is None:
        return Drift(column, "drift", (*changed, "the function gives no vector for the probe any more"))
    if now.shape != stored.shape:
        return Drift(column, "drift", (*changed, f"{now.size} dimensions, stored {stored.size}"))
    cosine = _cosine(now, stored)
    lengths = [float(np.linalg.norm(vector.astype(np.float64))) for vector in (stored, now)]
    if abs(lengths[0] - lengths[1]) > PROBE_LENGTH * max(lengths):
        changed.append(f"the vectors' length {lengths[0]:.4g} -> {lengths[1]:.4g}")
        if metric_of(function) != "cosine":
            return Drift(column, "drift", tuple(changed), cosine)
    if cosine < PROBE_COSINE:
        return Drift(column, "drift", tuple(changed) or ("the same configuration gives other vectors",), cosine)
    return Drift(column, "note" if changed else "same", tuple(changed), cosine)


def held_to(function: EmbeddingFunction, declared: Mapping[str, Any]) -> EmbeddingFunction:
    """Return a function that is compared with a stored declaration at its first use.

    What `create()` made serves every column of an equal declaration, and one column's probe says nothing of the others.
    So the column gets an instance of its own, which shares everything with the first one: fields, model, caches. Once
    the probe agrees, or where there is none to compare, it is the very instance.
    """
    probe, state = _probe_of(declared), _state(function)
    agreed = probe is None or probe in state.verified or probe == _probe_of(function._declared)
    if agreed or function.traits.remote:
        return function
    twin = shared(function)
    with _lock:
        own = _State(state.verified, state.learnt, state.turn, declared)
        key = id(twin)
        _states[key] = weakref.ref(twin, lambda _: _states.pop(key, None)), own
    return twin


def declared_for(function: EmbeddingFunction) -> Mapping[str, Any] | None:
    """Return the declaration that `held_to` holds a function to."""
    with _lock:
        found = _states.get(id(function))
        return None if found is None else found[1].declared


def verify_once(function: EmbeddingFunction, declared: Mapping[str, Any] | None = None) -> None:
    """Check a function against a stored probe before its first use; remote functions only in `check_drift`.

    Equal declarations of several tables may share a function, so each probe is checked, once. No lock but the
    function's own is held meanwhile: it may embed with another function, in threads of its own.

    Args:
        declared: what a table recorded; by default what the function was found by.
    Raises:
        DriftError: it gives other vectors than those stored, naming what changed.
    """
    if declared is None:
        declared = declared_for(function) or function._declared
    probe, state = _probe_of(declared), _state(function)
    if probe is None or probe in state.verified or function.traits.remote:
        return
    with state.turn:
        if probe in state.verified:
            return
        drift = compare(function, declared)
        if drift.verdict == "drift":
            raise drift_error(function, drift)
        state.verified.add(probe)


def _probe_of(declared: Mapping[str, Any]) -> str | None:
    probe = declared.get("probe")
    return probe if isinstance(probe, str) and 0 < len(probe) <= MAX_PROBE else None


def drift_error(function: EmbeddingFunction, drift: Drift) -> DriftError:
    """Build the error for a disagreeing probe."""
    name = registered_name(type(function))
    cosine = "" if drift.cosine is None else f" (cosine {drift.cosine:.4f})"
    return DriftError(
        f"{name!r} no longer gives the vectors that are stored{cosine}: {'; '.join(drift.changed)}.",
        "go back to the model or version that made the column, or embed it anew; `embedreg inspect --check` shows both",
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
    # a hash and a revision of the hub cannot be compared: the same model can be known by either
    if isinstance(before, str) and now is not None and _kind(before) == _kind(now) and before != now:
        found = True
        yield "the model's weights or revision"
    versions, own = declared.get("producer"), producer(function)
    if found and isinstance(versions, dict):  # versions alone never alarm
        for name in own.keys() & versions.keys():
            if versions[name] != own[name]:
                yield f"{name} {_shown(versions[name])} -> {own[name]}"


def _kind(identity: str) -> str:
    return identity.partition(":")[0] if ":" in identity else "revision"


def _shown(value: Any) -> str:
    """Print a stored value: nothing in it reaches a terminal as it is, and not all of a long one."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _decode(text: str | None) -> np.ndarray | None:
    import numpy as np

    if text is None:
        return None
    try:
        vector = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")
    except ValueError:
        return None
    return vector if vector.size and bool(np.isfinite(vector).all()) else None


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    import numpy as np

    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(np.array_equal(a, b))
