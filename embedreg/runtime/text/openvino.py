"""The OpenVINO back end for CPUs: a model's transformer compiled, its other modules as they are.

Exact by default: OpenVINO would compute in bfloat16 wherever the processor can, and say nothing, so the precision is
always set. A converted model is compared with the original before it is used.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from embedreg.errors import CallError, ConfigError
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.models import conversions
from embedreg.runtime.text.pipeline import TextPipeline
from embedreg.support.imports import attempt_import_or_raise

__all__ = ["Compiled", "OpenVinoPipeline"]

log = logging.getLogger("embedreg")

EXTRA = "openvino"
_FILE = "model.xml"
_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_SAMPLE = ["a", "Some words of a sentence, as they come.", "one two three four five six seven eight nine ten " * 4]
_TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 3e-3}  # of unit vectors' coordinates


class Compiled:
    """A transformer compiled for this processor; each thread has its own requests.

    Args:
        model: a `SentenceTransformer` that starts with a transformer of text; it is not changed.
        precision: what OpenVINO computes in.
        streams: how many batches are computed side by side, on a core each.
        identity: of the model's files; its conversion is kept on the disk under it. None: not kept.
    Raises:
        ConfigError: a model of other parts. CallError: OpenVINO cannot convert it, or gives other vectors.
        MissingExtraError: OpenVINO is not installed.
    """

    def __init__(self, model: Any, precision: Precision, streams: int, identity: str | None = None) -> None:
        first = model[0]
        text = getattr(first, "modality_config", {}).get("text", {})
        if type(first).__name__ != "Transformer" or text.get("method") != "forward":
            raise ConfigError("the model does not start with a transformer of text.", "backend='torch'")
        openvino = _library()
        features = model.preprocess(_SAMPLE[:2])
        self.kinds = [kind for kind, value in features.items() if hasattr(value, "numpy")]
        self.output = first.module_output_name
        self.size = sum(each.numel() * each.element_size() for each in first.parameters())
        self._settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
            "ENABLE_CPU_PINNING": False,  # other work may be on these cores
        }
        kept = None if identity is None else conversions.find(identity, _made_of(first, self.kinds))
        if kept is not None and self._works(openvino, kept, model, precision):
            return
        try:
            made = _convert(first.auto_model, self.kinds, features)
            self._compile(openvino, made)
        except Exception as exc:
            raise CallError(
                f"OpenVINO cannot convert the model: {type(exc).__name__}: {exc}", "backend='torch'"
            ) from exc
        self._compare(model, precision)
        if identity is not None:
            conversions.keep(identity, _made_of(first, self.kinds), functools.partial(_save, openvino, made))

    def _works(self, openvino: Any, kept: Path, model: Any, precision: Precision) -> bool:
        """Compile what an earlier process converted; say whether it gives the model's vectors."""
        try:
            self._compile(openvino, openvino.Core().read_model(kept / _FILE))
            self._compare(model, precision)
        except Exception as exc:  # noqa: BLE001 (a damaged file may raise anything; it is made anew)
            log.warning("a converted model in %s cannot be used (%s): converting anew", kept, type(exc).__name__)
            conversions.drop(kept)
            return False
        return True

    def _compile(self, openvino: Any, made: Any) -> None:
        self._compiled = openvino.Core().compile_model(made, "CPU", self._settings)
        self._requests = threading.local()

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        """Return the features with the transformer's output, which lasts until this thread's next call."""
        import torch

        request = getattr(self._requests, "mine", None)
        if request is None:
            request = self._requests.mine = self._compiled.create_infer_request()
        inputs = [features[kind].numpy() for kind in self.kinds]
        made = request.infer(inputs, share_inputs=True, share_outputs=True)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a view that may not be written to, and is not
            hidden = torch.from_numpy(made)
        return {**features, self.output: hidden}

    def _compare(self, model: Any, precision: Precision) -> None:
        theirs = TextPipeline(model, "cpu", "", None, True, None)
        ours = OpenVinoPipeline(model, "cpu", "", None, True, None, compiled=self)
        features = model.preprocess(_SAMPLE)
        apart = float((theirs.vectors(dict(features)) - ours.vectors(dict(features))).abs().max())
        if not apart <= _TOLERANCE[precision]:  # nan is not
            raise CallError(f"OpenVINO gives other vectors for this model, by {apart:.2g}.", "backend='torch'")


@dataclass(frozen=True)
class OpenVinoPipeline(TextPipeline):
    """A model in one role, its transformer compiled."""

    label: ClassVar[str] = "OpenVINO"
    devices: ClassVar[frozenset[str]] = frozenset({"cpu"})
    compiles: ClassVar[bool] = True

    @classmethod
    def compile(cls, model: Any, precision: Precision, threads: int, identity: str | None) -> Compiled:
        """Convert and compile the transformer, or take the conversion that an earlier process kept."""
        return Compiled(model, precision, threads, identity)

    def _run(self, features: dict[str, Any]) -> Any:
        features = self.compiled(features)
        for module in list(self.model)[1:]:
            features = module(features)
        return features["sentence_embedding"]


def _library() -> ModuleType:
    """Import OpenVINO without the part that reports the import over the network, from a forked process, unasked."""
    reporting = "openvino_telemetry"
    if "openvino" in sys.modules or reporting in sys.modules:
        return attempt_import_or_raise("openvino", extra=EXTRA)  # its user has decided
    sys.modules[reporting] = None  # type: ignore[assignment]  # None makes an import fail, and OpenVINO does without
    try:
        return attempt_import_or_raise("openvino", extra=EXTRA)
    finally:
        del sys.modules[reporting]


def _convert(transformer: Any, kinds: list[str], features: dict[str, Any]) -> Any:
    """Trace a Hugging Face model and convert the trace.

    The frontend itself, and not `openvino.convert_model`, which reports its use over the network.
    """
    import torch

    frontends = attempt_import_or_raise("openvino.frontend", extra=EXTRA)
    decoders = attempt_import_or_raise("openvino.frontend.pytorch.ts_decoder", extra=EXTRA)

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, *tensors: Any) -> Any:
            return self.transformer(**dict(zip(kinds, tensors, strict=True)), return_dict=False)[0]

    with _quietly(), torch.inference_mode(False), torch.no_grad():
        decoder = decoders.TorchScriptPythonDecoder(
            Hidden().eval(), example_input=tuple(features[kind].clone() for kind in kinds)
        )
        frontend = frontends.FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def _made_of(first: Any, kinds: list[str]) -> dict[str, Any]:
    """Name what a conversion depends on beside the model's files."""
    libraries = ("openvino", "sentence-transformers", "torch", "transformers")
    attention = getattr(getattr(first.auto_model, "config", None), "_attn_implementation", None)
    return {"kinds": kinds, "attention": attention, **{name: metadata.version(name) for name in libraries}}


def _save(openvino: Any, made: Any, folder: Path) -> None:
    openvino.save_model(made, folder / _FILE, compress_to_fp16=False)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the remarks on tracing to ourselves: the trace is compared with the model afterwards."""
    remarks = logging.getLogger("transformers.modeling_utils")
    level = remarks.level
    remarks.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        remarks.setLevel(level)
