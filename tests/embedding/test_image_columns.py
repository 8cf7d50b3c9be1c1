"""Columns of images: whatever they are made of, equal ones are embedded once, and a bad one fails alone."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stamina
from PIL import Image

import embedreg
from embedreg import EmbeddingFunction, Report, Traits, allow_images, embed_column, embed_query, embed_table, register
from embedreg.arrow.columns import column_of
from embedreg.core import held
from embedreg.core.modality import PROBE_IMAGE, accepted
from embedreg.declaration import drift
from embedreg.embedding.column import distinct_inputs
from embedreg.errors import BadRowsError, InputError
from tests.bad_images import bad_images, broken_exif
from tests.image_fakes import PixelMeans, cell_means, picture, png
from tests.image_servers import ImageServer

N = 5
FILES = [png(seed) for seed in range(N)]
PICTURES = [picture(seed) for seed in range(N)]
EXPECTED = np.stack([cell_means(image) for image in PICTURES])


@pytest.fixture
def function() -> PixelMeans:
    """The image function whose vectors can be computed by hand."""
    return embedreg.get("pixel-means").create()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The pictures as files, in a folder that is allowed."""
    for seed, data in enumerate(FILES):
        (tmp_path / f"{seed}.png").write_bytes(data)
    with allow_images(dirs=[tmp_path]):
        yield tmp_path


@register("keeps-images")
class Keeps(EmbeddingFunction):
    """Counts what reaches it; knows neither images nor texts."""

    traits: ClassVar[Traits] = Traits(modality="image", metric="l2", window=3)
    seen: ClassVar[list[Any]] = []

    def ndims(self) -> int:
        return 2

    def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append(images)
        return np.ones((len(images), 2), np.float32)

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return [np.ones(2, np.float32)]


@pytest.fixture
def keeps() -> Keeps:
    """A function that keeps the windows it was given."""
    Keeps.seen.clear()
    return Keeps.create()


# -- what a column may be made of --------------------------------------------------------------------------------------


def _forms(folder: Path) -> dict[str, Any]:
    arrays = [np.asarray(image) for image in PICTURES]
    paths = [folder / f"{seed}.png" for seed in range(N)]
    names = [str(path) for path in paths]
    objects = np.empty(N, object)
    objects[:] = PICTURES
    binary = pa.array(FILES)
    return {
        "bytes": FILES,
        "bytearrays": [bytearray(data) for data in FILES],
        "memoryviews": [memoryview(data) for data in FILES],
        "pil": PICTURES,
        "lazy pil": [Image.open(io.BytesIO(data)) for data in FILES],
        "arrays": arrays,
        "a stack": np.stack(arrays),
        "object array": objects,
        "paths": paths,
        "names": names,
        "urls": [path.as_uri() for path in paths],
        "tuple": tuple(FILES),
        "generator": (data for data in FILES),
        "all kinds": [FILES[0], PICTURES[1], arrays[2], paths[3], names[4]],
        "names and bytes": [FILES[0], names[1], FILES[2], names[3], names[4]],
        "binary": binary,
        "large binary": binary.cast(pa.large_binary()),
        "binary view": binary.cast(pa.binary_view()),
        "dictionary": binary.dictionary_encode(),
        "chunked": pa.chunked_array([binary[:2], binary[2:]]),
        "sliced": pa.array([b"x", *FILES, b"y"])[1:-1],
        "string": pa.array(names),
        "string view": pa.array(names, pa.string_view()),
        "structs": pa.array([{"bytes": data, "path": "elsewhere.png"} for data in FILES]),
        "structs of both": pa.array(
            [{"bytes": data, "path": None} for data in FILES[:2]]
            + [{"bytes": None, "path": name} for name in names[2:]]
        ),
        "pandas of pil": pd.Series(PICTURES),
        "pandas of bytes": pd.Series(FILES),
        "pandas of names": pd.Series(names),
        "polars of bytes": pl.Series(FILES),
        "polars of names": pl.Series(names),
        "polars of pil": pl.Series(PICTURES, dtype=pl.Object),
    }


@pytest.mark.parametrize("form", _forms(Path("/")))
def test_every_kind_of_column_gives_the_same_vectors(form: str, function: PixelMeans, folder: Path) -> None:
    """Bytes, PIL images, arrays, paths and URLs, in lists, numpy, pandas, polars and Arrow, alone and mixed."""
    embedded = embed_column(function, _forms(folder)[form])
    assert embedded.reasons == {}
    assert embedded.valid.all()
    assert np.allclose(embedded.matrix, EXPECTED, atol=1e-6)


def test_one_image_is_a_column_of_one(function: PixelMeans, folder: Path) -> None:
    """As one text is; a PIL image is not taken for a column of its pixels."""
    for value in (FILES[0], PICTURES[0], folder / "0.png", str(folder / "0.png"), memoryview(FILES[0])):
        assert np.allclose(embed_column(function, value).matrix, EXPECTED[:1], atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 60, 3), (40, 60, 4), (40, 60, 1), (40, 60), (2, 3, 40, 60, 3)])
def test_an_array_that_may_be_one_image_is_refused(shape: tuple[int, ...], function: PixelMeans) -> None:
    """(40, 60, 3) could be one image or 40 rows; the message has the code for either."""
    with pytest.raises(InputError) as caught:
        embed_column(function, np.zeros(shape, np.uint8))
    assert "[image]" in str(caught.value)


def test_a_stack_of_grey_images(function: PixelMeans) -> None:
    """(n, h, w) is n images."""
    stack = np.stack([np.asarray(image.convert("L")) for image in PICTURES])
    expected = np.stack([cell_means(image.convert("L").convert("RGB")) for image in PICTURES])
    assert np.allclose(embed_column(function, stack).matrix, expected, atol=1e-6)


@pytest.mark.parametrize(
    "column",
    [pa.array([1, 2]), pa.array([[1], [2]]), pa.array([{"a": 1}]), pa.array([dt.date(2024, 1, 1)]), [1, 2], [1.5]],
)
def test_columns_that_hold_no_images(column: Any, function: PixelMeans) -> None:
    """Their type is named, and what images are made of."""
    with pytest.raises(InputError, match=r"an image function cannot embed a column of type .*\nHint: images are"):
        embed_column(function, column)


def test_nulls_and_blanks_have_no_vector(function: PixelMeans, folder: Path) -> None:
    """None, pandas' nulls, blank names and empty bytes are neither embedded nor bad, next to any values."""
    name = str(folder / "1.png")
    for column in (
        [None, FILES[0], b"", None],
        [None, name, " ", ""],
        [None, PICTURES[0], " ", b""],
        [float("nan"), FILES[0], pd.NA, name],
        pd.Series([None, FILES[0], pd.NaT, name]),
        pa.array([None, FILES[0], b"", None]),
        pa.array([None, {"bytes": FILES[0], "path": None}]),
    ):
        embedded = embed_column(function, column)
        assert embedded.reasons == {}
        assert embedded.valid.tolist()[:3] == [False, True, False][: len(column)]
    assert embed_column(function, [None, None]).valid.tolist() == [False, False]
    assert embed_column(function, []).matrix.shape == (0, 48)


# -- equal inputs ------------------------------------------------------------------------------------------------------


def test_equal_images_are_embedded_once(keeps: Keeps, tmp_path: Path) -> None:
    """Equal bytes, names and paths, and the same object; not two objects that happen to look alike."""
    path = tmp_path / "x.png"
    for column, distinct in (
        ([FILES[0], FILES[1], FILES[0], bytes(bytearray(FILES[1]))], 2),
        ([str(path), str(path), "y.png"], 2),
        ([path, Path(str(path)), PICTURES[0], PICTURES[0], PICTURES[0].copy()], 3),
        ([FILES[0], "a", FILES[0], "a", None], 2),
        (pa.array([FILES[0], None, FILES[1], FILES[0]]), 2),
        (pa.array([b"abc", b"abd", b"abc", b"", b"abcd"]), 3),
    ):
        assert embed_column(keeps, column).distinct == distinct
    assert [len(window) for window in keeps.seen] == [2, 2, 3, 2, 2, 3]


def test_a_name_is_never_taken_for_bytes(keeps: Keeps) -> None:
    """Arrow would make b"a" of "a" where bytes stand beside it."""
    embed_column(keeps, [b"a", "a", bytearray(b"b")])
    assert keeps.seen == [[b"a", "a", bytearray(b"b")]]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_distinct_images_are_not_copied(kind: pa.DataType) -> None:
    """A column without nulls or repetitions is passed on unchanged: it may be gigabytes."""
    column = pa.array(FILES, kind)
    distinct, index = distinct_inputs(column_of(column, accepted(embedreg.get("pixel-means").create())))
    assert distinct.buffers()[2].address == column.buffers()[2].address
    assert index.tolist() == list(range(N))
    repeated = pa.array([b"", *FILES, None, *FILES], kind)[1:]
    distinct, index = distinct_inputs(repeated)
    assert distinct.to_pylist() == FILES
    assert distinct.type == kind
    assert index.tolist() == [*range(N), -1, *range(N)]


def test_chunks_have_the_size_of_the_functions_traits(keeps: Keeps) -> None:
    """Lists and Arrow arrays alike."""
    embed_column(keeps, FILES)
    embed_column(keeps, PICTURES)
    assert [len(window) for window in keeps.seen] == [3, 2, 3, 2]


# -- bad images --------------------------------------------------------------------------------------------------------


def test_each_bad_image_fails_alone(function: PixelMeans, tmp_path: Path) -> None:
    """A table of every kind of bad file: good rows have their vectors, bad ones a null and a line with the reason."""
    bad = bad_images()
    names, images = ["good", *bad, "broken-exif", "good again"], [FILES[0], *(data for data, _ in bad.values())]
    images += [broken_exif(), FILES[1]]
    report = Report()
    table = embed_table(
        {"name": names, "image": images}, function.bind("image", "vector"), on_error="null", report=report
    )
    assert {names[each.row] for each in report.bad} == set(bad)
    for each in report.bad:
        assert bad[names[each.row]][1] in each.reason
        assert each.column == "image"
    vectors = table["vector"].to_pylist()
    assert [row is not None for row in vectors] == [name not in bad for name in names]
    assert np.allclose([vectors[0], vectors[-1]], EXPECTED[:2], atol=1e-6)
    dropped = embed_table({"name": names, "image": images}, function.bind("image", "vector"), on_error="drop")
    assert dropped["name"].to_pylist() == ["good", "broken-exif", "good again"]
    with pytest.raises(BadRowsError) as caught:
        embed_table({"name": names, "image": images}, function.bind("image", "vector"))
    assert "rows 1, 2, 3, 4, 5 (image): the image is truncated" in caught.value.message
    assert caught.value.rows == tuple(range(1, 1 + len(bad)))


def test_missing_files_fail_alone(function: PixelMeans, folder: Path) -> None:
    """Missing, unreadable and forbidden files, a 404, a slow server, a redirect to a private address."""
    (folder / "text.jpg").write_text("no picture")
    (folder / "folder.png").mkdir()
    elsewhere = folder.parent / "elsewhere.png"
    elsewhere.write_bytes(FILES[0])
    with (
        ImageServer(FILES[2]) as server,
        stamina.set_testing(True),
        allow_images(private_hosts=[server.host], hosts=["*"], timeout_s=0.5),
    ):
        cases = [
            (str(folder / "0.png"), None),
            (str(folder / "absent.png"), "no such image file"),
            (str(elsewhere), f"allow_images(dirs=['{elsewhere.parent}'])"),
            (str(folder / "text.jpg"), "allowed format"),
            (str(folder / "folder.png"), "a folder"),
            (r"C:\photos\cat.png", "Windows"),
            (server.url(), None),
            (server.url("absent.png"), "HTTP 404"),
            (server.url("drip"), "timeout_s"),
            (server.url("to?url=http://169.254.169.254/"), "not public"),
            (server.url("to?url=http://10.0.0.1/x.png"), "not public"),
            (server.url("picture?kind=text/html"), "text/html"),
            ("http://127.0.0.1:1/x.png", "allow_images(hosts=['127.0.0.1:1'])"),
            (str(folder / "1.png"), None),
        ]
        report = Report()
        table = embed_table(
            {"image": [name for name, _ in cases]}, function.bind("image", "vector"), on_error="null", report=report
        )
    reasons = {each.row: each.reason for each in report.bad}
    for row, (name, said) in enumerate(cases):
        assert (said is None) == (row not in reasons), name
        assert said is None or said in reasons[row]
        assert "elsewhere.png" not in reasons.get(row, "")
    vectors = [row for row in table["vector"].to_pylist() if row is not None]
    assert np.allclose(vectors, EXPECTED[[0, 2, 1]], atol=1e-6)


# -- queries, metadata, cache ------------------------------------------------------------------------------------------


def test_queries_of_every_kind(function: PixelMeans, tmp_path: Path) -> None:
    """A PIL image, bytes, an array, a Path without an allowance, and a text."""
    (tmp_path / "cat.png").write_bytes(FILES[3])
    for query in (FILES[3], PICTURES[3], np.asarray(PICTURES[3]), tmp_path / "cat.png"):
        assert np.allclose(embed_query(function, query), EXPECTED[3], atol=1e-6)
    assert np.allclose(embed_query(function, "red")[:3], [1.01, 0.01, 0.01])
    for empty in (None, "", "  ", b""):
        with pytest.raises(InputError, match="the query is empty"):
            embed_query(function, empty)
    with pytest.raises(BadRowsError, match="the image is truncated"):
        embed_query(function, FILES[3][:200])
    with pytest.raises(BadRowsError, match="no such image file"):
        embed_query(function, tmp_path / "absent.png")


def test_the_way_back_through_a_file(function: PixelMeans, tmp_path: Path, run_python: Callable[..., str]) -> None:
    """Parquet with an image column: read back it declares its function, which a new process has and agrees with."""
    table = embed_table({"image": FILES}, function.bind("image", "vector"))
    pq.write_table(table, tmp_path / "images.parquet")
    code = f"""
import embedreg, pyarrow.parquet as pq, numpy as np
import tests.image_fakes
config = embedreg.functions_in({str(tmp_path / "images.parquet")!r})["vector"]
print(config.source_column, embedreg.check_drift({str(tmp_path / "images.parquet")!r})[0].verdict)
table = pq.read_table({str(tmp_path / "images.parquet")!r})
query = embedreg.embed_query(config.function, table["image"][2].as_py())
print(int(np.argmin([np.abs(query - row).max() for row in table["vector"].to_pylist()])))
"""
    assert run_python(code).split() == ["image", "same", "2"]


def test_image_functions_have_a_probe(function: PixelMeans) -> None:
    """A fixed image is the probe that detects drift years later."""
    probe = drift.probe_vector(function)
    assert probe is not None
    assert Image.open(io.BytesIO(PROBE_IMAGE)).size == (8, 8)
    assert np.allclose(probe, cell_means(Image.open(io.BytesIO(PROBE_IMAGE)).convert("RGB")))
    table = embed_table({"image": FILES}, function.bind("image", "vector"))
    other = embedreg.get("pixel-means").create(gain=-1.0)
    [found] = embedreg.check_drift(table)
    assert found.verdict == "same"
    held.forget(other)
    assert (
        drift.compare(other, embedreg.declaration.codec.declared_by(embedreg.functions_in(table)["vector"])).verdict
        == "drift"
    )


def test_the_vector_cache_is_keyed_by_bytes_and_not_by_path(function: PixelMeans, folder: Path, tmp_path: Path) -> None:
    """The file at a path may change; bytes cannot."""
    config = function.bind("image", "vector")
    name = str(folder / "0.png")
    with embedreg.vector_cache(tmp_path / "cache.db"):
        embed_table({"image": FILES}, config)
        report = Report()
        embed_table({"image": FILES}, config, report=report)
        assert (report.embedded, report.cached) == (N, N)
        embed_table({"image": [name]}, config)
        (folder / "0.png").write_bytes(FILES[4])
        changed = embed_table({"image": [name]}, config)
    assert np.allclose(changed["vector"].to_pylist(), EXPECTED[4:], atol=1e-6)
