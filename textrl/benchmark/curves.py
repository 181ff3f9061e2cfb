"""The plots of a benchmark: score against tokens, and score against the final KL."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")  # no screen is needed
import matplotlib.pyplot as plt
import numpy as np


def draw_benchmark(curves: dict[str, list[np.ndarray]], path: Path) -> None:
    """Draw agents' score against tokens, and against KL at the end.

    A curve is [points 3]: tokens, score, KL. Lines are means over the seeds, bands reach from the
    least to the most.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for place, (agent, seeds) in enumerate(curves.items()):
        points, color = np.stack(seeds), f"C{place % 10}"
        style = ("-", "--", ":")[place // 10 % 3]
        tokens, scores = points[..., 0].mean(0), points[..., 1]
        left.plot(tokens, scores.mean(0), style, color=color, lw=1.2, label=agent)
        left.fill_between(tokens, scores.min(0), scores.max(0), color=color, alpha=0.12, lw=0)
        marker = "os^"[place // 10 % 3]
        right.plot(points[:, -1, 2], points[:, -1, 1], marker, ms=5, color=color, label=agent)
    left.set(xlabel="tokens", ylabel="score on the measured prompts")
    right.set(xlabel="KL to the reference at the end (nats per sequence)", ylabel="score")
    left.set_title("Learning curves: mean over seeds, band from the least to the most", fontsize=9)
    right.set_title("Where each seed ended", fontsize=9)
    for axes in (left, right):
        axes.grid(linewidth=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.savefig(path, dpi=130)
    plt.close(figure)
