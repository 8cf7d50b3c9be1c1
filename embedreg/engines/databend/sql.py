"""The SQL that a Databend user pastes: functions, a table, its vector index, searches; and the server's configuration.

Nothing here runs SQL. Names and texts that cannot be quoted so that Databend reads back exactly what was meant are
refused. No statement holds a line break but those between its clauses, so a line that ends in ";" ends a statement.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from embedreg.arrow.quantized import QUANTIZED
from embedreg.arrow.templates import Template
from embedreg.core.base import EmbeddingFunctionConfig, metric_of
from embedreg.core.modality import MODALITIES
from embedreg.declaration import codec, comments
from embedreg.engines.databend.spec import inputs
from embedreg.errors import ConfigError, Words
from embedreg.inspection import locate
from embedreg.inspection.locate import refuse_clear_secrets
from embedreg.support.imports import did_you_mean
from embedreg.support.unicode import is_valid

if TYPE_CHECKING:
    from embedreg.declaration.codec import Functions
    from embedreg.engines.databend.spec import Served

__all__ = [
    "VERSIONS",
    "Layout",
    "create_function",
    "create_functions",
    "create_source_table",
    "create_vector_table",
    "functions_in_comments",
    "identifier",
    "literal",
    "rendered",
    "search",
    "server_config",
    "table_name",
]

CURRENT = "current"
VERSIONS = ("1.2.453", CURRENT)
TOKEN = "<the token>"  # a placeholder, which the user replaces
QUERY = "machine learning techniques"

# What Databend's tokenizer, of 1.2.453 and of 1.2.934, does not read as a plain name in some place where we print one.
_WORDS = """
all analyze and anti any array as asc asof attach between bigint block boolean both case cast character connection
create cross cube current_timestamp date_add date_between date_diff date_part date_sub date_trunc dateadd datebetween
datediff datepart datesub default desc distinct div do else end except exists extract false fetch float for format
from full function grant group having identifier if ignore_result in inner int integer intersect interval into is join
last_day lateral leading left like limit masking natural next_day not notification null of offset on or order over
partition pipe pivot policy position previous_day procedure qualify range regexp right rlike rollup row rows sample
select semi sequence set share shares smallint some stage stream substr substring table task then time_slice timestamp
to top trailing transaction trim true trunc try_cast udf union unpivot using values varchar warehouse when where
window with xor
"""
RESERVED = frozenset(_WORDS.split())
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*", re.ASCII)
_ESCAPED = {"'": "''", "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_DISTANCES = {"cosine": "cosine_distance", "l2": "l2_distance"}


# -- quoting -----------------------------------------------------------------------------------------------------------


def literal(text: str) -> str:
    """Quote a text; the result is one line.

    Raises:
        ConfigError: it holds NUL or half a surrogate pair, which no SQL text can hold.
    """
    return "'" + "".join(_character(char) for char in text) + "'"


def _character(char: str) -> str:
    if char == "\0" or not is_valid(char):
        raise ConfigError(f"a text holds {char!a}, which SQL cannot hold.", "leave that character out")
    if char in _ESCAPED:
        return _ESCAPED[char]
    # Databend's \u takes four digits; what is beyond them can neither end a line nor a text.
    return char if char.isprintable() or ord(char) > 0xFFFF else f"\\u{ord(char):04x}"


def identifier(name: str) -> str:
    r"""Quote a name if necessary.

    Databend keeps a backslash inside double quotes, but does not end the name at the quote after it: `"a\"` runs on. So
    a name with a backslash is put in backticks, in which only a backtick is special.

    Raises:
        ConfigError: it is empty, has characters that cannot be seen, or both a backslash and a backtick.
    """
    if _PLAIN.fullmatch(name) and name not in RESERVED:
        return name
    if not name or not name.isprintable():
        raise ConfigError(f"invalid SQL name {name!a}.", "use letters, digits and underscores")
    if "\\" not in name:
        return '"' + name.replace('"', '""') + '"'
    if "`" in name:
        raise ConfigError(f"{name!a} has both a backslash and a backtick, for which Databend has no quotes.", "rename")
    return f"`{name}`"


def rendered(template: Template) -> str:
    """Return the text of a template as an expression.

    Raises:
        ConfigError: a name or a text that cannot be quoted.
    """
    return template.sql(identifier, literal)


def table_name(table: str | Sequence[str]) -> str:
    """Quote a table's name.

    Args:
        table: `table` or `database.table`; or its parts, where one of them holds a dot.
    Raises:
        ConfigError: as `identifier`.
    """
    return ".".join(identifier(part) for part in (table.split(".") if isinstance(table, str) else table))


# -- functions ---------------------------------------------------------------------------------------------------------


def create_functions(
    functions: Iterable[Served], address: str, *, version: str = "1.2.453", replace: bool = True, token: bool = False
) -> str:
    """Return the statements that make functions known, a blank line between them; see `create_function`."""
    made = [create_function(item, address, version=version, replace=replace, token=token) for item in functions]
    return "\n\n".join(made)


def create_function(
    served: Served, address: str, *, version: str = "1.2.453", replace: bool = True, token: bool = False
) -> str:
    """Return the statement that makes a function known to Databend.

    Args:
        served: the function, as the server serves it.
        address: of the server, "http://host:port" or "https://host:port".
        version: "1.2.453", or "current" for newer servers.
        replace: whether a function of this name is replaced.
        token: whether the server requires one; the statement has a placeholder, never the token itself.
    Raises:
        ConfigError: an invalid name, address or version; VECTOR(n) before Databend had it.
    """
    current = _is_current(version)
    if served.returns == "vector" and not current:
        raise ConfigError(
            f"Databend {version} has no VECTOR type.",
            Words("returns='array', or version='current'", "--returns array, or --databend-version current"),
        )
    headers = f"HEADERS = ({literal('authorization')} = {literal(f'Bearer {TOKEN}')})" if token and current else None
    kind = inputs()[served.input]
    clauses = [
        f"CREATE {'OR REPLACE ' if replace else ''}FUNCTION {identifier(served.name)} "
        f"({f'input {kind}' if current else kind})",
        f"RETURNS {_vector_type(served)}",
        f"LANGUAGE PYTHON{' IMMUTABLE' if current else ''}",
        f"HANDLER = {literal(served.name)}",
        headers,
        f"ADDRESS = {literal(_address(address))}",
    ]
    return "\n    ".join(clause for clause in clauses if clause) + ";"


def _vector_type(served: Served, items: str = "FLOAT") -> str:
    return f"VECTOR({served.function.ndims()})" if served.returns == "vector" else f"ARRAY({items})"


def _is_current(version: str) -> bool:
    if version not in VERSIONS:
        hint = f"{did_you_mean(version, VERSIONS)}write {' or '.join(map(repr, VERSIONS))}"
        raise ConfigError(f"unknown Databend version {version!r}.", hint)
    return version == CURRENT


def _address(address: str) -> str:
    """Check that an address is what Databend compares with its list: scheme, host and port, nothing else."""
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        good = good and address == f"{parts.scheme}://{parts.netloc}" and "@" not in address
    except ValueError:
        good = False
    if not good or not address.isascii() or not address.isprintable() or set(address) & set(" \"'\\<>^`{|}"):
        raise ConfigError("invalid server address.", "write http://host:8815 or https://host:8815")
    return address


# -- tables and searches -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The names in the statements about tables.

    Attributes:
        table: what is to be searched; see `table_name`.
        source: its column that is embedded.
        vector: the column of the vectors.
        key: a column that identifies rows, of BIGINT.
        others: the names and SQL types of the columns beside these two, in place of `key`; see `columns.sql_columns`.
        template: what the source is rendered from; the table that is to be searched then has those columns.
    """

    table: str | Sequence[str] = "articles"
    source: str = "content"
    vector: str = "embedding"
    key: str = "id"
    others: Sequence[tuple[str, str]] | None = None
    template: Template | None = None

    @property
    def value(self) -> str:
        """What is embedded: the source column, or the text of the template."""
        return identifier(self.source) if self.template is None else rendered(self.template)

    @property
    def beside(self) -> list[str]:
        """The quoted names of the columns beside the source and the vectors."""
        return [identifier(self.key)] if self.others is None else [identifier(name) for name, _ in self.others]

    @property
    def defined(self) -> list[str]:
        """These columns with their SQL types."""
        types = ["BIGINT"] if self.others is None else [kind for _, kind in self.others]
        return [f"{name} {kind}" for name, kind in zip(self.beside, types, strict=True)]

    @property
    def embedded(self) -> tuple[str, ...]:
        """The name of the table with the vectors: that of the first, followed by `_embedded`."""
        *above, last = self.table.split(".") if isinstance(self.table, str) else self.table
        return (*above, f"{last}_embedded")


def create_source_table(served: Served, layout: Layout) -> str:
    """Return the statement that makes the table with the rows, where there is none."""
    read = [layout.source]
    if layout.template is not None:
        known = {name for name, _ in layout.others or ()}
        read = [name for name in layout.template.columns if name not in known]
    columns = [*layout.defined, *(f"{identifier(name)} {inputs()[served.input]}" for name in read)]
    return f"CREATE TABLE IF NOT EXISTS {table_name(layout.table)} ({', '.join(columns)});"


def create_vector_table(
    served: Served, layout: Layout, config: EmbeddingFunctionConfig | None = None, *, version: str = "1.2.453"
) -> str:
    """Return the statement that embeds every row into a table, whose vector column's comment declares the function.

    Args:
        served: the function for rows.
        layout: the names.
        config: the declaration; None for one of this function.
        version: "current" adds a vector index where the vectors are VECTOR(n).
    Raises:
        ConfigError: as `create_function`, or the function has no name under which others could find it.
    """
    source, vector = identifier(layout.source), identifier(layout.vector)
    columns = [
        *layout.defined,
        f"{source} {inputs()[served.input]}",
        # a column of ARRAY(FLOAT) has items that may be null, which cosine_distance does not take
        f"{vector} {_vector_type(served, 'FLOAT NOT NULL')} COMMENT {literal(_comment(served, layout, config))}",
    ]
    if _is_current(version) and served.returns == "vector":
        index = identifier(f"{layout.embedded[-1]}_index")
        columns.append(f"VECTOR INDEX {index} ({vector}) distance = {literal(_metric(served))}")
    return "\n".join(
        [
            f"CREATE TABLE {table_name(layout.embedded)} (",
            ",\n".join(f"    {column}" for column in columns),
            ")",
            f"AS SELECT {', '.join([*layout.beside, layout.value, f'{identifier(served.name)}({layout.value})'])} "
            f"FROM {table_name(layout.table)};",
        ]
    )


def search(
    served: Served,
    layout: Layout,
    query: Served | None = None,
    *,
    stored: bool = True,
    text: str = QUERY,
    limit: int = 5,
) -> str:
    """Return the query for the rows nearest to a text.

    Args:
        served: the function for rows.
        layout: the names.
        query: the function for queries; None where it is the same.
        stored: whether the vectors are in the table; else every row is embedded.
        text: what to search for.
        limit: how many rows.
    """
    source, vector = identifier(layout.source), identifier(layout.vector)
    left = vector if stored else f"{identifier(served.name)}({layout.value})"
    source = source if stored else layout.value
    right = f"{identifier((query or served).name)}({literal(text)})"
    # The bytes of an image are useless in a result.
    shown = [*layout.beside, source] if MODALITIES[served.input].by_content or not layout.beside else layout.beside
    return "\n".join(
        [
            f"SELECT {', '.join(shown)}, {_DISTANCES[_metric(served)]}({left}, {right}) AS distance",
            f"FROM {table_name(layout.embedded if stored else layout.table)}",
            f"ORDER BY distance ASC LIMIT {limit:d};",
        ]
    )


def _metric(served: Served) -> str:
    metric = metric_of(served.function)
    if metric == "dot" and served.function.vector_traits().get("normalized"):
        return "cosine"  # the order is the same
    if metric not in _DISTANCES:
        raise ConfigError(
            f"{served.name}: Databend has no distance for vectors that are compared by {metric!r}.",
            "embed vectors of unit length",
        )
    return metric


def _comment(served: Served, layout: Layout, config: EmbeddingFunctionConfig | None) -> str:
    if config is None or (config.source_column, config.vector_column) != (layout.source, layout.vector):
        config = served.function.bind(layout.source, layout.vector)
    if config.value_type in QUANTIZED:
        raise ConfigError(
            f"column {layout.vector!r} holds {config.value_type} vectors: Databend's vectors, and the functions that "
            "fill them, are float32.",
            "embed a column of floats for Databend: dtype='float32'",
        ).for_shell("--vector NAME makes another column, of float32")
    stored = codec.encode([config])
    [entry] = codec.entries({codec.KEY: stored})
    refuse_clear_secrets(entry)  # fields that the class does not know are kept as they were stored
    return comments.comment_of(entry)


def functions_in_comments(shown: Iterable[str | None]) -> Functions:
    """Find the functions that column comments declare: {vector column: declaration}.

    Args:
        shown: what `SELECT comment FROM system.columns WHERE table = '...'` returned; 1.2.453 shows comments in quotes.
    Raises:
        MetadataError: a declaration that cannot be read, or two for one vector column.
    """
    return locate.functions_in_comments(_unquoted(comment) for comment in shown)


def _unquoted(comment: str | None) -> str | None:
    if comment and len(comment) > 1 and comment[0] == comment[-1] == "'":
        return comment[1:-1].replace("\\'", "'")
    return comment


# -- the server's configuration ----------------------------------------------------------------------------------------


def server_config(address: str, *, version: str = "1.2.453") -> str:
    """Return the lines of databend-query.toml that let Databend call the address.

    Raises:
        ConfigError: as `create_function`.
    """
    lines = ["[query]", "enable_udf_server = true", f'udf_server_allow_list = ["{_address(address)}"]']
    if _is_current(version) and address.startswith("http://"):
        lines.append("udf_server_allow_insecure = true")
    return "\n".join(lines) + "\n"
