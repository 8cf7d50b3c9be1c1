"""The demo's corpus: the docstrings of Python's standard library, available on every machine.

Modules written in Python are parsed, never imported (importing some opens a browser or a window). For
those written in C there is no source to parse, so a short list of them, each free of side effects, is imported.

A row's text is the first paragraph of the docstring, the summary of PEP 257: what a thing does, in the length of a
question. (Over whole docstrings, pages of parameters included, all-MiniLM-L6-v2 does not have `threading.Thread.join`
among the first three answers to "wait for a thread to finish"; over summaries it comes first.)

The rows have a fixed ranking, and `collect(n)` returns the first n:

1. the docstrings that the demo's own queries look for, so that they are found in the smallest corpus too;
2. the `EVERYDAY` modules, whole, in the order of that table;
3. every other module in turn, one docstring each, until all are used up.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from embedreg.errors import StorageError

__all__ = ["DEMO_QUERIES", "Doc", "collect"]

# The demo's queries, and the docstrings that answer them.
DEMO_QUERIES = {
    "wait for a thread to finish": "threading.Thread.join",
    "delete a folder and everything in it": "shutil.rmtree",
    "run a command and capture its output": "subprocess.check_output",
    "keep only the largest few elements": "heapq.nlargest",
    "the middle value of some numbers": "statistics.median",
}

# The modules that most programs use: about half of the default corpus.
EVERYDAY = (
    "threading", "builtins", "os", "pathlib", "shutil", "subprocess", "json", "re", "datetime", "random", "math",
    "itertools", "collections", "csv", "time", "argparse", "difflib", "string", "textwrap", "tempfile", "glob",
    "zipfile", "gzip", "hashlib", "functools", "contextlib", "copy", "queue", "sched", "statistics", "heapq", "bisect",
    "io", "base64", "secrets", "uuid", "shlex", "calendar", "fractions", "getpass", "sys", "dataclasses", "enum",
    "typing", "concurrent",
)  # fmt: skip

# Modules whose docstrings are in C: the public name, and the `__module__` values of their objects.
C_LEVEL = {
    "builtins": ("builtins",),
    "collections": ("collections", "_collections"),
    "functools": ("functools", "_functools"),
    "io": ("_io",),
    "itertools": ("itertools",),
    "math": ("math",),
    "os": ("posix", "nt"),
    "struct": ("_struct",),
    "sys": ("sys",),
    "time": ("time",),
    "zlib": ("zlib",),
}

_SIGNATURE = re.compile(r"[\w.]+\([^()]*\)( ?[-=]> ?[\w., ]+)?")

# Tests, applications, vendored or generated code, and two jokes, which are not library documentation.
SKIPPED = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "site-packages", "dist-packages"}
    | {"lib-dynload", "encodings", "antigravity", "this", "__pycache__", "__phello__"}
)


class Doc(NamedTuple):
    """One docstring: its module, its full dotted name (module included), and its summary."""

    module: str
    qualname: str
    text: str


def collect(rows: int | None = None, *, progress: Callable[[str], None] | None = None) -> list[Doc]:
    """Return the first `rows` docstrings of the ranking, sorted by name; None for all.

    Args:
        rows: how many; fewer are returned only if the library has fewer.
        progress: called with each module's name before it is read.
    Raises:
        StorageError: this Python comes without the source of its library.
    """
    by_module: dict[str, dict[str, Doc]] = {}
    for doc in itertools.chain(_parsed(progress), _imported()):
        # The first definition wins: platform fallbacks come later in the source.
        by_module.setdefault(doc.module.partition(".")[0], {}).setdefault(doc.qualname, doc)
    ranked = _ranked(by_module)
    return sorted(itertools.islice(ranked, rows), key=lambda doc: doc.qualname)


def _ranked(by_module: dict[str, dict[str, Doc]]) -> Iterator[Doc]:
    wanted = frozenset(DEMO_QUERIES.values())
    docs = {top: list(found.values()) for top, found in sorted(by_module.items())}
    for top in docs:
        yield from (doc for doc in docs[top] if doc.qualname in wanted)
    rest = {top: [doc for doc in found if doc.qualname not in wanted] for top, found in docs.items()}
    for top in EVERYDAY:
        yield from rest.pop(top, [])
    for turn in itertools.zip_longest(*rest.values()):
        yield from (doc for doc in turn if doc is not None)


def _parsed(progress: Callable[[str], None] | None) -> Iterator[Doc]:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(_sources(root))
    if not files:
        raise StorageError(
            f"this Python has no source of its standard library in {root}.",
            "use a Python from python.org, your system's packages, uv, pyenv or conda",
        )
    for path in files:
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if progress is not None:
            progress(module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old modules contain invalid escapes, which do not matter here
            try:
                tree = ast.parse(path.read_bytes())
            except SyntaxError:
                continue  # distributions add files in the syntax of other Python versions
        yield from _walk(tree, module, module)


def _sources(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in SKIPPED or path.stem in SKIPPED:
            continue
        if path.is_dir() and path.name.isidentifier() and _public(path.name):
            yield from _sources(path)
        elif path.suffix == ".py" and (path.stem == "__init__" or (path.stem.isidentifier() and _public(path.stem))):
            yield path


def _walk(node: ast.AST, module: str, qualname: str) -> Iterator[Doc]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text and text.strip():
            yield Doc(module, qualname, _summary(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return  # objects defined inside a function have no public name
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if _public(child.name):
                yield from _walk(child, module, f"{qualname}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _walk(child, module, qualname)


def _imported() -> Iterator[Doc]:
    for module, homes in C_LEVEL.items():
        names = vars(importlib.import_module(module))
        for name, value in sorted(names.items()):
            if not _public(name) or getattr(value, "__module__", None) not in homes:
                continue
            found = {f"{module}.{name}": value} if inspect.isclass(value) or inspect.isbuiltin(value) else {}
            if inspect.isclass(value):
                methods = sorted(vars(value).items())
                found |= {f"{module}.{name}.{method}": function for method, function in methods if _public(method)}
            for qualname, documented in found.items():
                text = inspect.cleandoc(documented.__doc__ or "") if callable(documented) else ""
                if text:
                    yield Doc(module, qualname, _summary(text))


def _summary(text: str) -> str:
    """Return the first paragraph on one line; if it only repeats the signature, add the second."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip())]
    return " ".join(paragraphs[: 2 if _SIGNATURE.fullmatch(paragraphs[0]) else 1])


def _public(name: str) -> bool:
    return not name.startswith("_")
