"""Every name that LanceDB registers: rebuilt from its stored entries, or explained; never a traceback."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import embedreg
from embedreg.errors import ConfigError, EmbedregError, MetadataError, UnknownFunctionError, UntrustedError
from embedreg.registry import BUILTINS, RECOGNISED
from tests.fixtures.stock_requests import ENTRIES

# Of LanceDB 0.40; tests/engines/lancedb compares with the installed one.
LANCEDB = {
    *(
        "bedrock-text",
        "cohere",
        "colbert",
        "colpali",
        "gemini-text",
        "gte-text",
        "huggingface",
        "imagebind",
        "instructor",
    ),
    *("jina", "ollama", "open-clip", "openai", "sentence-transformers", "siglip", "voyageai", "watsonx"),
}

JAVASCRIPT = {"source_column": "sourceColumn", "vector_column": "vectorColumn"}
SEPARATORS = ((", ", ": "), (",", ":"))


def declared(name: str, model: dict[str, Any], width: int | None = 768, **spelling: str) -> Any:
    """Return a schema as LanceDB writes it: its Python client, or with the keys in `spelling` its JavaScript client."""
    entry = {"name": name, "model": model, "source_column": "text", "vector_column": "vector"}
    entry = {spelling.get(key, key): value for key, value in entry.items()}
    fields = [pa.field("text", pa.string())]
    if width is not None:
        fields.append(pa.field("vector", pa.list_(pa.float32(), width)))
    return pa.schema(
        fields, metadata={"embedding_functions": json.dumps([entry], separators=SEPARATORS[bool(spelling)])}
    )


def test_the_names_are_those_of_the_installed_lancedb() -> None:
    """Each name of the list is LanceDB's, and none is missing."""
    lancedb = importlib.util.find_spec("lancedb")
    assert lancedb is not None
    assert lancedb.origin is not None
    files = (Path(lancedb.origin).parent / "embeddings").glob("*.py")
    theirs = {name for file in files for name in re.findall(r'^@register\("(.+)"\)', file.read_text(), re.MULTILINE)}
    assert theirs == LANCEDB
    assert set(BUILTINS) | set(RECOGNISED) >= LANCEDB


@pytest.mark.parametrize("name", sorted(LANCEDB))
@pytest.mark.parametrize("model", [{}, {"name": "a/b"}, {"name": 3}, {"name": None, "unknown": [1]}], ids=str)
def test_every_entry_gives_a_function_or_says_why_not(name: str, model: dict[str, Any]) -> None:
    """Whatever the configuration: one function, or one problem with a hint."""
    found = embedreg.functions_in(declared(name, model))
    assert list(found.entries) == ["vector"]
    if "vector" in found:
        assert found["vector"].function.traits.extra is not None
    else:
        problem = found.problems["vector"]
        assert isinstance(problem, EmbedregError)
        assert problem.hint
        assert isinstance(problem, UnknownFunctionError) is (name not in BUILTINS)


@pytest.mark.parametrize("name", sorted(RECOGNISED))
def test_a_name_that_is_not_built_in_is_explained(name: str) -> None:
    """The problem says what the function is, and the entry stays as it was."""
    found = embedreg.functions_in(declared(name, {"model_name": "m"}))
    assert "LanceDB" in found.problems["vector"].message
    assert RECOGNISED[name] in found.problems["vector"].message
    assert json.loads(found.entries["vector"].raw)["model"] == {"model_name": "m"}


@pytest.mark.parametrize(("width", "model"), [(768, "embed-multilingual-v2.0"), (1024, "embed-multilingual-v3.0")])
def test_a_default_that_has_changed_is_told_by_the_width(width: int, model: str) -> None:
    """LanceDB stores no defaults: Cohere's of then has another width than Cohere's of now."""
    found = embedreg.functions_in(declared("cohere", {}, width))
    assert found["vector"].function.name == model
    assert found["vector"].function.ndims() == width
    assert any("switched" in note for note in found.notes) is (width == 768)


@pytest.mark.parametrize(
    ("name", "width", "default"),
    [
        ("bedrock-text", 1536, "amazon.titan-embed-text-v1"),
        ("jina", 768, "jina-clip-v1"),
        ("openai", 1536, "text-embedding-ada-002"),
        ("watsonx", 768, "ibm/slate-125m-english-rtrvr"),
    ],
)
def test_the_only_default_stands_for_its_own_width(name: str, width: int, default: str) -> None:
    """A column of another width was not made by it; the error names it, whichever client left the model out."""
    assert embedreg.functions_in(declared(name, {}, width))["vector"].function.name == default
    for spelling in ({}, JAVASCRIPT):
        problem = embedreg.functions_in(declared(name, {}, 512, **spelling)).problems["vector"]
        assert isinstance(problem, MetadataError)
        for said in (default, str(width), "512"):
            assert said in problem.message


# -- LanceDB's JavaScript client: its options are openai's and huggingface's -------------------------------------------

MINILM = "Xenova/all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("name", "model", "width", "fields"),
    [
        ("openai", {}, 1536, {"name": "text-embedding-ada-002", "api_key": None}),
        (
            "openai",
            {"model": "text-embedding-3-small", "apiKey": "$var:openai_key"},
            1536,
            {"name": "text-embedding-3-small", "api_key": "$var:openai_key"},
        ),
        ("openai", {"model": "$var:m:text-embedding-3-large"}, 3072, {"name": "text-embedding-3-large"}),
        ("openai", {"modelName": "text-embedding-3-small", "maxRetries": 3}, 1536, {"max_retries": 3}),
        ("huggingface", {}, 384, {"name": MINILM}),
        ("huggingface", {"model": MINILM}, 384, {"name": MINILM}),
        ("huggingface", {"model": MINILM, "tokenizerOptions": {"padding": True}, "ndims": 384}, 384, {"name": MINILM}),
    ],
    ids=str,
)
def test_what_javascript_writes_is_read_and_shown(
    name: str, model: dict[str, Any], width: int, fields: dict[str, Any]
) -> None:
    """Literal metadata: the function is built with each option, and `inspect` shows the entry as it is stored."""
    schema = declared(name, model, width, **JAVASCRIPT)
    assert b'"sourceColumn":"text"' in schema.metadata[b"embedding_functions"]
    found = embedreg.functions_in(schema)
    assert {key: found["vector"].function.raw_fields()[key] for key in fields} == fields
    assert found["vector"].function.ndims() == width
    (shown,) = embedreg.inspect(schema.empty_table())
    assert (shown["status"], shown["function"], shown["config"]) == ("ready", name, model)
    assert shown["source_column"] == "text"
    assert bool(shown["notes"]) is (name == "huggingface")


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        (
            {"baseUrl": "https://example.com/v1", "apiKey": "$var:openai_key"},
            UntrustedError,
            ["base_url", "example.com"],
        ),
        ({"model": "$var:m"}, UntrustedError, ["variable 'm'", "name"]),
        ({"apiKey": "sk-1234567890abcdef"}, ConfigError, ["api_key", "hard-coded"]),
        ({"model": "a", "modelName": "b"}, MetadataError, ["two different values"]),
    ],
    ids=str,
)
def test_what_javascript_must_not_write_is_refused_by_its_field(
    model: dict[str, Any], error: type[EmbedregError], said: list[str]
) -> None:
    """An address, a variable in place of a model, a key in clear text; and `inspect` does not show the key."""
    schema = declared("openai", {"model": "text-embedding-3-small", **model}, 1536, **JAVASCRIPT)
    problem = embedreg.functions_in(schema).problems["vector"]
    assert isinstance(problem, error)
    for each in said:
        assert each in problem.message + problem.hint
    (shown,) = embedreg.inspect(schema.empty_table())
    assert shown["status"] == type(problem).__name__
    assert "sk-1234567890abcdef" not in str(shown)


def test_a_width_that_fits_no_default_is_refused() -> None:
    """The error names the candidates."""
    found = embedreg.functions_in(declared("cohere", {}, 512))
    assert isinstance(found.problems["vector"], MetadataError)
    for candidate in ("embed-multilingual-v2.0", "embed-multilingual-v3.0", "512"):
        assert candidate in found.problems["vector"].message


def test_what_embedreg_wrote_is_complete() -> None:
    """Its own entries hold the model's name; a width changes nothing."""
    function = embedreg.get("cohere").create(name="embed-english-v3.0")
    written = embedreg.get_registry().get_table_metadata([function.bind("text", "vector")])
    fields = [pa.field("text", pa.string()), pa.field("vector", pa.list_(pa.float32(), 1024))]
    found = embedreg.functions_in(pa.schema(fields, metadata=written))
    assert found["vector"].function == function


def test_a_default_that_cannot_be_told_is_noted() -> None:
    """Gemini's defaults have one width: the present one is taken, and a note says so."""
    found = embedreg.functions_in(declared("gemini-text", {}))
    assert found["vector"].function.name == "gemini-embedding-001"
    assert any("models/embedding-001" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "model", "width"),
    [
        ("voyageai", {"name": "voyage-3.5-lite", "output_dimension": 256}, 1024),
        ("jina", {"name": "jina-embeddings-v3"}, 1024),
    ],
)
def test_faults_of_stock_are_matched_where_vectors_exist(name: str, model: dict[str, Any], width: int) -> None:
    """LanceDB ignores `output_dimension` but for one model, and so does a table that it wrote; `inspect` says so."""
    found = embedreg.functions_in(declared(name, model, width))
    assert found["vector"].function.ndims() == width
    assert bool(found.notes) is ("output_dimension" in model)
    if "output_dimension" in model:
        with pytest.raises(ConfigError, match="dim=256"):
            embedreg.get(name).create(**model)


def test_contextual_vectors_are_noted() -> None:
    """LanceDB embeds texts of a batch as parts of one document; the note says that here they are not."""
    assert any(
        "neighbours" in note for note in embedreg.functions_in(declared("voyageai", {"name": "voyage-context-3"})).notes
    )


@pytest.mark.parametrize("spelling", ["model", "modelName", "model_name"])
def test_other_clients_names_are_read(spelling: str) -> None:
    """JavaScript's names of options: `modelName`, `apiKey`, `baseUrl`, `inputType` in camelCase."""
    model = {spelling: "embed-english-v3.0", "queryInputType": "clustering", "apiKey": "$var:key"}
    function = embedreg.functions_in(declared("cohere", model))["vector"].function
    assert (function.name, function.query_input_type) == ("embed-english-v3.0", "clustering")
    assert function.raw_fields()["api_key"] == "$var:key"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("ollama", {"host": "http://10.0.0.1:11434"}),
        ("ollama", {"ollama_client_kwargs": {"headers": {"x": "y"}}}),
        ("bedrock-text", {"region": "eu-west-1"}),
        ("bedrock-text", {"profile_name": "admin"}),
        ("bedrock-text", {"assumed_role": "arn:aws:iam::1:role/r"}),
        ("watsonx", {"url": "https://example.com"}),
        ("cohere", {"base_url": "https://example.com"}),
        ("gemini-text", {"base_url": "https://example.com"}),
        ("vertex", {"project": "p"}),
        ("vertex", {"location": "europe-west1"}),
        ("azure-openai", {"azure_endpoint": "https://example.com"}),
        ("litellm", {"name": "a/b", "api_base": "https://example.com"}),
        ("tei", {"base_url": "https://example.com"}),
    ],
    ids=str,
)
def test_what_chooses_a_destination_or_an_identity_needs_a_grant(name: str, model: dict[str, Any]) -> None:
    """Stored metadata alone sends no text elsewhere and uses no other identity; with the grant it may."""
    schema = declared(name, model, 1536 if name == "bedrock-text" else 768)
    found = embedreg.functions_in(schema)
    assert isinstance(found.problems["vector"], UntrustedError)
    with embedreg.trust(found.needed):
        assert "vector" in embedreg.functions_in(schema)


def test_a_field_that_stock_lacks_is_stored_under_another_name() -> None:
    """A width or a prompt that LanceDB's function would ignore is stored so that it fails; a key is not."""
    registry = embedreg.get_registry()
    registry.set_var("key", "sk-1234")
    plain = [("cohere", {"api_key": "$var:key"}), ("jina", {"api_key": "$var:key"}), ("ollama", {"keep_alive": "1m"})]
    other = [("cohere", {"name": "embed-v4.0", "dim": 256}), ("ollama", {"query_prompt": "q: "}), ("jina", {"dim": 64})]
    for wanted, group in (("", plain), ("embedreg:", other)):
        for name, config in group:
            entry = registry.function_to_metadata(embedreg.get(name).create(**config).bind("text", "vector"))
            assert entry["name"] == wanted + name


def test_the_entries_of_the_record_are_lancedbs() -> None:
    """The record of requests covers each function that sends one."""
    assert {name for name, _ in ENTRIES} == {"bedrock-text", "cohere", "gemini-text", "jina", "ollama", "voyageai"}
