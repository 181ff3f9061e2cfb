"""The figures of the optimum suite: every seed's regret, every policy under the frontier."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from small_tasks import TASKS, enumeration

MARKS = "osD^v"
FAMILIES = {
    "PPO": ("ppo", "ppo_separate", "ppo_reward_model"),
    "RLOO, GRPO, REINFORCE": ("rloo", "grpo", "dr_grpo", "reinforce"),
    "agents of SB3": ("sb3_ppo", "sb3_a2c"),
    "online DPO": ("online_dpo",),
    "offline (DPO and its kin)": (
        *("dpo", "ipo", "dpo_one_label", "dpo_flipped", "cdpo_flipped", "robust_flipped"),
    ),
}
"""The agents that have one mark in the figure of the frontier."""


def draw_regret(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw the regrets, a panel a task, a row an agent: the median seed, with a line to the worst.

    An agent of a task has one point for each kl_coef that was run, and a tick for its bar.
    """
    entries = [e for e in entries if not e["agent"].startswith("best_of_")]
    if not entries:
        return
    agents = list(dict.fromkeys(e["agent"] for e in entries))
    tasks = list(dict.fromkeys(e["task"] for e in entries))
    kl_coefs = sorted({e["kl_coef"] for e in entries})
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(kl_coefs)))
    figure, grid = plt.subplots(
        *(1, len(tasks)),
        figsize=(1.6 + 2.7 * len(tasks), 1.2 + 0.34 * len(agents)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, task in zip(grid[0], tasks, strict=True):
        for e in (e for e in entries if e["task"] == task):
            number = kl_coefs.index(e["kl_coef"])
            row = agents.index(e["agent"]) + 0.14 * (number - (len(kl_coefs) - 1) / 2)
            median, worst = (max(e["regret"][name], 1e-4) for name in ("median", "worst"))
            axes.plot([median, worst], [row, row], color=colours[number], linewidth=1)
            axes.plot(median, row, "o", color=colours[number], markersize=3.5)
            if e["bar"] is not None:
                axes.plot(e["bar"], row, "|", color="black", markersize=5)
        axes.set(xscale="log", title=task, xlabel="regret")
        axes.axvline(1.0, color="#888888", linewidth=0.6, linestyle=":")
        axes.grid(axis="x", linewidth=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set(yticks=range(len(agents)), yticklabels=[words_of(agent) for agent in agents])
    grid[0, 0].invert_yaxis()
    handles = [plt.Line2D([], [], color=c, marker="o", markersize=3.5) for c in colours]
    labels = [f"kl_coef {kl_coef:g}" for kl_coef in kl_coefs]
    handles.append(plt.Line2D([], [], color="black", marker="|", linestyle=""))
    figure.legend(handles, [*labels, "bar"], loc="outside lower center", ncols=len(labels) + 1)
    figure.suptitle(
        "Regret: 0 is the optimum, 1 the reference. Dot: median seed; line: to the worst"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def words_of(agent: str) -> str:
    """Return the name of an agent of the suite in words.

    >>> words_of("ppo_reward_model")
    'PPO, critic from the reward model'
    """
    known = {
        "ppo": "PPO",
        "ppo_separate": "PPO, critic of its own",
        "ppo_reward_model": "PPO, critic from the reward model",
        "dr_grpo": "Dr.GRPO",
        "reinforce": "REINFORCE",
        "online_dpo": "online DPO",
        "sb3_ppo": "PPO of SB3",
        "sb3_a2c": "A2C of SB3",
        "dpo_one_label": "DPO, one label a pair",
        "dpo_flipped": "DPO, labels flipped",
        "cdpo_flipped": "cDPO, labels flipped",
        "robust_flipped": "robust DPO, labels flipped",
    }
    return known.get(agent, agent.upper())


def draw_frontier(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw the exact frontier of each task, the trained policies (median seed) and best-of-n."""
    tasks = [t for t in TASKS if any(e["task"] == t for e in entries)]
    if not tasks:  # those of several turns have no frontier
        return
    figure, axes = plt.subplots(1, len(tasks), figsize=(1 + 3.6 * len(tasks), 4.4), squeeze=False)
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
        for place, (family, names) in enumerate(FAMILIES.items()):
            mine = [e for e in entries if e["task"] == task and e["agent"] in names]
            kl = [e["kl"]["median"] for e in mine]
            score = [e["score"]["median"] for e in mine]
            axis.plot(kl, score, MARKS[place], markersize=5, alpha=0.6, label=family)
        axis.set_title(task, fontsize=9)
        axis.set_xlabel("KL to the reference, nats per sequence")
    axes[0, 0].set_ylabel("score")
    axes[0, -1].legend(fontsize=6, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
