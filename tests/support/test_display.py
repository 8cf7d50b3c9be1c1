"""Text of data cannot control the terminal, log or page that shows it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedreg.cli import terminal
from embedreg.support.display import escaped_json, plain, printable

any_text = st.text(
    st.characters() | st.sampled_from("\x1b\x07\x7f\x9b\u202e\u2066\u200b\u2028\ud800\u00ad\ufeff\r\n\t")
)
JOINERS = "\u200c\u200d"


@given(any_text)
def test_every_character_of_plain_text_is_printable(text: str) -> None:
    """For any input, no control character, direction mark, lone surrogate or line break is left."""
    assert all(char.isprintable() or char in JOINERS for char in plain(text))
    assert all(char.isprintable() or char in JOINERS + "\n" for char in printable(text))


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P"))))
def test_what_is_printable_stays(text: str) -> None:
    """Plain words are shown unchanged."""
    assert printable(text) == plain(text) == text


@given(st.recursive(any_text, lambda inner: st.lists(inner) | st.dictionaries(any_text, inner)), st.booleans())
def test_escaped_json_is_the_same_value(value: object, ascii_only: bool) -> None:
    """A program reads from the escaped text the same; a terminal shows no control character."""
    text = escaped_json(json.dumps(value, ensure_ascii=False, indent=1), ascii_only=ascii_only)
    assert json.loads(text) == json.loads(json.dumps(value))
    assert all(char.isprintable() or char in JOINERS + "\n" for char in text)
    assert not ascii_only or text.isascii()


def test_joiners_of_scripts_and_emoji_stay() -> None:
    """Persian words and families keep the marks that join or part their letters."""
    assert plain("کتاب\u200cها") == "کتاب\u200cها"  # noqa: RUF001  # Persian letters, which resemble Latin ones
    assert printable("👨\u200d👩\u200d👧") == "👨\u200d👩\u200d👧"


def test_a_long_value_is_cut_first() -> None:
    """A text of many megabytes is cut before it is processed."""
    assert plain("é" * 50_000_000, 10) == "é" * 9 + "…"


def test_lines_tables_and_headings_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    """Messages, notes, reports and tables are all made printable."""
    bad = "\x1b]0;owned\x07\x9b2J\u202egnp.exe"
    terminal.say(bad)
    terminal.note(bad)
    terminal.error(bad, bad)
    terminal.print_table([bad, "b"], [[bad, 1]], title=bad)
    terminal.print_json({bad: bad})
    out = "".join(capsys.readouterr())
    assert "owned" in out
    assert not [char for char in out if char in "\x1b\x07\x9b\u202e"]


def test_a_line_break_in_a_name_adds_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A column called "text", a line break, "usable  yes" cannot forge a line of an answer or a note."""
    terminal.say("v is filled from text\nusable  yes\r\nmore")
    terminal.note("written: a\nb")
    terminal.say("ours\nstays", lines=True)
    out, err = capsys.readouterr()
    assert out == "v is filled from text usable  yes more\nours\nstays\n"
    assert err == "written: a b\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_json_is_ascii_where_stdout_is_not_utf8(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """A stream in another encoding carries JSON that every program can read."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.print_json({"text": "größe 漢字 👍"})
    stream.flush()
    text = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]  # BytesIO has it
    assert text.isascii()
    assert json.loads(text) == {"text": "größe 漢字 👍"}


def test_words_that_stdout_cannot_encode_are_shown_in_part(tmp_path: Path) -> None:
    """A terminal of another encoding gets escapes, not an error."""
    done = subprocess.run(
        [sys.executable, "-m", "embedreg", "inspect", "größe.parquet"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert "gr\\xf6\\xdfe" in done.stderr
    assert "Traceback" not in done.stderr
