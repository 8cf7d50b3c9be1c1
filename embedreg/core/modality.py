"""The table of modalities (text, image, audio, ...), used to read, probe, cache and serve inputs.

`Traits(modality=...)` names rows of this table, joined by "+": "text", "image+text". Everything that depends on a
modality is in its row; no other module compares modality names. An unknown name is an error when the function is used,
since it would not be known whether a string is an input or the path of one.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from embedreg.arrow.columns import Accepted, images_of, recordings_of, unstacked
from embedreg.core.role import Role
from embedreg.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from embedreg.core.base import EmbeddingFunction

__all__ = [
    "ANY",
    "AUDIO",
    "IMAGE",
    "MODALITIES",
    "TEXT",
    "InputFiles",
    "Modality",
    "accepted",
    "add_modality",
    "files_of",
    "is_mixed",
    "modalities",
    "of_files",
    "query_names",
    "refusal",
    "source_modality",
    "sql_modality",
    "sql_types",
]

PROBE_TEXT = "The quick brown fox jumps over the lazy dog; 3.14 is close to π."
# An image of 8 x 8 pixels, two gradients and a disc, as PNG: every decoder returns the same pixels.
PROBE_IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAcklEQVR42h2OUQ0AUQjDKgYxiEEMYiZmYkh2L/e7NF0BChoGFgSG45+r6GKK"
    "LVS4uMc+uJpuptlGjZt7hqeoSU9msoMGD/e8bGrTm9nsRouXe28opbQyyioSFvcacMppZ5x1ZGzulb20uvRlLnvo8HHHB/dGU+why/E+AAAAAElF"
    "TkSuQmCC"
)
# 10 ms of three tones at 48 kHz, as a WAV file of 8 bits: every decoder returns the same samples.
PROBE_AUDIO = base64.b64decode(
    "UklGRgQCAABXQVZFZm10IBAAAAABAAEAgLsAAIC7AAABAAgAZGF0YeABAAC3saCZoa+yoYRxeJW3ysi7tsDP0LmOZVFWZWxiU1BhfZGMb0w5OkVI"
    "PSwoPmiRpqOVkJqqrp6BbHGNr8TEurjG2d7KoXhjZXF2allUZYKXlHhWQUBISDkkHC9Wf5WTiIWRo6mZfGVogqS6vLW2x9/p2LKKdHR/gXRhWmqH"
    "np2EYkxKUE06IBQiR26FhHt5h5ujk3VeXnaXrbCrr8Tg7+PAmYODjI1+aWFvjqaokHBaVltWQCIQGjtgdndubn2TnI5vVlNpiZ6inqS83PDpyqWQ"
    "j5iYiHFndZSusp1/amZpY0ooERYzVmprY2N0i5WIaU5JXHqOko+WsNTs6tCumpqiopF5bXqZtbyqjnp3enNYMhcWL09iYllaa4SQhGVIQFBrfoB9"
    "hKDH5OfRs6Giq6qYf3J+nbvEtZyKiIyFaUAhHDBMXVtSU2V+jIFiQzhGXm5vanGOt9ngzrSkprCwnoR1gJ++yr+omZmfmXxSLyU1TVxZTk5ge4qA"
    "YUE0PlJgX1hdeqXJ1cixpKizs6GGdn+ev87FsqapsayRZT8xPVJeWU1MXnqKgmNCMjlKVFBGSmWRuMe+qqCmsrSihnV9m73OybmwtsG/pXpSQUha"
    "Y1xPTV56jYVoRjM3RUxFNzhRfKU="
)

String = Literal["content", "name", "unknown"]


@dataclass(frozen=True)
class InputFiles:
    """Files of which each is one input, for embedding a folder.

    Attributes:
        kind: the name of a folder's contents: "images".
        suffixes: the file name extensions, in lower case.
        noun: the name of one input in messages: "an image".
        reader: the module that reads the files as rows, with the functions `schema`, `inputs`, `changed` and `read` as
            in `embedreg.datasets.files`, whose rows are the files' paths and names.
        column: the column that is embedded by default.
    """

    kind: str
    suffixes: tuple[str, ...]
    noun: str
    reader: str = "embedreg.datasets.files"
    column: str = "path"


@dataclass(frozen=True)
class Modality:
    """One kind of input: a row of the table.

    Attributes:
        name: the name used in `Traits(modality=...)`.
        string: the meaning of a plain string in a source column: the "content" itself, as for texts; its "name", a path
            or a URL; or "unknown" if it depends on the function.
        types: the Arrow types of a source column, named as in `pyarrow.types.is_*`; empty for every type. String and
            binary views and fixed-size binaries are converted to plain ones first.
        objects: whether an input may be a Python object without an Arrow type, such as an image in memory.
        probe: the fixed input for drift checks, or None. It never changes, since stored probes were made from it.
        sql: the SQL type of an input by engine name, "duckdb" or "databend"; other engines raise for the modality.
        hint: the hint for a column of another type.
        rows_of: splits an array of several axes into inputs; by default along the first axis.
        read: converts a column of another Arrow type to inputs, or raises an `InputError`.
        files: the files of which each is one input; None if folders cannot be embedded.
        forms: the module whose `forms()` yields other forms of an input, which an audit tries; None for none, and for
            texts, whose forms an audit knows.
        documents: other files, of which each has several inputs, such as the pages of PDF files.
    """

    name: str
    string: String = "unknown"
    types: tuple[str, ...] = ()
    objects: bool = False
    probe: Any = None
    sql: Mapping[str, str] = field(default_factory=dict, hash=False)
    hint: str = "choose another column"
    rows_of: Callable[[Any], list[Any]] | None = None
    read: Callable[[pa.Array], Any] | None = None
    files: InputFiles | None = None
    forms: str | None = None
    documents: tuple[InputFiles, ...] = ()

    @property
    def kinds_of_files(self) -> tuple[InputFiles, ...]:
        """The kinds of files that hold inputs."""
        return (*(() if self.files is None else (self.files,)), *self.documents)

    @property
    def plural(self) -> str:
        """The plural name of inputs in messages."""
        return f"{self.name}s" if self.files is None else self.files.kind

    @property
    def by_content(self) -> bool:
        """Whether a string is the input itself, so that equal strings have equal vectors in every place."""
        return self.string == "content"


TEXT = Modality(
    "text",
    string="content",
    types=("string", "large_string"),
    probe=PROBE_TEXT,
    sql={"duckdb": "VARCHAR", "databend": "STRING"},
    hint="cast it to string first, or choose another column",
)
IMAGE = Modality(
    "image",
    string="name",
    types=("string", "large_string", "binary", "large_binary"),
    objects=True,
    probe=PROBE_IMAGE,
    sql={"duckdb": "BLOB", "databend": "BINARY"},
    rows_of=unstacked,
    read=images_of,
    files=InputFiles("images", (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"), "an image"),
    forms="embedreg.images.forms",
    documents=(InputFiles("pages", (".pdf",), "a document", "embedreg.datasets.pages", "image"),),
)
AUDIO = Modality(
    "audio",
    string="name",
    types=("string", "large_string", "binary", "large_binary"),
    objects=True,
    probe=PROBE_AUDIO,
    sql={"duckdb": "BLOB", "databend": "BINARY"},
    hint="recordings are bytes, paths or URLs (binary or string)",
    read=recordings_of,
    files=InputFiles("recordings", (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus"), "a recording"),
)
# For a class that does not declare its modality, such as LanceDB's: it gets the column's values, and texts from SQL.
ANY = Modality("any", objects=True, rows_of=unstacked)

MODALITIES: dict[str, Modality] = {each.name: each for each in (TEXT, IMAGE, AUDIO, ANY)}


def add_modality(modality: Modality) -> None:
    """Add a modality to the table for the functions of a plug-in; call it where the functions are registered.

    Raises:
        ConfigError: the name is invalid, or another modality has this name or one of its file extensions.
    """
    name = modality.name
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or "+" in name:
        raise ConfigError(f"{name!r} cannot be the name of a modality.", "embedreg.Modality('video', ...)")
    for suffix in (suffix for each in modality.kinds_of_files for suffix in each.suffixes):
        if (other := of_files(suffix=suffix)) is not None and other.name != name:
            raise ConfigError(f"files that end in {suffix!r} are of the modality {other.name!r}.", "name other endings")
    if MODALITIES.setdefault(name, modality) != modality:
        raise ConfigError(f"there is another modality of the name {name!r}.", "give this one a name of its own")
    _parsed.cache_clear()


def modalities(function: EmbeddingFunction) -> tuple[Modality, ...]:
    """Return the modalities of a function, in the order in which its class names them.

    Raises:
        ConfigError: its class names an unknown modality.
    """
    return _of(function)[0]


def accepted(function: EmbeddingFunction) -> Accepted:
    """Return the column types that a function accepts, in either role.

    Raises:
        ConfigError: as `modalities`.
    """
    return _of(function)[1]


def _of(function: EmbeddingFunction) -> tuple[tuple[Modality, ...], Accepted]:
    text = function._own_traits().modality
    try:
        return _parsed(text if isinstance(text, str) else repr(text))
    except KeyError as exc:
        name = exc.args[0]
    added = f"embedreg.add_modality(embedreg.Modality({name!r}, ...))"
    raise ConfigError(
        f"{type(function).__name__} embeds {name!r}, an unknown modality; known: {', '.join(MODALITIES)}.",
        f"{added} describes it; under traits = embedreg.Traits(modality='any') the function gets its rows as they are",
    ).for_shell(f"the plug-in, or the file of --import, describes it with {added}")


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> tuple[tuple[Modality, ...], Accepted]:
    """Return the modalities that a class names, and the column types that they accept."""
    named = tuple(MODALITIES[name.strip()] for name in text.split("+"))
    types = tuple(dict.fromkeys(kind for each in named for kind in each.types))
    return named, Accepted(
        " or ".join(each.name for each in named),
        types if all(each.types for each in named) else (),
        any(each.objects for each in named),
        named[0].hint,
        next((each.rows_of for each in named if each.rows_of is not None), None),
        next((each.read for each in named if each.read is not None), None),
    )


def source_modality(function: EmbeddingFunction) -> Modality:
    """Return the modality of a function's source rows.

    It is the first modality of the class, unless the instance has a field `source_type` that names another.
    """
    named = modalities(function)
    if len(named) == 1 and named[0] is not ANY:
        return named[0]
    stated = getattr(function, "source_type", None)
    among = MODALITIES.values() if ANY in named else named
    return next((each for each in among if each.name == stated), named[0])


def is_mixed(function: EmbeddingFunction) -> bool:
    """Return whether the declaration allows a string of a source column to be a text or the name of an input."""
    return getattr(function, "source_type", None) == "mixed"


def sql_modality(function: EmbeddingFunction, role: Role = "source") -> Modality:
    """Return the modality of inputs from SQL: text for queries if the function accepts it, or if it is unknown."""
    asked = TEXT if role == "query" and TEXT in modalities(function) else source_modality(function)
    return TEXT if asked is ANY else asked


def sql_types(engine: str) -> dict[str, str]:
    """Return the SQL type of each modality that an engine supports."""
    return {name: each.sql[engine] for name, each in MODALITIES.items() if engine in each.sql}


def of_files(kind: str | None = None, *, suffix: str | None = None) -> Modality | None:
    """Return the modality of files, by the kind of their folder or by extension; None for other files."""
    return next((each for each, _ in _with_files(kind, suffix)), None)


def files_of(kind: str | None = None, *, suffix: str | None = None) -> InputFiles | None:
    """Return the `InputFiles` of a modality, with the arguments of `of_files`."""
    return next((files for _, files in _with_files(kind, suffix)), None)


def _with_files(kind: str | None, suffix: str | None) -> Iterator[tuple[Modality, InputFiles]]:
    for each in MODALITIES.values():
        for files in each.kinds_of_files:
            if files.kind == kind or suffix in files.suffixes:
                yield each, files


def query_names(function: EmbeddingFunction) -> list[str]:
    """Return the kinds of queries that a function accepts, for messages; text if the modality is unknown."""
    named = modalities(function)
    among = MODALITIES.values() if ANY in named else named
    return list(dict.fromkeys([TEXT.name, *(each.name for each in among if each is not ANY)]))


def refusal(function: EmbeddingFunction, modality: Modality, engine: str, passed: Iterable[str]) -> ConfigError:
    """Return the error for a modality that an engine does not support; it lists the supported ones."""
    return ConfigError(
        f"{type(function).__name__} embeds {modality.name!r}, which {engine} cannot pass to a function; "
        f"it passes {' or '.join(passed)}.",
        "embed the column with embedreg.embed_table or embedreg.embed, and load the vectors",
    ).for_shell("embedreg embed SRC DST.parquet, and load the vectors")
