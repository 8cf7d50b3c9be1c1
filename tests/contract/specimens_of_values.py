"""Functions that break the promises about configurations, secrets and processes, as authors do by mistake."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from embedreg import Traits, register
from embedreg.runtime import cache
from tests.contract.specimens import WIDTH, Good

log = logging.getLogger(__name__)

# -- the configuration ------------------------------------------------------------------------------------------------


@register("specimen-derived")
class DerivesAField(Good):
    """Changes a field on its way in, and again when it is rebuilt."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "prefix": kwargs.get("prefix", "") + ":"})


class CountsCalls(Good):
    """State in a field."""

    calls: int = 0

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().generate_embeddings(texts)


class ByIdentity(Good):
    """Equal to itself alone."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class Swallowing(Good):
    """Ignores unknown arguments."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{key: value for key, value in kwargs.items() if key in type(self).model_fields})


class Forgetful(Good):
    """Its pickle is the class alone."""

    def __reduce__(self) -> Any:
        return type(self), ()


class CarriesWeights(Good):
    """Loads on first use, and pickles what it has loaded."""

    _weights: Any = None

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        self._weights = bytes(100_000)
        return super().generate_embeddings(texts)

    def __reduce__(self) -> Any:
        return _with_weights, (type(self), self._weights)


def _with_weights(cls: type[CarriesWeights], weights: bytes) -> CarriesWeights:
    made = cls()
    made._weights = weights
    return made


class WeightsInAField(Good):
    """What it has loaded is part of its configuration."""

    table: bytes = bytes(2**20)


class EqualsAnything(Good):
    """Compares what it should not."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


class Unregistered(Good):
    """Its author forgot `@register`."""


@register("specimen-impostor")
class Impostor(Good):
    """Its name goes to the class below."""


class Usurper(Good):
    """Takes the name of the class above."""


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says that the name goes to another class: so it should
    register("specimen-impostor")(Usurper)


class SaysItsPath(Good):
    """Its identity is where it lies."""

    def model_identity(self) -> str:
        return "/models/specimen"


# -- secrets ----------------------------------------------------------------------------------------------------------


class TakesTheKeyAside(Good):
    """Keeps the key from the base, which would have refused it."""

    _key: Any = None

    @classmethod
    def create(cls, **config: Any) -> TakesTheKeyAside:
        key = config.pop("api_key", None)
        made = super().create(**config)
        made._key = key
        return made


class ShowsTheKey(Good):
    """A helpful dump of its own; the base cleans the methods that print and serialize, not this one."""

    def safe_model_dump(self) -> dict[str, Any]:
        return {**super().safe_model_dump(), "api_key": self.api_key}


class LogsTheKey(Good):
    """Logs what it sends."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        log.debug("Authorization: Bearer %s", self.api_key)
        return super().generate_embeddings(texts)


class PrintsTheKey(Good):
    """Prints what it sends."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        os.write(1, f"key {self.api_key}\n".encode())
        return super().generate_embeddings(texts)


class RaisesAKeyOfItsOwn(Good):
    """Reads a key that the base does not know of, and repeats it in an error."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"refused: {os.environ['SPECIMEN_KEY']}")


# -- processes --------------------------------------------------------------------------------------------------------


class LoadsForItsWidth(Good):
    """Loads the model to ask it."""

    def ndims(self) -> int:
        return len(cache.get("specimen", lambda: [0] * WIDTH))


class ImportsTorchForItsWidth(Good):
    """Imports the library to ask it."""

    def ndims(self) -> int:
        import torch

        return int(torch.zeros(WIDTH).numel())


class AsksForItsWidth(Good):
    """Asks its server each time."""

    traits: ClassVar[Traits] = Traits(remote=True)
    host: str = "127.0.0.1"
    port: int = 0

    def ndims(self) -> int:
        with socket.create_connection((self.host, self.port), timeout=10):
            return WIDTH


class Salted(Good):
    """Python's `hash()` of a text is another one in each process."""

    def vector(self, text: Any) -> np.ndarray:
        return np.random.default_rng(hash(str(text)) % 2**32).random(WIDTH, np.float32)


def local() -> Good:
    """Make a function that no other process can import."""

    class Local(Good):
        """Defined in a function."""

    return Local()
