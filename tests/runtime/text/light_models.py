"""Tiny models with random weights of every architecture that the light back end runs, saved by the libraries."""

from pathlib import Path
from typing import Any

WIDTH = 32
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?-_()'/"
POSITIONS = 64

# model type -> what its configuration has beside the sizes; see `_config`.
ARCHITECTURES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "distilbert",
    "modernbert",
    "t5",
    "nomic_bert",
    "gte",
)


def tokenizer(kind: str) -> Any:
    """Return a tokenizer of letters in the class that the architecture has on the hub."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    if kind in ("bert", "distilbert", "mpnet", "nomic_bert"):
        bert = kind != "mpnet"
        special = (
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] if bert else ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
        )
        pieces = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
        cls = {"distilbert": "DistilBertTokenizer", "mpnet": "MPNetTokenizer"}.get(kind, "BertTokenizer")
        return getattr(transformers, cls)(vocab={piece: number for number, piece in enumerate(pieces)})
    if kind == "roberta":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *letters, "th", "in", "<mask>"]
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        return transformers.RobertaTokenizer(vocab=vocabulary, merges=[("t", "h"), ("i", "n")])
    if kind in ("xlm-roberta", "gte", "t5"):
        special = ["<pad>", "</s>", "<unk>"] if kind == "t5" else ["<s>", "<pad>", "</s>", "<unk>"]
        scored = [(piece, 0.0) for piece in special]
        scored += [(letter, -3.0 - number / 50) for number, letter in enumerate(["▁", *LETTERS, *"äöü"])]
        if kind != "t5":
            return transformers.XLMRobertaTokenizer(vocab=[*scored, ("<mask>", 0.0)])
        return transformers.T5Tokenizer(vocab=scored, extra_ids=0)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    made = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def transformer(kind: str, folder: Path, **more: Any) -> Path:
    """Save a plain model of an architecture, its weights random and its biases too, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModel

    made = tokenizer(kind)
    sizes: dict[str, Any] = {"vocab_size": len(made), "hidden_size": WIDTH, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": POSITIONS + 2}
    if kind == "distilbert":
        sizes = {"vocab_size": len(made), "dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
        sizes["max_position_embeddings"] = POSITIONS
    elif kind == "t5":
        sizes = {"vocab_size": len(made), "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    elif kind == "modernbert":
        sizes |= {"num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
        sizes |= {"bos_token_id": 2, "eos_token_id": 3}
    elif kind not in ("bert", "nomic_bert"):
        sizes |= {"pad_token_id": 1}
    torch.manual_seed(3)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**sizes, **more}))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            spread = 0.02 if "norm" in name.lower() and name.endswith("weight") else 0.25
            weights.add_(torch.randn_like(weights) * spread)
    model.save_pretrained(folder)
    made.model_max_length = POSITIONS
    made.save_pretrained(folder)
    return folder


def model(
    kind: str, folder: Path, after: Any = None, prompts: Any = None, limit: int | None = None, **more: Any
) -> Any:
    """Return a `SentenceTransformer` saved at a folder, its transformer of an architecture.

    Args:
        after: the modules after the transformer; None for mean pooling.
        limit: `max_seq_length`; None for the tokenizer's.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    base = transformer(kind, folder.with_name(f"{folder.name}-base"), **more)
    first = Transformer(str(base), **({} if limit is None else {"max_seq_length": limit}))
    made = SentenceTransformer(modules=[first, *(after or [Pooling(WIDTH)])], prompts=prompts, device="cpu")
    made.save(str(folder), create_model_card=False)
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)
