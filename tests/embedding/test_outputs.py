"""What a function returns and raises, at the one door to models: checked, cleaned of secrets, never written into."""

from __future__ import annotations

import dataclasses
import logging
from collections import UserList
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given as given_of
from hypothesis import settings
from hypothesis import strategies as st

import embedreg
from embedreg import (
    EmbeddingFunction,
    Report,
    RowError,
    TextEmbeddingFunction,
    Traits,
    embed_column,
    embed_query,
    embed_table,
)
from embedreg.core.modality import PROBE_TEXT
from embedreg.errors import BadRowsError, CallError, ConfigError, InputError, VectorError
from embedreg.security.redaction import redact

NAN, INF = float("nan"), float("inf")
KEY = "sk-0123456789-of-a-function"


@embedreg.register("gives")
class Gives(TextEmbeddingFunction):
    """Returns what a test lays down: `how` makes the result for a list of texts; the probe gets plain ones."""

    traits: ClassVar[Traits] = Traits(window=8)
    how: ClassVar[Callable[[list[str]], Any]]
    max_retries: int = 0

    def ndims(self) -> int:
        return 3

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return np.ones((1, 3)) if list(texts) == [PROBE_TEXT] else type(self).how(list(texts))


@embedreg.register("gives-with-a-key")
class GivesWithAKey(Gives):
    """The same, and it holds a key."""

    api_key: str | None = None

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]


def gives(how: Callable[[list[str]], Any], kind: type[Gives] = Gives, **config: Any) -> Gives:
    """Return a function whose result is made by `how`."""
    kind.how = staticmethod(how)
    return kind.create(**config)


def with_key(how: Callable[[list[str]], Any]) -> Gives:
    """Return such a function that holds KEY."""
    embedreg.get_registry().set_var("outputs_key", KEY)
    return gives(how, GivesWithAKey, api_key="$var:outputs_key")


# -- never written into ------------------------------------------------------------------------------------------------


def frozen(array: np.ndarray) -> np.ndarray:
    """Return an array that cannot be written to."""
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "kept",
    [
        lambda: np.array([[1, 2, 3], [NAN, 0, 0]], np.float32),
        lambda: frozen(np.array([[1, 2, 3], [NAN, 0, 0]], np.float32)),
        lambda: np.array([[1, 2, 3], [9, 9, 9], [NAN, 0, 0], [9, 9, 9]], np.float32)[::2],
        lambda: np.array([[1, 2, 3], [NAN, 0, 0]], np.float64),
        lambda: [np.array([1, 2, 3], np.float32), frozen(np.array([NAN, 0, 0], np.float32))],
        lambda: __import__("torch").tensor([[1, 2, 3], [NAN, 0, 0]]),
        lambda: pa.array([[1, 2, 3], [NAN, 0, 0]], pa.list_(pa.float32(), 3)),
    ],
)
def test_the_same_array_may_be_returned_again(kept: Callable[[], Any]) -> None:
    """What a function keeps and returns again is the same the second time: a bad row stays bad, nothing is changed."""
    memo = kept()
    before = np.array(
        [list(map(float, row)) for row in np.asarray(memo if not isinstance(memo, pa.Array) else memo.to_pylist())]
    )
    function = gives(lambda texts: memo)
    for _ in range(2):
        made = embed_column(function, ["a", "b"])
        assert made.valid.tolist() == [True, False]
        assert made.reasons == {1: "its vector is not finite"}
        assert made.matrix.tolist() == [[1, 2, 3], [0, 0, 0]]
        made.matrix[:] = 7
    after = np.array(
        [list(map(float, row)) for row in np.asarray(memo if not isinstance(memo, pa.Array) else memo.to_pylist())]
    )
    np.testing.assert_array_equal(after, before)


def test_a_buffer_may_be_used_again_for_the_next_answer() -> None:
    """A function that answers each call in one buffer gives each row its own vector, in chunks and query by query."""
    buffer = np.zeros((8, 3), np.float32)

    def fill(texts: list[str]) -> Any:
        buffer[: len(texts)] = [[float(text), 1, 1] for text in texts]
        return buffer[: len(texts)]

    class Asked(Gives):
        def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
            return fill([query])

    texts = [str(number) for number in range(20)]
    assert embed_column(gives(fill), texts).matrix[:, 0].tolist() == list(range(20))
    asked = gives(fill, Asked)
    assert embed_column(asked, texts, "query").matrix[:, 0].tolist() == list(range(20))
    first = embed_query(asked, "1")
    assert embed_query(asked, "2").tolist() == [2, 1, 1]
    assert first.tolist() == [1, 1, 1]


@pytest.mark.parametrize("held", ["nothing", "itself", "a view", "its memory", "a frozen one"])
def test_only_a_matrix_that_the_function_has_not_kept_is_used_without_a_copy(held: str) -> None:
    """Whatever still refers to it could write into it later."""
    kept: list[Any] = []
    places: list[int] = []

    def give(texts: list[str]) -> Any:
        made = np.ones((len(texts), 3), np.float32)
        kept.append({"itself": made, "a view": made[1:], "its memory": memoryview(made)}.get(held))
        places.append(made.ctypes.data)
        return frozen(made) if held == "a frozen one" else made

    made = embed_column(gives(give), ["a", "b"])
    assert (made.matrix.ctypes.data == places[0]) == (held == "nothing")
    made.matrix[:] = 2  # it is the caller's, in any case


# -- what is a vector, what is a bad row, what is a failed call --------------------------------------------------------

MIXED = {
    "none": (None, "the function returned no vector"),
    "an error": (RowError("too long"), "too long"),
    "no words": (RowError(""), "the function gave no reason"),
    "no text": (RowError(ValueError("odd")), "odd"),  # type: ignore[arg-type]  # what authors write
    "empty": ([], "the function returned an empty vector"),
    "short": ([1, 2], "the function returned 2 dimensions for it instead of 3"),
    "long": (np.zeros(4), "the function returned 4 dimensions for it instead of 3"),
    "deep": ([[1, 2, 3]], "the function returned an array of shape (1, 3) for it instead of 3"),
    "number": (1.5, "the function returned a float for it that is not a vector of numbers"),
    "ragged": ([1, [2], 3], "the function returned a list for it that is not a vector of numbers"),
    "strings": (["1", "2", "3"], "the function returned a list for it that is not a vector of numbers"),
    "text": ("1,2", "the function returned a str for it that is not a vector of numbers"),
    "dict": ({0: 1.0}, "the function returned a dict for it that is not a vector of numbers"),
    "complex": ([1j, 0, 0], "the function returned a list for it that is not a vector of numbers"),
    "flags": ([True, False, True], "the function returned a list for it that is not a vector of numbers"),
    "hole": ([1, None, 3], "its vector is not finite"),
    "nan": ([NAN, 1, 1], "its vector is not finite"),
    "large": ([1e300, 1, 1], "its vector is not finite"),
    "masked": (np.ma.array([1.0, 2, 3], mask=[0, 1, 0]), "its vector is not finite"),
}


@pytest.mark.parametrize("kind", MIXED)
def test_an_invalid_row_fails_alone(kind: str) -> None:
    """Its neighbours have their vectors, and the report states what was wrong with it."""
    odd, reason = MIXED[kind]
    report = Report()
    rows = [{"text": text} for text in ("one", "odd", "two")]
    function = gives(lambda texts: [odd if text == "odd" else [1, 2, 3] for text in texts])
    made = embed_table(rows, function.bind("text", "vector"), on_error="null", report=report)
    assert made["vector"].to_pylist() == [[1, 2, 3], None, [1, 2, 3]]
    assert [(bad.row, bad.reason) for bad in report.bad] == [(1, reason)]


@pytest.mark.parametrize("kind", ["none", "an error", "empty", "hole", "nan", "large", "masked"])
def test_one_row_alone_is_a_bad_row_too(kind: str) -> None:
    """Whether a row has neighbours makes no difference to what has no vector."""
    odd, reason = MIXED[kind]
    function = gives(lambda texts: [odd] * len(texts))
    assert embed_column(function, ["odd"]).reasons == {0: reason}
    with pytest.raises(BadRowsError) as caught:
        embed_query(function, "odd")
    assert reason in caught.value.message


class Odd:
    """An object of no use."""


async def later(texts: list[str]) -> Any:
    """Return vectors, if somebody awaits them."""
    return [[1, 2, 3]] * len(texts)


async def stream(texts: list[str]) -> Any:
    """Yield vectors, if somebody awaits them."""
    for _ in texts:
        yield [1, 2, 3]


FAILED: dict[str, tuple[Callable[[list[str]], Any], str]] = {
    "nothing": (lambda texts: None, "returned None for 3 inputs"),
    "an object": (lambda texts: Odd(), "returned an Odd for 3 inputs"),
    "a number": (lambda texts: 3.5, "returned a float for 3 inputs"),
    "an array of no axis": (lambda texts: np.float32(3), r"shape \(\) for 3 inputs"),
    "a dict": (lambda texts: {text: [1, 2, 3] for text in texts}, "returned a dict for 3 inputs"),
    "a set": (lambda texts: {(1, 2, 3), (4, 5, 6), (7, 8, 9)}, "returned a set for 3 inputs"),
    "a text": (lambda texts: "abc", "returned a str for 3 inputs"),
    "bytes": (lambda texts: b"abc", "returned a bytes for 3 inputs"),
    "a coroutine": (later, "returned a coroutine for 3 inputs"),
    "an asynchronous stream": (stream, "returned an async_generator for 3 inputs"),
    "an Arrow table": (lambda texts: pa.table({"x": [[1.0, 2, 3]] * 3}), "returned a Table for 3 inputs"),
    "too few": (lambda texts: [[1, 2, 3]], r"shape \(1, '\?'\) for 3 inputs"),
    "too few of an array": (lambda texts: np.ones((2, 3)), r"shape \(2, 3\) for 3 inputs"),
    "none at all": (lambda texts: [], "for 3 inputs"),
    "too many": (lambda texts: [[1, 2, 3]] * 4, "for 3 inputs"),
    "without an end": (lambda texts: iter(lambda: [1, 2, 3], None), "4 or more"),
    "wrong width": (lambda texts: [[1, 2]] * 3, r"shape \(3, 2\) for 3 inputs; \(3, 3\)"),
    "wrong width beside none": (lambda texts: [None, None, [1, 2]], r"shape \(3, 2\) for 3 inputs"),
    "all empty": (lambda texts: [[]] * 3, r"shape \(3, 0\)"),
    "all NaN": (lambda texts: np.full((3, 3), NAN), "none of the 3 vectors .* is finite"),
    "all NaN in one place": (lambda texts: [[1, NAN, 1]] * 3, "none of the 3 vectors .* is finite"),
    "all infinite": (lambda texts: np.full((3, 3), 1e39), "none of the 3 vectors .* is finite"),
    "texts": (lambda texts: texts, "not numbers"),
    "an array of texts": (lambda texts: np.array([["1", "2", "3"]] * 3), "vectors of <U1"),
    "flags": (lambda texts: np.ones((3, 3), bool), "vectors of bool"),
    "flags of torch": (lambda texts: __import__("torch").ones((3, 3), dtype=bool), "vectors of bool"),
    "complex of torch": (lambda texts: __import__("torch").ones((3, 3), dtype=__import__("torch").cfloat), "complex64"),
    "dates": (lambda texts: np.zeros((3, 3), "M8[s]"), "vectors of datetime64"),
    "a frame of texts": (
        lambda texts: __import__("pandas").DataFrame({"a": texts, "b": texts, "c": texts}),
        "not numbers|vectors of",
    ),
}


@pytest.mark.parametrize("kind", FAILED)
@pytest.mark.parametrize("on_error", ["raise", "null", "drop"])
def test_a_problem_of_all_rows_is_a_failed_call(kind: str, on_error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under every policy, an outage raises an error instead of writing nulls. The error names the result."""
    how, message = FAILED[kind]
    function = gives(how)
    monkeypatch.setattr(Gives, "generate_embeddings", lambda self, texts: how(list(texts)))  # the probe too
    with pytest.raises(VectorError, match=message):
        embed_table({"text": ["a", "b", "c"]}, function.bind("text", "vector"), on_error=on_error)


def test_a_few_rows_that_are_not_finite_are_bad_rows_if_the_function_works() -> None:
    """If only a few rows fail, a probe shows whether the function works; if many fail, it does not."""
    function = gives(lambda texts: np.full((len(texts), 3), NAN))  # but for the probe
    assert set(embed_column(function, ["a", "b"]).reasons) == {0, 1}
    many = gives(lambda texts: np.full((len(texts), 3), NAN), type("Many", (Gives,), {"traits": Traits(window=9)}))
    with pytest.raises(VectorError, match="none of the 9 vectors"):
        embed_column(many, list("abcdefghi"))


RIGHT: dict[str, Callable[[np.ndarray], Any]] = {
    "float64": lambda m: m.astype(np.float64),
    "long doubles": lambda m: m.astype(np.longdouble),
    "whole numbers": lambda m: m.astype(np.uint8),
    "objects": lambda m: m.astype(object),
    "decimals": lambda m: [[Decimal(str(x)) for x in row] for row in m.tolist()],
    "big endian": lambda m: m.astype(">f8"),
    "a generator": lambda m: (row for row in m),
    "a map": lambda m: map(list, m),
    "a list of its own": lambda m: UserList(m.tolist()),
    "a tensor on grad": lambda m: __import__("torch").tensor(m, requires_grad=True),
    "tensors on grad": lambda m: list(__import__("torch").tensor(m, requires_grad=True)),
    "whole tensors": lambda m: __import__("torch").tensor(m).int(),
    "half a tensor": lambda m: __import__("torch").tensor(m).half(),
    "a sparse tensor": lambda m: __import__("torch").tensor(m).to_sparse(),
    "a frame": lambda m: __import__("pandas").DataFrame(m),
    "a polars frame": lambda m: __import__("polars").DataFrame(m.tolist(), orient="row"),
    "a series of lists": lambda m: __import__("pandas").Series(m.tolist()),
    "a polars series": lambda m: __import__("polars").Series(m.tolist()),
    "a chunked array": lambda m: pa.chunked_array([pa.array(m[:1].tolist()), pa.array(m[1:].tolist())]),
    "Arrow's scalars": lambda m: list(pa.array(m.tolist())),
    "a matrix": np.asmatrix,
    "nothing masked": np.ma.array,
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("kind", RIGHT)
def test_any_numeric_type_is_accepted(kind: str) -> None:
    """Every container of n vectors of d numbers becomes the same float32 matrix."""
    function = gives(lambda texts: RIGHT[kind](np.array([[ord(text), 1, 2] for text in texts], np.float32)))
    made = embed_column(function, ["a", "b"])
    assert made.valid.all()
    assert made.matrix.tolist() == [[97, 1, 2], [98, 1, 2]]


@pytest.mark.parametrize("width", [None, 3.0, -1, 0, True, "3", 10**12, np.float32(3), [3]])
def test_an_invalid_width_is_refused(width: Any) -> None:
    """`ndims()` gives an int from 1 to 65,536; numpy's ints are ints."""

    class Wide(Gives):
        def ndims(self) -> Any:
            return width

    for use in (lambda: Wide().ndims(), lambda: embed_column(Wide(), ["a"]), lambda: embed_query(Wide(), "a")):
        with pytest.raises(ConfigError, match=r"ndims\(\) returned"):
            use()


def test_numpys_ints_are_widths() -> None:
    """`ndims()` may give numpy's integer, as `array.shape` arithmetic does."""

    class Wide(Gives):
        def ndims(self) -> Any:
            return np.int64(3)

    assert embed_column(gives(lambda texts: np.ones((len(texts), 3)), Wide), ["a"]).matrix.shape == (1, 3)


# -- texts that are none -----------------------------------------------------------------------------------------------


def test_a_text_that_is_not_unicode_is_a_bad_row() -> None:
    """Half a surrogate pair in a list, bytes that are not UTF-8 in Arrow: named so; the others have vectors."""
    function = gives(lambda texts: [[len(text), 1, 1] for text in texts])
    expected = {1: "it is not valid Unicode"}
    for broken in ("\ud800", "a\udcffb", "\udfff\ud800"):
        made = embed_column(function, ["ok", broken, None, " ", "fine"])
        assert made.reasons == expected
        assert made.valid.tolist() == [True, False, False, False, True]
        assert made.matrix[:, 0].tolist() == [2, 0, 0, 0, 4]
        assert embed_column(function, [broken]).reasons == {0: "it is not valid Unicode"}
        with pytest.raises(BadRowsError, match="not valid Unicode"):
            embed_query(function, broken)
    for kind in (pa.string(), pa.large_string()):
        raw = pa.array(
            [b"ok", b"caf\xe9", None, b" ", b"fine"], pa.large_binary() if kind == pa.large_string() else pa.binary()
        )
        column = raw.view(kind)
        assert embed_column(function, column).reasons == expected
        assert embed_column(function, column, "query").reasons == expected
        report = Report()
        made = embed_table(pa.table({"text": column}), function.bind("text", "vector"), on_error="null", report=report)
        assert made["vector"].to_pylist() == [[2, 1, 1], None, None, None, [4, 1, 1]]
        assert [(bad.row, bad.reason) for bad in report.bad] == [(1, "it is not valid Unicode")]


def test_a_number_among_texts_is_not_null() -> None:
    """A value that is not text is an error next to half a surrogate pair too."""
    with pytest.raises(InputError, match="a text function got int"):
        embed_column(gives(lambda texts: [[1, 2, 3]] * len(texts)), ["\ud800", 3])


# -- secrets -----------------------------------------------------------------------------------------------------------


class Loud(str):
    """A text that answers every question with the key."""

    def replace(self, *args: Any) -> str:
        return str.__str__(self)

    def __str__(self) -> str:
        return str.__str__(self)


class Chatty(RowError):
    """A RowError that keeps the key in places of its own."""

    def __init__(self) -> None:
        super().__init__(f"the service said {KEY}", f"look at {KEY}")
        self.response = {"authorization": KEY}
        self.__cause__ = ValueError(KEY)
        self.add_note(f"tried {KEY}")


class Silent(RowError):
    """A RowError whose message cannot be read."""

    message = property(lambda self: (_ for _ in ()).throw(ValueError(KEY)), lambda self, value: None)  # type: ignore[assignment]


def lazily(texts: list[str]) -> Iterator[Any]:
    """Yield a vector, and fail at the next."""
    yield [1, 2, 3]
    raise ValueError(f"no more for {KEY}")


class Sequence(UserList[Any]):
    """Rows that are made when they are asked for."""

    def __iter__(self) -> Iterator[Any]:
        return lazily([])


TELLING: dict[str, Callable[[list[str]], Any]] = {
    "a message": lambda texts: [RowError(f"service said {KEY}")] * len(texts),
    "a message among vectors": lambda texts: ([1, 2, 3], RowError(f"service said {KEY}")),
    "a str of its own": lambda texts: [RowError(Loud(f"service said {KEY}"))] * len(texts),
    "an exception for a message": lambda texts: [RowError(ValueError(KEY))] * len(texts),  # type: ignore[arg-type]
    "upper case": lambda texts: [RowError(KEY.upper())] * len(texts),
    "a class of its own": lambda texts: [Chatty()] * len(texts),
    "no message": lambda texts: [Silent("x")] * len(texts),
    "the whole result": lambda texts: RowError(KEY),
    "a stream": lambda texts: iter([RowError(KEY)] * len(texts)),
    "a stream that fails": lazily,
    "rows that fail": lambda texts: Sequence(),
    "raised": lambda texts: (_ for _ in ()).throw(RowError(KEY)),
    "raised by another": lambda texts: (_ for _ in ()).throw(RuntimeError(KEY)),
}


def all_of(value: Any) -> str:
    """Return all that can be read of an error or a result."""
    if isinstance(value, BaseException):
        parts = [value, value.args, vars(value), value.__cause__, value.__context__, getattr(value, "hint", None)]
        return "\n".join(f"{part!r}\n{part!s}" for part in parts)
    if isinstance(value, list | tuple):
        return "\n".join(map(all_of, value))
    return repr(value)


@pytest.mark.parametrize("kind", TELLING)
def test_what_a_function_returns_holds_no_secret(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A returned RowError is cleaned as a raised error is: in reports, errors, logs and results."""
    caplog.set_level(logging.DEBUG)
    function = with_key(TELLING[kind])
    report = Report()
    found: list[Any] = []
    for use in (
        lambda: function.compute_source_embeddings(["a", "b"]),
        lambda: function.generate_embeddings(["a", "b"]),
        lambda: function.compute_query_embeddings("a"),
        lambda: embed_column(function, ["a", "b"]),
        lambda: embed_column(function, ["a", "b"], "query"),
        lambda: embed_query(function, "a"),
        lambda: embed_table({"text": ["a", "b"]}, function.bind("text", "vector")),
        lambda: embed_table({"text": ["a", "b"]}, function.bind("text", "vector"), on_error="null", report=report),
    ):
        try:
            found.append(use())
        except Exception as exc:  # noqa: BLE001  # any: what they hold is looked at
            found.append(exc)
    text = "\n".join([*map(all_of, found), repr(report), caplog.text])
    assert redact(text, [KEY]) == text
    assert KEY.upper() not in text


def test_what_is_stored_of_a_function_holds_no_secret() -> None:
    """`model_identity()` and `vector_traits()` go into metadata: they are cleaned too."""

    class Telling(GivesWithAKey):
        def model_identity(self) -> str | None:
            return f"revision {self.api_key}"

        def vector_traits(self) -> dict[str, Any]:
            return {**super().vector_traits(), "prompts": {"query": self.api_key}}

    function = with_key(lambda texts: [[1, 2, 3]] * len(texts))
    telling = gives(lambda texts: [[1, 2, 3]] * len(texts), Telling, api_key="$var:outputs_key")
    assert isinstance(function, EmbeddingFunction)
    assert telling.model_identity() == "revision ***"
    assert telling.vector_traits()["prompts"] == {"query": "***"}


def test_reasons_are_one_line_of_bounded_length() -> None:
    """A reason that steers a terminal, or that is a megabyte, is shown as a short line of printable text."""
    function = gives(lambda texts: [RowError("\x1b[31mred\nand \ud800" + "x" * 2_000_000)])
    (reason,) = embed_column(function, ["a"]).reasons.values()
    assert reason.startswith("\N{REPLACEMENT CHARACTER}[31mred and \N{REPLACEMENT CHARACTER}xxx")
    assert len(reason) == 500


# -- errors ------------------------------------------------------------------------------------------------------------


def test_an_error_names_its_function() -> None:
    """A user's error stays the very one it is, with a note that names the function."""
    problem = RuntimeError("boom")

    def fail(texts: list[str]) -> Any:
        raise problem

    with pytest.raises(RuntimeError) as caught:
        embed_column(gives(fail), ["a"])
    assert caught.value is problem
    assert problem.__notes__ == [f"raised by your function 'gives' ({Gives.__module__}.Gives)"]
    with pytest.raises(RuntimeError):
        embed_column(gives(fail), ["a"])
    assert len(problem.__notes__) == 1


def test_an_error_that_cannot_be_changed_comes_out_as_it_is() -> None:
    """A frozen dataclass takes no note; it is raised all the same."""

    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):
        code: int

    def fail(texts: list[str]) -> Any:
        raise Frozen(7)

    with pytest.raises(Exception, match="7") as caught:
        gives(fail).generate_embeddings(["a"])
    assert type(caught.value).__name__ == "Frozen"


def test_a_stop_iteration_does_not_end_the_data() -> None:
    """A StopIteration, which would end a generator silently, becomes another error."""

    def fail(texts: list[str]) -> Any:
        return next(iter(()))

    for function in (gives(fail), with_key(fail)):
        with pytest.raises(CallError, match="StopIteration"):
            embed_column(function, ["a"])


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_is_not_a_failed_call(kind: type[BaseException]) -> None:
    """It is never retried, and raised unchanged."""
    calls: list[int] = []

    def fail(texts: list[str]) -> Any:
        calls.append(1)
        raise kind

    with pytest.raises(kind):
        embed_column(gives(fail, max_retries=7), ["a"])
    assert calls == [1]


def test_each_retry_is_a_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has the function, the error type and the delay, but not the error's message."""
    monkeypatch.setattr("embedreg.support.retry.FIRST_WAIT_S", 0.001)
    fails = iter([ConnectionError("the input was 'secret'")] * 2)

    def flaky(texts: list[str]) -> Any:
        if (problem := next(fails, None)) is not None:
            raise problem
        return [[1, 2, 3]] * len(texts)

    with caplog.at_level(logging.WARNING, "embedreg"):
        assert embed_column(gives(flaky, max_retries=7), ["a"]).valid.all()
    said = [record.getMessage() for record in caplog.records if record.name == "embedreg"]
    assert len(said) == 2
    assert said[0].startswith("your function 'gives': call 1 of 8 failed (ConnectionError); trying again in 0.0 s")
    assert "secret" not in "".join(said)


# -- zero vectors ------------------------------------------------------------------------------------------------------


def zeros(texts: list[str]) -> Any:
    """Embed "zero" as zeros."""
    return np.array([[0, 0, -0.0] if text == "zero" else [0, 2, 3] for text in texts], np.float32)


@pytest.mark.parametrize(
    ("metric", "policy", "vector", "bad"),
    [
        ("cosine", None, None, []),
        ("dot", None, [0, 0, 0], []),
        ("l2", None, [0, 0, 0], []),
        ("l2", "null", None, []),
        ("cosine", "keep", [0, 0, 0], []),
        ("cosine", "error", None, [1, 3]),
        ("dot", "error", None, [1, 3]),
    ],
)
def test_zero_vectors_have_one_policy(metric: Any, policy: Any, vector: Any, bad: list[int]) -> None:
    """Null for cosine, kept for other metrics, a bad row on request, and always counted."""
    function = gives(zeros, type("Zeros", (Gives,), {"traits": Traits(metric=metric)}))
    made = embed_column(function, ["a", "zero", None, "zero"], zero_vectors=policy)
    assert made.zeros is not None
    assert made.zeros.tolist() == [False, True, False, True]
    assert sorted(made.reasons) == bad
    assert made.valid.tolist() == [True, vector is not None, False, vector is not None]
    asked = policy if policy is not None else "keep" if metric != "cosine" else "null"
    if asked == "keep":
        assert embed_query(function, "zero", zero_vectors=policy).tolist() == [0, 0, 0]
    else:
        with pytest.raises(BadRowsError, match="all zeros"):
            embed_query(function, "zero", zero_vectors=policy)


def test_an_unknown_policy_is_refused() -> None:
    """Before anything is embedded."""
    with pytest.raises(ConfigError, match="zero_vectors='drop'"):
        embed_column(gives(zeros), ["a"], zero_vectors="drop")  # type: ignore[arg-type]


def test_a_query_reads_the_metric_only_for_a_vector_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's metric is read from its files, which takes longer than a cached query."""
    read = []
    monkeypatch.setattr(Gives, "vector_traits", lambda self: read.append(self) or {"metric": "dot"})
    fn = gives(zeros)
    assert embed_query(fn, "one").tolist() == [0, 2, 3]
    assert not read
    assert embed_query(fn, "zero").tolist() == [0, 0, 0]
    assert read
    with pytest.raises(ConfigError, match="zero_vectors='drop'"):
        embed_query(fn, "one", zero_vectors="drop")  # type: ignore[arg-type]


def given(vectors: Any, kind: Any = None) -> pa.Table:
    """Return a table of texts with vectors of its own."""
    return pa.table({"text": ["one", "zero", "two"], "vector": pa.array(vectors, kind or pa.list_(pa.float32(), 3))})


def test_a_table_counts_its_zero_vectors() -> None:
    """Computed ones follow the policy, given ones stay; both are counted; "error" refuses both."""
    bound = gives(zeros).bind("text", "vector")
    rows = {"text": ["one", "zero", None, "zero"]}
    report = Report()
    made = embed_table(rows, bound, report=report)
    assert made["vector"].to_pylist() == [[0, 2, 3], None, None, None]
    assert (report.zeros, report.nulls, report.bad) == (2, 1, [])
    report = Report()
    made = embed_table(rows, bound, zero_vectors="keep", report=report)
    assert made["vector"].to_pylist() == [[0, 2, 3], [0, 0, 0], None, [0, 0, 0]]
    assert report.zeros == 2
    with pytest.raises(BadRowsError, match=r"rows 1, 3 \(text\): its vector is all zeros"):
        embed_table(rows, bound, zero_vectors="error")
    dropped = embed_table(rows, bound, zero_vectors="error", on_error="drop")
    assert dropped["text"].to_pylist() == ["one", None]
    for vectors, embedded in (([[1, 1, 1], [0, 0, 0], [2, 2, 2]], 0), ([[1, 1, 1], [0, 0, 0], None], 1)):
        report = Report()
        made = embed_table(given(vectors), bound, report=report)
        assert made["vector"].to_pylist()[1] == [0, 0, 0]
        assert (report.zeros, report.embedded) == (1, embedded)
        with pytest.raises(BadRowsError, match="its given vector is all zeros"):
            embed_table(given(vectors), bound, zero_vectors="error")


def test_a_column_without_nulls_takes_no_null_for_zeros() -> None:
    """Where the column allows no null, such a row is a bad one, and named."""
    schema = pa.schema([pa.field("text", pa.string()), pa.field("vector", pa.list_(pa.float32(), 3), nullable=False)])
    bound = gives(zeros).bind("text", "vector")
    declared = embed_table({"text": ["one"]}, bound).schema.metadata
    with pytest.raises(BadRowsError, match="all zeros, and the vector column allows no null"):
        embed_table({"text": ["zero"]}, schema.with_metadata(declared))


def test_float16_holds_what_it_can() -> None:
    """A number too large for the column is a bad row, a vector that becomes zeros there is one of zeros."""
    large = {"one": [1, 1, 1], "large": [1, 70_000, 1], "small": [1e-9, 0, 0], "zero": [0, 0, 0]}
    function = gives(lambda texts: [large[text] for text in texts])
    declared = embed_table({"text": ["one"]}, function.bind("text", "vector")).schema
    half = pa.schema([declared.field("text"), pa.field("vector", pa.list_(pa.float16(), 3))], declared.metadata)
    report = Report()
    made = embed_table({"text": list(large)}, half, on_error="null", report=report)
    assert made["vector"].to_pylist() == [[1, 1, 1], None, None, None]
    assert [(bad.row, bad.reason) for bad in report.bad] == [(1, "its vector holds numbers too large for float16")]
    assert report.zeros == 2


def test_given_vectors_stay_and_fail_alone() -> None:
    """One NaN, a hole or a number too large costs its own row; the digits of a float64 column are kept."""
    bound = gives(lambda texts: [[7, 7, 7]] * len(texts)).bind("text", "vector")
    for odd, reason in (
        ([NAN, 0, 0], "its given vector is not finite"),
        ([1, None, 0], "its given vector is not finite"),
        ([1e300, 0, 0], "its given vector is not finite"),
    ):
        report = Report()
        table = given([[1, 1, 1], odd, None], pa.list_(pa.float64()))  # which becomes float32
        made = embed_table(table, bound, on_error="null", report=report)
        assert made["vector"].to_pylist() == [[1, 1, 1], None, [7, 7, 7]]
        assert [(bad.row, bad.reason) for bad in report.bad] == [(1, reason)]
        with pytest.raises(BadRowsError):
            embed_table(table, bound)
    exact = [[0.1, 0.2, 0.3], [1e-300, 1e300, 1], None]
    made = embed_table(given(exact, pa.list_(pa.float64(), 3)), bound)
    assert made["vector"].to_pylist() == [exact[0], exact[1], [7, 7, 7]]


@pytest.mark.parametrize(
    "data",
    [
        [{"text": "ok", "id": 1}, {"text": "\ud800", "id": 2}, {"text": None, "id": 3}],
        {"text": ["ok", "\ud800", None], "id": [1, 2, 3]},
        {"text": np.array(["ok", "\ud800", None], object), "id": [1, 2, 3]},
        {"text": pa.array([b"ok", b"\xff", None]).view(pa.string()), "id": [1, 2, 3]},
    ],
    ids=["rows", "columns", "numpy", "arrow"],
)
def test_a_row_of_a_table_that_is_not_unicode_fails_alone(data: Any) -> None:
    """A bad row under each policy; what is kept of its text can be read, and the other columns are as they were."""
    bound = gives(lambda texts: [[len(text), 1, 1] for text in texts]).bind("text", "vector")
    with pytest.raises(BadRowsError, match=r"row 1 \(text\): it is not valid Unicode"):
        embed_table(data, bound)
    report = Report()
    made = embed_table(data, bound, on_error="null", report=report)
    made.validate(full=True)
    assert made["vector"].to_pylist() == [[2, 1, 1], None, None]
    assert made["id"].to_pylist() == [1, 2, 3]
    assert made["text"].to_pylist()[0::2] == ["ok", None]
    assert set(made["text"].to_pylist()[1]) == {"\N{REPLACEMENT CHARACTER}"}
    assert [(bad.row, bad.reason) for bad in report.bad] == [(1, "it is not valid Unicode")]
    dropped = embed_table(data, bound, on_error="drop", batch_rows=1)
    assert dropped["id"].to_pylist() == [1, 3]


def test_images_for_a_function_of_text_are_named() -> None:
    """The error states that these may be images, and names a function that accepts them."""
    from PIL import Image

    function = gives(lambda texts: [[1, 2, 3]] * len(texts))
    image = Image.new("RGB", (4, 4))
    for value in (image, [image], [np.zeros((4, 4, 3), np.uint8)], np.zeros((2, 4, 4, 3), np.uint8), [b"\x89PNG"]):
        with pytest.raises(InputError, match="may be images, not texts"):
            embed_column(function, value)
    for query in (image, np.zeros((4, 4, 3), np.uint8), b"\x89PNG"):
        with pytest.raises(InputError, match="a query is one text, not a") as caught:
            embed_query(function, query)
        assert "open-clip" in str(caught.value.hint)


# -- any result --------------------------------------------------------------------------------------------------------

NUMBER = st.floats(-1e3, 1e3, width=32).filter(lambda number: number != 0)
VECTOR = st.lists(NUMBER, min_size=3, max_size=3)
WRONG = st.one_of(
    st.none(),
    st.text(max_size=5).map(RowError),
    st.lists(NUMBER, max_size=6).filter(lambda row: len(row) != 3),
    st.permutations([NAN, 1.0, 2.0]),
    st.text(max_size=5),
    st.dictionaries(st.integers(), st.floats(), max_size=3),
    st.binary(max_size=12),
    st.complex_numbers(),
    st.lists(st.text(max_size=3), min_size=3, max_size=3),
)


def is_vector(row: Any) -> bool:
    """Say whether a row is three finite numbers."""
    numbers = isinstance(row, list) and len(row) == 3 and all(isinstance(item, float) for item in row)
    return numbers and bool(np.isfinite(row).all())


@settings(max_examples=60, deadline=None)
@given_of(st.lists(st.one_of(VECTOR, VECTOR, WRONG), min_size=2, max_size=8), st.sampled_from([list, tuple, iter]))
def test_each_row_is_what_the_function_gave_or_has_a_reason(rows: list[Any], kind: Callable[[Any], Any]) -> None:
    """Valid vectors are kept exactly, and every other row has a reason."""
    right = [is_vector(row) for row in rows]
    before = repr(rows)
    texts = [f"text {number}" for number in range(len(rows))]
    function = gives(lambda some: kind(rows))
    if not any(right):
        try:
            made = embed_column(function, texts)
        except VectorError:
            return
        assert not made.valid.any()
        assert len(made.reasons) == len(rows)
        return
    made = embed_column(function, texts)
    assert made.valid.tolist() == right
    assert set(made.reasons) == {row for row, good in enumerate(right) if not good}
    assert made.matrix[made.valid].tolist() == [row for row, good in zip(rows, right, strict=True) if good]
    assert not made.matrix[~made.valid].any()
    assert repr(rows) == before


@settings(max_examples=60, deadline=None)
@given_of(st.text(max_size=30), st.text(max_size=30), st.sampled_from([str, str.upper, repr, Loud]))
def test_no_words_around_a_key_let_it_through(before: str, after: str, spell: Callable[[str], str]) -> None:
    """Wherever a function's reason has the key, the report has none of it."""
    function = with_key(lambda texts: [RowError(f"{before}{spell(KEY)}{after}"), [1, 2, 3]])
    (reason,) = embed_column(function, ["a", "b"]).reasons.values()
    assert KEY.lower() not in reason.lower()
    assert len(reason) <= 500
