"""Is this still the function that made these vectors? The fingerprint (configuration) and the probe (behaviour).

The probe decides: a fixed input was embedded when the column was made, and is compared by cosine with what the function
gives now. Another fingerprint beside an agreeing probe is a note; a disagreeing probe is an error that names what changed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass
from importlib import metadata as distributions
from typing import TYPE_CHECKING, Any

from embedreg import grants, secrets
from embedreg.base import EmbeddingFunction, registered_name, sensitive_fields
from embedreg.errors import DriftError, InputError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Drift", "compare", "fingerprint", "learn", "verify_once"]

PROBE_TEXT = "The quick brown fox jumps over the lazy dog; 3.14 is close to π."
# The same weights in another precision or on another device stay above .9999 (docs/benchmarks.md); another revision
# or another prompt falls well below .99.
PROBE_COSINE = 0.999

_lock = threading.RLock()  # a function may embed with another one


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


def fingerprint(function: EmbeddingFunction) -> str:
    """Return a digest of what determines the vectors: the name, and every semantic field as it takes effect.

    A local model counts by the hash of its files, not by where it lies; a secret does not count at all.
    """
    cls = type(function)
    sensitive = sensitive_fields(cls)
    fields = {
        name: getattr(function, name) if isinstance(value, str) and secrets.is_reference(value) else value
        for name, value in grants.semantic_config(function).items()
        # a field that a later version adds, null by default, must not change the fingerprint of what is stored
        if name not in sensitive and value is not None
    }
    for name, value in fields.items():
        if isinstance(value, str) and grants.is_path(value):
            fields[name] = function.model_identity() or "unknown"
    content = json.dumps([registered_name(cls), fields], sort_keys=True, default=repr)
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


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


def learn(function: EmbeddingFunction) -> None:
    """Record the probe (base64 of little-endian float32) and the model's identity, once: at the first write.

    The probe input is embedded in the source role, so this loads the model or calls the service.
    """
    with _lock:
        if function._declared.get("probe"):
            return
        try:
            vector = _probe_vector(function)
        except InputError:  # a modality that has no fixed input
            return
        encoded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        known = {"probe": encoded, "identity": function.model_identity()}
        function._declared = {**function._declared, **{k: v for k, v in known.items() if v is not None}}
        function._verified = encoded


def _probe_vector(function: EmbeddingFunction) -> np.ndarray:
    import numpy as np

    from embedreg.table import embed_column

    embedded = embed_column(function, [probe_input(function)], probing=True)
    return np.asarray(embedded.matrix[0], dtype=np.float32)


def probe_input(function: EmbeddingFunction) -> Any:
    """Return the fixed input of a function's modality."""
    if "text" in function.traits.modality:
        return PROBE_TEXT
    raise InputError(
        f"there is no probe for the modality {function.traits.modality!r}.", "compare a sample of your own rows"
    )


def compare(function: EmbeddingFunction, declared: dict[str, Any], column: str = "vector") -> Drift:
    """Compare a function with the reserved part of a stored declaration; runs the function once if it holds a probe."""
    changed = list(_differences(function, declared))
    stored = _decode(declared.get("probe"))
    if stored is None:
        if not declared:
            return Drift(column, "unknown", ("the declaration holds neither fingerprint nor probe",))
        return Drift(column, "note" if changed else "unknown", (*changed, "no probe was stored"))
    now = _probe_vector(function)
    if now.shape != stored.shape:
        return Drift(column, "drift", (*changed, f"{now.size} dimensions, stored {stored.size}"))
    cosine = _cosine(now, stored)
    if cosine < PROBE_COSINE:
        return Drift(column, "drift", tuple(changed) or ("the same configuration gives other vectors",), cosine)
    return Drift(column, "note" if changed else "same", tuple(changed), cosine)


def verify_once(function: EmbeddingFunction) -> None:
    """Check a rebuilt function against its stored probe before its first use; remote functions only in `check_drift`.

    Raises:
        DriftError: it gives other vectors than those stored, naming what changed.
    """
    declared = function._declared
    if not declared.get("probe") or function.traits.remote:
        return
    with _lock:
        if function._verified == declared["probe"]:
            return
        drift = compare(function, declared)
        if drift.verdict == "drift":
            raise drift_error(function, drift)
        function._verified = declared["probe"]


def drift_error(function: EmbeddingFunction, drift: Drift) -> DriftError:
    """Build the error for a disagreeing probe."""
    name = registered_name(type(function))
    cosine = "" if drift.cosine is None else f" (cosine {drift.cosine:.4f})"
    return DriftError(
        f"{name!r} no longer gives the vectors that are stored{cosine}: {'; '.join(drift.changed)}.",
        "go back to the model or version that made the column, or embed it anew; `embedreg inspect --check` shows both",
    )


def _differences(function: EmbeddingFunction, declared: dict[str, Any]) -> list[str]:
    changed = []
    if declared.get("fingerprint") not in (None, fingerprint(function)):
        changed.append("the configuration's fingerprint")
    if declared.get("ndims") not in (None, function.ndims()):
        changed.append(f"ndims {declared['ndims']} -> {function.ndims()}")
    known = function.model_identity() if declared.get("identity") else None
    if known is not None and known != declared["identity"]:
        changed.append("the model's weights or revision")
    before, now = declared.get("producer"), producer(function)
    if changed and isinstance(before, dict):  # versions alone never alarm
        changed += [f"{k} {before[k]} -> {now[k]}" for k in now if k in before and before[k] != now[k]]
    return changed


def _decode(text: Any) -> np.ndarray | None:
    import numpy as np

    if not isinstance(text, str):
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
