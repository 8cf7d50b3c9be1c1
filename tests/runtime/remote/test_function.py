"""What every remote function gets for its `request(batch, role)`: batches, order, threads, blame; all in process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import stamina

import embedreg
from embedreg.core.role import Role
from embedreg.engines.databend import queries_differ
from embedreg.errors import CallError, ConfigError, InputError, RowError, VectorError
from embedreg.runtime.remote import RemoteFunction, RemoteTextFunction
from embedreg.runtime.remote.function import BLAME_REQUESTS


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Leave out the sleeps between attempts."""
    with stamina.set_testing(True, attempts=100, cap=True):
        yield


class Answer(Exception):
    """An error answer of the service."""

    def __init__(self, status_code: int, message: str = "refused") -> None:
        super().__init__(message)
        self.status_code = status_code


class Lengths(RemoteTextFunction):
    """A third party's remote function, all of it: a text's vector is its length and its first character's code."""

    seen: ClassVar[list[list[str]]] = []
    answers: ClassVar[list[Exception]] = []

    def ndims(self) -> int:
        return 2

    def request(self, batch: list[str]) -> Any:
        self.seen.append(batch)
        if self.answers:
            raise self.answers.pop(0)
        if any("poison" in text for text in batch):
            raise Answer(400)
        return [[len(text), ord(text[0])] for text in batch]


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Forget what earlier tests sent."""
    Lengths.seen.clear()
    Lengths.answers.clear()


def lengths(texts: list[str]) -> np.ndarray:
    """What `Lengths` gives, by hand."""
    return np.array([[len(text), ord(text[0])] for text in texts], np.float32).reshape(-1, 2)


TEXTS = [chr(97 + i % 26) * (1 + i % 40) for i in range(500)]


def test_a_few_lines_make_a_remote_function() -> None:
    """`ndims` and `request` are enough: (n, d) float32, in order, one request for a short list."""
    made = Lengths().generate_embeddings(["one", "three"])
    assert made.dtype == np.float32
    assert np.array_equal(made, lengths(["one", "three"]))
    assert Lengths.seen == [["one", "three"]]


@pytest.mark.parametrize("concurrency", [1, 3, 16])
def test_order_holds_under_threads(concurrency: int) -> None:
    """500 texts in 72 requests come back in order; as many requests as allowed are under way at a time, and no more."""
    under_way, most = [0], [0]
    lock, all_there = threading.Lock(), threading.Event()

    class Counting(Lengths):
        def request(self, batch: list[str]) -> Any:
            with lock:
                under_way[0] += 1
                most[0] = max(most[0], under_way[0])
                if under_way[0] >= concurrency:
                    all_there.set()
            all_there.wait(5)
            made = super().request(batch)
            with lock:
                under_way[0] -= 1
            return made

    made = Counting(batch_size=7, concurrency=concurrency).generate_embeddings(TEXTS)
    assert np.array_equal(made, lengths(TEXTS))
    assert len(Lengths.seen) == 72
    assert max(len(batch) for batch in Lengths.seen) == 7
    assert most[0] == concurrency


def test_tokens_bound_a_request() -> None:
    """Requests are cut where the token estimate (a token for two bytes) reaches the limit; a longer text goes alone."""
    fn = Lengths(max_batch_tokens=100, concurrency=1)
    fn.generate_embeddings(["a" * 98, "b" * 98, "c" * 98, "d" * 1000, "e"])
    assert [len(batch) for batch in Lengths.seen] == [2, 1, 1, 1]
    assert fn.count_tokens("a" * 98) == 50


def test_null_and_blank_texts_are_not_sent() -> None:
    """None, NaN, empty and blank texts have None in their places and never reach the service."""
    made = Lengths().generate_embeddings([None, "a", "", " \t\n", float("nan"), "bb"])
    assert [row is None for row in made] == [True, False, True, True, True, False]
    assert Lengths.seen == [["a", "bb"]]
    assert Lengths().generate_embeddings([None, " "]) == [None, None]
    assert Lengths().generate_embeddings([]).shape == (0, 2)
    assert len(Lengths.seen) == 1


@pytest.mark.parametrize(
    "texts", [pa.array(["a", "bb"]), pa.chunked_array([["a"], ["bb"]]), np.array(["a", "bb"]), ("a", "bb")], ids=type
)
def test_any_column_like_thing_is_taken(texts: Any) -> None:
    """Arrow, numpy and sequences give the same."""
    assert np.array_equal(Lengths().generate_embeddings(texts), lengths(["a", "bb"]))
    assert all(type(text) is str for text in Lengths.seen[0])


def test_a_row_that_is_no_text_is_named() -> None:
    """A number among texts is refused before anything is sent, by its row and type and not its value."""
    with pytest.raises(InputError, match="row 1 is int, not text"):
        Lengths().generate_embeddings(["a", 12345])
    assert not Lengths.seen


def test_a_refused_text_costs_only_its_own_row() -> None:
    """Bad rows among 500 are found by halving: the others have their vectors, and few requests were needed."""
    texts = list(TEXTS)
    texts[123] = "poison"
    texts[124] = "more poison"
    texts[499] = "poison"
    made = Lengths(batch_size=250).generate_embeddings(texts)
    bad = [row for row, vector in enumerate(made) if isinstance(vector, RowError)]
    assert bad == [123, 124, 499]
    good = [row for row in range(500) if row not in bad]
    assert np.array_equal(np.stack([made[row] for row in good]), lengths([texts[row] for row in good]))
    assert "HTTP 400" in str(made[123])
    assert len(Lengths.seen) < 60


def test_a_single_refused_text_is_told_from_a_service_that_refuses_all() -> None:
    """A refusal that may be anybody's fault is tried on a harmless word: only if that works is the row to blame."""
    (made,) = Lengths().generate_embeddings(["poison"])
    assert isinstance(made, RowError)
    assert Lengths.seen == [["poison"], ["hello"]]
    Lengths.answers += [Answer(400, "no such deployment"), Answer(400, "no such deployment")]
    with pytest.raises(CallError, match=r"the request for row 0 of this call failed \(HTTP 400\): no such deployment"):
        Lengths().generate_embeddings(["fine"])


def test_blame_is_bounded() -> None:
    """When nearly every text is refused, the requests are bounded and the call fails instead of giving nulls."""
    with pytest.raises(CallError, match="too many texts are refused") as caught:
        Lengths(batch_size=2048).generate_embeddings([f"poison {i}" for i in range(2048)])
    assert len(Lengths.seen) <= BLAME_REQUESTS + 2
    assert "batch_size=64" in str(caught.value)
    Lengths.seen.clear()
    made = Lengths(batch_size=64).generate_embeddings([f"poison {i}" for i in range(128)])
    assert all(isinstance(vector, RowError) for vector in made)


def test_a_limit_that_is_smaller_than_the_batch_is_found_by_halving() -> None:
    """A service that takes fewer texts at a time than it is sent blames no row: its halves are embedded."""

    class Small(Lengths):
        def request(self, batch: list[str]) -> Any:
            if len(batch) > 3:
                raise Answer(422, "batch too large")
            return super().request(batch)

    assert np.array_equal(Small().generate_embeddings(TEXTS[:20]), lengths(TEXTS[:20]))


def test_a_passing_failure_is_tried_again_by_request() -> None:
    """One busy answer costs one more request of the same batch, not the whole call."""
    Lengths.answers.append(Answer(503))
    made = Lengths(batch_size=100, concurrency=1).generate_embeddings(TEXTS)
    assert np.array_equal(made, lengths(TEXTS))
    assert len(Lengths.seen) == 6
    assert Lengths.seen[0] == Lengths.seen[1]


def test_a_failed_call_names_its_rows_and_ends_the_others() -> None:
    """An outage raises, naming rows by their numbers in the call; later requests are not made."""
    texts: list[Any] = ["a", None, "b", "c", None, "d"] + ["e"] * 100
    Lengths.answers += [Answer(503, "down")] * 3
    with pytest.raises(CallError, match=r"rows 0, 2-3, 5 of this call .*\(Answer, HTTP 503\): down\.") as caught:
        Lengths(batch_size=4, concurrency=1, max_retries=2).generate_embeddings(texts)
    assert isinstance(caught.value.__cause__, Answer)
    assert len(Lengths.seen) == 3


def test_one_failure_stops_the_other_threads() -> None:
    """A refused key in one of many requests ends the call at once: the rest is not sent."""
    Lengths.answers += [Answer(401)]
    with pytest.raises(CallError, match="HTTP 401"):
        Lengths(batch_size=1, concurrency=2).generate_embeddings(TEXTS)
    time.sleep(0.05)
    assert len(Lengths.seen) < 20


def test_an_error_never_repeats_an_input() -> None:
    """A service that sends the text back in its refusal is not quoted, nor is its error the cause."""
    secret_text = "a confidential sentence that must not be seen in any log"
    for message in (f"invalid: {secret_text!r}", f"bad input: {secret_text[5:40]}..."):
        Lengths.answers += [Answer(403, message)]
        with pytest.raises(CallError) as caught:
            Lengths().generate_embeddings([secret_text])
        assert "confidential" not in str(caught.value)
        assert "repeats an input and is omitted" in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
    Lengths.answers += [Answer(403, "the text 'short' is refused")]
    with pytest.raises(CallError, match="repeats an input and is omitted"):
        Lengths().generate_embeddings(["short"])


def test_a_mistake_in_request_keeps_its_own_traceback() -> None:
    """A KeyError in a third party's `request` is neither retried nor dressed up."""

    class Broken(Lengths):
        def request(self, batch: list[str]) -> Any:
            super().request(batch)
            return {}["data"]

    with pytest.raises(KeyError):
        Broken().generate_embeddings(["a"])
    assert len(Lengths.seen) == 1


@pytest.mark.parametrize(
    ("result", "match"),
    [
        ([[1.0, 2.0]], "1 vectors for 2 texts"),
        (np.zeros((3, 2)), "3 vectors for 2 texts"),
        (np.zeros(2), "0 vectors for 2 texts"),
        ([], "0 vectors for 2 texts"),
        ([[1.0, 2.0], [1.0]], "different widths"),
        ([[1.0, 2.0], ["x", "y"]], "values that are not numbers"),
        ([["1", "2"], ["3", "4"]], "values that are not numbers"),
        ([[1j, 2], [3, 4]], "values that are not numbers"),
        ([None], "1 vectors for 2 texts"),
        (None, "returned NoneType for 2 texts"),
        ({"a": [1.0, 2.0], "b": [1.0, 2.0]}, "returned dict for 2 texts"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(result: Any, match: str) -> None:
    """Too few or too many vectors, ragged ones and values that are not numbers raise; no row is shifted."""

    class Odd(RemoteTextFunction):
        def ndims(self) -> int:
            return 2

        def request(self, batch: list[str]) -> Any:
            return result

    with pytest.raises(VectorError, match=match):
        Odd().generate_embeddings(["a", "b"])


def test_an_answer_without_a_finite_vector_is_an_outage() -> None:
    """A request of many texts that is answered with NaN alone fails, while the others would have been written."""

    class Down(RemoteTextFunction):
        def ndims(self) -> int:
            return 2

        def request(self, batch: list[str]) -> Any:
            return np.full((len(batch), 2), np.nan if "bad" in batch else 1.0)

    texts = [str(number) for number in range(19)]
    with pytest.raises(VectorError, match="none of the 10 vectors"):
        embedreg.embed_column(Down(batch_size=10), [*texts[:15], "bad", *texts[15:]])
    assert embedreg.embed_column(Down(batch_size=2), ["a", "b", "bad"]).valid.tolist() == [True, True, False]


def test_request_may_fail_single_rows_itself() -> None:
    """None and RowError in what `request` returns stay in their rows."""

    class Picky(RemoteTextFunction):
        def ndims(self) -> int:
            return 1

        def request(self, batch: list[str]) -> Any:
            return [None if text == "n" else RowError("no") if text == "r" else [1.0] for text in batch]

    made = Picky(batch_size=2).generate_embeddings(["a", "n", "r", "b"])
    assert [type(vector).__name__ for vector in made] == ["list", "NoneType", "RowError", "list"]


def test_threads_see_the_callers_variables() -> None:
    """A variable that is set for a block only is seen by the requests made from other threads."""

    class Keyed(Lengths):
        api_key: str | None = None

        @staticmethod
        def sensitive_keys() -> list[str]:
            return ["api_key"]

        def request(self, batch: list[str]) -> Any:
            assert self.api_key == "scoped"
            return super().request(batch)

    with embedreg.get_registry().variables(k="scoped"):
        made = Keyed(api_key="$var:k", batch_size=10).generate_embeddings(TEXTS)
    assert np.array_equal(made, lengths(TEXTS))


def test_how_it_is_sent_is_no_part_of_what_is_stored() -> None:
    """Batches, concurrency and deadlines cannot change a vector, so they are not part of the fingerprint."""
    from embedreg.core.base import runtime_fields

    assert {
        "batch_size",
        "max_batch_tokens",
        "concurrency",
        "timeout_s",
        "deadline_s",
        "max_retries",
    } <= runtime_fields(Lengths)
    with pytest.raises(ConfigError):
        Lengths(batch_size=0)


def test_embed_column_takes_the_rows_errors() -> None:
    """Through the one door to a model: bad rows are reported by row, blanks are null, equal texts are sent once."""
    from embedreg.embedding.table import embed_column

    done = embed_column(Lengths(), ["a", "poison", None, "a", " ", "bb"])
    assert done.valid.tolist() == [True, False, False, True, False, True]
    assert list(done.reasons) == [1]
    assert Lengths.seen[0] == ["a", "poison", "bb"]


# -- the role ----------------------------------------------------------------------------------------------------------


class Asks(RemoteTextFunction):
    """A service that receives the role: 0 for a source, 1 for a query, beside the text's length."""

    seen: ClassVar[list[tuple[str, int]]] = []

    def ndims(self) -> int:
        return 2

    def request(self, batch: list[str], role: Role) -> Any:
        self.seen.append((role, len(batch)))
        return [[len(text), role == "query"] for text in batch]


@pytest.fixture(autouse=True)
def unasked() -> None:
    """Forget the roles of earlier tests."""
    Asks.seen.clear()


def test_request_is_told_the_role_of_its_batch() -> None:
    """By every way that leads to it, in threads too; 1,000 queries are as many requests as fit the batch size."""
    fn = Asks.create(batch_size=300, concurrency=2)
    assert embedreg.embed_column(fn, ["a", "bb"]).matrix.tolist() == [[1, 0], [2, 0]]
    assert embedreg.embed_query(fn, "a").tolist() == [1, 1]
    assert np.asarray(fn.compute_query_embeddings("a")).tolist() == [[1, 1]]
    assert np.asarray(fn.compute_embeddings(["a"], "query")).tolist() == [[1, 1]]
    assert np.asarray(fn.generate_embeddings(["a"])).tolist() == [[1, 0]]
    assert np.asarray(asyncio.run(fn.acompute_query_embeddings("a"))).tolist() == [[1, 1]]
    Asks.seen.clear()
    made = embedreg.embed_column(fn, [f"query {number}" for number in range(1000)], "query")
    assert made.matrix[:, 1].tolist() == [1] * 1000
    assert sorted(Asks.seen) == [("query", 100), *[("query", 300)] * 3]


def test_a_request_without_a_role_is_called_without_one() -> None:
    """As plug-ins wrote it before there were roles, with options of its own too; its queries are its sources."""

    class WithOptions(Lengths):
        def request(self, batch: list[str], timeout_s: float = 1.0, **options: Any) -> Any:
            assert (timeout_s, options) == (1.0, {})
            return super().request(batch)

    for cls in (Lengths, WithOptions):
        assert (
            embedreg.embed_column(cls.create(), ["a", "bb"], "query").matrix.tolist() == lengths(["a", "bb"]).tolist()
        )
        assert not queries_differ(cls.create())
    assert queries_differ(Asks.create())


@pytest.mark.parametrize(
    "request_",
    [
        lambda self, batch, kind: [[len(text), kind == "query"] for text in batch],
        lambda self, batch, /, *, role: [[len(text), role == "query"] for text in batch],
        lambda self, batch, role="source", **options: [[len(text), role == "query"] for text in batch],
    ],
)
def test_the_role_is_passed_as_the_signature_takes_it(request_: Any) -> None:
    """By its name, or as the second argument that the method needs."""
    cls = type("Signed", (RemoteTextFunction,), {"request": request_, "ndims": lambda self: 2, "__module__": __name__})
    assert embedreg.embed_column(cls.create(), ["a"], "query").matrix.tolist() == [[1, 1]]
    assert embedreg.embed_column(cls.create(), ["a"]).matrix.tolist() == [[1, 0]]


@pytest.mark.parametrize("role", ["source", "query"])
def test_a_refused_text_is_found_in_either_role(role: Role) -> None:
    """By halving, in the role of the call; its neighbours get their vectors."""

    class Picky(Asks):
        def request(self, batch: list[str], role: Role) -> Any:
            if any("poison" in text for text in batch):
                raise Answer(400)
            return super().request(batch, role)

    made = embedreg.embed_column(Picky.create(), ["a", "poison", "b"], role)
    assert made.valid.tolist() == [True, False, True]
    assert {asked for asked, _ in Asks.seen} == {role}


def test_overrides_of_lancedbs_methods_keep_the_role() -> None:
    """What a subclass does to its texts is done in either role, and the request receives it."""

    class Louder(Asks):
        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return super().generate_embeddings([text + "!!" for text in texts])

    class Sources(Asks):
        def compute_source_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_source_embeddings([text + "!!" for text in self.sanitize_input(texts)])

    class Prefixed(Asks):
        def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
            return super().compute_query_embeddings("12345" + query)

    for cls in (Louder, Sources):  # queries go through both, as LanceDB's do
        for role, mark in (("source", 0), ("query", 1)):
            assert embedreg.embed_column(cls.create(), ["a"], role).matrix.tolist() == [[3, mark]]  # type: ignore[arg-type]
        assert embedreg.embed_query(cls.create(), "a").tolist() == [3, 1]
        assert np.asarray(cls.create().compute_query_embeddings("a")).tolist() == [[3, 1]]
    assert embedreg.embed_column(Prefixed.create(), ["a"], "query").matrix.tolist() == [[6, 1]]
    assert embedreg.embed_column(Prefixed.create(), ["a"]).matrix.tolist() == [[1, 0]]


def test_other_inputs_than_texts_go_out_in_batches_too() -> None:
    """`RemoteFunction` is for any input: bytes and texts in one batch, nulls left out, refused ones found."""

    class Bytes(RemoteFunction):
        traits = embedreg.Traits(modality="image+text", remote=True, retry=False)
        seen: ClassVar[list[tuple[str, int]]] = []

        def ndims(self) -> int:
            return 2

        def request(self, batch: list[Any], role: Role) -> Any:
            self.seen.append((role, len(batch)))
            if b"poison" in batch:
                raise Answer(422)
            return [[len(value), role == "query"] for value in batch]

    fn = Bytes.create(batch_size=2)
    assert embedreg.embed_column(fn, [b"png", "a text", b"jpeg"], "query").matrix.tolist() == [[3, 1], [6, 1], [4, 1]]
    assert sorted(size for _, size in Bytes.seen) == [1, 2]
    made = embedreg.embed_column(fn, [b"png", b"poison", None, b"jpeg"])
    assert made.valid.tolist() == [True, False, False, True]
    assert "refused this input" in made.reasons[1]
    assert embedreg.embed_query(fn, b"png").tolist() == [3, 1]
    assert np.asarray(fn.compute_source_embeddings([b"png"])).tolist() == [[3, 0]]
    assert np.asarray(fn.compute_query_embeddings("a text")).tolist() == [[6, 1]]


def test_no_module_hides_what_the_package_exports() -> None:
    """`embedreg.runtime.remote.clients` is the cache of clients, whatever module was imported first."""
    import importlib
    import pkgutil

    from embedreg.runtime import remote

    modules = {each.name for each in pkgutil.iter_modules(remote.__path__)}
    for name in modules:
        importlib.import_module(f"{remote.__name__}.{name}")
    assert not modules & set(remote.__all__)
    assert remote.clients.get("key", lambda: "client") == "client"
