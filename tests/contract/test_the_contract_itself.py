"""Every test of the contract can fail: each runs on a function that violates it, and its message has a hint.

That it is silent for a good function is shown by `TestTheSpecimen`, and by the functions of `test_functions.py`.
"""

from __future__ import annotations

import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import embedreg
from embedreg import TextEmbeddingFunction
from embedreg.testing import EmbeddingFunctionContract
from embedreg.testing.checks import Agreement
from embedreg.testing.contract import TEXTS
from tests.contract import specimens
from tests.contract import specimens_of_values as values
from tests.contract.specimens import KEY, Good

Failed = pytest.fail.Exception
WITH_KEY = {"api_key": "$var:specimen_key"}

# The broken function, the test that must notice, and a piece of what it says.
BROKEN: list[tuple[type[Good], str, str]] = [
    (specimens.NumpyWidth, "test_ndims_is_a_number_that_stays", "int64"),
    (specimens.GrowingWidth, "test_ndims_is_a_number_that_stays", "after use"),
    (specimens.WrongWidth, "test_one_vector_of_ndims_numbers_a_row", "(7, 17)"),
    (specimens.LosesARow, "test_one_vector_of_ndims_numbers_a_row", "gave 6 vectors"),
    (specimens.GivesNone, "test_one_vector_of_ndims_numbers_a_row", "row 3"),
    (specimens.Float64, "test_arrays_have_the_declared_dtype", "np.asarray(vectors, np.float32)"),
    (specimens.NotFinite, "test_vectors_are_finite", "[0]"),
    (specimens.ZeroVector, "test_no_vector_is_zero", "[3]"),
    (specimens.Constant, "test_rows_are_told_apart", "1 different"),
    (specimens.NotUnit, "test_unit_length_where_declared", "np.linalg.norm"),
    (specimens.FlatNothing, "test_no_rows", "(0, 16)"),
    (specimens.Squeezing, "test_one_row_keeps_two_axes", "squeeze()"),
    (specimens.Letters, "test_a_bare_text_is_one_row", "(1, 16)"),
    (specimens.BatchesBackwards, "test_many_rows", "in the order of the rows"),
    (specimens.Sorting, "test_vectors_are_in_the_order_of_the_rows", "undo any sorting"),
    (specimens.Neighbourly, "test_a_vector_does_not_depend_on_its_neighbours", "model.eval()"),
    (specimens.Random, "test_the_same_call_gives_the_same_vectors", "the same call twice"),
    (specimens.KeepsRowsOnSelf, "test_threads", "local variables"),
    (specimens.TakesScalars, "test_kinds_of_input_are_equal", "sanitize_input"),
    (specimens.Mutating, "test_inputs_are_left_as_they_were", "new list"),
    (specimens.Aliasing, "test_results_belong_to_the_caller", "changed the first one's"),
    (specimens.HandsOutItsCache, "test_results_belong_to_the_caller", "written into"),
    (specimens.GivesNone, "test_nulls_and_blanks_have_no_vector", "7 are full and 6 have vectors"),
    (specimens.RetriesOtherwise, "test_engines_get_the_same_vectors", "leave the two"),
    (specimens.AwaitsTheFirst, "test_queries_can_be_awaited", "acompute_query_embeddings"),
    (specimens.BareQuery, "test_a_query_gives_one_vector", "1 row(s) gave 16 vectors"),
    (specimens.SinglesDiffer, "test_queries_in_a_batch_are_as_alone", "prompts included"),
    (specimens.LosesAQuery, "test_queries_in_a_batch_are_as_alone", "(6, 16)"),
    (specimens.NeighbourlyQueries, "test_a_query_does_not_depend_on_its_neighbours", "statistics over a batch"),
    (specimens.SortsQueries, "test_a_query_does_not_depend_on_its_neighbours", "undo any sorting"),
    (specimens.SourcesDiffer, "test_sources_in_a_batch_are_sources", "prompts included"),
    (specimens.GivesUpOnAQuery, "test_a_column_of_queries_has_their_vectors", "and 7 have vectors"),
    (specimens.NoneOfNoQueries, "test_no_queries", "(0, 16)"),
    (specimens.IgnoresTheRole, "test_the_role_is_respected", "def compute_embeddings(self, inputs, role)"),
    (specimens.SaysAlike, "test_the_role_is_respected", "state both prompts"),
    (values.DerivesAField, "test_the_configuration_gives_an_equal_function", "other values of prefix"),
    (values.CountsCalls, "test_the_configuration_gives_an_equal_function", "other values of calls"),
    (values.ByIdentity, "test_the_configuration_gives_an_equal_function", "define no __eq__"),
    (values.EqualsAnything, "test_the_configuration_gives_an_equal_function", "equals anything"),
    (values.Swallowing, "test_unknown_fields_are_refused", "super().__init__(**kwargs)"),
    (values.ByIdentity, "test_copies_are_equal", "copy.copy"),
    (values.Forgetful, "test_pickles_rebuild_the_function", "other values of"),
    (values.CarriesWeights, "test_pickles_carry_no_weights", "private attribute"),
    (values.WeightsInAField, "test_pickles_carry_no_weights", "more than a configuration"),
    (values.Unregistered, "test_it_is_registered", "@embedreg.register('my-name') above class Unregistered"),
    (values.Impostor, "test_it_is_registered", "Usurper"),
    (values.SaysItsPath, "test_it_describes_itself", "a hash of the weights"),
    (values.Unregistered, "test_a_table_carries_it", "registered under no name"),
    (values.TakesTheKeyAside, "test_written_out_secrets_are_refused", "was accepted"),
    (values.ShowsTheKey, "test_no_secret_in_what_is_printed_or_stored", "safe_model_dump()"),
    (values.LogsTheKey, "test_no_secret_in_logs_or_output", "a log"),
    (values.PrintsTheKey, "test_no_secret_in_logs_or_output", "stdout"),
    (values.RaisesAKeyOfItsOwn, "test_no_secret_in_errors", "RuntimeError shows a secret"),
    (values.LoadsForItsWidth, "test_ndims_loads_no_weights", "runtime's cache"),
    (values.ImportsTorchForItsWidth, "test_ndims_loads_no_weights", "imported torch"),
    (values.AsksForItsWidth, "test_ndims_loads_no_weights", "connected to 127.0.0.1"),
    (values.Salted, "test_another_process_gives_the_same_vectors", "hash()"),
    (values.DerivesAField, "test_metadata_rebuilds_the_function", "prefix is another value"),
    (values.Unregistered, "test_metadata_rebuilds_the_function", "registered under no name"),
]


class TestTheSpecimen(EmbeddingFunctionContract):
    """The function that all the broken ones are made from keeps every promise, its secret included."""

    @pytest.fixture
    def function(self) -> Good:
        embedreg.get_registry().set_var("specimen_key", KEY)
        return Good.create(prefix="> ", **WITH_KEY)

    @pytest.fixture
    def tolerance(self) -> float:
        return 0.0  # whole numbers: nothing may differ


class TestRoles(EmbeddingFunctionContract):
    """A function whose method for batches puts a prompt before queries keeps every promise, those about roles too."""

    @pytest.fixture
    def function(self) -> Good:
        return specimens.Roles.create()


class TestPictures(EmbeddingFunctionContract):
    """A function of another modality passes with rows of its own and a query of another kind."""

    @pytest.fixture
    def function(self) -> specimens.Pictures:
        return specimens.Pictures.create()

    @pytest.fixture
    def inputs(self) -> list[bytes]:
        return [b"\x89PNG", b"\xff\xd8 a longer one", b"GIF89a"]

    @pytest.fixture
    def query(self) -> str:
        return "a picture of a cat"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket on loopback that lets itself be connected to."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def check(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Callable[[TextEmbeddingFunction, str], None]:
    """Run one test of the contract on a function, with the default fixtures unless overridden."""

    def run(function: TextEmbeddingFunction, test: str) -> None:
        method = getattr(EmbeddingFunctionContract(), test)
        caplog.clear()
        known = {
            "function": function,
            "inputs": list(TEXTS),
            "query": TEXTS[0],
            "queries": list(TEXTS),
            "agree": Agreement(1e-3, deterministic=True),
            "secret_values": [KEY],
            "provoke": lambda: function.compute_source_embeddings([object()]),
            "form": "arrow",
            "caplog": caplog,
            "capfd": capfd,
        }
        method(**{name: known[name] for name in inspect.signature(method).parameters})

    return run


@pytest.mark.parametrize(("broken", "test", "said"), BROKEN, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_broken_function_is_noticed(
    broken: type[Good],
    test: str,
    said: str,
    check: Callable[[TextEmbeddingFunction, str], None],
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test fails with a message and a hint, and the good function passes it."""
    monkeypatch.setenv("SPECIMEN_KEY", KEY)
    embedreg.get_registry().set_var("specimen_key", KEY)
    config: dict[str, Any] = {"prefix": "> ", **WITH_KEY}
    if broken is values.RaisesAKeyOfItsOwn:
        config = {}  # a key that the base knows would be taken out of the error
    if broken is values.AsksForItsWidth:
        config["port"] = listener.getsockname()[1]
    with pytest.raises(Failed) as caught:
        check(broken(**config), test)
    assert said in str(caught.value)
    assert "\nHint: " in str(caught.value)
    assert KEY not in str(caught.value)
    check(Good(prefix="> ", **WITH_KEY), test)


def test_each_promise_has_a_function_that_breaks_it() -> None:
    """No test of the contract is without a function that makes it fail."""
    promised = {name for name in dir(EmbeddingFunctionContract) if name.startswith("test_")}
    assert promised == {test for _, test, _ in BROKEN}


def test_what_cannot_be_pickled_is_reported_by_the_tests_that_need_it(
    check: Callable[[TextEmbeddingFunction, str], None],
) -> None:
    """A class inside a function fails where other processes need it; elsewhere it is skipped, visibly."""
    function = values.local()
    with pytest.raises(Failed, match="at the top level"):
        check(function, "test_pickles_rebuild_the_function")
    with pytest.raises(Failed, match="at the top level"):
        check(function, "test_another_process_gives_the_same_vectors")
    with pytest.raises(pytest.skip.Exception, match="cannot be determined"):
        check(function, "test_ndims_loads_no_weights")


def test_a_function_that_varies_is_not_compared() -> None:
    """`deterministic = False` skips each comparison, saying why; `tolerance` lets small differences pass."""
    import numpy as np

    one, other = np.array([[3.0, 4.0]]), np.array([[3.0, 4.01]])
    with pytest.raises(pytest.skip.Exception, match="deterministic"):
        Agreement(1e-3, deterministic=False)(one, other, "two calls", "hint")
    Agreement(0.01, deterministic=True)(one, other, "two calls", "hint")
    with pytest.raises(Failed, match=r"row 0 by 0\.002 of its length"):
        Agreement(1e-3, deterministic=True)(one, other, "two calls", "hint")
    with pytest.raises(Failed, match="row 0 by nan"):
        Agreement(1e-3, deterministic=True)(one * np.nan, other, "two calls", "hint")


def test_weights_are_noticed_where_torch_was_there_before(
    check: Callable[[TextEmbeddingFunction, str], None],
) -> None:
    """If a class's own module imports torch, loading is detected by the tensors that `ndims()` creates."""
    from tests.contract.heavy_specimen import LoadsTensorsForItsWidth  # it imports torch: not as tests are collected

    with pytest.raises(Failed, match="bytes of torch tensors"):
        check(LoadsTensorsForItsWidth(), "test_ndims_loads_no_weights")


def test_without_pytest_the_import_says_what_to_install(run_python: Callable[..., str]) -> None:
    """Pytest is not a requirement of embedreg; importing the suite without it raises a hint."""
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "import embedreg.errors\n"
        "try: import embedreg.testing\n"
        "except embedreg.errors.MissingExtraError as error: print(error.hint)"
    )
    assert run_python(code).strip() == "pip install pytest"


AUTHORS_FILE = """
import pytest
import embedreg
from embedreg.testing import EmbeddingFunctionContract


class Lengths(embedreg.TextEmbeddingFunction):
    def ndims(self):
        return 2

    def generate_embeddings(self, texts):
        return [[float(len(text)), 1.0] for text in texts]


class TestLengths(EmbeddingFunctionContract):
    @pytest.fixture
    def function(self):
        return Lengths.create()


class TestNothing(EmbeddingFunctionContract):
    def test_of_its_own(self, function):
        raise AssertionError("never reached")
"""


def test_an_author_runs_it_in_a_file_of_their_own(tmp_path: Path) -> None:
    """In a folder that knows nothing of this one, the suite runs, and what fails is readable: no traceback, a hint."""
    (tmp_path / "test_lengths.py").write_text(AUTHORS_FILE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_lengths.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(embedreg.__file__).parents[1])},
    )
    out = done.stdout
    assert done.returncode == 1, out
    failed = sorted({line.split(" ")[1] for line in out.splitlines() if line.startswith("FAILED")})
    # all that the author has forgotten is the name
    assert failed == [
        f"test_lengths.py::TestLengths::test_{name}"
        for name in ("a_table_carries_it", "it_is_registered", "metadata_rebuilds_the_function")
    ], out
    assert "Hint: put @embedreg.register('my-name') above class Lengths" in out
    assert "TestNothing has no function to test.\nHint: @pytest.fixture" in out
    assert "Traceback" not in out
    assert "embedreg/testing/" not in out
