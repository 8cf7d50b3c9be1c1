"""Tables of LanceDB's own functions by a service, made and extended without embedreg.

`python lancedb_stock.py FOLDER URL` makes the tables "theirs-..." in a database, and searches and extends those that
are called "ours-...", against a server on loopback.
"""

from __future__ import annotations

import functools
import io
import json
import os
import sys
from typing import Any

TEXTS = ["wait for a thread", "the sine of x"]
# table -> function and configuration; URL stands for the server's address.
TEXT_TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "bedrock-text": ("bedrock-text", {"name": "cohere.embed-english-v3"}),
    "cohere": ("cohere", {"name": "embed-english-light-v3.0"}),
    "gemini-text": ("gemini-text", {}),
    "jina": ("jina", {"name": "jina-clip-v1", "api_key": "$var:jina_key"}),
    "ollama": ("ollama", {"name": "m", "host": "URL"}),
    "openai": ("openai", {"name": "text-embedding-3-small", "dim": 64, "base_url": "URL/v1", "api_key": "$var:key"}),
    "voyageai": ("voyageai", {"name": "voyage-3-lite"}),
    "voyageai-of-texts": ("voyageai", {"name": "voyage-multimodal-3"}),
}
IMAGE_TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "jina-of-images": ("jina", {}),
    "voyageai-of-images": ("voyageai", {"name": "voyage-multimodal-3.5", "output_dimension": 256}),
}
# Functions that are declared and not run: LanceDB needs a library for them that is not here.
DECLARED: dict[str, tuple[str, dict[str, Any]]] = {
    "watsonx": ("watsonx", {"name": "ibm/slate-30m-english-rtrvr", "project_id": "p"}),
}
WIDTHS = {
    "cohere.embed-english-v3": 1024,
    "embed-english-light-v3.0": 384,
    "jina-clip-v1": 768,
    "voyage-3-lite": 512,
    "voyage-multimodal-3.5": 256,
    "voyage-multimodal-3": 1024,
    "slate-30m-english-rtrvr": 384,
}


def pictures() -> list[bytes]:
    """Return two files of pictures."""
    from PIL import Image

    files = [io.BytesIO(), io.BytesIO()]
    for shade, file in zip((40, 200), files, strict=True):
        Image.new("RGB", (12, 9), (shade, 90, 255 - shade)).save(file, "PNG")
    return [file.getvalue() for file in files]


def config_of(config: dict[str, Any], url: str) -> dict[str, Any]:
    """Return a configuration with the server's address."""
    return {k: v.replace("URL", url) if isinstance(v, str) else v for k, v in config.items()}


def main(folder: str, url: str) -> None:
    """Make the tables, and search and extend the others."""
    os.environ |= {"CO_API_URL": url, "GOOGLE_GEMINI_BASE_URL": url}
    import lancedb
    import voyageai
    from lancedb.embeddings import get_registry, jinaai
    from lancedb.pydantic import LanceModel, Vector
    from pydantic import create_model

    voyageai.Client = functools.partial(voyageai.Client, base_url=url + "/v1")
    # it would fetch a tokenizer only to count with it
    voyageai.Client.func.tokenize = lambda self, texts, model: [[0] for _ in texts]
    jinaai.API_URL = url + "/v1/embeddings"
    registry = get_registry()
    for name in ("key", "jina_key"):
        registry.set_var(name, "sk-loopback")
    db = lancedb.connect(folder)

    def make(table: str, name: str, config: dict[str, Any], kind: type) -> Any:
        function = registry.get(name).create(**config_of(config, url))
        vector = (Vector(function.ndims()), function.VectorField())
        rows = create_model("Rows", __base__=LanceModel, source=(kind, function.SourceField()), vector=vector)
        return db.create_table("theirs-" + table, schema=rows)

    found = {}
    for tables, kind, rows in ((TEXT_TABLES, str, TEXTS), (IMAGE_TABLES, bytes, pictures())):
        for table, (name, config) in tables.items():
            for each in (make(table, name, config, kind), db.open_table("ours-" + table)):
                each.add([{"source": row} for row in rows])
                best = each.search("sine x").limit(1).to_list()[0]["source"]
                found[each.name] = [best if kind is str else rows.index(best), each.count_rows()]
    for table, (name, config) in DECLARED.items():
        make(table, name, config, str)
    sys.stdout.write(json.dumps(found))
    assert "embedreg" not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
