"""The persisted form: what is written, what of it is read back, and what hostile bytes come to."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, Field, SecretStr

import embedreg
from embedreg import TextEmbeddingFunction, Traits, metadata, register, strictjson
from embedreg.errors import (
    ConfigError,
    EmbedregError,
    HardcodedSecretError,
    MetadataError,
    MissingColumnError,
    UnknownFunctionError,
)
from tests.fakes import Lengths

KEY = b"embedding_functions"
LENGTHS = {"name": "lengths", "model": {}, "source_column": "text", "vector_column": "vector"}


class Base(TextEmbeddingFunction):
    """One dimension: the text's length."""

    max_retries: int = 0

    def ndims(self) -> int:
        return 1

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return np.array([[len(str(text)) + 1] for text in texts], np.float32).reshape(-1, 1)


@register("like-openai")
class LikeOpenAI(Base):
    """What JavaScript's client calls otherwise, and what stock LanceDB does not know."""

    traits: ClassVar[Traits] = Traits(
        stock_fields=frozenset({"name", "dim", "api_key", "device", "max_retries"}),
        stored_names={"model": "name", "apiKey": "api_key"},
    )
    name: str = "ada"
    dim: int | None = None
    api_key: str | None = None
    device: str = "auto"
    truncate_dim: int | None = None
    prompts: dict[str, str] = Field(default_factory=dict)

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]


@register("anything")
class Anything(Base):
    """Takes any value, and fields that no class has."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    value: Any = None


def stored(*entries: Any, key: Any = KEY, as_text: bool = False) -> dict[Any, Any]:
    """Return schema metadata that holds some entries."""
    text = json.dumps(list(entries))
    return {key: text if as_text else text.encode()}


def entry(name: str | None = "lengths", model: Any = None, vector: str = "vector", **beside: Any) -> dict[str, Any]:
    """Return an entry in Python's spelling."""
    return {
        "name": name,
        "model": {} if model is None else model,
        "source_column": "text",
        "vector_column": vector,
        **beside,
    }


def deep(levels: int) -> str:
    """Return a JSON list in lists."""
    return "[" * levels + "]" * levels


def with_model(model: bytes) -> bytes:
    """Return an entry's bytes around those of its `model`."""
    return b'[{"name": "lengths", "model": ' + model + b', "source_column": "text", "vector_column": "vector"}]'


def model_of(written: bytes | dict[Any, Any]) -> dict[str, Any]:
    """Return the `model` of the only entry."""
    [item] = json.loads(written[KEY] if isinstance(written, dict) else written)
    return item["model"]  # type: ignore[no-any-return]


# -- hostile bytes -----------------------------------------------------------------------------------------------------

CORRUPT = {
    "empty": b"",
    "blank": b"  \n",
    "not JSON": b"hello",
    "not UTF-8": b'[{"name": "\xff"}]',
    "UTF-16": '[{"name": "lengths"}]'.encode("utf-16"),
    "null": b"null",
    "an object": b"{}",
    "a number": b"1",
    "cut off": b'[{"name": "lengths"',
    "cut off after a comma": b"[{},",
    "a comma too many": json.dumps([LENGTHS]).encode()[:-1] + b", ]",
    "no comma": json.dumps([LENGTHS])[:-1].encode() + b" " + json.dumps(LENGTHS).encode() + b"]",
    "something after it": json.dumps([LENGTHS]).encode() + b"x",
    "two lists": b"[][]",
    "entries that are no objects": b"[1]",
    "an entry that is null": b"[null]",
    "no columns": b'[{"name": "lengths", "model": {}}]',
    "columns of the wrong type": b'[{"name": "lengths", "source_column": 1, "vector_column": ["v"]}]',
    "an empty column name": b'[{"name": "lengths", "source_column": "", "vector_column": "v"}]',
    "a name of the wrong type": b'[{"name": 1, "source_column": "t", "vector_column": "v"}]',
    "a model of the wrong type": b'[{"name": "lengths", "model": [], "source_column": "t", "vector_column": "v"}]',
    "one vector column twice": json.dumps([LENGTHS, LENGTHS]).encode(),
    "one vector column twice, in two spellings": json.dumps(
        [LENGTHS, {"name": "lengths", "sourceColumn": "text", "vectorColumn": "vector"}]
    ).encode(),
    "two spellings that disagree": json.dumps([{**LENGTHS, "vectorColumn": "other"}]).encode(),
    "a key twice": b'[{"name": "lengths", "name": "hashing", "source_column": "t", "vector_column": "v"}]',
    "a key twice, further in": with_model(b'{"a": 1, "a": 2}'),
    "NaN": with_model(b'{"scale": NaN}'),
    "Infinity": with_model(b'{"scale": -Infinity}'),
    "a float without end": with_model(b'{"scale": 1e999}'),
    "a huge integer": with_model(b'{"scale": 1%s}' % (b"0" * 30)),
    "an integer of 5000 digits": with_model(b'{"scale": 1%s}' % (b"0" * 5000)),
    "half a surrogate pair": with_model(rb'{"name": "\ud800"}'),
    "half a pair as a key": with_model(rb'{"\udc00": 1}'),
    "deep": deep(100_000).encode(),
    "deep in a value": with_model(b'{"a": %s}' % deep(strictjson.MAX_DEPTH).encode()),
    "deep, and never closed": b"[" * 1_000_000,
    "objects in objects": b'[{"a":' * 100_000,
    "large": b"[" + b" " * strictjson.MAX_CHARACTERS + b"]",
    "a long text": with_model(b'{"a": "%s"}' % (b"x" * (strictjson.MAX_TEXT + 1))),
    "a long key": with_model(b'{"%s": 1}' % (b"x" * (strictjson.MAX_KEY + 1))),
    "a control character in a text": b'[{"name": "a\x00b", "source_column": "t", "vector_column": "v"}]',
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_metadata_is_a_metadata_error(case: str) -> None:
    """Bytes that no client wrote so are refused with a hint, whatever is wrong with them, as bytes and as text."""
    with pytest.raises(MetadataError) as caught:
        embedreg.functions_in({KEY: CORRUPT[case]})
    assert caught.value.hint
    assert len(str(caught.value)) < 500
    text = CORRUPT[case].decode("latin-1")
    with pytest.raises(MetadataError):
        embedreg.functions_in({"embedding_functions": text})


@pytest.mark.parametrize("value", [5, 10**15, ["[]"], {"a": 1}, object()])
def test_a_value_that_is_no_text_is_a_metadata_error(value: Any) -> None:
    """A caller's own mapping may hold anything under the key."""
    with pytest.raises(MetadataError, match="not text"):
        embedreg.get_registry().parse_functions({"embedding_functions": value})


@pytest.mark.parametrize("value", ["[]", [("embedding_functions", "[]")], 5])
def test_metadata_that_is_no_mapping_is_a_metadata_error(value: Any) -> None:
    """parse_functions says what it takes."""
    with pytest.raises(MetadataError, match="a mapping"):
        embedreg.get_registry().parse_functions(value)


def test_no_depth_that_is_read_is_too_deep_for_what_follows() -> None:
    """The deepest value that is read is also written again, compared and fingerprinted."""
    inner: Any = 1
    for _ in range(strictjson.MAX_DEPTH - 3):  # the entry, the model, and the value's own level
        inner = {"a": inner}
    found = embedreg.functions_in(stored(entry("anything", {"value": inner})))["vector"]
    assert found.function.value == inner
    assert embedreg.functions_in({KEY: metadata.encode([found.function.bind("t", "v")])})["v"].function.value == inner


def test_what_cannot_be_read_back_is_not_written() -> None:
    """A value that this reader, or JavaScript's, would refuse is refused when it is stored."""
    inner: Any = 1
    for _ in range(100):
        inner = [inner]
    for value in (float("nan"), float("inf"), 2**70, "\ud800", inner, object(), b"\xff", {1: object()}):
        function = Anything.create(value=value)
        with pytest.raises(ConfigError, match="JSON"):
            metadata.encode([function.bind("text", "vector")])


TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["$var:x", "$var:", "$var:x:$var:y", "/etc", "https://x.example", "~", "\x1b[31m", "model", "name"]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
FIELDS = [
    "name",
    "dim",
    "api_key",
    "base_url",
    "device",
    "truncateDim",
    "model",
    "prompts",
    "embedreg",
    "revision",
    "x",
]
MODELS = st.dictionaries(st.sampled_from(FIELDS) | TEXTS, VALUES, max_size=4)
NAMES = st.sampled_from(["like-openai", "anything", "hashing", "openai", "sentence-transformers", "embedreg:hashing"])


@pytest.mark.filterwarnings("ignore:stored metadata sets trust_remote_code")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=NAMES | VALUES, model=MODELS | VALUES, beside=st.dictionaries(TEXTS, VALUES, max_size=2))
def test_whatever_is_wrong_comes_out_as_an_error_of_ours(name: Any, model: Any, beside: dict[str, Any]) -> None:
    """Any JSON in any place is read, is one column's problem, or is a MetadataError; inspect and check_drift agree."""
    data = stored({**beside, "name": name, "model": model, "source_column": "text", "vector_column": "v"})
    try:
        found = embedreg.functions_in(data)
    except MetadataError:
        return
    assert found.keys() ^ found.problems.keys() == {"v"}
    assert all(isinstance(problem, EmbedregError) for problem in found.problems.values())
    [told] = embedreg.inspect(data)
    assert (told["status"] == "ready") == ("v" in found)
    assert metadata.encode(found.values(), found.entries.values()) == data[KEY].strip()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60) | st.text(alphabet='[]{}",: \\u0dnulltrefas1.e-', max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No bytes under the key raise anything but a MetadataError."""
    with contextlib.suppress(MetadataError):
        embedreg.functions_in({KEY: data})


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, "embedding_functions"])
@pytest.mark.parametrize("as_text", [True, False])
def test_keys_and_values_may_be_bytes_or_text(key: Any, as_text: bool) -> None:
    """Arrow hands out bytes; a JSON file or another reader may hand over str."""
    found = embedreg.functions_in(stored(LENGTHS, key=key, as_text=as_text))
    assert found["vector"].source_column == "text"
    assert found["vector"].function == Lengths()


def test_other_buffers_are_read_too() -> None:
    """A bytearray and a memoryview are bytes."""
    for kind in (bytearray, memoryview):
        assert list(embedreg.functions_in({KEY: kind(json.dumps([LENGTHS]).encode())})) == ["vector"]


def test_metadata_without_declarations_declares_nothing() -> None:
    """None, an empty mapping and other keys give an empty result."""
    for nothing in (None, {}, {b"pandas": b"{}"}, {KEY: None}, {1: 2}):
        assert embedreg.get_registry().parse_functions(nothing) == {}


def test_the_javascript_spelling_is_read() -> None:
    """Columns and fields in camelCase and JavaScript's own option names are understood; `model` may be null."""
    written = {"sourceColumn": "text", "vectorColumn": "v", "name": "like-openai"}
    model = {"model": "big", "apiKey": "$var:key", "truncateDim": 4}
    found = embedreg.functions_in(stored({**written, "model": model}))["v"]
    assert found.source_column == "text"
    assert found.function.raw_fields()["api_key"] == "$var:key"
    assert (found.function.name, found.function.truncate_dim) == ("big", 4)
    assert not embedreg.functions_in(stored({**written, "model": model})).notes
    assert embedreg.functions_in(stored({**written, "model": None}))["v"].function.name == "ada"


def test_a_field_in_two_spellings_must_agree() -> None:
    """Neither spelling wins: two that differ are refused, two that agree are one."""
    found = embedreg.functions_in(stored(entry("like-openai", {"name": "a", "model": "b"})))
    assert isinstance(found.problems["vector"], MetadataError)
    assert (
        embedreg.functions_in(stored(entry("like-openai", {"name": "a", "model": "a"})))["vector"].function.name == "a"
    )


def test_the_vector_column_has_lancedbs_default() -> None:
    """An entry without a vector column means `vector`."""
    found = embedreg.functions_in(stored({"name": "lengths", "model": {}, "sourceColumn": "text"}))
    assert list(found) == ["vector"]


def test_one_entry_never_blocks_the_others() -> None:
    """A class that is not installed, a name that is null and a refused configuration are problems of their columns."""
    entries = [
        entry("nobody-has-this", vector="a"),
        entry(None, vector="b"),
        entry("lengths", {"scale": "wide"}, vector="c"),
        entry("embedreg:embedreg:lengths", vector="d"),
        entry("x" * 100_000, vector="e"),
        entry("lengths", vector="z"),
    ]
    found = embedreg.functions_in(stored(*entries))
    assert list(found) == ["z"]
    assert {column: type(problem) for column, problem in found.problems.items()} == {
        "a": UnknownFunctionError,
        "b": MetadataError,
        "c": ConfigError,
        "d": UnknownFunctionError,
        "e": UnknownFunctionError,
    }
    assert all(problem.hint and len(str(problem)) < 1000 for problem in found.problems.values())
    with pytest.raises(UnknownFunctionError, match="nobody-has-this"):
        found["a"]


def test_asking_for_a_column_behaves_as_a_dict_does() -> None:
    """`in`, `get` and iteration go by what could be rebuilt; indexing raises the reason, a KeyError for no column."""
    found = embedreg.functions_in(stored(entry("nobody-has-this", vector="a"), entry(vector="z")))
    assert "a" not in found
    assert found.get("a") is None
    assert found.get("nope", 1) == 1
    with pytest.raises(KeyError):
        found["nope"]
    with pytest.raises(MissingColumnError, match="declared: 'a', 'z'"):
        found["nope"]


def test_a_problem_is_raised_anew_each_time() -> None:
    """Tracebacks do not pile up in one exception that several threads raise."""
    found = embedreg.functions_in(stored(entry("nobody-has-this")))
    caught = []
    for _ in range(2):
        with pytest.raises(UnknownFunctionError) as info:
            found["vector"]
        caught.append(info.value)
    assert caught[0] is not caught[1]
    assert found.problems["vector"].__traceback__ is None or caught[0].__traceback__ is not None


def test_names_from_a_file_do_not_reach_the_terminal_raw() -> None:
    """Escape sequences in stored names are printed as their escapes, and a long name is cut."""
    nasty = "\x1b[31mred\x07"
    found = embedreg.functions_in(stored(entry(nasty, {nasty: 1}, vector=nasty), entry("lengths", {nasty: 1})))
    texts = [str(found.problems[nasty]), *found.notes]
    with pytest.raises(MissingColumnError) as caught:
        found["nope"]
    assert not any("\x1b" in text or "\x07" in text for text in [*texts, str(caught.value)])


def test_a_class_that_raises_is_a_config_error() -> None:
    """What a user's own __init__ raises on a stored configuration comes out as an EmbedregError with its cause."""

    @register("explodes")
    class Explodes(Base):
        """Raises in its constructor."""

        def __init__(self, **config: Any) -> None:
            super().__init__(**config)
            raise RuntimeError("boom")

    found = embedreg.functions_in(stored(entry("explodes")))
    assert isinstance(found.problems["vector"], ConfigError)
    assert isinstance(found.problems["vector"].__cause__, RuntimeError)


@pytest.mark.parametrize(
    "model", [{"self": 1}, {"cls": 1}, {"_declared": {}}, {"__class__": "x"}, {"model_config": {}}]
)
def test_keys_with_a_meaning_in_python_have_none_in_metadata(model: dict[str, Any]) -> None:
    """A key that is no field is kept as an unknown one, or refused; it never reaches the object's machinery."""
    for name in ("lengths", "anything"):
        found = embedreg.functions_in(stored(entry(name, model)))
        for config in found.values():
            assert type(config.function) in (Lengths, Anything)
            assert config.function.from_metadata
        assert all(isinstance(problem, EmbedregError) for problem in found.problems.values())


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_an_unknown_class_is_kept_byte_for_byte() -> None:
    """Its entry goes through reading, writing and embed_table as it was, odd layout and all."""
    raw = (
        '{ "vector_column":"other" , "name":"not-here","model":{"b":[1.50,  2e3],"a":"\\u00e9"},"source_column":"text"}'
    )
    text = f"[\n {raw} ,{json.dumps(LENGTHS)}]"
    found = embedreg.functions_in({KEY: text.encode()})
    assert metadata.encode(found.values(), found.entries.values()).decode().startswith(f"[{raw}, ")
    table = pa.table({"text": ["a"], "other": pa.array([[1.0]], pa.list_(pa.float32(), 1))}, metadata={KEY: text})
    made = embedreg.embed_table(table, Lengths().bind("text", "vector"))
    assert raw in made.schema.metadata[KEY].decode()
    assert set(embedreg.functions_in(made).entries) == {"other", "vector"}


def test_what_stands_beside_and_inside_a_declaration_is_kept() -> None:
    """Unknown keys inside `model` and beside it survive a write; the probe joins them; a second one changes nothing."""
    written = json.loads(metadata.encode([Lengths(scale=2).bind("text", "vector")]))[0]
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


def test_what_another_client_wrote_stays_as_it_wrote_it() -> None:
    """Embedding with a stock entry leaves its bytes: what it leaves out has that client's meaning."""
    raw = json.dumps([entry("lengths", {"scale": 2.0, "device": "cuda", "max_retries": 3})], indent=2)
    made = embedreg.embed_table(pa.table({"text": ["abc"]}, metadata={KEY: raw}))
    assert made["vector"].to_pylist() == [[6.0, 2.0, 2.0]]
    assert json.loads(made.schema.metadata[KEY]) == json.loads(raw)


def test_declaring_anew_replaces_the_entry_and_keeps_what_stands_beside_it() -> None:
    """Another function for a column takes its place; a comment beside the old one stays."""
    table = pa.table({"text": ["abc"]}, metadata=stored(entry("lengths", {"scale": 2.0}, comment="mine")))
    made = embedreg.embed_table(table, Lengths(scale=3).bind("text", "vector"))
    [item] = json.loads(made.schema.metadata[KEY])
    assert (item["comment"], item["model"]["scale"]) == ("mine", 3.0)
    assert made["vector"].to_pylist() == [[9.0, 3.0, 3.0]]


def test_a_later_format_is_read_and_left_alone() -> None:
    """An entry of a newer embedreg is used, with a note, and not rewritten."""
    written = json.loads(metadata.encode([Lengths().bind("text", "vector")]))[0]
    written["model"]["embedreg"] |= {"format": metadata.FORMAT + 1, "new": [1]}
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
    page = (Path(__file__).parent.parent / "docs" / "persisted-form.md").read_text("utf-8")
    shown = re.search(r"```json\n(.*?)\n```", page, re.DOTALL)
    assert shown is not None
    function = embedreg.get("hashing").create(dim=4, word_ngrams=(1, 1), char_ngrams=None)
    table = embedreg.embed_table({"text": ["Return the sine of x."]}, function.bind("text", "vector"))
    written = table.schema.metadata[KEY].decode()
    assert re.sub(r'("embedreg": )"[^"]+"', r'\1"0.1.0"', written) == shown[1]


def test_a_declaration_reads_back_as_itself() -> None:
    """What is read equals what was declared."""
    conf = Lengths(scale=2).bind("text", "vector")
    assert embedreg.functions_in(embedreg.get_registry().get_table_metadata([conf])) == {"vector": conf}


def test_effective_values_are_stored() -> None:
    """Every semantic field is there, runtime fields and null secrets are not, and references stay references."""
    embedreg.get_registry().set_var("key", "sk-secret")
    model = model_of(metadata.encode([LikeOpenAI.create(name="n", device="cuda").bind("t", "v")]))
    reserved = model.pop("embedreg")
    assert model == {"name": "n", "model": "n", "dim": None, "truncate_dim": None, "prompts": {}}
    assert set(reserved) == {"format", "ndims", "dtype", "normalized", "metric", "fingerprint", "producer"}
    written = metadata.encode([LikeOpenAI.create(api_key="$var:key").bind("t", "v")])
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

    written = metadata.encode([define(1.0).create().bind("text", "vector")])  # type: ignore[attr-defined]
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
    written = metadata.encode([LikeOpenAI.create(**config).bind("text", "vector")])
    assert json.loads(written)[0]["name"] == name
    assert embedreg.functions_in({KEY: written})["vector"].function == LikeOpenAI(**config)


def test_references_that_become_numbers_are_stored_as_written() -> None:
    """A reference in a number's place is no number in the file."""
    embedreg.get_registry().set_var("width", "8")
    function = LikeOpenAI.create(dim="$var:width")
    assert function.dim == 8
    assert model_of(metadata.encode([function.bind("t", "v")]))["dim"] == "$var:width"


def test_fields_that_no_class_has_are_stored_too() -> None:
    """A class that allows extra fields gets them back, references unresolved."""
    embedreg.get_registry().set_var("key", "sk-secret")
    written = metadata.encode([Anything.create(size=3, api_key="$var:key").bind("t", "v")])
    assert b"sk-secret" not in written
    assert {"size": 3, "api_key": "$var:key"}.items() <= model_of(written).items()
    found = embedreg.functions_in({KEY: written})["v"].function
    assert (found.size, found.api_key) == (3, "sk-secret")


def test_a_secret_inside_a_value_is_stored_as_its_reference() -> None:
    """SecretStr values deep in a field keep their references in the file."""
    embedreg.get_registry().set_var("key", "sk-secret")
    function = Anything.create(value={"auth": [SecretStr("$var:key")]})
    assert model_of(metadata.encode([function.bind("t", "v")]))["value"] == {"auth": ["$var:key"]}
    with pytest.raises(HardcodedSecretError):
        Anything.create(value={"auth": [SecretStr("sk-secret")]})


def test_a_class_that_nobody_can_find_is_not_stored() -> None:
    """An unregistered class, also one whose parent is registered, is refused by the writer."""

    class Child(Lengths):
        """Is not registered."""

    with pytest.raises(ConfigError, match="not registered"):
        metadata.encode([Child().bind("t", "v")])


def test_two_declarations_for_one_column_are_refused() -> None:
    """So are more declarations than any reader accepts."""
    with pytest.raises(MetadataError, match="'v'"):
        metadata.encode([Lengths().bind("a", "v"), Lengths().bind("b", "v")])
    big = Anything.create(value="x" * (strictjson.MAX_TEXT - 1))
    assert metadata.encode([big.bind("a", "v")])
    with pytest.raises(MetadataError, match="no reader"):
        metadata.encode([big.bind("a", f"v{i}") for i in range(5)])


WRITERS: dict[str, Callable[[], bytes]] = {
    "encode": lambda: metadata.encode([LikeOpenAI.create().bind("text", "vector")]),
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
