"""The KL sampled in the reward against the exact KL in the loss: PPO, several seeds, two tasks.

    python benchmarks/exact_kl.py                        the suite whose optimum is known
    python benchmarks/exact_kl.py --base runs/demo-tiny  the reviews too, on the demo's models

Prints, for every task and kl_coef, the regret (or score and KL) of each seed under both, and the
seconds. docs/adr/0002 draws the conclusion.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from cells import Cell, enumeration, ppo
from review_setup import ReviewSetup
from small_tasks import TASKS

from textrl.agents import PPO

WAYS = ("sampled", "exact")
KL_COEFS = (0.1, 0.5, 1.0)
REVIEW_TOKENS = 60_000


def regret(task: str, kl_coef: float, seed: int, way: str) -> float:
    """Train PPO on a task of the suite and return its exact regret."""
    cell = Cell(agent="ppo", task=task, kl_coef=kl_coef, seed=seed)
    enumerated = enumeration(task)
    logprobs = enumerated.logprobs(ppo(cell, [], kl_loss=way))
    return enumerated.regret(enumerated.value(logprobs), kl_coef)


def on_the_suite(seeds: int) -> None:
    """Print the regrets of both ways, paired by seed."""
    for task in TASKS:
        for kl_coef in KL_COEFS:
            line = f"{task:8} kl_coef {kl_coef:<4}"
            for way in WAYS:
                began = time.process_time()
                values = [regret(task, kl_coef, seed, way) for seed in range(seeds)]
                seconds = (time.process_time() - began) / seeds
                shown = " ".join(f"{100 * value:.1f}" for value in values)
                median = 100 * statistics.median(values)
                line += f"  {way} {median:.1f}% ({shown}) {seconds:.1f} s"
            print(line, flush=True)


def on_the_reviews(base: Path, seeds: int, threads: int) -> None:
    """Print score and KL on held-out prompts of the demo's PPO under both."""
    setup = ReviewSetup(base, threads)
    for way in WAYS:
        for seed in range(seeds):
            config = replace(setup.job.preset.ppo, kl_loss=way, seed=seed)
            venv = setup.environment(config.episodes_per_iteration, group_size=4)
            agent = PPO(setup.new_policy(), venv, config)
            began = time.process_time()
            agent.learn(REVIEW_TOKENS)
            seconds = time.process_time() - began
            point = setup.measure(agent.policy, agent.env_steps)
            score, kl = statistics.fmean(point.score), statistics.fmean(point.kl)
            print(f"reviews {way} seed {seed}: score {score:.3f} at KL {kl:.2f}, {seconds:.0f} s")


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="a folder of the demo: also on the reviews")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    on_the_suite(given.seeds)
    if given.base is not None:
        on_the_reviews(given.base, min(3, given.seeds), given.threads)


if __name__ == "__main__":
    main()
