"""Tiny models with random weights: sentence-transformers' `MultiVectorEncoder` and `SparseEncoder`, a ColPali."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.functions.conftest import WIDTH, _plain, _tokenizer

DIMS = 8
TEXTS = ["a cat, on a mat.", "x", "two words " * 30, "!?.,", "the sine of x"]


def multi(folder: Path, **transformer: Any) -> Path:
    """Save a `MultiVectorEncoder` as the library saves it."""
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    torch.manual_seed(5)
    first = Transformer(str(with_mask(_plain(folder / "base"))), document_length=20, **transformer)
    head = Dense(WIDTH, DIMS, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
    modules = [first, head, MultiVectorMask(list(".,!?")), Normalize(module_input_name="token_embeddings")]
    prompts = {"query": "[Q] ", "document": "[D] "}
    model = MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu")
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def pylate(folder: Path) -> Path:
    """Save the model of `multi` as PyLate does: a transformer, a projection, and settings beside them."""
    made = multi(folder)
    settings = json.loads((made / "config_sentence_transformers.json").read_text())
    settings |= {"model_type": "ColBERT", "query_prefix": "[Q] ", "document_prefix": "[D] ", "prompts": {}}
    settings |= {"query_length": 16, "document_length": 24, "do_query_expansion": True, "skiplist_words": [".", "!"]}
    (made / "config_sentence_transformers.json").write_text(json.dumps(settings))
    listed = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    (made / "modules.json").write_text(json.dumps(listed))
    dense = made / "1_Dense" / "config.json"
    config = json.loads(dense.read_text())
    dense.write_text(json.dumps({key: config[key] for key in config if not key.startswith("module_")}))
    own = made / "sentence_bert_config.json"
    own.write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    return made


def stanford(folder: Path) -> Path:
    """Save a ColBERT as Stanford's library does: one file of weights, and `artifact.metadata`."""
    import torch
    from safetensors.torch import load_file, save_file

    made = with_mask(_plain(folder / "model"))
    torch.manual_seed(6)
    weights = {f"bert.{name}": tensor for name, tensor in load_file(made / "model.safetensors").items()}
    weights["linear.weight"] = torch.randn(DIMS, WIDTH)
    save_file(weights, made / "model.safetensors", {"format": "pt"})
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    settings = {"query_maxlen": 12, "doc_maxlen": 18, "attend_to_mask_tokens": False, "mask_punctuation": True}
    (made / "artifact.metadata").write_text(json.dumps({**settings, "query_token_id": "[Q]", "doc_token_id": "[D]"}))
    return made


def with_mask(folder: Path) -> Path:
    """Give a plain model's tokenizer a mask, which expands queries; its id is that of a letter."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = "z"
    tokenizer.save_pretrained(folder)
    return folder


def masked_words(folder: Path) -> Path:
    """Save a BERT with a head for masked words, which the library reads as a SPLADE model."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = _tokenizer(64)
    torch.manual_seed(9)
    size = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sparse(folder: Path) -> Path:
    """Save a `SparseEncoder` as the library saves it, with prompts and a limit of its own."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    first = Transformer(str(masked_words(folder / "base")), transformer_task="fill-mask")
    prompts = {"query": "q: ", "document": "d: "}
    model = SparseEncoder(modules=[first, SpladePooling()], prompts=prompts, device="cpu", max_active_dims=40)
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def routed(folder: Path) -> Path:
    """Save a `SparseEncoder` whose queries need no transformer, only a weight for each word."""
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

    first = Transformer(str(masked_words(folder / "base")), transformer_task="fill-mask")
    tokenizer = _tokenizer(64)
    weight = torch.linspace(0.5, 2, len(tokenizer))
    query = [SparseStaticEmbedding(tokenizer, weight=weight)]
    modules = [Router.for_query_document(query, [first, SpladePooling()])]
    SparseEncoder(modules=modules, device="cpu").save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def colpali(folder: Path) -> Path:
    """Save a ColPali with random weights, as transformers saves it: 9 patches an image."""
    import torch
    from transformers import (
        ColPaliConfig,
        ColPaliForRetrieval,
        ColPaliProcessor,
        GemmaConfig,
        PaliGemmaConfig,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    made, tokenizer = folder / "model", _tokenizer(256, causal=True)
    tokenizer.add_special_tokens({"bos_token": "[CLS]", "eos_token": "[SEP]"})
    images = SiglipImageProcessor(size={"height": 24, "width": 24})
    images.image_seq_length = 9
    processor = ColPaliProcessor(image_processor=images, tokenizer=tokenizer)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = SiglipVisionConfig(image_size=24, patch_size=8, vision_use_head=False, projection_dim=16, **size)
    vocabulary = len(processor.tokenizer)
    text = GemmaConfig(vocab_size=vocabulary, num_key_value_heads=2, head_dim=8, pad_token_id=0, **size)
    whole = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=16,
        image_token_index=processor.image_token_id,
        vocab_size=vocabulary,
    )
    torch.manual_seed(4)
    ColPaliForRetrieval(ColPaliConfig(vlm_config=whole, embedding_dim=DIMS)).save_pretrained(made)
    processor.save_pretrained(made)
    return made
