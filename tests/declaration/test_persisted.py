"""The persisted form: what is written, and what of a stored declaration is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import SecretStr

import embedreg
from embedreg import register
from embedreg.declaration import codec
from embedreg.errors import (
    ConfigError,
    HardcodedSecretError,
    MetadataError,
)
from embedreg.support import strict_json
from tests.declared import KEY, LENGTHS, Anything, Base, LikeOpenAI, entry, model_of, stored
from tests.fakes import Lengths

# -- what is kept ------------------------------------------------------------------------------------------------------


def test_an_unknown_class_is_kept_byte_for_byte() -> None:
    """Its entry goes through reading, writing and embed_table as it was, odd layout and all."""
    raw = (
        '{ "vector_column":"other" , "name":"not-here","model":{"b":[1.50,  2e3],"a":"\\u00e9"},"source_column":"text"}'
    )
    text = f"[\n {raw} ,{json.dumps(LENGTHS)}]"
    found = embedreg.functions_in({KEY: text.encode()})
    assert codec.encode(found.values(), found.entries.values()).decode().startswith(f"[{raw}, ")
    table = pa.table({"text": ["a"], "other": pa.array([[1.0]], pa.list_(pa.float32(), 1))}, metadata={KEY: text})
    made = embedreg.embed_table(table, Lengths().bind("text", "vector"))
    assert raw in made.schema.metadata[KEY].decode()
    assert set(embedreg.functions_in(made).entries) == {"other", "vector"}


def test_unknown_keys_of_a_declaration_are_kept() -> None:
    """Unknown keys inside `model` and beside it survive a write; the probe joins them; a second one changes nothing."""
    written = json.loads(codec.encode([Lengths(scale=2).bind("text", "vector")]))[0]
    written["model"]["from_the_future"] = {"a": [1]}
    written["comment"] = "mine"
    table = pa.table({"text": ["a"]}, metadata=stored(written))
    assert "from_the_future" in embedreg.functions_in(table).notes[0]
    made = embedreg.embed_table(table)
    [kept] = json.loads(made.schema.metadata[KEY])
    assert kept["comment"] == "mine"
    assert kept["model"].pop("embedreg").items() > written["model"].pop("embedreg").items()
    assert kept["model"] == written["model"]
    again = embedreg.embed_table(made)
    assert again.schema.metadata[KEY] == made.schema.metadata[KEY]


def test_entries_of_another_client_stay_unchanged() -> None:
    """Embedding with a stock entry keeps its bytes: missing fields have that client's meaning."""
    raw = json.dumps([entry("lengths", {"scale": 2.0, "device": "cuda", "max_retries": 3})], indent=2)
    made = embedreg.embed_table(pa.table({"text": ["abc"]}, metadata={KEY: raw}))
    assert made["vector"].to_pylist() == [[6.0, 2.0, 2.0]]
    assert json.loads(made.schema.metadata[KEY]) == json.loads(raw)


def test_a_new_declaration_replaces_the_entry_and_keeps_its_extra_keys() -> None:
    """Another function for a column takes its place; a comment beside the old one stays."""
    table = pa.table({"text": ["abc"]}, metadata=stored(entry("lengths", {"scale": 2.0}, comment="mine")))
    made = embedreg.embed_table(table, Lengths(scale=3).bind("text", "vector"))
    [item] = json.loads(made.schema.metadata[KEY])
    assert (item["comment"], item["model"]["scale"]) == ("mine", 3.0)
    assert made["vector"].to_pylist() == [[9.0, 3.0, 3.0]]


def test_a_later_format_is_read_and_left_unchanged() -> None:
    """An entry of a newer embedreg is used, with a note, and not rewritten."""
    written = json.loads(codec.encode([Lengths().bind("text", "vector")]))[0]
    written["model"]["embedreg"] |= {"format": codec.FORMAT + 1, "new": [1]}
    table = pa.table({"text": ["a"]}, metadata=stored(written))
    assert "later embedreg" in embedreg.functions_in(table).notes[0]
    made = embedreg.embed_table(table)
    assert json.loads(made.schema.metadata[KEY]) == [written]


def test_other_schema_metadata_stays() -> None:
    """The key is one among others."""
    table = pa.table({"text": ["a"]}, metadata={"mine": "yes"})
    made = embedreg.embed_table(table, Lengths().bind("text", "vector"))
    assert made.schema.metadata[b"mine"] == b"yes"


# -- writing -----------------------------------------------------------------------------------------------------------


def test_the_stored_form_is_lancedbs() -> None:
    """A JSON list of name, model, source_column and vector_column, laid out as its Python client does."""
    conf = Lengths(scale=2).bind("text", "vector")
    assert list(embedreg.get_registry().function_to_metadata(conf)) == [
        "name",
        "model",
        "source_column",
        "vector_column",
    ]
    written = embedreg.get_registry().get_table_metadata([conf])
    assert written is not None
    text = written["embedding_functions"].decode()
    assert json.loads(text) == [embedreg.get_registry().function_to_metadata(conf)]
    assert text.startswith('[{\n  "name": "lengths",\n  "model": {')
    assert embedreg.get_registry().get_table_metadata([]) is None
    assert embedreg.get_registry().get_table_metadata(None) is None


def test_the_specification_shows_what_is_written() -> None:
    """The example in docs/persisted-form.md is what its code prints, byte for byte but for the version."""
    page = (Path(__file__).parents[2] / "docs" / "persisted-form.md").read_text("utf-8")
    shown = re.search(r"```json\n(.*?)\n```", page, re.DOTALL)
    assert shown is not None
    function = embedreg.get("hashing").create(dim=4, word_ngrams=(1, 1), char_ngrams=None)
    table = embedreg.embed_table({"text": ["Return the sine of x."]}, function.bind("text", "vector"))
    written = table.schema.metadata[KEY].decode()
    assert re.sub(r'("embedreg": )"[^"]+"', r'\1"0.1.0"', written) == shown[1]


def test_a_declaration_reads_back_as_itself() -> None:
    """The declaration read equals the one written."""
    conf = Lengths(scale=2).bind("text", "vector")
    assert embedreg.functions_in(embedreg.get_registry().get_table_metadata([conf])) == {"vector": conf}


def test_effective_values_are_stored() -> None:
    """Every semantic field is there, runtime fields and null secrets are not, and references stay references."""
    embedreg.get_registry().set_var("key", "sk-secret")
    model = model_of(codec.encode([LikeOpenAI.create(name="n", device="cuda").bind("t", "v")]))
    reserved = model.pop("embedreg")
    assert model == {"name": "n", "model": "n", "dim": None, "truncate_dim": None, "prompts": {}}
    assert set(reserved) == {"format", "ndims", "dtype", "normalized", "metric", "fingerprint", "producer"}
    written = codec.encode([LikeOpenAI.create(api_key="$var:key").bind("t", "v")])
    assert model_of(written)["api_key"] == model_of(written)["apiKey"] == "$var:key"
    assert b"sk-secret" not in written


def test_a_changed_class_default_does_not_change_a_stored_table() -> None:
    """A table rebuilds the values in effect when it was declared, not those of the class as it is now."""

    def define(default: float) -> type[Base]:
        @register("moving")
        class Moving(Base):
            """Has a default that a later version changes."""

            scale: float = default

        return Moving

    written = codec.encode([define(1.0).create().bind("text", "vector")])  # type: ignore[attr-defined]
    define(2.0)
    assert embedreg.functions_in({KEY: written})["vector"].function.scale == 1.0
    assert embedreg.get("moving").create().scale == 2.0  # type: ignore[attr-defined]


ALIASES = [
    ({}, "like-openai"),
    ({"name": "other", "dim": 3}, "like-openai"),
    ({"device": "cuda", "max_retries": 1}, "like-openai"),
    ({"truncate_dim": None, "prompts": {}}, "like-openai"),
    ({"truncate_dim": 4}, "embedreg:like-openai"),
    ({"prompts": {"query": "q: "}}, "embedreg:like-openai"),
]


@pytest.mark.parametrize(("config", "name"), ALIASES)
def test_a_field_that_stock_lancedb_would_ignore_changes_the_stored_name(config: dict[str, Any], name: str) -> None:
    """The alias stands exactly where a semantic field that stock does not know has a value of its own."""
    written = codec.encode([LikeOpenAI.create(**config).bind("text", "vector")])
    assert json.loads(written)[0]["name"] == name
    assert embedreg.functions_in({KEY: written})["vector"].function == LikeOpenAI(**config)


def test_references_that_become_numbers_are_stored_as_written() -> None:
    """A reference in place of a number is stored as the reference."""
    embedreg.get_registry().set_var("width", "8")
    function = LikeOpenAI.create(dim="$var:width")
    assert function.dim == 8
    assert model_of(codec.encode([function.bind("t", "v")]))["dim"] == "$var:width"


def test_fields_that_no_class_has_are_stored_too() -> None:
    """A class that allows extra fields gets them back, references unresolved."""
    embedreg.get_registry().set_var("key", "sk-secret")
    written = codec.encode([Anything.create(size=3, api_key="$var:key").bind("t", "v")])
    assert b"sk-secret" not in written
    assert {"size": 3, "api_key": "$var:key"}.items() <= model_of(written).items()
    found = embedreg.functions_in({KEY: written})["v"].function
    assert (found.size, found.api_key) == (3, "sk-secret")


def test_a_secret_inside_a_value_is_stored_as_its_reference() -> None:
    """SecretStr values deep in a field keep their references in the file."""
    embedreg.get_registry().set_var("key", "sk-secret")
    function = Anything.create(value={"auth": [SecretStr("$var:key")]})
    assert model_of(codec.encode([function.bind("t", "v")]))["value"] == {"auth": ["$var:key"]}
    with pytest.raises(HardcodedSecretError):
        Anything.create(value={"auth": [SecretStr("sk-secret")]})


def test_an_unregistered_class_is_not_stored() -> None:
    """An unregistered class, also one whose parent is registered, is refused by the writer."""

    class Child(Lengths):
        """Is not registered."""

    with pytest.raises(ConfigError, match="not registered"):
        codec.encode([Child().bind("t", "v")])


def test_two_declarations_for_one_column_are_refused() -> None:
    """So are more declarations than any reader accepts."""
    with pytest.raises(MetadataError, match="'v'"):
        codec.encode([Lengths().bind("a", "v"), Lengths().bind("b", "v")])
    big = Anything.create(value="x" * (strict_json.MAX_TEXT - 1))
    assert codec.encode([big.bind("a", "v")])
    with pytest.raises(MetadataError, match="no reader"):
        codec.encode([big.bind("a", f"v{i}") for i in range(5)])


WRITERS: dict[str, Callable[[], bytes]] = {
    "encode": lambda: codec.encode([LikeOpenAI.create().bind("text", "vector")]),
    "get_table_metadata": lambda: (
        embedreg.get_registry().get_table_metadata([LikeOpenAI.create().bind("text", "vector")]) or {}
    )["embedding_functions"],
    "embed_table": lambda: embedreg.embed_table(
        pa.table({"text": ["a"]}), LikeOpenAI.create().bind("text", "vector")
    ).schema.metadata[KEY],
    "embed_table of what JavaScript declared": lambda: embedreg.embed_table(
        pa.table(
            {"text": ["a"]}, metadata=stored({"name": "like-openai", "model": {"model": "m"}, "sourceColumn": "text"})
        )
    ).schema.metadata[KEY],
}


@pytest.mark.parametrize("way", WRITERS)
def test_every_way_of_writing_gives_json_that_both_clients_read(way: str) -> None:
    """Strict JSON in ASCII, with what JavaScript's own parser asks for: a name, a model and the columns."""

    def refuse(name: str) -> Any:
        raise AssertionError(name)

    written = WRITERS[way]()
    for item in json.loads(written.decode("ascii"), parse_constant=refuse):
        assert item.get("sourceColumn", item.get("source_column")) == "text"
        assert item.get("vectorColumn", item.get("vector_column", "vector")) == "vector"
        assert isinstance(item["name"], str)
        assert item["model"].get("model") in ("ada", "m")
