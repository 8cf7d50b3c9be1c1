"""A small CLIP that was trained on coloured shapes and their captions, saved as open_clip saves models.

Training it takes half a minute, so its weights are kept in float16: `python -m tests.tiny_clip` trains it anew, until
it distinguishes fresh pictures, and stores them. Test processes that run at the same time share one folder, which
pytest's cache keeps until this file, the weights or a library changes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    import torch

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 40),
    "blue": (40, 60, 220),
    "yellow": (235, 220, 40),
    "purple": (150, 40, 170),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
CAPTIONS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]

SIDE = 32
CONFIG: dict[str, Any] = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": SIDE, "patch_size": 8, "width": 96, "head_width": 32, "layers": 3},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic", "resize_mode": "shortest"}

WEIGHTS = Path(__file__).parent / "fixtures" / "tiny_clip.safetensors"
BATCH = 96
MAX_STEPS = 1500
GOOD = 0.98  # of fresh pictures get their own caption: when to stop
CHECK_EVERY = 50


def draw(caption: str, chance: random.Random, side: int = SIDE) -> Image.Image:
    """Draw what a caption says, at a place, in a size and on a dark ground of its own."""
    _, colour, shape = caption.split()
    scale = 4  # drawn larger and shrunk, so that edges are smooth
    ground = tuple(chance.randrange(0, 60) for _ in range(3))
    picture = Image.new("RGB", (scale * side, scale * side), ground)
    radius = chance.uniform(0.26, 0.4) * scale * side
    x, y = (chance.uniform(radius, scale * side - radius) for _ in range(2))
    fill = tuple(max(0, min(255, value + chance.randrange(-20, 21))) for value in COLOURS[colour])
    paint(ImageDraw.Draw(picture), shape, x, y, radius, fill)
    return picture.resize((side, side), Image.Resampling.BOX)


def paint(on: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: tuple[int, ...]) -> None:
    """Paint one shape around a point."""
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        on.ellipse(box, fill)
    elif shape == "ring":
        on.ellipse(box, outline=fill, width=round(radius * 0.35))
    elif shape == "square":
        on.rectangle((x - radius * 0.8, y - radius * 0.8, x + radius * 0.8, y + radius * 0.8), fill)
    elif shape == "triangle":
        corners = [
            (x + radius * math.sin(turn), y - radius * math.cos(turn))
            for turn in (0, 2 * math.pi / 3, -2 * math.pi / 3)
        ]
        on.polygon(corners, fill)
    else:
        thin = radius * 0.3
        on.rectangle((x - radius, y - thin, x + radius, y + thin), fill)
        on.rectangle((x - thin, y - radius, x + thin, y + radius), fill)


def pictures(count: int, seed: int, side: int = SIDE) -> tuple[list[str], list[Image.Image]]:
    """Draw `count` pictures of each caption; another seed gives other pictures."""
    chance = random.Random(seed)
    captions = [caption for caption in CAPTIONS for _ in range(count)]
    return captions, [draw(caption, chance, side) for caption in captions]


def png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file's content."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(picture: Image.Image, quality: int = 90, **options: Any) -> bytes:
    """Return a picture as a JPEG file's content."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def tiny_clip(shared: Path) -> Path:
    """Return the folder of the trained model, saving it if no process has yet.

    Args:
        shared: a folder that all processes of the run see, or of several runs.
    """
    from filelock import FileLock

    versions = [version(name) for name in ("numpy", "open-clip-torch", "pillow", "torch")]
    sources = Path(__file__).read_bytes() + WEIGHTS.read_bytes()
    made_by = hashlib.sha256(sources + repr(versions).encode()).hexdigest()
    folder, mark = shared / "tiny-clip", shared / "tiny-clip.sha256"
    with FileLock(str(shared / "tiny-clip.lock"), timeout=900):
        if not mark.is_file() or mark.read_text() != f"{made_by} {_digest(folder)}":
            shutil.rmtree(folder, ignore_errors=True)
            save(trained(), folder)
            mark.write_text(f"{made_by} {_digest(folder)}")
    return folder


def _digest(folder: Path) -> str:
    """Return a hash of the files of a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def save(model: Any, folder: Path) -> None:
    """Save a model as a folder that open_clip loads by `local-dir:`."""
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / "open_clip_model.safetensors"))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}))


def save_tokenizer(folder: Path) -> None:
    """Put the vocabulary of open_clip's own tokenizer into a folder, as models of the hub have it."""
    from open_clip.tokenizer import SimpleTokenizer

    own = SimpleTokenizer()
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    tokens = {named.get(token, token): number for token, number in own.encoder.items()}
    merges = [" ".join(pair) for pair, _ in sorted(own.bpe_ranks.items(), key=lambda each: each[1])]
    content = {"model": {"type": "BPE", "vocab": tokens, "merges": merges}}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def untrained() -> Any:
    """Return the model with random weights, the same each time."""
    import torch
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    return CLIP(CONFIG["embed_dim"], CLIPVisionCfg(**CONFIG["vision_cfg"]), CLIPTextCfg(**CONFIG["text_cfg"]))


def trained() -> Any:
    """Return the model with the stored weights; tokens that no caption has keep their random ones."""
    import torch
    from safetensors.torch import load_file

    model, stored = untrained(), load_file(WEIGHTS)
    tokens, words = stored.pop("tokens"), stored.pop("token_embedding.weight")
    missing, unexpected = model.load_state_dict({name: each.float() for name, each in stored.items()}, strict=False)
    assert missing == ["token_embedding.weight"], missing
    assert not unexpected, unexpected
    with torch.no_grad():
        model.token_embedding.weight[tokens.long()] = words.float()
    return model.eval()


def train() -> dict[str, torch.Tensor]:
    """Return the weights of a trained model in float16, and its tokens.

    The accuracy on fresh pictures is at least `GOOD` unless `MAX_STEPS` run out.
    """
    import torch
    from open_clip import get_tokenizer

    model = untrained()
    tokens = get_tokenizer("ViT-B-32", context_length=CONFIG["text_cfg"]["context_length"])(CAPTIONS)
    # Only the few tokens of the captions are trained: the optimizer would go through all 49,408 in every step. In
    # their order, since the end of a text is its largest token.
    vocabulary, tokens = tokens.unique(return_inverse=True)
    few = model.token_embedding.weight.detach()[vocabulary]
    model.token_embedding = torch.nn.Embedding.from_pretrained(few, freeze=False)
    images, labels = tensors(200, seed=1)
    fresh, fresh_labels = tensors(8, seed=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    chance = np.random.default_rng(0)
    for step in range(1, MAX_STEPS + 1):
        rows = torch.from_numpy(chance.choice(len(images), BATCH, replace=False))
        model.train()
        # Against all captions, each of which several pictures of a batch share.
        logits = model.logit_scale.exp().clamp(max=100) * features(model, images[rows]) @ words(model, tokens).T
        loss = torch.nn.functional.cross_entropy(logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY == 0:
            model.eval()
            with torch.inference_mode():
                guessed = (features(model, fresh) @ words(model, tokens).T).argmax(dim=1)
            if (guessed == fresh_labels).float().mean() >= GOOD:
                break
    weights = {name: each.half().contiguous() for name, each in model.state_dict().items()}
    return {**weights, "tokens": vocabulary.to(torch.int32)}


def features(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Embed images: (n, d), of unit length."""
    return model.encode_image(images, normalize=True)


def words(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Embed captions: (n, d), of unit length."""
    return model.encode_text(tokens, normalize=True)


def tensors(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures as the model takes them, and the numbers of their captions."""
    import torch

    captions, drawn = pictures(count, seed)
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in drawn])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(PREPROCESS[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std, torch.tensor([CAPTIONS.index(caption) for caption in captions])


if __name__ == "__main__":
    from safetensors.torch import save_file

    save_file(train(), WEIGHTS)
