"""Any texts, errors and clients: the SQL user reads no input and no path, and nobody is kept from an answer."""

from __future__ import annotations

import base64
import html
import json
import logging
import re
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from embedreg.engines.databend import Limits, Server, serve
from embedreg.engines.databend.call import in_one_line
from tests.engines.databend_flight import Client
from tests.engines.databend_hostile import RawClient, column, descriptor, flight_data, stream
from tests.fakes import Lengths

LIMITS = Limits(max_text_bytes=12, queue=2, stall_s=0.3, call_deadline_s=20)
SOCKETS = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with small limits."""
    with serve({"f": Lengths.create()}, bind="127.0.0.1:0", metrics_bind="127.0.0.1:0", limits=LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    """A client of it."""
    return Client(server.address)


TEXTS = st.none() | st.text(st.sampled_from("aé漢👍 ") | st.characters(codec="utf-8"), min_size=1, max_size=16)


@given(st.lists(TEXTS.filter(lambda text: text is None or bool(text.strip())), min_size=1, max_size=8))
@example(["a" * 12, "a" * 13, "é" * 6, "é" * 7, None, "a" * 13])
@settings(SOCKETS, max_examples=60)
def test_a_text_over_the_limit_is_null_logged_and_counted(
    server: Server, client: Client, texts: list[str | None]
) -> None:
    """By its bytes, not its characters: exactly these rows have no vector, and the log and the counters have them."""
    long = [text is not None and len(text.encode()) > LIMITS.max_text_bytes for text in texts]
    before, lines = server.counts("f"), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("embedreg").addHandler(handler)
    try:
        made = client.call("f", texts).to_pylist()
    finally:
        logging.getLogger("embedreg").removeHandler(handler)
    assert [vector is None for vector in made] == [text is None or over for text, over in zip(texts, long, strict=True)]
    counts = server.counts("f")
    assert counts["too_long"] - before["too_long"] == sum(long)
    told = [line for line in lines if "over limits.max_text_bytes, 12 bytes" in line]
    assert [re.findall(r"f: (\d+) input", line) for line in told] == ([[str(sum(long))]] if any(long) else [])


SPELLED: list[Callable[[str], str]] = [
    *(str, str.upper, str.swapcase, repr, ascii, json.dumps, html.escape, urllib.parse.quote),
    lambda text: text.encode().hex(),
    lambda text: base64.b64encode(text.encode()).decode(),
    lambda text: "-".join(text.split()),
    lambda text: f"'{text[: max(1, len(text) // 2)]}'",
    lambda text: f"{text}...",
    lambda text: f"{{'input': [{text!r}]}}",
]
PLAIN = st.sampled_from(["the service says", "bad input:", "400", "at position 3 of", "invalid value", "=>"])


def letters(text: str) -> str:
    """Return a text's letters and digits in one case."""
    return "".join(char for char in text.casefold() if char.isalnum())


@given(
    text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
    | st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz 0123456789"), min_size=3, max_size=40),
    spell=st.sampled_from(SPELLED),
    before=PLAIN,
    after=PLAIN,
    others=st.lists(st.text(max_size=9), max_size=3),
)
@example("ab", str, "the service says", "400", [])
@settings(max_examples=300, deadline=None)
def test_no_error_quotes_an_input(
    text: str, spell: Callable[[str], str], before: str, after: str, others: list[str]
) -> None:
    """In any common spelling, in quotes or cut in half, and of any length: the words around it stay, it goes."""
    said = spell(text)
    shown = in_one_line(f"{before} {said} {after}", [*others, text])
    assert "\n" not in shown
    assert shown.isprintable()
    inside = letters(said.strip("'."))
    around = letters(before + after)
    if len(inside) >= 3 and not any(inside[at : at + 3] in around for at in range(len(inside) - 2)):
        assert inside not in letters(shown)


@given(
    scheme=st.sampled_from(
        ["", "local-dir:", "file://", "FILE:", "s3://bucket", "gs://b", "abfss://c@a", "~", "$HOME", "C:"]
    ),
    steps=st.lists(
        st.sampled_from(["srv", "secret-models", "größe", "a.b", "key.pem", "..", "x y"]), min_size=2, max_size=5
    ),
    quote=st.sampled_from(["", "'", '"', "`"]),
    before=st.sampled_from(["cannot open ", "no such file: ", "path=", "(", "[", "see "]),
)
@settings(max_examples=200, deadline=None)
def test_no_error_shows_a_path(scheme: str, steps: list[str], quote: str, before: str) -> None:
    """Behind any scheme, in quotes or not, from the root, home, a variable or a drive."""
    steps = steps if quote else [step.replace(" ", "_") for step in steps]
    shown = in_one_line(f"{before}{quote}{scheme}/{'/'.join(steps)}{quote} now")
    assert not any(step in shown for step in steps if step not in ("..", "a.b"))
    assert shown.startswith(before.rstrip())


SAID: dict[str, list[bytes]] = {
    "nothing": [],
    "a name": [flight_data(path=descriptor("f"))],
    "another name": [flight_data(path=descriptor("nobody"))],
    "a schema": stream("f", column(pa.array(["x"])))[:1],
    "a batch": stream("f", column(pa.array(["x"]))),
    "noise": [b"\xff" * 40],
}


@given(st.lists(st.tuples(st.sampled_from(sorted(SAID)), st.booleans()), min_size=1, max_size=8))
@SOCKETS
def test_whatever_silent_clients_say_another_is_answered(
    server: Server, client: Client, silent: list[tuple[str, bool]]
) -> None:
    """Any number of clients that stop at any point, and read their answers or not: the next call takes its second."""
    with ExitStack() as stack:
        for said, read in silent:
            raw = RawClient(server.port)
            stack.callback(raw.close)
            stack.callback(raw.hold(SAID[said], read=read).let_go)
        time.sleep(0.1)  # until they are there
        deadline = time.monotonic() + 5
        while True:  # where the queue is full of them, it says so, until they are ended
            try:
                assert client.call("f", ["x"], timeout_s=5).to_pylist() == [[1, 0, 1]]
                break
            except pa.flight.FlightUnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        while server._flight._calls:  # each of them is ended, though its client is still there
            assert time.monotonic() < deadline
            time.sleep(0.02)


BYTES = st.sampled_from(
    [
        b"",
        b"G",
        b"GET ",
        b"GET /live HTTP/1.1\r\n",
        b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 9000,
        b"\x16\x03\x01",
        b"\0",
    ]
) | st.binary(max_size=60)


@given(st.lists(BYTES, min_size=1, max_size=40))
@SOCKETS
def test_whatever_connects_to_the_metrics_a_probe_is_answered(server: Server, said: list[bytes]) -> None:
    """Connections that say anything, or nothing, and stay: none has a thread of its own, and a probe has its answer."""
    before = threading.active_count()
    with ExitStack() as stack:
        for each in said:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.metrics_port or 0)))
            connection.sendall(each)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/live", timeout=3) as answer:
            assert answer.status == 200
        assert threading.active_count() <= before + 1
