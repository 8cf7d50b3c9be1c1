"""A table's columns as declared, the classes of their rows as SQL, and the mark that a migration leaves."""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.arrow.templates import Template, refuse_type
from embedreg.columns.arguments import undeclared
from embedreg.columns.sources import Source
from embedreg.declaration import codec, digest, templates
from embedreg.declaration.entries import Entry
from embedreg.engines.lancedb.names import literal, problem_of, quoted
from embedreg.errors import ConfigError, EmbedregError, StorageError, option
from embedreg.jobs import stored
from embedreg.support.strict_json import Malformed, document

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "MARK",
    "Column",
    "Mark",
    "chosen",
    "columns_of",
    "counts_of",
    "kept_metadata",
    "mark_of",
    "marked",
    "notes_on",
    "predicate",
    "refuse_computed",
    "refuse_legacy",
    "rendered",
    "vector_columns",
]

MARK = "embedreg.migration"  # a key of schema metadata
_MAX_MARK = 1 << 20  # bytes
_MAX_NAME = 1024
_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Column:
    """A declared vector column.

    Attributes:
        entry: its declaration.
        digest: its column of digests; None without one.
        prefix: the part of a digest that names the function; None for a declaration of another client.
        problem: why its rows cannot be classified; None if they can.
    """

    entry: Entry
    digest: str | None
    prefix: str | None
    problem: str | None = None

    @property
    def vector(self) -> str:
        """The vector column."""
        return self.entry.vector_column

    @property
    def source(self) -> str:
        """The source column."""
        return self.entry.source_column

    @property
    def template(self) -> str | None:
        """The template that the source column is rendered from; None for a plain column."""
        found = self.origin.template
        return None if found is None else found.text

    @functools.cached_property
    def origin(self) -> Source:
        """What the vectors are embedded from."""
        return Source.of(self.entry)

    @property
    def value(self) -> str:
        """The source in SQL: the column, or the texts that its template renders now."""
        template = self.origin.template
        return quoted(self.source) if template is None else f"({rendered(template)})"


def columns_of(schema: pa.Schema) -> dict[str, Column]:
    """Return a table's declared columns by name.

    Raises:
        MetadataError: the declarations cannot be read.
    """
    entries = codec.entries(schema.metadata)
    taken = {name for entry in entries for name in (entry.source_column, entry.vector_column)}
    return {entry.vector_column: _column(entry, schema, taken) for entry in entries}


def _column(entry: Entry, schema: pa.Schema, taken: set[str]) -> Column:
    named, prefix = digest.column_of(entry.reserved), digest.prefix_stored(entry.reserved)
    problem = None
    for what, name in (("source", entry.source_column), ("vector", entry.vector_column)):
        if name not in schema.names:
            problem = f"the {what} column {name[:80]!r} is not in the table"
        elif (why := problem_of(name)) is not None:
            problem = f"the name of the {what} column holds {why}"
    if problem is None:
        problem = _problem_of_template(entry, schema)
    if problem is None and digest.KEY in entry.reserved:
        if named is None or "`" in named or named in taken:
            problem = "the declaration names a column of digests that cannot be one"
        elif named not in schema.names or not digest.is_stored(schema.field(named)):
            problem = f"the column of digests {named[:80]!r} is not in the table, or has another type"
        elif prefix is None:
            problem = "the declaration has digests and no valid fingerprint"
    return Column(entry, named if problem is None and prefix is not None else None, prefix, problem)


def _problem_of_template(entry: Entry, schema: pa.Schema) -> str | None:
    """Return why the texts of a declaration cannot be rendered; None if they can, or it has no template."""
    try:
        template = templates.stored(entry)
        if template is not None:
            template.refuse_missing(schema.names, entry.vector_column)
            for name in template.columns:
                refuse_type(name, schema.field(name).type)
                if (why := problem_of(name)) is not None:
                    return f"the name of a column that its template reads holds {why}"
    except EmbedregError as exc:
        return exc.message.rstrip(".")
    return None


def rendered(template: Template) -> str:
    """Return the text of a template as an expression of Lance's SQL."""
    return template.sql_without_case(quoted, literal, "STRING")


def chosen(schema: pa.Schema, vector: str, shown: str) -> Column:
    """Return one declared column whose rows can be classified.

    Raises:
        MissingColumnError: it is not declared. StorageError: its declaration does not fit the table.
        ConfigError: LanceDB computes it, or its source.
    """
    found = columns_of(schema)
    if vector not in found:
        raise undeclared(shown, vector, found)
    column = found[vector]
    if column.problem is not None:
        again = option("embedreg column detach, then add, declares it again", "columns.detach, then columns.add")
        raise StorageError(f"column {vector!r}: {column.problem}.", again)
    refuse_computed(schema, (column.vector, column.source))
    return column


def refuse_computed(schema: pa.Schema, names: Sequence[str]) -> None:
    """Raise `ConfigError` if LanceDB itself computes a column."""
    for name in names:
        if name in schema.names and any(b"computed_column" in key for key in schema.field(name).metadata or {}):
            raise ConfigError(f"{name!r} is a computed column of LanceDB.", "its values come from refresh_column")


def kept_metadata(field: pa.Field) -> dict[bytes, bytes]:
    """Return the metadata of a vector column that its successor gets too: what users have recorded of it.

    LanceDB's `lancedb:status` tells physical columns of one logical column apart (production, candidate ...). Here old
    and new vectors are never both in the schema, so it is passed on unchanged, with descriptions and tags.
    """
    others = (b"lance-encoding:", b"lance-schema:")  # of the files, which are new
    return {key: value for key, value in (field.metadata or {}).items() if not key.startswith(others)}


def refuse_legacy(dataset: Any, shown: str) -> None:
    """Raise `ConfigError` for Lance's first file format, in which a column cannot have a file of its own."""
    if not str(dataset.data_storage_version).startswith("2"):
        raise ConfigError(
            f"{shown} is in Lance's file format {dataset.data_storage_version}, to which no column can be added here.",
            "write it again with a newer LanceDB",
        )


def notes_on(vector: str, name: str, old: pa.DataType, width: Any) -> tuple[str, ...]:
    """Return what a migration to vectors of some width means for readers that hold the table open."""
    if vector != name or getattr(old, "list_size", None) != width:
        return ()
    return (
        f"column {vector!r} keeps its width of {width}: readers that hold the table open with LanceDB's own functions "
        "keep using the model that they have until they open it again",
    )


def predicate(column: Column, classes: Sequence[str]) -> str:
    """Return the SQL condition of the rows of some classes (see `results.ROW_CLASSES`)."""
    source, vector = column.value, quoted(column.vector)
    changed = "false"  # rows of a template whose stored text is not what it renders now
    if column.origin.template is not None:
        text = quoted(column.source)
        changed = f"coalesce({text} <> {source}, ({text} is null) <> ({source} is null))"
    if column.digest is None or column.prefix is None:
        known = {
            "null_source": f"{source} is null",
            "stale": f"({vector} is not null and {changed})",
            "unstamped": f"({source} is not null and {vector} is not null and not {changed})",
            "empty": f"({source} is not null and {vector} is null)",
        }
        return " or ".join(known[each] for each in classes if each in known) or "false"
    stored, want = quoted(column.digest), digest.sql(source, column.prefix, "lance")
    own = f"starts_with({stored}, '{column.prefix}')"
    known = {
        "fresh": f"({stored} = {want} and not {changed})",
        "stale": f"({stored} is not null and {own} and ({source} is null or {stored} <> {want} or {changed}))",
        "foreign": f"({stored} is not null and not {own})",
        "unstamped": f"({stored} is null and {source} is not null and {vector} is not null and not {changed})",
        "empty": f"({stored} is null and {source} is not null and {vector} is null)",
        "null_source": f"({stored} is null and {source} is null)",
    }
    if column.origin.template is not None:
        known["stale"] = f"({known['stale']} or ({stored} is null and {vector} is not null and {changed}))"
        known["null_source"] = f"({stored} is null and {source} is null and not ({vector} is not null and {changed}))"
    return " or ".join(known[each] for each in classes)


def counts_of(dataset: Any, column: Column) -> dict[str, int]:
    """Count the rows of each class: one scan of sources and digests, and of vectors only where no digest is.

    Raises:
        StorageError: Lance cannot evaluate it, such as a hash of the source's type.
    """
    try:
        total = int(dataset.count_rows())
        found = dict.fromkeys(("fresh", "stale", "foreign", "unstamped", "empty", "null_source"), 0)
        if column.digest is None:
            for each in ("null_source", "empty", *(["stale"] if column.origin.template is not None else [])):
                found[each] = int(dataset.count_rows(predicate(column, [each])))
        else:
            for each in ("fresh", "stale", "foreign", "null_source"):
                found[each] = int(dataset.count_rows(predicate(column, [each])))
            if sum(found.values()) < total:
                found["empty"] = int(dataset.count_rows(predicate(column, ["empty"])))
        found["unstamped"] = total - sum(found.values())
        return found
    except (OSError, RuntimeError, ValueError) as exc:
        raise StorageError(
            f"the rows of column {column.vector!r} cannot be classified: {str(exc).partition(chr(10))[0][:200]}",
            "is the source column text or bytes?",
        ) from exc


# -- the mark of a migration -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """The mark that a switch leaves in the schema metadata until `finish`; read as untrusted input.

    Attributes:
        id: of the migration.
        vector, name: the vector column before and after the switch.
        version: the version that the switch was based on.
        before: the replaced declaration.
        fields: the old columns' field ids: the vector's, and the digests' if there were any.
        old: their Arrow fields, in this order.
        to: the fingerprint of the new function.
        last: the highest fragment before the switch. A handle that has not seen the switch appends later rows to the
            old columns too, and these may be either function's.
    """

    id: str
    vector: str
    name: str
    version: int
    before: Entry
    fields: tuple[int, ...]
    old: pa.Schema
    to: str
    last: int


def marked(mark: Mark, at: str) -> str:
    """Return the text of a mark.

    Args:
        at: the time of the switch.
    """
    return json.dumps(
        {
            "format": 1,
            "id": mark.id,
            "vector": mark.vector,
            "name": mark.name,
            "version": mark.version,
            "at": at,
            "from": mark.before.raw,
            "from_fields": list(mark.fields),
            "from_schema": stored_schema(mark.old),
            "to": mark.to,
            "last_fragment": mark.last,
        }
    )


def stored_schema(schema: pa.Schema) -> str:
    """Return the text of an Arrow schema, as `stored.schema_of` reads it."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def mark_of(schema: pa.Schema) -> Mark | None:
    """Return the mark of a migration; None if there is none.

    Raises:
        StorageError: it is not as embedreg writes it. Nothing that it names has been opened.
    """
    metadata = schema.metadata or {}
    text = metadata.get(MARK.encode(), metadata.get(MARK))
    if text is None:
        return None
    data = text.encode() if isinstance(text, str) else bytes(text)
    try:
        return _mark(document(data, max_bytes=_MAX_MARK), schema)
    except (Malformed, EmbedregError, KeyError, TypeError, ValueError) as exc:
        why = str(exc) if isinstance(exc, Malformed) else "it is not as embedreg writes it"
        raise StorageError(
            f"the table's metadata {MARK!r} cannot be read: {why}.",
            f"nothing it names was opened; remove the key: dataset.update_schema_metadata({{{MARK!r}: None}})",
        ) from None


def _mark(found: dict[str, Any], schema: pa.Schema) -> Mark:
    texts = {key: found[key] for key in ("id", "vector", "name", "from", "from_schema", "to")}
    if found["format"] != 1 or not all(isinstance(each, str) for each in texts.values()):
        raise Malformed("it is not as embedreg writes it")
    fields = found["from_fields"]
    numbers = [found["version"], found["last_fragment"], *fields]
    if not isinstance(fields, list) or not all(type(each) is int and 0 <= each < 2**31 for each in numbers):
        raise Malformed("its numbers are invalid")
    if not _ID.fullmatch(texts["id"]) or len(texts["vector"]) > _MAX_NAME or len(texts["name"]) > _MAX_NAME:
        raise Malformed("its names are invalid")
    (before,) = codec.entries({codec.KEY: f"[{texts['from']}]"})
    old = stored.schema_of(texts["from_schema"])
    if before.vector_column != texts["vector"] or len(old) != len(fields) or not 1 <= len(old) <= 2:
        raise Malformed("its columns do not fit each other")
    names = [texts["vector"], *([digest.column_of(before.reserved)] if len(old) == 2 else [])]
    if (
        old.names != names
        or not _is_vector(old.field(0).type, kept=True)
        or not all(map(digest.is_stored, list(old)[1:]))
    ):
        raise Malformed("its columns do not fit each other")
    if before.source_column not in schema.names or before.source_column in (*old.names, texts["name"]):
        raise Malformed("its source column is not in the table")
    named = texts["id"], texts["vector"], texts["name"]
    return Mark(*named, numbers[0], before, tuple(fields), old, texts["to"], numbers[1])


def _is_vector(kind: pa.DataType, *, kept: bool = False) -> bool:
    """Return whether LanceDB treats a type as vectors; with `kept`, whether embedreg keeps vectors of it."""
    import pyarrow as pa

    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(
        lists
        and (pa.types.is_floating(kind.value_type) or kind.value_type in (pa.uint8(), *([pa.int8()] if kept else [])))
    )


def vector_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that LanceDB treats as vectors when a search names none."""
    import pyarrow as pa

    def counted(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(counted(each.type) for each in kind)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type  # a multivector
        return pa.types.is_fixed_size_list(kind) and _is_vector(kind)

    return [item.name for item in schema if counted(item.type)]
