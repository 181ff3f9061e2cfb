"""The figures of the optimum suite: every seed's regret, every policy under the frontier."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from small_tasks import TASKS, enumeration

MARKS = "osD^v<>PX*dph"


def draw_regret(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw each seed's regret, a panel a task and kl_coef, agents side by side."""
    entries = [e for e in entries if not e["agent"].startswith("best_of_")]
    if not entries:
        return
    agents = list(dict.fromkeys(e["agent"] for e in entries))
    tasks = list(dict.fromkeys(e["task"] for e in entries))
    kl_coefs = sorted({e["kl_coef"] for e in entries})
    figure, axes = plt.subplots(
        len(tasks),
        len(kl_coefs),
        figsize=(1 + 2.6 * len(kl_coefs), 1.4 + 2.1 * len(tasks)),
        sharey=True,
        squeeze=False,
    )
    for row, task in enumerate(tasks):
        for column, kl_coef in enumerate(kl_coefs):
            axis = axes[row, column]
            for place, agent in enumerate(agents):
                for e in entries:
                    if (e["agent"], e["task"], e["kl_coef"]) == (agent, task, kl_coef):
                        regrets = np.clip(e["regret"]["all"], 1e-4, None)
                        spread = np.linspace(-0.25, 0.25, len(regrets)) if len(regrets) > 1 else [0]
                        color = f"C{place % 10}"
                        axis.plot(place + np.array(spread), regrets, ".", ms=4, color=color)
                        if e["bar"] is not None:
                            axis.plot([place - 0.4, place + 0.4], [e["bar"]] * 2, "k-", lw=1)
            axis.axhline(1.0, color="grey", lw=0.6, ls=":")
            axis.set_yscale("log")
            axis.set_xlim(-0.6, len(agents) - 0.4)
            axis.set_title(f"{task}, kl_coef {kl_coef}", fontsize=8)
            axis.grid(axis="y", lw=0.3)
            axis.set_xticks(range(len(agents)))
            labels = agents if row == len(tasks) - 1 else [""] * len(agents)
            axis.set_xticklabels(labels, rotation=90, fontsize=6)
        axes[row, 0].set_ylabel("regret")
    figure.suptitle("Regret of every seed (0 the optimum, 1 the reference); black: the bar")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_frontier(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw the exact frontier of each task, the trained policies (median seed) and best-of-n."""
    tasks = [t for t in TASKS if any(e["task"] == t for e in entries)]
    if not tasks:  # those of several turns have no frontier
        return
    figure, axes = plt.subplots(1, len(tasks), figsize=(1 + 3.6 * len(tasks), 4.4), squeeze=False)
    agents = [a for a in dict.fromkeys(e["agent"] for e in entries) if not a.startswith("best_of_")]
    for axis, task in zip(axes[0], tasks, strict=True):
        enumerated = enumeration(task)
        curve = [enumerated.value(enumerated.optimum(k)) for k in np.geomspace(0.02, 30, 80)]
        axis.plot([v.kl for v in curve], [v.score for v in curve], "k-", lw=1, label="optimum")
        best_of = [e for e in entries if e["task"] == task and e["agent"].startswith("best_of_")]
        if best_of:
            scores = [e["score"]["median"] for e in best_of]
            kls, bounds = [e["kl"]["median"] for e in best_of], [e["kl_bound"] for e in best_of]
            axis.plot(kls, scores, "k+-", lw=0.5, label="best of n")
            axis.plot(bounds, scores, "kx:", lw=0.5, label="its KL bound")
        for place, agent in enumerate(agents):
            mine = [e for e in entries if e["task"] == task and e["agent"] == agent]
            axis.plot(
                [e["kl"]["median"] for e in mine],
                [e["score"]["median"] for e in mine],
                MARKS[place % len(MARKS)],
                ms=4,
                mfc="none",
                color=f"C{place % 10}",
                label=agent,
            )
        axis.set_title(task, fontsize=9)
        axis.set_xlabel("KL to the reference, nats per sequence")
    axes[0, 0].set_ylabel("score")
    axes[0, -1].legend(fontsize=6, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
