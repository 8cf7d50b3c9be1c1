"""Image files are read below allowed folders only, and only plain files; every spelling of a path is understood."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from embedreg import ImagePolicy, RowError, allow_images
from embedreg.images import open_image
from embedreg.media.files import path_of, read
from tests.image_fakes import png

PICTURE = png(2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a picture, beside another folder with one."""
    for name in ("photos", "private", "photos-too"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cat.png").write_bytes(PICTURE)
    return tmp_path / "photos"


def refusal(path: Path | str, folder: Path | None, **limits: int) -> str:
    """Why a file is not read."""
    with pytest.raises(RowError) as caught:
        read(Path(path), ImagePolicy(dirs=[] if folder is None else [folder], **limits))  # type: ignore[arg-type]
    return caught.value.message


def test_nothing_is_read_by_default(photos: Path) -> None:
    """Without an allowance the refusal names the folder and the call that allows it, be the file there or not."""
    for name in ("cat.png", "absent.png"):
        with pytest.raises(RowError) as caught:
            open_image(str(photos / name))
        assert f"allow_images(dirs=['{photos}'])" in str(caught.value)
        assert "--allow-dir" in caught.value.message
        assert name not in str(caught.value)


def test_an_allowed_folder_is_read_with_all_below_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an absolute path, by one from the working directory, and by one from the folder itself."""
    (photos / "deep" / "er").mkdir(parents=True)
    (photos / "deep" / "er" / "dog.png").write_bytes(PICTURE)
    allowed = ImagePolicy(dirs=[photos])
    monkeypatch.chdir(photos.parent)
    for path in (
        photos / "cat.png",
        photos / "deep" / ".." / "cat.png",
        Path("photos/cat.png"),
        Path("private/../photos/cat.png"),
        Path("cat.png"),
        Path("deep/er/dog.png"),
    ):
        assert read(path, allowed) == PICTURE
    assert read(photos / "cat.png", ImagePolicy(dirs=[photos / "cat.png"])) == PICTURE  # a single file
    assert read(Path("photos/cat.png"), ImagePolicy(dirs=["photos"])) == PICTURE  # as it was when it was allowed
    monkeypatch.chdir("/")
    assert read(Path("cat.png"), allowed) == PICTURE


def test_a_relative_path_means_the_working_directory_first(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two files of one name the one that a shell would find is read, if it is allowed; else the first folder's."""
    other = photos.parent / "private"
    (other / "cat.png").write_bytes(b"another")
    both = ImagePolicy(dirs=[photos, other])
    monkeypatch.chdir(other)
    assert read(Path("cat.png"), both) == b"another"
    monkeypatch.chdir(photos.parent)
    assert read(Path("cat.png"), both) == PICTURE
    monkeypatch.chdir(other)
    assert read(Path("cat.png"), ImagePolicy(dirs=[photos])) == PICTURE


def test_ways_out_of_an_allowed_folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dots, links out of the folder, its siblings and folders with its name as a prefix are refused."""
    outside = photos.parent / "private"
    (photos / "link").symlink_to(outside)
    (photos / "cat-link.png").symlink_to(outside / "cat.png")
    monkeypatch.chdir(photos)
    for path in (
        outside / "cat.png",
        photos / ".." / "private" / "cat.png",
        photos.parent / "photos-too" / "cat.png",
        photos / "link" / "cat.png",
        photos / "cat-link.png",
        Path("../private/cat.png"),
        Path("link/cat.png"),
        Path("/etc/passwd"),
    ):
        assert "may not be read" in refusal(path, photos)
    monkeypatch.setenv("HOME", str(outside))
    assert "no such image file" in refusal("~/cat.png", photos)  # data has no home


def test_links_within_an_allowed_folder(photos: Path) -> None:
    """A link that stays inside is followed, and so is one by which the folder itself was named."""
    (photos / "same.png").symlink_to(photos / "cat.png")
    (photos.parent / "album").symlink_to(photos)
    assert read(photos / "same.png", ImagePolicy(dirs=[photos])) == PICTURE
    for folder in (photos.parent / "album", photos):
        assert read(photos / "cat.png", ImagePolicy(dirs=[folder])) == PICTURE
    assert read(photos.parent / "album" / "cat.png", ImagePolicy(dirs=[photos.parent / "album"])) == PICTURE


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_file_that_cannot_be_read() -> None:
    """An error while reading is that file's; root may open anything, so the file is one that gives no bytes."""
    assert "cannot be read" in refusal("/proc/self/mem", Path("/proc"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(photos: Path) -> None:
    """The permissions of the user who runs this hold."""
    (photos / "cat.png").chmod(0)
    assert "may not be read by this user" in refusal(photos / "cat.png", photos)


def test_special_files(photos: Path) -> None:
    """A folder, a missing file, a device, a pipe without a writer and a socket raise an error at once."""
    assert "no such image file" in refusal(photos / "absent.png", photos)
    assert "no such image file" in refusal(photos / "cat.png" / "x", photos)
    assert "a folder" in refusal(photos, photos)
    assert "too long" in refusal(photos / ("x" * 300), photos)
    assert "cannot be read" in refusal(photos / "x\0y", photos)
    (photos / "loop").symlink_to(photos / "loop")
    assert "a loop" in refusal(photos / "loop", photos)
    if hasattr(os, "mkfifo"):
        os.mkfifo(photos / "pipe")
        assert "a pipe" in refusal(photos / "pipe", photos)
        assert "a device" in refusal("/dev/zero", Path("/dev"))
        with socket.socket(socket.AF_UNIX) as listening:
            here = os.getcwd()
            os.chdir(photos)  # the path of a socket is short
            try:
                listening.bind("socket")
            finally:
                os.chdir(here)
            assert "a socket" in refusal(photos / "socket", photos)


def test_bytes_are_limited(photos: Path) -> None:
    """A file over the limit is not read; one that grows meanwhile, or does not know its size, is cut off."""
    assert read(photos / "cat.png", ImagePolicy(dirs=[photos], max_bytes=len(PICTURE))) == PICTURE
    assert "over max_bytes" in refusal(photos / "cat.png", photos, max_bytes=len(PICTURE) - 1)
    with (photos / "large.png").open("wb") as file:
        file.truncate(200 * 2**30)  # sparse: no disk is filled
    assert "214,748,364,800 bytes" in refusal(photos / "large.png", photos)
    (photos / "empty.png").write_bytes(b"")
    with allow_images(dirs=[photos]), pytest.raises(RowError, match="is empty"):
        open_image(photos / "empty.png")


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="needs Linux's /proc")
def test_a_file_that_says_it_is_empty(photos: Path) -> None:
    """What /proc calls empty has bytes all the same, and they are counted."""
    assert "over max_bytes=1 bytes" in refusal("/proc/self/status", Path("/proc"), max_bytes=1)


def test_what_the_user_names_needs_no_allowance(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Path that is a query is the caller's own; a str never is."""
    expected = open_image(PICTURE).tobytes()
    assert open_image(photos / "cat.png", from_query=True).tobytes() == expected
    monkeypatch.setenv("HOME", str(photos))
    assert open_image(Path("~/cat.png"), from_query=True).tobytes() == expected
    with pytest.raises(RowError, match="no such image file"):
        open_image(photos / "absent.png", from_query=True)
    with pytest.raises(RowError, match="may not be read"):
        open_image(str(photos / "cat.png"), from_query=True)


def test_an_allowance_holds_in_every_thread_and_ends(photos: Path) -> None:
    """Engines embed in threads of their own; after the block nothing is read any more."""
    found: list[int] = []

    def look() -> None:
        found.append(open_image(str(photos / "cat.png")).width)

    with allow_images(dirs=[photos]):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert found == [60]
    with pytest.raises(RowError):
        look()


# -- spellings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/a/b c.png", "/a/b c.png"),
        ("a.png", "a.png"),
        ("a:b.png", "a:b.png"),
        ("./a\\b.png", "./a\\b.png"),
        ("file:///a/b%20c%23.png", "/a/b c#.png"),
        ("file:/a/b.png", "/a/b.png"),
        ("FILE://LocalHost/a.png", "/a.png"),
        ("file:///a/%C3%BC.png", "/a/ü.png"),
    ],
)
def test_paths_of_this_system(text: str, path: str) -> None:
    """A path as it is written, and a `file:` URL decoded once."""
    assert path_of(text, windows=False) == Path(path)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (r"C:\photos\cat.png", r"C:\photos\cat.png"),
        ("c:/photos/cat.png", "c:/photos/cat.png"),
        (r"\\server\share\cat.png", r"\\server\share\cat.png"),
        (r"photos\cat.png", r"photos\cat.png"),
        ("file:///C:/photos/a%20cat.png", r"C:\photos\a cat.png"),
        ("file://localhost/c:/cat.png", r"c:\cat.png"),
    ],
)
def test_paths_of_windows(text: str, path: str) -> None:
    """A drive is a drive and no scheme of a URL."""
    assert path_of(text, windows=True) == Path(path)


@pytest.mark.parametrize(
    ("text", "windows", "said"),
    [
        (r"C:\photos\cat.png", False, "a Windows path"),
        ("C:/photos/cat.png", False, "a Windows path"),
        (r"\\server\share\cat.png", False, "a Windows path"),
        ("file://server/share/cat.png", False, "another machine"),
        ("file://server/share/cat.png", True, "another machine"),
        ("file:////server/share/cat.png", True, "another machine"),
        ("file://127.0.0.1/cat.png", False, "another machine"),
        ("file:///a.png?x", False, "%3F"),
        ("file:///a.png#x", False, "%23"),
        ("file://[x/a.png", False, "invalid file: URL"),
        ("file:///a%00.png", False, "null character"),
        ("s3://bucket/cat.png", False, "s3:"),
        ("ftp://host/cat.png", True, "ftp:"),
        ("data:image/png;base64,AAAA", False, "data:"),
        ("a\0b", False, "null character"),
    ],
)
def test_names_that_are_not_local_files(text: str, windows: bool, said: str) -> None:
    """Paths of another system or machine, and URLs of another scheme, each have their own error."""
    with pytest.raises(RowError) as caught:
        path_of(text, windows=windows)
    assert said in caught.value.message


def test_a_share_is_not_reached_for(run_python: Callable[..., str], photos: Path) -> None:
    """A path that is not allowed is judged by its letters: no file outside the folder is as much as looked at."""
    code = f"""
import os, sys
touched = []
sys.addaudithook(lambda event, args: touched.append(str(args[0])) if event in ("open", "os.listdir") else None)
real = os.lstat
os.lstat = lambda path, *a, **k: (touched.append(str(path)), real(path, *a, **k))[1]
import embedreg
from embedreg.media.files import read
from pathlib import Path
touched.clear()
try:
    read(Path("/net/server/share/cat.png"), embedreg.ImagePolicy(dirs=[{str(photos)!r}]))
except embedreg.RowError:
    print([path for path in touched if path.startswith("/net")])
"""
    assert run_python(code).strip() == "[]"
