"""What the server takes and gives over Arrow Flight: types, nulls, chunks, and each input once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from databend_udf import UDFServer
from prometheus_client import REGISTRY

import embedreg
from embedreg import EmbeddingFunction
from embedreg.engines.databend import Limits, Served, Server, queries_differ, serve
from embedreg.errors import ConfigError
from tests.engines.databend_flight import Client, Scripted, expected, vector_of
from tests.fakes import Lengths

TEXTS = ["one", None, "", " \t", "two", "one", "drei", None, "two", "one"]
STRINGS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
BINARIES = [pa.binary(), pa.large_binary(), pa.binary_view()]


class Bytes(EmbeddingFunction):
    """Embeds a picture as (its bytes, its first byte), and a text query as (its length, 0)."""

    traits: ClassVar[embedreg.Traits] = embedreg.Traits(modality="image", retry=False)

    def ndims(self) -> int:
        return 2

    def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        return [[len(image), image[0]] for image in self.sanitize_input(images)]

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return [[len(query), 0]]


class Prompted(Lengths):
    """Puts a prompt before queries, so that they and sources differ."""

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
        return self.generate_embeddings(["query: " + query])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server of everything; small chunks, so that calls have several."""
    functions = [
        Served("ai_array", Scripted.create(script="flight")),
        Served("ai_vector", Scripted.create(script="flight"), returns="vector"),
        Served("ai_image", Bytes.create(), input="image"),
        Served("ai_image_query", Bytes.create(), role="query"),
        Served("ai_prompted", Prompted.create()),
        Served("ai_prompted_query", Prompted.create(), role="query"),
    ]
    with serve(functions, bind="127.0.0.1:0", limits=Limits(chunk_rows=4)) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Client:
    """A client of that server."""
    return Client(server.address)


@pytest.mark.parametrize("kind", STRINGS, ids=str)
@pytest.mark.parametrize("name", ["ai_array", "ai_vector"])
def test_texts_of_every_arrow_type(client: Client, name: str, kind: pa.DataType) -> None:
    """Old engines send large_utf8, new ones string views; null and blank rows become null in either result type."""
    made = client.call(name, pa.array(TEXTS).cast(kind))
    assert made.to_pylist() == expected(TEXTS)


@pytest.mark.parametrize("kind", BINARIES, ids=str)
def test_pictures_arrive_as_binary(client: Client, kind: pa.DataType) -> None:
    """BINARY goes to the function as it is; a null or empty one is null."""
    made = client.call("ai_image", pa.array([b"\x07ab", None, b"", b"\x09", b"\x07ab"], kind))
    assert made.to_pylist() == [[3, 7], None, None, [1, 9], [3, 7]]


def test_texts_are_queries_of_pictures(client: Client) -> None:
    """A function of images is searched with text, under its query role."""
    assert client.call("ai_image_query", ["a cat", None]).to_pylist() == [[5, 0], None]


def test_roles_that_differ_are_served_apart(server: Server, client: Client) -> None:
    """Rows and queries of one function have their own vectors, also for one and the same text."""
    assert client.call("ai_prompted", ["text"]).to_pylist() == [[4, 1, 1]]
    assert client.call("ai_prompted_query", ["text", None, "text"]).to_pylist() == [[11, 3, 2], None, [11, 3, 2]]
    assert queries_differ(Prompted.create())
    assert not queries_differ(Lengths.create())
    assert not queries_differ(embedreg.get("hashing").create())


def test_the_array_type_is_the_one_that_the_engine_takes(client: Client) -> None:
    """ARRAY(FLOAT): a nullable list of floats that are not."""
    wanted = pa.list_(pa.field("item", pa.float32(), nullable=False))
    assert client.schema("ai_array") == pa.schema(
        [pa.field("input", pa.large_utf8()), pa.field("vector", wanted, nullable=True)]
    )
    made = client.call("ai_array", TEXTS)
    assert made.type == wanted
    for chunk in made.chunks:
        chunk.validate(full=True)


def test_the_vector_type_is_the_one_of_newer_engines(client: Client) -> None:
    """VECTOR(n): a nullable fixed-size list of n floats, named so in the metadata; a null row keeps its place."""
    result = client.schema("ai_vector").field(1)
    assert result.type == pa.list_(pa.float32(), 3)
    assert result.nullable
    assert result.metadata == {b"Extension": b"Vector", b"vector_size": b"3"}
    made = client.exchange("ai_vector", pa.record_batch({"input": pa.array(["a", None, "bb"], pa.large_string())}))
    assert made.schema.field(0).metadata == result.metadata
    (chunk,) = made.column(0).chunks
    chunk.validate(full=True)
    assert len(chunk.values) == 9
    assert chunk.to_pylist() == expected(["a", None, "bb"])


def test_an_input_is_embedded_once_over_all_chunks(server: Server, client: Client) -> None:
    """Rows of many chunks that repeat each other far apart reach the function once, and each has its vector."""
    numbers = np.random.default_rng(0)
    texts = [None if k % 11 == 0 else f"text {k}" for k in numbers.integers(0, 60, 500).tolist()]
    seen = Scripted.create(script="flight").behaviour.seen
    seen.clear()
    made = client.call("ai_array", texts)
    assert made.to_pylist() == expected(texts)
    assert len(made.chunks) > 10
    assert sorted(seen) == sorted({text for text in texts if text})


def test_equal_functions_share_their_vectors(server: Server, client: Client) -> None:
    """What one SQL function has embedded, another of the same embedding function has too."""
    client.call("ai_array", ["only once"])
    before = server.counts()["embedded"]
    assert client.call("ai_vector", ["only once"]).to_pylist() == [vector_of("only once")]
    assert server.counts()["embedded"] == before


def test_a_constant_costs_one_embedding(server: Server, client: Client) -> None:
    """A query's constant arrives once for each row of the table, from several threads of the engine."""
    before = server.counts("ai_array")
    made = client.call("ai_array", ["the constant of the query"] * 3000)
    again = client.call("ai_array", ["the constant of the query"] * 3000)
    assert made.to_pylist() == again.to_pylist() == [vector_of("the constant of the query")] * 3000
    after = server.counts("ai_array")
    assert after["embedded"] - before["embedded"] == 1
    assert after["rows"] - before["rows"] == 6000


def test_nothing_in_nothing_out(client: Client) -> None:
    """A batch without rows, and one of nothing but nulls."""
    assert client.call("ai_array", pa.array([], pa.large_string())).to_pylist() == []
    assert client.call("ai_array", [None] * 9).to_pylist() == [None] * 9
    assert client.call("ai_vector", [None, " "]).to_pylist() == [None, None]


@pytest.mark.parametrize("returns", ["array", "vector"])
def test_an_answer_of_many_megabytes_comes_in_several_messages(returns: Literal["array", "vector"]) -> None:
    """Each is below the 4 MiB that clients take by default, and its rows are the right ones, nulls among them."""
    function = embedreg.get("hashing").create(dim=384)
    texts = [None if row % 7 == 0 else f"text {row}" for row in range(6000)]
    with serve([Served("f", function, returns=returns)], bind="127.0.0.1:0") as server:
        made = Client(server.address).call("f", texts)
    assert max(chunk.nbytes for chunk in made.chunks) < 2**22
    assert 2 < len(made.chunks) < 6
    expected = embedreg.embed_column(function, texts)
    assert made.is_valid().to_pylist() == expected.valid.tolist()
    flat = made.combine_chunks().drop_null().flatten().to_numpy()
    assert np.array_equal(flat.reshape(-1, 384), expected.matrix[expected.valid])


def test_several_batches_in_one_call(client: Client) -> None:
    """Each batch is answered, in order."""
    batches = [pa.record_batch({"input": pa.array([f"{k}", None], pa.large_string())}) for k in range(5)]
    made = client.exchange("ai_array", *batches).column(0)
    assert made.to_pylist() == expected([text for k in range(5) for text in (f"{k}", None)])


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("ai_array", pa.array([1, 2]), "ai_array: it takes STRING, and got a column of type int64"),
        ("ai_array", pa.array([b"x"]), "ai_array: it takes STRING, and got a column of type binary"),
        ("ai_image", pa.array(["x"]), "ai_image: it takes BINARY, and got a column of type string"),
    ],
)
def test_another_type_is_refused_in_one_line(client: Client, name: str, column: pa.Array, said: str) -> None:
    """The message names the function, what it takes and what it got."""
    with pytest.raises(flight.FlightServerError) as caught:
        client.call(name, column)
    assert str(caught.value).partition(". Detail:")[0] == said


def test_another_number_of_arguments_is_refused(client: Client) -> None:
    """A function takes one argument."""
    two = pa.record_batch({"a": pa.array(["x"]), "b": pa.array(["y"])})
    with pytest.raises(flight.FlightServerError, match="ai_array: it takes one STRING, and got 2 arguments"):
        client.exchange("ai_array", two)


def test_an_unknown_function_is_named_with_those_there_are(client: Client) -> None:
    """At CREATE FUNCTION and at a call; without a traceback."""
    for call in (lambda: client.schema("ai_arrow"), lambda: client.call("ai_arrow", ["x"])):
        with pytest.raises(
            flight.FlightServerError, match=r"unknown function 'ai_arrow'; this server has ai_array, ai_im"
        ):
            call()


def test_databends_own_functions_are_kept(client: Client) -> None:
    """Databend's tools ask `builtin_healthy` and `builtin_echo`."""
    assert client.call("builtin_echo", ["hello"]).to_pylist() == ["hello"]
    assert len(client.schema("builtin_healthy")) == 1


def test_a_client_may_ping(server: Server) -> None:
    """Databend's client pings while it reads a large answer. gRPC by itself ends a connection at the third ping."""
    ping, settings = b"\0\0\x08\x06\0\0\0\0\0", b"\0\0\0\x04\0\0\0\0\0"  # frames of HTTP/2 (RFC 9113)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
        got = connection.makefile("rb")
        for number in range(20):
            connection.sendall(ping + number.to_bytes(8))
            kind = 4  # settings
            while kind == 4:
                head = got.read(9)
                kind, body = head[3], got.read(int.from_bytes(head[:3]))
            assert (kind, int.from_bytes(body)) == (6, number), body


def test_too_long_a_text_is_a_bad_row() -> None:
    """What is over `max_text_bytes` never reaches the model, and its neighbours are embedded."""
    with serve({"f": Lengths.create()}, bind="127.0.0.1:0", limits=Limits(max_text_bytes=10)) as server:
        made = Client(server.address).call("f", ["ok", "x" * 11, None, "é" * 6, "fine"])
        assert made.to_pylist() == [[2, 1, 1], None, None, None, [4, 2, 1]]
        assert server.counts()["bad"] == 2
        assert server.counts()["nulls"] == 1


def test_without_room_for_vectors_nothing_is_kept() -> None:
    """`cache_rows=0`: each call embeds anew, and within a call still once."""
    Lengths.seen.clear()
    with serve(
        {"f": Lengths.create()}, bind="127.0.0.1:0", limits=Limits(cache_rows=0, chunk_rows=2), warm=False
    ) as server:
        for _ in range(2):
            made = Client(server.address).call("f", ["a", "b", "c", "a", "b", "a"])
            assert made.to_pylist() == [[1, 1, 1], [1, 0, 1], [1, 0, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]]
    assert sorted(Lengths.seen) == ["a", "a", "b", "b", "c", "c"]


def test_our_function_works_in_databends_own_server(server: Server) -> None:
    """It keeps to databend-udf's contract: `UDFServer.add_function` takes it."""
    before = set(REGISTRY._collector_to_names)
    theirs = UDFServer("127.0.0.1:0")
    theirs.add_function(server._flight._functions["ai_array"])
    try:
        made = Client(f"http://127.0.0.1:{theirs.port}").call("ai_array", TEXTS)
        assert made.to_pylist() == expected(TEXTS)
    finally:
        theirs.shutdown()
        for collector in list(REGISTRY._collector_to_names):
            if collector not in before:  # else the next one of this process could not be made
                REGISTRY.unregister(collector)


@pytest.mark.parametrize(
    ("served", "said"),
    [
        ({}, "there is no function to serve"),
        ({"": Lengths.create()}, "invalid name of a SQL function: ''"),
        ({"builtin_echo": Lengths.create()}, "'builtin_echo' is used twice"),
        ([Served("f", Lengths.create()), Served("f", Lengths.create())], "'f' is used twice"),
        ({"f": "a string"}, "expected an embedding function, got a str"),
        ([Lengths.create()], "expected Served, got a Lengths without a SQL name"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_door(served: Any, said: str) -> None:
    """Before anything listens."""
    with pytest.raises(ConfigError, match=said):
        serve(served, bind="127.0.0.1:0")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input": "image"}, "Lengths embeds text, not image"),
        ({"role": "both"}, "invalid role='both'; expected 'source' or 'query'"),
        ({"returns": "list"}, "invalid returns='list'; expected 'array' or 'vector'"),
    ],
)
def test_a_function_is_served_only_as_what_it_is(options: dict[str, Any], said: str) -> None:
    """A text function takes no pictures; roles and results are those there are."""
    with pytest.raises(ConfigError, match=said):
        Served("f", Lengths.create(), **options)


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk_rows": 0},
        {"chunk_rows": 10**6},
        {"queue": -1},
        {"call_deadline_s": 0},
        {"cache_rows": 1.5},
        {"drain_s": "1"},
    ],
    ids=str,
)
def test_limits_that_leave_no_room_are_refused(wrong: dict[str, Any]) -> None:
    """With the name of the limit and a value that can be pasted."""
    (name,) = wrong
    with pytest.raises(ConfigError, match=name) as caught:
        Limits(**wrong)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"{name}=")
