"""`embedreg functions`: list the functions for --function, or describe one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from embedreg import get_registry
from embedreg.cli import terminal
from embedreg.cli.session import AsJson, command
from embedreg.errors import EmbedregError

__all__ = ["describe", "functions"]

_TITLES = {
    "local text": "Texts, on this machine",
    "hosted text": "Texts, by a service",
    "images": "Images",
    "recordings": "Recordings",
    "other": "Other",
}
_PLACES = {"images": "photos/ photos.parquet", "recordings": "sounds/ sounds.parquet"}  # of the example


@command
def functions(
    name: Annotated[
        str | None, typer.Argument(help="Show one function with its fields, defaults and meanings.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the embedding functions: built in, from plug-ins, and imported with --import."""
    registry = get_registry()
    if name is not None:
        described = registry.describe(name)
        terminal.print_json(described) if as_json else _print_one(described)
        return
    described_all = [describe(each) for each in registry.list()]
    if as_json:
        terminal.print_json(described_all)
        return
    for group in dict.fromkeys([*_TITLES, *(d["group"] for d in described_all)]):
        rows = [
            [d["name"], d["modality"], _installed(d), d["origin"], d["doc"]]
            for d in described_all
            if d["group"] == group
        ]
        if rows:
            columns = ["name", "modality", "installed", "origin", "what it is"]
            terminal.print_table(columns, rows, title=_TITLES.get(group, group), cut=False)
            terminal.say()
    terminal.note("one function's fields: embedreg functions NAME")


def describe(name: str) -> dict[str, Any]:
    """Return the description of a function; one that cannot be loaded is described by its error."""
    try:
        return get_registry().describe(name)
    except EmbedregError as exc:
        unknown = dict.fromkeys(("class", "remote", "extra", "config"))
        known = {"name": name, "doc": exc.message, "modality": "?", "origin": "?", "group": "other"}
        return {**known, **unknown, "installed": False, "missing": [], "problem": str(exc)}


def _installed(described: dict[str, Any]) -> str:
    if described["installed"]:
        return "yes"
    return f"no: pip install 'embedreg[{described['extra']}]'" if described["extra"] else "no"


def _print_one(described: dict[str, Any]) -> None:
    _say(": ".join(filter(None, (described["name"], described["doc"]))), style="bold")
    where = "a remote service" if described["remote"] else "this machine"
    extra = f", extra: embedreg[{described['extra']}]" if described["extra"] and described["installed"] else ""
    _say(f"{described['modality']}, {described['origin']}, runs on {where}, installed: {_installed(described)}{extra}")
    doc = inspect.cleandoc(get_registry().get(described["name"]).__doc__ or "")
    if more := doc.partition("\n\n")[2]:
        terminal.say(terminal.reflowed(more), lines=True)
    required, fields = described["config"].get("required", []), described["config"].get("properties", {})
    rows = [
        [name, _kind(schema), "(required)" if name in required else terminal.as_json(schema.get("default"))]
        for name, schema in fields.items()
        if described["remote"] or name != "max_retries"  # LanceDB's field, which has no effect on local models
    ]
    if not rows:
        terminal.say("It has no settings.")
        return
    terminal.print_table(["--set", "type", "default"], rows, cut=False)
    for line in _facts(described):
        _say(line)
    models = described.get("models") or {}
    if models:
        listed = [
            [_model(name, m), m["ndims"], _numbers(m["widths"]), m["max_tokens"] or ""] for name, m in models.items()
        ]
        terminal.print_table(["model", "dimensions", "also", "tokens of a text"], listed, cut=False)
    terminal.say(f"example: {_example(described)}")


def _say(text: str, style: str | None = None) -> None:
    """Print a sentence, folded between words where the terminal is narrow."""
    terminal.say(terminal.folded(text), style=style, lines=True)


def _facts(described: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each fact about a function beside its fields."""
    if described["lancedb"]:
        yield "LanceDB has a function of this name, with these meanings; fields of our own default to what it does."
    if described["roles"]:
        yield f"queries and sources differ by: {', '.join(described['roles'])}"
    if described.get("limits"):
        yield f"a request has at most {described['limits']['inputs']} inputs; a lower limit of the service applies"
    if described.get("keys"):
        yield f"without api_key, the key is read from {' or '.join(described['keys'])}"
    if described.get("documentation"):
        yield f"the service's own documentation: {described['documentation']}"


def _model(name: str, facts: dict[str, Any]) -> str:
    retired = facts.get("retired")
    return name if retired is None else f"{name} (the default, switched off{f' {retired}' if retired else ''})"


def _numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _example(described: dict[str, Any]) -> str:
    """Return a command that can be pasted, with a value for each field that needs one."""
    places = _PLACES.get(described["group"], "notes.jsonl notes.parquet")
    line = f"embedreg embed {places} -f {described['name']}"
    models = {name: facts for name, facts in (described.get("models") or {}).items() if "retired" not in facts}
    config = described["config"]
    for name, schema in config.get("properties", {}).items():
        retired = name == "name" and models and schema.get("default") not in models
        if retired or name in config.get("required", []):
            line += f" --set {name}={next(iter(models), '...') if name == 'name' else '...'}"
    if described.get("keys") and "api_key" in described["config"]["properties"]:
        line += f" --set 'api_key=$var:key' --env key={described['keys'][0]}"
    return line


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(terminal.as_json(value) for value in schema["enum"])
    return str(schema.get("type") or schema.get("$ref", "any").rpartition("/")[2])
