"""The style of a report: colours that hold on light and dark ground, and on paper."""

from __future__ import annotations

__all__ = ["CLASS_WORDS", "COLOURS", "MARKERS", "STYLE"]

COLOURS = {
    "agree": "#3f9b6a",
    "stale": "#d1902c",
    "cut": "#8f6bd1",
    "foreign": "#d2504a",
    "moved": "#3b86c8",
    "unexplained": "#8b8b86",
}
"""The colour of each class of rows."""

MARKERS = {
    "agree": "circle",
    "stale": "triangle",
    "cut": "square",
    "foreign": "diamond",
    "moved": "inverted_triangle",
    "unexplained": "x",
}
"""The mark of each class on a map, for readers who cannot distinguish the colours."""

CLASS_WORDS = {
    "agree": "the declared function's vector",
    "stale": "of another text",
    "cut": "of the text's beginning",
    "foreign": "of another function",
    "moved": "of another row's text",
    "unexplained": "no known cause",
}

STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #1d1d1b; --soft: #63635e; --line: #dcdcd6; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #161615; --card: #222220; --ink: #ecece7; --soft: #a8a8a0; --line: #3a3a36; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem 1.25rem; background: var(--page); color: var(--ink);
       font: 15px/1.5 system-ui, sans-serif; }
main, footer { max-width: 60rem; margin: 0 auto; }
section + section { margin-top: 4rem; border-top: 1px solid var(--line); padding-top: 2rem; }
h1 { font-size: 1.4rem; line-height: 1.35; margin: 0 0 .5rem; font-weight: 600; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: .95rem; margin: 1.25rem 0 .5rem; font-weight: 600; overflow-wrap: anywhere; }
h3 span, .legend span, .where span, .query span { color: var(--soft); font-weight: 400;
       font-variant-numeric: tabular-nums; }
.lead { font-size: 1.05rem; margin: 0 0 1.5rem; overflow-wrap: anywhere; }
.verdict { display: inline-block; padding: .05rem .6rem; border-radius: 1rem; color: #fff; background: #6b6b66;
       font-size: 1rem; vertical-align: .1em; }
.sound, .better, .no-difference { background: #2f7d52; }
.stale { background: #96620f; }
.mixed, .other-model, .broken, .worse { background: #b23c36; }
figure { margin: 0 0 1.25rem; }
figcaption { color: var(--soft); margin-bottom: .35rem; }
.bar { display: flex; height: 1.5rem; gap: 2px; border-radius: .3rem; overflow: hidden; }
.bar i { min-width: 3px; }
.legend { list-style: none; margin: .5rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; }
.legend.causes { display: block; }
.legend b { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .45rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.25rem; margin: 1.5rem 0;
     padding: 1rem 1.25rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
.note { color: var(--soft); }
.cards { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
article { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--line);
     border-radius: .4rem; padding: .6rem .9rem; overflow-wrap: anywhere; min-width: 0; break-inside: avoid; }
article p { margin: .2rem 0; }
.where { color: var(--soft); font-size: .85rem; }
.where span, .query span { float: right; margin-left: 1rem; }
.map { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem;
     break-inside: avoid; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.5rem; margin-bottom: .75rem; }
.pair .query { grid-column: 1 / -1; font-weight: 600; }
.pair h4 { margin: .3rem 0; color: var(--soft); font-weight: 400; font-size: .85rem; }
.pair ol { margin: 0; padding-left: 1.2rem; font-size: .9rem; }
.histogram { list-style: none; display: flex; gap: .4rem; height: 10rem; margin: 0; padding: 0; }
.histogram li { flex: 1; display: flex; flex-direction: column; justify-content: flex-end; text-align: center;
     font-size: .8rem; color: var(--soft); font-variant-numeric: tabular-nums; min-width: 0; }
.histogram i { display: block; background: #3b86c8; border-radius: .2rem .2rem 0 0; flex: none; }
.histogram em { font-style: normal; border-top: 1px solid var(--line); }
svg { display: block; width: 100%; max-width: 40rem; }
svg text { fill: var(--soft); font-size: 13px; }
.axis { stroke: var(--soft); stroke-width: 1; }
.band { fill: #3f9b6a; opacity: .25; }
.range { stroke: #3b86c8; stroke-width: 4; }
.point { fill: #3b86c8; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
     .pair { grid-template-columns: 1fr; } }
@media print { body { padding: 0; background: #fff; }
     * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
