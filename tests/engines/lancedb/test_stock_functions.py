"""Tables shared with LanceDB's other local functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg import Schema, Vector
from embedreg.engines.lancedb import add, create_table, open_table

TEXTS = ["a cat sleeps", "the stock market fell", "wait for a thread to finish"]
NAMES = ("colbert", "huggingface", "gte-text")

STOCK = """
import warnings
warnings.simplefilter("ignore")  # gte-text is deprecated there
import lancedb, lancedb.embeddings
from lancedb.pydantic import LanceModel, Vector
db = lancedb.connect(folder)
model, *names = sys.argv[1:]
for name in names:
    fn = lancedb.embeddings.get_registry().get(name).create(name=model)
    class Notes(LanceModel):
        text: str = fn.SourceField()
        vector: Vector(fn.ndims()) = fn.VectorField()
    db.create_table("theirs-" + name, data=[{"text": "a cat sleeps"}], schema=Notes)
    ours = db.open_table("ours-" + name)
    assert ours.search("the stock market fell").limit(1).to_list()[0]["text"] == "the stock market fell"
    ours.add([{"text": "wait for a thread to finish"}])
assert "embedreg" not in sys.modules
"""


@pytest.mark.slow
def test_tables_are_shared_with_stock_lancedb(db: Any, new_process: Any, minilm_path: Path) -> None:
    """What either makes the other opens, searches by text and extends: every row has one vector, whoever wrote it."""
    for name in NAMES:
        fn = embedreg.get(name).create(name=str(minilm_path), device="cpu")

        class Notes(Schema):
            text: str = fn.SourceField()
            vector: Vector(fn.ndims()) = fn.VectorField()

        add(create_table(db, f"ours-{name}", Notes), [{"text": text} for text in TEXTS[:2]])
    embedreg.get_registry().reset()

    new_process(STOCK, minilm_path, *NAMES)
    for name in NAMES:
        with embedreg.trust(paths=[str(minilm_path)]):
            theirs, ours = open_table(db, f"theirs-{name}"), open_table(db, f"ours-{name}")
            declared = theirs.schema.metadata
            theirs.add([{"text": TEXTS[1]}])
            add(theirs, [{"text": TEXTS[2]}])
            found = theirs.search(TEXTS[0]).limit(1).to_list()[0]
            assert (found["text"], round(found["_distance"], 4)) == (TEXTS[0], 0)
            assert theirs.schema.metadata == declared
        made = [each.to_arrow() for each in (theirs, ours)]
        assert [each["text"].to_pylist() for each in made] == [TEXTS, TEXTS]
        vectors = [np.array(each["vector"].to_pylist()) for each in made]
        assert np.abs(vectors[0] - vectors[1]).max() < 1e-5
    embedreg.release()
