"""Print embedreg's public surface as JSON: what users import, type and read.

    python -m tests.public_surface                     print it
    python -m tests.public_surface OLD.json            print what differs from a stored one, one line each
    PYTHONPATH=/another/checkout python tests/public_surface.py     the surface of another commit

Modules may move: where a name lives is left out, also in annotations. Only public names are imported, so that this runs
on any commit. The test compares it with the surface that a commit stored in tests/fixtures/.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import importlib.metadata
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import PydanticUserError

__all__ = ["differences", "made_with", "surface"]

MODULES = (
    "embedreg",
    "embedreg.errors",
    "embedreg.testing",
    "embedreg.engines.databend",
    "embedreg.engines.duckdb",
    "embedreg.engines.lancedb",
    "embedreg.engines.ray",
)
WIDTH = "80"  # of the help
_PATH = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")  # `embedreg.base.` before a name
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


# -- Python ------------------------------------------------------------------------------------------------------------


def _annotation(value: Any) -> str:
    text = value if isinstance(value, str) else inspect.formatannotation(value)
    return _PATH.sub("", _ADDRESS.sub("", text.replace("typing.", "")))


def _default(value: Any) -> str:
    if inspect.isroutine(value) or inspect.isclass(value):
        return str(value.__name__)
    return _PATH.sub("", _ADDRESS.sub("", repr(value)))


def _signature(call: Any, types: bool = True) -> str:
    try:
        found = inspect.signature(call)
    except (TypeError, ValueError):
        return "(...)"
    parts, star = [], False
    for each in found.parameters.values():
        text = each.name
        if each.kind is each.VAR_POSITIONAL:
            text, star = f"*{text}", True
        elif each.kind is each.VAR_KEYWORD:
            text = f"**{text}"
        elif each.kind is each.KEYWORD_ONLY and not star:
            parts, star = [*parts, "*"], True
        if types and each.annotation is not each.empty:
            text += f": {_annotation(each.annotation)}"
        if each.default is not each.empty:
            text += f" = {_default(each.default)}"
        parts.append(text)
    returned = "" if found.return_annotation is found.empty else f" -> {_annotation(found.return_annotation)}"
    return f"({', '.join(parts)}){returned}"


def _member(owner: type, name: str) -> str:
    value = inspect.getattr_static(owner, name)
    if isinstance(value, staticmethod | classmethod):
        return f"{type(value).__name__} {_signature(value.__func__)}"
    if isinstance(value, property):
        returned = getattr(value.fget, "__annotations__", {}).get("return", "Any")
        return f"property -> {_annotation(returned)}"
    if inspect.isroutine(value):
        return f"method {_signature(value)}"
    return f"attribute {type(value).__name__}"


def _class(cls: type) -> dict[str, Any]:
    """Describe a class by what embedreg's classes among its bases define in public."""
    ours = [each for each in cls.__mro__ if each.__module__.partition(".")[0] in ("embedreg", "tests")]
    names = {name for each in ours for name in vars(each) if not name.startswith("_")}
    found: dict[str, Any] = {
        "kind": "class",
        "bases": [each.__name__ for each in cls.__mro__[1:] if _is_known(each)],
        "signature": _signature(cls),
    }
    fields = getattr(cls, "__pydantic_fields__", {}) or {}
    if fields:  # what a field takes is what its schema says, however the annotation comes to it
        found["signature"] = _signature(cls, types=False)
        found["fields"] = {name: _field(cls, name, each) for name, each in fields.items()}
    elif dataclasses.is_dataclass(cls):
        found["fields"] = {each.name: _annotation(each.type) for each in dataclasses.fields(cls)}
    found["members"] = {name: _member(cls, name) for name in sorted(names - found.get("fields", {}).keys())}
    return found


def _is_known(base: type) -> bool:
    """Return whether users can name a base without knowing where it lives."""
    embedreg = importlib.import_module("embedreg")
    public = base.__name__ in embedreg.__all__ and getattr(embedreg, base.__name__) is base
    return public or (base is not object and base.__module__ in ("builtins", "pydantic.main"))


def _field(cls: Any, name: str, field: Any) -> str:
    try:
        schema = cls.model_json_schema()["properties"][field.alias or name]
        kind = json.dumps({key: schema[key] for key in sorted(schema.keys() - {"default", "description", "title"})})
    except (TypeError, PydanticUserError):  # of values that have no JSON
        kind = _annotation(field.annotation)
    if field.is_required():
        return f"{kind} = required"
    return f"{kind} = {'factory' if field.default_factory is not None else _default(field.default)}"


def _described(value: Any) -> Any:
    if inspect.isclass(value):
        return _class(value)
    if inspect.isroutine(value):
        return {"kind": "function", "signature": _signature(value)}
    if inspect.ismodule(value):
        return {"kind": "module"}
    return {"kind": type(value).__name__, "value": _default(value)}


def _module(name: str) -> dict[str, Any]:
    module = importlib.import_module(name)
    return {each: _described(getattr(module, each)) for each in sorted(module.__all__) if each != "__version__"}


def _read_only(cls: type) -> dict[str, Any]:
    """Describe a class whose instances users are given: what they read, not how it is made or called."""
    described = _class(cls)
    del described["signature"]
    described["members"] = {name: text.partition(" (")[0] for name, text in described["members"].items()}
    return described


def _results() -> dict[str, Any]:
    """Return the classes of what the functions of `embedreg` give back, which has no public name of its own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    import embedreg

    function = embedreg.get("hashing").create(dim=16)
    rows = pa.table({"text": [text for text, _ in NOTES]})
    pq.write_table(rows, "rows.parquet")
    job = embedreg.embed("rows.parquet", "made.parquet", function.bind("text", "vector"))
    found = embedreg.functions_in("made.parquet")
    with embedreg.vector_cache("cache.sqlite") as cache:
        embedded = embedreg.embed_column(function, rows["text"])
    failing = embedreg.Report()
    rows = pa.table({"text": ["a"], "vector": pa.array([[float("nan")] * 16], pa.list_(pa.float32(), 16))})
    with contextlib.suppress(embedreg.EmbedregError):
        embedreg.embed_table(rows, function.bind("text", "vector"), on_error="null", report=failing)
    results = {
        "check_drift": embedreg.check_drift("made.parquet")[0],
        "embed": job,
        "embed_column": embedded,
        "embed_table's report": failing,
        "functions_in": found,
        "functions_in, one": found["vector"],
        "vector_cache": cache,
    }
    described: dict[str, Any] = {name: _read_only(type(value)) for name, value in results.items()}
    described["bad rows"] = [_read_only(type(row)) for row in failing.bad]
    described["inspect"] = _shape(embedreg.inspect("made.parquet"))
    return described


def _errors() -> dict[str, str]:
    """Return the tree of errors: each with those that an `except` may name in its place."""
    errors = importlib.import_module("embedreg.errors")
    found = {name: getattr(errors, name) for name in errors.__all__}
    return {
        name: ", ".join(base.__name__ for base in cls.__mro__[1:] if base is not object)
        for name, cls in sorted(found.items())
        if inspect.isclass(cls) and issubclass(cls, BaseException)
    }


def _registry() -> dict[str, Any]:
    """Return the built-in functions with their fields, and what they say of these."""
    import embedreg

    registry = embedreg.get_registry()
    found: dict[str, Any] = {}
    for name in sorted(registry.list()):
        cls = registry.get(name)
        found[name] = {
            **_class(cls),
            "sensitive": sorted(cls.sensitive_keys()),
            "runtime": sorted(cls.runtime_keys()),
            "guarded": sorted(cls.guarded_fields()),
            "traits": {key: _default(value) for key, value in sorted(_values(cls.traits).items())},
        }
    return found


def _values(traits: Any) -> dict[str, Any]:
    return {
        each.name: sorted(value) if isinstance(value := getattr(traits, each.name), frozenset | set) else value
        for each in dataclasses.fields(traits)
    }


def _distribution() -> dict[str, Any]:
    """Return the commands and extras that are installed, and the entry-point groups that the registry asks for."""
    asked: set[str] = set()
    entry_points = importlib.metadata.entry_points

    def recording(**wanted: Any) -> Any:
        asked.update([wanted["group"]] if "group" in wanted else [])
        return entry_points(**wanted)

    importlib.metadata.entry_points = recording  # before the registry is imported
    try:
        import embedreg

        embedreg.get_registry().list()
    finally:
        importlib.metadata.entry_points = entry_points
    installed = importlib.metadata.distribution("embedreg")
    return {
        "commands": sorted(each.name for each in installed.entry_points if each.group == "console_scripts"),
        "extras": sorted(installed.metadata.get_all("Provides-Extra") or []),
        "groups": sorted(group for group in asked if group.startswith("embedreg")),
    }


# -- the command line --------------------------------------------------------------------------------------------------


def _run(*arguments: str, code: int = 0) -> str:
    from embedreg.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        got = main(arguments)
    if got != code:
        raise SystemExit(f"embedreg {' '.join(arguments)}: exit code {got}\n{err.getvalue()}")
    return out.getvalue()


def _help(*command: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every command's help, line by line, depth first."""
    lines = _run(*command, "--help").rstrip().splitlines()
    yield " ".join(["embedreg", *command]), lines
    if "Commands:" in lines:
        for line in lines[lines.index("Commands:") + 1 :]:
            if (name := re.match(r"  (\w[\w-]*) ", f"{line} ")) is None:
                break
            yield from _help(*command, name.group(1))


def _shape(value: Any) -> Any:
    """Return keys and types: of a list, that of all its items in one."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        shapes: list[Any] = []
        for item in map(_shape, value):
            shapes += [item] if item not in shapes else []
        return shapes
    if value is None or isinstance(value, bool):
        return "null" if value is None else "bool"
    return "number" if isinstance(value, int | float) else "text"


def _keys(value: Any) -> Any:
    """Return keys only, where types are the machine's."""
    return {key: _keys(item) for key, item in value.items()} if isinstance(value, dict) else "..."


def _without_prose(value: Any) -> Any:
    """Return a value as it is, but for what is for people to read."""
    if isinstance(value, dict):
        return {key: "..." if key in ("description", "doc") else _without_prose(item) for key, item in value.items()}
    return [*map(_without_prose, value)] if isinstance(value, list) else value


NOTES = [("water the tomatoes on Monday", 1), ("pay the electricity bill", 2), (None, 3)]


def _outputs() -> dict[str, Any]:
    """Return what each command prints with --json on the same few rows, reduced to keys and types."""
    with open("notes.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": n, "text": text}) + "\n" for text, n in NOTES)
    hashing = ("-f", "hashing", "--set", "dim=16")
    calls: dict[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
        "embed, a file": (("embed", "notes.jsonl", "notes.parquet", *hashing), _shape),
        "embed, a folder": (("embed", "notes.jsonl", "notes/", *hashing), _shape),
        "embed, a table": (("embed", "notes.jsonl", "db/notes.lance", *hashing), _shape),
        "embed, an estimate": (("embed", "notes.jsonl", "x.parquet", *hashing, "--estimate"), _shape),
        "search, a file": (("search", "notes.parquet", "tomatoes", "-n", "1"), _shape),
        "search, a table": (("search", "db/notes", "tomatoes", "-n", "1"), _shape),
        "search, hybrid": (("search", "db/notes", "tomatoes", "-n", "1", "--mode", "hybrid"), _shape),
        "inspect": (("inspect", "notes.parquet"), _shape),
        "inspect, checked": (("inspect", "notes.parquet", "--check"), _shape),
        "attach": (("attach", "bare.parquet", *hashing, "--source", "text", "--vector", "vector"), _shape),
        "functions": (("functions",), _without_prose),
        "functions, one": (("functions", "hashing"), _without_prose),
        "doctor": (("doctor",), _keys),
        "bench": (("bench", "notes.jsonl", *hashing, "--rows", "2", "--runs", "1"), _shape),
        "ddl databend": (("ddl", "databend", *hashing), lambda found: found),
        "ddl databend, a table": (("ddl", "databend", "--like", "notes.parquet"), _shape),
        "ddl duckdb": (("ddl", "duckdb", "notes.parquet"), _shape),
    }
    found: dict[str, Any] = {}
    for name, (arguments, reduced) in calls.items():
        if name == "attach":
            _without_declaration("notes.parquet", "bare.parquet")
        found[name] = reduced(json.loads(_run(*arguments, "--json")))
    found["serve databend"] = _shape(_served(*hashing))
    return found


def _without_declaration(src: str, dst: str) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(src).replace_schema_metadata(None), dst)


def _served(*function: str) -> Any:
    """Start a server, read what it prints, and stop it."""
    line = [sys.executable, "-m", "embedreg", "serve", "databend", *function, "--bind", "127.0.0.1:0", "--json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = ""
        for read in process.stdout:
            printed += read
            if read == "}\n":
                break
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    if not printed:
        raise SystemExit(errors)
    return json.loads(printed)


# -- the whole ---------------------------------------------------------------------------------------------------------


def made_with() -> dict[str, str]:
    """Return the versions of what words signatures and help: other ones may word the same surface otherwise."""
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        **{name: importlib.metadata.version(name) for name in ("pydantic", "typer")},
    }


def surface() -> dict[str, Any]:
    """Return the whole surface; for a new process, in which nothing of the user's is registered."""
    os.environ.update(COLUMNS=WIDTH, HF_HUB_OFFLINE="1", NO_COLOR="1", TERM="dumb")
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "EMBEDREG_"))]:
        del os.environ[name]
    found: dict[str, Any] = {"made_with": made_with(), "distribution": _distribution()}
    found.update(functions=_registry(), errors=_errors())
    found["modules"] = {name: _module(name) for name in MODULES}
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            found["results"] = _results()
            found["help"] = dict(_help())
            found["outputs"] = _outputs()
        finally:
            os.chdir(before)
    return found


def differences(old: Any, new: Any, at: str = "") -> dict[str, str]:
    """Return where two surfaces differ: {path: what was and what is}; the parts of a path are joined by ` / `."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, str] = {}
        for key in sorted(old.keys() | new.keys()):
            where = f"{at} / {key}" if at else key
            if key not in new:
                found[where] = "removed"
            elif key not in old:
                found[where] = "added"
            else:
                found.update(differences(old[key], new[key], where))
        return found
    if old == new:
        return {}
    if isinstance(old, list) and isinstance(new, list):
        if len(old) == len(new) and not all(isinstance(item, str) for item in [*old, *new]):
            return differences(dict(enumerate(old)), dict(enumerate(new)), at)
        if (before := _by_name(old)) and (after := _by_name(new)):
            return differences(before, after, at)
        lines = difflib.unified_diff([*map(_shown, old)], [*map(_shown, new)], n=0, lineterm="")
        return {at: "\n".join(["", *list(lines)[2:]])}
    return {at: f"{_shown(old)} -> {_shown(new)}"}


def _by_name(items: list[Any]) -> dict[str, Any]:
    """Return a list of objects that each have a name of their own by these names; {} for any other list."""
    named = {item["name"]: item for item in items if isinstance(item, dict) and isinstance(item.get("name"), str)}
    return named if len(named) == len(items) else {}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    current = json.loads(json.dumps(surface()))
    if len(sys.argv) > 1:
        with open(sys.argv[1], encoding="utf-8") as stored:
            for path, change in differences(json.load(stored), current).items():
                print(f"{path}: {change}")  # noqa: T201  # it is a program
    else:
        print(json.dumps(current, indent=1, ensure_ascii=False, sort_keys=True))  # noqa: T201
