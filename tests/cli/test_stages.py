"""What a first use waits for is shown: on a terminal while it goes on, elsewhere only what it left on the disk."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedreg.cli import terminal
from embedreg.runtime import progress


def break_off() -> None:
    """Fail in the middle of a download."""
    with progress.stage("downloading me/other") as tell:
        tell(1, 2_500_000)
        raise OSError("gone")


def test_a_download_is_reported_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A download that came to its end is one line on stderr; one that failed, and a load, are none."""
    with terminal.stages(), terminal.rows_progress("embedding", 3):
        with progress.stage("loading mini"):
            pass
        with progress.stage("downloading me/mini") as tell:
            tell(1_000_000, 2_500_000)
            tell(2_500_000, 2_500_000)
        with pytest.raises(OSError, match="gone"):
            break_off()
    assert capsys.readouterr().err.splitlines() == ["downloading me/mini: 2.5 MB"]  # and no speed of no rows


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")
@pytest.mark.parametrize("within", ["rows_progress('embedding', 3)", "status('looking')", "contextlib.nullcontext()"])
def test_a_terminal_shows_the_stage_while_it_goes_on(tmp_path: Path, within: str) -> None:
    """Its words, and how far it is, stand in the bar or status that is shown already, or by themselves, and then go."""
    import pty

    code = f"""
import contextlib, time
from embedreg.cli import terminal
from embedreg.cli.terminal import rows_progress, status
from embedreg.runtime import progress
with terminal.stages(), {within}:
    with progress.stage("downloading me/mini") as tell:
        tell(1_000_000, 2_500_000)
        time.sleep(0.3)  # the display draws ten times a second
    time.sleep(0.3)
"""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, cwd=tmp_path, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(60) == 0
    words, _, after = shown.decode().rpartition("downloading me/mini 1.0 MB of 2.5 MB")
    assert words
    own = within.partition("'")[2].partition("'")[0]
    assert own in after


def test_loading_a_model_is_a_stage(cli: Callable[..., Any], texts: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The logger `embedreg` reports start and end of loading at INFO; stdout has only the result."""
    import embedreg

    embedreg.release()
    with caplog.at_level("INFO", "embedreg"):
        found = cli("embed", texts, "out.parquet", "-f", "sentence-transformers", "--set", "device=cpu", "--json")
    assert found.json["embedded"] == 3
    said = [record.message for record in caplog.records if record.name == "embedreg"]
    first = said.index("loading all-MiniLM-L6-v2")
    assert said[first + 1].startswith("loading all-MiniLM-L6-v2: over after")
    assert "loading" not in found.err
