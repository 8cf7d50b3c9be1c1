"""The table of engines and their interface. A new engine is a folder and one line of the table.

Each line names a small class, which is imported when the table is read; the engine's library is imported when the
engine is used. An installed distribution adds a line by an entry point of the group `embedreg.engines`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from embedreg.core import modality
from embedreg.errors import MissingExtraError, StorageError
from embedreg.support.lazy import load

if TYPE_CHECKING:
    import pyarrow as pa

    from embedreg.core.base import EmbeddingFunction
    from embedreg.core.role import Role
    from embedreg.declaration.entries import Entry

__all__ = [
    "ENGINES",
    "Attachable",
    "Declared",
    "Engine",
    "Statements",
    "columns_of",
    "comes_from",
    "engine_of",
    "engines",
    "problems",
]

log = logging.getLogger("embedreg")

ENGINES = {
    "databend": "embedreg.engines.databend.definition:Databend",
    "duckdb": "embedreg.engines.duckdb.definition:DuckDB",
    "lancedb": "embedreg.engines.lancedb.definition:LanceDB",
    "ray": "embedreg.engines.ray.definition:Ray",
}
ENTRY_POINT_GROUP = "embedreg.engines"


class Attachable(Protocol):
    """Stored data that can be sampled and that keeps declarations."""

    path: Path
    schema: pa.Schema
    rows: int

    def sample(self, columns: list[str], rows: int, seed: int) -> Iterator[pa.Table]:
        """Yield tables of rows, spread over the data."""

    def declared(self) -> list[Entry]:
        """Return the declarations in the place that `declare` writes to."""

    def declare(self, text: bytes) -> Path:
        """Write the declarations and return their path."""


@dataclass(frozen=True)
class Declared:
    """Data and its declarations, for an engine's SQL.

    Attributes:
        path: the path of the data.
        kind: "parquet" for a file or a folder of them, "lance" for a table.
        entries: its declarations; none contains a secret.
    """

    path: Path
    kind: str
    entries: Sequence[Entry]


@dataclass(frozen=True)
class Statements:
    """Statements of one purpose.

    Attributes:
        key: their name in JSON.
        heading: the comment above them.
        sql: one statement, or several.
    """

    key: str
    heading: str
    sql: str | list[str] = field(repr=False)

    @property
    def listed(self) -> list[str]:
        """The statements as a list."""
        return [self.sql] if isinstance(self.sql, str) else self.sql


class Engine:
    """An engine. A subclass sets the names and overrides the methods that the engine supports.

    Its module imports the engine's library inside of methods only.

    Attributes:
        extra: the extra of embedreg that installs its requirements.
        requires: its requirements, as `pip install` arguments; None for those of the extra.
        ddl: writes the SQL that carries declarations, from a `Declared` and keyword-only arguments with defaults, each
            annotated as `Annotated[type, "help"]`. They become the options of `embedreg ddl <name>`, and the docstring
            its help. None for an engine without DDL.
        ddl_help: one line about that command, for the list of commands.
        sql_types: the SQL type of an input by the name of its modality, such as {"text": "TEXT"}.
        name: the engine's name in the table, once it has been read from there.
    """

    extra: ClassVar[str | None] = None
    requires: ClassVar[Sequence[str] | None] = None
    ddl: ClassVar[Callable[..., list[Statements]] | None] = None
    ddl_help: ClassVar[str] = ""
    sql_types: ClassVar[Mapping[str, str]] = {}
    name: str = ""

    def reads(self, data: Any) -> bool:
        """Return whether declarations in an object, or at a `Path`, are read by this engine."""
        return False

    def metadata_of(self, data: Any) -> Mapping[Any, Any]:
        """Return the schema metadata of data that it `reads`; an engine that reads anything overrides this.

        Raises:
            EmbedregError: it cannot be read.
        """
        raise NotImplementedError  # never called: `reads` returned False

    def sql_type(self, function: EmbeddingFunction, role: Role = "source") -> str:
        """Return the SQL type of a function's inputs: from `sql_types`, else from the row of their modality.

        Args:
            function: whose inputs SQL passes.
            role: "query" for a text that is searched for, where the function takes texts.
        Raises:
            ConfigError: this engine does not pass such inputs.
        """
        asked = modality.sql_modality(function, role)
        passed = {**modality.sql_types(self.name), **self.sql_types}
        if asked.name not in passed:
            raise modality.refusal(function, asked, self.name or type(self).__name__, passed)
        return passed[asked.name]

    def columns(self, data: Any) -> Any:
        """Return a `ColumnStore` of data, an object or a `Path`, for `embedreg.columns`; None for data of others.

        Raises:
            StorageError: it is this engine's data, and cannot be opened.
        """
        return None

    def chunks(self, path: Path) -> Any:
        """Return a `chunks.child.Child` for a path that names a table of this engine, there or not; None for others.

        Raises:
            StorageError: it is this engine's, and cannot be opened.
        """
        return None

    def attachable(self, path: Path) -> Attachable:
        """Open data at a path that it `reads`, for `attach`.

        Raises:
            StorageError: it cannot be opened, or keeps no declarations that `attach` could write.
        """
        raise StorageError(
            f"{str(path)!r} keeps no declaration that could be written here.",
            "attach to a Parquet file or a Lance table",
        )


def columns_of(data: Any) -> Any:
    """Return the `embedreg.columns.store.ColumnStore` of an object, or of data at a `Path`; None if no engine has one.

    Raises:
        StorageError: an engine works on such data, and cannot open it.
    """
    for targets in (_table, _plugins):
        for name, target in targets().items():
            made = _made(name, target)
            if isinstance(made, Engine) and (store := made.columns(data)) is not None:
                return store
    return None


def child_of(path: Path) -> Any:
    """Return the `embedreg.chunks.child.Child` of an engine for a path; None if no engine has one there."""
    for targets in (_table, _plugins):
        for name, target in targets().items():
            made = _made(name, target)
            if isinstance(made, Engine) and (child := made.chunks(path)) is not None:
                return child
    return None


def comes_from(data: Any, *libraries: str) -> bool:
    """Return whether an object's class comes from one of some libraries, or inherits from such a class."""
    return any(str(base.__module__).partition(".")[0] in libraries for base in type(data).__mro__)


def engine_of(data: Any) -> Engine | None:
    """Return the engine that reads declarations in an object, or at a `Path`; None if there is none."""
    for targets in (_table, _plugins):  # entry points are looked up only if no engine of the table reads it
        for name, target in targets().items():
            made = _made(name, target)
            if isinstance(made, Engine) and made.reads(data):
                return made
    return None


def engines() -> dict[str, Engine]:
    """Return the engines by their names: those of the table, then those of installed plug-ins.

    An engine that cannot be imported is left out, with a warning in the log.
    """
    return {name: made for name, made in _all().items() if isinstance(made, Engine)}


def problems() -> dict[str, MissingExtraError]:
    """Return the error of each engine that cannot be imported, by name."""
    return {name: made for name, made in _all().items() if isinstance(made, MissingExtraError)}


def _all() -> dict[str, Engine | MissingExtraError]:
    return {name: _made(name, target) for targets in (_table, _plugins) for name, target in targets().items()}


def _table() -> dict[str, str]:
    return ENGINES


@functools.cache
def _plugins() -> dict[str, str]:
    """Return the engines of installed distributions: name -> "module:Class". Names in the table cannot be replaced."""
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {name: target for name, target in found.items() if name not in ENGINES}


@functools.cache
def _made(name: str, target: str) -> Engine | MissingExtraError:
    """Create an engine once; a failure is cached too."""
    try:
        made = load(target)()
        if isinstance(made, Engine):
            made.name = name
            return made
        reason = f"{target.partition(':')[2]} is not a subclass of embedreg.inspection.engines.Engine"
    except Exception as exc:  # noqa: BLE001  # a plug-in's module may fail in any way
        reason = f"{type(exc).__name__}: {exc}"
    log.warning("the engine %r (%s) cannot be used: %s", name, target, reason)
    return MissingExtraError(
        f"the engine {name!r} ({target}) cannot be used: {reason}.", "reinstall the distribution that it comes from"
    )
