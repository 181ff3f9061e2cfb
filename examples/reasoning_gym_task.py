"""Questions and scores of reasoning-gym as a task: a model over characters learns to count letters.

Needs `pip install -e '.[reasoning]'`. A data set of reasoning-gym is questions with a scorer; here
it becomes prompts with a column, and a reward function that gets that column back. The policy
starts as random weights, so it learns what there is to learn without reading: a digit and then the
end, and the likeliest digit.
"""

from collections.abc import Callable

import gymnasium as gym
import reasoning_gym
import torch

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import PPO, PPOConfig
from textrl.envs import tiny_model, tiny_tokenizer

Scorer = Callable[[list[str], list[str], list[int]], list[float]]


def task(name: str, size: int, **options) -> tuple[list[dict[str, str | int]], Scorer]:
    """Return the prompts of a data set and their reward function."""
    dataset = reasoning_gym.create_dataset(name, size=size, seed=0, **options)
    prompts = [{"prompt": dataset[i]["question"], "item": i} for i in range(size)]

    def score(prompts: list[str], completions: list[str], item: list[int]) -> list[float]:
        return [
            float(dataset.score_answer(answer=text.strip(), entry=dataset[i]))
            for text, i in zip(completions, item, strict=True)
        ]

    return prompts, score


def main(iterations: int = 30) -> tuple[float, float]:
    """Train and return the mean score before and after."""
    torch.set_num_threads(1)
    prompts, score = task("letter_counting", 256, min_words=1, max_words=1)
    letters = sorted({letter for row in prompts for letter in row["prompt"]} | set("0123456789"))
    tokenizer = tiny_tokenizer("".join(letters))
    venv = gym.make_vec(
        "TextRLHF-v0",
        num_envs=128,
        reference=tiny_model(vocab_size=len(tokenizer)),
        tokenizer=tokenizer,
        reward=score,
        prompts=prompts,
        kl_coef=0.0,  # the reference is random weights: there is nothing to stay near to
        max_prompt_tokens=120,
        max_completion_tokens=3,
        autoreset_mode="Disabled",
    )
    config = PPOConfig(episodes_per_iteration=128, minibatch_size=64, learning_rate=5e-3)
    agent = PPO(tiny_model(vocab_size=len(tokenizer)), venv, config)
    scores = []
    for iteration in range(iterations):
        scores.append(agent.iterate()["rollout/score"])
        if iteration % 5 == 4:
            print(f"{iteration + 1:3}  score {scores[-1]:.3f}", flush=True)
    return scores[0], scores[-1]


if __name__ == "__main__":
    before, after = main()
    print(f"score {before:.3f} before, {after:.3f} after")
