"""Loads an open_clip model, and runs its image and text towers with the library's preprocessing and tokenizer."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from embedreg.errors import CallError, ConfigError
from embedreg.runtime.hardware import onednn, workers
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image.clip_config import CONFIG, EXTRA, FOLDER_PREFIX, library
from embedreg.runtime.image.clip_files import ClipFiles
from embedreg.runtime.image.preprocess import Preprocess
from embedreg.runtime.models.folders import read_object
from embedreg.runtime.text.execute import Made
from embedreg.support.forks import ForkSafeLock
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

__all__ = ["Clip", "load"]

log = logging.getLogger("embedreg")

_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # the library's names
_SAFE_TORCH = (2, 6)  # before it a crafted checkpoint could run code under weights_only=True (CVE-2025-32434)
_TEXTS = 16  # texts of a forward pass on a CPU; each is padded to the model's whole context
_SHOWN = 400  # characters of the library's error message that are shown


class Clip:
    """An open_clip model on a device.

    Attributes:
        device: where it is, as `device.resolve` returns it.
        side: width and height of its input images, in pixels.
    """

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess, device: str, dtype: Any) -> None:
        self._init(model, tokenizer, preprocess, device, dtype)
        size = model.visual.image_size
        self.side = int(max(size) if isinstance(size, tuple | list) else size)

    def _init(self, model: Any, tokenizer: Any, preprocess: Preprocess, device: str, dtype: Any) -> None:
        self.model, self.tokenizer, self.preprocess = model, tokenizer, preprocess
        self.device, self.dtype = device, dtype
        self.towers: Any = None
        self._lock = ForkSafeLock()  # a Hugging Face tokenizer stores its padding settings: one thread at a time

    def with_towers(self, towers: Any) -> Self:
        """Return the model with other towers: a function of the tower's name and its tensors."""
        made = copy.copy(self)
        made.towers = towers
        return made

    def embed_images(self, batch: Any, normalize: bool) -> Any:
        """Run the image tower on b prepared images: (b, d) float32, on the model's device."""
        made = self._run("visual", (self.preprocess.tensor(batch).to(self.dtype),)).float()
        return _unit(made) if normalize else made

    def _run(self, tower: Literal["visual", "textual"], tensors: tuple[Any, ...]) -> Any:
        return (self.tower if self.towers is None else self.towers)(tower, tensors)

    def tower(self, tower: Literal["visual", "textual"], tensors: tuple[Any, ...]) -> Any:
        """Run a tower of the library's model: (b, d).

        Args:
            tensors: (b, 3, h, w) pixels, or what `tokens` returns.
        """
        return {"visual": self.model.encode_image, "textual": self.model.encode_text}[tower](*tensors)

    def tokens(self, texts: list[str]) -> tuple[tuple[Any, ...], np.ndarray]:
        """Tokenize texts: one or more of (b, t) int64, and (b,) bool, the texts that exceed the limit of tokens."""
        import numpy as np

        with self._lock:
            tokens = self.tokenizer(texts)
            rows = list(range(len(texts)))
            if not hasattr(self.tokenizer, "tokenizer"):  # the library's own pads with zeros: such a text fits
                rows = [row for row in rows if tokens[row, -1]]
            counts = _count_tokens(self.tokenizer, [texts[row] for row in rows])
        cut = np.zeros(len(texts), bool)
        cut[rows] = np.asarray(counts, int) > tokens.shape[1]
        return (tokens,), cut

    def embed_texts(self, texts: list[str], normalize: bool) -> Made:
        """Embed texts in this thread."""
        import torch

        tokens, cut = self.tokens(texts)
        with torch.inference_mode():
            made = self._run("textual", tuple(each.to(self.device) for each in tokens)).float()
            return Made((_unit(made) if normalize else made).cpu().numpy(), cut)

    def embed_many_texts(
        self, texts: list[str], normalize: bool, *, batch_size: int, threads: int | None
    ) -> Iterator[tuple[int, Made]]:
        """Embed texts in batches, and yield the first row of each with its vectors, in any order."""
        batch_size = min(batch_size, _TEXTS) if self.device == "cpu" else batch_size
        starts = range(0, len(texts), batch_size)

        def work(start: int) -> tuple[int, Made]:
            return start, self.embed_texts(texts[start : start + batch_size], normalize)

        if self.device != "cpu" or len(starts) == 1:
            yield from (workers.alone(work, start) for start in starts)
        else:
            yield from workers.run(work, starts, threads or workers.worker_threads())

    def max_tokens(self) -> int:
        """Return the maximum number of tokens that the model reads of a text, special tokens included."""
        return int(self.tokenizer.context_length)

    def parameters(self) -> Iterator[Any]:
        """Yield its weights."""
        yield from self.model.parameters()

    def buffers(self) -> Iterator[Any]:
        """Yield its buffers."""
        yield from self.model.buffers()


def _count_tokens(tokenizer: Any, texts: list[str]) -> list[int]:
    """Return the number of tokens of each text before truncation, special tokens included."""
    if not texts:
        return []
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        return [len(tokenizer.encode(text)) + 2 for text in texts]  # plus the start and end tokens
    clean = getattr(tokenizer, "clean_fn", None) or library().tokenizer.get_clean_fn("canonicalize")  # SigLIP's
    clips = getattr(tokenizer, "tokenizer_mode", None) == "clips"
    found = inner([clean(text) for text in texts], add_special_tokens=not clips, truncation=False, verbose=False)
    return [len(ids) + 3 * clips for ids in found["input_ids"]]  # this mode adds start, end and class tokens


def _unit(vectors: Any) -> Any:
    import torch

    return torch.nn.functional.normalize(vectors, dim=-1)


# -- loading -----------------------------------------------------------------------------------------------------------


def load(name: str, files: ClipFiles, device: str, precision: Precision) -> Clip:
    """Load a model in eval mode with the library's code, from files that contain only data.

    Args:
        name: the name that `files` were resolved from.
    Raises:
        ConfigError: the weights contain more than tensors, or do not fit the model.
        CallError: the library cannot load the model.
    """
    import torch

    open_clip = library()
    _check_pickle(files)
    source = name.replace("/", "-") if files.folder is None else f"{FOLDER_PREFIX}{files.folder}"
    # create_model would read these from the tag, which is not passed: the weights are loaded from their file
    overrides = {key: value for key, value in files.tag.items() if key != "size"}
    try:
        with _quiet_root_logger():
            model = open_clip.create_model(
                source,
                load_weights=False,
                pretrained_text=False,
                precision=_NAMES[precision],
                device=device,
                force_preprocess_cfg=overrides,
            )
            open_clip.load_checkpoint(model, str(files.weights), weights_only=True)
            tokenizer = _tokenizer(open_clip, name, files)
    except Exception as exc:
        raise _failure(name, files, exc) from exc
    _warn_of_activation(open_clip, name, files)
    transforms = attempt_import_or_raise("open_clip.transform", "open-clip-torch", extra=EXTRA)
    transform = transforms.image_transform_v2(transforms.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    dtype = torch.float32 if precision == "float32" else getattr(torch, precision)
    onednn.use_onednn(model)
    return Clip(model.eval(), tokenizer, Preprocess(transform), device, dtype)


def _check_pickle(files: ClipFiles) -> None:
    """Refuse pickled weights where torch's restricted unpickling has a known hole."""
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if files.weights.suffix != ".safetensors" and version < _SAFE_TORCH:
        raise ConfigError(
            f"torch {torch.__version__} cannot load {files.weights.name!r} safely: it is a pickle.",
            "pip install 'torch>=2.6', or use weights in safetensors",
        )


def _tokenizer(open_clip: Any, name: str, files: ClipFiles) -> Any:
    if files.folder is None:
        return open_clip.get_tokenizer(name.replace("/", "-"))
    text = read_object(files.folder / CONFIG)["model_cfg"]["text_cfg"]
    if not text.get("hf_tokenizer_name"):
        return open_clip.get_tokenizer(f"{FOLDER_PREFIX}{files.folder}")
    # as get_tokenizer makes it; for a hub model that has none, the tokenizer of another repository
    own = files.origin == "local" or files.own_tokenizer()
    return open_clip.tokenizer.HFTokenizer(
        str(files.folder) if own else text["hf_tokenizer_name"],
        context_length=text.get("context_length", 77),
        tokenizer_mode=text.get("tokenizer_mode"),
        trust_remote_code=False,  # the default would ask at the terminal
        **(text.get("tokenizer_kwargs") or {}),
    )


def _failure(name: str, files: ClipFiles, exc: Exception) -> CallError | ConfigError:
    message = str(exc)
    # for older archives torch raises a RuntimeError with this message
    if isinstance(exc, pickle.UnpicklingError) or "weights_only" in message:
        return ConfigError(
            f"the weights {files.weights.name!r} contain objects other than tensors, which could run code when loaded.",
            "if you trust them, save their state_dict() again: safetensors.torch.save_file(model.state_dict(), "
            "'open_clip_model.safetensors')",
        )
    # torch raises a RuntimeError for wrong shapes; open_clip's resizing of position embeddings an AssertionError
    if "state_dict" in message or isinstance(exc, AssertionError):
        return ConfigError(
            f"the weights {files.weights.name!r} do not fit the model {name!r}: {message[:_SHOWN]}",
            "set name to the model that they were made for",
        )
    return CallError(
        f"the model {name!r} cannot be loaded: {type(exc).__name__}: {message[:_SHOWN]}",
        "check its files and your versions with `embedreg doctor`; embedreg.release() frees memory",
    )


def _warn_of_activation(open_clip: Any, name: str, files: ClipFiles) -> None:
    """Log a warning, as the library does, if the weights were trained with another activation than the model's."""
    if not files.tag:
        return
    wanted = bool(files.tag.get("quick_gelu"))
    if wanted is not bool((open_clip.get_model_config(name.replace("/", "-")) or {}).get("quick_gelu")):
        other = f"{name}-quickgelu" if wanted else name.removesuffix("-quickgelu")
        log.warning(
            "the weights were trained with another activation than that of %s, which stock open_clip uses too; "
            "name=%r is the matching model",
            name,
            other,
        )


class _OpenClipFilter(logging.Filter):
    """Drops messages that open_clip logs to the root logger while it builds a model, such as "no weights loaded"."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname or record.levelno >= logging.ERROR


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Filter open_clip's messages, and add a handler: without one, the first record would install one permanently."""
    root, dropped, handler = logging.getLogger(), _OpenClipFilter(), logging.NullHandler()
    root.addFilter(dropped)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(dropped)
