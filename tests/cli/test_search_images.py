"""Images on the command line: embedded from bytes and from allowed files, searched by an image, shown as a page."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from embedreg.cli import exits
from embedreg.images import ImagePolicy, current_policy
from tests import image_fakes
from tests.image_fakes import encoded, picture, png
from tests.image_servers import ImageServer

N = 6
PIXEL_MEANS = ("-f", "pixel-means", "--source", "image")
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> & \x1b[31m"


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and the text outside of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def images(self) -> list[Image.Image]:
        """The images of the page, decoded."""
        sources = [str(attrs["src"]) for tag, attrs in self.elements if tag == "img"]
        assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of pictures 0.png ... 5.png, and a Parquet file with their bytes and their names."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(N):
        (folder / f"{seed}.png").write_bytes(png(seed))
    labels = [f"picture {seed}" for seed in range(N - 1)] + [HOSTILE]
    columns = {"label": labels, "image": [png(seed) for seed in range(N)], "size": list(range(N))}
    pq.write_table(pa.table(columns), tmp_path / "bytes.parquet")
    columns["image"] = [f"photos/{seed}.png" for seed in range(N)]
    pq.write_table(pa.table(columns), tmp_path / "names.parquet")
    return folder


@pytest.fixture
def tables(cli: Callable, photos: Path) -> list[str]:
    """The pictures, embedded from bytes and from names, as Parquet and as Lance."""
    cli("embed", "bytes.parquet", "b.parquet", *PIXEL_MEANS)
    cli("embed", "bytes.parquet", "db/b.lance", *PIXEL_MEANS)
    cli("embed", "names.parquet", "n.parquet", *PIXEL_MEANS, "--allow-dir", "photos")
    cli("embed", "names.parquet", "db/n.lance", *PIXEL_MEANS, "--allow-dir", "photos")
    return ["b.parquet", "db/b", "n.parquet", "db/n"]


def test_an_image_finds_similar_images_in_every_kind_of_table(cli: Callable, tables: list[str], photos: Path) -> None:
    """`--image FILE` needs no allowance for any path; text queries still work."""
    elsewhere = photos.parent / "elsewhere.jpg"
    elsewhere.write_bytes(encoded(picture(3, (300, 200)), "JPEG", quality=95))
    for table in tables:
        found = cli("search", table, "--image", elsewhere, "--json", "-n", 2).json
        assert found[0]["size"] == 3
        assert found[0]["_score"] == pytest.approx(1, abs=1e-3)
        assert [row["label"] for row in cli("search", table, "red", "--json", "-n", 1).json]


def test_bytes_are_left_out_unless_asked_for(cli: Callable, tables: list[str]) -> None:
    """A terminal and a program get no megabytes by themselves; by name they come as base64, or as their number."""
    [row] = cli("search", "b.parquet", "red", "--json", "-n", 1).json
    assert set(row) == {"label", "size", "_distance", "_score"}
    [row] = cli("search", "b.parquet", "red", "--json", "-n", 1, "--columns", "size,image").json
    assert base64.b64decode(row["image"]) == png(row["size"])
    assert re.search(r"[\d,]+ bytes", cli("search", "b.parquet", "red", "-n", 1, "--columns", "image").out)
    [row] = cli("search", "n.parquet", "red", "--json", "-n", 1).json
    assert row["image"] == f"photos/{row['size']}.png"


def test_data_may_name_files_only_in_allowed_folders(
    cli: Callable, command: Callable, photos: Path, tmp_path: Path
) -> None:
    """Without --allow-dir each row is refused, and the message holds the option to paste, which then works."""
    refused = cli("embed", "names.parquet", "n.parquet", *PIXEL_MEANS, expect=exits.ERROR)
    assert "--allow-dir" in refused.err
    assert f"'{photos}'" in refused.err
    assert not Path("n.parquet").exists()
    own = ("--import", image_fakes.__file__)
    environment = {**os.environ, "PYTHONPATH": str(Path(image_fakes.__file__).parents[1])}
    command("embed", "names.parquet", "n.parquet", *PIXEL_MEANS, *own, "--allow-dir", photos, env=environment)
    assert pq.read_table(tmp_path / "n.parquet")["vector"].null_count == 0
    assert current_policy() == ImagePolicy()  # a command's allowance ends with it


def test_data_may_name_allowed_hosts_only(cli: Callable, tmp_path: Path) -> None:
    """--allow-host covers public addresses; this machine's own needs --allow-private-host."""
    with ImageServer(png(1)) as server:
        pq.write_table(pa.table({"image": [server.url()]}), tmp_path / "urls.parquet")
        embed = ("embed", "urls.parquet", "u.parquet", *PIXEL_MEANS)
        assert "--allow-host" in cli(*embed, expect=exits.ERROR).err
        assert "--allow-private-host" in cli(*embed, "--allow-host", server.host, expect=exits.ERROR).err
        assert server.asked == []
        cli(*embed, "--allow-private-host", server.host)
    assert pq.read_table("u.parquet")["vector"].null_count == 0


def test_relative_names_are_found_in_an_allowed_folder(cli: Callable, photos: Path, tmp_path: Path) -> None:
    """A name that leads nowhere from here is looked for in the allowed folders."""
    pq.write_table(pa.table({"image": [f"{seed}.png" for seed in range(N)]}), tmp_path / "bare.parquet")
    cli("embed", "bare.parquet", "out.parquet", *PIXEL_MEANS, "--allow-dir", photos)
    vectors = np.array(pq.read_table("out.parquet")["vector"].to_pylist())
    assert np.allclose(vectors, [image_fakes.cell_means(picture(seed)) for seed in range(N)], atol=1e-6)


def test_a_bad_image_is_a_line_in_the_report(cli: Callable, tmp_path: Path) -> None:
    """With --on-error null the others are embedded."""
    pq.write_table(pa.table({"image": [png(1), png(1)[:200], None, b"text"]}), tmp_path / "bad.parquet")
    told = cli("embed", "bad.parquet", "out.parquet", *PIXEL_MEANS, "--on-error", "null", "--json").json
    assert [(each["row"], each["reason"]) for each in told["bad"]] == [
        (1, "the image is truncated"),
        (3, "it is not an image of an allowed format (JPEG, PNG, WEBP, GIF, BMP, TIFF)"),
    ]
    assert pq.read_table("out.parquet")["vector"].is_valid().to_pylist() == [True, False, False, False]


# -- the page ----------------------------------------------------------------------------------------------------------


def test_hits_become_a_page_with_their_images(cli: Callable, tables: list[str], photos: Path) -> None:
    """For bytes and for names, Parquet and Lance: the query, the hits in order, scores and columns, in one file."""
    for table in tables:
        allow = ("--allow-dir", photos) if "n" in Path(table).name.split(".")[0] else ()
        done = cli("search", table, "--image", photos / "2.png", "--html", "hits.html", *allow)
        assert "hits.html" in done.err
        page = Page(Path("hits.html").read_text())
        query, *found = page.images
        assert len(found) == N
        for image in (query, found[0]):  # the nearest is the image itself
            assert image.size == (60, 40)
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - np.asarray(picture(2))).mean() < 6
        assert any("score 1.000" in text for text in page.texts)
        assert any("picture 2" in text for text in page.texts)
        assert not any(text.strip().endswith("bytes") for text in page.texts)


def test_a_page_runs_and_loads_nothing(cli: Callable, tables: list[str]) -> None:
    """All data is escaped text: no elements, no links, nothing loaded, nothing run."""
    cli("search", "b.parquet", "red", "--html", "hits.html")
    text = Path("hits.html").read_text()
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "a", "link", "iframe", "form", "object", "svg", "base"}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert any("<script>alert(1)</script>" in shown for shown in page.texts)  # as text
    assert "\x1b" not in text
    policy = next(attrs["content"] for tag, attrs in page.elements if "http-equiv" in attrs)
    assert str(policy).startswith("default-src 'none'")
    assert "http://" not in text.replace("http-equiv", "")
    assert "https://" not in text


def test_a_hostile_query_is_text_too(cli: Callable, texts: Path) -> None:
    """A text table makes a page as well: texts in place of images, the query above them."""
    cli("embed", texts, "t.parquet", "-f", "hashing")
    cli("search", "t.parquet", f"the cat {HOSTILE}", "--html", "hits.htm")
    page = Page(Path("hits.htm").read_text())
    assert [tag for tag, _ in page.elements].count("img") == 0
    assert any("the cat <script>" in shown for shown in page.texts)
    assert any("the cat sat on the mat" in shown for shown in page.texts)


def test_an_image_that_cannot_be_shown_says_why(cli: Callable, tables: list[str], photos: Path) -> None:
    """A name that is not allowed now, a file that is gone: the reason is shown in its place, with the other rows."""
    cli("search", "n.parquet", "red", "--html", "hits.html")
    page = Page(Path("hits.html").read_text())
    assert page.images == []
    assert sum("may not be read from the folder" in text for text in page.texts) == N
    (photos / "0.png").unlink()
    cli("search", "n.parquet", "red", "--html", "hits.html", "--allow-dir", photos)
    page = Page(Path("hits.html").read_text())
    assert len(page.images) == N - 1
    assert sum("no such image file" in text for text in page.texts) == 1


def test_thumbnails_are_small_and_have_no_metadata(cli: Callable, tmp_path: Path) -> None:
    """A large image is shown small and upright, without comments and EXIF."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a secret camera"
    large = encoded(picture(1, (3000, 2000)), "JPEG", exif=exif, comment=b"a secret comment")
    pq.write_table(pa.table({"image": [large]}), tmp_path / "large.parquet")
    cli("embed", "large.parquet", "l.parquet", *PIXEL_MEANS)
    cli("search", "l.parquet", "red", "--html", "hits.html")
    [image] = Page(Path("hits.html").read_text()).images
    assert image.size == (213, 320)
    assert not dict(image.getexif())
    assert "comment" not in image.info
    assert Path("hits.html").stat().st_size < 60_000


def test_a_page_is_written_atomically(cli: Callable, tables: list[str], photos: Path) -> None:
    """It replaces an older one, leaves nothing beside it, and an error leaves the older one as it was."""
    cli("search", "b.parquet", "red", "--html", "out/hits.html", "-n", 1)
    first = Path("out/hits.html").read_bytes()
    cli("search", "b.parquet", "no such colour at all", "--html", "out/hits.html", expect=exits.ERROR)
    assert Path("out/hits.html").read_bytes() == first
    cli("search", "b.parquet", "blue", "--html", "out/hits.html")
    assert Path("out/hits.html").read_bytes() != first
    assert os.listdir("out") == ["hits.html"]
    out = cli("search", "b.parquet", "blue", "--html", "out/hits.html", "--json")
    assert len(out.json) == N


def test_no_hit_is_a_page_too(cli: Callable, tables: list[str]) -> None:
    """A condition that no row meets leaves no older answer behind."""
    cli("search", "b.parquet", "red", "--html", "hits.html", "--where", "size > 100")
    assert any("no row was found" in text for text in Page(Path("hits.html").read_text()).texts)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["b.parquet"], exits.USAGE, "either QUERY, or --image FILE"),
        (["b.parquet", "red", "--image", "photos/1.png"], exits.USAGE, "either QUERY, or --image FILE"),
        (["b.parquet", "red", "--html", "hits.png"], exits.USAGE, "ends in .html"),
        (["b.parquet", "--image", "absent.png"], exits.ERROR, "--image absent.png: there is no such image file"),
        (["b.parquet", "--image", "photos"], exits.ERROR, "a folder"),
        (["b.parquet", "--image", "bytes.parquet"], exits.ERROR, "not an image of an allowed format"),
        (["t.parquet", "--image", "photos/1.png"], exits.ERROR, "holds texts"),
        (["b.parquet", "red", "--html", "photos/1.png/hits.html"], exits.ERROR, "cannot be written"),
    ],
)
def test_what_cannot_be_searched_by_an_image(
    cli: Callable, photos: Path, texts: Path, args: list[str], code: int, message: str
) -> None:
    """One line and a hint."""
    cli("embed", "bytes.parquet", "b.parquet", *PIXEL_MEANS)
    cli("embed", texts, "t.parquet", "-f", "hashing")
    result = cli("search", *args, expect=code)
    assert message in " ".join(result.err.split())
    assert "Traceback" not in result.err


def test_a_search_leaves_the_table_as_it_is(cli: Callable, tables: list[str], photos: Path) -> None:
    """A page is made without a new version of the table."""
    version = lancedb.connect("db").open_table("b").version
    cli("search", "db/b", "--image", photos / "1.png", "--html", "hits.html")
    assert lancedb.connect("db").open_table("b").version == version
