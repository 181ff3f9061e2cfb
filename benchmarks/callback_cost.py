"""What callbacks cost: an evaluation on held-out prompts every few iterations, as a share of a run.

    python benchmarks/callback_cost.py [--iterations 20] [--every 10] [--prompts 64]

PPO trains a Llama of 4M parameters over characters, 256 episodes of 24 tokens an iteration, with
SB3's callbacks told of every step and a `HeldoutEvaluation` of 64 prompts. The CPU seconds inside
the callbacks are compared with those of the whole run.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from turns_speed import model

import textrl  # noqa: F401  # registers the environments
from textrl.agents import PPO, HeldoutEvaluation, PPOConfig
from textrl.agents.callbacks import Callbacks
from textrl.envs import tiny_character_tokenizer


def environment(rows: int) -> Any:
    """Return the environment of a length that people use in first tries."""
    return gym.make_vec(
        "TextRLHF-v0",
        num_envs=rows,
        reference=model(0),
        tokenizer=tiny_character_tokenizer(),
        prompts=[f"Prompt number {n}" for n in range(64)],
        reward=lambda prompts, completions: [float(len(set(text))) for text in completions],
        max_completion_tokens=24,
        max_prompt_tokens=32,
        banned_token_ids=[2],
        autoreset_mode="Disabled",
    )


class Watch:
    """Adds up the CPU seconds inside some functions."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.seconds: dict[str, float] = {}

    def over(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, whose time is added up."""

        def timed(*arguments: Any, **settings: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments, **settings)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began

        return timed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    watch = Watch()
    for name in ("tell", "begin_rollout", "end_rollout", "end"):
        setattr(Callbacks, name, watch.over(name, getattr(Callbacks, name)))
    agent = PPO(model(0), environment(64), PPOConfig(episodes_per_iteration=256))
    heldout = HeldoutEvaluation(environment(options.prompts), every=options.every)
    tokens = options.iterations * 256 * 24
    began = time.process_time()
    agent.learn(tokens, heldout)
    whole = time.process_time() - began
    shares = {name: seconds / whole for name, seconds in watch.seconds.items()}
    evaluations = 2 + (options.iterations - 1) // options.every
    print(
        json.dumps(
            {
                "iterations": agent.iteration,
                "evaluations": evaluations,
                "cpu_seconds": whole,
                "share_of_telling_every_step": shares["tell"],
                "share_of_evaluations": shares["begin_rollout"] + shares["end"],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
