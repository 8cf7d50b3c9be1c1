"""`open_image`: open bytes, paths, URLs, PIL images or arrays as upright RGB images, within limits.

A bad image raises a `RowError`, which never fails the other rows. Pillow's global state is not changed, and its
warnings are suppressed: the limits are checked here, for each image.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from embedreg.errors import ConfigError, RowError
from embedreg.images import memory
from embedreg.images.png_text import without_text
from embedreg.media import allowances
from embedreg.media.allowances import ImagePolicy
from embedreg.media.kinds import IMAGE
from embedreg.media.reading import content_of
from embedreg.support.forks import ForkSafeLock
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

__all__ = ["open_image"]

ROWS = 64  # rows of pixels that are scaled at a time
MAX_SCANS = 64  # of a progressive JPEG: each scan processes every pixel; real files have about ten
_MODULES = {  # Pillow's own search for plug-ins imports some fifty modules
    "BMP": "BmpImagePlugin",
    "GIF": "GifImagePlugin",
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "TIFF": "TiffImagePlugin",
    "WEBP": "WebPImagePlugin",
}
_OTHERS = (  # the first bytes of files that are often mistaken for images, and their description
    (rb"\s*<(!DOCTYPE html|html|head|body)", "an HTML page, not an image"),
    (rb"\s*<(svg|[?!].*<svg)", "an SVG drawing, not a raster image"),
    (rb"%PDF", "a PDF document, not an image"),
    (rb"%!PS", "a PostScript document, not an image"),
    (rb".{4}ftyp(heic|heix|mif1|hevc)", "an HEIC image, which is not supported"),
    (rb".{4}ftypavi[fs]", "an AVIF image, whose format is not among those allowed"),
    (rb"version https://git-lfs", "a pointer to a file in Git LFS, not the file itself"),
)
# EXIF orientation -> the `PIL.Image.Transpose` that makes the image upright.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ORIENTATION = 0x0112
_ORIENTATION_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow finds the orientation
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})


def open_image(
    value: Any,
    *,
    draft: tuple[int, int] | None = None,
    from_query: bool = False,
    policy: ImagePolicy | None = None,
) -> Image:
    """Open an image: its first frame, upright, as RGB.

    Colours are those of `image.convert("RGB")`, as in open_clip: transparency is dropped, not blended with a
    background. 16-bit greyscale is scaled down, not clipped.

    Args:
        value: bytes of an image file; a PIL image; an array (h, w), (h, w, 1) or (h, w, 3 or 4) of uint8, uint16, bool
            or floats from 0 to 1; a Path; a str that names a path, a `file:` URL or an http(s) URL.
        draft: the size, (w, h) in pixels, to which the caller will shrink the image. A JPEG of twice that size or more
            may be decoded at a half, a quarter or an eighth, but never smaller than this.
        from_query: whether the value comes from the user rather than from data: a Path may then be anywhere.
        policy: what may be read, and the limits; None for the current policy of `allow_images`.
    Returns:
        A loaded `PIL.Image.Image` of mode RGB; an input that already is one may be returned itself.
    Raises:
        RowError: the image is not available, cannot be decoded, or is not allowed.
        MissingExtraError: Pillow is not installed. ConfigError: Pillow does not know a format of the policy.
    """
    import numpy as np

    pil = attempt_import_or_raise("PIL.Image", "pillow", extra="images")
    policy = policy if policy is not None else allowances.current_policy()
    if isinstance(value, pil.Image):
        return _from_pil(value, policy)
    if isinstance(value, np.ndarray):
        return _from_array(value, policy)
    return _decode(content_of(value, policy, IMAGE, from_query=from_query), policy, draft)


# -- bytes -------------------------------------------------------------------------------------------------------------


def _decode(data: bytes, policy: ImagePolicy, draft: tuple[int, int] | None) -> Image:
    """Decode the bytes of an image file."""
    if not data:
        raise RowError("the image is empty: it has no bytes")
    with _quiet():
        try:
            pixels, orientation = _loaded(without_text(data), policy, draft)
            return _upright(pixels.convert("RGB") if pixels.mode == "L" else pixels, orientation)
        except (RowError, ConfigError, MemoryError):
            raise
        except Exception as exc:  # noqa: BLE001 (any error of a decoder is the fault of the bytes)
            raise RowError(_why(exc)) from None


def _loaded(data: bytes, policy: ImagePolicy, draft: tuple[int, int] | None) -> tuple[Image, int]:
    """Return the pixels as RGB or grey, and the EXIF orientation; the encoded image is released."""
    image = _opened(data, policy)
    _within(image.size, policy)
    memory.refuse_costly(image, policy, data)
    _shrunk(image, data, draft)
    image.load()  # before reading the orientation: some plug-ins rotate the image themselves
    _within(image.size, policy)  # the header may have declared a smaller size
    return (_grey(image) if _is_wide(image) else _rgb(image)), _orientation(image)


def _opened(data: bytes, policy: ImagePolicy) -> ImageFile:
    """Read the header, and return a PIL image whose pixels are not decoded yet."""
    from PIL import Image, UnidentifiedImageError

    for name in policy.formats:
        if name in _MODULES:
            importlib.import_module(f"PIL.{_MODULES[name]}")
    try:
        return Image.open(io.BytesIO(data), formats=policy.formats)
    except UnidentifiedImageError:
        found = (text for start, text in _OTHERS if re.match(start, data[:1024], re.DOTALL | re.IGNORECASE))
        formats = ", ".join(policy.formats)
        raise RowError(f"it is {next(found, f'not an image of an allowed format ({formats})')}") from None
    except KeyError as exc:
        if exc.args[0] in policy.formats:
            raise ConfigError(f"unknown image format {exc}.", f"formats={allowances.FORMATS}") from None
        raise


def _within(size: tuple[int, int], policy: ImagePolicy) -> None:
    """Raise if the image has too many pixels or too long a side, before anything is decoded."""
    width, height = size
    shape = f"the image has {width} x {height} pixels"
    if width < 1 or height < 1:
        raise RowError(shape)
    if width * height > policy.max_pixels:
        raise RowError(f"{shape}, over max_pixels={policy.max_pixels:,}")
    if max(width, height) > policy.max_aspect * min(width, height):
        raise RowError(f"{shape}, one side over max_aspect={policy.max_aspect:g} times the other")


def _shrunk(image: ImageFile, data: bytes, draft: tuple[int, int] | None) -> None:
    """Set a JPEG to be decoded at a fraction of its size, and refuse one with too many scans."""
    if not hasattr(image, "draft") or image.format not in ("JPEG", "MPO"):
        return
    if data.count(b"\xff\xda") > MAX_SCANS:  # inside a scan each 0xff is followed by a zero
        raise RowError(f"the JPEG has more than {MAX_SCANS} scans")
    if draft is not None:
        (width, height), (least_w, least_h) = image.size, draft[::-1] if _orientation(image) >= 5 else draft
        for scale in (8, 4, 2):
            # Only exact divisors: else the last row and column would represent fewer pixels than the others.
            if not (width % scale or height % scale) and width >= scale * least_w and height >= scale * least_h:
                image.draft(None, (width // scale, height // scale))
                return


def _orientation(image: Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 if there is none or it is invalid."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (broken EXIF may raise any error; the pixels are not affected)
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    if orientation not in _UPRIGHT:
        return image
    image = image.transpose(Transpose[_UPRIGHT[orientation]])
    for key in _ORIENTATION_KEYS:  # otherwise the image would be rotated again by the next reader
        image.info.pop(key, None)
    return image


def _why(exc: Exception) -> str:
    """Describe a decoder's error, without the bytes that some of them quote."""
    kind, text = type(exc).__name__, str(exc)
    if kind == "DecompressionBombError":
        return "the image has more pixels than PIL.Image.MAX_IMAGE_PIXELS allows"
    # Pillow's plug-ins raise OSError and SyntaxError for everything: only the message distinguishes these
    if isinstance(exc, EOFError) or re.search(r"truncated|not enough|premature|too small|unexpected end", text, re.I):
        return "the image is truncated"
    if "unsupported" in text or isinstance(exc, NotImplementedError):  # which plug-ins raise for some compressions
        return "the image is of a kind that Pillow cannot decode"
    return f"the image is damaged ({kind} from its decoder)"


# -- colours -----------------------------------------------------------------------------------------------------------


def _rgb(image: Image) -> Image:
    """Convert a loaded image to RGB as `image.convert("RGB")` does, except where that would clip."""
    if image.mode == "RGB":
        return (
            image.copy() if getattr(image, "is_animated", False) else image
        )  # a copy does not hold the file of all frames
    if _is_wide(image):
        return _grey(image).convert("RGB")
    if image.mode == "I":
        raise RowError(
            "the image has pixels of 32-bit integers, which have no agreed range: convert it to 8 or 16 bits"
        )
    if "transparency" in image.info and image.mode == "P":
        image = image.copy()  # it may belong to the caller
        del image.info["transparency"]  # it does not affect colours, and converting would warn
    return image.convert("RGB")


def _is_wide(image: Image) -> bool:
    """Return whether an image is greyscale of more than 8 bits with a known range."""
    return image.mode in _SIXTEEN_BITS or image.mode == "F" or (image.mode == "I" and image.format == "PNG")


def _grey(image: Image) -> Image:
    """Convert 16-bit or float greyscale to 8 bits, a few rows at a time, since all at once would double the memory."""
    import numpy as np
    from PIL.Image import fromarray

    width, height = image.size
    made = np.empty((height, width), np.uint8)
    for row in range(0, height, ROWS):
        some = np.asarray(image.crop((0, row, width, min(row + ROWS, height))))
        made[row : row + ROWS] = _eight_bits(some.astype(np.uint16) if image.mode == "I" else some)
    return fromarray(made)


def _from_pil(image: Image, policy: ImagePolicy) -> Image:
    """Convert an image that the caller has opened to upright RGB, at its current frame."""
    _within(image.size, policy)
    with _lock_of(image), _quiet():
        try:
            memory.refuse_costly(image, policy)
            image.load()
            return _upright(_rgb(image), _orientation(image))
        except (RowError, MemoryError):
            raise
        except Exception as exc:  # noqa: BLE001 (the caller opened it, and its bytes are untrusted)
            raise RowError(_why(exc)) from None


def _from_array(array: np.ndarray, policy: ImagePolicy) -> Image:
    """Convert an array of pixels to RGB."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = ": put the channels last" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise RowError(f"invalid shape {array.shape}: expected (h, w), (h, w, 1), (h, w, 3) or (h, w, 4){hint}")
    _within((array.shape[1], array.shape[0]), policy)
    return _from_numbers(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _from_numbers(array: np.ndarray) -> Image:
    """Convert (h, w), (h, w, 3) or (h, w, 4) numbers, whose dtype determines their range, to RGB."""
    import numpy as np
    from PIL import Image

    if array.dtype == np.uint8:
        made = array
    else:
        made = np.empty(array.shape, np.uint8)
        for row in range(0, len(array), ROWS):
            made[row : row + ROWS] = _eight_bits(array[row : row + ROWS])
    return Image.fromarray(np.ascontiguousarray(made)).convert("RGB")


def _eight_bits(array: np.ndarray) -> np.ndarray:
    """Scale numbers, whose dtype determines their range, to 8 bits."""
    import numpy as np

    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return (array >> 8).astype(np.uint8)  # the high byte, as in Pillow
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1.001):  # tolerates overshoot of resizing, but not NaN
            raise RowError("the image has floats outside 0 to 1, which have no agreed range")
        made: np.ndarray = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
        return made
    raise RowError(f"an image of {array.dtype} has no agreed range: use uint8, uint16, or floats from 0 to 1")


# -- threads and warnings ----------------------------------------------------------------------------------------------

_quiet_lock = ForkSafeLock()
_quiet_now = 0
# The entry that `warnings.filterwarnings("ignore", module=...)` would add.
_IGNORE: Any = ("ignore", None, Warning, re.compile(r"PIL\b"), 0)
_pil_locks = [ForkSafeLock() for _ in range(64)]


def _lock_of(image: Image) -> ForkSafeLock:
    """Return the lock of a PIL image: an image that is loaded lazily must be loaded by one thread."""
    return _pil_locks[id(image) // 64 % len(_pil_locks)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignore Pillow's warnings while any thread decodes.

    Not with `warnings.catch_warnings`: with several threads it restores the filters of another one, and it resets the
    registry of warnings that were shown.
    """
    global _quiet_now
    filters: Any
    with _quiet_lock:
        _quiet_now += 1
        filters = warnings.filters
        if _IGNORE not in filters:
            filters.insert(0, _IGNORE)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_now -= 1
            filters = warnings.filters
            while not _quiet_now and _IGNORE in filters:
                filters.remove(_IGNORE)
