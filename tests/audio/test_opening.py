"""Recordings are decoded by content, within limits; what is cut, hostile or something else fails with a reason."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

import embedreg
from embedreg import ImagePolicy, RowError, allow_images
from embedreg.audio import headers, open_audio
from embedreg.errors import ConfigError
from tests.image_servers import ImageServer
from tests.recordings import encoded, samples

STEREO = samples(1, 0.5, 44_100, 2)
KINDS = {  # libsndfile's names of a format and of its samples -> how far they may be from what was encoded
    ("WAV", "PCM_U8"): 1e-2,
    ("WAV", "PCM_16"): 1e-4,
    ("WAV", "PCM_24"): 1e-6,
    ("WAV", "PCM_32"): 1e-6,
    ("WAV", "FLOAT"): 1e-7,
    ("WAV", "DOUBLE"): 1e-7,
    ("WAV", "ULAW"): 3e-2,
    ("WAVEX", "PCM_16"): 1e-4,
    ("RF64", "PCM_16"): 1e-4,
    ("FLAC", "PCM_16"): 1e-4,
    ("FLAC", "PCM_24"): 1e-6,
    ("OGG", "VORBIS"): 0.2,
    ("MP3", "MPEG_LAYER_III"): 0.2,
}


def refusal(value: object, **limits: object) -> str:
    """Why a recording is not opened."""
    with pytest.raises(RowError) as caught:
        open_audio(value, rate=8000, policy=ImagePolicy(**limits))  # type: ignore[arg-type]
    return caught.value.message


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_every_allowed_format_is_decoded(kind: str, subtype: str) -> None:
    """The mean of the channels, of the length that was encoded, as libsndfile itself decodes it."""
    data = encoded(STEREO, 44_100, kind, subtype)
    made = open_audio(data, rate=44_100)
    assert (made.dtype, made.shape) == (np.float32, (len(STEREO),))
    assert np.abs(made - STEREO.mean(axis=1)).max() < KINDS[kind, subtype]
    theirs, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    assert np.array_equal(made, theirs.mean(axis=1))


@pytest.mark.parametrize("own", [8000, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_the_rate_is_the_models(own: int) -> None:
    """Resampled as librosa does: by soxr's HQ, to ceil(n * rate / own) samples."""
    sound = samples(2, 0.3, own)
    made = open_audio(encoded(sound, own, subtype="FLOAT"), rate=48_000)
    assert len(made) == -(-len(sound) * 48_000 // own)
    theirs = soxr.resample(sound, own, 48_000, quality="soxr_hq") if own != 48_000 else sound
    assert np.abs(made[: len(theirs)] - theirs[: len(made)]).max() < 1e-6


def test_opus_and_names_that_lie() -> None:
    """The content decides: an MP3 named .wav, an Ogg of Opus, an ID3 tag in front of either."""
    opus = encoded(samples(3, 0.5, 48_000), 48_000, "OGG", "OPUS")
    assert open_audio(opus, rate=48_000).shape == (24_000,)
    for kind in ("MP3", "FLAC", "WAV"):
        data = encoded(STEREO, 44_100, kind)
        tagged = b"ID3\x04\0\0" + bytes([0, 0, 7, 104]) + b"picture!" * 125 + data  # 7 * 128 + 104 bytes
        assert np.array_equal(open_audio(tagged, rate=44_100), open_audio(data, rate=44_100))


def test_short_and_odd_samples() -> None:
    """One sample is a recording; none, and one that is no number, are not; floats beyond 1 stay."""
    assert open_audio(encoded(np.ones(1), 8000), rate=8000).shape == (1,)
    assert open_audio(encoded(np.ones(1), 8000), rate=48_000).shape == (6,)
    assert "no samples" in refusal(encoded(np.zeros(0), 8000))
    for odd in (np.nan, np.inf, -np.inf, 1e300):
        assert "not finite" in refusal(encoded(np.array([0, odd, 0]), 8000, subtype="DOUBLE"))
    assert open_audio(encoded(np.full(9, 3.0), 8000, subtype="FLOAT"), rate=8000).max() == 3


@pytest.mark.parametrize("kind", ["WAV", "RF64", "WAVEX", "FLAC", "OGG", "MP3"])
def test_a_truncated_recording_is_refused(kind: str) -> None:
    """Wherever it was cut, be it the last bytes: what libsndfile would take for the whole, too."""
    data = encoded(STEREO, 44_100, kind)
    for kept in (30, len(data) // 3, len(data) // 2, len(data) - 700, len(data) - 200):
        assert refusal(data[:kept])
    opus = encoded(samples(3, 0.5, 48_000), 48_000, "OGG", "OPUS")
    assert "truncated" in refusal(opus[: len(opus) // 2])


def _flac_of(total: int) -> bytes:
    """Return a small FLAC whose header says that it has another number of samples."""
    data = encoded(STEREO, 44_100, "FLAC")
    stated = int.from_bytes(data[18:26]) >> 36 << 36 | total
    return data[:18] + stated.to_bytes(8) + data[26:]


def _wav_of(size: int) -> bytes:
    """Return a small WAV whose header says that it has another number of bytes."""
    data = encoded(STEREO, 44_100)
    return data[:40] + struct.pack("<I", size) + data[44:]


HOSTILE: dict[str, tuple[Callable[[], object], str]] = {
    "a FLAC of 433 hours": (lambda: _flac_of(2**36 - 1), "1,558,265 s, over max_seconds=600"),
    "a FLAC of 500 seconds": (lambda: _flac_of(44_100 * 500), "damaged or truncated"),
    "a FLAC of unknown length": (lambda: _flac_of(0), "does not say how long"),
    "a WAV of 2 GiB": (lambda: _wav_of(2**31 - 8), "truncated"),
    "silence that packs well": (lambda: encoded(np.zeros(8000 * 601, "i2"), 8000, "FLAC"), "601 s, over max_seconds"),
    "bytes": (lambda: np.random.default_rng(0).bytes(5000), "not a recording of an allowed format"),
    "zeros": (lambda: bytes(5000), "not a recording"),
    "nothing": (lambda: b"", "no bytes"),
    "a text": (lambda: b"no recording at all", "not a recording"),
    "a page": (lambda: b"<!DOCTYPE html><html>", "an HTML page"),
    "an image": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(50), "an image"),
    "an MP4": (lambda: b"\0\0\0\x18ftypM4A " + bytes(50), "an MP4 file"),
    "a pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "AIFF": (lambda: encoded(STEREO, 44_100, "AIFF"), "an AIFF file"),
    "AU behind a tag": (lambda: b"ID3\4\0\0\0\0\0\0" + encoded(STEREO, 44_100, "AU"), "an AU file"),
    "MATLAB's format": (lambda: encoded(STEREO, 44_100, "MAT5"), "not a recording"),
    "tags without end": (lambda: b"ID3\4\0\0\0\0\0\0" * 20, "more than 8 tags"),
    "ADPCM": (lambda: encoded(STEREO, 44_100, "WAV", "MS_ADPCM"), "WAV with MS_ADPCM, which is not decoded"),
    "a rate of 10 Hz": (lambda: encoded(STEREO, 10), "10 samples per second"),
    "a rate of 1 MHz": (lambda: encoded(STEREO, 1_000_000), "1,000,000 samples per second"),
    "40 channels": (lambda: encoded(np.zeros((9, 40)), 8000), "40 channels, over max_channels=16"),
    "a WAV header alone": (lambda: encoded(STEREO, 8000)[:36], "truncated"),
    "an array": (lambda: STEREO, "does not say its rate"),
    "a number": (lambda: 5, "a int is not a recording"),
    "a blank name": (lambda: "  ", "blank"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_recordings_have_a_reason(name: str) -> None:
    """Refused by its bytes or by its header, or where the decoder finds it wrong."""
    make, said = HOSTILE[name]
    assert said in refusal(make())


def test_random_damage_never_raises_anything_else() -> None:
    """Bytes that are changed at random give samples that are finite, or a reason."""
    chance = np.random.default_rng(4)
    for kind in ("WAV", "FLAC", "OGG", "MP3"):
        whole = np.frombuffer(encoded(STEREO[:8000], 44_100, kind), np.uint8)
        for _ in range(60):
            data = whole.copy()
            places = chance.integers(0, min(len(data), 400) if chance.random() < 0.5 else len(data), 4)
            data[places] = chance.integers(0, 256, 4)
            with contextlib.suppress(RowError):
                assert np.isfinite(open_audio(data.tobytes(), rate=16_000)).all()


def test_limits_hold_and_are_named() -> None:
    """Of seconds, samples, channels and bytes, and of the formats; what the header hides is counted as it comes."""
    data = encoded(STEREO, 44_100)
    assert "over max_seconds=0.4" in refusal(data, max_seconds=0.4)
    assert "44,100 samples, over max_samples=1,000" in refusal(data, max_samples=1000)
    assert "2 channels, over max_channels=1" in refusal(data, max_channels=1)
    assert "over max_bytes=100" in refusal(data, max_bytes=100)
    assert "not a recording of an allowed format (FLAC)" in refusal(data, audio_formats=["flac"])
    for wrong in ({"max_seconds": 0}, {"max_channels": 1.5}, {"max_samples": True}, {"audio_formats": ["AIFF"]}):
        with pytest.raises(ConfigError):
            ImagePolicy(**wrong)  # type: ignore[arg-type]


def test_memory_is_that_of_one_channel() -> None:
    """A file of sixteen channels is mixed as it is decoded."""
    data = encoded(np.zeros((8000 * 60, 16), "i2"), 8000, "WAV")
    tracemalloc.start()
    open_audio(data, rate=8000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8000 * 60 * 4 * 3 + 2**16 * 16 * 4 * 2 + len(data)  # all samples as floats: 31 MB


def test_files_and_hosts_are_those_of_images(tmp_path: Path) -> None:
    """The same allowances, the same refusal of private addresses; a server has to send audio, or data of any kind."""
    data = encoded(samples(5), 8000)
    (tmp_path / "a.wav").write_bytes(data)
    (tmp_path / "b.flac").symlink_to("/etc/hostname")
    message = refusal(str(tmp_path / "a.wav"))
    assert "recordings may not be read from the folder" in message
    assert f"allow_images(dirs=['{tmp_path}'])" in message
    with allow_images(dirs=[tmp_path]):
        assert len(open_audio(str(tmp_path / "a.wav"), rate=8000)) == 4000
        assert len(open_audio((tmp_path / "a.wav").as_uri(), rate=8000)) == 4000
        for name in ("b.flac", "absent.wav", "."):
            with pytest.raises(RowError):
                open_audio(str(tmp_path / name), rate=8000)
    assert len(open_audio(tmp_path / "a.wav", rate=8000, from_query=True)) == 4000
    with ImageServer(data) as server:
        url = f"{server.url()}?kind=audio/x-wav"
        assert "recordings may not be fetched from" in refusal(url)
        assert "not public" in refusal(url, hosts=[server.host])
        assert server.asked == []
        with allow_images(private_hosts=[server.host]):
            assert len(open_audio(url, rate=8000)) == 4000
            assert server.headers["accept"] == "audio/*"
            with pytest.raises(RowError, match="the recording's server sends image/png, not a recording"):
                open_audio(server.url(), rate=8000)


def test_tags_are_counted_in_sevens() -> None:
    """The size of an ID3 tag is that of its standard, whose footer counts too; half a tag stays."""
    assert headers.without_tags(b"ID3\4\0\0\0\0\1\0" + bytes(128) + b"rest") == b"rest"
    assert headers.without_tags(b"ID3\4\0\x10\0\0\0\2" + b"ab" + b"3DI\4\0\x10\0\0\0\2" + b"rest") == b"rest"
    assert headers.without_tags(b"ID3\4") == b"ID3\4"


def test_nothing_heavy_is_loaded_by_the_import(run_python: Callable[..., str]) -> None:
    """The decoder is loaded where a recording is opened."""
    code = (
        "import embedreg.audio, embedreg.audio.headers, sys; print('soundfile' in sys.modules, 'numpy' in sys.modules)"
    )
    assert run_python(code).strip() == "False False"
    assert embedreg.ImagePolicy().audio_formats == ("WAV", "FLAC", "MP3", "OGG")
