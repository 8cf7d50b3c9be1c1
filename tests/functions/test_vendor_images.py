"""Images by a service: each vendor's form, one form of pictures, and nothing read that the policy does not allow."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import embedreg
from embedreg import EmbeddingFunction
from embedreg.errors import CallError, InputError
from embedreg.media.allowances import allow_images
from embedreg.runtime.remote import pictures
from embedreg.testing import EmbeddingFunctionContract
from tests.servers import Reply
from tests.vendors import KEY, VendorServer, vendor_server

Image = pytest.importorskip("PIL.Image")
WIDTH = 256
FIELDS: dict[str, dict[str, Any]] = {
    "jina-clip": {"query_task": "retrieval.query", "source_task": "retrieval.passage"},
    "voyageai-multimodal": {},
    "cohere-multimodal": {},
}


def picture(shade: int, kind: str = "png", side: int = 12) -> bytes:
    """Return a file of a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 2 * shade % 256, 40)).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def running() -> Iterator[VendorServer]:
    """The server of this module."""
    with vendor_server() as server:
        yield server


@pytest.fixture
def server(running: VendorServer) -> VendorServer:
    """The server, with nothing in it."""
    embedreg.get_registry().set_var("vendor_key", KEY)
    running.requests.clear()
    running.replies.clear()
    return running


def create(name: str, server: VendorServer, **more: Any) -> EmbeddingFunction:
    """Return a function on the server."""
    url = f"http://{server.host}" + ("" if name == "cohere-multimodal" else "/v1")
    config = {"api_key": "$var:vendor_key", "dim": WIDTH, "base_url": url, **FIELDS[name], **more}
    made: EmbeddingFunction = embedreg.get(name).create(**config)
    return made


every = pytest.mark.parametrize("name", list(FIELDS))


@every
def test_each_form_of_a_picture_is_sent_as_one_png(name: str, server: VendorServer) -> None:
    """A file, a PIL image and an array of equal pixels are one request's equal bytes; a text is a text."""
    function = create(name, server, max_retries=0)
    opened = Image.open(io.BytesIO(picture(9)))
    rows = [picture(9), opened, np.asarray(opened), picture(30)]
    made = embedreg.embed_column(function, rows)
    assert made.valid.all()
    assert np.array_equal(made.matrix[0], made.matrix[1])
    assert np.array_equal(made.matrix[0], made.matrix[2])
    assert not np.array_equal(made.matrix[0], made.matrix[3])
    (sent,) = {text for request in server.asked for text in _pictures(request.body)} - {_png(picture(30))}
    assert Image.open(io.BytesIO(base64.b64decode(sent))).size == (12, 12)
    text = embedreg.embed_query(function, "a red square")
    image = embedreg.embed_query(function, opened)
    assert not np.array_equal(text, image)
    assert not np.array_equal(image, made.matrix[0])  # a query's form
    assert function.vector_traits()["prompts"] is not None


def _png(data: bytes) -> str:
    return pictures.picture_of(data, from_query=False, max_bytes=10**7, max_pixels=10**7).data


def _pictures(body: Any) -> list[str]:
    """Return the pictures of a request, in base64."""
    found = []
    for each in body.get("inputs") or body["input"]:
        part = each["content"][0] if "content" in each else each
        url = part.get("image_url", {}).get("url") or part.get("image_base64") or part.get("image")
        found += [url.rpartition(",")[2]] if url else []
    return found


@every
def test_what_is_not_an_image_is_a_bad_row(name: str, server: VendorServer, tmp_path: Path) -> None:
    """No image, a path and an address that data may not name: each its own reason, and nothing is sent of them."""
    (tmp_path / "a.png").write_bytes(picture(50))
    rows = [str(tmp_path / "a.png"), f"http://{server.host}/a.png", str(tmp_path / "b.png"), None]
    table = pa.table({"image": rows})
    function = create(name, server)
    report = embedreg.Report()
    bound = function.bind("image", "vector")
    made = embedreg.embed_table(table, bound, on_error="null", report=report)
    assert made["vector"].null_count == 4
    assert [bad.row for bad in report.bad] == [0, 1, 2]
    assert len(server.asked) == 1  # the probe
    with allow_images(dirs=[tmp_path]):
        made = embedreg.embed_table(table.slice(0, 1), bound)
    assert made["vector"].null_count == 0
    column = embedreg.embed_column(function, [picture(1), b"not an image", picture(2)])
    assert column.valid.tolist() == [True, False, True]


@every
def test_texts_and_images_are_mixed_only_where_it_is_declared(name: str, server: VendorServer) -> None:
    """A string is a name, a text, or either, as `source_type` says; what is mixed keeps its order."""
    url = "data:image/png;base64," + base64.b64encode(picture(7)).decode()
    rows = ["a text", url, "http is a protocol"]
    mixed = create(name, server, source_type="mixed")
    made = embedreg.embed_column(mixed, rows)
    assert made.valid.all()
    assert np.array_equal(made.matrix[1], embedreg.embed_column(create(name, server), [picture(7)]).matrix[0])
    texts = embedreg.embed_column(create(name, server, source_type="text"), rows[::2])
    assert np.array_equal(made.matrix[::2], texts.matrix)
    plain = embedreg.embed_column(create(name, server), ["a text", url])
    assert plain.valid.tolist() == [False, True]
    with pytest.raises(InputError):
        embedreg.embed_column(create(name, server, source_type="text"), [picture(7)])


def test_a_picture_over_the_service_s_limits(server: VendorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """JPEG where PNG is too large; too many pixels or bytes are a bad row."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    limits = {"from_query": False, "max_pixels": 10_000}
    assert pictures.picture_of(noise, max_bytes=20_000, **limits).kind == "png"
    assert pictures.picture_of(noise, max_bytes=10_000, **limits).kind == "jpeg"
    function = create("jina-clip", server)
    monkeypatch.setattr(type(function), "max_pixels", 1000)
    made = embedreg.embed_column(function, [noise, picture(3)])
    assert made.valid.tolist() == [False, True]
    assert "pixels" in made.reasons[0]


@every
def test_a_refused_picture_costs_its_row_and_a_refused_key_the_call(name: str, server: VendorServer) -> None:
    """The batch of a refused picture is halved; a wrong key ends the call, and a server that refuses all inputs."""
    function = create(name, server, concurrency=1)
    server.replies.extend([Reply("error", 400, "bad image")])
    assert embedreg.embed_column(function, [picture(n) for n in range(3)]).valid.all()
    server.replies.extend([Reply("error", 401, "no")] * 3)
    with pytest.raises(CallError, match="HTTP 401"):
        embedreg.embed_column(function, [picture(5)])
    server.requests.clear()
    server.replies.clear()
    server.replies.extend([Reply("error", 400, "no such model")] * 9)
    with pytest.raises(CallError, match="no such model") as caught:
        embedreg.embed_column(function, [picture(n) for n in range(3)])
    assert "refuses every text" in str(caught.value.hint)
    assert len(server.asked) == 2


class TestImages(EmbeddingFunctionContract):
    """Each function keeps the contract."""

    # the three share all but the body of a request
    @pytest.fixture(params=["jina-clip", *(pytest.param(each, marks=pytest.mark.slow) for each in [*FIELDS][1:])])
    def function(self, request: pytest.FixtureRequest, server: VendorServer) -> EmbeddingFunction:
        return create(request.param, server, max_retries=0)

    @pytest.fixture
    def inputs(self) -> list[bytes]:
        return [picture(10), picture(90), picture(200, side=20)]

    @pytest.fixture
    def query(self) -> str:
        return "a picture"

    @pytest.fixture
    def tolerance(self) -> float:
        return 0.0
