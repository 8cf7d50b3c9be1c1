"""Kept conversions, damaged in any way: what is found is what was written, and nothing else is touched."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedreg.runtime.models import conversions
from tests.jobs.outside import snapshot, touched_outside

FILES = {"model.xml": b"<net name='a'/>", "model.bin": bytes(range(256)) * 4}
MADE_OF = {"openvino": "1"}
IDENTITY = "sha256:" + "a" * 64
# what is damaged: the conversion, its files, and the folders of ours above it
PLACES = ("", "model.xml", "model.bin", "sha256", "more.bin", "..", "../..", "../../..", "../0123456789abcdef")
TOUCHES = ("bytes", "cut", "raw", "remove", "mode", "link", "link to a folder", "dangling", "pipe", "folder", "swap")


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where conversions lie, empty; what lies beside it is never to be touched."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "place" / "assets"))
    (tmp_path / "outside" / "0123456789abcdef").mkdir(parents=True)
    (tmp_path / "outside" / "thesis.txt").write_text("years")
    (tmp_path / "outside" / "model.bin").write_bytes(FILES["model.bin"])
    return tmp_path / "place" / "assets"


def write(folder: Path) -> None:
    """Stand in for what OpenVINO saves."""
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, str, Any]]:
    """Draw what is done to a conversion, and where."""
    done: list[tuple[str, str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        what, place = draw(st.sampled_from(TOUCHES)), draw(st.sampled_from(PLACES))
        if what == "bytes":
            how: Any = (draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=8)))
        elif what == "cut":
            how = draw(st.floats(0, 1))
        elif what == "raw":
            how = draw(st.binary(max_size=80) | st.sampled_from([b"\xff" * 64, b"0" * 64, b"\n" * 10_000]))
        elif what == "mode":
            how = draw(st.sampled_from([0o666, 0o777, 0o620, 0o602, 0o000, 0o400]))
        else:
            how = draw(st.sampled_from(["thesis.txt", "model.bin", "model.xml"]))
        done.append((what, place, how))
    return done


def damage(folder: Path, outside: Path, what: str, place: str, how: Any) -> None:
    """Do one of these things to a conversion."""
    path = Path(os.path.normpath(folder / place))
    with contextlib.suppress(OSError):  # what is gone, or in the way, stays so
        if what in ("bytes", "cut", "raw"):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                return
            content = path.read_bytes() if path.is_file() else b""
            if what == "bytes":
                where = int(how[0] * len(content))
                content = content[:where] + how[1] + content[where + len(how[1]) :]
            path.write_bytes(content[: int(how * len(content))] if what == "cut" else how if what == "raw" else content)
        elif what == "mode":
            if not path.is_symlink():  # of a link there is none on Linux
                path.chmod(how)
        elif what == "swap":
            path.rename(path.with_name(how))
        else:
            clear(path)
            if what == "link":
                path.symlink_to(outside / how)
            elif what == "link to a folder":
                path.symlink_to(outside, target_is_directory=True)
            elif what == "dangling":
                path.symlink_to(outside / "nothing")
            elif what == "pipe":
                os.mkfifo(path)
            elif what == "folder":
                path.mkdir()


def clear(path: Path) -> None:
    """Remove whatever lies there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@settings(
    max_examples=int(os.environ.get("EMBEDREG_EXAMPLES", "150")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(done=damages())
def test_what_is_found_is_what_was_written(assets: Path, done: list[tuple[str, str, Any]]) -> None:
    """Any bytes, names, modes, links and pipes at any level: it is whole, or not found; then it can be kept anew."""
    clear(assets.parent)
    outside = assets.parent.parent / "outside"
    conversions.keep(IDENTITY, MADE_OF, write)
    folder = conversions.find(IDENTITY, MADE_OF)
    assert folder is not None
    for what, place, how in done:
        damage(folder, outside, what, place, how)
    before = snapshot(outside)
    with touched_outside(assets.parent) as touched:
        for _ in range(2):
            found = conversions.find(IDENTITY, MADE_OF)
            if found is not None:
                assert {path.name: path.read_bytes() for path in found.iterdir() if path.name != "sha256"} == FILES
                for each in (found, *list(found.parents)[: conversions.LEVELS], *found.iterdir()):
                    assert not each.is_symlink()
                    assert not each.stat().st_mode & 0o022
            conversions.keep(IDENTITY, MADE_OF, write)
    assert touched == []
    assert snapshot(outside) == before
