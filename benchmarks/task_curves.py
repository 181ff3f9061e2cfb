r"""The curves of several runs of `textrl benchmark` in one figure, a panel a run.

    for task in ProbeConstant ProbePrompt ProbeDelayed ProbeLaterTurn; do
        textrl benchmark --task TextRLHF/$task-v0 --agents ppo,rloo,grpo --kl_coef 0 \
            --learning_rate 2e-3 --total_timesteps 10000 --evaluations 6 --output_dir runs/$task
    done
    textrl benchmark --task TextRLHF/Reviews-v0 --agents ppo,rloo,grpo --learning_rate 3e-4 \
        --total_timesteps 30000 --output_dir runs/Reviews    # needs the models of `textrl demo`
    python benchmarks/task_curves.py runs/Probe* runs/Reviews --output docs/figures/task_curves.png

A line is the mean score over the seeds on the measured prompts, a band reaches from the least to
the most, and the dashed line is the threshold of the task.
"""

import argparse
import json
from pathlib import Path

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np

import textrl  # noqa: F401  # registers the tasks


def draw(folders: list[Path], path: Path) -> None:
    """Draw each run's curves, one colour an agent in all panels."""
    figure, grid = plt.subplots(
        1, len(folders), figsize=(3 * len(folders), 3.2), squeeze=False, layout="constrained"
    )
    for axes, folder in zip(grid[0], folders, strict=True):
        results = json.loads((folder / "results.json").read_text())
        agents = list(dict.fromkeys(row["agent"] for row in results["rows"]))
        for agent in agents:
            seeds = [row["curve"] for row in results["rows"] if row["agent"] == agent]
            points = np.array([[point[:2] for point in seed] for seed in seeds], dtype=float)
            tokens, scores = points[..., 0].mean(0) / 1000, points[..., 1]
            (line,) = axes.plot(tokens, scores.mean(0), linewidth=1.2, label=agent)
            axes.fill_between(
                tokens, scores.min(0), scores.max(0), alpha=0.15, color=line.get_color()
            )
        task = results["config"]["task"]
        threshold = gym.spec(task).reward_threshold
        axes.axhline(threshold, color="#888888", linestyle="--", linewidth=1)
        axes.set(title=task.removeprefix("TextRLHF/"), xlabel="thousand tokens")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("mean score")
    grid[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Draw the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    draw(options.runs, options.output)


if __name__ == "__main__":
    main()
