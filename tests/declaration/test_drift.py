"""Drift: the probe decides whether a function still gives the vectors that are stored."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

import embedreg
from embedreg import register
from embedreg.core import held
from embedreg.core.modality import PROBE_TEXT
from embedreg.declaration import codec, comments, drift
from embedreg.errors import CallError, DriftError
from tests.fakes import Lengths, Picky
from tests.turning import KEY, DotModel, FarModel, Model, changed, made, reserved, wider


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test the model as it was."""
    for name, value in (("angle", 0.0), ("length", 1.0), ("hash_of_weights", None), ("runs", [])):
        monkeypatch.setattr(Model, name, value)


# -- what is recorded --------------------------------------------------------------------------------------------------


def test_the_first_write_records_the_probe_and_the_models_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A declaration runs nothing; filling a column records little-endian float32 in base64, and a hash."""
    monkeypatch.setattr(Model, "hash_of_weights", "sha256:1")
    declared = codec.encode([Model().bind("text", "vector")])
    assert Model.runs == []
    assert not {"probe", "identity"} & json.loads(declared)[0]["model"]["embedreg"].keys()
    record = reserved(made())
    vector = np.frombuffer(base64.b64decode(record["probe"]), "<f4")
    assert vector.tolist() == pytest.approx(Model()._turned(len(PROBE_TEXT)))
    assert record["identity"] == "sha256:1"
    assert Model.runs.count(PROBE_TEXT) == 1


def test_a_table_keeps_the_probe_that_it_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later writes by slightly other weights do not move it."""
    table = made()
    monkeypatch.setattr(Model, "angle", 0.01)
    again = embedreg.embed_table(wider(table), Model.create().bind("text", "vector"))
    assert reserved(again) == reserved(table)
    assert embedreg.embed_table(wider(table)).schema.metadata == table.schema.metadata


def test_a_function_that_cannot_embed_the_probes_input_has_no_probe() -> None:
    """Its rows decide; a call that failed is raised as ever."""

    @register("closed")
    class Closed(Model):
        """Knows few words."""

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return np.array([{"a": [1, 0], "bb": [0, 1]}[str(text)] for text in texts], np.float32)

    @register("silent")
    class Silent(Picky):
        """Has no vector for long texts."""

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return [None if len(str(text)) > 20 else [1.0, 2.0, 3.0] for text in texts]

    @register("down")
    class Down(Model):
        """Is not there."""

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            raise CallError("no answer")

    assert "probe" not in reserved(made(Closed()))
    assert "probe" not in reserved(made(Silent()))
    with pytest.raises(CallError):
        made(Down())


# -- the probe decides -------------------------------------------------------------------------------------------------


def verdict(table: pa.Table) -> drift.Drift:
    """Return the only verdict on a table."""
    [drift] = embedreg.check_drift(table)
    return drift


def test_nothing_changed() -> None:
    """Same configuration, same vectors."""
    drift = verdict(made())
    assert (drift.column, drift.verdict, drift.changed) == ("vector", "same", ())
    assert drift.cosine == pytest.approx(1)


def test_another_fingerprint_beside_an_agreeing_probe_is_a_note() -> None:
    """It is reported as a note, and nothing is refused."""
    table = changed(made(), fingerprint="sha256:other", producer={"embedreg": "0.0.1"})
    drift = verdict(table)
    assert drift.verdict == "note"
    assert drift.changed[0] == "the configuration's fingerprint"
    assert 'embedreg "0.0.1" -> ' in drift.changed[1]
    embedreg.embed_table(wider(table))


def test_different_versions_alone_are_no_drift() -> None:
    """Other versions of everything with equal vectors are the same."""
    drift = verdict(changed(made(), producer={"embedreg": "0.0.1", "torch": "1"}))
    assert (drift.verdict, drift.changed) == ("same", ())


def test_a_disagreeing_probe_is_an_error_that_names_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In check_drift a verdict, before the first use an error; nothing is written."""
    monkeypatch.setattr(Model, "hash_of_weights", "sha256:1")
    table = changed(made(), producer={"embedreg": "0.0.1"})
    monkeypatch.setattr(Model, "hash_of_weights", "sha256:2")
    monkeypatch.setattr(Model, "angle", 0.5)
    drift = verdict(table)
    assert drift.verdict == "drift"
    assert drift.cosine == pytest.approx(np.cos(0.5), abs=1e-3)
    assert "the model's weights or revision" in drift.changed
    with pytest.raises(DriftError, match=r"cosine 0\.87.*weights or revision.*embedreg \"0\.0\.1\"") as caught:
        embedreg.embed_table(wider(table))
    assert caught.value.hint
    with pytest.raises(DriftError):
        embedreg.embed_query(embedreg.functions_in(table)["vector"].function, "q")


def test_the_same_configuration_with_other_vectors_is_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no recorded property differs, the message states this."""
    table = made()
    monkeypatch.setattr(Model, "angle", 0.5)
    assert verdict(table).changed == ("the same configuration returns other vectors",)


def test_the_readers_own_function_is_held_to_the_tables_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column is not filled up by drifted weights because the function was created here, or declared here again."""
    table = made()
    monkeypatch.setattr(Model, "angle", 0.5)
    mine = Model.create()
    with pytest.raises(DriftError):
        embedreg.embed_table(wider(table))
    with pytest.raises(DriftError):
        embedreg.embed_table(wider(table), mine.bind("text", "vector"))
    fresh = embedreg.embed_table(table.drop(["vector"]), mine.bind("text", "vector"))
    assert reserved(fresh)["probe"] != reserved(table)["probe"]
    assert verdict(fresh).verdict == "same"


def test_vector_lengths_matter_for_metrics_that_depend_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors twice as long are a note under cosine, and drift under dot."""
    by_cosine, by_dot = made(), made(DotModel())
    monkeypatch.setattr(Model, "length", 2.0)
    assert verdict(by_cosine).verdict == "note"
    assert verdict(by_cosine).changed == ("the vectors' length 1 -> 2",)
    assert verdict(by_dot).verdict == "drift"


def test_another_width_is_drift() -> None:
    """Before any cosine."""
    probe = base64.b64encode(np.ones(5, "<f4").tobytes()).decode()
    assert verdict(changed(made(), probe=probe)).changed[-1] == "2 dimensions, stored 5"


CORRUPT = ["", "!", "AAAA", "AAAAAAA", "é", "AACAfw==", 5, None, ["AACAPw=="], {"a": 1}, "A" * (2**19 + 4)]


@pytest.mark.parametrize("probe", CORRUPT, ids=[repr(value)[:12] for value in CORRUPT])
def test_an_invalid_probe_is_ignored(probe: Any) -> None:
    """Not base64, not whole floats, not finite, not text: unknown, and the table stays usable."""
    table = changed(made(), probe=probe)
    drift = verdict(table)
    assert drift.verdict == "unknown"
    assert "probe" in drift.changed[-1]
    embedreg.embed_table(wider(table))


HOSTILE = [
    {"fingerprint": ["\x1b[31m"]},
    {"ndims": "\x1b[31m" * 1000},
    {"ndims": {"a": [1] * 10_000}},
    {"producer": ["x"]},
    {"producer": {"embedreg": "\x1b[31m"}, "fingerprint": 1},
    {"identity": {"a": 1}},
    {"identity": 5},
    {"dtype": "S1000000000"},
    {"format": "1", "metric": None, "prompts": 3, "normalized": "x"},
]


@pytest.mark.parametrize("values", HOSTILE, ids=lambda values: next(iter(values)))
def test_a_hostile_record_is_shown_as_text(values: dict[str, Any]) -> None:
    """Values of the wrong type are differences, cut short and escaped, and nothing more."""
    table = changed(made(), **values)
    drift = verdict(table)
    assert drift.verdict in ("same", "note")
    assert "\x1b" not in str(drift)
    assert len(str(drift)) < 500
    assert embedreg.inspect(table)[0]["status"] == "ready"
    embedreg.embed_table(wider(table))


def test_without_a_record_the_verdict_is_unknown() -> None:
    """Another client's declaration is unknown; one without a probe is unknown, or a note where it differs."""
    entry = {"name": "model", "model": {"name": "small"}, "source_column": "text", "vector_column": "vector"}
    stock = pa.table({"text": ["a"]}, metadata={KEY: json.dumps([entry])})
    assert "another client" in verdict(stock).changed[0]
    assert verdict(changed(made(), drop=("probe",))).verdict == "unknown"
    assert verdict(changed(made(), drop=("probe",), fingerprint="x")).verdict == "note"


def test_incomparable_values_are_not_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model known by a commit of the hub there and by a hash here is not another one."""
    monkeypatch.setattr(Model, "hash_of_weights", "sha256:1")
    table = changed(made(), identity="0" * 40)
    assert verdict(table).verdict == "same"
    monkeypatch.setattr(Model, "hash_of_weights", None)
    assert verdict(made()).verdict == "same"


def test_one_column_that_cannot_be_checked_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing class, an untrusted path and a function that fails are unknown, with the reason."""
    table = made()
    entries = json.loads(table.schema.metadata[KEY])
    entries += [
        {"name": "nobody", "model": {}, "source_column": "text", "vector_column": "a"},
        {"name": "model", "model": {"name": "/etc"}, "source_column": "text", "vector_column": "b"},
    ]

    @register("failing")
    class Failing(Model):
        """Fails now."""

        fails: ClassVar[bool] = False

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            if self.fails:
                raise CallError("no answer")
            return super().generate_embeddings(texts)

    [entry] = json.loads(made(Failing()).schema.metadata[KEY])
    entries.append({**entry, "vector_column": "c"})
    monkeypatch.setattr(Failing, "fails", True)
    drifts = {d.column: d for d in embedreg.check_drift({KEY: json.dumps(entries).encode()})}
    assert {column: drift.verdict for column, drift in drifts.items()} == {
        "vector": "same",
        "a": "unknown",
        "b": "unknown",
        "c": "unknown",
    }
    assert "nobody" in drifts["a"].changed[0]
    assert "no answer" in drifts["c"].changed[0]


def test_a_gap_in_a_column_of_an_unknown_function_is_not_filled() -> None:
    """The vectors of a class that is not installed are not mixed with another's; an empty column is taken over."""
    entry = {"name": "nobody", "model": {}, "source_column": "text", "vector_column": "vector"}
    kind = pa.list_(pa.float32(), 2)
    half = pa.table({"text": ["a", "b"], "vector": pa.array([[1, 0], None], kind)}, metadata={KEY: json.dumps([entry])})
    with pytest.raises(DriftError, match="'nobody'"):
        embedreg.embed_table(half, Model().bind("text", "vector"))
    empty = half.slice(1)
    assert embedreg.embed_table(empty, Model().bind("text", "vector"))["vector"].null_count == 0


# -- once --------------------------------------------------------------------------------------------------------------


def test_the_probe_is_run_once_under_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen threads that use one function check it once, and none of them before it is checked."""
    function = embedreg.functions_in(made())["vector"].function
    Model.runs.clear()
    slow = Model.generate_embeddings

    def slowly(self: Any, texts: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)
        return slow(self, texts)

    monkeypatch.setattr(Model, "generate_embeddings", slowly)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: embedreg.embed_query(function, "q"), range(16)))
    assert Model.runs.count(PROBE_TEXT) == 1
    assert Model.runs[0] == PROBE_TEXT
    embedreg.embed_query(function, "q")
    assert Model.runs.count(PROBE_TEXT) == 1


def test_a_function_that_embeds_with_others_in_threads_does_not_lock() -> None:
    """The check of one function holds nothing that the check of another, in a thread of its own, waits for."""
    inner = made()

    @register("ensemble")
    class Ensemble(Model):
        """Averages two functions that it reads from a table."""

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            found = embedreg.functions_in(inner)["vector"].function
            with ThreadPoolExecutor(2) as pool:
                parts = list(
                    pool.map(lambda _: embedreg.embedding.table.embed_column(found, list(texts)).matrix, range(2))
                )
            return np.mean(parts, axis=0)

    table = made(Ensemble())
    done = threading.Event()

    def use() -> None:
        embedreg.embed_table(wider(table))
        done.set()

    threading.Thread(target=use, daemon=True).start()
    assert done.wait(30), "the nested check waits for ever"


def test_remote_functions_are_checked_only_on_request() -> None:
    """Created with a probe, compared by check_drift, never by a query or a later write."""
    table = made(FarModel())
    assert reserved(table)["probe"]
    function = embedreg.functions_in(table)["vector"].function
    Model.runs.clear()
    embedreg.embed_query(function, "q")
    embedreg.embed_table(wider(table))
    assert PROBE_TEXT not in Model.runs
    assert verdict(table).verdict == "same"
    assert Model.runs.count(PROBE_TEXT) == 1


def test_a_created_remote_function_is_not_probed_again_for_a_table_that_has_a_probe() -> None:
    """Appending with the reader's own function costs no extra call."""
    table = made(FarModel())
    mine = FarModel.create()
    Model.runs.clear()
    embedreg.embed_table(wider(table), mine.bind("text", "vector"))
    embedreg.embed_table(wider(table))
    assert PROBE_TEXT not in Model.runs


def test_findings_are_discarded_with_their_function() -> None:
    """Nothing is kept of instances that are gone, nor carried into a copy."""
    function = Lengths()
    made(function)
    assert held.learnt(function)
    before = len(held._states)
    del function
    assert len(held._states) < before
    assert held.learnt(Lengths()) == {}


def test_probes_of_two_tables_are_checked_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two tables with one declaration, the one that drifted is refused and the other is not, in either order."""
    old = made()
    monkeypatch.setattr(Model, "angle", 0.5)
    new = made()
    Model.create()
    for _ in range(2):
        with pytest.raises(DriftError):
            embedreg.embed_table(wider(old))
        assert embedreg.embed_table(wider(new))["vector"].null_count == 0


FOUND: dict[str, Any] = {
    "functions_in": lambda table: embedreg.functions_in(table)["vector"].function,
    "parse_functions": lambda table: embedreg.get_registry().parse_functions(table.schema.metadata)["vector"].function,
    "comments": lambda table: (
        embedreg.functions_in_comments([comments.comment_of(codec.entries(table.schema.metadata)[0])])[
            "vector"
        ].function
    ),
    "a copy": lambda table: copy.copy(embedreg.functions_in(table)["vector"].function),
    "a pickle": lambda table: pickle.loads(pickle.dumps(embedreg.functions_in(table)["vector"].function)),
}


@pytest.mark.parametrize("found", FOUND)
def test_a_function_read_from_a_column_is_compared_even_if_created_here(
    found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance that this process created has not been compared with every column that declares it."""
    table, other = made(), made(Model(name="other"))
    monkeypatch.setattr(Model, "angle", 1.0)
    own = Model.create()
    function = FOUND[found](table)
    assert function == own
    for use in (embedreg.embed_query, lambda fn, text: embedreg.embed_column(fn, [text])):
        with pytest.raises(DriftError, match="no longer returns"):
            use(function, "a")
    embedreg.embed_query(own, "a")  # for whatever is embedded anew
    assert reserved(embedreg.embed_table(table.drop_columns(["vector"]), own.bind("text", "vector"))) != reserved(table)
    assert reserved(other)["probe"] == reserved(table)["probe"]


def test_an_agreeing_probe_returns_the_created_instance() -> None:
    """Once compared, the column's function is the reader's own; before, it shares the fields with it."""
    table = made()
    own = Model.create()
    first = embedreg.functions_in(table)["vector"].function
    assert first is not own
    own.max_retries = 5
    assert first.max_retries == 5
    embedreg.embed_query(first, "a")
    assert embedreg.functions_in(table)["vector"].function is own
    held.forget(own)
    assert embedreg.functions_in(table)["vector"].function is not own
