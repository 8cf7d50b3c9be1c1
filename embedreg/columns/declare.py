"""Declarations of a column's life: of a new column with its digests, and of other functions for the same vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.declaration import codec, drift, templates
from embedreg.declaration import digest as digests
from embedreg.declaration.entries import Entry
from embedreg.declaration.quantization import KEY as QUANTIZATION
from embedreg.declaration.quantization import quantizer_of, record_of
from embedreg.embedding import quantizing
from embedreg.inspection import locate
from embedreg.registry import get_registry
from embedreg.support import strict_json
from embedreg.support.display import plain

__all__ = ["bound_like", "calibrated", "columns_of", "differing", "dropped_with", "entry_for", "rebuilt", "repointed"]
__all__ += ["settings_of"]

_SHOWN = 60  # characters of a value


def entry_for(config: EmbeddingFunctionConfig, *, digest: bool, sources: Iterable[Any] = ()) -> Entry:
    """Return the entry of a new column, with its probe; this loads the model.

    Args:
        config: its declaration.
        digest: whether it names a column of row digests.
        sources: the source column in parts, from which ranges are learnt where the declaration needs some.
    Raises:
        ConfigError: the function cannot be declared. CallError: the call failed.
    """
    drift.learn(config.function, {})
    item = codec.entry_of(quantizing.learn_from(config, sources))
    if digest:
        item["model"][codec.RESERVED][digests.KEY] = digests.column_name(config.vector_column)
    return _entry(item)


def calibrated(entry: Entry, sources: Iterable[Any]) -> Entry:
    """Return the entry of a column with its ranges, learnt where they are needed and not known.

    Args:
        sources: as `entry_for`.
    """
    quantizer = quantizer_of(entry.reserved)
    if quantizer is None or quantizer.known:
        return entry
    made = quantizing.learn_from(rebuilt(entry), sources)
    return entry if made.ranges is None else entry.recording({QUANTIZATION: record_of(made.ranges)})


def bound_like(old: Entry, function: EmbeddingFunction, vector: str | None = None) -> EmbeddingFunctionConfig:
    """Return a declaration of another function for the values of a column, or of one like it.

    Args:
        vector: the name of a column like it, whose ranges are its own; None for the column itself.
    """
    stored, template = quantizer_of(old.reserved), templates.stored(old)
    return function.bind(
        old.source_column,
        vector or old.vector_column,
        template=None if template is None else template.text,
        dtype=None if stored is None else stored.dtype,
        ranges=None if stored is None or vector is not None else stored.ranges,
    )


def repointed(old: Entry, function: EmbeddingFunction) -> Entry:
    """Return the declaration of another function for the same vectors, with their recorded properties."""
    item = codec.entry_of(bound_like(old, function))
    names = "probe", "identity", digests.KEY, "dtype", templates.KEY, QUANTIZATION
    kept = {name: old.reserved[name] for name in names if name in old.reserved}
    if (before := old.reserved.get(digests.MADE_BY, old.reserved.get("fingerprint"))) is not None:
        kept[digests.MADE_BY] = before  # the digests of the rows keep it
    item["model"][codec.RESERVED] = {**item["model"][codec.RESERVED], **kept}
    return _entry({**item, **old.extra})


def rebuilt(entry: Entry) -> EmbeddingFunctionConfig:
    """Rebuild the function of a declaration, under the trust rules.

    Raises:
        EmbedregError: it cannot be rebuilt, or needs a grant.
    """
    return get_registry().parse_functions({codec.KEY: f"[{entry.raw}]"})[entry.vector_column]


def settings_of(entry: Entry) -> dict[str, str]:
    """Return the settings in a declaration, each as one printable line, with secrets redacted."""
    shown = locate.shown_config(entry)
    return {plain(name, _SHOWN): plain(value, _SHOWN) for name, value in shown.items() if value is not None}


def differing(old: Entry, new: Entry) -> str:
    """Return the settings that two declarations of one function do not share, on one line; "" for other functions."""
    if old.name != new.name:
        return ""
    one, two = settings_of(old), settings_of(new)
    names = [name for name in {**one, **two} if one.get(name) != two.get(name)]
    return ", ".join(f"{name}={two.get(name, 'none')} instead of {one.get(name, 'none')}" for name in names)


def columns_of(entry: Entry) -> tuple[str, ...]:
    """Return the columns of a declaration's vectors and digests."""
    digest = digests.column_of(entry.reserved)
    return (entry.vector_column, *([digest] if digest is not None else []))


def dropped_with(entry: Entry) -> tuple[str, ...]:
    """Return the columns that go with a declared column: of vectors, of digests, of a template's texts."""
    texts = () if templates.stored(entry) is None else (entry.source_column,)
    return (*columns_of(entry), *texts)


def _entry(item: Any) -> Entry:
    [made] = codec.entries({codec.KEY: f"[{strict_json.dumps(item)}]"})
    return made
