"""Pictures in LanceDB tables: found by their captions, from bytes and from paths, shared with stock LanceDB."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.pydantic import LanceModel
from PIL import Image

import embedreg
from embedreg import Schema, Vector
from embedreg.engines.lancedb import add, create_table, open_table
from tests.tiny_clip import CAPTIONS, pictures, png

SEED = 2024  # of pictures that the model was not trained on


def images_of(fn: Any) -> type[Schema]:
    """Declare an image and its vector."""

    class Images(Schema):
        label: str
        image: bytes = fn.SourceField()
        vector: Vector(fn.ndims) = fn.VectorField()

    return Images


def held_out(count: int) -> pa.Table:
    """Draw pictures of every caption that the model has not seen."""
    labels, drawn = pictures(count, seed=SEED)
    return pa.table({"label": labels, "image": [png(picture) for picture in drawn]})


REOPENED = """
import json
import lancedb, embedreg
embedreg.trust(paths=[sys.argv[1]])
table = lancedb.connect(folder).open_table("shapes")
captions = json.loads(sys.argv[2])
print(json.dumps([table.search(caption).limit(1).to_list()[0]["label"] for caption in captions]))
"""


def test_held_out_pictures_are_found_by_their_captions(db: Any, new_process: Any, tiny_clip: Path) -> None:
    """Of 30 captions at least 27 find a picture of what they say, in a table that a new process opens."""
    fn = embedreg.get("open-clip").create(name=f"local-dir:{tiny_clip}", device="cpu")
    table = create_table(db, "shapes", images_of(fn))
    table.add(held_out(3))
    add(table, held_out(1))
    assert table.count_rows() == 4 * len(CAPTIONS)
    found = json.loads(new_process(REOPENED, tiny_clip, json.dumps(CAPTIONS)))
    assert sum(label == caption for label, caption in zip(found, CAPTIONS, strict=True)) >= 0.9 * len(CAPTIONS)
    label, (picture,) = CAPTIONS[7], pictures(1, seed=99)[1][7:8]
    assert table.search(picture).limit(1).to_list()[0]["label"] == label


def test_paths_are_read_where_that_is_allowed(db: Any, tiny_clip: Path, tmp_path: Path) -> None:
    """A column of paths, through lancedb's own add and through ours; what is not allowed is said."""
    fn = embedreg.get("open-clip").create(name=f"local-dir:{tiny_clip}", device="cpu")

    class Files(LanceModel):
        path: str = fn.SourceField()
        vector: Vector(fn.ndims()) = fn.VectorField()

    names = []
    for number, picture in enumerate(pictures(1, seed=SEED)[1][:6]):
        names.append(str(tmp_path / f"{number}.png"))
        picture.save(names[-1])
    rows = [{"path": name} for name in names]
    table = db.create_table("files", schema=Files)
    with pytest.raises(embedreg.errors.BadRowsError, match=r"allow_images\(dirs="):
        add(table, rows, on_error="raise")
    with embedreg.allow_images(dirs=[tmp_path]):
        table.add(rows)
        add(table, rows)
        assert table.search(Image.open(names[2])).limit(1).to_list()[0]["path"] == names[2]
    made = np.array(table.to_arrow()["vector"].to_pylist())
    np.testing.assert_allclose(made[:6], made[6:], atol=1e-5)
    np.testing.assert_allclose(made[:6], fn.compute_source_embeddings([Image.open(name) for name in names]), atol=1e-5)


def test_a_table_loads_its_model_once(db: Any, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is declared, added, reopened, searched and embedded in one process."""
    import open_clip

    embedreg.release()
    loads: list[Any] = []
    build = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: loads.append(a) or build(*a, **k))
    fn = embedreg.get("open-clip").create(name=f"local-dir:{tiny_clip}", device="cpu")
    table = create_table(db, "shapes", images_of(fn))
    assert loads == []
    rows = held_out(1)
    for each in (table, db.open_table("shapes"), open_table(lancedb.connect(db.uri), "shapes")):
        each.add(rows.slice(0, 3))
        add(each, rows.slice(3, 3))
        each.search("a red circle").limit(2).to_list()
        each.search(Image.open(io.BytesIO(rows["image"][0].as_py()))).limit(2).to_list()
    embedreg.embed_table(rows, images_of(fn))
    embedreg.embed_query(embedreg.get("open-clip").create(name=f"local-dir:{tiny_clip}", device="cpu"), "a ring")
    assert len(loads) == 1


# -- stock LanceDB -----------------------------------------------------------------------------------------------------

STOCK = """
import io, json, sys
import lancedb, lancedb.embeddings
from lancedb.pydantic import LanceModel, Vector
from PIL import Image
db = lancedb.connect(folder)
rows = json.loads(sys.argv[2])
data = [{"label": label, "image": bytes.fromhex(image)} for label, image in rows]
"""
BARE = '\nassert "embedreg" not in sys.modules\n'

STOCK_MAKES = """
fn = lancedb.embeddings.get_registry().get("open-clip").create(name=sys.argv[1])
class Images(LanceModel):
    label: str
    image: bytes = fn.SourceField()
    vector: Vector(fn.ndims()) = fn.VectorField()
db.create_table("theirs", data=data, schema=Images)
"""

STOCK_EXTENDS = """
import pytest
for name in ("theirs", "ours"):
    table = db.open_table(name)
    assert table.search(rows[0][0]).limit(1).to_list()[0]["label"] == rows[0][0]
    assert table.search(Image.open(io.BytesIO(data[1]["image"]))).limit(1).to_list()[0]["label"] == rows[1][0]
    table.add(data)
table = db.open_table("captions")
for call in (lambda: table.search("a ring").to_list(), lambda: table.add([{"caption": "a ring"}])):
    with pytest.raises(KeyError, match="embedreg:open-clip"):
        call()
"""


@pytest.mark.slow
def test_tables_are_shared_with_stock_lancedb(db: Any, new_process: Any, tiny_clip: Path) -> None:
    """What either makes the other reads and extends, with the same vectors; a column of texts stock does not touch."""
    rows = held_out(1).slice(0, 4)
    given = json.dumps([[row["label"], row["image"].hex()] for row in rows.to_pylist()])
    name = f"local-dir:{tiny_clip}"
    new_process(STOCK + STOCK_MAKES + BARE, name, given)

    theirs = open_table(db, "theirs")
    declared = theirs.schema.metadata
    with pytest.raises(embedreg.errors.UntrustedError, match=r"embedreg\.trust\(paths="):
        add(theirs, rows)
    with embedreg.trust(paths=[tiny_clip]):
        assert theirs.search(CAPTIONS[0]).limit(1).to_list()[0]["label"] == CAPTIONS[0]
        add(theirs, rows)
    assert theirs.schema.metadata == declared
    make = embedreg.get("open-clip").create
    ours = create_table(db, "ours", images_of(make(name=name)))
    add(ours, rows)
    texts = make(name=name, source_type="text")

    class Captions(Schema):
        caption: str = texts.SourceField()
        vector: Vector(texts.ndims) = texts.VectorField()

    add(create_table(db, "captions", Captions), [{"caption": caption} for caption in CAPTIONS])
    found = db.open_table("captions").search(pictures(1, seed=SEED)[1][3]).limit(1).to_list()
    assert found[0]["caption"] == CAPTIONS[3]

    new_process(STOCK + STOCK_EXTENDS + BARE, name, given)
    for table, times in ((theirs, 3), (ours, 2)):
        table.checkout_latest()
        made = np.array(table.to_arrow()["vector"].to_pylist()).reshape(times, len(rows), -1)
        for more in made[1:]:
            np.testing.assert_allclose(more, made[0], atol=1e-5)
