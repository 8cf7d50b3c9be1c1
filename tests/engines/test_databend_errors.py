"""What the SQL user reads of an error: one line, and in it no path, no input and no secret."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import embedreg
from embedreg.engines.databend import serve
from embedreg.engines.databend_call import in_one_line
from embedreg.errors import CallError
from tests.engines.databend_flight import Client, Scripted
from tests.fakes import Lengths

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
    """NULL tells a SQL user nothing; the server's log has a reason, without the input."""
    with (
        serve({"f": Scripted.create(script="logged")}, bind=HERE, warm=False) as server,
        caplog.at_level(logging.INFO, "embedreg"),
    ):
        Client(server.address).call("f", ["fine", "bad", "bad", None])
    assert "f: 1 input(s) have no vector: refused by hand" in caplog.text
