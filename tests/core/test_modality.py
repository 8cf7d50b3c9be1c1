"""What a modality is stands in one row of one table; what has no row is refused by name."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg import EmbeddingFunction, Modality, Traits, embed_column, embed_query, embed_table
from embedreg.core import modality
from embedreg.core.modality import ANY, IMAGE, MODALITIES, TEXT, source_modality, sql_modality
from embedreg.declaration import drift
from embedreg.engines import databend
from embedreg.engines import duckdb as duck
from embedreg.engines.databend import Served
from embedreg.errors import ConfigError, InputError
from tests.engines.databend_flight import Client
from tests.fakes import Lengths
from tests.sounds import SIGNAL, Loudness, Moments, in_the_table, loudness, wav

PACKAGE = Path(embedreg.__file__).parent
N = 5
RECORDINGS = [wav(seed) for seed in range(N)]
EXPECTED = np.stack([loudness(seed) for seed in range(N)])


@pytest.fixture
def added() -> Iterator[None]:
    """The rows of both modalities, in the table for the time of a test."""
    with in_the_table():
        yield


# -- without a row -----------------------------------------------------------------------------------------------------


def _lancedb(tmp_path: Path) -> None:
    function = Loudness.create()
    db = lancedb.connect(tmp_path / "db")
    schema = embedreg.embed_batches(pa.table({"a": pa.array([], pa.binary())}), function.bind("a", "vector")).schema
    db.create_table("t", schema=schema).add([{"a": RECORDINGS[0]}])


WAYS: dict[str, Callable[[Path], Any]] = {
    "embed_column": lambda _: embed_column(Loudness.create(), RECORDINGS),
    "embed_query": lambda _: embed_query(Loudness.create(), RECORDINGS[0]),
    "embed_table": lambda _: embed_table({"a": RECORDINGS}, Loudness.create().bind("a", "vector")),
    "the probe": lambda _: drift.probe_vector(Loudness.create()),
    "lancedb": _lancedb,
    "duckdb": lambda _: duck.install(duckdb.connect(), Loudness.create()),
    "databend": lambda _: databend.serve({"ai_signal": Loudness.create()}, bind="127.0.0.1:0"),
    "a job": lambda tmp_path: embedreg.embed(
        pq.write_table(pa.table({"a": RECORDINGS}), tmp_path / "a.parquet") or tmp_path / "a.parquet",
        tmp_path / "out",
        Loudness.create().bind("a", "vector"),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_unknown_modality_is_refused_by_name(way: str, tmp_path: Path) -> None:
    """Everywhere, before the function is called, with what describes it and what does without."""
    with pytest.raises(
        ConfigError, match="Loudness embeds 'signal', an unknown modality; known: text, image, audio, any"
    ) as caught:
        WAYS[way](tmp_path)
    assert caught.value.hint is not None
    assert "embedreg.add_modality(embedreg.Modality('signal', ...))" in caught.value.hint
    assert "embedreg.Traits(modality='any')" in caught.value.hint


def test_a_class_may_name_a_modality_that_is_added_later(added: None) -> None:
    """A plug-in's class and its row may come in either order."""
    assert modality.modalities(Loudness.create()) == (SIGNAL,)


# -- with one ----------------------------------------------------------------------------------------------------------


def test_a_column_of_an_added_modality(added: None, tmp_path: Path) -> None:
    """As bytes, objects and paths, in lists and Arrow; another type is refused with the row's hint."""
    function = Loudness.create()
    paths = [tmp_path / f"{seed}.signal" for seed in range(N)]
    for path, recording in zip(paths, RECORDINGS, strict=True):
        path.write_bytes(recording)
    columns = [RECORDINGS, pa.array(RECORDINGS), pa.chunked_array([RECORDINGS[:2], RECORDINGS[2:]]), [*map(str, paths)]]
    for column in columns:
        assert np.allclose(embed_column(function, column).matrix, EXPECTED)
    made = embed_column(function, [RECORDINGS[0], b"no recording", None])
    assert (made.valid.tolist(), made.reasons) == ([True, False, False], {1: "it cannot be heard: Error"})
    with pytest.raises(InputError, match="a signal function cannot embed a column of type int64") as caught:
        embed_column(function, pa.array([1, 2]))
    assert caught.value.hint == SIGNAL.hint
    assert np.allclose(embed_query(function, RECORDINGS[3]), EXPECTED[3])


def test_lists_are_single_inputs_for_such_a_modality(added: None) -> None:
    """A list of lists is a column, an array of two axes too, and one list is a query."""
    function = Moments.create()
    rows = [[1.0, 2.0], [3.0], [0.5] * 4]
    expected = [[3, 2], [3, 1], [2, 4]]
    for column in (rows, pa.array(rows), pa.array(rows, pa.large_list(pa.float32()))):
        assert embed_column(function, column).matrix.tolist() == expected
    assert embed_column(function, np.ones((2, 3))).matrix.tolist() == [[3, 3], [3, 3]]
    assert embed_query(function, [1.0, 2.0]).tolist() == [3, 2]
    with pytest.raises(InputError, match="a number-list function"):
        embed_column(function, ["a text"])
    with pytest.raises(InputError, match="a query is one text or number-list, not a set"):
        embed_query(function, {1.0})


@pytest.mark.parametrize(("function", "rows"), [(Loudness, RECORDINGS), (Moments, [[1.0], [2.0, 3.0]])])
def test_an_added_modality_has_a_probe(added: None, function: type[EmbeddingFunction], rows: list[Any]) -> None:
    """It is learnt at the first write and compared in `check_drift`."""
    table = embed_table({"a": rows}, function.create().bind("a", "vector"))
    [found] = embedreg.check_drift(table)
    assert (found.verdict, found.cosine) == ("same", pytest.approx(1))


def test_an_added_modality_in_duckdb(added: None) -> None:
    """The SQL function takes the type that the row names."""
    con = duckdb.connect()
    con.register("sounds", pa.table({"a": RECORDINGS}))
    duck.install(con, Loudness.create(), "loud")
    assert np.allclose([row for (row,) in con.sql("SELECT loud(a) FROM sounds").fetchall()], EXPECTED)
    assert np.allclose(con.execute("SELECT loud_query(?)", [RECORDINGS[1]]).fetchall()[0], EXPECTED[1])
    duck.install(con, Moments.create(), "moments")
    assert con.sql("SELECT moments([1, 2, 3]), moments_query([1.5])").fetchall() == [((6, 3), (1.5, 1))]


def test_an_added_modality_in_databend(added: None) -> None:
    """Bytes reach a function through a real server; what Databend cannot pass is refused by name."""
    with databend.serve([Served("ai_signal", Loudness.create(), input="signal")], bind="127.0.0.1:0") as server:
        assert "FUNCTION ai_signal (BINARY)" in server.ddl()
        made = Client(server.address).call("ai_signal", pa.array([*RECORDINGS, None]))
        assert np.allclose(made.to_pylist()[:N], EXPECTED)
        assert made.to_pylist()[N] is None
    with pytest.raises(ConfigError, match="Loudness embeds signal, not text") as caught:
        databend.serve({"ai_signal": Loudness.create()}, bind="127.0.0.1:0")
    assert caught.value.hint == "Served('ai_signal', function, input='signal')"
    with pytest.raises(ConfigError, match="Moments embeds 'number-list', which Databend cannot pass to a function; it"):
        databend.serve({"ai_moments": Moments.create()}, bind="127.0.0.1:0")


def test_an_added_modality_in_lancedb(added: None, tmp_path: Path) -> None:
    """A table is filled by its declaration, and searched by a recording."""
    _lancedb(tmp_path)
    table = lancedb.connect(tmp_path / "db").open_table("t")
    table.add([{"a": recording} for recording in RECORDINGS[1:]])
    found = table.search(embed_query(Loudness.create(), RECORDINGS[2])).limit(1).to_arrow()
    assert found["a"].to_pylist() == [RECORDINGS[2]]


def test_a_folder_of_an_added_modality(added: None, tmp_path: Path) -> None:
    """Files with the row's endings are rows; texts are refused, and so is a function that does not say."""
    (tmp_path / "in").mkdir()
    for seed, recording in enumerate(RECORDINGS):
        (tmp_path / "in" / f"{seed}.SIGNAL").write_bytes(recording)
    (tmp_path / "in" / "notes.txt").write_text("x")
    report = embedreg.embed(tmp_path / "in", tmp_path / "out.parquet", Loudness.create().bind("path", "vector"))
    found = pq.read_table(tmp_path / "out.parquet")
    assert (report.embedded, found["name"].to_pylist()) == (N, [f"{seed}.SIGNAL" for seed in range(N)])
    assert np.allclose(found["vector"].to_pylist(), EXPECTED)
    with pytest.raises(InputError, match="holds signals, and Lengths embeds texts"):
        embedreg.embed(tmp_path / "in", tmp_path / "no", Lengths.create().bind("path", "vector"))
    with pytest.raises(InputError, match="holds signals, and Whatever does not declare that it embeds them"):
        embedreg.embed(tmp_path / "in", tmp_path / "no", Whatever.create().bind("path", "vector"))


# -- the table ---------------------------------------------------------------------------------------------------------


class Whatever(EmbeddingFunction):
    """Declares no modality."""

    def ndims(self) -> int:
        return 1

    def compute_source_embeddings(self, rows: Any, *args: Any, **kwargs: Any) -> Any:
        return [[1.0] for _ in rows]

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return [[1.0]]


class Both(Whatever):
    """Embeds images and texts."""

    traits: ClassVar[Traits] = Traits(modality="image+text")


class Sorted(Both):
    """Says for each instance what a string is."""

    source_type: str = "text"


class Odd(Whatever):
    """Names no modality at all."""

    traits: ClassVar[Traits] = Traits(modality=5)  # type: ignore[arg-type]  # as users write it


class TextFirst(Whatever):
    """Embeds the same, and names texts first."""

    traits: ClassVar[Traits] = Traits(modality="text+image")


def test_one_function_decides_what_a_source_row_is() -> None:
    """The first that the class names, unless the instance says another; a query is a text where texts are embedded."""
    for function, source, asked in [
        (Whatever.create(), ANY, TEXT),
        (Both.create(), IMAGE, TEXT),
        (Sorted.create(), TEXT, TEXT),
        (Sorted.create(source_type="image"), IMAGE, TEXT),
        (Sorted.create(source_type="sound"), IMAGE, TEXT),
        (TextFirst.create(), TEXT, TEXT),
        (Lengths.create(), TEXT, TEXT),
    ]:
        assert source_modality(function) is source
        assert sql_modality(function, "query") is asked


def test_invalid_modality_names_are_refused() -> None:
    """A number, and an empty part."""
    for function, name in ((Odd.create(), "'5'"), (type("Half", (Both,), {"traits": Traits("text+")}).create(), "''")):
        with pytest.raises(ConfigError, match=f"embeds {name}, an unknown modality"):
            embed_column(function, ["a"])


def test_duplicate_modality_names_are_refused(added: None) -> None:
    """The same row may be added again, as a notebook does; another row of its name or of its files is refused."""
    embedreg.add_modality(SIGNAL)
    for wrong in (
        Modality("signal"),
        Modality("text"),
        Modality("a+b"),
        Modality(""),
        Modality("photo", files=embedreg.InputFiles("photos", (".png",), "a photo")),
    ):
        with pytest.raises(ConfigError):
            embedreg.add_modality(wrong)
    assert set(MODALITIES) == {"text", "image", "audio", "any", "signal", "number-list"}


def test_the_page_shows_the_table() -> None:
    """docs/writing-a-function.md has a line for each modality, with the SQL types of the engines."""
    page = (PACKAGE.parent / "docs" / "writing-a-function.md").read_text()
    for each in MODALITIES.values():
        [line] = [line for line in page.splitlines() if line.startswith(f'| `"{each.name}"` |')]
        assert all(kind in line for kind in each.sql.values())
        assert (each.probe is None) == ("none" in line.split("|")[4])


# -- nobody else compares ----------------------------------------------------------------------------------------------

NAMES = {"text", "image", "images", "audio", "recordings", "any"}
# Files that compare such words and mean something else -> what.
OTHERS = {
    "arrow/casting.py": "kinds of Arrow types",
    "arrow/common_types.py": "kinds of Arrow types",
    "arrow/values.py": "kinds of Arrow types",
    "cli/functions.py": "groups of functions",
    "cli/search.py": "--mode text",
    "runtime/text/library.py": "the modalities of the sentence-transformers library",
    "runtime/text/pipeline.py": "the modalities of the sentence-transformers library",
}


def _constants(node: ast.AST) -> set[Any]:
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def comparisons(source: str) -> list[int]:
    """Return the lines that compare the name of a modality, or hold a table of their own by such names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        words: set[Any] = set()
        if isinstance(node, ast.Compare):
            words = set().union(*map(_constants, [node.left, *node.comparators]))
        elif isinstance(node, ast.match_case):
            words = _constants(node.pattern)
        elif isinstance(node, ast.Dict):
            words = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            words = words if len(words & NAMES) > 1 else set()
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            words = _constants(node) if node.func.attr in ("startswith", "endswith", "count", "index") else set()
        if words & NAMES:
            found.append(node.lineno if isinstance(node, ast.expr) else node.pattern.lineno)
    return found


def asks_by_itself(source: str) -> list[int]:
    """Return the lines that read a class's modality as text, or an instance's `source_type`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("modality", "source_type"):
            owner = node.value
            if node.attr == "source_type" or (isinstance(owner, ast.Attribute) and owner.attr == "traits"):
                found.append(node.lineno)
        elif isinstance(node, ast.Constant) and node.value == "source_type":
            found.append(node.lineno)
    return found


def _elsewhere(check: Callable[[str], list[int]], known: set[str]) -> list[str]:
    files = {str(file.relative_to(PACKAGE)): file for file in PACKAGE.rglob("*.py")}
    found = {name: check(file.read_text()) for name, file in files.items() if name != "core/modality.py"}
    assert known <= {name for name, lines in found.items() if lines}, "listed, and not so"
    return [f"{name}:{line}" for name, lines in found.items() if name not in known for line in lines]


def test_no_other_module_compares_modalities() -> None:
    """A modality is a value: who needs to know something of it asks the table."""
    assert _elsewhere(comparisons, set(OTHERS)) == []


def test_no_other_module_decides_what_a_row_is() -> None:
    """`describe` shows the text of the class; everyone else calls `source_modality` and the like."""
    assert _elsewhere(asks_by_itself, {"registry.py"}) == []


def test_the_checks_find_what_they_look_for() -> None:
    """Every way in which modalities were compared before there was a table."""
    for line in (
        'x = function.traits.modality == "text"',
        'x = "image" in modality.split("+")',
        'x = modality not in ("text", "any")',
        'x = modality.startswith("image")',
        'SQL = {"text": "STRING", "image": "BINARY"}',
        'match modality:\n    case "text":\n        pass',
    ):
        assert comparisons(line), line
    assert comparisons('x = kind == "binary"\ny = {"text": 1}') == []
    for line in ("x = function.traits.modality", "x = self.source_type", 'x = getattr(f, "source_type", None)'):
        assert asks_by_itself(line), line
    assert asks_by_itself("x = each.modality") == []
