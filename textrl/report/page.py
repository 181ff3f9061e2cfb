"""The frame of a page and its parts: one file, without scripts, light and dark, from 400 px on."""

import html
from collections.abc import Sequence

STYLE = """
:root{--text:#222;--quiet:#5f6368;--back:#fff;--line:#d5d8dc;--soft:#f3f4f6;--good:#0a7d3c;
--bad:#b3261e}
@media (prefers-color-scheme:dark){:root{--text:#e3e3e3;--quiet:#a0a4a8;--back:#161719;
--line:#3c4043;--soft:#222427;--good:#6dd58c;--bad:#f2b8b5}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back)}
body{max-width:1280px;margin:1.5em auto;padding:0 1em}
h1{font-size:1.5em;overflow-wrap:anywhere}
h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid var(--line)}
h3{font-size:1em;margin:1.2em 0 .3em;overflow-wrap:anywhere}
p,li,summary,figcaption{overflow-wrap:anywhere}p{max-width:75ch}.quiet{color:var(--quiet);font-size:.9em}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:1em}
.panels.large{grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr))}
figure{margin:0}figcaption{font-size:.9em;color:var(--quiet)}
svg{width:100%;height:auto;color:var(--text)}
.table{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25em .7em;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
td:first-child,th:first-child{text-align:left}
.words td,.words th{text-align:left;overflow-wrap:anywhere}
.legend{display:flex;flex-wrap:wrap;gap:.2em 1.2em;margin:.6em 0;padding:0;list-style:none}
.legend span{display:inline-block;width:1.4em;height:.25em;vertical-align:middle;
margin-right:.4em}
.finding{border-left:4px solid var(--bad);padding:.1em .8em;margin:.6em 0;background:var(--soft)}
.healthy{border-left:4px solid var(--good);padding:.1em .8em;margin:.6em 0;
background:var(--soft)}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:1em;
border-top:1px solid var(--line);padding:.6em 0}
.sides.four{grid-template-columns:repeat(auto-fit,minmax(min(100%,240px),1fr))}
span.t{border-bottom:3px solid transparent;white-space:pre-wrap}
.text{white-space:pre-wrap;overflow-wrap:anywhere}.prompt{font-weight:600}
.tokens span{border-radius:2px}
details pre{background:var(--soft);padding:1em;overflow:auto;font-size:.85em}
@media (max-width:600px){td,th{padding:.25em .4em;font-size:.85em}}
"""
"""Colours are variables, so that one rule makes the dark page; figures take the text's colour."""


def page(title: str, body: Sequence[str]) -> str:
    """Return a whole page."""
    return "\n".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            "<meta name=viewport content='width=device-width,initial-scale=1'>",
            "<meta name=color-scheme content='light dark'>",
            f"<title>{html.escape(title)}</title><style>{STYLE}</style>",
            *body,
            "</html>",
        ]
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Return a table of texts, which scrolls by itself where the screen is narrow."""
    top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div class=table><table class='{kind}'><tr>{top}</tr>{body}</table></div>"


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Return what the colours of all panels mean: (label, colour) pairs."""
    items = "".join(
        f"<li><span style='background:{colour}'></span>{html.escape(label)}</li>"
        for label, colour in entries
    )
    return f"<ul class=legend>{items}</ul>"


def hidden(summary: str, text: str) -> str:
    """Return a text that is shown when asked for."""
    inside = f"<pre>{html.escape(text)}</pre>"
    return f"<details><summary>{html.escape(summary)}</summary>{inside}</details>"
