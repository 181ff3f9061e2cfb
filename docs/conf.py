"""The settings of the documentation site: `make docs` builds it into build/docs."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from docstrings import to_rst  # noqa: E402  # the path comes first

import textrl  # noqa: E402  # the path comes first
from textrl.cli.parser import COMMANDS, make_parser  # noqa: E402  # the path comes first

project = "textrl"
author = "the textrl authors"
copyright = author
version = release = textrl.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
root_doc = "index"
language = "en"

html_theme = "furo"
html_title = f"textrl {release}"
html_copy_source = html_show_sourcelink = False
html_static_path = ["site"]
html_css_files = ["site.css"]
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def setup(app):
    """Connect the functions of this file."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", convert_docstring, priority=1)


def commands():
    """Return the help of every command, as it is printed on 80 columns."""
    os.environ["COLUMNS"] = "80"
    parser, _ = make_parser()
    (choices,) = (
        action.choices
        for action in parser._actions
        if hasattr(action, "choices") and action.choices
    )
    parts = []
    for name, (purpose, _) in COMMANDS.items():
        lines = choices[name].format_help().partition("\n\n")[2]
        parts.append(f"## textrl {name}\n\n{purpose.capitalize()}.\n\n```text\n{lines}```\n")
    return "\n".join(parts)


def convert_docstring(app, what, name, item, options, lines):
    """Turn the Markdown of a docstring into reStructuredText."""
    lines[:] = to_rst(lines)
    if what == "attribute":  # else napoleon takes what stands before a colon for a type
        lines.insert(0, "")


COMMANDS_HERE = "<!-- the options of every command -->"
OUTSIDE = re.compile(r"\]\(((?:\.\./)+(?:README|CONTRIBUTING|CHANGELOG)\.md)\)")


def read_page(app, name, source):
    """Put the options of the commands where a page asks for them; link files that are no pages."""
    text = source[0]
    if COMMANDS_HERE in text:
        text = text.replace(COMMANDS_HERE, commands())
    source[0] = OUTSIDE.sub(r"](path:\1)", text)
