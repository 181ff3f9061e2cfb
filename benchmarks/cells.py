"""One cell of the optimum suite: agent, task, kl_coef, seed; trained, then valued exactly.

Online agents learn in the environment; offline ones (DPO and its siblings) learn from pairs sampled
from the reference, labelled by Bradley-Terry draws from the same score, so both kinds share the
optimum at beta = kl_coef.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import stable_baselines3
import torch
from drawn_labels import encoded, labelled, reward_model
from small_tasks import enumeration, make_venv, new_policy, tokenizer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from transformers import PreTrainedModel

from textrl.agents import (
    GRPO,
    PPO,
    RLOO,
    GRPOConfig,
    OnlineDPO,
    OnlineDPOConfig,
    PPOConfig,
    Reinforce,
    ReinforceConfig,
    RLOOConfig,
)
from textrl.agents.text_agent import TextAgent
from textrl.config import DPOConfig
from textrl.envs.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, SubtractPolicyKL, TextVecEnv
from textrl.evaluation import best_of_kl
from textrl.trainers import DPOTrainer
from textrl.trainers.dpo import Pair

ROWS = 512
"""Episodes of an iteration."""
LEARNING_RATE = 3e-3
"""Of the online agents, falling to 0."""
TOKEN_BUDGETS = {0.05: 45_000, 0.1: 60_000, 0.25: 45_000, 0.5: 90_000, 1.0: 120_000}
"""By kl_coef. The gentler the tilt, the smaller the signal; at 0.1 the sparse task needs the longer
way down (`kl_coef_after`)."""
TURNS_BUDGET = 200_000
"""Of the game of two turns, whose coin adds noise, at kl_coef 0.25."""
PAIRS = 80_000
"""What every offline agent may read: once, or twice where the labels are nearly exact."""
RATERS = 512
"""Bradley-Terry draws for each pair; the "one label" agents get one. With 64 some seeds of DPO
missed their bar on the sparse task at beta 1: the noise of the labels outweighs the tilt."""
FLIPPED = 0.2
"""Share of the labels turned round for the losses that are made for that."""
CURVE_EVERY = 8
"""Iterations between exact evaluations during training."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What to train, where, how often."""

    agent: str
    task: str
    kl_coef: float
    seed: int

    @property
    def key(self) -> str:
        """A name in the results file."""
        return f"{self.agent}/{self.task}/{self.kl_coef}/{self.seed}"

    @property
    def token_budget(self) -> int:
        """What an online agent may sample."""
        return TURNS_BUDGET if self.task == "turns" else TOKEN_BUDGETS[self.kl_coef]

    def kl_coef_after(self, tokens: int) -> float:
        """Return the kl_coef of a point in training: it falls from 1 during the first half.

        The optima of falling kl_coefs lie close together. Without this way down the first rare
        string that scores takes all, and what else would score is forgotten (docs/results.md).
        """
        done = min(1.0, 2 * tokens / self.token_budget)
        return float(max(1.0, self.kl_coef) ** (1 - done) * self.kl_coef**done)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train, value the result exactly, and return a row of the results file."""
    torch.set_num_threads(1)
    began = time.monotonic()
    enumerated = enumeration(cell.task)
    curve: list[list[float]] = []
    bound = None
    if cell.agent.startswith("best_of_"):
        n = int(cell.agent.removeprefix("best_of_"))
        logprobs, bound = enumerated.best_of_n(n), best_of_kl(n)
    else:
        logprobs = enumerated.logprobs(AGENTS[cell.agent](cell, curve))
    value = enumerated.value(logprobs)
    return {
        "key": cell.key,
        **cell.__dict__,
        "regret": enumerated.regret(value, cell.kl_coef),
        "score": value.score,
        "kl": value.kl,
        "kl_bound": bound,
        "curve": curve,
        "seconds": time.monotonic() - began,
    }


def learn(agent: TextAgent, cell: Cell, curve: list[list[float]]) -> PreTrainedModel:
    """Train for the token budget; note tokens, score and KL on the way."""
    enumerated = enumeration(cell.task)
    while agent.env_steps < cell.token_budget:
        agent.env.kl_coef = cell.kl_coef_after(agent.env_steps)
        agent.iterate()
        if agent.iteration % CURVE_EVERY == 0:
            value = enumerated.value(enumerated.logprobs(agent.policy))
            curve.append([agent.env_steps, value.score, value.kl])
    return agent.policy


def settings(cell: Cell, rows: int = ROWS) -> dict[str, Any]:
    """Return the fields that all online agents' configurations share."""
    return {
        "learning_rate": LEARNING_RATE,
        "decay_timesteps": cell.token_budget,
        "episodes_per_iteration": rows,
        "seed": cell.seed,
    }


CLIPPED = {"minibatch_size": ROWS // 4, "num_epochs": 2}
"""Of the agents that reuse their episodes."""


def ppo(
    cell: Cell,
    curve: list[list[float]],
    *,
    critic: str = "value_head",
    kl_loss: str = "sampled",
) -> PreTrainedModel:
    """PPO with one of its three critics and one of its two ways to the KL."""
    config = PPOConfig(
        **settings(cell),
        **CLIPPED,
        gae_lambda=1.0,
        target_kl=0.02,
        vf_coef=0.5,
        clip_range_vf=None,
        critic=critic,
        kl_loss=kl_loss,
    )
    model = reward_model(cell.task) if critic == "reward_model" else None
    venv = make_venv(cell.task, kl_coef=cell.kl_coef, num_envs=ROWS, reward_model=model)
    return learn(PPO(new_policy(), venv, config), cell, curve)


def rloo(cell: Cell, curve: list[list[float]]) -> PreTrainedModel:
    """REINFORCE leave-one-out."""
    config = RLOOConfig(**settings(cell), **CLIPPED)
    venv = make_venv(cell.task, kl_coef=cell.kl_coef, num_envs=ROWS, group_size=16)
    return learn(RLOO(new_policy(), venv, config), cell, curve)


def grpo(cell: Cell, curve: list[list[float]], *, variant: str = "grpo") -> PreTrainedModel:
    """GRPO or Dr.GRPO."""
    config = GRPOConfig(**settings(cell), **CLIPPED, variant=variant)
    venv = make_venv(cell.task, kl_coef=cell.kl_coef, num_envs=ROWS, group_size=16)
    return learn(GRPO(new_policy(), venv, config), cell, curve)


def reinforce(cell: Cell, curve: list[list[float]]) -> PreTrainedModel:
    """REINFORCE: one step an iteration, so iterations are smaller."""
    rows = ROWS // 4
    config = ReinforceConfig(**settings(cell, rows))
    venv = make_venv(cell.task, kl_coef=cell.kl_coef, num_envs=rows)
    return learn(Reinforce(new_policy(), venv, config), cell, curve)


def online_dpo(cell: Cell, curve: list[list[float]]) -> PreTrainedModel:
    """Online DPO on pairs of samples, with the Bradley-Terry probability of their scores."""
    config = OnlineDPOConfig(
        **settings(cell),
        num_epochs=2,
        samples_per_prompt=2,
        labels="soft",
        minibatch_size=64,
        beta=cell.kl_coef,
    )
    venv = make_venv(cell.task, kl_coef=cell.kl_coef, num_envs=ROWS, group_size=2)
    return learn(OnlineDPO(new_policy(), venv, config), cell, curve)


class AnnealKL(SubtractPolicyKL):
    """Lowers kl_coef as our agents' cells do."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self._cell = cell

    def _on_rollout_start(self) -> None:
        self.training_env.set_attr("kl_coef", self._cell.kl_coef_after(self.num_timesteps))


def sb3(cell: Cell, curve: list[list[float]], *, agent: type[OnPolicyAlgorithm]) -> PreTrainedModel:
    """Stable-Baselines3's own PPO or A2C, through its vector environment."""
    rows, options = 128, {}
    if agent is stable_baselines3.PPO:
        options = {"n_steps": 16, "batch_size": 512, "n_epochs": 2, "target_kl": 0.02}
    else:
        options = {"n_steps": 4}
    venv = make_venv(cell.task, kl_coef=cell.kl_coef, num_envs=rows, autoreset_mode="SameStep")
    trained = agent(
        CausalLMPolicy,
        TextVecEnv(venv),
        learning_rate=lambda left: left * LEARNING_RATE,
        gamma=1.0,
        gae_lambda=1.0,
        vf_coef=0.5,
        max_grad_norm=1.0,
        rollout_buffer_class=EpisodeRolloutBuffer,
        policy_kwargs={"model": new_policy()},
        seed=cell.seed,
        device="cpu",
        **options,
    )
    trained.learn(cell.token_budget, callback=AnnealKL(cell))
    assert isinstance(trained.policy, CausalLMPolicy)
    return trained.policy.model


def dpo(
    cell: Cell,
    curve: list[list[float]],
    *,
    loss_type: str = "sigmoid",
    beta: float | None = None,
    raters: int = RATERS,
    flipped: float = 0.0,
) -> PreTrainedModel:
    """DPO or a sibling on Bradley-Terry labels, a share of them flipped."""
    config = DPOConfig(
        learning_rate=5e-3 if raters > 1 else 3e-3,
        minibatch_size=100,
        num_epochs=2 if raters > 1 else 1,
        beta=beta or cell.kl_coef,
        loss_type=loss_type,
        label_smoothing=flipped if loss_type != "sigmoid" else 0.0,
        seed=cell.seed,
    )
    policy = new_policy()
    pairs = [
        Pair(
            chosen=encoded(prompt, chosen),
            rejected=encoded(prompt, rejected),
            certainty=certainty,
        )
        for prompt, chosen, rejected, certainty in labelled(
            cell.task, cell.seed, raters=raters, flipped=flipped, count=PAIRS
        )
    ]
    DPOTrainer(policy, tokenizer(), pairs, config, shown=False).train()
    return policy


def ipo(cell: Cell, curve: list[list[float]]) -> PreTrainedModel:
    """IPO, whose own optimum replaces score differences d by 4 (sigmoid(d) - 1/2), near d if small.

    At h = (2 p - 1) / (2 beta) with p = sigmoid(d) = 1/2 + d/4 + ..., beta = kl_coef / 4 makes both
    optima agree to first order (2310.12036, section 4).
    """
    return dpo(cell, curve, loss_type="ipo", beta=cell.kl_coef / 4, raters=1)


AGENTS: dict[str, Callable[[Cell, list[list[float]]], PreTrainedModel]] = {
    "ppo": ppo,
    "ppo_separate": functools.partial(ppo, critic="separate"),
    "ppo_reward_model": functools.partial(ppo, critic="reward_model"),
    "rloo": rloo,
    "grpo": grpo,
    "dr_grpo": functools.partial(grpo, variant="dr_grpo"),
    "reinforce": reinforce,
    "online_dpo": online_dpo,
    "sb3_ppo": functools.partial(sb3, agent=stable_baselines3.PPO),
    "sb3_a2c": functools.partial(sb3, agent=stable_baselines3.A2C),
    "dpo": dpo,
    "dpo_one_label": functools.partial(dpo, raters=1),
    "dpo_flipped": functools.partial(dpo, raters=1, flipped=FLIPPED),
    "cdpo_flipped": functools.partial(dpo, loss_type="cdpo", raters=1, flipped=FLIPPED),
    "robust_flipped": functools.partial(dpo, loss_type="robust", raters=1, flipped=FLIPPED),
    "ipo": ipo,
}
"""Name -> trains a new policy, noting [tokens, score, KL] on the way."""
