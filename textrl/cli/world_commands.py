"""The functions of `textrl tasks`, `textrl probe` and `textrl play`.

Torch loads only where a model plays or learns. What is shown of a game is in `play.py`.
"""

from collections.abc import Callable

import gymnasium as gym

from textrl.cli.play import run_play
from textrl.cli.world_options import ProbeConfig, TasksConfig
from textrl.task_ids import TASKS


def run_tasks(config: TasksConfig) -> None:
    """Print the task ids."""
    print(
        f"{'id':<29}{'threshold':>9}{'optimum':>9}{'turns':>7}{'tokens: turn':>14}{'prompt':>8}"
        f"{'rest':>6}  task"
    )
    for name, task in TASKS.items():
        optimum = "unknown" if task.optimum is None else f"{task.optimum:g}"
        print(
            f"{name:<29}{gym.spec(name).reward_threshold:>9g}{optimum:>9}{task.turns:>7}"
            f"{task.max_turn_tokens:>14}{task.max_prompt_tokens:>8}{task.max_completion_tokens:>6}"
            f"  {task.purpose}"
        )


def run_probe(config: ProbeConfig) -> None:
    """Train an agent on the ladder of probes; exit with status 1 if it fails."""
    from textrl.benchmark.probe import MEANINGS, climb

    for rung in climb(config.agent):
        print(rung.line(), flush=True)
        if not rung.passed:
            print(f"{config.agent} fails here. Usually this means: {MEANINGS[rung.task]}.")
            raise SystemExit(1)
    print(f"{config.agent} passes all rungs.")


RUN: dict[str, Callable[..., None]] = {
    "tasks": run_tasks,
    "probe": run_probe,
    "play": run_play,
}
