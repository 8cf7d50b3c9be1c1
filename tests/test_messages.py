"""What an error is for people stays that: no code looks into the words of a message, but for a few libraries'."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "embedreg"

# Libraries that tell several failures apart by their words alone: (file, function) -> what is read there.
VENDORS = {
    ("datasets/storage.py", "_open"): "pyarrow: a scheme that it does not know, among other broken addresses",
    ("engines/duckdb/columns/place.py", "_connected"): "duckdb: a file that another process has open",
    ("engines/lancedb/tables.py", "create_table"): "lancedb: the table exists",
    ("engines/ray/cluster.py", "of_ray"): "Ray: the traceback of a worker that lacks this package",
    ("images/opening.py", "_why"): "Pillow: truncated files, and kinds that it does not decode",
    ("runtime/image/clip.py", "_failure"): "torch: weights that are not plain tensors, or of another model",
}
TEXTS = {"message", "hint", "shell_hint", "reason"}  # attributes of errors, bad rows and refusals
ERRORS = ("Error", "Exception", "Refusal", "Refused", "Fault")  # ends of the names of what a parameter may be
READS = {"search", "match", "fullmatch", "findall", "finditer", "sub", "subn", "split"}
PARTS = {"startswith", "endswith", "replace", "index", "find", "rfind", "count", "removeprefix", "removesuffix"}


class Function:
    """One function: which of its names hold the text of an error."""

    def __init__(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.node = node
        self.errors = {each.name for each in ast.walk(node) if isinstance(each, ast.ExceptHandler) and each.name}
        for argument in (*node.args.args, *node.args.kwonlyargs):
            if argument.annotation is not None and ast.unparse(argument.annotation).removesuffix(" | None").endswith(
                ERRORS
            ):
                self.errors.add(argument.arg)
        self.held: set[str] = set()
        for each in ast.walk(node):
            if isinstance(each, ast.Assign):
                self._assigned(each.targets[0], each.value)

    def _assigned(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for inner, given in zip(target.elts, value.elts, strict=False):
                self._assigned(inner, given)
        elif isinstance(target, ast.Name) and self.is_text(value):
            self.held.add(target.id)

    def is_text(self, node: ast.expr) -> bool:
        """Return whether an expression is the text of an error, or a part of it."""
        match node:
            case ast.Call(func=ast.Name(id="str" | "repr"), args=[ast.Name(id=name)]):
                return name in self.errors
            case ast.Attribute(attr=name) if name in TEXTS:
                return True
            case ast.Name(id=name):
                return name in self.held
            case ast.Call(func=ast.Attribute(value=inner)) | ast.Subscript(value=inner):
                return self.is_text(inner)
        return False

    def reads(self) -> Iterator[str]:
        """Yield the expressions that look into such a text: compared, searched, or taken apart."""
        for node in ast.walk(self.node):
            match node:
                case ast.Compare(left=left, ops=ops, comparators=others):
                    identity = all(isinstance(op, ast.Is | ast.IsNot) for op in ops)
                    if not identity and any(map(self.is_text, [left, *others])):
                        yield ast.unparse(node)
                case ast.Call(func=ast.Attribute(attr=name, value=inner), args=args):
                    searched = name in READS and not self.is_text(inner) and any(map(self.is_text, args))
                    if searched or (name in PARTS and self.is_text(inner)):
                        yield ast.unparse(node)


def found_in(source: str) -> list[tuple[str, str]]:
    """Return the functions of a file that look into the text of an error, and the expressions that do."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [Function(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [(function.node.name, read) for function in functions for read in function.reads()]


def test_no_code_branches_on_the_words_of_a_message() -> None:
    """What an error needs, means or is about is an attribute or a type of it; vendors are listed, each in one place."""
    found = {
        (file.relative_to(PACKAGE).as_posix(), name): read
        for file in sorted(PACKAGE.rglob("*.py"))
        for name, read in found_in(file.read_text(encoding="utf-8"))
    }
    assert found.keys() == VENDORS.keys(), {place: read for place, read in found.items() if place not in VENDORS}


def test_what_looks_into_a_message_is_found() -> None:
    """In a handler, through a name, of a parameter, by a pattern; a message that is shown or passed on is not."""
    looks = """
def caught():
    try:
        go()
    except ValueError as exc:
        text = str(exc).strip()
        if "no such" in text:
            return PATTERN.search(exc.hint)
        return text.startswith("x")

def given(refused: MyError | None):
    return refused.message == "no"
"""
    assert [name for name, _ in found_in(looks)] == ["caught", "caught", "caught", "given"]
    shows = """
def caught():
    try:
        go()
    except ValueError as exc:
        if exc.hint is None or exc.args[0] in KNOWN:
            raise Other(f"{exc.message}: {str(exc).partition('.')[0]}", exc.hint) from exc
        print(re.sub("a", "b", name))
"""
    assert found_in(shows) == []
