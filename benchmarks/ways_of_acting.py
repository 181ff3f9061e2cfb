"""One algorithm, three ways through the environment: the same learning curve.

    python benchmarks/ways_of_acting.py

PPO on two tasks of the optimum suite, valued exactly on its way, a few seeds each:

native   our PPO; the environment takes whole completions (`step_sequence`)
steps    our PPO; the environment is wrapped, so that only `reset` and `step` are left of it
sb3      Stable-Baselines3's PPO, configured as far alike as it can be: it samples token by token,
         its rollouts cut episodes, and it whitens each minibatch by itself

At the end: ways.json, ways.png, and status 1 where the mean curve of "steps" leaves the spread of
the native seeds. SB3's is shown beside them, not judged.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

os.environ["OMP_NUM_THREADS"] = "1"

import cells
import numpy as np
import torch
from cells import AGENTS, AnnealKL, Cell
from gymnasium.vector import VectorWrapper
from small_tasks import enumeration, reference

TASKS = ("dense", "length")
KL_COEF = 0.25
ROUNDING = 0.01
"""Of a regret: sums in another order let a token differ now and then."""
POINTS = np.linspace(0.1, 1.0, 10)
"""Shares of the token budget at which the curves are compared."""


class StepsOnly(VectorWrapper):
    """A wrapper that does nothing, and so hides everything but the Gymnasium interface."""


class Watch(AnnealKL):
    """SB3's curve: tokens, score and KL after every fourth rollout."""

    curve: ClassVar[list[list[float]]] = []
    rollouts: ClassVar[int] = 0

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        if Watch.rollouts % 4 == 0:
            enumerated = enumeration(self._cell.task)
            value = enumerated.value(enumerated.logprobs(self.model.policy.model))
            Watch.curve.append([self.num_timesteps, value.score, value.kl])
        Watch.rollouts += 1


def run(way: str, task: str, seed: int) -> list[float]:
    """Return the regrets of one run at POINTS."""
    make_venv, every = cells.make_venv, cells.CURVE_EVERY
    cell = Cell(agent="sb3_ppo" if way == "sb3" else "ppo", task=task, kl_coef=KL_COEF, seed=seed)
    curve: list[list[float]] = []
    cells.CURVE_EVERY = 4
    if way == "steps":
        cells.make_venv = lambda *args, **kwargs: StepsOnly(make_venv(*args, **kwargs))
    if way == "sb3":
        cells.AnnealKL, Watch.curve, Watch.rollouts = Watch, curve, 0
    try:
        policy = AGENTS[cell.agent](cell, curve)
    finally:
        cells.make_venv, cells.CURVE_EVERY, cells.AnnealKL = make_venv, every, AnnealKL
    enumerated = enumeration(task)
    values = [enumerated.value(enumerated.logprobs(model)) for model in (reference(), policy)]
    tokens = [0, *[row[0] for row in curve], cell.token_budget * 1.05]
    points = [values[0], *[type(values[0])(score=s, kl=kl) for _, s, kl in curve], values[1]]
    regrets = [enumerated.regret(value, KL_COEF) for value in points]
    return np.interp(POINTS * cell.token_budget, tokens, regrets).tolist()


def draw(curves: dict[str, Any], path: Path) -> None:
    """Draw each way's mean and spread, a panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(11, 4.2))
    for axis, task in zip(axes, TASKS, strict=True):
        for place, (way, runs) in enumerate(curves[task].items()):
            regrets, color = np.array(runs), f"C{place}"
            axis.plot(POINTS, regrets.mean(0), color=color, label=way)
            axis.fill_between(POINTS, regrets.min(0), regrets.max(0), color=color, alpha=0.15, lw=0)
        axis.set(yscale="log", title=task, xlabel="share of the token budget", ylabel="regret")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> int:
    """Run what is missing; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ways"))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    curves: dict[str, dict[str, list[list[float]]]] = {}
    failed = False
    for task in TASKS:
        for way in ("native", "steps", "sb3"):
            found = [run(way, task, seed) for seed in range(options.seeds)]
            curves.setdefault(task, {})[way] = found
            native, mean = np.array(curves[task]["native"]), np.mean(found, axis=0)
            inside = (mean >= native.min(0) - ROUNDING) & (mean <= native.max(0) + ROUNDING)
            failed |= way == "steps" and not inside.all()
            apart = float(np.abs(mean - native.mean(0)).max())
            print(
                f"{task} {way}: final regret {100 * mean[-1]:.1f}%, at most {apart:.3f} from the "
                f"native mean, within its spread: {bool(inside.all())}",
                flush=True,
            )
    (options.output_dir / "ways.json").write_text(json.dumps(curves, indent=1))
    draw(curves, options.output_dir / "ways.png")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
