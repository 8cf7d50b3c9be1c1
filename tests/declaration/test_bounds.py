"""What stored metadata may cost: widths, runtime fields, characters, entries, values; bounded, with errors of ours."""

import contextlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedreg
from embedreg import get_registry, register
from embedreg.errors import ConfigError, EmbedregError, MetadataError, UntrustedError
from tests.declared import LENGTHS, Base, stored
from tests.timing import within

pytestmark = pytest.mark.filterwarnings("ignore:'(wide|runs)' was")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("openai", {"name": "mine", "dim": 10**12, "api_key": "$var:key_of_mine"}),
        ("openai", {"name": "mine", "dim": 65_537, "api_key": "$var:key_of_mine"}),
        ("hashing", {"dim": 10**12}),
        ("wide", {"width": 10**12}),
        ("wide", {"width": 2**62}),
    ],
)
def test_a_stored_width_allocates_no_memory(name: str, config: dict[str, Any]) -> None:
    """Whatever says it: a field of a built-in, or one that a class of the reader's own gives back from `ndims()`."""

    @register("wide")
    class Wide(Base):
        width: int = 1

        def ndims(self) -> int:
            return self.width

    get_registry().set_var("key_of_mine", "x" * 20)
    found = embedreg.functions_in(stored({**LENGTHS, "name": name, "model": config}))
    for _ in range(2):
        with pytest.raises(ConfigError):
            embedreg.embed_column(found["vector"].function, ["a"])
        with pytest.raises(ConfigError):
            found["vector"].function.ndims()


@pytest.mark.parametrize(
    "field",
    [
        {"max_retries": 10**9},
        {"max_retries": "1000"},
        {"batch_size": 10**9},
        {"timeout_s": 1e9},
        {"num_threads": 10**6},
    ],
)
def test_stored_runtime_fields_are_bounded(field: dict[str, Any]) -> None:
    """Retries, threads, batches, waiting: bounded, unless granted."""

    @register("runs")
    class Runs(Base):
        batch_size: int = 1
        timeout_s: float = 1
        num_threads: int = 1

    told = stored({**LENGTHS, "name": "runs", "model": field})
    [name] = field
    assert isinstance(embedreg.functions_in(told).problems["vector"], UntrustedError)
    with embedreg.trust(fields=[f"runs.{name}"]):
        assert "vector" in embedreg.functions_in(told)
    assert "vector" in embedreg.functions_in(stored({**LENGTHS, "name": "runs", "model": {name: 2}}))


SLOW = {
    "eighteen characters each": "\ufdfa",
    "combining marks": "a\u0301\u0323",
    "marks alone": "\u0323\u0301",
    "percent": "%25",
    "percent deep": "%2525252525",
    "slashes": "/../",
    "dots": "a.. ",
    "dots and spaces": "../      ",
    "backslashes": "\\",
    "references": "$var:",
    "joiners": "\u200d/",
    "schemes": "https:",
    "full-width": "\uff0f\uff0e",
    "squares": "\u33c2",
    "pairs": "a=;",
    "at": "a:b@",
    "quotes": '"a":',
    "newlines": "\na:",
    "underscores": "_A",
}


@pytest.mark.parametrize("place", ["query_prompt", "name", "model_kwargs", "nobody", "api_key"])
@pytest.mark.parametrize("part", SLOW.values(), ids=SLOW.keys())
def test_no_text_of_any_kind_takes_long_to_read(part: str, place: str) -> None:
    """Three texts of 300,000 characters, in known and unknown fields: within a second or two, and shown too."""
    text = part * (300_000 // len(part))
    value: Any = {text[:1000]: text} if place == "model_kwargs" else text
    entries = [
        {**LENGTHS, "name": "sentence-transformers", "model": {place: value}, "vector_column": f"v{number}"}
        for number in range(3)
    ]
    with within(4), contextlib.suppress(EmbedregError):
        embedreg.inspect(stored(*entries))


@pytest.mark.parametrize(
    "entries",
    [
        [{**LENGTHS, "name": name, "vector_column": f"v{number}"} for number in range(20_000)]
        for name in ("hashing", "nobody-has-this", "sentence-transformer")
    ],
    ids=["known", "unknown", "nearly known"],
)
def test_a_great_many_entries_are_refused(entries: list[Any]) -> None:
    """No table has ten thousand vector columns; a thousand unknown ones are read within seconds."""
    with within(4):
        with pytest.raises(MetadataError, match="more than 1000 entries"):
            embedreg.functions_in(stored(*entries))
        assert len(embedreg.functions_in(stored(*entries[:1000])).entries) == 1000


@pytest.mark.parametrize(
    "model",
    [
        {"prompts": {str(number): "" for number in range(60_000)}},
        {str(number): 0 for number in range(60_000)},
        {"prompts": [[]] * 100_001},
    ],
    ids=["prompts", "fields", "lists"],
)
def test_a_great_many_values_are_refused(model: Any) -> None:
    """However they lie."""
    with pytest.raises(MetadataError, match="too many values"):
        embedreg.functions_in(stored({**LENGTHS, "model": model}))


def test_numbers_of_a_million_digits_are_refused() -> None:
    """Whole ones; a long fraction is a float."""
    for number in ("9" * 10**6, "-" + "9" * 21):
        text = f'[{{"name": "lengths", "model": {{"dim": {number}}}, "source_column": "a"}}]'
        with pytest.raises(MetadataError, match="64 bits"):
            embedreg.functions_in({"embedding_functions": text})


def test_more_than_can_be_read_back_is_not_written() -> None:
    """A reader's bound is a writer's too."""
    function = embedreg.get("hashing").create(dim=4)
    with pytest.raises(MetadataError, match="declare fewer columns"):
        get_registry().get_table_metadata([function.bind("text", f"v{number}") for number in range(1001)])


PARTS = st.lists(
    st.tuples(
        st.sampled_from([*SLOW.values(), "a", "\u0344", "\U0001d160", "=", "&", ";", "?", "#", "..", "~", "\0"]),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=4,
)
FIELDS = st.sampled_from(["query_prompt", "name", "revision", "api_key", "base_url", "nobody", "prompts", "embedreg"])


@given(
    parts=PARTS,
    field=FIELDS,
    inside=st.sampled_from(["text", "key", "list", "dicts"]),
    function=st.sampled_from(["sentence-transformers", "openai", "hashing", "open-clip", "nobody-has-this"]),
    entries=st.sampled_from([1, 3, 900]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_large_metadata_is_read_or_refused_soon(
    parts: list[tuple[str, int]], field: str, inside: str, function: str, entries: int
) -> None:
    """A megabyte of any signs, in any place and number of entries: within seconds."""
    unit = "".join(part * times for part, times in parts)
    size = 400_000 // entries  # characters of each entry
    text = unit * (size // len(unit) + 1)
    value: Any = {
        "text": text[:size],
        "key": {text[:4000]: text[: size // 2]},
        "list": [unit] * min(size // len(unit), 20_000),
        "dicts": {f"{unit[:9]}{number}": unit[:99] for number in range(min(size // (len(unit) + 9), 5000))},
    }[inside]
    told = stored(
        *({**LENGTHS, "name": function, "model": {field: value}, "vector_column": f"v{n}"} for n in range(entries))
    )
    for read in (embedreg.functions_in, embedreg.inspect):
        with within(3), contextlib.suppress(EmbedregError):
            read(told)
