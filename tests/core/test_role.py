"""The role in the contract: which method embeds a batch, what subclasses override, and what users' helpers are left."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import embedreg
from embedreg import EmbeddingFunction, RowError, TextEmbeddingFunction, Traits
from embedreg.core.role import compute, differ, in_batches, role_of
from embedreg.embedding.column import embed_column, embed_query
from embedreg.errors import ConfigError, EmbedregError, VectorError

CODES = {"source": 0.0, "query": 1.0}


@pytest.fixture(autouse=True)
def log() -> None:
    """Forget what the functions were called with."""
    LOG.clear()


LOG: list[Any] = []


def vectors(texts: Any, mark: float) -> np.ndarray:
    """Return (n, 3): each text's length, a mark, and 1."""
    return np.array([[len(text), mark, 1] for text in texts], np.float32).reshape(-1, 3)


def marks(made: Any) -> list[float]:
    """Return the mark of each vector."""
    return [float(row[1]) for row in made]


class Plain(TextEmbeddingFunction):
    """As LanceDB writes them: one method, queries as sources."""

    def ndims(self) -> int:
        return 3

    def generate_embeddings(self, texts: Any) -> Any:
        LOG.append(("generate", list(texts)))
        return vectors(texts, 0)


class OwnQuery(Plain):
    """With a query method of its own, and none for batches."""

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
        LOG.append(("query", query))
        return [vectors([query], 7)[0]]


class Batches(TextEmbeddingFunction):
    """With the method for batches alone."""

    def ndims(self) -> int:
        return 3

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        LOG.append((role, inputs))
        return vectors(inputs, CODES[role])


class BatchesOfGenerate(Plain):
    """With a method for batches that calls `generate_embeddings` with a prompt for each role."""

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        return self.generate_embeddings([{"source": "s:", "query": "query:"}[role] + text for text in inputs])


def test_a_class_with_one_method_embeds_queries_as_sources_in_one_call() -> None:
    """LanceDB's simplest class: 1,000 queries are one window, hence one call."""
    queries = [f"query {number}" for number in range(1000)]
    assert marks(embed_column(Plain(), queries, "query").matrix) == [0] * 1000
    assert [(name, len(texts)) for name, texts in LOG] == [("generate", 1000)]
    assert not differ(Plain())


def test_a_query_method_is_called_one_by_one() -> None:
    """It may not accept several; its vectors are copied, since it may reuse its buffer."""
    made = embed_column(OwnQuery(), ["a", "bb"], "query").matrix
    assert made.tolist() == [[1, 7, 1], [2, 7, 1]]
    assert LOG == [("query", "a"), ("query", "bb")]
    assert marks(OwnQuery().compute_embeddings(["a"], "query")) == [7]
    assert marks(OwnQuery().compute_embeddings(["a"])) == [0]
    assert not in_batches(OwnQuery(), "query")


def test_a_batch_method_is_enough_for_a_class() -> None:
    """The three of LanceDB's names work too, each in its role; 1,000 queries are one call."""
    fn = Batches.create()  # type: ignore[abstract]
    assert marks(fn.compute_source_embeddings(["a", "b"])) == [0, 0]
    assert marks(fn.compute_source_embeddings("a")) == [0]
    assert marks(fn.compute_query_embeddings("a")) == [1]
    assert marks(fn.compute_query_embeddings_with_retry("a")) == [1]
    assert marks(fn.generate_embeddings(["a"])) == [0]
    LOG.clear()
    assert marks(embed_column(fn, [f"query {number}" for number in range(1000)], "query").matrix) == [1] * 1000
    assert embed_query(fn, "a").tolist() == [1, 1, 1]
    assert [(role, len(texts)) for role, texts in LOG] == [("query", 1000), ("query", 1)]


def test_it_is_for_any_modality() -> None:
    """A class that is not of texts alone needs no other method either."""

    class Everything(EmbeddingFunction):
        traits = Traits(modality="image+text")

        def ndims(self) -> int:
            return 3

        def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
            return vectors(["x"] * len(inputs), CODES[role])

    fn = Everything.create()  # type: ignore[abstract]
    assert marks(fn.compute_query_embeddings(b"png")) == [1]
    assert marks(fn.compute_source_embeddings([b"png", "name"])) == [0, 0]
    assert marks(embed_column(fn, [b"png", "a text"], "query").matrix) == [1, 1]


def test_a_class_without_embedding_methods_stays_abstract() -> None:
    """It cannot be instantiated, and the error names the missing method."""

    class Nothing(TextEmbeddingFunction):
        def ndims(self) -> int:
            return 3

        def compute_embeddings(self, inputs: Any) -> Any:  # type: ignore[override]  # a helper: it takes no role
            return inputs

    class Less(EmbeddingFunction):
        def ndims(self) -> int:
            return 3

        def compute_source_embeddings(self, *args: Any, **kwargs: Any) -> Any:
            return []

    with pytest.raises(TypeError, match="generate_embeddings"):
        Nothing()  # type: ignore[abstract]
    with pytest.raises(TypeError, match="compute_query_embeddings"):
        Less()  # type: ignore[abstract]


# -- the most derived definition ---------------------------------------------------------------------------------------


def everywhere(fn: EmbeddingFunction, role: Any, text: str = "a") -> list[float]:
    """Return the mark of one text by every way that leads to it, once each."""
    made = [
        fn.compute_embeddings([text], role)[0],
        fn.compute_embeddings_with_retry([text], role)[0],
        compute(fn, pa.array([text]), role)[0],
        embed_column(fn, [text], role).matrix[0],
    ]
    if role == "query":
        made += [fn.compute_query_embeddings(text)[0], embed_query(fn, text)]
    else:
        made += [fn.compute_source_embeddings([text])[0]]
    assert len({tuple(map(float, row)) for row in made}) == 1, made
    return list(map(float, made[0]))


@pytest.mark.parametrize("parent", [Plain, OwnQuery, Batches, BatchesOfGenerate])
def test_an_overridden_query_method_embeds_queries(parent: Any) -> None:
    """Whatever the parent does, once for each query; its own `super()` is the parent's way in that role."""

    class Prefixed(parent):  # type: ignore[misc]
        def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
            return super().compute_query_embeddings("12345" + query, *args, **kwargs)

    source, query = everywhere(parent.create(), "source"), everywhere(parent.create(), "query")
    assert everywhere(Prefixed.create(), "source") == source
    assert everywhere(Prefixed.create(), "query") == [query[0] + 5, *query[1:]]


@pytest.mark.parametrize("parent", [Plain, OwnQuery, Batches, BatchesOfGenerate])
def test_a_query_method_may_call_the_method_for_batches(parent: Any) -> None:
    """Its parent's, or its own class's by name: neither comes back to it."""

    class Up(parent):  # type: ignore[misc]
        def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
            return super().compute_embeddings(["12345" + query], "query")

    class Own(parent):  # type: ignore[misc]
        def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
            return self.compute_embeddings(["12345" + query], "query")

    for cls in (Up, Own):
        assert everywhere(cls.create(), "query")[0] >= 6


def test_a_query_method_may_embed_documents_of_its_own() -> None:
    """A query method that embeds hypothetical documents embeds them as sources."""

    class Hypothetical(Batches):
        def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
            return [np.mean(self.compute_embeddings([f"{query}!", f"{query}!!!"], "source"), axis=0)]

    class Older(Batches):
        def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
            return [np.mean(self.compute_source_embeddings([f"{query}!", f"{query}!!!"]), axis=0)]

    for cls in (Hypothetical, Older):
        assert everywhere(cls.create(), "query") == [3, 0, 1]


@pytest.mark.parametrize("parent", [Plain, OwnQuery, Batches, BatchesOfGenerate])
def test_an_overridden_source_method_embeds_sources(parent: Any) -> None:
    """Once for a batch; queries go through it where the parent embeds them as sources, as in LanceDB."""

    class Prefixed(parent):  # type: ignore[misc]
        def compute_source_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_source_embeddings(["12345" + text for text in self.sanitize_input(texts)])

    source, query = everywhere(parent.create(), "source"), everywhere(parent.create(), "query")
    assert everywhere(Prefixed.create(), "source") == [source[0] + 5, *source[1:]]
    assert everywhere(Prefixed.create(), "query")[0] == query[0] + (5 if parent is Plain else 0)


@pytest.mark.parametrize("parent", [Plain, OwnQuery, Batches, BatchesOfGenerate])
def test_an_overridden_generate_embeddings_sees_every_text(parent: Any) -> None:
    """In either role but for a query method of the parent's own, and its `super()` embeds in the same role."""

    class Louder(parent):  # type: ignore[misc]
        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return super().generate_embeddings([text + "!!!" for text in texts])

    for role in ("source", "query"):
        before = parent.create().compute_embeddings(["a"], role)[0].tolist()
        added = 0 if parent is OwnQuery and role == "query" else 3
        got = Louder.create().compute_embeddings(["a"], role)[0].tolist()
        assert got == [before[0] + added, *before[1:]]
        assert embed_column(Louder.create(), ["a"], role).matrix[0].tolist() == got  # type: ignore[arg-type]


def test_a_subclass_may_override_the_method_for_batches() -> None:
    """It is the most derived one again, whatever its parents override, and may call theirs."""

    class Middle(Batches):
        def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
            return super().compute_query_embeddings(query + "12345")

    class Last(Middle):
        def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
            return super().compute_embeddings(inputs, role) + np.float32(10)

    assert marks(Last.create().compute_embeddings(["a", "b"], "query")) == [11, 11]  # type: ignore[abstract]
    assert marks(embed_column(Last.create(), ["a", "b"], "query").matrix) == [11, 11]  # type: ignore[abstract]


def test_a_mixin_counts_by_its_place_among_the_bases() -> None:
    """Before the class with the method for batches it is more derived, after it it is not."""

    class Marked:
        def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
            return vectors([query], 9)

    class First(Marked, Batches):
        pass

    class After(Batches, Marked):
        pass

    assert marks(embed_column(First.create(), ["a", "b"], "query").matrix) == [9, 9]  # type: ignore[abstract]
    assert marks(embed_column(After.create(), ["a", "b"], "query").matrix) == [1, 1]  # type: ignore[abstract]


METHODS: dict[str, Callable[[], Any]] = {
    "compute_query_embeddings": lambda: lambda self, query, *args: vectors([query], 21),
    "compute_source_embeddings": lambda: lambda self, texts, *args: vectors(self.sanitize_input(texts), 22),
    "generate_embeddings": lambda: lambda self, texts, *args: vectors(texts, 23),
    "compute_embeddings": lambda: lambda self, inputs, role="source": vectors(inputs, 24 + CODES[role]),
}


@pytest.mark.parametrize("names", [names for n in range(3) for names in itertools.permutations(METHODS, n)])
@pytest.mark.parametrize("parent", [Plain, Batches])
def test_batches_and_single_queries_agree_for_every_override(parent: Any, names: tuple[str, ...]) -> None:
    """Classes that each override one method, in every order of two: a query has one vector, and a source has one."""
    cls = parent
    for number, name in enumerate(names):
        cls = type(f"Level{number}", (cls,), {name: METHODS[name](), "__module__": __name__})
    fn = cls.create()
    query = fn.compute_query_embeddings("a")[0]
    if names == ("compute_query_embeddings", "compute_embeddings"):  # a direct call is of the class below
        query = fn.compute_embeddings(["a"], "query")[0]
    for made in (
        fn.compute_embeddings(["a", "b"], "query")[0],
        fn.compute_embeddings_with_retry(["a", "b"], "query")[0],
        embed_column(fn, ["a", "b"], "query").matrix[0],
        embed_query(fn, "a"),
    ):
        assert list(made) == list(query)
    source = fn.compute_embeddings(["a", "b"], "source")[0]
    for made in (
        fn.compute_embeddings_with_retry(["a", "b"], "source")[0],
        embed_column(fn, ["a", "b"]).matrix[0],
    ):
        assert list(made) == list(source)


# -- users' helpers of that name ---------------------------------------------------------------------------------------


HELPERS: dict[str, Callable[..., Any]] = {
    "of texts": lambda self, texts: 1 / 0,
    "with another parameter": lambda self, texts, batch_size=32: 1 / 0,
    "with options": lambda self, texts, **options: 1 / 0,
    "of anything": lambda self, *args, **kwargs: 1 / 0,
    "with more that is required": lambda self, texts, role, model: 1 / 0,
    "of nothing": lambda self: 1 / 0,
}


@pytest.mark.parametrize("kind", HELPERS)
@pytest.mark.parametrize("parent", [Plain, OwnQuery, Batches])
@pytest.mark.parametrize("name", ["compute_embeddings", "compute_embeddings_with_retry"])
def test_a_helper_of_that_name_is_never_called(parent: Any, kind: str, name: str) -> None:
    """What takes other parameters than inputs and role is the user's own; every role works as without it."""
    cls = type("Helped", (parent,), {name: HELPERS[kind], "__module__": __name__})
    for role in ("source", "query"):
        made = [embed_column(each.create(), ["a", "b"], role).matrix.tolist() for each in (cls, parent)]  # type: ignore[arg-type]
        assert made[0] == made[1]
    assert embed_query(cls.create(), "a").tolist() == embed_query(parent.create(), "a").tolist()


def test_a_helper_keeps_what_it_returns() -> None:
    """A generator stays one, and a static method stays static."""

    class Helped(Plain):
        def compute_embeddings(self, texts: Any, size: int = 2) -> Any:  # type: ignore[override]
            yield from texts

    class Static(Plain):
        @staticmethod
        def compute_embeddings(texts: Any, role: str = "x") -> Any:  # type: ignore[override]
            return texts, role

    assert next(Helped().compute_embeddings(["a"])) == "a"
    assert Static().compute_embeddings(["a"]) == (["a"], "x")
    assert marks(embed_column(Static(), ["a"], "query").matrix) == [0]


def test_a_role_by_name_only_is_a_role() -> None:
    """`(inputs, *, role)` is the contract's too."""

    class Named(Batches):
        def compute_embeddings(self, inputs: Any, *, role: Any) -> Any:  # type: ignore[override]
            return vectors(inputs, 30 + CODES[role])

    assert marks(embed_column(Named.create(), ["a"], "query").matrix) == [31]  # type: ignore[abstract]
    assert marks(Named.create().compute_query_embeddings("a")) == [31]  # type: ignore[abstract]


def test_changes_of_a_class_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which method is called follows what the class holds now."""

    class Later(Plain):
        pass

    assert marks(embed_column(Later(), ["a"], "query").matrix) == [0]
    monkeypatch.setattr(Later, "compute_query_embeddings", lambda self, query: vectors([query], 5))
    assert marks(embed_column(Later(), ["a"], "query").matrix) == [5]
    monkeypatch.setattr(Later, "compute_embeddings", lambda self, inputs, role: vectors(self.sanitize_input(inputs), 6))
    assert marks(embed_column(Later(), ["a"], "query").matrix) == [6]


# -- the same rules in either role -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parent", [Plain, OwnQuery, Batches])
def test_an_unknown_role_is_refused(parent: Any) -> None:
    """By name, wherever it is given."""
    for use in (
        lambda: embed_column(parent.create(), ["a"], "passage"),  # type: ignore[arg-type]
        lambda: parent.create().compute_embeddings(["a"], "passage"),
        lambda: parent.create().compute_embeddings_with_retry(["a"], "passage"),
    ):
        with pytest.raises(ConfigError, match="unknown role 'passage'"):
            use()


ROWS: dict[str, Any] = {"none": None, "error": RowError("refused"), "nan": [float("nan"), 0, 1], "ragged": [1.0]}


class Rows(TextEmbeddingFunction):
    """Gives what `ROWS` has for a text of that name."""

    def ndims(self) -> int:
        return 3

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        return [ROWS.get(text, [1.0, CODES[role], 1.0]) for text in inputs]


class RowsOneByOne(Rows):
    """The same, queries one by one."""

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
        return super().compute_embeddings([query], "query")


@pytest.mark.parametrize("kind", [kind for kind in ROWS if kind != "ragged"])
@pytest.mark.parametrize("cls", [Rows, RowsOneByOne])
def test_a_bad_row_fails_alone_in_either_role(cls: Any, kind: str) -> None:
    """None, RowError and NaN cost their own row, with the same reason."""
    found = [embed_column(cls.create(), ["a", kind, "b"], role) for role in ("source", "query")]  # type: ignore[arg-type]
    for made in found:
        assert made.valid.tolist() == [True, False, True]
    assert found[0].reasons == found[1].reasons


def test_a_ragged_vector_fails_alone_where_queries_are_a_batch() -> None:
    """Beside right ones it is its own row's fault, as among sources; of one alone the call failed, as always."""
    for role in ("source", "query"):
        made = embed_column(Rows.create(), ["a", "ragged"], role)  # type: ignore[arg-type, abstract]
        assert made.valid.tolist() == [True, False]
    with pytest.raises(VectorError):
        embed_query(Rows.create(), "ragged")  # type: ignore[abstract]
    with pytest.raises(VectorError):
        embed_column(RowsOneByOne.create(), ["ragged"], "query")  # type: ignore[abstract]


def test_zeros_follow_one_policy() -> None:
    """A vector of zeros is null under cosine, kept on demand, an error on demand, in either role."""

    class Zeros(Batches):
        def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
            return np.zeros((len(inputs), 3), np.float32)

    for role in ("source", "query"):
        made = {
            zeros: embed_column(Zeros.create(), ["a"], role, zero_vectors=zeros)  # type: ignore[arg-type, abstract]
            for zeros in ("null", "keep", "error")
        }
        assert [bool(each.valid[0]) for each in made.values()] == [False, True, False]
        assert made["error"].reasons == {0: "its vector is all zeros"}


@pytest.mark.parametrize("parent", [Plain, OwnQuery, Batches])
def test_both_retry_methods_use_the_functions_policy(parent: Any) -> None:
    """A lost connection passes within `max_retries`; with none, it is raised."""
    failures = [ConnectionError("lost"), ConnectionError("lost")]

    class Flaky(parent):  # type: ignore[misc]
        def ndims(self) -> int:
            return 3

        def _fail(self) -> None:
            if failures:
                raise failures.pop()

        if parent is Batches:

            def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
                self._fail()
                return super().compute_embeddings(inputs, role)
        elif parent is OwnQuery:

            def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
                self._fail()
                return super().compute_query_embeddings(query)
        else:

            def generate_embeddings(self, texts: Any) -> Any:
                self._fail()
                return super().generate_embeddings(texts)

    assert len(Flaky.create(max_retries=2).compute_embeddings_with_retry(["a", "b"], "query")) == 2
    failures.append(ConnectionError("lost"))
    with pytest.raises(ConnectionError):
        Flaky.create(max_retries=0).compute_embeddings_with_retry(["a"], "query")
    failures.append(ConnectionError("lost"))
    with pytest.raises(ConnectionError):
        Flaky.create(max_retries=2).compute_embeddings(["a"], "query")


def test_an_overridden_retry_method_is_called() -> None:
    """Of the batches, of sources or of queries: the policy is then the class's."""

    class Own(Batches):
        def compute_embeddings_with_retry(self, inputs: Any, role: Any = "source") -> Any:
            LOG.append("own")
            return super().compute_embeddings_with_retry(inputs, role)

    class Older(Batches):
        def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> Any:
            LOG.append("older")
            return self.compute_query_embeddings(*args, **kwargs)

    class Sources(Plain):
        def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> Any:
            LOG.append("sources")
            return self.compute_source_embeddings(*args, **kwargs)

    for cls, name, mark in ((Own, "own", 1), (Older, "older", 1), (Sources, "sources", 0)):
        LOG.clear()
        assert marks(embed_column(cls.create(), ["a"], "query").matrix) == [mark]  # type: ignore[attr-defined]
        assert LOG[0] == name


def test_no_secret_leaves_the_method_for_batches() -> None:
    """Neither in an error nor in the reason of a failed row."""
    embedreg.get_registry().set_var("role_key", "sk-role-0123456789")

    class Keyed(Batches):
        api_key: str | None = None

        def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
            if role == "source":
                raise RuntimeError(f"refused {self.api_key}")
            return [RowError(f"refused {self.api_key}")] * len(inputs)

    fn = Keyed.create(api_key="$var:role_key")  # type: ignore[abstract]
    for name in ("compute_embeddings", "compute_embeddings_with_retry"):
        with pytest.raises(EmbedregError, match=r"refused \*\*\*"):
            getattr(fn.model_copy(update={"max_retries": 0}), name)(["a"], "source")
        assert [row.message for row in getattr(fn, name)(["a"], "query")] == ["refused ***"]


def test_nested_functions_have_separate_roles() -> None:
    """A function that calls another one determines the role of that call."""

    class Inner(Plain):
        def generate_embeddings(self, texts: Any) -> Any:
            return vectors(texts, CODES[role_of(self)])

    class Outer(Plain):
        def generate_embeddings(self, texts: Any) -> Any:
            inner = Inner().compute_source_embeddings(texts)
            return inner + vectors([""] * len(texts), 10 * CODES[role_of(self)]) * (0, 1, 0)

    assert Outer().compute_embeddings(["a"], "query").tolist() == [[1, 10, 1]]
    assert Outer().compute_embeddings(["a"], "source").tolist() == [[1, 0, 1]]
    assert marks(Inner().compute_query_embeddings("a")) == [1]
    assert marks(Inner().compute_embeddings(["a"], "query")) == [1]
    assert marks(Inner().generate_embeddings(["a"])) == [0]
