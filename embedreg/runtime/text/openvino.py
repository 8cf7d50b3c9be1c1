"""The OpenVINO back end for CPUs: it compiles a model's transformer and runs the other modules with torch.

The precision is always set: by default OpenVINO silently computes in bfloat16 if the processor supports it. A converted
model is compared with the original before it is used.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from embedreg.errors import CallError, ConfigError
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.models import conversions
from embedreg.runtime.text import compilation
from embedreg.runtime.text.compilation import Requests
from embedreg.runtime.text.pipeline import TextPipeline
from embedreg.support.imports import attempt_import_or_raise

__all__ = ["Compiled", "OpenVinoPipeline", "converted", "save"]

log = logging.getLogger("embedreg")

EXTRA = "openvino"
FILE = "model.xml"
_SAMPLE = ["a", "Some words of a sentence, as they come.", "one two three four five six seven eight nine ten " * 4]
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 3e-3}  # of unit vectors' coordinates


class Compiled:
    """A transformer compiled for this processor; each thread has its own infer request.

    Args:
        model: a `SentenceTransformer` whose first module is a text transformer; it is not changed.
        precision: number type of OpenVINO's computation.
        streams: number of batches computed in parallel, on one core each.
        identity: of the model's files, the key of its conversion on disk. None: the conversion is not stored.
    Raises:
        ConfigError: the first module is not a text transformer.
        CallError: OpenVINO cannot convert the model, or its vectors differ.
        MissingExtraError: OpenVINO is not installed.
    """

    def __init__(self, model: Any, precision: Precision, streams: int, identity: str | None = None) -> None:
        first = model[0]
        text = getattr(first, "modality_config", {}).get("text", {})
        if type(first).__name__ != "Transformer" or text.get("method") != "forward":
            raise ConfigError("the model's first module is not a text transformer.", "backend='torch'")
        openvino = compilation.library()
        features = model.preprocess(_SAMPLE[:2])
        self.kinds = [kind for kind, value in features.items() if hasattr(value, "numpy")]
        self.output = first.module_output_name
        self.size = sum(each.numel() * each.element_size() for each in first.parameters())
        self._settings = precision, streams
        stored = None if identity is None else conversions.find(identity, _dependencies(first, self.kinds))
        if stored is not None and self._load(openvino, stored, model, precision):
            return
        try:
            made = _convert(first.auto_model, self.kinds, features)
            self._compile(made)
        except Exception as exc:
            raise CallError(
                f"OpenVINO cannot convert the model: {type(exc).__name__}: {exc}", "backend='torch'"
            ) from exc
        self._compare(model, precision)
        if identity is not None:
            conversions.keep(identity, _dependencies(first, self.kinds), functools.partial(save, openvino, made))

    def _load(self, openvino: Any, stored: Path, model: Any, precision: Precision) -> bool:
        """Compile a stored conversion; return whether its vectors agree with the model's."""
        try:
            self._compile(openvino.Core().read_model(stored / FILE))
            self._compare(model, precision)
        except Exception as exc:  # noqa: BLE001 (a damaged file may raise any error; the model is converted again)
            log.warning("a converted model in %s cannot be used (%s): converting again", stored, type(exc).__name__)
            conversions.drop(stored)
            return False
        return True

    def _compile(self, made: Any) -> None:
        precision, streams = self._settings
        self._requests = Requests(compilation.compiled(made, precision, streams=streams, threads=streams))

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        """Return the features with the transformer's output, which is valid until this thread's next call."""
        import torch

        made = self._requests([features[kind].numpy() for kind in self.kinds])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a read-only view, which nothing writes to
            hidden = torch.from_numpy(made)
        return {**features, self.output: hidden}

    def _compare(self, model: Any, precision: Precision) -> None:
        theirs = TextPipeline(model, "cpu", "", None, True, None)
        ours = OpenVinoPipeline(model, "cpu", "", None, True, None, compiled=self)
        features = model.preprocess(_SAMPLE)
        difference = float((theirs.vectors(dict(features)) - ours.vectors(dict(features))).abs().max())
        if not difference <= TOLERANCE[precision]:  # also true for nan
            raise CallError(f"OpenVINO's vectors for this model differ by {difference:.2g}.", "backend='torch'")


@dataclass(frozen=True)
class OpenVinoPipeline(TextPipeline):
    """A model in one role, with a compiled transformer."""

    label: ClassVar[str] = "OpenVINO"
    devices: ClassVar[frozenset[str]] = frozenset({"cpu"})
    compiles: ClassVar[bool] = True

    @classmethod
    def compile(cls, model: Any, precision: Precision, threads: int, identity: str | None) -> Compiled:
        """Convert and compile the transformer, or load a stored conversion."""
        return Compiled(model, precision, threads, identity)

    def _run(self, features: dict[str, Any]) -> Any:
        features = self.compiled(features)
        for module in list(self.model)[1:]:
            features = module(features)
        return features["sentence_embedding"]


def _convert(transformer: Any, kinds: list[str], features: dict[str, Any]) -> Any:
    """Trace a Hugging Face model and convert the trace."""
    import torch

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, *tensors: Any) -> Any:
            return self.transformer(**dict(zip(kinds, tensors, strict=True)), return_dict=False)[0]

    return converted(Hidden().eval(), tuple(features[kind].clone() for kind in kinds))


def converted(module: Any, example: tuple[Any, ...]) -> Any:
    """Trace a torch module on an example, and convert the trace to an `openvino.Model`.

    It calls the frontend directly, since `openvino.convert_model` reports its use over the network.
    """
    import torch

    frontends = attempt_import_or_raise("openvino.frontend", extra=EXTRA)
    decoders = attempt_import_or_raise("openvino.frontend.pytorch.ts_decoder", extra=EXTRA)
    with _quietly(), torch.inference_mode(False), torch.no_grad():
        decoder = decoders.TorchScriptPythonDecoder(module, example_input=example)
        frontend = frontends.FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def _dependencies(first: Any, kinds: list[str]) -> dict[str, Any]:
    """Return what a conversion depends on beside the model's files."""
    libraries = ("openvino", "sentence-transformers", "torch", "transformers")
    attention = getattr(getattr(first.auto_model, "config", None), "_attn_implementation", None)
    return {"kinds": kinds, "attention": attention, **{name: metadata.version(name) for name in libraries}}


def save(openvino: Any, made: Any, folder: Path) -> None:
    """Write a converted model to a folder."""
    openvino.save_model(made, folder / FILE, compress_to_fp16=False)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the warnings about tracing: the trace is compared with the model afterwards."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
