"""A model's tokenizer, from `tokenizer.json`, with what the transformers library would change in it.

That library rebuilds the tokenizers of some classes from `tokenizer_config.json` and ignores parts of `tokenizer.json`.
Where the two files disagree, the tokens would differ from the library's, so such a model is not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from embedreg.runtime.models import folders
from embedreg.runtime.text.light.settings import Settings, Unsupported
from embedreg.support.imports import attempt_import_or_raise

__all__ = ["check", "load", "prompt_length", "read"]

EXTRA = "light"
_FILE = "tokenizer.json"
# The class of each architecture's tokenizer where tokenizer_config.json names none.
_DEFAULTS = {
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "gte": "XLMRobertaTokenizer",
    "modernbert": "TokenizersBackend",
    "mpnet": "MPNetTokenizer",
    "nomic_bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "t5": "T5Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
_NAMED = ("bos_token", "cls_token", "eos_token", "mask_token", "pad_token", "sep_token", "unk_token")
_ENDLESS = 10**9  # the library's value for no limit is larger


def check(folder: Path, model_type: str) -> None:
    """Raise Unsupported if the library would tokenize in another way than `tokenizer.json` states."""
    config = Settings(folders.read_object(folder / "tokenizer_config.json"), "tokenizer_config.json")
    saved = folders.read_object(folder / _FILE)
    if not isinstance(saved.get("model"), dict):
        raise Unsupported(f"it has no {_FILE}")
    for name in ("auto_map", "chat_template", "add_bos_token", "add_eos_token", "split_special_tokens"):
        if config.values.get(name):
            raise Unsupported(f"its tokenizer_config.json has {name}")
    if any(folder.glob("chat_template*")) or any(folder.glob("processor_config.json")):
        raise Unsupported("it has a chat template or a processor")
    config.only("padding_side", "right")
    config.only("truncation_side", "right")
    if (saved.get("truncation") or {}).get("direction", "Right") != "Right":
        raise Unsupported("its tokenizer truncates on the left")
    if (saved.get("padding") or {}).get("direction", "Right") != "Right":
        raise Unsupported("its tokenizer pads on the left")
    given = config.values.get("tokenizer_class")
    kind = str(given or _DEFAULTS[model_type]).removesuffix("Fast")
    if model_type == "modernbert":  # its class on the hub is known to be wrong, and is not used
        kind = "TokenizersBackend"
    if kind not in _CHECKS:
        raise Unsupported(f"its tokenizer is a {kind[:60]!r}")
    if not _CHECKS[kind](config, saved):
        raise Unsupported(f"its {_FILE} and its tokenizer_config.json do not agree")
    listed = config.values.get("added_tokens_decoder")
    if listed:
        stored = {str(token.get("id")): _plain(token) for token in saved.get("added_tokens") or []}
        if not isinstance(listed, dict) or stored != {number: _plain(token) for number, token in listed.items()}:
            raise Unsupported(f"its {_FILE} and its tokenizer_config.json have other added tokens")


def read(folder: Path, own: Settings, positions: int | None, table: int | None) -> int | None:
    """Return the maximum number of tokens of a text, special tokens included; None if there is no limit.

    Args:
        own: the configuration of the sentence-transformers module.
        positions: the tokens that the model has positions for; None for any number.
        table: `max_position_embeddings` of the model's configuration.
    Raises:
        Unsupported: the model has fewer positions.
    """
    if own.values.get("max_seq_length") is not None:
        limit: int | None = own.size("max_seq_length")
    else:
        given = folders.read_object(folder / "tokenizer_config.json").get("model_max_length")
        limits = [int(each) for each in (given, table) if isinstance(each, int | float) and 0 < each < _ENDLESS]
        limit = min(limits, default=None)
    if positions is not None and (limit is None or limit > positions):
        raise Unsupported(f"it takes {limit or 'any number of'} tokens, and has {positions} positions")
    return limit


def load(folder: Path, *, limit: int | None, lower: bool = False, plain: bool = False) -> Any:
    """Return a `tokenizers.Tokenizer` without padding.

    Args:
        limit: the maximum number of tokens of a text; None for none.
        lower: whether texts are put into lower case first.
        plain: whether everything is used as stored, as for static models.
    """
    library = attempt_import_or_raise("tokenizers", extra=EXTRA)
    try:
        made = library.Tokenizer.from_file(str(folder / _FILE))
    except Exception as exc:  # the library raises plain Exceptions
        raise folders.broken(folder / _FILE) from exc
    made.no_padding()
    if plain:
        return made
    saved = folders.read_object(folder / _FILE)
    known = {token.get("content") for token in saved.get("added_tokens") or []}
    for name in _special(folder):
        if name not in known and made.token_to_id(name) is not None:
            made.add_special_tokens([name])
    if lower and not _lowers(saved.get("normalizer")):
        parts = [library.normalizers.Lowercase(), *([] if made.normalizer is None else [made.normalizer])]
        made.normalizer = library.normalizers.Sequence(parts)
    if limit is None:
        made.no_truncation()
    else:
        made.enable_truncation(limit)
    return made


def prompt_length(tokenizer: Any, folder: Path, prompt: str) -> int:
    """Return the number of tokens that a prompt has at the start of a text, as sentence-transformers counts them."""
    found = tokenizer.encode(prompt)
    special = {tokenizer.token_to_id(name) for name in _special(folder)}
    return len(found.ids) - (found.ids[-1] in special if found.ids else 0)


def _special(folder: Path) -> list[str]:
    """Return the special tokens that have a name in the tokenizer's configuration."""
    config = folders.read_object(folder / "tokenizer_config.json")
    found = [config.get(name) for name in _NAMED]
    texts = [each.get("content") if isinstance(each, dict) else each for each in found]
    return [each for each in texts if isinstance(each, str)]


def _plain(token: Any) -> tuple[Any, ...] | None:
    if not isinstance(token, dict):
        return None
    return token.get("content"), *(bool(token.get(name)) for name in ("lstrip", "normalized", "rstrip", "single_word"))


def _parts(normalizer: Any) -> Iterator[dict[str, Any]]:
    """Yield the single normalizers of a stored one."""
    if isinstance(normalizer, dict):
        inner = normalizer.get("normalizers")
        if isinstance(inner, list):
            for each in inner:
                yield from _parts(each)
        else:
            yield normalizer


def _lowers(normalizer: Any) -> bool:
    return any(part.get("type") == "Lowercase" or part.get("lowercase") is True for part in _parts(normalizer))


# -- what the library rebuilds, by class: whether it is what is stored -------------------------------------------------


def _as_stored(_config: Settings, _saved: dict[str, Any]) -> bool:
    return True


def _word_pieces(config: Settings, saved: dict[str, Any]) -> bool:
    expected = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": config.flag("tokenize_chinese_chars", True),
        "strip_accents": config.values.get("strip_accents"),
        "lowercase": config.flag("do_lower_case", True),
    }
    model = saved["model"]
    return (
        saved.get("normalizer") == expected
        and saved.get("pre_tokenizer") == {"type": "BertPreTokenizer"}
        and model.get("type", "WordPiece") == "WordPiece"
        and model.get("continuing_subword_prefix", "##") == "##"
        and model.get("max_input_chars_per_word", 100) == 100
    )


def _bytes(config: Settings, saved: dict[str, Any]) -> bool:
    before = saved.get("pre_tokenizer") or {}
    return (
        saved.get("normalizer") is None
        and before.get("type") == "ByteLevel"
        and before.get("add_prefix_space") is config.flag("add_prefix_space", False)
        and before.get("use_regex", True) is True
    )


def _pieces(config: Settings, saved: dict[str, Any]) -> bool:
    """Compare Unigram tokenizers: the library keeps the character map, and splits at white space."""
    if not config.flag("add_prefix_space", True):
        return False
    before = saved.get("pre_tokenizer") or {}
    inner = before.get("pretokenizers") or []
    kinds = [each.get("type") for each in inner if isinstance(each, dict)]
    if before.get("type") != "Sequence" or kinds != ["WhitespaceSplit", "Metaspace"]:
        return False
    space = inner[1]
    prefix = space.get("prepend_scheme", "always") == "always" and space.get("add_prefix_space", True) is True
    if space.get("replacement", "▁") != "▁" or not prefix:
        return False
    kinds = [part.get("type") for part in _parts(saved.get("normalizer"))]
    # a `Replace` after the map joins spaces, at which the text is split anyway
    return kinds in ([], ["Precompiled"], ["Precompiled", "Replace"]) and saved["model"].get("type") == "Unigram"


_CHECKS: dict[str, Callable[[Settings, dict[str, Any]], bool]] = {
    "BertTokenizer": _word_pieces,
    "DistilBertTokenizer": _word_pieces,
    "MPNetTokenizer": _word_pieces,
    "PreTrainedTokenizer": _as_stored,
    "PreTrainedTokenizerFast": _as_stored,
    "RobertaTokenizer": _bytes,
    "T5Tokenizer": _pieces,
    "TokenizersBackend": _as_stored,
    "XLMRobertaTokenizer": _pieces,
}
