"""A plug-in is found by its entry point: a real package, installed by pip, that embedreg knows nothing of."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import embedreg
from embedreg.errors import DuplicateFunctionError


def test_an_installed_plugin_is_found_by_name(run_python: Callable[..., str], plugin_path: Path) -> None:
    """Its name is listed without importing it; asking for the function imports it, and it embeds."""
    code = (
        "import sys, embedreg\n"
        "print('letters' in embedreg.get_registry().list(), 'embedreg_plugin_example' in sys.modules)\n"
        "print(embedreg.get('letters').create(normalize=False).generate_embeddings(['Aab!'])[0][[0, 1, 2, -1]])"
    )
    listed, vector = run_python(code, path=[plugin_path]).splitlines()
    assert listed == "True False"
    assert vector == "[2. 1. 0. 1.]"


def test_without_the_plugin_its_name_is_unknown(run_python: Callable[..., str]) -> None:
    """The name is the plug-in's own: where that is not installed, the error reports how a plug-in would come."""
    code = (
        "import embedreg, embedreg.errors\n"
        "try: embedreg.get('letters')\n"
        "except embedreg.errors.UnknownFunctionError as error: print(error.hint)"
    )
    assert "pip install" in run_python(code)


def test_a_plugin_says_where_it_comes_from(plugin: Path) -> None:
    """`describe` names the distribution and its version as the origin."""
    described = embedreg.get_registry().describe("letters")
    assert described["origin"] == "plug-in embedreg-plugin-example 1.0"
    assert set(described["config"]["properties"]) >= {"case_sensitive", "normalize"}


def test_a_table_made_with_a_plugin_is_read_in_another_process(
    plugin: Path, tmp_path: Path, run_python: Callable[..., str]
) -> None:
    """The declaration in a Parquet file finds the plug-in again, in a process that names no class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    function = embedreg.get("letters").create(case_sensitive=True)
    table = embedreg.embed_table(pa.table({"t": ["Abc", "zz"]}), function.bind("t", "v"))
    pq.write_table(table, tmp_path / "t.parquet")
    code = (
        "import sys, json, embedreg, numpy as np\n"
        "found = embedreg.functions_in(sys.argv[1])['v'].function\n"
        "print(json.dumps(np.asarray(found.compute_query_embeddings('Abc')[0]).tolist()))"
    )
    vector = json.loads(run_python(code, tmp_path / "t.parquet", path=[plugin]))
    assert np.allclose(vector, function.generate_embeddings(["Abc"])[0])


def test_two_distributions_that_claim_one_name_are_both_named(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither wins: the error names the two, so that one can be uninstalled."""
    (installed,) = plugin.glob("*.dist-info")
    rival = shutil.copytree(installed, tmp_path / "rival_letters-2.0.dist-info")
    text = (rival / "METADATA").read_text().replace("Name: embedreg-plugin-example", "Name: rival-letters")
    (rival / "METADATA").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    embedreg.get_registry().reset()
    with pytest.raises(DuplicateFunctionError) as caught:
        embedreg.get("letters")
    assert "embedreg-plugin-example" in str(caught.value)
    assert "rival-letters" in str(caught.value)
