r"""Docstrings are written in Markdown and Google's style; this turns the Markdown for Sphinx.

>>> to_rst(["Return `x`.", "", "    y = a*b", "", "## End", "All |z|."])
['Return ``x``.', '', '::', '', '    y = a*b', '', '', '', '**End**', '', 'All \\|z\\|.']
>>> to_rst(["| a | b |", "|---|---|", "| `c` | d |"])[:5]
['', '.. list-table::', '   :header-rows: 1', '', '   * - a']
"""

import re
from itertools import groupby

SECTION = re.compile(r"^\w[\w ]*:$")
"""Such as "Args:"; what is indented below is no formula."""


def to_rst(lines: list[str]) -> list[str]:
    """Return the lines of a docstring as reStructuredText: code, headings, tables and formulas."""
    kinds = list(kinds_of(lines))
    shown: list[str] = []
    for kind, group in groupby(zip(kinds, lines, strict=True), key=lambda pair: pair[0]):
        part = [line for _, line in group]
        if kind == "table":
            shown += ["", *table(part), ""]
        elif kind == "heading":
            shown += ["", *(f"**{line.strip('# ')}**" for line in part), ""]
        elif kind == "formula":
            shown += ["::", "", *part, ""]
        elif kind == "text":
            shown += inline("\n".join(part)).split("\n")
        else:
            shown += part
    return shown


def kinds_of(lines: list[str]):
    """Yield what each line is: text, blank, example, table, heading or formula."""
    section, before, kind = False, "", "blank"
    for line in lines:
        section = section or bool(SECTION.match(line))
        if not line.strip():
            kind = "blank"
        elif line.lstrip().startswith(">>>") or kind == "example":
            kind = "example"
        elif line.startswith("|"):
            kind = "table"
        elif line.startswith("## "):
            kind = "heading"
        elif line.startswith("    ") and not section and before in ("blank", "heading", "formula"):
            kind = "formula"
        else:
            kind = "text"
        before = kind
        yield kind


def inline(text: str) -> str:
    """Return a paragraph whose code is in double backticks, and the rest no markup."""
    parts = re.split(r"(?<!`)`([^`]+)`(?!`)", text)  # text, code, text, ...
    plain = [re.sub(r"\||\*(?=[^\s*:])|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    code = [f"``{part}``" for part in parts[1::2]]
    return "".join(a + b for a, b in zip(plain, [*code, ""], strict=True))


def table(rows: list[str]) -> list[str]:
    """Return a table of Markdown as a list-table."""
    shown = [".. list-table::", "   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        cells = [inline(cell.strip()) for cell in row.strip().strip("|").split(" | ")]
        shown += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(cells)]
    return shown
