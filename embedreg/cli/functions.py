"""`embedreg functions`: list the functions for --function, or describe one."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from embedreg import get_registry
from embedreg.cli import terminal
from embedreg.cli.session import AsJson, command
from embedreg.errors import EmbedregError

__all__ = ["describe", "functions"]


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
    terminal.print_table(
        ["name", "modality", "installed", "origin", "what it is"],
        [[d["name"], d["modality"], _installed(d), d["origin"], d["doc"]] for d in described_all],
    )
    terminal.note("one function's fields: embedreg functions NAME")


def describe(name: str) -> dict[str, Any]:
    """Return the description of a function; one that cannot be loaded is described by its error."""
    try:
        return get_registry().describe(name)
    except EmbedregError as exc:
        problem = {"name": name, "class": None, "doc": exc.message, "modality": "?", "remote": None, "extra": None}
        return {**problem, "installed": False, "missing": [], "origin": "?", "config": None, "problem": str(exc)}


def _installed(described: dict[str, Any]) -> str:
    if described["installed"]:
        return "yes"
    return f"no: pip install 'embedreg[{described['extra']}]'" if described["extra"] else "no"


def _print_one(described: dict[str, Any]) -> None:
    terminal.say(f"{described['name']}: {described['doc']}", style="bold")
    where = "a remote service" if described["remote"] else "this machine"
    terminal.say(f"{described['modality']}, {described['origin']}, runs on {where}, installed: {_installed(described)}")
    doc = inspect.cleandoc(get_registry().get(described["name"]).__doc__ or "")
    terminal.say(doc.partition("\n\n")[2], lines=True)
    required, fields = described["config"].get("required", []), described["config"].get("properties", {})
    rows = [
        [name, _kind(schema), "(required)" if name in required else terminal.as_json(schema.get("default"))]
        for name, schema in fields.items()
        if described["remote"] or name != "max_retries"  # LanceDB's field, which has no effect on local models
    ]
    if not rows:
        terminal.say("It has no settings.")
        return
    terminal.print_table(["--set", "type", "default"], rows)


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(terminal.as_json(value) for value in schema["enum"])
    return str(schema.get("type") or schema.get("$ref", "any").rpartition("/")[2])
