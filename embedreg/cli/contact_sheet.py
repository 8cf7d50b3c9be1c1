"""An HTML page of search hits: thumbnails or players, scores and columns in one self-contained file without scripts."""

from __future__ import annotations

import base64
import html
import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from embedreg._version import __version__
from embedreg.cli.hits import Hits, score_of
from embedreg.core.modality import AUDIO, IMAGE
from embedreg.errors import RowError, in_shell
from embedreg.support.atomic import replacing, storage_errors
from embedreg.support.display import plain

__all__ = ["write"]

SIDE = 320  # pixels of a thumbnail's longer side: sharp at the size of a card on a dense screen
_FETCHERS = 8  # concurrent thumbnails, since some images have to be fetched
_HEARD_S, _HEARD_RATE = 10, 24_000  # of each recording, in one channel: some 60 KB
_SHOWN = 2000  # characters of a value
_ALT = 120  # characters of an image's alt text

# The page loads nothing and runs no scripts, for any data.
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #1d1d1b; --soft: #6b6b66; --line: #dcdcd6; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161615; --card: #222220; --ink: #ecece7; --soft: #a2a29a; --line: #3a3a36; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 1.5rem; background: var(--page); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
header { display: flex; gap: 1rem; align-items: center; margin-bottom: 1.5rem; }
header img { width: auto; height: auto; max-width: 8rem; max-height: 8rem; object-fit: contain; }
h1 { font-size: 1.25rem; margin: 0; overflow-wrap: anywhere; }
header p { margin: .25rem 0 0; color: var(--soft); overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
     grid-template-columns: repeat(auto-fill, minmax(min(16rem, 100%), 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
.picture { display: flex; align-items: center; justify-content: center; aspect-ratio: 4 / 3; background: var(--page); }
.picture img { width: auto; height: auto; max-width: 100%; max-height: 100%; object-fit: contain; }
.picture p { margin: 1rem; color: var(--soft); text-align: center; overflow-wrap: anywhere; }
audio { display: block; width: 100%; padding: .9rem .9rem 0; }
header audio { width: 16rem; padding: .5rem 0 0; }
.text { margin: 0; padding: .9rem .9rem 0; max-height: 14rem; overflow: auto; overflow-wrap: anywhere; }
.score { margin: 0; padding: .7rem .9rem 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.score span { float: right; color: var(--soft); font-weight: 400; }
dl { margin: 0; padding: .4rem .9rem .9rem; display: grid; grid-template-columns: auto 1fr; gap: .15rem .7rem; }
dt { color: var(--soft); }
dd { margin: 0; max-height: 8rem; overflow: auto; overflow-wrap: anywhere; }
footer { margin-top: 1.5rem; color: var(--soft); font-size: .85rem; }
"""


def write(path: Path, hits: Hits, query: Any, table: str, *, name: str | None = None) -> None:
    """Write a page of hits, nearest first.

    Images and recordings that the rows name are read under what `allow_images` allows; the reason replaces one that
    cannot be shown. Both are encoded anew, without what else their files hold; of a recording its first ten seconds.

    Args:
        path: the file; an existing file is replaced atomically.
        hits: with their `values`.
        query: the query, a text, a PIL image or the path of a recording.
        table: the name of the searched table.
        name: the name of the query's file.
    Raises:
        StorageError: the page cannot be written.
    """
    page = _page(hits, query, table, name)
    with replacing(path) as hidden, storage_errors(path):
        hidden.write_text(page, encoding="utf-8")


def _page(hits: Hits, query: Any, table: str, name: str | None) -> str:
    with ThreadPoolExecutor(_FETCHERS) as pool:
        shown_by = None if hits.media is None else _SHOWN_BY[hits.media.name]
        seen = [None] * len(hits.distances) if shown_by is None else list(pool.map(shown_by, hits.values))
    rows = zip(hits.rows.to_pylist(), hits.distances.tolist(), seen, strict=True)
    texts = hits.values if shown_by is None else ()
    cards = "\n".join(
        _card(rank, row, distance, medium, hits, texts[rank - 1] if texts else None)
        for rank, (row, distance, medium) in enumerate(rows, 1)
    )
    asked = _text(query) if isinstance(query, str) else f"Rows like {_text(name)}" if name else "Rows like this image"
    title = asked.replace("<wbr>", "")
    shown = "" if isinstance(query, str | Path) else _thumbnail(query, "the query image")
    below = _player(query, from_query=True) if isinstance(query, Path) else ""
    found = len(hits.distances)
    count = f"{found} nearest rows" if found > 1 else "the nearest row" if found else "no row was found"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>{shown}<div><h1 dir="auto">{asked}</h1><p>{count} of {_text(table)}</p>{below}</div></header>
<main><ol>
{cards}
</ol></main>
<footer>embedreg {__version__}</footer>
</body>
</html>
"""


def _card(rank: int, row: dict[str, Any], distance: float, medium: str | None, hits: Hits, text: Any) -> str:
    name, value = score_of(hits.metric, distance)
    seen = [(key, item) for key, item in row.items() if text is None or key != hits.source]
    if medium is not None:
        label = next((plain(item, _ALT) for key, item in seen if isinstance(item, str)), f"hit {rank}")
        medium = medium.replace("{alt}", html.escape(label))
    lines = "".join(f'<dt>{_text(key)}</dt><dd dir="auto">{_text(item)}</dd>' for key, item in seen)
    return "".join(
        [
            "<li>",
            medium or "",
            "" if text is None else f'<p class="text" dir="auto">{_text(text)}</p>',
            f'<p class="score">{name} {value:.3f}<span>{rank}</span></p>',
            f"<dl>{lines}</dl>" if lines else "",
            "</li>",
        ]
    )


def _picture(value: Any) -> str:
    """Return the image of a row as HTML, with `{alt}` for its label; or the reason why it cannot be shown."""
    from embedreg.images import open_image

    if value is None:
        inner = "<p>no image</p>"
    else:
        try:
            inner = _thumbnail(open_image(value, draft=(2 * SIDE, 2 * SIDE)), "{alt}")
        except RowError as problem:
            inner = f"<p>{_text(in_shell(problem.message))}</p>"
    return f'<div class="picture">{inner}</div>'


def _player(value: Any, *, from_query: bool = False) -> str:
    """Return the beginning of a recording as HTML, with `{alt}` for its label; or why it cannot be heard."""
    from embedreg.audio import open_audio
    from embedreg.support.imports import attempt_import_or_raise

    if value is None:
        return '<p class="text">no recording</p>'
    soundfile = attempt_import_or_raise("soundfile", extra="audio")
    try:
        samples = open_audio(value, rate=_HEARD_RATE, from_query=from_query)
    except RowError as problem:
        return f'<p class="text">{_text(in_shell(problem.message))}</p>'
    buffer = io.BytesIO()
    soundfile.write(buffer, samples[: _HEARD_S * _HEARD_RATE], _HEARD_RATE, format="MP3")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    label = "the recording of the query" if from_query else "{alt}"
    return f'<audio controls aria-label="{label}" src="data:audio/mpeg;base64,{data}"></audio>'


_SHOWN_BY = {IMAGE.name: _picture, AUDIO.name: _player}


def _thumbnail(image: Any, label: str) -> str:
    small = image.copy()
    small.info.clear()  # comments, locations, cameras: the page may be shared
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{data}" alt="{label}" width="{small.width}" height="{small.height}">'


def _text(value: object) -> str:
    """Return a value of the data as escaped HTML text."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    shown = html.escape(plain(value, _SHOWN))
    # allow line breaks between the parts of a path
    return shown if re.search(r"[\s&]", shown) else re.sub(r"(?<=[/\\_])(?=[\w.-])", "<wbr>", shown)
