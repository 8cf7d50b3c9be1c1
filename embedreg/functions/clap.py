"""The `clap` function: recordings and texts in one vector space, with the CLAP models of the transformers library.

A recording that is longer than the model's input, ten seconds, is embedded by a fixed rule, where transformers draws at
random (docs/audio.md). Source: Wu et al. 2023, "Large-scale Contrastive Language-Audio Pretraining".
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from embedreg.audio.opening import MAX_RATE, MIN_RATE, open_audio
from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.errors import CallError, ConfigError
from embedreg.runtime.hardware import onednn
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image.clip import Clip
from embedreg.runtime.image.execute import PictureModel
from embedreg.runtime.local.pair import LocalPairFunction
from embedreg.runtime.models import integrity, weights
from embedreg.runtime.models.folders import broken, read_object
from embedreg.runtime.text.truncation import Truncate
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ClapEmbeddings"]

EXTRA = "clap"
_WIDTH = 512  # of CLAP's own default configuration
_PREPROCESSOR = "preprocessor_config.json"
_FUSED = "fusion"
# What the configuration may ask for: it may be untrusted, and sets how much is computed for each recording.
_LIMITS = {
    "sampling_rate": (MIN_RATE, MAX_RATE),
    "feature_size": (1, 512),
    "hop_length": (16, 2**14),
    "fft_window_size": (16, 2**14),
    "max_length_s": (1, 60),
}
_CHOICES = {"truncation": (_FUSED, "rand_trunc"), "padding": ("repeatpad", "repeat", "pad")}


class ClapEmbeddings(LocalPairFunction):
    """Embeddings of recordings and texts, in one space, with a CLAP model.

    A query that is a `str` is a text; bytes and a `pathlib.Path` are a recording. Vectors have unit length.

    Attributes:
        model_name: a model of the hub, or a folder.
        revision: a branch, tag or commit of the hub; None for the one that is cached, else the newest.
        source_type: the meaning of a string in a source column: "audio", a path or URL; or "text".
        others: as those of `open-clip`.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "clap"
    traits: ClassVar[Traits] = Traits(
        modality="audio+text",
        requires=("transformers", "torch", "soundfile", "soxr"),
        extra=EXTRA,
        retry=False,  # a local failure is not transient
        window=1024,  # rows per call: a recording takes longer than an image
        concurrency=2,  # callers share the runtime's workers, so that a query does not wait for a whole table
    )

    model_name: str = "laion/clap-htsat-unfused"
    revision: str | None = None
    device: str = "auto"  # inherited, as others below: declared again for their order in declarations and listings
    batch_size: int = Field(default=64, ge=1)
    source_type: Literal["audio", "text"] = "audio"
    truncate: Truncate = "warn"
    num_threads: int | None = Field(default=None, ge=1)
    normalize: ClassVar[bool] = True  # type: ignore[misc]  # no field: the library scales them itself
    precision: ClassVar[Precision] = "float32"  # type: ignore[misc]  # no field: others have not been tried

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        folder = None if self.from_metadata else weights.absolute_folder(self.raw_fields()["model_name"])
        if folder is not None:
            self.model_name = folder

    def ndims(self) -> int:
        """Return the width of the vectors, from the model's configuration."""
        if self._ndims is None:
            self._ndims = _width(self._files().path)
        return int(self._ndims)

    def vector_traits(self) -> dict[str, Any]:
        """Return the traits of the vectors: the library scales them to unit length."""
        return {"dtype": "float32", "normalized": True, "metric": "cosine"}

    # -- the model --------------------------------------------------------------------------------------------------

    def _path(self) -> str:
        return self.model_name

    def _model_name(self) -> str:
        return self.model_name

    def _find_files(self, *, download: bool) -> weights.ResolvedModel:
        return self._resolved(self.model_name, self.revision, download=download)

    def weights_key(self) -> tuple[Hashable, ...]:
        """Return the model's folder."""
        files = self._files()
        return "clap", str(files.path), files.stamp() if files.origin == "local" else 0

    def load(self, device: str) -> Clap:
        """Load the model with its library."""
        files = self._files()
        own = files.origin == "local" and not self.from_metadata
        integrity.check_safe(files.path, self.model_name, code=False, pickles=own, revision=self.revision)
        return _load(files.path, self.model_name, device, own=own)

    def _opened(self, model: PictureModel, value: Any, from_query: bool) -> np.ndarray:
        rate = self._loaded().features.rate
        return model.prepare(open_audio(value, rate=rate, from_query=from_query))

    def prepare(self, model: Clap, samples: Any) -> np.ndarray:
        """Convert samples at the model's rate to what `Features.of` returns."""
        return model.features.of(samples)

    def forward(self, model: Clap, batch: Any) -> Any:
        """Run the audio tower."""
        return model.embed_recordings(batch)

    def _try(self, model: Clap, on: str) -> None:
        """Do nothing: there is one precision."""


class Clap(Clip):
    """A `ClapModel` on a device; see `Clip`.

    Attributes:
        features: what its recordings go through.
    """

    def __init__(self, model: Any, tokenizer: Any, features: Features, device: str) -> None:
        self._init(model, tokenizer, None, device, model.dtype)  # type: ignore[arg-type]  # it embeds no images
        self.features = features

    def embed_recordings(self, batch: Any) -> Any:
        """Run the audio tower on b prepared recordings, (b, c, f + 1, m): (b, d) float32, of unit length."""
        longer = batch[:, :1, -1, 0] > 0
        return _pooled(self.model.get_audio_features(input_features=batch[:, :, :-1], is_longer=longer)).float()

    def tower(self, tower: Literal["visual", "textual"], tensors: tuple[Any, ...]) -> Any:
        """Run the text tower: (b, d)."""
        ids, mask = tensors
        return _pooled(self.model.get_text_features(input_ids=ids, attention_mask=mask))

    def tokens(self, texts: list[str]) -> tuple[tuple[Any, ...], np.ndarray]:
        """Tokenize texts: two of (b, t) int64, and (b,) bool, the texts that exceed the limit of tokens."""
        import numpy as np

        limit = self.max_tokens()
        with self._lock:
            whole = self.tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
            made = self.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return (made["input_ids"], made["attention_mask"]), np.fromiter((len(ids) > limit for ids in whole), bool)

    def max_tokens(self) -> int:
        """Return the model's context: its positions begin behind the one of padding."""
        config = self.model.config.text_config
        return int(config.max_position_embeddings) - int(config.pad_token_id or 0) - 1


def _pooled(made: Any) -> Any:
    return getattr(made, "pooler_output", made)  # before transformers 5, the vectors themselves


class Features:
    """What a CLAP model hears of a recording: spectrograms, as its `ClapFeatureExtractor` makes them.

    That draws the parts of a long recording at random, and marks a random one of a batch as long if none is. Here the
    parts are the middle ones of those that it draws from, and a recording is long if it is.

    Attributes:
        rate: samples per second.
        fused: whether the model takes four spectrograms: of the whole, scaled to its input, and of three parts.
    """

    def __init__(self, extractor: Any) -> None:
        audio = attempt_import_or_raise("transformers.audio_utils", "transformers", extra=EXTRA)
        self.rate, self.fused = int(extractor.sampling_rate), extractor.truncation == _FUSED
        self.most, self.padding = int(extractor.nb_max_samples), str(extractor.padding)
        self.hop, self.window = int(extractor.hop_length), int(extractor.fft_window_size)
        self._filters = extractor.mel_filters if self.fused else extractor.mel_filters_slaney
        self._hann, self._spectrogram = audio.window_function(self.window, "hann"), audio.spectrogram

    def of(self, samples: np.ndarray) -> np.ndarray:
        """Return the spectrograms of t samples, t at least 1.

        Returns:
            (c, f + 1, m) float32: c of 1 or, fused, 4; f frames of m numbers; the last frame is 1 if the recording is
            longer than the model's input and c is 4, else 0.
        """
        import numpy as np

        longer = len(samples) > self.most
        if longer and not self.fused:
            start = (len(samples) - self.most) // 2
            samples = samples[start : start + self.most]
        mel = self._mel(samples if longer else self._padded(samples))
        frames = self.most // self.hop + 1
        longer = longer and len(mel) > frames
        parts = self._parts(mel, frames) if longer and self.fused else [mel] * (4 if self.fused else 1)
        made = np.zeros((len(parts), frames + 1, mel.shape[1]), np.float32)
        made[:, :-1] = parts
        made[:, -1] = longer and self.fused
        return made

    def _padded(self, samples: np.ndarray) -> np.ndarray:
        import numpy as np

        times = self.most // len(samples)
        if self.padding == "repeat":
            samples = np.tile(samples, times + 1)[: self.most]
        elif self.padding == "repeatpad":
            samples = np.tile(samples, times)
        return np.pad(samples, (0, self.most - len(samples)))

    def _mel(self, samples: np.ndarray) -> np.ndarray:
        """Return the spectrogram of samples, in decibels: (f, m) float32."""
        made: np.ndarray = self._spectrogram(
            samples,
            self._hann,
            frame_length=self.window,
            hop_length=self.hop,
            power=2.0,
            mel_filters=self._filters,
            log_mel="dB",
        ).T
        return made

    def _parts(self, mel: np.ndarray, frames: int) -> list[np.ndarray]:
        """Return the whole of a long spectrogram, scaled, and a part of each third: four of (f, m)."""
        import numpy as np
        import torch

        whole = torch.from_numpy(np.ascontiguousarray(mel))[None, None]
        scaled = torch.nn.functional.interpolate(
            whole, size=[frames, mel.shape[1]], mode="bilinear", align_corners=False
        )
        thirds = np.array_split(np.arange(len(mel) - frames + 1), 3)
        starts = [int(third[len(third) // 2]) if len(third) else 0 for third in thirds]
        return [scaled[0, 0].numpy(), *(mel[start : start + frames] for start in starts)]


# -- files -------------------------------------------------------------------------------------------------------------


def _width(folder: Path) -> int:
    """Return the width of the vectors, from the model's configuration.

    Raises:
        ConfigError: it is not that of a CLAP.
    """
    config = read_object(folder / "config.json")
    if config.get("model_type") != "clap":
        raise ConfigError(
            f"a model of the kind {config.get('model_type')!r} is not a CLAP.", "model_name='laion/clap-htsat-unfused'"
        )
    width = config.get("projection_dim", _WIDTH)
    if isinstance(width, bool) or not isinstance(width, int) or not 0 < width <= MAX_NDIMS:
        raise broken(folder / "config.json")
    return width


def _load(folder: Path, name: str, device: str, *, own: bool) -> Clap:
    """Load a model in eval mode, from files that contain only data.

    Args:
        name: the model's name in messages.
        own: whether the user's own code names the folder, so that pickled weights may load.
    Raises:
        ConfigError: its preprocessing is of another kind. CallError: it cannot be loaded.
    """
    _check_preprocessing(folder)
    transformers = attempt_import_or_raise("transformers", extra=EXTRA)
    options = {} if own else {"use_safetensors": True}
    try:
        model = transformers.ClapModel.from_pretrained(str(folder), local_files_only=True, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        extractor = transformers.ClapFeatureExtractor.from_pretrained(str(folder), local_files_only=True)
    except Exception as exc:
        raise CallError(
            f"the model {name!r} cannot be loaded: {type(exc).__name__}: {exc}",
            "check its files and your versions with `embedreg doctor`",
        ) from exc
    features = Features(extractor)
    if bool(model.config.audio_config.enable_fusion) is not features.fused:
        raise _other_preprocessing(folder)
    model = model.float().to(device).eval()
    onednn.use_onednn(model)
    return Clap(model, tokenizer, features, device)


def _check_preprocessing(folder: Path) -> None:
    """Raise ConfigError if the settings of a model's recordings are not those of a CLAP."""
    config: Any = read_object(folder / _PREPROCESSOR)
    config = config or read_object(folder / "processor_config.json").get("feature_extractor")
    config = config if isinstance(config, dict) else {}
    for name, (least, most) in _LIMITS.items():
        value = config.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _other_preprocessing(folder)
    if not config or any(config.get(name, allowed[0]) not in allowed for name, allowed in _CHOICES.items()):
        raise _other_preprocessing(folder)


def _other_preprocessing(folder: Path) -> ConfigError:
    return ConfigError(
        f"{_PREPROCESSOR} of {folder.name} describes another preprocessing than CLAP's.", "use another model"
    )
