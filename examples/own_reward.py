"""PPO on a reward function of your own, in half a minute on a laptop.

The policy is a tiny random model over single letters; the function likes texts with many "c" but
not two of them in a row. Watch the score rise while the KL to the reference stays bounded.
"""

import gymnasium as gym
import torch

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import PPO, PPOConfig
from textrl.envs import tiny_model, tiny_tokenizer


def spaced_c(prompts: list[str], completions: list[str]) -> list[float]:
    """Return the share of "c", minus one for each "cc"."""
    return [c.count("c") / 8 - c.count("cc") for c in completions]


def main(iterations: int = 40, seed: int = 0) -> tuple[float, float]:
    """Train and return the mean score before and after."""
    torch.set_num_threads(1)
    venv = gym.make_vec(
        "TextRLHF-v0",
        num_envs=128,
        reference=tiny_model(),
        tokenizer=tiny_tokenizer(),
        reward=spaced_c,
        prompts=["a", "b"],
        kl_coef=0.02,
        max_completion_tokens=8,
        autoreset_mode="Disabled",
    )
    config = PPOConfig(episodes_per_iteration=128, minibatch_size=64, learning_rate=3e-3, seed=seed)
    agent = PPO(tiny_model(), venv, config)
    scores = []
    for iteration in range(iterations):
        numbers = agent.iterate()
        scores.append(numbers["rollout/score"])
        if iteration % 10 == 9:
            print(f"{iteration + 1:3}  score {scores[-1]:.3f}  KL {numbers['rollout/kl']:.2f} nats")
    return scores[0], scores[-1]


if __name__ == "__main__":
    before, after = main()
    print(f"score {before:.3f} before, {after:.3f} after")
