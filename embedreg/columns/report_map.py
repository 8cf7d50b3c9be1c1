"""A map of the compared rows in two dimensions, drawn by bokeh; the page then holds bokeh's script."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from embedreg.columns.findings import CLASSES, Evidence
from embedreg.columns.report_style import CLASS_WORDS, COLOURS, MARKERS
from embedreg.support.display import plain
from embedreg.support.imports import importable

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Maps", "plane"]

_TEXT = 160  # characters of a text in a hover
_HEIGHT = 420  # pixels
_FEW = 4  # rows, the least that make a map
_NEIGHBOURS = 15  # of UMAP


def plane(vectors: np.ndarray) -> np.ndarray:
    """Return the first two principal components of n vectors: (n, 2)."""
    import numpy as np

    centred = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    made = left[:, :2] * sizes[:2]
    return np.pad(made, ((0, 0), (0, max(0, 2 - made.shape[1]))))


def neighbourhood(vectors: np.ndarray) -> np.ndarray | None:
    """Return the layout of UMAP: (n, 2); None where umap-learn is not installed, or there are few vectors."""
    if len(vectors) <= _NEIGHBOURS or not importable("umap"):
        return None
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba, about threads and seeds
        import umap

        made = umap.UMAP(n_neighbors=_NEIGHBOURS, metric="cosine", random_state=0, n_jobs=1).fit_transform(vectors)
    found: np.ndarray = made
    return found


class Maps:
    """The maps of one page, and the scripts that draw them.

    Args:
        nonce: the random number that the page's policy allows scripts by.
    """

    def __init__(self, nonce: str) -> None:
        self._nonce, self._items = nonce, list[tuple[str, str]]()

    def add(self, evidence: Evidence) -> str:
        """Return the places of an audit's maps in the page."""
        if len(evidence.rows) < _FEW:
            return ""
        if not importable("bokeh"):
            return "<p class='note'>A map of these rows needs bokeh: pip install 'embedreg[report]'</p>"
        layouts = {"Map of the sample (principal components)": plane(evidence.stored)}
        if (near := neighbourhood(evidence.stored)) is not None:
            layouts["Map of the sample (UMAP)"] = near
        return "".join(self._placed(heading, places, evidence) for heading, places in layouts.items())

    def scripts(self) -> str:
        """Return the scripts: bokeh's own, once, and one line for each map."""
        if not self._items:
            return ""
        from bokeh.resources import Resources

        own: list[str] = list(Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw)
        drawn = [f"Bokeh.embed.embed_item({item}, {json.dumps(place)})" for place, item in self._items]
        parts = [*own, f"Promise.all([{', '.join(drawn)}]).then(() => document.body.dataset.drawn = '{len(drawn)}')"]
        return "".join(f'<script nonce="{self._nonce}">{part}</script>' for part in parts)

    def _placed(self, heading: str, places: np.ndarray, evidence: Evidence) -> str:
        name = f"map-{len(self._items) + 1}"
        item = json.dumps(_figure(places, evidence), allow_nan=False)
        # texts of the data cannot end the script: no "<" is left, and JavaScript reads these line ends as such
        for char in ("<", ">", "&", "\u2028", "\u2029"):
            item = item.replace(char, f"\\u{ord(char):04x}")
        self._items.append((name, item))
        return f'<h2>{heading}</h2><div class="map" id="{name}"></div>'


def _figure(places: np.ndarray, evidence: Evidence) -> Any:
    """Return a scatter plot with texts as hovers, as bokeh's JSON."""
    from bokeh.embed import json_item
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    plot: Any = figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,box_zoom,reset",
        active_scroll=None,
        background_fill_alpha=0,  # the page's own ground, light or dark
        border_fill_alpha=0,
        outline_line_color=None,
        match_aspect=True,
    )
    plot.axis.visible = False
    plot.grid.visible = False
    plot.toolbar.logo = None
    classes = [CLASSES.get(kind, "agree") for kind in evidence.kinds]
    for name, colour in COLOURS.items():
        rows = [index for index, each in enumerate(classes) if each == name]
        if not rows:
            continue
        source = ColumnDataSource(
            {
                "x": [float(places[index, 0]) for index in rows],
                "y": [float(places[index, 1]) for index in rows],
                "row": [f"{int(evidence.rows.numbers[index]):,}" for index in rows],
                "cosine": [f"{evidence.cosines[index]:.4f}" for index in rows],
                "why": [plain(evidence.labels[index], _TEXT) for index in rows],
                "text": [plain(evidence.rows.text(index), _TEXT) for index in rows],
            }
        )
        drawn = plot.scatter(
            "x",
            "y",
            source=source,
            marker=MARKERS[name],
            size=7 if name == "agree" else 11,
            line_width=2 if MARKERS[name] == "x" else 1,
            alpha=0.75,
            fill_color=colour,
            line_color=colour,
        )
        # bokeh escapes what "@" names, as long as no format overrides it
        hover = [("row", "@row"), ("cosine", "@cosine"), (CLASS_WORDS[name], "@why"), ("text", "@text")]
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=hover))
    return json_item(plot)
