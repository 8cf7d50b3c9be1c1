"""Reading declarations: what both clients write, and what hostile bytes come to."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedreg
from embedreg import register
from embedreg.declaration import codec
from embedreg.errors import (
    ConfigError,
    EmbedregError,
    MetadataError,
    MissingColumnError,
    UnknownFunctionError,
)
from embedreg.support import strict_json
from tests.declared import KEY, LENGTHS, Anything, Base, deep, entry, stored, with_model
from tests.fakes import Lengths

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
    "entries that are not objects": b"[1]",
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
    "deep in a value": with_model(b'{"a": %s}' % deep(strict_json.MAX_DEPTH).encode()),
    "deep, and never closed": b"[" * 1_000_000,
    "objects in objects": b'[{"a":' * 100_000,
    "large": b"[" + b" " * strict_json.MAX_CHARACTERS + b"]",
    "a long text": with_model(b'{"a": "%s"}' % (b"x" * (strict_json.MAX_TEXT + 1))),
    "a long key": with_model(b'{"%s": 1}' % (b"x" * (strict_json.MAX_KEY + 1))),
    "one column for both": b'[{"name": "lengths", "source_column": "vector", "vector_column": "vector"}]',
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
def test_a_value_that_is_not_text_is_a_metadata_error(value: Any) -> None:
    """A caller's own mapping may hold anything under the key."""
    with pytest.raises(MetadataError, match="not text"):
        embedreg.get_registry().parse_functions({"embedding_functions": value})


@pytest.mark.parametrize("value", ["[]", [("embedding_functions", "[]")], 5])
def test_metadata_that_is_not_a_mapping_is_a_metadata_error(value: Any) -> None:
    """The error of parse_functions names the expected type."""
    with pytest.raises(MetadataError, match="a mapping"):
        embedreg.get_registry().parse_functions(value)


def test_every_depth_that_is_read_can_be_processed() -> None:
    """The deepest value that is read is also written again, compared and fingerprinted."""
    inner: Any = 1
    for _ in range(strict_json.MAX_DEPTH - 3):  # the entry, the model, and the value's own level
        inner = {"a": inner}
    found = embedreg.functions_in(stored(entry("anything", {"value": inner})))["vector"]
    assert found.function.value == inner
    assert embedreg.functions_in({KEY: codec.encode([found.function.bind("t", "v")])})["v"].function.value == inner


def test_what_cannot_be_read_back_is_not_written() -> None:
    """A value that this reader, or JavaScript's, would refuse is refused when it is stored."""
    inner: Any = 1
    for _ in range(100):
        inner = [inner]
    for value in (float("nan"), float("inf"), 2**70, "\ud800", inner, object(), b"\xff", {1: object()}):
        function = Anything.create(value=value)
        with pytest.raises(ConfigError, match="JSON"):
            codec.encode([function.bind("text", "vector")])


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
def test_every_problem_raises_an_embedreg_error(name: Any, model: Any, beside: dict[str, Any]) -> None:
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
    assert codec.encode(found.values(), found.entries.values()) == data[KEY].strip()


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
    """Arrow returns bytes; a JSON file or another reader may pass str."""
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


def test_looking_up_a_column_behaves_like_a_dict() -> None:
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
    """An error of a user's own __init__ on a stored configuration becomes an EmbedregError with its cause."""

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
def test_keys_with_special_meaning_in_python_are_plain_in_metadata(model: dict[str, Any]) -> None:
    """A key that is not a field is kept as unknown or refused; it is never set as an attribute."""
    for name in ("lengths", "anything"):
        found = embedreg.functions_in(stored(entry(name, model)))
        for config in found.values():
            assert type(config.function) in (Lengths, Anything)
            assert config.function.from_metadata
        assert all(isinstance(problem, EmbedregError) for problem in found.problems.values())
