"""Back ends: the protocol of a text model, and the table of back ends that run a sentence-transformers model.

A new back end is one file with a class and one line in `BACKENDS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, cast

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from embedreg.support.lazy import load

if TYPE_CHECKING:
    import numpy as np

    from embedreg.runtime.hardware.precision import Precision
    from embedreg.runtime.text.tokens import Tokens

__all__ = ["AUTO", "BACKENDS", "Backend", "BackendName", "ModelBackend", "find"]

BACKENDS = {
    "torch": "embedreg.runtime.text.pipeline:TextPipeline",
    "openvino": "embedreg.runtime.text.openvino:OpenVinoPipeline",
    "light": "embedreg.runtime.text.light.pipeline:LightPipeline",
}
"""Name -> "module:Class" of a `ModelBackend`; the module is imported when the back end is first used."""

AUTO = "auto"  # see `choice`


class Backend(Protocol):
    """One model in one role on one device."""

    @property
    def device(self) -> str:
        """Return "cpu", or the torch device that `forward` expects its tensors on."""

    def tokenize(self, texts: list[str]) -> Tokens:
        """Tokenize texts, without padding; called in one thread at a time."""

    def forward(self, batch: dict[str, Any]) -> Any:
        """Embed a padded batch: (b, d) floats, a numpy array or, on its device, a tensor; called in many threads.

        Args:
            batch: kind -> (b, t) int64, numpy arrays on a CPU and tensors elsewhere; and the extras of its `Tokens`.
        """


class ModelBackend(Backend, Protocol):
    """A class of `BACKENDS`: a way to run a model of sentence-transformers, made for one role.

    Attributes:
        label: its name in messages.
        library: the module with `load`, `count_tokens`, `max_tokens`, `ndims` and `flops_per_token` for its models, as
            `runtime.text.library`, whose models are `SentenceTransformer` objects.
        torch: whether it needs torch.
        devices: the devices that it runs on, as `device.resolve` names them; empty for all.
        compiles: whether it runs a compiled form from `compile` instead of the model. The model is then loaded in
            float32 for every precision, and torch runs a single query in float32, since it uses all cores and agrees.
        queries_compiled: whether a single query and a small batch run a compiled form of their own, on all cores, which
            `compile_for_queries` returns.
    """

    label: ClassVar[str]
    devices: ClassVar[frozenset[str]]
    compiles: ClassVar[bool]
    queries_compiled: ClassVar[bool]
    library: ClassVar[str]
    torch: ClassVar[bool]

    @property
    def prompt(self) -> str:
        """Return the text that is prepended to each text."""

    @property
    def task(self) -> str | None:
        """Return the library's name of the role: "query", "document", or None for neither."""

    def __init__(
        self,
        model: Any,
        device: str,
        prompt: str,
        task: str | None,
        normalize: bool,
        truncate_dim: int | None,
        compiled: Any = None,
    ) -> None: ...

    @classmethod
    def compile(cls, model: Any, precision: Precision, threads: int, identity: str | None) -> Any:
        """Compile a model; called once for all roles. The attribute `size` of the result is the bytes that it holds.

        Args:
            precision: number type of the computation.
            threads: number of batches computed in parallel, on one core each.
            identity: of the model's files, as the key of a copy on disk; None if no copy may be stored.
        """

    @classmethod
    def compile_for_queries(cls, model: Any, precision: Precision, threads: int, identity: str | None) -> Any:
        """Compile a model that runs one batch at a time; the arguments and the result are those of `compile`."""

    def usable(self, texts: list[str]) -> bool:
        """Return whether the runtime can run this model with the same vectors as the library."""

    def one(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Embed one text in this thread: (1, d) float32, and (1,) bool: whether it was truncated."""


def find(name: str) -> type[ModelBackend]:
    """Return a back end's class.

    Args:
        name: one of `BACKENDS`.
    """
    return cast("type[ModelBackend]", load(BACKENDS[name]))


def _known(name: str) -> str:
    names = [AUTO, *BACKENDS]
    if name not in names:
        *first, last = map(repr, names)
        expected = f"{', '.join(first)} or {last}"
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
    return name


BackendName = Annotated[str, AfterValidator(_known), WithJsonSchema({"enum": [AUTO, *BACKENDS], "type": "string"})]
"""The type of a field that names a back end; an unknown name is an error that lists the known ones."""
