"""The docstrings of the standard library."""

import os
import subprocess
import sys

import pytest

from embedreg.cli import corpus


@pytest.fixture(scope="module")
def docs() -> list[corpus.Doc]:
    """Every docstring that there is."""
    return corpus.collect()


@pytest.fixture(scope="module")
def default() -> list[corpus.Doc]:
    """The demo's default corpus."""
    return corpus.collect(2500)


def test_the_default_corpus_holds_2500_docstrings_of_many_modules(
    default: list[corpus.Doc], docs: list[corpus.Doc]
) -> None:
    """The demo's 2,500 rows exist, are unique by name and spread over more than a hundred modules."""
    assert len(default) == 2500 < len(docs)
    assert len({doc.qualname for doc in docs}) == len(docs)
    assert len({doc.module.partition(".")[0] for doc in default}) > 100
    assert all(doc.text.strip() and doc.qualname.startswith(doc.module) for doc in docs)


def test_every_size_holds_the_answers_to_the_demos_questions(default: list[corpus.Doc], docs: list[corpus.Doc]) -> None:
    """The ranking is fixed: the expected answers come first, and a larger corpus contains the smaller ones."""
    smallest = corpus.collect(len(corpus.DEMO_QUERIES))
    assert {doc.qualname for doc in smallest} == set(corpus.DEMO_QUERIES.values())
    assert set(smallest) <= set(default) <= set(docs)


def test_a_text_is_a_summary_on_one_line(docs: list[corpus.Doc]) -> None:
    """The first paragraph, and the second where the first only repeats the signature."""
    texts = {doc.qualname: doc.text for doc in docs}
    assert texts["threading.Thread.join"] == "Wait until the thread terminates."
    assert not any("\n" in text for text in texts.values())
    assert corpus._summary("sleep(seconds)\n\nDelay\nexecution.\n\nMore.") == "sleep(seconds) Delay execution."


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
