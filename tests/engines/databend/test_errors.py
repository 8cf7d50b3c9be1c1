"""What the SQL user reads of an error: one line, and in it no path, no input and no secret."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import embedreg
from embedreg.engines.databend import Limits, serve
from embedreg.engines.databend.call import in_one_line
from embedreg.engines.databend.message import WITHHELD
from embedreg.errors import CallError
from tests.engines.databend_flight import Client, Scripted
from tests.fakes import Lengths
from tests.timing import within

HERE = "127.0.0.1:0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cannot read /home/me/a b/key.pem now", "cannot read <path> b/key.pem now"),
        ("no file '/home/me/a b/key.pem'", "no file <path>"),
        (r"no file C:\Users\me\key.pem", "no file <path>"),
        ("~/models/x is gone", "<path> is gone"),
        ("see https://example.com/a/b for more", "see https://example.com/a/b for more"),
        (
            "the model 'sentence-transformers/all-MiniLM-L6-v2' failed",
            "the model 'sentence-transformers/all-MiniLM-L6-v2' failed",
        ),
        ("two\nlines\tand \x1b[31mcolour", "two lines and ?[31mcolour"),
        ("1/2 of 3 / 4", "1/2 of 3 / 4"),
        ("x" * 1000, "x" * 397 + "..."),
        ("cannot open local-dir:/srv/models", "cannot open <path>"),
        ("see file:///srv/a or FILE:/srv/a", "see <path> or <path>"),
        ("path=/srv/x (/srv) [/srv/a]", "path=<path> (<path>) [<path>]"),
        ("s3://bucket/key?secret_key=abc", "<path>"),
        ("../up/x and $HOME/x and data/private/x.parquet", "<path> and <path> and <path>"),
        ("'local-dir:/srv/a b/c'", "<path>"),
        (r"\\\\host\share\a", "<path>"),
        ("file%3A%2F%2Fsrv", "<path>"),
        ("text/plain of an owner/name", "text/plain of an owner/name"),
    ],
)
def test_a_message_is_one_line_without_paths(text: str, said: str) -> None:
    """A URL and a model's name stay; what a path may be goes."""
    assert in_one_line(text) == said


@pytest.mark.parametrize(
    "quoted",
    [
        "a private letter to the bank",
        "a private letter t",
        "vate letter to the bank",
        "private letter to the",
        "secret",
    ],
)
def test_a_message_quotes_no_input(quoted: str) -> None:
    """Neither whole nor a part that was cut out of it."""
    inputs = ["other", "a private letter to the bank", "secret"]
    assert in_one_line(f"the service refused {quoted!r}", inputs) == "the service refused '...'"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("the service says: A PRIVATE LETTER TO THE BANK", "the service says: ..."),
        ("bad: private-letter", "bad: ..."),
        ("bad: 'priv'", "bad: '...'"),
        ("Zoe\u0308 failed", None),
        ("zo\\u00eb failed", None),
        ("ab is bad", "... is bad"),
        ("the tab of the table", "the tab of the table"),
        ("card 4111-1111", "card ..."),
        ("card 4111111111111111", "card ..."),
        ("mail X@Y.Z", "mail ..."),
        ("STRASSE 5 failed", "... failed"),
        ("number 234567", "number ..."),
        ("hex 736563726574", "hex ..."),
        ("a%20private%20letter", None),
        ("\u2702\u2702 failed", "... failed"),
    ],
)
def test_an_input_of_any_length_and_spelling_stays_out(message: str, said: str | None) -> None:
    """Upper case, escapes, other signs between, short ones, numbers cut out of long ones."""
    inputs = [
        "a private letter to the bank",
        "Zo\u00eb",
        "ab",
        "4111 1111 1111 1111",
        "x@y.z",
        "stra\u00dfe 5",
        "1234567",
    ]
    cleaned = in_one_line(message, [*inputs, "secret", "\u2702\u2702"])
    assert said is None or cleaned == said
    assert not any(part in cleaned.lower() for part in ("zo", "private", "4111", "x@y", "stra", "3456", "7365"))


@pytest.mark.parametrize("inputs", [["x" * 2_000_000], ["y" * 1000] * 2000, [str(n) for n in range(10_000)]])
def test_inputs_that_are_too_large_to_compare_withhold_the_message(inputs: list[str]) -> None:
    """The comparison is bounded; what cannot be compared is not shown."""
    with within(1):
        assert in_one_line("the service said xxxx", iter(inputs)) == WITHHELD


def test_the_secrets_of_a_function_stay_out(run_python: Any) -> None:
    """A function that holds a key and puts it into its error: the SQL user reads `***`."""
    embedreg.get_registry().set_var("databend_key", "key-0123456789-planted")

    class Keyed(embedreg.TextEmbeddingFunction):
        api_key: str = "$var:databend_key"
        max_retries: int = 0

        def ndims(self) -> int:
            return 2

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(f"401 for {self.api_key}")

    with serve({"f": Keyed.create()}, bind=HERE, warm=False) as server:
        with pytest.raises(Exception, match=r"f: RuntimeError: 401 for \*\*\*") as caught:
            Client(server.address).call("f", ["x"])
        assert "planted" not in str(caught.value)


def test_a_call_error_says_what_failed() -> None:
    """Words of embedreg's own reach the SQL user, without the hint for programmers."""

    class Down(Lengths):
        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            raise CallError("the service is down.", "embedreg doctor")

    with serve({"f": Down.create()}, bind=HERE, warm=False) as server:
        with pytest.raises(Exception, match="f: the service is down") as caught:
            Client(server.address).call("f", ["x"])
        assert "doctor" not in str(caught.value)


def test_the_log_counts_bad_rows_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """NULL gives a SQL user no reason; the server's log has a reason, without the input."""
    with (
        serve({"f": Scripted.create(script="logged")}, bind=HERE, warm=False) as server,
        caplog.at_level(logging.INFO, "embedreg"),
    ):
        Client(server.address).call("f", ["fine", "bad", "bad", None])
    assert "f: 1 input(s) have no vector: refused by hand" in caplog.text


def test_a_text_over_the_limit_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """It is NULL for the SQL user; whoever runs the server reads why, and the text reaches no function."""
    fn = Scripted.create(script="long")
    limits = Limits(max_text_bytes=10)
    with serve({"f": fn}, bind=HERE, limits=limits, warm=False) as server, caplog.at_level(logging.WARNING, "embedreg"):
        long = "far too long a text"
        made = Client(server.address).call("f", ["short", long, None, long, "\u00e9" * 6]).to_pylist()
        assert [vector is None for vector in made] == [False, True, True, True, True]
        counts = server.counts("f")
        assert (counts["too_long"], counts["bad"], counts["nulls"]) == (3, 3, 1)
        assert fn.behaviour.seen == ["short"]
    assert "f: 3 input(s) have no vector: over limits.max_text_bytes, 10 bytes; the longest has 19" in caplog.text
    assert "far too" not in caplog.text
