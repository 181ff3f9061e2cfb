"""Stable-Baselines3's PPO on a language model: shared prefixes against the naive way, in one run.

    python benchmarks/sb3_speed.py            speed of a 4M Llama, then both ways of learning

The naive policy reads the whole text again for every token, in rollouts and in updates (SB3's own
buffer hands out single steps). Ours keeps a cache while collecting and reads each episode once in
an update. Speeds alternate, so that each pair shares the machine's mood; the learning curves come
from the built-in task, a few seeds each.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.envs import tiny_model, tiny_prompts, tiny_score, tiny_tokenizer
from textrl.envs.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, SubtractPolicyKL, TextVecEnv
from textrl.loop import keep_freed_memory

TOKENS = 48
ROWS = 32
LEAST_RATIO = 8


class NaivePolicy(CausalLMPolicy):
    """Reads every observation from its first token."""

    def _states(self, obs: Tensor | dict[str, Tensor]) -> Tensor:
        assert isinstance(obs, dict)
        lengths = obs["attention_mask"].sum(1).long()
        hidden = self._lm.hidden(obs["input_ids"].long()[:, : int(lengths.max())])
        return hidden[torch.arange(len(lengths)), lengths - 1]


WAYS = {"naive": (NaivePolicy, DictRolloutBuffer), "shared": (CausalLMPolicy, EpisodeRolloutBuffer)}


def agent(
    way: str, model: PreTrainedModel, seed: int, max_completion_tokens: int, **options
) -> PPO:
    """Return PPO on a language model in one of the two ways."""
    venv = gym.make_vec(
        "TextRLHF-v0",
        num_envs=ROWS,
        reference=model,
        tokenizer=tiny_tokenizer(),
        reward=tiny_score,
        prompts=tiny_prompts(),
        kl_coef=0.02,
        autoreset_mode="SameStep",
        max_completion_tokens=max_completion_tokens,
    )
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
    """Return tokens a second of both ways, alternating, on a Llama of 4.2M parameters."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    agents = {
        way: agent(way, LlamaForCausalLM(config).eval(), 0, TOKENS, n_steps=TOKENS, batch_size=512)
        for way in WAYS
    }
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(pairs):
        for way, one in agents.items():
            began = time.monotonic()
            one.learn(ROWS * TOKENS, callback=SubtractPolicyKL())
            found[way].append(ROWS * TOKENS / (time.monotonic() - began))
            print(f"  {way}: {found[way][-1]:.0f} tokens a second", flush=True)
    return found


def final_scores(way: str, seeds: int) -> list[float]:
    """Return the mean score of each seed's last 200 episodes on the built-in task."""
    finals = []
    for seed in range(seeds):
        scores: list[float] = []

        class Watch(SubtractPolicyKL):
            def _on_step(self, scores=scores) -> bool:
                scores.extend(i["score"] for i in self.locals["infos"] if "score" in i)
                return super()._on_step()

        options = {"n_steps": 24, "batch_size": 192, "learning_rate": 5e-3}
        agent(way, tiny_model(), seed, 6, **options).learn(25_000, callback=Watch())
        finals.append(float(np.mean(scores[-200:])))
    return finals


def main() -> int:
    """Measure both ways and write the numbers; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/sb3_speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    keep_freed_memory()
    rates = speed(options.pairs)
    ratios = [s / n for s, n in zip(rates["shared"], rates["naive"], strict=True)]
    scores = {way: final_scores(way, options.seeds) for way in WAYS}
    result = {"tokens_per_second": rates, "ratios": ratios, "final_scores": scores}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1))
    print(f"shared / naive: {np.median(ratios):.1f}x (median of {len(ratios)} pairs)")
    for way, values in scores.items():
        print(f"{way}: final score {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    alike = min(scores["naive"]) <= np.mean(scores["shared"]) <= max(scores["naive"])
    fast = np.median(ratios) >= LEAST_RATIO
    print(f"at least {LEAST_RATIO}x: {fast}; within the naive way's spread: {alike}")
    return 0 if fast and alike else 1


if __name__ == "__main__":
    sys.exit(main())
