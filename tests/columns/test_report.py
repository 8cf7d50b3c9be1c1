"""A report is one page that loads nothing, runs only its own scripts, and can be read light, dark and on paper."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import embedreg
from embedreg.columns import audit, compare, html_report, report_map, write_report
from embedreg.columns.report_style import COLOURS
from embedreg.errors import InputError
from tests.columns.browser import Browser
from tests.columns.made import column, docstrings

HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"><b>text\u2028{{x}}"


@pytest.fixture(scope="module")
def audited() -> Any:
    """An audit of rows of two functions, of which one text and the column's name are hostile."""
    a, b = (embedreg.get("hashing").create(dim=64, seed=seed) for seed in (0, 1))
    texts = [*(f"{row} {HOSTILE}" for row in range(30)), *docstrings(170, words=60)]
    matrix = embedreg.embed_column(a, texts).matrix.copy()
    matrix[:30] = embedreg.embed_column(b, texts[:30]).matrix
    matrix[30:40] = np.random.default_rng(0).normal(size=(10, 64))
    table = column(texts, matrix, a)
    entry = json.loads(table.schema.metadata[b"embedding_functions"])[0] | {"vector_column": "<i>vector"}
    table = table.rename_columns(["text", "<i>vector"])
    [found] = audit(
        table.replace_schema_metadata({"embedding_functions": json.dumps([entry])}), sample=200, candidates=[b]
    )
    return found


@pytest.fixture(scope="module")
def page(audited: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of that audit, without UMAP, which takes twenty seconds."""
    path = tmp_path_factory.mktemp("report") / "audit.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_map, "neighbourhood", lambda vectors: None)
        write_report(path, audited)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(tmp_path_factory.mktemp("profile"))


def test_a_page_loads_nothing_and_no_text_of_the_data_is_markup(page: Path, audited: Any) -> None:
    """Every script carries the page's nonce, no address is named outside bokeh's script, and the texts are escaped."""
    text = page.read_text("utf-8")
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.S)
    [nonce] = {re.fullmatch(r' nonce="([\w-]{22})"', attributes)[1] for attributes, _ in scripts}  # type: ignore[index]
    assert f"script-src 'nonce-{nonce}'" in text
    rest = re.sub(r"<script[^>]*>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"<[a-z][^<>]*\s(src|srcset|href|on\w+)\s*=", rest, re.I)
    assert not re.search(r"url\(|@import|<i>vector|<b>text|<img", rest)
    assert "&lt;img src=x onerror=" in rest
    assert "&lt;i&gt;vector" in rest
    assert html_report(audited) != html_report(audited)  # another nonce each time
    assert len(text) < 2_000_000


def test_a_browser_shows_the_page_light_and_dark_without_an_error(page: Path, browser: Browser, tmp_path: Path) -> None:
    """The map is drawn, hostile texts run nothing, each class has its colour on the screen, and the ground follows."""
    shown, said = browser.run(page, "--dump-dom")
    assert not said, said
    assert 'data-drawn="1"' in shown
    assert "<title>Audit of &lt;i&gt;vector</title>" in shown
    grounds = {}
    for dark in (False, True):
        image = tmp_path / f"{dark}.png"
        browser.screenshot(page, image, dark=dark)
        pixels = Image.open(image).convert("RGB")
        counts = {colour: count for count, colour in pixels.getcolors(1 << 24)}  # type: ignore[union-attr]
        grounds[dark] = pixels.getpixel((2, 2))
        for name in ("agree", "foreign", "unexplained"):
            colour = tuple(int(COLOURS[name][place : place + 2], 16) for place in (1, 3, 5))
            assert counts.get(colour, 0) > 50, name
        drawn = np.asarray(pixels.crop((50, 700, 950, 1300)))  # the map lies there
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20
    assert grounds == {False: (246, 246, 244), True: (22, 22, 21)}


def test_a_hover_on_the_map_shows_a_hostile_text_as_text(page: Path, browser: Browser, tmp_path: Path) -> None:
    """The pointer is moved over every mark; the tooltips hold the texts, and none of their markup."""
    own = page.read_text("utf-8")
    nonce = re.search(r'nonce="([\w-]+)"', own)[1]  # type: ignore[index]
    script = """
    const seen = new Set();
    const roots = (node, found = []) => {
      for (const each of node.querySelectorAll("*")) if (each.shadowRoot) {
        found.push(each.shadowRoot); roots(each.shadowRoot, found);
      }
      return found;
    };
    const wait = () => new Promise(done => setTimeout(done, 0));
    setTimeout(async () => {
      const target = roots(document).map(root => root.querySelector(".bk-events")).find(Boolean);
      const box = target.getBoundingClientRect();
      let bad = 0;
      for (let x = 4; x < box.width; x += 9) for (let y = 4; y < box.height; y += 9) {
        const at = {clientX: box.left + x, clientY: box.top + y, bubbles: true, isPrimary: true, pointerType: "mouse"};
        target.dispatchEvent(new PointerEvent("pointermove", at));
        if (x % 3 === 0) await wait();
        for (const root of roots(document)) {
          const text = root.textContent;
          if (text.includes("onerror")) { seen.add("hostile"); bad += root.querySelectorAll("img, b, script").length; }
          else if (text.includes("cosine")) seen.add("plain");
        }
      }
      document.body.dataset.hover = [...seen].sort().join(" ") + " " + bad;
    }, 500);
    """
    changed = tmp_path / "hover.html"
    changed.write_text(own.replace("</body>", f'<script nonce="{nonce}">{script}</script></body>'), "utf-8")
    shown, said = browser.run(changed, "--dump-dom", "--window-size=1000,1600")
    assert not said, said
    assert 'data-hover="hostile plain 0"' in shown, re.findall("data-hover=[^>]*", shown)
    assert "<title>run" not in shown


def test_a_comparison_is_a_page_without_scripts(browser: Browser, tmp_path: Path) -> None:
    """The interval, the histogram and the queries that change most are drawn in plain HTML."""
    a, b = (embedreg.get("hashing").create(dim=dim) for dim in (128, 8))
    texts = [HOSTILE, *docstrings(399, words=60)]
    table = column(texts, embedreg.embed_column(a, texts).matrix, a)
    found = compare(table, "vector", b, pairs=[(text[:40], [text]) for text in texts[:120]])
    write_report(tmp_path / "compare.html", found)
    text = (tmp_path / "compare.html").read_text("utf-8")
    assert "<script nonce" not in text
    assert "<img" not in text
    browser.screenshot(tmp_path / "compare.html", tmp_path / "compare.png", height=1200)
    pixels = Image.open(tmp_path / "compare.png").convert("RGB")
    assert len(pixels.getcolors(1 << 24)) > 50  # type: ignore[arg-type]


def test_without_bokeh_the_page_says_what_is_missing(audited: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is whole but for the map; nothing to report is an error."""
    monkeypatch.setattr(report_map, "importable", lambda name: False)
    text = html_report([audited, audited])
    assert text.count("pip install &#x27;embedreg[report]&#x27;") + text.count("pip install 'embedreg[report]'") == 2
    assert "<script nonce" not in text
    with pytest.raises(InputError, match="nothing to report"):
        html_report([])
