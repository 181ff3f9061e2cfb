"""The panels of a report: matplotlib's figures as SVG that follows the page's colours."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")  # a backend that needs no screen
import matplotlib.pyplot as plt
from matplotlib.axes import Axes as Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6BBE", "#7F7F7F")
"""Okabe and Ito's, which the colour-blind can tell apart, and two more."""
INK = "#010203"
"""What is drawn in this colour takes the colour of the page's text."""
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "textrl",  # the same figure gives the same bytes
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve with its spread."""

    label: str
    colour: str
    x: np.ndarray
    """Shape [n]."""
    y: np.ndarray
    """Shape [n]."""
    low: np.ndarray | None = None
    """The lower edge of the band, [n]."""
    high: np.ndarray | None = None
    """The upper edge of the band, [n]."""


def panel(title: str, lines: Sequence[Line], *, x_label: str) -> str:
    """Return a figure with a curve for each line."""

    def draw(axes: Axes) -> None:
        for line in lines:
            mark = "o" if len(line.x) == 1 else ""  # a line needs two points
            axes.plot(line.x, line.y, color=line.colour, linewidth=1.6, marker=mark)
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.15, lw=0)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))

    return drawn(title, draw)


def drawn(title: str, draw: Callable[[Axes], None], size: tuple[float, float] = (4.2, 2.7)) -> str:
    """Return a figure with a caption; `draw` gets its axes."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        draw(axes)
        return f"<figure><figcaption>{title}</figcaption>{svg(figure, title)}</figure>"


def svg(figure: Figure, title: str) -> str:
    """Return a figure as inline SVG in the page's colours, and close it."""
    stream = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    text = stream.getvalue().replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    whole = text[text.index("<svg") :]
    return whole.replace("<svg ", f"<svg role='img' aria-label='{title}' ", 1)
