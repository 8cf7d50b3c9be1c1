"""`ImageFunctionContract`: the contract for functions of images, with further tests that concern only images.

The images are generated, so that only Pillow is needed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedreg.arrow.vectors import Embedded, given_vectors
from embedreg.core.base import EmbeddingFunction
from embedreg.embedding.column import embed_column, embed_query
from embedreg.embedding.table import embed_table
from embedreg.errors import EmbedregError
from embedreg.images import allow_images
from embedreg.support.imports import attempt_import_or_raise
from embedreg.testing.checks import Agreement, flaw, require
from embedreg.testing.contract import EmbeddingFunctionContract

__all__ = ["ImageFunctionContract", "image_file"]

SIZES = ((64, 48), (48, 64), (96, 96), (200, 40), (33, 57))
OPENED = "open rows with embedreg.images.open_image, which accepts all of them and returns an upright RGB image"
ALONE = "return the RowError of open_image instead of that row's vector: return [..., problem, ...]"

# The forms of an image, made from the path of its file.
HOLDERS: dict[str, Callable[[Path], Any]] = {
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "pil": lambda path: _opened(path.read_bytes()),
    "pil-lazy": lambda path: _pil().open(io.BytesIO(path.read_bytes())),
    "array": lambda path: np.asarray(_opened(path.read_bytes())),
    "float-array": lambda path: np.asarray(_opened(path.read_bytes())) / np.float32(255),
    "path": lambda path: path,
    "name": str,
    "url": Path.as_uri,
}
# Kinds of files, compared with the RGB image that Pillow converts them to.
KINDS: dict[str, tuple[str, str]] = {
    "grey": ("L", "PNG"),
    "grey-alpha": ("LA", "PNG"),
    "alpha": ("RGBA", "PNG"),
    "palette": ("P", "PNG"),
    "palette-gif": ("P", "GIF"),
    "bits": ("1", "PNG"),
    "cmyk": ("CMYK", "TIFF"),
    "bmp": ("RGB", "BMP"),
}


def image_file(seed: int = 0, size: tuple[int, int] = SIZES[0], kind: str = "PNG", mode: str = "RGB") -> bytes:
    """Generate an image of smooth colour gradients.

    Args:
        seed: a different image for each seed.
        size: (w, h) in pixels.
        kind, mode: Pillow's names of the format and of the colour mode.
    Returns:
        The bytes of a file.
    """
    return _saved(_picture(seed, size).convert(mode), kind)


def _pil() -> Any:
    return attempt_import_or_raise("PIL.Image", "pillow", extra="images")


def _picture(seed: int, size: tuple[int, int]) -> Any:
    pil = _pil()
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return pil.fromarray(cells).resize(size, pil.Resampling.BICUBIC)


def _saved(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _opened(data: bytes) -> Any:
    image = _pil().open(io.BytesIO(data))
    image.load()
    return image


class ImageFunctionContract(EmbeddingFunctionContract):
    """The requirements on every embedding function of images.

    Subclass it like `EmbeddingFunctionContract`; rows and query are generated, and `inputs` must be bytes of images.
    """

    @pytest.fixture
    def inputs(self) -> list[Any]:
        """Five images as PNG files, of several sizes and proportions; override it for a narrow function."""
        return [image_file(seed, size) for seed, size in enumerate(SIZES)]

    @pytest.fixture
    def folder(self, inputs: list[Any], tmp_path: Path) -> Path:
        """A folder with the inputs as files `0.png`, `1.png` ...; it is not allowed yet."""
        made = tmp_path / "images"
        made.mkdir()
        for number, data in enumerate(inputs):
            (made / f"{number}.png").write_bytes(data)
        return made

    # -- rows -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("holder", HOLDERS)
    def test_images_are_equal_however_they_are_held(
        self, function: EmbeddingFunction, inputs: list[Any], folder: Path, agree: Agreement, holder: str
    ) -> None:
        """Bytes, PIL images, arrays, paths and `file:` URLs of the same images have the same vectors."""
        rows = [HOLDERS[holder](folder / f"{number}.png") for number in range(len(inputs))]
        with allow_images(dirs=[folder]):
            found = _embedded(function, rows, f"rows as {holder}", OPENED)
        agree(found, _embedded(function, inputs, "rows as bytes", OPENED), f"rows as {holder} and as bytes", OPENED)

    def test_images_of_every_kind_may_be_mixed(
        self, function: EmbeddingFunction, inputs: list[Any], folder: Path, agree: Agreement
    ) -> None:
        """A column of images in several forms, and nulls, returns the vectors of its rows in their order."""
        forms = list(HOLDERS.values())
        rows = [forms[number % len(forms)](folder / f"{number}.png") for number in range(len(inputs))]
        rows[-1] = str(folder / f"{len(inputs) - 1}.png")
        with allow_images(dirs=[folder]):
            embedded = embed_column(function, [None, *rows, None])
        require(not embedded.reasons, f"rows in several forms failed: {embedded.reasons}.", OPENED)
        agree(
            embedded.matrix[1:-1].astype(np.float64),
            _embedded(function, inputs, "rows as bytes", OPENED),
            "rows in several forms and as bytes",
            "return vectors in the order of the rows",
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_colours_of_every_kind_are_read(self, function: EmbeddingFunction, agree: Agreement, kind: str) -> None:
        """Images in greyscale, palettes, transparency or CMYK have the vector of their `convert("RGB")`."""
        mode, form = KINDS[kind]
        files = [image_file(seed, mode=mode, kind=form) for seed in range(3)]
        plain = [_saved(_opened(data).convert("RGB"), "PNG") for data in files]
        agree(
            _embedded(function, files, f"{kind} images", OPENED),
            _embedded(function, plain, "RGB images", OPENED),
            f"{kind} images and the same in RGB",
            OPENED,
        )

    def test_images_are_seen_upright(self, function: EmbeddingFunction, agree: Agreement) -> None:
        """An image with an EXIF orientation has the vector of the upright image."""
        pil = _pil()
        upright = [_picture(seed, SIZES[0]) for seed in range(3)]
        exif = pil.Exif()
        exif[0x0112] = 6
        turned = [_saved(image.transpose(pil.Transpose.ROTATE_90), "PNG", exif=exif) for image in upright]
        agree(
            _embedded(function, turned, "images on their side", OPENED),
            _embedded(function, [_saved(image, "PNG") for image in upright], "upright images", OPENED),
            "images on their side and upright",
            OPENED,
        )

    def test_a_bad_image_fails_alone(self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement) -> None:
        """A truncated image, a text and noise have a reason and no vector; the other rows have vectors."""
        bad = [inputs[0][:-40], b"no image at all", np.random.default_rng(0).bytes(500)]
        rows = [inputs[0], bad[0], *inputs[1:], *bad[1:]]
        full = [True, False, *[True] * (len(inputs) - 1), False, False]
        try:
            embedded = embed_column(function, rows)
        except Exception as exc:
            raise flaw(f"a bad image made the whole column fail: {type(exc).__name__}: {exc}.", ALONE) from exc
        require(
            embedded.valid.tolist() == full and sorted(embedded.reasons) == [1, len(rows) - 2, len(rows) - 1],
            f"of {len(rows)} rows {sum(full)} are good, but {int(embedded.valid.sum())} have vectors; "
            f"reasons: {embedded.reasons}.",
            ALONE,
        )
        agree(
            embedded.matrix[full].astype(np.float64),
            _embedded(function, inputs, "good rows", ALONE),
            "good rows among bad ones and alone",
            "return vectors in the order of the rows",
        )

    def test_nothing_is_read_that_was_not_allowed(self, function: EmbeddingFunction, folder: Path) -> None:
        """A path and a URL in data are refused, with the call that would allow them."""
        try:
            embedded = embed_column(function, [str(folder / "0.png"), "http://images.invalid/0.png"])
        except Exception as exc:
            raise flaw(f"a path in data made the column fail: {type(exc).__name__}: {exc}.", ALONE) from exc
        for row, what in enumerate(("a file", "an address")):
            require(
                not embedded.valid[row] and "allow_images" in embedded.reasons.get(row, ""),
                f"{what} that is not allowed: {embedded.reasons.get(row, 'it was read')}.",
                "open rows with embedreg.images.open_image, or fetch them with embedreg.url_retrieve: data may come "
                "from anyone",
            )

    def test_a_table_of_bytes_and_of_paths(
        self, function: EmbeddingFunction, inputs: list[Any], folder: Path, agree: Agreement
    ) -> None:
        """`embed_table` embeds a column of bytes and one of paths as the same vectors."""
        names = [str(folder / f"{number}.png") for number in range(len(inputs))]
        with allow_images(dirs=[folder]):
            by_name = embed_table({"image": names}, function.bind("image", "vector"))
        by_bytes = embed_table({"image": list(inputs)}, function.bind("image", "vector"))
        read = [
            given_vectors(table["vector"].combine_chunks(), function.ndims(), "vector")[0].matrix.astype(np.float64)
            for table in (by_name, by_bytes)
        ]
        agree(read[0], read[1], "a column of paths and one of bytes", OPENED)

    # -- queries ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("holder", [name for name in HOLDERS if name not in ("name", "url")])
    def test_image_queries_are_equal_however_they_are_held(
        self, function: EmbeddingFunction, folder: Path, agree: Agreement, holder: str
    ) -> None:
        """Bytes, a PIL image, an array and a path have the same vector; the user's own path needs no allowance."""
        hint = "open queries with embedreg.images.open_image(query, from_query=True); a str may be a text"
        found = [_query(function, HOLDERS[form](folder / "0.png"), form, hint) for form in (holder, "bytes")]
        agree(found[0], found[1], f"a query as {holder} and as bytes", hint)

    def test_a_bad_image_query_is_told(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """A query that is not a valid image raises an error of embedreg with a reason; it never returns a vector."""
        try:
            embed_query(function, inputs[0][:-40])
        except EmbedregError:
            return
        except Exception as exc:
            raise flaw(f"a truncated image as query gave {type(exc).__name__}: {exc}.", OPENED) from exc
        raise flaw("a truncated image as query gave a vector.", OPENED)


def _embedded(function: EmbeddingFunction, rows: list[Any], what: str, hint: str) -> np.ndarray:
    """Embed rows that can all be embedded, as an engine does: (n, d) float64."""
    try:
        embedded: Embedded = embed_column(function, rows)
    except Exception as exc:
        raise flaw(f"{what} made the column fail: {type(exc).__name__}: {exc}.", hint) from exc
    require(embedded.valid.all(), f"{what} failed: {embedded.reasons}.", hint)
    return embedded.matrix.astype(np.float64)


def _query(function: EmbeddingFunction, query: Any, what: str, hint: str) -> np.ndarray:
    try:
        return np.asarray(embed_query(function, query), np.float64)[None, :]
    except Exception as exc:
        raise flaw(f"a query as {what} failed: {type(exc).__name__}: {exc}.", hint) from exc
