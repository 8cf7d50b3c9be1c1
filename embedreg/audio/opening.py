"""`open_audio`: decode bytes, paths or URLs to one channel of samples at a model's rate, within limits.

A bad recording raises a `RowError`, which never fails the other rows. libsndfile decodes, and only what `headers` has
found to be of an allowed format; libsoxr resamples, as librosa does, which transformers loads audio with.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from embedreg.audio import headers
from embedreg.errors import RowError
from embedreg.media import allowances
from embedreg.media.allowances import ImagePolicy
from embedreg.media.kinds import AUDIO
from embedreg.media.reading import content_of
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import numpy as np

__all__ = ["EXTRA", "open_audio"]

EXTRA = "audio"
FRAMES = 2**16  # decoded at a time: memory holds one channel of the recording, whatever its channels
MIN_RATE, MAX_RATE = 1000, 384_000  # Hz; music has 44,100, the highest of studios is 384,000
QUALITY = "HQ"  # of soxr, the default of librosa
# libsndfile's names of what is decoded: the formats that `headers` finds, and the kinds of samples in them. Old
# telephone codecs in WAV files are left out, and so is MPEG layer II.
_PCM = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
_DECODED = {
    "WAV": (("WAV", "WAVEX", "RF64"), _PCM),
    "FLAC": (("FLAC",), _PCM),
    "OGG": (("OGG",), ("VORBIS", "OPUS")),
    "MP3": (("MP3", "MPEG"), ("MPEG_LAYER_III",)),
}
_SLACK = 1152  # frames of an MP3, one of its own, that its decoder may drop at the end
_UNKNOWN = 2**62  # libsndfile's number of frames is higher for a FLAC file whose writer could not go back


def open_audio(
    value: Any,
    *,
    rate: int,
    from_query: bool = False,
    policy: ImagePolicy | None = None,
) -> np.ndarray:
    """Decode a recording: the mean of its channels, at a rate.

    Args:
        value: bytes of a WAV, FLAC, MP3 or Ogg file; a Path; a str that names a path, a `file:` URL or an http(s) URL.
        rate: samples per second of the result.
        from_query: whether the value comes from the user rather than from data: a Path may then be anywhere.
        policy: what may be read, and the limits; None for the current policy of `allow_images`.
    Returns:
        (t,) float32, from -1 to 1 unless the file has floats beyond; of n frames at another rate, ceil(n * rate / own).
    Raises:
        RowError: the recording is not available, cannot be decoded, or is not allowed.
        MissingExtraError: soundfile or soxr is not installed.
    """
    soundfile = attempt_import_or_raise("soundfile", extra=EXTRA)
    if hasattr(value, "shape"):
        raise RowError("an array of samples does not say its rate: store the recording as a WAV or FLAC file")
    policy = policy if policy is not None else allowances.current_policy()
    data = headers.without_tags(content_of(value, policy, AUDIO, from_query=from_query))
    if not data:
        raise RowError("the recording is empty: it has no bytes")
    name = headers.format_of(data, policy.audio_formats)
    headers.refuse_cut(data, name)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check(file, name, policy)
            samples, own = _mono(file, name, policy), int(file.samplerate)
    except (RowError, MemoryError):
        raise
    except Exception as exc:  # noqa: BLE001 (any error of a decoder is the fault of the bytes)
        raise RowError(f"the recording is damaged or truncated ({type(exc).__name__} from its decoder)") from None
    return samples if own == rate else _resampled(samples, own, rate)


def _check(file: Any, name: str, policy: ImagePolicy) -> None:
    """Raise if the header is that of another format, or states a size over a limit."""
    formats, kinds = _DECODED[name]
    if file.format not in formats or file.subtype not in kinds:
        raise RowError(f"the recording is {file.format} with {file.subtype}, which is not decoded: convert it to FLAC")
    if not MIN_RATE <= file.samplerate <= MAX_RATE:
        raise RowError(f"the recording has {file.samplerate:,} samples per second, not {MIN_RATE:,} to {MAX_RATE:,}")
    if file.channels > policy.max_channels:
        raise RowError(f"the recording has {file.channels:,} channels, over max_channels={policy.max_channels:,}")
    seconds, samples = file.frames / file.samplerate, file.frames * file.channels
    if file.frames >= _UNKNOWN:
        raise RowError("the recording does not say how long it is, so that libsndfile cannot decode it: encode it anew")
    if seconds > policy.max_seconds:
        raise RowError(f"the recording has {seconds:,.0f} s, over max_seconds={policy.max_seconds:g}")
    if samples > policy.max_samples:
        raise RowError(f"the recording has {samples:,} samples, over max_samples={policy.max_samples:,}")


def _mono(file: Any, name: str, policy: ImagePolicy) -> np.ndarray:
    """Decode a recording and return the mean of its channels; a header may be wrong, so all limits count here too."""
    import numpy as np

    most = int(min(policy.max_seconds * file.samplerate, policy.max_samples // file.channels))
    parts, frames = [], 0
    while len(block := file.read(FRAMES, dtype="float32", always_2d=True)):
        frames += len(block)
        if frames > most:
            raise RowError(
                f"the recording has over max_seconds={policy.max_seconds:g} or max_samples={policy.max_samples:,}"
            )
        parts.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
    if not frames:
        raise RowError("the recording has no samples")
    if frames < file.frames - (_SLACK if name == "MP3" else 0):
        raise RowError(f"the recording is truncated: it has {frames:,} of {file.frames:,} samples")
    samples = np.concatenate(parts)
    if not np.isfinite(samples).all():
        raise RowError("the recording has samples that are not finite")
    return samples


def _resampled(samples: np.ndarray, own: int, rate: int) -> np.ndarray:
    """Resample one channel, to the length that librosa gives it."""
    import numpy as np

    soxr = attempt_import_or_raise("soxr", extra=EXTRA)
    made = np.asarray(soxr.resample(samples, own, rate, quality=QUALITY), np.float32)
    length = -(-len(samples) * rate // own)
    return made[:length] if len(made) >= length else np.pad(made, (0, length - len(made)))
