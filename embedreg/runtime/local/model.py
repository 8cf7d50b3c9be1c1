"""`LocalModel`, the base class of all local functions: devices, precision, and one copy of the weights per device."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Protocol

from pydantic import Field, GetCoreSchemaHandler, PrivateAttr
from pydantic_core import CoreSchema

from embedreg.core import vouched
from embedreg.core.base import EmbeddingFunction
from embedreg.core.canonical import registered_name
from embedreg.core.fields import freeze, runtime_fields, sensitive_fields
from embedreg.errors import CallError, ConfigError, EmbedregError, ModelNotFoundError, VectorError, Words
from embedreg.runtime import cache, progress
from embedreg.runtime.hardware import device, onednn, precision, workers
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.models import weights
from embedreg.security.references import is_reference
from embedreg.support.forks import ForkSafeLock

__all__ = ["Loaded", "LocalModel", "ModelFiles"]

_BUILT_IN = "embedreg.functions."
_LESS_MEMORY = "a smaller batch_size; embedreg.release() frees other models"
_WHERE = Words("the traceback of the original error shows where", "--debug shows where")


class ModelFiles(Protocol):
    """The files of a model, found on this machine."""

    @property
    def origin(self) -> str:
        """Return where they were found: "local" for files that the name points to, which may change."""

    def identity(self) -> str | None:
        """Return a hash of everything that determines the vectors, independent of the location of the files."""

    def stamp(self) -> int:
        """Return the time of their last change, in nanoseconds."""


@dataclass(eq=False)
class Loaded:
    """A model in memory; `lock` protects its parts that are not thread-safe, such as its tokenizer."""

    model: Any
    lock: ForkSafeLock = field(default_factory=ForkSafeLock)


class LocalModel(EmbeddingFunction):
    """A function whose model runs on this machine; see `LocalFunction` for texts, `LocalImageFunction` for images.

    Attributes:
        device: "auto" (CUDA, else Apple's, else the CPU), "cpu", "cuda", "cuda:<index>" or "mps".
        batch_size: maximum inputs of a forward pass; None for the default of the device.
        num_threads: worker threads on a CPU; None for one per core that torch may use.
        precision: number type of the model's computation; vectors are always float32. Types other than "float32" are
            allowed only on hardware that is faster with them.
    """

    device: str = "auto"
    batch_size: int | None = Field(default=None, ge=1)
    num_threads: int | None = Field(default=None, ge=1)
    precision: Precision = "float32"

    _files_found: ModelFiles | None = PrivateAttr(default=None)
    _files_key: tuple[Hashable, ...] | None = PrivateAttr(default=None)

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        if not self.from_metadata and not is_reference(self.raw_fields()["device"]):
            device.check(self.device)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Order the fields as the class declares them, including inherited fields that it declares again.

        Listings and stored declarations then begin with the model's name, not with the fields of this class.
        """
        fields = cls.__pydantic_fields__
        names = [name for name in vars(cls).get("__annotations__", {}) if name in fields]
        parent: Any = cls.__mro__[1]
        if cls.__module__.startswith(_BUILT_IN) and parent.__module__.startswith(_BUILT_IN):
            names = list(dict.fromkeys([*parent.__pydantic_fields__, *names]))  # its order, and new fields last
        for name in [each for each in names if each in fields]:  # a class variable can take a field's place
            fields[name] = fields.pop(name)
        return super().__get_pydantic_core_schema__(source, handler)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.__module__.startswith("embedreg."):
            return
        bases = [base for base in cls.__mro__ if base.__module__.startswith("embedreg.runtime.local.")]
        for name in vars(cls):
            private = name.startswith("_") and not name.endswith("__")
            if private and any(isinstance(vars(base).get(name), FunctionType) for base in bases):
                raise ConfigError(
                    f"{cls.__name__} defines {name}, a private method of embedreg's base class.", f"call it {name}_"
                )

    # -- defined by a subclass --------------------------------------------------------------------------------------

    @abstractmethod
    def load(self, device: str) -> Any:
        """Load the model; called once per process and device for all equal functions.

        A `torch.nn.Module` is then moved to the device, set to eval mode and converted to `precision`.

        Args:
            device: "cpu", "mps" or "cuda:<index>".
        """

    def weights_key(self) -> tuple[Hashable, ...]:
        """Return the cache key of the weights: functions with equal keys share one copy.

        The default is the class and every field that can change a vector. Return a shorter key, starting with a name of
        your own, if functions that differ in other fields can share the weights.
        """
        return type(self), self._vector_fields()

    def _find_files(self, *, download: bool) -> ModelFiles | None:
        """Find the files of the model; None for a model that has no files."""
        return None

    def _resolved(self, name: str, revision: str | None, **options: Any) -> weights.ResolvedModel:
        """Find a model by name; a local folder that stored metadata names needs a grant, and has no links out of it.

        Args:
            options: further arguments of `weights.resolve_model`.
        """
        return weights.resolve_model(
            name, revision, allow_local=self._may_read(), allow_links=not self.from_metadata, **options
        )

    def _weights_precision(self) -> Precision:
        """Return the precision that the weights are converted to after loading."""
        return self.precision

    @abstractmethod
    def _try(self, model: Any, on: str) -> None:
        """Run a model on a sample; an error means that it does not run in this precision."""

    # -- the model --------------------------------------------------------------------------------------------------

    def model_identity(self) -> str | None:
        """Return a hash of the model's files, independent of their location; None if they are not on this machine."""
        try:
            files = self._files(download=False)
        except ModelNotFoundError:
            return None
        return None if files is None else files.identity()

    def cache_key(self) -> tuple[Any, ...] | None:
        """Return the model's key in the model cache, without the device; None if the model is not on this machine."""
        try:
            return self._cache_key(download=False)
        except ModelNotFoundError:
            return None

    def _files(self, *, download: bool = True) -> Any:
        found = self._files_found
        if found is None or (found.origin == "local" and not self._may_read()):  # a grant can be revoked
            self._files_found = self._find_files(download=download)
        return self._files_found

    def _may_read(self) -> bool:
        """Return whether the model may be read from a local path."""
        return vouched.may_read(self, self._path())

    def _path(self) -> str:
        """Return the field that may hold a local path."""
        return str(getattr(self, "name", ""))

    def _cache_key(self, *, download: bool = True) -> tuple[Hashable, ...]:
        if self._files(download=download) is None:
            return self.weights_key()
        key = self._files_key
        if key is None:
            key = self._files_key = self.weights_key()
        return key

    def _devices(self) -> tuple[str, ...]:
        try:
            return self._named_devices(self.device)
        except ConfigError:
            if not self.from_metadata:
                raise
            return self._named_devices("auto")  # a stored device may not exist here, and it does not change vectors

    def _named_devices(self, name: str) -> tuple[str, ...]:
        return device.resolve_all(name)

    def _held(self, on: str) -> Loaded:
        """Return the loaded model of one of the devices, with its lock."""
        key = self._cache_key()
        return cache.get((*key, on), lambda: workers.alone(self._load, on), _size, group=key)

    def _loaded(self, on: str | None = None) -> Any:
        """Return the model, loaded on a device; None for the first of the devices."""
        return self._held(on or self._devices()[0]).model

    def _load(self, on: str) -> Loaded:
        narrow = self._weights_precision() != "float32"
        if narrow:
            self._check_precision(on)
        with progress.stage(f"loading {self._model_name()}"):
            model = self.load(on)
        if _is_module(model):
            model.to(on).eval()
        if narrow:
            self._narrow(model, on)
        if _is_module(model):
            onednn.use_onednn(model)
        return Loaded(model)

    def _narrow(self, model: Any, on: str) -> None:
        """Convert a model to `precision`."""
        if not _is_module(model):
            raise ConfigError(
                f"cannot convert the model {self._model_name()!r}: expected a torch.nn.Module, got "
                f"{type(model).__name__}.",
                "precision='float32'",
            )
        precision.convert([model], self.precision, on, lambda: self._try(model, on))

    def _check_precision(self, on: str) -> None:
        if not self.from_metadata:  # stored vectors have to be reproduced, even if that is slow
            precision.check(self.precision, on)

    # -- calls ------------------------------------------------------------------------------------------------------

    def _model_name(self) -> str:
        name = getattr(self, "name", None)
        return name if isinstance(name, str) else registered_name(type(self)) or type(self).__name__

    def _vector_fields(self) -> Hashable:
        """Return the fields that can change a vector, as a hashable value."""
        cls, raw = type(self), self.raw_fields()
        left, hidden = runtime_fields(cls), sensitive_fields(cls)
        fields = {name: raw[name] if name in hidden else getattr(self, name) for name in raw if name not in left}
        return freeze(fields)  # type: ignore[no-any-return]

    @contextmanager
    def _failing(self, rows: int) -> Iterator[None]:
        try:
            yield
        except EmbedregError:
            raise
        except Exception as exc:
            raise CallError(
                f"the model {self._model_name()!r} failed on {rows} row(s): {type(exc).__name__}: {exc}",
                _LESS_MEMORY if _is_out_of_memory(exc) else _WHERE,
            ) from exc


def run(function: LocalModel, model: Any, batch: Any, rows: int, ndims: int) -> Any:
    """Call a function's `forward` on a batch, and check what it returns.

    Returns:
        (rows, ndims) float32, a tensor on the model's device.
    Raises:
        VectorError: the result has another shape.
    """
    import numpy as np
    import torch

    with torch.inference_mode():
        made = function.forward(model, batch)  # defined by both subclasses
        if not torch.is_tensor(made):
            made = torch.from_numpy(np.array(made, np.float32))  # a copy: torch needs writable memory
        return matrix(made, rows, ndims).float()  # numpy has no bfloat16


def matrix(made: Any, rows: int, ndims: int) -> Any:
    """Return what `forward` returned for a batch, a tensor or an array.

    Raises:
        VectorError: it is not (rows, ndims).
    """
    if made.shape != (rows, ndims):
        raise VectorError(
            f"forward() returned {tuple(made.shape)} for a batch of {rows} row(s), expected ({rows}, {ndims}).",
            "return one vector of ndims() numbers for each row of the batch, without squeeze()",
        )
    return made


def _is_out_of_memory(exc: Exception) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(exc, MemoryError) or (torch is not None and isinstance(exc, torch.OutOfMemoryError))


def _is_module(model: Any) -> bool:
    torch = sys.modules.get("torch")  # if torch is not loaded, there are no modules
    return torch is not None and isinstance(model, torch.nn.Module)


def _size(loaded: Loaded) -> int:
    return cache.held_bytes(loaded.model)
