"""Output of the commands: results on stdout, progress and notes on stderr, JSON for programs."""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from embedreg.support.display import escaped_json, plain, printable

if TYPE_CHECKING:
    from embedreg.runtime.progress import Stage

__all__ = [
    "as_json",
    "console",
    "count",
    "error",
    "folded",
    "note",
    "number",
    "print_json",
    "print_table",
    "reflowed",
    "rows_progress",
    "say",
    "seconds",
    "stages",
    "status",
]

_PIPED_WIDTH = 160  # width of a table without a terminal

_INDENT = 4  # of an item in a docstring; its further lines have twice that
_FOLDED_WIDTH = 48  # width of a folded column
_CUT_WIDTH = 20  # minimum width of the cut column


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit the process without our clean-up


def console(stream: IO[str]) -> Console:
    """Return a console for stdout or stderr, with colours and the real width only on a terminal."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH
    return _Console(file=stream, width=width, highlight=False, emoji=False, soft_wrap=False)


def say(text: str = "", *, style: str | None = None, lines: bool = False) -> None:
    """Print a line of the result.

    Args:
        text: line breaks become spaces, so that names from data cannot add lines.
        style: a style of rich.
        lines: keep line breaks, for our own text.
    """
    console(sys.stdout).print(Text(_shown_as(text, lines), style=style or ""), soft_wrap=True)


def folded(text: str) -> str:
    """Return lines of the form "  name     value", folded on a terminal to its width, values below each other."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return text
    width, made = console(sys.stdout).width, list[str]()
    for line in text.splitlines():
        named = re.match(r"  \S+ +", line)
        indent = " " * min(named.end() if named else 2, width // 2)
        made += textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
    return "\n".join(made)


def reflowed(text: str) -> str:
    """Return paragraphs and lists of a docstring, filled to the terminal's width; unchanged without a terminal."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return text
    width, made = console(sys.stdout).width, list[str]()
    for line in text.splitlines():
        indent, last = len(line) - len(line.lstrip()), made[-1] if made else ""
        ended = not last.strip() or not line.strip() or last.endswith(":")
        if ended or indent < len(last) - len(last.lstrip()) or (0 < indent < 2 * _INDENT):
            made.append(line)
        else:
            made[-1] = f"{last} {line.strip()}"
    filled = [
        textwrap.wrap(
            line, width, subsequent_indent=" " * 2 * _INDENT if line[:1] == " " else "", break_on_hyphens=False
        )
        or [""]
        for line in made
    ]
    return "\n".join(line for lines in filled for line in lines)


def note(text: str) -> None:
    """Print a line that is not part of the result."""
    console(sys.stderr).print(Text(_shown_as(text), style="dim"), soft_wrap=True)


def _shown_as(text: str, lines: bool = False) -> str:
    text = printable(text)
    return text if lines else text.replace("\n", " ")


def error(message: str, hint: str | None) -> None:
    """Print an error: one line, and a hint on the next."""
    err = console(sys.stderr)
    err.print(Text.assemble(("embedreg: ", "bold red"), plain(message)), soft_wrap=True)
    if hint:
        err.print(Text.assemble(("Hint: ", "bold"), plain(hint)), soft_wrap=True)


def as_json(value: object, indent: int | None = None, *, ascii_only: bool = False) -> str:
    """Return a value as JSON; dates and bytes become str, NaN becomes null.

    Unprintable characters are escaped, so that no control sequence reaches a terminal.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, default=_jsonable, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(value), indent=indent, ensure_ascii=False, default=_jsonable)
    return escaped_json(text, ascii_only=ascii_only)


def print_json(value: object) -> None:
    """Print a value as JSON on stdout, in ASCII unless the stream is UTF-8."""
    sys.stdout.write(as_json(value, indent=2, ascii_only=not _is_utf8(sys.stdout)) + "\n")


def _is_utf8(stream: IO[str]) -> bool:
    try:
        return codecs.lookup(getattr(stream, "encoding", None) or "ascii").name == "utf-8"
    except LookupError:
        return False


def _jsonable(value: object) -> object:
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return value.tolist()
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str | None = None,
    wide: int = -1,
    cut: bool = True,
) -> None:
    """Print a table on stdout; markup in cells is not interpreted.

    Args:
        columns: the headings.
        rows: one cell per heading.
        title: a line above.
        wide: the column that is cut to one line when the terminal is narrow; the others fold.
        cut: False to fold that one too.
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    widths = [min(width, _FOLDED_WIDTH) for width in widths]
    out = console(sys.stdout)
    wide %= len(columns)
    frame = 3 * len(columns) + 1  # a space on both sides of each cell, and the lines between
    rest = out.width - frame - sum(widths) + widths[wide]
    if rest < min(widths[wide], _CUT_WIDTH):  # too narrow for columns side by side
        _print_records(out, columns, cells, title)
        return
    table = Table(title=title and escape(plain(title)), title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        if index == wide:
            shown = {"no_wrap": True, "overflow": "ellipsis"} if cut else {"overflow": "fold"}
            table.add_column(escape(plain(column)), max_width=max(rest, _CUT_WIDTH), **shown)
        else:
            table.add_column(escape(plain(column)), overflow="fold", max_width=widths[index])
    for row in cells:
        table.add_row(*map(Text, row))
    out.print(table)


def _print_records(out: Console, columns: Sequence[str], cells: list[list[str]], title: str | None) -> None:
    """Print each row as a block of lines, a line or more for each cell that is not empty."""
    if title:
        out.print(Text(plain(title), style="bold"))
    for index, row in enumerate(cells):
        if index:
            out.print()
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True, style="dim", overflow="ellipsis")
        grid.add_column(overflow="fold")
        for at, (name, cell) in enumerate(zip(columns, row, strict=True)):
            if cell:
                grid.add_row(Text(plain(name)), Text(cell, style="bold" if at == 0 else ""))
        out.print(grid)


def count(value: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: '1 row', '2,400 rows'."""
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def number(value: float) -> str:
    """Return 12345 as '12,345', 0.1234 as '0.12', 61.27 as '61'."""
    if isinstance(value, int) or abs(value) >= 10:
        return f"{round(value):,}"
    return f"{value:.2g}"


def seconds(value: float) -> str:
    """Return a span of time in words: '0.3 s', '42 s', '3 min 10 s', '2 h 5 min'."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{number(float(speed))} rows/s", style="dim")


# The setters of the active displays' text, the innermost last; None restores a display's own text.
_shown: list[Callable[[str | None], None]] = []


@contextlib.contextmanager
def stages() -> Iterator[None]:
    """Show the stages of a first use (downloads, loading), in the active display or in one of their own."""
    from embedreg.runtime import progress  # imported here, since `--help` does not need it

    alone = contextlib.ExitStack()  # the display used when no other is active

    def show(stage: Stage) -> None:
        if stage.over:
            alone.close()
            if _shown:
                _shown[-1](None)
            if stage.total is not None and stage.done == stage.total:  # a finished download
                note(f"{stage.what}: {_megabytes(stage.total)}")
            return
        if not _shown:
            alone.enter_context(status(stage.what))
        for display in _shown[-1:]:
            far = "" if stage.total is None else f" {_megabytes(stage.done)} of {_megabytes(stage.total)}"
            display(stage.what + far)

    with alone, progress.watch_stages(show):
        yield


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextlib.contextmanager
def rows_progress(what: str, total: int | None) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar with rows, rows/s and the time left on a terminal; otherwise print a summary at the end.

    Yields:
        A progress callback (rows done, total rows or None), as for `embed_table(progress=)`.
    """
    err = console(sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    task = bar.add_task("starting", total=total)  # libraries and models are loaded before the first row
    done, start, first = 0, time.perf_counter(), None

    def report(rows: int, of: int | None = None) -> None:
        nonlocal done, first
        done = rows
        first = time.perf_counter() if first is None else first
        bar.update(task, description=escape(plain(what)), completed=rows, total=of if of is not None else total)

    def describe(words: str | None) -> None:
        bar.update(task, description=escape(plain(words or what)))

    # rich before 14.3 prints an empty line at the end of a bar that is disabled
    with contextlib.nullcontext() if bar.disable else bar, _taking(describe):
        yield report
    if not done:
        return
    now = time.perf_counter()
    took = now - (start if first is None else first)  # measured without the loading time
    note(f"{what}: {count(done, 'row')} in {seconds(now - start)} ({number(done / max(took, 1e-3))} rows/s)")


@contextlib.contextmanager
def status(what: str) -> Iterator[None]:
    """Show a status line, on a terminal only."""
    err = console(sys.stderr)
    if not err.is_terminal:
        yield
        return
    with err.status(escape(plain(what))) as live, _taking(lambda words: live.update(escape(plain(words or what)))):
        yield


@contextlib.contextmanager
def _taking(display: Callable[[str | None], None]) -> Iterator[None]:
    _shown.append(display)
    try:
        yield
    finally:
        _shown.remove(display)
