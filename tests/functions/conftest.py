"""Tiny models with random weights and a fixed seed, saved as sentence-transformers saves them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WIDTH = 32
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?-_()'/"


def _tokenizer(max_length: int, causal: bool = False) -> Any:
    """Letters as word pieces, so that every text has tokens of its own."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if not causal:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_length,
    )


def _plain(folder: Path, causal: bool = False) -> Path:
    """Save a plain Hugging Face model: BERT, or a causal GPT-2."""
    import torch
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

    tokenizer = _tokenizer(64, causal)
    torch.manual_seed(11)
    if causal:
        config = GPT2Config(
            vocab_size=len(tokenizer), n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3
        )
        model: Any = GPT2Model(config)
    else:
        model = BertModel(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _t5(folder: Path) -> Path:
    """Save a T5 encoder, whose tokenizer adds an end token and nothing in front."""
    import torch
    from tokenizers import processors
    from transformers import T5Config, T5EncoderModel

    tokenizer = _tokenizer(128, causal=True)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", 3)]
    )
    torch.manual_seed(13)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 2}
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=3, **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _build(kind: str, base: Path) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Dense,
        LayerNorm,
        Normalize,
        Pooling,
        Router,
        StaticEmbedding,
        Transformer,
    )

    def static(width: int) -> Any:
        return StaticEmbedding(_tokenizer(64), embedding_dim=width)

    torch.manual_seed(7)
    prompts = None
    if kind == "mean":
        modules = [Transformer(str(_plain(base))), Pooling(WIDTH, "mean"), Normalize()]
    elif kind == "cls-dense":
        modules = [Transformer(str(_plain(base))), Pooling(WIDTH, "cls"), Dense(WIDTH, 16)]
        prompts = {"query": "query: ", "document": "passage: "}
    elif kind == "causal":
        modules = [Transformer(str(_plain(base, causal=True))), Pooling(WIDTH, "lasttoken")]
    elif kind == "two-pools":
        modules = [Transformer(str(_plain(base))), Pooling(WIDTH, ("cls", "mean")), LayerNorm(2 * WIDTH)]
    elif kind == "instructor":  # without `include_prompt`, as a folder that is not on the hub
        modules = [Transformer(str(_t5(base))), Pooling(16, "mean"), Dense(16, 12, bias=False), Normalize()]
    elif kind == "static":
        modules = [static(24)]
    elif kind == "routed":
        modules = [Router.for_query_document([static(20)], [static(20)])]
    else:
        raise ValueError(kind)
    return SentenceTransformer(modules=modules, prompts=prompts, device="cpu")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a tiny model by its kind.

    "mean", "cls-dense" (with prompts), "causal", "two-pools", "instructor", "static", "routed", or "plain" (no
    modules.json).
    """
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("tiny") / kind
            if kind == "plain":
                made[kind] = _plain(folder)
            else:
                _build(kind, folder.with_name("base")).save(str(folder), create_model_card=False)
                made[kind] = folder
        return made[kind]

    return get
