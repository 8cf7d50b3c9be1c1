"""Recordings that tests encode, and a tiny CLAP that hears them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile

from tests.functions.conftest import _tokenizer

RATE, SECONDS, WIDTH = 8000, 2, 16  # of the tiny model


def samples(seed: int, seconds: float = 0.5, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """Return tones of a seed's own pitch over a little noise: (t, channels) float32, or (t,) of one channel."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    made = np.empty((len(time), channels), np.float32)
    for channel in range(channels):
        pitch = rng.uniform(100, 1500)
        made[:, channel] = 0.4 * np.sin(2 * np.pi * pitch * time * (1 + 0.2 * time))
        made[:, channel] += 0.02 * rng.standard_normal(len(time))
    return made[:, 0] if channels == 1 else made


def encoded(values: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """Return samples as a file, by libsndfile's names of formats."""
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def recording(seed: int, seconds: float = 0.5) -> bytes:
    """Return a recording as a WAV file at the tiny model's rate."""
    return encoded(samples(seed, seconds))


def clap(folder: Path, *, fused: bool = False, seed: int = 5) -> Path:
    """Save a CLAP with random weights, as transformers saves it; its input is two seconds at 8 kHz."""
    import torch
    from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig

    tokenizer = _tokenizer(64)
    text = ClapTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=65,  # one is that of padding
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    audio = ClapAudioConfig(
        spec_size=128,
        window_size=4,
        depths=(1, 1),
        num_attention_heads=(1, 2),
        patch_embeds_hidden_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        enable_fusion=fused,
        fusion_type=None,
    )
    torch.manual_seed(seed)
    config = ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=WIDTH)
    model = ClapModel(config)
    with torch.no_grad():  # small random weights would make the vectors of all recordings alike
        for each in model.parameters():
            each.mul_(3.0 if each.dim() > 1 else 1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ClapFeatureExtractor(
        sampling_rate=RATE,
        hop_length=160,
        max_length_s=SECONDS,
        fft_window_size=256,
        frequency_max=4000,
        truncation="fusion" if fused else "rand_trunc",
    ).save_pretrained(folder)
    return folder
