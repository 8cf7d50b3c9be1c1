"""Where texts are cut: each chunk is a span of its parent, none is too long, and nothing but white space is lost."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedreg.chunks.spans import LEVELS, Measure, cut, sections
from embedreg.chunks.splitters import register_splitter, splitter_of
from embedreg.errors import ConfigError, InputError

# Three ways to count: by words, by characters, and one in which a part costs more by itself than inside a text.
COUNTS: dict[str, Callable[[str], int]] = {
    "words and two special tokens": lambda text: len(text.split()) + 2,
    "characters": len,
    "bytes and joints": lambda text: len(text.encode()) + len(re.findall(r"[a-z] [a-z]", text)),
}
alphabet = st.sampled_from([*"abc.!? \n#`", "\n\n", "\n# ", "```\n", "。", "你", "好", "é", "word ", "Sentence one. "])
texts = st.lists(alphabet, max_size=60).map("".join)


@pytest.mark.parametrize("name", ["sentences", "tokens", "markdown"])
@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS.keys())
@given(text=texts, size=st.integers(5, 20), overlap=st.integers(0, 4))
def test_chunks_are_spans_of_their_parent(
    name: str, count: Callable[[str], int], text: str, size: int, overlap: int
) -> None:
    """They follow each other, are not blank, fit, and cover every character that is not white space."""
    measure = Measure(count, True)
    spans = splitter_of(name).spans(text, measure, size, min(overlap, size - measure.own - 1))
    covered = bytearray(len(text))
    for start, stop in spans:
        assert 0 <= start < stop <= len(text)
        assert text[start:stop] == text[start:stop].strip() != ""
        assert count(text[start:stop]) <= size or stop - start == 1
        covered[start:stop] = b"\1" * (stop - start)
    assert spans == sorted(set(spans))
    assert all(one[1] < other[1] for one, other in itertools.pairwise(spans))
    assert all(covered[place] or char.isspace() for place, char in enumerate(text))
    if text.strip() and count(text.strip()) <= size and name != "markdown":
        assert len(spans) == 1


@given(texts)
def test_parts_of_every_level_are_the_text(text: str) -> None:
    """Whatever the level, its parts follow each other without a gap."""
    for level in {level for levels in LEVELS.values() for level in levels}:
        if text:
            assert "".join(text[start:stop] for start, stop in level(text, (0, len(text)))) == text
    assert "".join(text[start:stop] for start, stop in sections(text)) == text


def test_neighbours_share_at_most_the_overlap() -> None:
    """Whole sentences are shared, as far as they fit into the overlap."""
    text = "One a b. Two c d. Three e f. Four g h. Five i j."
    measure = Measure(COUNTS["words and two special tokens"], True)
    spans = splitter_of("sentences").spans(text, measure, 8, 3)
    assert [text[start:stop] for start, stop in spans] == [
        "One a b. Two c d.",
        "Two c d. Three e f.",
        "Three e f. Four g h.",
        "Four g h. Five i j.",
    ]
    assert len(list(cut(text, (0, len(text)), measure, 8, 0, LEVELS["sentences"]))) == 3


def test_sections_begin_at_headings_outside_of_code() -> None:
    """ATX headings begin sections; in fenced code, and without a space behind them, they are none."""
    text = "before\n# One\na\n```sh\n# not one\n```\n## Two\n#hashtag\n~~~\n# no\n"
    found = [text[start:stop] for start, stop in sections(text)]
    assert [part.partition("\n")[0] for part in found] == ["before", "# One", "## Two"]


def test_a_library_cuts_too() -> None:
    """`semchunk` gives its own spans, which are held to the same limits."""
    pytest.importorskip("semchunk", reason="the extra `chunks` is not installed")
    text = "Hello there. This is a text.\n\nAnother one here, long enough. " * 5
    splitter = splitter_of("semchunk")
    measure = Measure(COUNTS["words and two special tokens"], True)
    spans = splitter.spans(text, measure, 8, 2)
    assert splitter.version[0].isdigit()
    assert max(measure.count(text[start:stop]) for start, stop in spans) <= 8
    apart = [text[start:stop] for start, stop in splitter.spans(text, measure, 8, 0)]
    assert " ".join(apart).split() == text.split()


def by_lines(text: str) -> list[tuple[int, int]]:
    """Cut at line ends."""
    ends = [found.end() for found in re.finditer(r"\n|$", text)]
    return [(start, stop) for start, stop in zip([0, *ends], ends, strict=False) if start < stop]


def test_a_callable_of_ones_own_is_held_to_the_limits() -> None:
    """By object, by registered name, or as "module:function"; what is too long is cut, what is no span refused."""
    measure = Measure(COUNTS["words and two special tokens"], True)
    text = "a b\n\nc d e f g h\n"
    expected = ["a b", "c d e", "f g h"]
    register_splitter("by-lines")(by_lines)
    for given_one in (by_lines, "by-lines", f"{__name__}:by_lines"):
        spans = splitter_of(given_one).spans(text, measure, 5, 0)
        assert [text[start:stop] for start, stop in spans] == expected
    assert splitter_of(by_lines).name == "by-lines"
    for wrong in ([(0, 99)], [(3, 2)], [(2, 4), (0, 1)], ["ab"], [None]):
        with pytest.raises(InputError, match="span"):
            splitter_of(lambda text, wrong=wrong: wrong).spans(text, measure, 5, 0)
    for unknown in ("sentence", "os:nothing", "no_such_module:x", "os:sep", 5):
        with pytest.raises(ConfigError):
            splitter_of(unknown)  # type: ignore[arg-type]  # that is what is tried
    for taken in ("sentences", "", "a:b"):
        with pytest.raises(ConfigError):
            register_splitter(taken)
