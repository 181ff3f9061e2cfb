"""The runs that `frontier.py` compares: each trains a policy from the SFT model of the reviews.

Measured on held-out prompts on their way. Online agents sample in the environment; DPO and SFT
learn from samples of the SFT model that the reward model ranks.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from review_setup import Point, ReviewSetup
from stable_baselines3.common.logger import KVWriter, Logger
from transformers import PreTrainedModel

from textrl.agents import PPO, RLOO, OnlineDPO, OnlineDPOConfig, RLOOConfig
from textrl.agents.text_agent import TextAgent
from textrl.config import DPOConfig, SFTConfig
from textrl.trainers import DPOTrainer, SFTTrainer

KL_TARGETS = (3, 6, 9, 12)
BETAS = (0.05, 0.1, 1.0, 5.0)
TOKENS = 240_000
"""What an online agent may sample."""
PAIR_PROMPTS, PAIR_SAMPLES = 1024, 8
"""The offline pairs: best against worst, second against second worst, ... of each prompt."""
MEASURE_EVERY = 6
"""Iterations of an agent between measurements."""
Run = Callable[[ReviewSetup, list[Point]], PreTrainedModel]
"""Trains a policy, appending measurements on the way."""


def learn(agent: TextAgent, setup: ReviewSetup, points: list[Point], tokens: int) -> None:
    """Train an agent, measured on the way."""
    while agent.env_steps < tokens:
        numbers = agent.iterate()
        if agent.iteration % MEASURE_EVERY == 0:
            points.append(setup.measure(agent.policy, agent.env_steps))
            print(
                f"  {agent.name} {agent.env_steps}/{tokens} tokens, score "
                f"{np.mean(points[-1].score):.2f} at KL {np.mean(points[-1].kl):.2f}, kl_coef "
                f"{numbers['rollout/kl_coef']:.3f}",
                flush=True,
            )


def ppo(setup: ReviewSetup, points: list[Point], *, kl_target: float) -> PreTrainedModel:
    """PPO of the demo, steered to a KL, with a falling learning rate."""
    config = replace(
        setup.job.preset.ppo,
        kl_target=float(kl_target),
        kl_horizon=2000.0,
        decay_timesteps=TOKENS,
        episodes_per_iteration=512,
        minibatch_size=128,
    )
    venv = setup.environment(512, group_size=8)
    venv.kl_coef = 1.5 / kl_target  # not far from where it ends up
    agent = PPO(setup.new_policy(), venv, config)
    learn(agent, setup, points, TOKENS)
    return agent.policy


def rloo(setup: ReviewSetup, points: list[Point], *, kl_coef: float) -> PreTrainedModel:
    """RLOO at a fixed kl_coef."""
    config = RLOOConfig(
        learning_rate=3e-4,
        decay_timesteps=TOKENS,
        episodes_per_iteration=512,
        minibatch_size=128,
        micro_batch_tokens=1024,
    )
    venv = setup.environment(512, group_size=8)
    venv.kl_coef = kl_coef
    agent = RLOO(setup.new_policy(), venv, config)
    learn(agent, setup, points, TOKENS)
    return agent.policy


def online_dpo(setup: ReviewSetup, points: list[Point], *, beta: float) -> PreTrainedModel:
    """Online DPO: best against worst of 8 fresh samples, many rounds."""
    config = OnlineDPOConfig(
        learning_rate=2e-4,
        decay_timesteps=TOKENS,
        episodes_per_iteration=512,
        samples_per_prompt=8,
        minibatch_size=64,
        micro_batch_tokens=1024,
        beta=beta,
    )
    agent = OnlineDPO(setup.new_policy(), setup.environment(512, group_size=8), config)
    learn(agent, setup, points, TOKENS)
    return agent.policy


def dpo(setup: ReviewSetup, points: list[Point], *, beta: float) -> PreTrainedModel:
    """Offline DPO on ranked samples of the SFT model."""
    policy = setup.new_policy()
    config = DPOConfig(
        learning_rate=2e-4, minibatch_size=64, micro_batch_tokens=1024, beta=beta, num_epochs=2
    )
    rows, logger = offline_pairs(setup), measuring_logger(setup, policy, points, every=8)
    DPOTrainer(policy, setup.tokenizer, rows, config, logger=logger).train()
    return policy


def preferred_sft(setup: ReviewSetup, points: list[Point]) -> PreTrainedModel:
    """SFT on the chosen completions of the same pairs."""
    policy = setup.new_policy()
    config = SFTConfig(learning_rate=2e-4, minibatch_size=64, micro_batch_tokens=1024, num_epochs=2)
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in offline_pairs(setup)]
    logger = measuring_logger(setup, policy, points, every=8)
    SFTTrainer(policy, setup.tokenizer, rows, config, logger=logger).train()
    return policy


RUNS: dict[str, Run] = {
    **{f"ppo_{target}": partial(ppo, kl_target=target) for target in KL_TARGETS},
    **{f"dpo_{beta}": partial(dpo, beta=beta) for beta in BETAS},
    "preferred_sft": preferred_sft,
    "online_dpo_0.1": partial(online_dpo, beta=0.1),
    "rloo_0.1": partial(rloo, kl_coef=0.1),
}


class _Measure(KVWriter):
    """Measures the policy at every n-th logged row."""

    def __init__(self, measure: Callable[[int], None], every: int) -> None:
        self._measure, self._every, self._rows = measure, every, 0

    def write(self, key_values: Any, key_excluded: Any, step: int = 0) -> None:
        """Measure, if it is time."""
        self._rows += 1
        if self._rows % self._every == 0:
            self._measure(step)

    def close(self) -> None:
        """Have nothing to close."""


def measuring_logger(
    setup: ReviewSetup, policy: PreTrainedModel, points: list[Point], every: int
) -> Logger:
    """Return a logger for a trainer that measures its policy on the way."""

    def measure(step: int) -> None:
        points.append(setup.measure(policy, step))

    return Logger(folder=None, output_formats=[_Measure(measure, every)])


def offline_pairs(setup: ReviewSetup) -> list[dict[str, str]]:
    """Return the pairs of all offline runs: samples of the SFT model ranked by the reward model."""
    path = setup.job.folder / f"pairs_{PAIR_PROMPTS}_{PAIR_SAMPLES}.json"
    if not path.exists():
        path.write_text(json.dumps(ranked_pairs(setup)))
    rows: list[dict[str, str]] = json.loads(path.read_text())
    return rows


def ranked_pairs(setup: ReviewSetup) -> list[dict[str, str]]:
    """Return the best against the worst of each prompt's samples, the second against the ..."""
    prompts = setup.job.prompts(setup.job.train)[:PAIR_PROMPTS]
    samples = setup.samples(setup.reference, prompts, PAIR_SAMPLES, seed=2)
    rows = []
    for start in range(0, len(samples.scores), PAIR_SAMPLES):
        order = sorted(range(start, start + PAIR_SAMPLES), key=lambda i: samples.scores[i])
        for worse, better in zip(order[: PAIR_SAMPLES // 2], order[::-1], strict=False):
            chosen, rejected = samples.completions[better], samples.completions[worse]
            if chosen.strip() and rejected.strip() and chosen != rejected:
                prompt = samples.prompts[start]
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows
