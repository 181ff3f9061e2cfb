"""The sections about a folder of `textrl benchmark`: its agents side by side."""

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textrl.benchmark.table import HEADS, table_cells
from textrl.errors import UserError
from textrl.report.charts import COLOURS, Axes, Line, drawn, panel
from textrl.report.page import hidden, legend, table

RESULTS = "results.json"


def benchmark_sections(folder: Path) -> list[str]:
    """Return the parts of the page about a benchmark.

    Raises:
        UserError: results.json is damaged.
    """
    path = folder / RESULTS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows, config = found["rows"], found["config"]
        whole = _checked(rows)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); run the benchmark again") from error
    agents = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(_agents(whole))}
    task = config.get("task") or "TextRLHF-v0"
    parts = [f"<h2>Benchmark on {html.escape(str(task))}</h2>", _conclusion(whole)]
    parts += [table(HEADS, table_cells(rows)), legend(list(agents.items()))]
    lines = [_line(whole, name, colour, 1) for name, colour in agents.items()]
    away = [_line(whole, name, colour, 2) for name, colour in agents.items()]
    known = [line for line in away if len(line.x)]
    panels = [
        panel("score, mean over the seeds, from the least to the most", lines, x_label="tokens"),
        panel("KL to the reference (nats per sequence)", known, x_label="tokens") if known else "",
        _plane(whole, agents),
    ]
    parts.append(f"<div class='panels large'>{''.join(panels)}</div>")
    return [*parts, hidden("the configuration", json.dumps(config, indent=1))]


def _checked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without an error; ValueError where a curve does not fit the others."""
    whole = [row for row in rows if "error" not in row]
    for row in whole:
        float(row["score"]), float(row["peak_memory_mb"])
        own = [other["curve"] for other in whole if other["agent"] == row["agent"]]
        if {len(curve) for curve in own} != {len(row["curve"])}:
            raise ValueError(f"the curves of {row['agent']} have different lengths")
    return whole


def _agents(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["agent"] for row in rows))


def _conclusion(rows: Sequence[dict[str, Any]]) -> str:
    """Say which agent is best, and whether its seeds lie above those of the next one."""
    means = {name: [row["score"] for row in rows if row["agent"] == name] for name in _agents(rows)}
    ranked = sorted(means, key=lambda name: -float(np.mean(means[name])))
    if len(ranked) < 2:
        return ""
    best, second = ranked[:2]
    if min(len(means[best]), len(means[second])) < 3:
        verdict = "with fewer than three seeds each the order of the two may be chance"
    elif min(means[best]) > max(means[second]):
        verdict = "all its seeds are above those of the next"
    else:
        verdict = "their seeds overlap, so that the order of the two may be chance"
    return (
        f"<p><b>{html.escape(best)}</b> has the highest mean score, {np.mean(means[best]):.3g}; "
        f"{html.escape(second)} follows with {np.mean(means[second]):.3g}; {verdict}.</p>"
    )


def _line(rows: Sequence[dict[str, Any]], name: str, colour: str, column: int) -> Line:
    curves = [row["curve"] for row in rows if row["agent"] == name]
    points = np.array(
        [[[math.nan if p is None else p for p in point] for point in curve] for curve in curves]
    )
    x, y = points[:, :, 0].mean(0), points[:, :, column]
    there = ~np.isnan(y).any(0)
    x, y = x[there], y[:, there]
    return Line(label=name, colour=colour, x=x, y=y.mean(0), low=y.min(0), high=y.max(0))


def _plane(rows: Sequence[dict[str, Any]], agents: dict[str, str]) -> str:
    def draw(axes: Axes) -> None:
        for row in rows:
            if row["kl"] is not None:
                axes.plot(row["kl"], row["score"], "o", color=agents[row["agent"]], alpha=0.7)
        axes.set_xlabel("KL at the end (nats per sequence)")
        axes.set_ylabel("score")

    return drawn("score against KL at the end, a dot a seed", draw)
