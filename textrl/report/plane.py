"""Score against KL, with the best that could be had if the reference's scores were normal."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from textrl.report.charts import Axes, drawn
from textrl.report.groups import Group, line_of


def plane(groups: Sequence[Group]) -> str:
    """Return score against KL, with the best that could be had if scores were normal."""
    start = _reference_scores(groups)

    def draw(axes: Axes) -> None:
        farthest = 0.1
        for group in groups:
            line, kl = line_of(group, "rollout/score"), line_of(group, "rollout/kl")
            if line is None or kl is None or len(line.y) != len(kl.y):
                continue
            axes.plot(kl.y, line.y, color=group.colour, alpha=0.5, linewidth=1.2)
            axes.plot(kl.y[-1], line.y[-1], "o", color=group.colour)
            farthest = max(farthest, float(kl.y.max()))
        if start is not None:
            mean, spread, _ = start
            x = np.linspace(0, farthest, 100)
            axes.plot(x, mean + spread * np.sqrt(2 * x), "--", color="#888888", linewidth=1)
            for n in (2, 4, 16, 64, 256):
                if best_of_n_kl(n) <= farthest:
                    best = mean + spread * largest_of_normals(n)
                    axes.plot(best_of_n_kl(n), best, "x", color="#888888")
                    axes.annotate(f" {n}", (best_of_n_kl(n), best), fontsize=7)
        axes.set_xlabel("KL to the reference (nats per sequence)")
        axes.set_ylabel("score")

    note = (
        "The line of a run begins at the reference; the dot is its end. Dashed: the highest score "
        "of any policy at that KL if the reference's scores were normal with the mean and spread "
        f"of the first iteration of {html.escape(start[2])}, mean + std &middot; sqrt(2 KL). "
        "Crosses: best of n under the same assumption. A line above the dashed one says that they "
        "are not normal, or that the reward is gamed."
        if start is not None
        else "The dot is the end of a run."
    )
    figure = drawn("score against KL", draw, size=(4.8, 3.1))
    return (
        f"<h3>Reward and KL</h3><p class=quiet>{note}</p><div class='panels large'>{figure}</div>"
    )


def _reference_scores(groups: Sequence[Group]) -> tuple[float, float, str] | None:
    """Return mean and spread of the reference's scores, of a run that began there; its label."""
    for group in groups:
        row: Mapping[str, Any] = group.records[0].rows[0]
        names = ("rollout/score", "rollout/score_std", "rollout/kl")
        score, std, kl = (row.get(name) for name in names)
        known = all(isinstance(number, float) for number in (score, std, kl))
        if known and std and abs(kl or 0.0) < 0.01 and score is not None:
            return float(score), float(std), group.label
    return None


def best_of_n_kl(n: int) -> float:
    """Return the KL of best of n to its base, at most, in nats: log n - (n - 1) / n (2009.01325).

    >>> round(best_of_n_kl(4), 3)
    0.636
    """
    return math.log(n) - (n - 1) / n


def largest_of_normals(n: int) -> float:
    """Return the mean of the largest of n standard normal numbers.

    >>> round(largest_of_normals(2), 4)  # 1 / sqrt(pi)
    0.5642
    """
    x = np.linspace(-8.0, 8.0, 16_001)
    below = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return float((x * n * below ** (n - 1) * density).sum() * (x[1] - x[0]))
