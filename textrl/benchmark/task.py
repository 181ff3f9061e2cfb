"""The task that all agents of a benchmark share, and the functions that measure an agent on it."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.agents.collect import collect
from textrl.agents.text_env import TextEnv
from textrl.benchmark.config import BenchmarkConfig
from textrl.envs import TextRLHFVectorEnv, VectorCandidateActions, tiny_model
from textrl.envs.vector import TokenVectorEnv
from textrl.generation import ModelSampler
from textrl.models import load_causal_lm, load_tokenizer, split_lm
from textrl.resolve import resolve_reward
from textrl.reward_kinds import kind_of
from textrl.task_ids import TASKS

MEASURE_SEED = 1234
"""The seed of every measurement, so that all use the same prompts."""

Observation = Any
Measure = Callable[[], tuple[float, float | None]]
"""A function that returns mean score and KL (in nats per sequence; None if it is unknown)."""
Act = Callable[[Observation], tuple[np.ndarray, np.ndarray | None]]
"""Observations of all rows -> actions [B] and their log-probs [B] (None if they are unknown)."""


class Task:
    """The task that all agents share; each agent gets new copies of policy and environment."""

    def __init__(self, config: BenchmarkConfig) -> None:
        """Make the task from a configuration."""
        self.config = config
        self.tokenizer: PreTrainedTokenizerBase | None = None
        if config.model is not None:
            self.tokenizer = load_tokenizer(config.model)

    def policy(self) -> PreTrainedModel:
        """Return the starting policy, to be trained: a copy of the reference."""
        if self.config.model is not None:
            return load_causal_lm(self.config.model, dtype="float32")
        if self.config.task is None:
            return tiny_model()
        model = copy.deepcopy(self.environment().reference).float()
        assert isinstance(model, PreTrainedModel)
        return model.requires_grad_(True)

    @property
    def own_tokens(self) -> int:
        """The maximum number of tokens of an episode that the policy chooses."""
        task = self.config.task
        return self.config.max_completion_tokens if task is None else TASKS[task].own_tokens

    def environment(self, *, heldout: bool = False) -> TokenVectorEnv:
        """Return the environment for training, or the held-out one for measurements."""
        config = self.config
        if config.task is not None:
            return self._of_the_task_id(config.task, heldout)
        prompts = config.heldout if heldout and config.heldout else config.prompts
        reward = None if config.reward is None else resolve_reward(config.reward)
        in_groups = callable(reward) and kind_of(reward).group
        return TextRLHFVectorEnv(
            num_envs=config.eval_episodes if heldout else config.num_envs,
            reference=config.model,
            tokenizer=self.tokenizer,
            reward=reward,
            prompts=prompts,
            autoreset_mode="SameStep",
            **config.arguments() | ({"group_size": 1} if heldout and not in_groups else {}),
        )

    def _of_the_task_id(self, task: str, heldout: bool) -> TokenVectorEnv:
        config = self.config
        arguments: dict[str, Any] = {
            "kl_coef": config.kl_coef,
            "temperature": config.temperature,
            "banned_token_ids": config.banned_token_ids,
            "group_size": 1 if heldout else config.group_size,
        }
        if config.model is not None:
            arguments["reference"] = config.model
        if heldout and TASKS[task].has_heldout:
            arguments["heldout"] = True
        rows = config.eval_episodes if heldout else config.num_envs
        venv = gym.make_vec(task, num_envs=rows, autoreset_mode="SameStep", **arguments)
        assert isinstance(venv, TokenVectorEnv)
        return venv


def model_measure(venv: TokenVectorEnv, policy: Callable[[], PreTrainedModel]) -> Measure:
    """Return a function that measures a language model on one sampled episode per held-out row."""

    def measure() -> tuple[float, float | None]:
        venv.reset(seed=MEASURE_SEED)
        generator = torch.Generator().manual_seed(MEASURE_SEED)
        rollout = collect(ModelSampler(split_lm(policy())), TextEnv(venv), generator)
        return float(rollout.scores.mean()), float(rollout.sequence_kl.mean())

    return measure


def acting_measure(
    venv: TokenVectorEnv | VectorCandidateActions, act: Act, known_kl: float | None = None
) -> Measure:
    """Return a function that measures any agent: it acts in one episode of every held-out row."""

    def measure() -> tuple[float, float | None]:
        venv.reset(seed=MEASURE_SEED)
        observation, _ = venv.reset()  # gives the prompts of `model_measure`, which resets too
        going = np.ones(venv.num_envs, dtype=bool)
        scores, kl = np.zeros(venv.num_envs), np.zeros(venv.num_envs)
        unknown = False
        while going.any():
            actions, logprobs = act(observation)
            observation, _, terminated, truncated, infos = venv.step(actions)
            if logprobs is None:
                unknown = True
            else:
                kl += np.where(going, logprobs - infos["ref_logprob"], 0.0)
            ended = going & (terminated | truncated)
            if ended.any():
                scores[ended] = infos["score"][ended]
            going &= ~ended
        return float(scores.mean()), known_kl if unknown else float(kl.mean())

    return measure
