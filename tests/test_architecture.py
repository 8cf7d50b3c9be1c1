"""The package is organised as in docs/architecture.md, and imports point one way."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "embedreg"
PAGE = (ROOT / "docs" / "architecture.md").read_text()

# Bottom up: an import may point to the same entry or to one above it in this list, never to one below. "" is the
# package's own `__init__`, the index of public names; the entries of runtime/ follow an order of their own.
ORDER = (
    ("_version", "errors"),
    ("support",),
    ("arrow",),
    ("security",),
    ("core",),
    ("media",),
    ("images", "audio"),
    ("declaration",),
    ("registry",),
    ("runtime.hardware", "runtime.progress", "runtime.cache"),
    ("runtime.models",),
    ("runtime.vectors", "runtime.serving"),
    ("runtime.text",),
    ("runtime.image", "runtime.remote"),
    ("runtime.local",),
    ("functions",),
    ("embedding",),
    ("inspection",),
    ("testing",),
    ("datasets",),
    ("jobs",),
    ("columns",),
    ("chunks",),
    ("engines",),
    ("",),
    ("cli",),
    ("__main__",),
)
# Imports by name, which no import statement shows: (the file, the module) -> why it is one.
BY_NAME = {
    ("chunks/settings.py", "embedreg.chunks"): "the key of the schema metadata",
    ("core/lancedb_hooks.py", "embedreg.engines.lancedb.adapter"): "lancedb loads the adapter, not the core",
    ("core/held.py", "embedreg.declaration.drift"): "the check runs a function; the core only knows that one is due",
    ("inspection/engines.py", "embedreg.engines"): "the name of the entry-point group",
    ("inspection/engines.py", "embedreg.engines.databend.definition"): "the table of engines, imported when it is read",
    ("inspection/engines.py", "embedreg.engines.duckdb.definition"): "the table of engines, imported when it is read",
    ("inspection/engines.py", "embedreg.engines.lancedb.definition"): "the table of engines, imported when it is read",
    ("inspection/engines.py", "embedreg.engines.ray.definition"): "the table of engines, imported when it is read",
    ("registry.py", "embedreg.functions.hashing"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.hashing.sparse"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.sentence_transformers.gte_text"): "the table of built-ins, imported on get()",
    (
        "registry.py",
        "embedreg.functions.sentence_transformers.huggingface",
    ): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.sentence_transformers.instructor"): "the table of built-ins, imported on get()",
    (
        "registry.py",
        "embedreg.functions.sentence_transformers.late_interaction",
    ): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.sentence_transformers.splade"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.colpali"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.clap"): "the table of built-ins, imported on get()",
    (
        "registry.py",
        "embedreg.functions.sentence_transformers.multimodal",
    ): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.siglip"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.static"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.open_clip"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.bedrock_text"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.cohere"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.cohere_multimodal"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.jina_clip"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.voyageai_multimodal"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.gemini_text"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.huggingface_inference"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.jina"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.litellm"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.mistral"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.ollama"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.tei"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.vertex"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.voyageai"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.watsonx"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.openai"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions.sentence_transformers"): "the table of built-ins, imported on get()",
    ("registry.py", "embedreg.functions"): "the name of the entry-point group",
    ("runtime/text/backend.py", "embedreg.runtime.text.pipeline"): "the table of back ends, imported when one is used",
    ("runtime/text/backend.py", "embedreg.runtime.text.openvino"): "the table of back ends, imported when one is used",
    ("runtime/text/backend.py", "embedreg.runtime.text.light.pipeline"): "the table of back ends, as above",
    (
        "runtime/text/pipeline.py",
        "embedreg.runtime.text.library",
    ): "the functions for a back end's models, which import it",
    ("runtime/text/light/pipeline.py", "embedreg.runtime.text.light.model"): "the functions for a back end's models",
    ("runtime/text/light/architectures.py", "embedreg.runtime.text.light.bert"): "the table of architectures",
    ("runtime/text/light/architectures.py", "embedreg.runtime.text.light.distilbert"): "the table of architectures",
    ("runtime/text/light/architectures.py", "embedreg.runtime.text.light.modernbert"): "the table of architectures",
    ("runtime/text/light/architectures.py", "embedreg.runtime.text.light.mpnet"): "the table of architectures",
    ("runtime/text/light/architectures.py", "embedreg.runtime.text.light.rotary_bert"): "the table of architectures",
    ("runtime/text/light/architectures.py", "embedreg.runtime.text.light.t5"): "the table of architectures",
    ("core/modality.py", "embedreg.datasets.pages"): "the reader of PDF files, imported where one is read",
    ("core/modality.py", "embedreg.datasets.files"): "the reader of a folder of images, imported where one is read",
    ("core/modality.py", "embedreg.images.forms"): "other forms of an image, imported where an audit tries them",
    ("core/role.py", "embedreg.core.base"): "the contract's own methods are what any other is used instead of",
    ("core/value.py", "embedreg.core.base"): "the contract's own classes are not wrapped as users' are",
}
HEAVY = {
    "torch",
    "transformers",
    "sentence_transformers",
    "lancedb",
    "lance",
    "PIL",
    "soundfile",
    "soxr",
    "pandas",
    "polars",
    "openai",
    "duckdb",
    "ray",
}
LIBRARY_FOLDERS = {"audio", "cli", "engines", "functions", "images", "runtime"}


def module_of(file: Path) -> str:
    """Return the dotted name of a file, of a package for its `__init__`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def imports_of(file: Path) -> frozenset[str]:
    """Return every module that a file imports: at its top, inside a function, or for types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            module = node.module or ""
            for name in node.names:
                inner = f"{module}.{name.name}"
                found.add(inner if inner in FILES or module not in FILES else module)
    return frozenset(found)


def own_imports(file: Path) -> set[str]:
    """Return the modules of this package that a file imports, but for itself."""
    return {name for name in imports_of(file) & FILES.keys() if FILES[name] != file}


def rank(module: str) -> int:
    """Return the place of a module's package in the order."""
    inner = module.removeprefix("embedreg").removeprefix(".")
    for place, entries in enumerate(ORDER):
        for entry in entries:
            if inner == entry or (entry and inner.startswith(f"{entry}.")):
                return place
    assert inner == "runtime", f"{module} is in no entry of ORDER"
    return next(place for place, entries in enumerate(ORDER) if "runtime.hardware" in entries)


def name(file: Path) -> str:
    """Return a file's path below the package."""
    return str(file.relative_to(PACKAGE))


def test_imports_point_down() -> None:
    """No file imports from a package above its own, not in a function either, and not for types."""
    upward = {
        (name(file), name(FILES[target]))
        for module, file in FILES.items()
        for target in own_imports(file)
        if rank(target) > rank(module)
    }
    assert not upward, f"{upward}: the first of each pair may not import the second"


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Yield the groups of files that reach each other (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(node: str) -> Iterator[list[str]]:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                yield from visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                yield sorted(group)

    for node in graph:
        if node not in index:
            yield from visit(node)


def test_no_files_import_each_other_in_a_circle() -> None:
    """There is no circle of files, be the imports at the top, deferred, or for types."""
    graph = {name(file): {name(FILES[target]) for target in own_imports(file)} for file in FILES.values()}
    assert not list(circles(graph))


def test_the_check_finds_a_circle() -> None:
    """A circle of three is found, and so is nothing else."""
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == [["a", "b", "c"]]


def by_name(file: Path) -> set[str]:
    """Return the modules of this package that a file names in a string, but for those that an index names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            target = node.value.partition(":")[0]
            if target == module_of(file):
                continue
            if re.fullmatch(r"embedreg(\.\w+)+", target) and target in FILES:
                found.add(target)
    return found


def test_imports_by_name_are_listed() -> None:
    """A module that is named in a string, to be imported or looked for, is listed above with the reason."""
    named = {(name(file), target) for file in FILES.values() for target in by_name(file)}
    assert named == BY_NAME.keys()


def test_the_root_holds_the_index_the_errors_and_the_registry() -> None:
    """Everything else has a package."""
    assert {file.name for file in PACKAGE.glob("*.py")} == {
        "__init__.py",
        "__main__.py",
        "_version.py",
        "errors.py",
        "registry.py",
    }


def test_the_page_names_every_package() -> None:
    """Every folder of the package is in the table of docs/architecture.md, in the order above, and nothing else is."""
    table = PAGE[PAGE.index("| package |") : PAGE.index("`functions/` and `engines/` meet")]
    rows = [re.findall(r"`([\w/.]+)`", row.split("|")[1]) for row in table.strip().splitlines()[2:]]
    named = [each for row in rows for each in row]
    folders = {str(file.parent.relative_to(PACKAGE)) + "/" for file in PACKAGE.rglob("__init__.py")} - {"./"}
    files = {file.name for file in PACKAGE.glob("*.py")} | {
        str(file.relative_to(PACKAGE)) for file in (PACKAGE / "runtime").glob("[!_]*.py")
    }
    assert sorted(named) == sorted(folders | files)
    ranks = [
        rank("embedreg." + re.sub(r"(/|\.py)$", "", each).replace("/", ".").replace("__init__", "")) for each in named
    ]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=name)
def test_heavy_libraries_are_imported_where_they_are_used(file: Path) -> None:
    """torch, lancedb and the like are imported in the `LIBRARY_FOLDERS` only."""
    roots = {imported.partition(".")[0] for imported in imports_of(file)}
    assert file.relative_to(PACKAGE).parts[0] in LIBRARY_FOLDERS or not roots & HEAVY


def parts(folder: str) -> dict[str, str]:
    """Return the modules of functions/ or engines/ with the function or engine that each belongs to."""
    found = {}
    for module in FILES:
        pieces = module.split(".")
        if len(pieces) > 2 and pieces[1] == folder:
            found[module] = pieces[2]
    assert found
    return found


def test_engines_and_functions_meet_only_through_the_registry() -> None:
    """No engine imports a function or another engine, and no function imports an engine or another function."""
    owner = {module: (folder, part) for folder in ("engines", "functions") for module, part in parts(folder).items()}
    for module, mine in owner.items():
        others = {target for target in own_imports(FILES[module]) & owner.keys() if owner[target] != mine}
        assert not others, f"{module} imports {', '.join(sorted(others))}"


@pytest.mark.parametrize("file", FILES.values(), ids=name)
def test_a_long_file_gives_its_reason(file: Path) -> None:
    """A file of more than 400 lines gives the reason on its first lines."""
    lines = file.read_text().splitlines()
    assert len(lines) <= 400 or any("Over 400 lines: " in line for line in lines[:16]), f"{len(lines)} lines"
