"""The SQL for Databend: quoted so that nothing can be injected, and accepted by the real engine as it is printed."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import ClassVar

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedreg
from embedreg import EmbeddingFunction
from embedreg.core.base import Traits
from embedreg.declaration import comments
from embedreg.engines.databend import Served, Server, serve, sql
from embedreg.engines.databend.sql import (
    RESERVED,
    Layout,
    create_function,
    create_source_table,
    create_vector_table,
    functions_in_comments,
    identifier,
    literal,
    search,
    server_config,
    table_name,
)
from embedreg.errors import ConfigError
from tests.engines.databend_engine import Engine

needs_engine = pytest.mark.skipif(find_spec("databend") is None, reason="the engine is on PyPI for x86-64 Linux only")

# Databend's tokens that hold text (token.rs), and what a literal's escapes stand for (unescape.rs).
QUOTED = re.compile(r"""`[^`]*`|"(?:[^"\\]|\\.|"")*"|'(?:[^'\\]|\\.|'')*\'""")
ESCAPE = re.compile(r"''|\\u([0-9a-f]{4})|\\(.)", re.DOTALL)
MEANING = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}

HOSTILE = "'\"`\\;-/*()$@{}%?:_a1\n\r\t\b\x07\x7f\u200b\u202e\u2028é嵌😀"
NAMES = [
    "ai_embed_8",
    "MyFunction",
    "select",
    "1st",
    'quo"te',
    "it's",
    "back`tick",
    "back\\slash",
    "tail\\",
    "semi;colon -- no comment",
    "/* nor this */",
    "dot.ted",
    "嵌入 😀",
    '"',
    "a');DROP TABLE articles;--",
]


def read_literal(text: str) -> str:
    """Return what Databend reads a literal as; the whole text must be one token."""
    token = QUOTED.match(text)
    assert token is not None
    assert token.end() == len(text)
    assert text[0] == "'"

    def meant(escape: re.Match[str]) -> str:
        if escape[0] == "''":
            return "'"
        return chr(int(escape[1], 16)) if escape[1] else MEANING.get(escape[2], escape[2])

    return ESCAPE.sub(meant, text[1:-1])


def read_identifier(text: str) -> str:
    """Return what Databend reads a name as; the whole text must be one token."""
    if text[0] not in '"`':
        assert re.fullmatch(r"[a-z_][a-z0-9_]*", text)
        return text
    token = QUOTED.match(text)
    assert token is not None
    assert token.end() == len(text)
    return text[1:-1].replace(2 * text[0], text[0])


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.text(st.sampled_from(HOSTILE)))
def test_a_literal_is_one_token_and_reads_back(text: str) -> None:
    """Whatever a text holds, Databend's tokenizer ends it where it ends, on its line, and reads that very text."""
    quoted = literal(text)
    assert read_literal(quoted) == text
    assert len(quoted.splitlines()) == 1


@given(st.text(min_size=1) | st.text(st.sampled_from(HOSTILE), min_size=1))
def test_an_identifier_is_one_token_or_refused(name: str) -> None:
    """A name is quoted so that it is one token and reads back; what has no such form is refused."""
    try:
        quoted = identifier(name)
    except ConfigError:
        assert not name.isprintable() or ("\\" in name and "`" in name)
    else:
        assert read_identifier(quoted) == name
        assert quoted not in RESERVED


@pytest.mark.parametrize("text", ["a\0b", "half \ud800"])
def test_what_no_text_can_hold_is_refused(text: str) -> None:
    """NUL and half a surrogate pair stand in no SQL text."""
    with pytest.raises(ConfigError, match="which SQL cannot hold"):
        literal(text)


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "a\u202eb", "a\\`b", "\ud800"])
def test_names_that_cannot_be_shown_or_quoted_are_refused(name: str) -> None:
    """An invisible character in pasted SQL would hide what it does."""
    with pytest.raises(ConfigError):
        identifier(name)
    with pytest.raises(ConfigError):
        table_name(("db", name))


@pytest.mark.parametrize(
    "address",
    [
        "", "127.0.0.1:8815", "grpc://host:1", "http://", "http://host:99999", "http://user:secret@host:1",
        "http://host:1/path", "http://host:1?q", "http://host:1#f", "http://ho'st:1", "http://host:1'; DROP", "http://h\n:1",
        "http://host:0", "http://höst:1", 'http://h"ost:1', "http://[::1:1",
    ],
)  # fmt: skip
def test_an_address_is_scheme_host_and_port(address: str) -> None:
    """Everything else is refused, and not repeated: it may hold a password."""
    with pytest.raises(ConfigError) as caught:
        server_config(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8815", "https://embed.example.com", "http://[::1]:8815"])
def test_the_configuration_is_toml_that_allows_the_address(address: str) -> None:
    """For both versions; the newer one has a line for plain http."""
    old = tomllib.loads(server_config(address))["query"]
    new = tomllib.loads(server_config(address, version="current"))["query"]
    assert old == {"enable_udf_server": True, "udf_server_allow_list": [address]}
    assert new == old | ({"udf_server_allow_insecure": True} if address.startswith("http:") else {})


def hashing(dim: int = 8) -> EmbeddingFunction:
    """A function of some width."""
    return embedreg.get("hashing").create(dim=dim)


def test_the_statements_for_a_current_server() -> None:
    """IMMUTABLE, a named argument, VECTOR(n), an index, and a place for the token where one is wanted."""
    served = Served("ai_embed_8", hashing(), returns="vector")
    assert create_function(served, "https://embed.example.com", version="current", token=True, replace=False) == (
        "CREATE FUNCTION ai_embed_8 (input STRING)\n"
        "    RETURNS VECTOR(8)\n"
        "    LANGUAGE PYTHON IMMUTABLE\n"
        "    HANDLER = 'ai_embed_8'\n"
        "    HEADERS = ('authorization' = 'Bearer <the token>')\n"
        "    ADDRESS = 'https://embed.example.com';"
    )
    table = create_vector_table(served, Layout("db.notes", "note", "v"), version="current")
    start, _, rest = table.partition("    v VECTOR(8) COMMENT 'embedding_functions=[")
    assert start == "CREATE TABLE db.notes_embedded (\n    id BIGINT,\n    note STRING,\n"
    assert rest.partition("]',\n")[2] == (
        "    VECTOR INDEX notes_embedded_index (v) distance = 'cosine'\n"
        ")\n"
        "AS SELECT id, note, ai_embed_8(note) FROM db.notes;"
    )


def test_what_a_version_does_not_have_is_refused() -> None:
    """VECTOR(n) is newer than 1.2.453, and an unknown version is refused."""
    served = Served("f", hashing(), returns="vector")
    with pytest.raises(ConfigError, match="no VECTOR type"):
        create_function(served, "http://h:1")
    with pytest.raises(ConfigError, match="did you mean 'current'"):
        create_function(served, "http://h:1", version="curent")


def test_a_token_has_a_place_only_where_databend_can_send_it() -> None:
    """1.2.453 knows no HEADERS."""
    assert "HEADERS" not in create_function(Served("f", hashing()), "http://h:1", token=True)


def measured(metric: str, unit: bool) -> EmbeddingFunction:
    """A function whose vectors are compared by some metric."""

    class Measured(embedreg.TextEmbeddingFunction):
        traits: ClassVar = Traits(metric=metric)

        def ndims(self) -> int:
            return 2

        def generate_embeddings(self, texts: list[str]) -> list[list[float]]:
            return [[1.0, 0.0] for _ in texts]

        def vector_traits(self) -> dict[str, object]:
            return {"normalized": unit}

    return Measured()


def test_distances_follow_the_functions_metric() -> None:
    """L2 is L2; dot products of unit vectors sort as cosines do; others have no distance in both versions."""
    assert "l2_distance(embedding, " in search(Served("f", measured("l2", unit=False)), Layout())
    assert "cosine_distance(embedding, " in search(Served("f", measured("dot", unit=True)), Layout())
    with pytest.raises(ConfigError, match="'dot'"):
        search(Served("f", measured("dot", unit=False)), Layout())


# -- the real engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of one function under many names, each name with a width of its own."""
    with serve({name: hashing(dim + 2) for dim, name in enumerate(NAMES)}, bind="127.0.0.1:0", warm=False) as running:
        yield running


@pytest.fixture(scope="module")
def engine(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A real engine that may call the server."""
    with Engine(tmp_path_factory.mktemp("engine"), server.address) as running:
        yield running


@needs_engine
def test_the_engine_reads_hostile_texts_as_they_are(engine: Engine) -> None:
    """Three hundred texts of what SQL, its escapes and terminals treat specially come back unchanged."""
    draw = random.Random(0)
    texts = ["".join(draw.choices(HOSTILE, k=draw.randint(0, 12))) for _ in range(300)]
    selected = ", ".join(f"{literal(text)} AS c{n}" for n, text in enumerate(texts))
    [row] = engine.rows(f"SELECT {selected}")
    assert [row[f"c{n}"] for n in range(len(texts))] == texts


@needs_engine
def test_the_engine_takes_every_name_as_printed(engine: Engine, server: Server) -> None:
    """A function is created, and called, under each hostile name, and is that function and no other."""
    for served, statement in zip(server.functions, server.ddl().split("\n\n"), strict=True):
        engine.sql(statement)
        [row] = engine.rows(f"SELECT length({identifier(served.name)}('some text')) AS n")
        assert row["n"] == served.function.ndims()


@needs_engine
def test_the_engine_takes_hostile_tables_and_columns(engine: Engine, server: Server) -> None:
    """Table and search, as printed, where every name in them is hostile."""
    served = server.functions[0]
    engine.sql(create_function(served, server.address))
    for n, name in enumerate(NAMES):
        layout = Layout((f"t{n} {name}",), source=f"s {name}", vector=f"v {name}", key=f"k {name}")
        engine.sql(create_source_table(served, layout))
        rows = f"(1, {literal(name)}), (2, NULL), (3, 'water the tomatoes')"
        engine.sql(f"INSERT INTO {table_name(layout.table)} VALUES {rows}")
        engine.sql(create_vector_table(served, layout))
        for stored in (True, False):
            found = engine.rows(search(served, layout, stored=stored, text=name))
            assert (found[0][layout.key], found[0][layout.source]) == (1, name)
            assert found[-1]["distance"] is None


@needs_engine
def test_words_that_mean_something_to_the_engine_are_quoted(engine: Engine, server: Server) -> None:
    """Every reserved word can be the name of a table, of its columns and of a function."""
    served = server.functions[0]
    engine.sql(create_function(served, server.address))
    for word in sorted(RESERVED):
        layout = Layout(word, source=word)
        engine.sql(create_source_table(served, layout))
        engine.sql(search(served, layout, stored=False))
        engine.sql(create_function(Served(word, served.function), server.address).replace(f"'{word}'", "'ai_embed_8'"))


@needs_engine
def test_a_column_comment_leads_back_to_the_function(engine: Engine, server: Server) -> None:
    """What the engine shows as the comment of the vector column rebuilds the very function, whatever its names hold."""
    function = embedreg.get("hashing").create(dim=8, seed=7)
    served = Served("ai_embed_8", function)
    engine.sql(create_function(served, server.address))
    for n, source in enumerate(('it\'s "content"', "back\\slash\\'", "嵌入")):
        layout = Layout(f"commented_{n}", source=source)
        engine.sql(create_source_table(served, layout))
        engine.sql(create_vector_table(served, layout))
        shown = engine.rows(f"SELECT comment FROM system.columns WHERE table = {literal(f'commented_{n}_embedded')}")
        found = functions_in_comments(row["comment"] for row in shown)
        assert found["embedding"].function == function
        assert found["embedding"].source_column == source


def test_comments_are_read_with_and_without_the_quotes_of_old_versions() -> None:
    """1.2.453 shows a comment in quotes, newer servers show it as it is."""
    table = embedreg.embed_table(pa.table({"it's": ["a"]}), hashing().bind("it's", "v"))
    [entry] = embedreg.functions_in(table).entries.values()
    plain = comments.comment_of(entry)
    quoted = "'" + plain.replace("'", "\\'") + "'"
    for shown in (plain, quoted):
        assert functions_in_comments([None, "", "'", "a price", shown])["v"].source_column == "it's"


def test_every_name_that_is_exported_is_there() -> None:
    """`__all__` is the index of the module."""
    assert all(hasattr(sql, name) for name in sql.__all__)
