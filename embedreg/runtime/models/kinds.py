"""What a model folder is made for: dense vectors, vectors of tokens or of images of pages, or sparse vectors."""

from __future__ import annotations

from pathlib import Path

from embedreg.core.fields import MAX_NDIMS
from embedreg.errors import ConfigError
from embedreg.runtime.models.folders import (
    ARTIFACT,
    DENSE,
    MULTI,
    PAGES,
    PYLATE,
    SPARSE,
    STANFORD,
    architectures,
    broken,
    is_plain,
    read_object,
    safetensors_header,
)

__all__ = ["files_beside", "kind_of", "plain_width", "refuse_other_kinds"]

_KINDS = {
    DENSE: ("it returns one vector for each text", "embedreg.get('sentence-transformers') reads it"),
    MULTI: ("it returns one vector for each token", "embedreg.get('late-interaction') reads it"),
    PAGES: ("it returns vectors of images of pages", "embedreg.get('colpali') reads it"),
    SPARSE: ("it returns one weight for each word of its vocabulary", "embedreg.get('splade') reads it"),
    "CrossEncoder": (
        "it scores pairs of texts",
        "sentence_transformers.CrossEncoder reads it, to rerank search results",
    ),
    "transformer": (
        "it has no layer that makes vectors of its hidden states",
        "embedreg.get('sentence-transformers') or embedreg.get('huggingface') reads it",
    ),
}
_MADE = {
    DENSE: "dense vectors",
    MULTI: "vectors of tokens",
    PAGES: "vectors of images of pages",
    SPARSE: "sparse vectors",
}
_RETRIEVAL_DIM = 128  # the default of transformers' ColPali, ColQwen2 and ColModernVBert


def kind_of(folder: Path) -> str:
    """Return the class of the library that a model was made for, or another name; "transformer" if it has no head."""
    saved = read_object(folder / "config_sentence_transformers.json").get("model_type")
    own = read_object(folder / "config.json").get("sentence_transformers")
    if saved in (None, DENSE) and isinstance(own, dict) and "activation_fn" in own:
        return "CrossEncoder"  # it does not save config_sentence_transformers.json
    if saved == PYLATE:
        return MULTI
    if saved is not None or (folder / "modules.json").is_file():
        return str(saved or DENSE)
    if STANFORD in architectures(folder):
        return MULTI
    if any(each.endswith(PAGES) for each in architectures(folder)):
        return PAGES
    return SPARSE if any(each.endswith("ForMaskedLM") for each in architectures(folder)) else "transformer"


def refuse_other_kinds(folder: Path, name: str, wanted: str = DENSE) -> None:
    """Raise ConfigError for a model of another class of the library, which would return useless vectors.

    Args:
        wanted: what is to read it: `DENSE`, `MULTI`, `PAGES` or `SPARSE`. A plain transformer is read as dense, with
            the mean of its hidden states; the others would add a layer of random weights.
    Raises:
        ConfigError: it is not of that class.
    """
    kind = kind_of(folder)
    stated = read_object(folder / "config_sentence_transformers.json").get("model_type")
    if kind == wanted or (wanted == DENSE and stated is None and kind != "CrossEncoder"):
        return
    if wanted == PAGES and kind == MULTI and not is_plain(folder):
        return  # the library saved it with its modules
    what, hint = _KINDS.get(kind, ("a model of another kind", "use the library that saved it"))
    raise ConfigError(f"the model {name!r} is a {stated or kind}: {what}, not {_MADE[wanted]}.", hint)


def files_beside(folder: Path) -> tuple[str, ...]:
    """Return the names of files beside a model's modules that change its vectors: settings of a Stanford ColBERT."""
    return (ARTIFACT,) if STANFORD in architectures(folder) else ()


def plain_width(folder: Path, kind: str) -> int | None:
    """Return the width of a model that has no `modules.json`, as the library reads it; None if it is not determined.

    Args:
        kind: `MULTI` or `SPARSE`.
    Raises:
        ConfigError: files that cannot be read.
    """
    config = read_object(folder / "config.json")
    if kind == SPARSE:
        width = config.get("vocab_size")
    elif STANFORD in architectures(folder):
        file = folder / "model.safetensors"
        try:
            width = safetensors_header(file)["linear.weight"]["shape"][0] if file.is_file() else None
        except (LookupError, TypeError) as exc:
            raise broken(file) from exc
    else:
        width = config.get("embedding_dim", _RETRIEVAL_DIM)
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or not 0 < width <= MAX_NDIMS):
        raise broken(folder / "config.json")
    return width
