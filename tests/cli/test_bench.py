"""`embedreg bench`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def test_a_local_model_is_split_into_its_parts(cli: Callable[..., Any], texts: Path) -> None:
    """Rows, tokens, padding, the parts of the time and the share of the machine's limit come out, in JSON and words."""
    options = ("bench", texts, "-f", "sentence-transformers", "--device", "cpu", "--runs", 2)
    found = cli(*options, "--json").json
    assert found["rows"] == 3  # distinct, with something to embed
    assert found["tokens"] == 3 * 8
    assert found["padding"] >= 0
    assert 0 < found["share_of_matmul_peak"] < 1
    assert found["tokenize_s"] + found["model_s"] + found["rest_s"] == pytest.approx(found["seconds"], rel=0.5)
    assert found["rows_per_s"] == pytest.approx(3 / found["seconds"])
    shown = cli(*options).out
    assert "rows/s" in shown
    assert "of this machine's measured matrix products" in shown


def test_any_function_can_be_measured(cli: Callable[..., Any], tmp_path: Path) -> None:
    """A function without stage timings is measured in total; without a file, docstrings are embedded."""
    found = cli("bench", "-f", "hashing", "--set", "dim=64", "--rows", 50, "--runs", 1, "--json").json
    assert found["rows"] == 50
    assert found["tokens"] is None
    assert "not available for this function" in cli("bench", "-f", "hashing", "--rows", 50, "--runs", 1).out


def test_what_cannot_be_measured_is_refused(cli: Callable[..., Any], tmp_path: Path, texts: Path) -> None:
    """A column that is not there is named with those that are, and blank rows are nothing to measure."""
    assert "--source one of: id, text" in cli("bench", texts, "-f", "hashing", "--source", "txet", expect=1).err
    pq.write_table(pa.table({"text": [None, " "]}), tmp_path / "blank.parquet")
    assert "nothing to embed" in cli("bench", tmp_path / "blank.parquet", "-f", "hashing", expect=1).err
