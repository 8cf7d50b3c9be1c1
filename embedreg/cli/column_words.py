"""What the commands of `embedreg column` print: tables of rows by class, reports in words, JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from embedreg.cli import terminal
from embedreg.errors import in_shell

if TYPE_CHECKING:
    from embedreg.columns import ColumnReport, ColumnStatus
    from embedreg.columns.results import MigrationStatus

__all__ = ["migration_line", "print_migration", "print_reports", "print_statuses"]

_WHAT = {
    "add": "added",
    "fill": "filled",
    "refresh": "refreshed",
    "stage": "staged",
    "settle": "settled",
    "rollback": "rolled back",
    "embed": "embedded",
}
_CLASSES = {
    "fresh": "fresh",
    "stale": "stale",
    "foreign": "foreign",
    "unstamped": "unstamped",
    "empty": "empty",
    "null_source": "no source",
}
_MEANT = {
    "stale": "the source changed since",
    "foreign": "another function made the vector",
    "unstamped": "these vectors have not been checked",
    "empty": "a source, and no vector",
}
_SHOWN = 5


def print_statuses(data: str, found: Sequence[ColumnStatus], *, as_json: bool) -> None:
    """Print the rows of each column by class."""
    if as_json:
        terminal.print_json([asdict(each) for each in found])
        return
    if not found:
        terminal.say(f"{data} declares no embedding function.")
        return
    columns = ["column", "function", "rows", *_CLASSES.values()]
    rows = [
        [each.vector, _told_apart(each, found), f"{each.rows:,}", *(f"{getattr(each, name):,}" for name in _CLASSES)]
        for each in found
    ]
    terminal.print_table(columns, rows, wide=1)
    for each in found:
        for name, words in _MEANT.items():
            if number := getattr(each, name):
                terminal.say(f"{each.vector}: {terminal.count(number, 'row')} {_CLASSES[name]}: {words}")
        if each.digest is None and each.rows and each.problem is None:
            terminal.note(
                f"{each.vector} has no row digests, so changed sources cannot be found: "
                "`embedreg column audit` compares a sample"
            )
        if each.problem is not None:
            terminal.say(f"{each.vector}: {in_shell(each.problem)}", style="bold")
        if each.migration is not None:
            terminal.say(migration_line(each.migration))
            for note in each.migration.notes:
                terminal.note(in_shell(note))
        for note in each.notes:
            terminal.note(in_shell(note))


def _told_apart(column: ColumnStatus, all_columns: Sequence[ColumnStatus]) -> str:
    """Return a column's function, with the settings in which it differs from others of that name here."""
    name = column.function or "?"
    same = [each.settings for each in all_columns if each.function == column.function]
    differing = [
        f"{key}={value}" for key, value in column.settings.items() if any(each.get(key) != value for each in same)
    ]
    return f"{name} ({', '.join(differing)})" if differing else name


def migration_line(found: MigrationStatus) -> str:
    """Return a migration in one line."""
    to = "" if found.name == found.vector else f" as {found.name}"
    far = f"{found.staged_rows:,} of {terminal.count(found.total_rows, 'row')} staged"
    done = "" if found.state in ("settled", "finished", "rolled back", "abandoned") else f" ({far})"
    differs = f" ({found.differs})" if found.differs else ""
    return f"migration of {found.vector} to {found.function or '?'}{differs}{to}: {found.state}{done}"


def print_migration(data: str, found: MigrationStatus, *, as_json: bool) -> None:
    """Print the state of a migration."""
    if as_json:
        terminal.print_json(asdict(found))
        return
    terminal.say(f"{data}: {migration_line(found)}")
    for note in () if found.state == "abandoned" else found.notes:
        terminal.note(in_shell(note))


def print_reports(data: str, found: Sequence[ColumnReport], *, as_json: bool) -> None:
    """Print what was done to each column."""
    if as_json:
        terminal.print_json([each.as_dict() for each in found])
        return
    for each in found:
        terminal.say(f"{data}: {_report(each)}")
        for note in each.notes:
            terminal.note(in_shell(note))
        for bad in each.bad[:_SHOWN]:
            key = f" ({bad.key})" if bad.key else ""
            terminal.note(f"row {bad.row:,}{key}: {in_shell(bad.reason)}")
        if each.bad_rows > min(_SHOWN, len(each.bad)):
            terminal.note(f"and {terminal.count(each.bad_rows - min(_SHOWN, len(each.bad)), 'more bad row')}")
    if any(each.dry_run for each in found):
        terminal.note("nothing was written")


def _report(each: ColumnReport) -> str:
    if each.dry_run:
        words = f"{terminal.count(each.written, 'row')} would be embedded"
        return f"{each.vector}: {words}{f', {each.stamped:,} checked by a sample' if each.stamped else ''}"
    facts: list[Any] = [f"{terminal.count(each.written, 'row')} of {each.rows:,} embedded"]
    facts += [f"{terminal.count(each.embedded, 'distinct input')}"] if each.embedded != each.written else []
    facts += [f"{each.cached:,} from the cache"] if each.cached else []
    facts += [f"{each.stamped:,} stamped"] if each.stamped else []
    facts += (
        [f"{each.changed_meanwhile:,} changed meanwhile and left for the next run"] if each.changed_meanwhile else []
    )
    facts += [f"{each.bad_rows:,} bad"] if each.bad_rows else []
    if each.bytes_written:
        facts.append(f"{each.bytes_written / 1e6:,.1f} MB written")
    if not each.written and not each.stamped:
        facts = ["nothing to embed", *facts[1:]]
    return f"{each.vector} {_WHAT.get(each.what, each.what)}: {', '.join(facts)} in {terminal.seconds(each.seconds)}"
