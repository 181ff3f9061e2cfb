"""Stable-Baselines3's PPO on a language model: shared prefixes against the naive way, in one run.

    python benchmarks/sb3_speed.py                        a 4M Llama's speed, both ways of learning
    python benchmarks/sb3_speed.py --base runs/demo-tiny  learning on the demo's reviews too

The naive policy reads the whole text again for every token, in rollouts and in updates (SB3's own
buffer hands out single steps). Ours keeps a cache while collecting and reads each episode once in
an update. Speeds alternate, so that each pair shares the machine's mood; the final scores come from
the built-in task of rising letters and from the reviews, a few seeds each.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from review_setup import ReviewSetup
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from throughput_model import make_model
from torch import Tensor
from transformers import PreTrainedModel

from textrl.envs import (
    TextRLHFVectorEnv,
    tiny_model,
    tiny_prompts,
    tiny_score,
    tiny_tokenizer,
)
from textrl.envs.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, SubtractPolicyKL, TextVecEnv
from textrl.memory import keep_freed_memory

TOKENS = 48
ROWS = 32
LEAST_RATIO = 8
REVIEW_TOKENS = 15_000


class NaivePolicy(CausalLMPolicy):
    """Reads every observation from its first token."""

    def _states(self, obs: Tensor | dict[str, Tensor]) -> Tensor:
        assert isinstance(obs, dict)
        lengths = obs["attention_mask"].sum(1).long()
        hidden = self._lm.hidden(obs["input_ids"].long()[:, : int(lengths.max())])
        return hidden[torch.arange(len(lengths)), lengths - 1]


WAYS = {"naive": (NaivePolicy, DictRolloutBuffer), "shared": (CausalLMPolicy, EpisodeRolloutBuffer)}


def letters(model: PreTrainedModel, max_completion_tokens: int) -> TextRLHFVectorEnv:
    """Return the built-in task with this reference."""
    return TextRLHFVectorEnv(
        num_envs=ROWS,
        reference=model,
        tokenizer=tiny_tokenizer(),
        reward=tiny_score,
        prompts=tiny_prompts(),
        kl_coef=0.02,
        autoreset_mode="SameStep",
        max_completion_tokens=max_completion_tokens,
    )


def agent(way: str, model: PreTrainedModel, venv: TextRLHFVectorEnv, seed: int, **options) -> PPO:
    """Return SB3's PPO on a language model in one of the two ways."""
    policy, buffer = WAYS[way]
    return PPO(
        policy,
        TextVecEnv(venv),
        policy_kwargs={"model": model},
        rollout_buffer_class=buffer,
        gamma=1.0,
        gae_lambda=0.95,
        n_epochs=2,
        seed=seed,
        device="cpu",
        **options,
    )


def speed(pairs: int) -> dict[str, list[float]]:
    """Return tokens per second of both ways, alternating, on a Llama of 4.2M parameters."""
    agents = {}
    for way in WAYS:
        model = make_model("4m")
        sizes = {"n_steps": TOKENS, "batch_size": 512}
        agents[way] = agent(way, model, letters(model, TOKENS), 0, **sizes)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(pairs):
        for way, one in agents.items():
            began = time.monotonic()
            one.learn(ROWS * TOKENS, callback=SubtractPolicyKL())
            found[way].append(ROWS * TOKENS / (time.monotonic() - began))
            print(f"  {way}: {found[way][-1]:.0f} tokens per second", flush=True)
    return found


class Scores(SubtractPolicyKL):
    """Keeps the score of every episode."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def _on_step(self) -> bool:
        self.found.extend(info["score"] for info in self.locals["infos"] if "score" in info)
        return super()._on_step()


def learn_letters(way: str, seed: int) -> list[float]:
    """Return the scores of all episodes on the built-in task."""
    scores, model = Scores(), tiny_model()
    options = {"n_steps": 24, "batch_size": 192, "learning_rate": 5e-3}
    agent(way, model, letters(model, 6), seed, **options).learn(25_000, callback=scores)
    return scores.found


def learn_reviews(way: str, seed: int, setup: ReviewSetup) -> list[float]:
    """Return the scores of all episodes on the demo's reviews."""
    scores, preset = Scores(), setup.job.preset
    steps = preset.max_completion_tokens
    venv = TextRLHFVectorEnv(
        num_envs=ROWS,
        reference=setup.reference,
        tokenizer=setup.tokenizer,
        reward=setup.score,
        prompts=setup.job.prompts(setup.job.train),
        kl_coef=preset.kl_coef,
        max_prompt_tokens=preset.max_prompt_tokens,
        max_completion_tokens=steps,
        autoreset_mode="SameStep",
    )
    options = {"n_steps": 2 * steps, "batch_size": ROWS * steps // 2, "learning_rate": 3e-4}
    agent(way, setup.new_policy(), venv, seed, **options).learn(REVIEW_TOKENS, callback=scores)
    return scores.found


def compared(learn: Callable[[str, int], list[float]], seeds: int) -> dict[str, list[list[float]]]:
    """Return of both ways each seed's mean score of the first and of the last 200 episodes."""
    found: dict[str, list[list[float]]] = {}
    for way in WAYS:
        runs = [learn(way, seed) for seed in range(seeds)]
        found[way] = [[float(np.mean(run[:200])), float(np.mean(run[-200:]))] for run in runs]
        finals = [last for _, last in found[way]]
        print(
            f"  {way}: {np.mean(finals):.3f} ({min(finals):.3f} to {max(finals):.3f})", flush=True
        )
    return found


def alike(found: dict[str, list[list[float]]]) -> bool:
    """Return whether both ways learned, and end no further apart than one way's seeds."""
    last = {way: [end for _, end in runs] for way, runs in found.items()}
    spread = max(max(ends) - min(ends) for ends in last.values())
    learned = all(np.mean(runs, axis=0)[1] > np.mean(runs, axis=0)[0] for runs in found.values())
    return learned and abs(np.mean(last["naive"]) - np.mean(last["shared"])) <= spread


def main() -> int:
    """Measure both ways and write the numbers; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--review_seeds", type=int, default=2)
    parser.add_argument("--base", type=Path, help="a run folder of the demo; adds its reviews")
    parser.add_argument("--output", type=Path, default=Path("runs/sb3_speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    keep_freed_memory()
    rates = speed(options.pairs)
    ratios = [s / n for s, n in zip(rates["shared"], rates["naive"], strict=True)]
    learned = {"letters": compared(learn_letters, options.seeds)}
    if options.base is not None:
        setup = ReviewSetup(options.base, torch.get_num_threads())
        learned["reviews"] = compared(partial(learn_reviews, setup=setup), options.review_seeds)
    result = {"tokens_per_second": rates, "ratios": ratios, "first_and_last_scores": learned}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1))
    fast = float(np.median(ratios)) >= LEAST_RATIO
    print(f"shared / naive: {np.median(ratios):.1f}x (median of {len(ratios)} pairs)")
    print(f"at least {LEAST_RATIO}x: {fast}")
    for task, found in learned.items():
        print(f"{task}: both learn, and end within the seeds' spread: {alike(found)}")
    return 0 if fast and all(map(alike, learned.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
