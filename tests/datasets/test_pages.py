"""PDF files as rows of pages: their numbers and images, files that cannot be read, and jobs that embed them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import embedreg
from embedreg.datasets import pages
from embedreg.errors import InputError
from tests.image_fakes import PixelMeans, cell_means

pytest.importorskip("pypdfium2", reason="the extra [pdf]")

COLOURS = ["red", "lime", "blue"]


def pdf(path: Path, colours: list[str], size: tuple[int, int] = (60, 80)) -> Path:
    """Write a PDF file of one page for each colour."""
    first, *rest = [Image.new("RGB", size, colour) for colour in colours]
    first.save(path, save_all=True, append_images=rest)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two documents and one that is none."""
    made = tmp_path / "docs"
    made.mkdir()
    pdf(made / "a.pdf", COLOURS)
    pdf(made / "b.pdf", ["black", "white"], (60, 3000))
    (made / "c.pdf").write_bytes(b"%PDF-1.7 and nothing else")
    return made


def colour_of(image: bytes) -> tuple[int, ...]:
    """Return the mean colour of an image file."""
    pixels = np.asarray(Image.open(io.BytesIO(image)))
    return tuple(pixels.reshape(-1, 3).mean(axis=0).round().astype(int).tolist())


def test_each_page_is_a_row(folder: Path, tmp_path: Path) -> None:
    """Path, number and image of each page, in order; what cannot be read is one bad row; long pages are bounded."""
    fn = PixelMeans.create()
    report = embedreg.embed(str(folder), str(tmp_path / "out"), fn.bind("image", "vector"), on_error="null")
    rows = pq.read_table(tmp_path / "out").sort_by([("path", "ascending"), ("page", "ascending")]).to_pylist()
    assert [(Path(row["path"]).name, row["page"]) for row in rows] == [
        *(("a.pdf", page) for page in (1, 2, 3)),
        *(("b.pdf", page) for page in (1, 2)),
        ("c.pdf", 0),
    ]
    assert report.bad_rows == 1
    assert rows[-1]["vector"] is None
    for row, colour in zip(rows, [*COLOURS, "black", "white"], strict=False):
        expected = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        assert np.abs(np.subtract(colour_of(row["image"]), expected)).max() <= 2
        assert np.abs(np.array(row["vector"]) - cell_means(Image.open(io.BytesIO(row["image"])))).max() < 1e-6
    assert Image.open(io.BytesIO(rows[3]["image"])).size[1] == pages.LONGEST


def test_a_file_alone_pieces_and_columns(folder: Path, tmp_path: Path) -> None:
    """Pieces begin at any page; columns without the image draw nothing; functions of texts are refused."""
    from embedreg.datasets import places, sources
    from embedreg.jobs.opening import KINDS

    place = places.find(str(folder / "a.pdf"), KINDS)
    (given,) = pages.inputs(place)
    assert [unit.rows for unit in given.units] == [3]
    span = sources.formats.Span(0, 1, skip=1, first_row=1, rows=1)
    (batch,) = pages.read(place, given.path, span, None, 10)
    assert batch.to_pylist()[0]["page"] == 2
    assert colour_of(batch.to_pylist()[0]["image"])[1] > 250
    (batch,) = pages.read(place, given.path, span, ["page"], 10)
    assert batch.to_pydict() == {"page": [2]}
    text = embedreg.get("hashing").create()
    with pytest.raises(InputError, match="holds pages"):
        embedreg.embed(str(folder), str(tmp_path / "out"), text.bind("path", "vector"))
    before = pages.inputs(place)
    pdf(folder / "a.pdf", ["red"])
    assert pages.changed(places.find(str(folder / "a.pdf"), KINDS), before) == [given.path]


def test_documents_beside_images_and_data_are_not_the_data(folder: Path, tmp_path: Path) -> None:
    """A folder of images or of Parquet with a PDF in it stays what it was."""
    from embedreg.datasets import places
    from embedreg.jobs.opening import KINDS

    assert places.find(str(folder), KINDS).kind == "pages"
    Image.new("RGB", (4, 4)).save(folder / "d.png")
    assert places.find(str(folder), KINDS).kind == "images"
    assert places.find(str(folder / "*.pdf"), KINDS).kind == "pages"
    pq.write_table(pa.table({"text": ["a"]}), folder / "e.parquet")
    assert places.find(str(folder), KINDS).kind == "parquet"
