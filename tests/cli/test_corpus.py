"""The docstrings of the standard library."""

import os
import subprocess
import sys

import pytest

from embedreg.cli import corpus


@pytest.fixture(scope="module")
def docs() -> list[corpus.Doc]:
    return corpus.collect()


def test_the_default_corpus_holds_2500_docstrings_of_many_modules(docs: list[corpus.Doc]) -> None:
    """The demo's 2,500 rows exist, are unique by name and spread over more than a hundred modules."""
    found = corpus.collect(2500)
    assert len(found) == 2500 < len(docs)
    assert len({doc.qualname for doc in found}) == 2500
    assert len({doc.module.partition(".")[0] for doc in found}) > 100
    assert all(doc.text.strip() and doc.qualname.startswith(doc.module) for doc in docs)


@pytest.mark.parametrize("rows", [len(corpus.DEMO_QUERIES), 100, 2500])
def test_every_size_holds_the_answers_to_the_demos_questions(rows: int) -> None:
    """However small the corpus, what the demo asks for is in it."""
    assert set(corpus.DEMO_QUERIES.values()) <= {doc.qualname for doc in corpus.collect(rows)}


def test_a_small_corpus_is_part_of_a_larger_one() -> None:
    """The ranking is fixed: more rows only add to fewer."""
    assert set(corpus.collect(300)) <= set(corpus.collect(900))


def test_two_processes_collect_the_same() -> None:
    """The corpus depends on the Python alone, not on hash seeds or on what was imported before."""
    code = "from embedreg.cli import corpus; print(repr(corpus.collect()))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


def test_the_c_level_docstrings_are_there_too(docs: list[corpus.Doc]) -> None:
    """Modules written in C have no source to parse: theirs come from the objects themselves."""
    names = {doc.qualname for doc in docs}
    assert {
        "math.sqrt",
        "str.split",
        "builtins.str.split",
        "os.getcwd",
        "collections.deque.rotate",
        "time.sleep",
    } - names == {"str.split"}


def test_tests_applications_and_private_names_are_left_out(docs: list[corpus.Doc]) -> None:
    """No test suite, no IDLE, no joke module, no private name."""
    roots = {doc.module.partition(".")[0] for doc in docs}
    assert not roots & {"test", "idlelib", "lib2to3", "antigravity", "this", "turtledemo"}
    assert not any(part.startswith("_") for doc in docs for part in doc.qualname.split("."))


def test_collecting_imports_no_module_with_side_effects() -> None:
    """The sources are parsed: no window toolkit, no browser, no network module is loaded."""
    code = (
        "import sys; from embedreg.cli import corpus; corpus.collect();"
        "print({'tkinter', 'turtle', 'antigravity', 'this', 'webbrowser', 'smtplib', 'curses'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
