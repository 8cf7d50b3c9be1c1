"""`make gpu` runs: on the CPU, with tiny models, where its figures mean nothing and its parts are the same."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_the_script_runs_each_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts, images and the profile give numbers; vectors are those of `encode`; what is left out is named."""
    out = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--tiny", "--rows", "64", "--out", str(out), "--skip", "tests"])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["left out"] == {"tests": "as asked"}
    assert [(each["model"], each["tokens"]) for each in found["texts"]] == [
        ("bge-base", 128),
        ("bge-base", 512),
        ("MiniLM", "mixed"),
    ]
    for each in found["texts"]:
        assert each["cosine min"] > 0.99999
        assert min(each["of the floor"], each["rows/s"], each["times encode"]) > 0
    (images,) = found["images"]
    assert min(images["images/s"], images["decoded/s"]) > 0
    assert found["profile"]["operations"]
    assert math.isfinite(found["GB/s"])
    assert "left out: tests: as asked" in capsys.readouterr().out


def state(folder: Path) -> gpu.Run:
    """Return the state of a run that has just begun."""
    return gpu.Run(argparse.Namespace(seconds=30, tiny=False, skip=(), device="cpu"), folder)


def test_a_part_that_fails_or_has_no_time_does_not_end_the_run(tmp_path: Path) -> None:
    """Its reason is in the file, beside the figures of the others."""
    run = state(tmp_path)
    with run.part("one", 1) as may:
        assert may
        raise RuntimeError("out of memory")
    with run.part("two", 60) as may:
        assert not may
    assert run.found["left out"]["one"] == "RuntimeError: out of memory"
    assert run.found["left out"]["two"].endswith("s were left of 60")


def test_floors_count_what_a_transformer_computes(tmp_path: Path) -> None:
    """By hand, for one text of 16 tokens and MiniLM's shape."""
    run = state(tmp_path)
    run.found |= {"TFLOP/s": {"bfloat16": 1.0}, "GB/s": 1.0}
    floor = gpu.floors(run, "MiniLM", gpu.corpus(1, 16), "bfloat16")
    operations = 6 * (16 * 2 * (4 * 384 * 384 + 2 * 384 * 1536) + 4 * 384 * 16 * 16)
    assert floor["operations_s"] == pytest.approx(operations / 1e12)
    assert floor["bytes_s"] == pytest.approx(16 * 6 * 34 * 384 * 2 / 1e9)
