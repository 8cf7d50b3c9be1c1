"""The OpenVINO back end for models of images and texts: both towers, compiled for this processor.

Preprocessing, the tokenizer and the scaling of vectors are the same as with torch. A tower is converted when it is
first used, and compared with torch's before; its conversion is stored as those of text models are.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from importlib import metadata
from typing import Any, Literal

from embedreg.errors import CallError
from embedreg.runtime import progress
from embedreg.runtime.hardware import workers
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image.clip import Clip
from embedreg.runtime.models import conversions
from embedreg.runtime.text import compilation, openvino
from embedreg.runtime.text.compilation import Requests
from embedreg.support.forks import ForkSafeLock

__all__ = ["Towers", "compiled"]

log = logging.getLogger("embedreg")

Tower = Literal["visual", "textual"]

_LIBRARIES = ("openvino", "open-clip-torch", "torch", "transformers")
_SAMPLE = ["a", "a photograph of a red circle on a dark ground, next to a smaller one"]


class Towers:
    """The towers of a model, as functions of tensors; each thread has its own infer requests.

    Args:
        pair: the model on the CPU, in float32; it is not changed.
        precision: number type of OpenVINO's computation.
        streams: number of batches computed in parallel, on one core each; a single input runs on all cores.
        identity: of the model's files, the key of its conversions on disk. None: they are not stored.
        name: what else determines the model, such as its name in the library.
    """

    def __init__(self, pair: Clip, precision: Precision, streams: int, identity: str | None, name: str) -> None:
        self._pair, self._precision, self._streams = pair, precision, streams
        self._identity, self._name = identity, name
        self._graphs: dict[Tower, Any] = {}
        self._requests: dict[tuple[Tower, bool], Requests] = {}
        self._lock = ForkSafeLock()
        compilation.library()  # raises MissingExtraError before anything is loaded
        # OpenVINO packs the weights for this processor: once for batches, once for single inputs
        self.nbytes = 2 * sum(each.numel() * each.element_size() for each in pair.parameters())

    def __call__(self, tower: Tower, tensors: tuple[Any, ...]) -> Any:
        """Run a tower on a batch: (b, d) float32.

        Args:
            tensors: the tower's inputs, each of b rows.
        """
        import torch

        alone = len(tensors[0]) == 1
        with self._lock:
            requests = self._requests.get((tower, alone))
            if requests is None:
                requests = self._requests[tower, alone] = self._compiled(tower, tensors, alone)
        return torch.from_numpy(requests([each.numpy() for each in tensors]).copy())

    def _compiled(self, tower: Tower, tensors: tuple[Any, ...], alone: bool) -> Requests:
        graph = self._graphs.get(tower)
        if graph is None:
            with progress.stage(f"preparing the {tower} tower of {self._name} for OpenVINO"):
                graph = self._graphs[tower] = self._graph(tower, tensors)
        return self._of(graph, alone)

    def _of(self, graph: Any, alone: bool) -> Requests:
        streams, threads = (1, workers.worker_threads()) if alone else (self._streams, self._streams)
        return Requests(compilation.compiled(graph, self._precision, streams=streams, threads=threads))

    def _graph(self, tower: Tower, tensors: tuple[Any, ...]) -> Any:
        """Return the stored conversion of a tower if it agrees with torch's, else convert it."""
        import torch

        made_of = {"tower": tower, "model": self._name, **{name: _version(name) for name in _LIBRARIES}}
        key = None if self._identity is None else hashlib.sha256(f"{self._identity} {tower}".encode()).hexdigest()
        library = compilation.library()
        stored = None if key is None else conversions.find(key, made_of)
        if stored is not None:
            try:
                graph = library.Core().read_model(stored / openvino.FILE)
                self._compare(graph, tower, tensors)
                return graph
            except Exception as exc:  # noqa: BLE001 (a damaged file may raise any error; it is converted again)
                log.warning("a converted model in %s cannot be used (%s): converting again", stored, type(exc).__name__)
                conversions.drop(stored)
        try:
            with torch.inference_mode(False):
                example = tuple(_twice(each) for each in tensors)
            graph = openvino.converted(_module(self._pair, tower), example)
        except Exception as exc:
            raise CallError(
                f"OpenVINO cannot convert the {tower} tower: {type(exc).__name__}: {exc}", "backend='torch'"
            ) from exc
        self._compare(graph, tower, tensors)
        if key is not None:
            conversions.keep(key, made_of, functools.partial(openvino.save, library, graph))
        return graph

    def _compare(self, graph: Any, tower: Tower, tensors: tuple[Any, ...]) -> None:
        """Raise CallError unless both return the same vectors, for one input and for a batch."""
        import torch

        normalize = torch.nn.functional.normalize
        requests = self._of(graph, True)
        for some in (tuple(each[:1] for each in tensors), tuple(_twice(each) for each in tensors)):
            with torch.inference_mode():
                theirs = normalize(self._pair.tower(tower, some).float(), dim=-1)
            ours = normalize(torch.from_numpy(requests([each.numpy() for each in some]).copy()), dim=-1)
            difference = float((theirs - ours).abs().max())
            if not difference <= openvino.TOLERANCE[self._precision]:  # also true for nan
                raise CallError(
                    f"OpenVINO's vectors of the {tower} tower differ by {difference:.2g}.", "backend='torch'"
                )


def compiled(pair: Clip, precision: Precision, streams: int, identity: str | None, name: str) -> Any:
    """Return a model whose towers run on OpenVINO; see `Towers`."""
    return pair.with_towers(Towers(pair, precision, streams, identity, name))


def _module(pair: Clip, tower: Tower) -> Any:
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = pair.model

        def forward(self, *tensors: Any) -> Any:
            return pair.tower(tower, tensors)

    return Module().eval()


def _twice(tensor: Any) -> Any:
    """Return a batch of at least two rows: a trace on one row may fix their number."""
    import torch

    return tensor.clone() if len(tensor) > 1 else torch.cat([tensor, tensor])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
