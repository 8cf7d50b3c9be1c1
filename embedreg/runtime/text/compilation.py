"""OpenVINO on a CPU: importing it, the settings of a compiled model, and one infer request for each thread."""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any

from embedreg.runtime.hardware.precision import Precision
from embedreg.support.imports import attempt_import_or_raise

__all__ = ["Requests", "compiled", "library"]

_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def library(module: str = "openvino", *, extra: str = "openvino") -> ModuleType:
    """Import OpenVINO without its telemetry, which would report the import over the network from a forked process.

    Args:
        module: one of its modules.
        extra: embedreg's extra that installs it, for the error.
    Raises:
        MissingExtraError: it is not installed.
    """
    telemetry = "openvino_telemetry"
    if "openvino" in sys.modules or telemetry in sys.modules:
        return attempt_import_or_raise(module, extra=extra)  # the user's own code has imported it
    sys.modules[telemetry] = None  # type: ignore[assignment]  # None makes an import fail, which OpenVINO accepts
    try:
        return attempt_import_or_raise(module, extra=extra)
    finally:
        del sys.modules[telemetry]


def compiled(graph: Any, precision: Precision, *, streams: int, threads: int) -> Any:
    """Compile a graph for the CPU.

    Args:
        graph: an `openvino.Model`.
        precision: number type of the computation, always set: by default OpenVINO computes in bfloat16 if it can.
        streams: number of batches computed in parallel.
        threads: cores of all of them.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # other work may be on these cores
    }
    return library().Core().compile_model(graph, "CPU", settings)


class Requests:
    """A compiled model, called from several threads; each thread has its own infer request."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._local = threading.local()

    def __call__(self, inputs: list[Any]) -> Any:
        """Return the first output for some arrays; it is valid until this thread's next call."""
        request = getattr(self._local, "mine", None)
        if request is None:
            request = self._local.mine = self._model.create_infer_request()
        return request.infer(inputs, share_inputs=True, share_outputs=True)[0]
