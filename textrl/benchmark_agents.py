"""The agents of a benchmark by name, and how each is trained and measured on its task.

ppo, rloo, ...         a registered agent
sb3:PPO                SB3's PPO or A2C, sb3-contrib's TRPO or MaskablePPO, on the language model
mlp:PPO                an MlpPolicy of PPO, A2C, DQN or QRDQN on `VectorCandidateActions`
package.module:Name    anything that is called with (policy, vector environment)
reference, random      the starting policy; a uniform choice among the candidates
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.agents import Agent, BestOfN, registered
from textrl.agents.base import TextEnv, factory_of
from textrl.agents.collect import collect
from textrl.command_config import BenchmarkConfig
from textrl.envs import TextRLHFVectorEnv, VectorCandidateActions, tiny_model
from textrl.envs import sb3 as text_sb3
from textrl.envs.sb3 import EpisodeRolloutBuffer, SubtractPolicyKL, TextVecEnv
from textrl.envs.sb3_policy import TokenPolicy
from textrl.errors import UserError, did_you_mean
from textrl.evaluation import best_of_kl
from textrl.models import load_causal_lm, load_tokenizer, split_lm
from textrl.resolve import resolve, resolve_reward

LANGUAGE_MODEL = ("PPO", "A2C", "TRPO", "MaskablePPO")
STOCK = ("PPO", "A2C", "DQN", "QRDQN")
MEASURE_SEED = 1234
"""Every measurement takes the same prompts."""

Observation = Any
Measure = Callable[[], tuple[float, float | None]]
"""Returns mean score and KL (nats a sequence; None where nobody knows it)."""
Act = Callable[[Observation], tuple[np.ndarray, np.ndarray | None]]
"""Observations of all rows -> actions [B] and their log-probs [B] (None where nobody knows)."""


class Task:
    """The environment that all agents share, made anew for each."""

    def __init__(self, config: BenchmarkConfig) -> None:
        """Take the task's part of a configuration."""
        self.config = config
        self.tokenizer: PreTrainedTokenizerBase | None = None
        if config.model is not None:
            self.tokenizer = load_tokenizer(config.model)

    def policy(self) -> PreTrainedModel:
        """Return the starting policy, to be trained."""
        if self.config.model is None:
            return tiny_model()
        return load_causal_lm(self.config.model, dtype="float32")

    def environment(self, *, heldout: bool = False) -> TextRLHFVectorEnv:
        """Return the environment to train in, or the one to be measured in."""
        config = self.config
        prompts = config.heldout if heldout and config.heldout else config.prompts
        return TextRLHFVectorEnv(
            num_envs=config.eval_episodes if heldout else config.num_envs,
            reference=config.model,
            tokenizer=self.tokenizer,
            reward=None if config.reward is None else resolve_reward(config.reward),
            prompts=prompts,
            kl_coef=config.kl_coef,
            max_prompt_tokens=config.max_prompt_tokens,
            max_completion_tokens=config.max_completion_tokens,
            group_size=1 if heldout else config.group_size,
            autoreset_mode="SameStep",
        )


class Subject:
    """An agent under measurement."""

    def __init__(
        self,
        learn: Callable[[int], Any],
        measure: Measure,
        steps: Callable[[], int] | None = None,
    ) -> None:
        """Take what trains for some tokens more, measures, and (if anyone does) counts tokens."""
        self._learn, self.measure, self._steps = learn, measure, steps
        self._asked = 0

    def learn(self, tokens: int) -> None:
        """Train for at least so many tokens more."""
        self._learn(tokens)
        self._asked += tokens

    @property
    def tokens(self) -> int:
        """How many tokens it has trained for, as the agent counts them, else as it was asked."""
        return self._asked if self._steps is None else self._steps()


def make_subject(name: str, task: Task, seed: int) -> Subject:
    """Return a new agent of this name on a task.

    Raises:
        UserError: there is none.
    """
    return find(name)(task, seed)


def find(name: str) -> Callable[[Task, int], Subject]:
    """Return what makes the agent of this name from a task and a seed.

    Raises:
        UserError: there is none.
    """
    family, colon, rest = name.partition(":")
    known = {"reference": _reference, "random": _random}
    if name in known:
        return known[name]
    if family in ("sb3", "mlp") and colon:
        names = LANGUAGE_MODEL if family == "sb3" else STOCK
        if rest not in names:
            hint = did_you_mean(rest, names)
            raise UserError(f"no agent named {name!r}{hint}; known: {family}: {list(names)}")
        return functools.partial(_language_model if family == "sb3" else _stock, algorithm(rest))
    if colon:
        return functools.partial(_any, resolve(name))
    if name not in registered():
        hint = did_you_mean(name, [*registered(), *known])
        raise UserError(f"no agent named {name!r}{hint}; registered: {registered()}")
    return functools.partial(_any, factory_of(name))


def algorithm(name: str) -> Any:
    """Return the class of SB3 or sb3-contrib.

    Raises:
        UserError: it needs sb3-contrib, which is not installed.
    """
    if hasattr(stable_baselines3, name):
        return getattr(stable_baselines3, name)
    try:
        return getattr(importlib.import_module("sb3_contrib"), name)
    except ImportError as error:
        raise UserError(f"{name} needs sb3-contrib: pip install 'textrl-gym[contrib]'") from error


def _any(factory: Any, task: Task, seed: int) -> Subject:
    """Make one of our agents with the shared settings, or anybody's from policy and environment."""
    arguments: list[Any] = [task.policy(), task.environment()]
    config_class = getattr(factory, "config_class", None)
    if config_class is not None:
        shared = {
            "learning_rate": task.config.learning_rate,
            "episodes_per_iteration": task.config.episodes_per_iteration,
            "minibatch_size": max(task.config.episodes_per_iteration // 4, 1),
            "samples_per_prompt": task.config.group_size,
            "num_epochs": 2,
            "seed": seed,
        }
        names = {field.name for field in fields(config_class)}
        arguments.append(config_class(**{k: v for k, v in shared.items() if k in names}))
    agent: Any = factory(*arguments)
    trained = getattr(agent, "policy", None)
    if isinstance(trained, PreTrainedModel) and not isinstance(agent, BestOfN):
        measure = _model_measure(task, trained)
    else:
        kl = best_of_kl(agent.config.n) if isinstance(agent, BestOfN) else None
        measure = _acting_measure(
            task.environment(heldout=True), lambda seen: _unknown(agent, seen), kl
        )
    counts = (lambda: int(agent.env_steps)) if hasattr(agent, "env_steps") else None
    return Subject(agent.learn, measure, counts)


def _language_model(kind: type[OnPolicyAlgorithm], task: Task, seed: int) -> Subject:
    """Make an agent of SB3 that trains the language model; rollouts and minibatches as ours."""
    config = task.config
    rollout = config.episodes_per_iteration * config.max_completion_tokens
    options: dict[str, Any] = {"batch_size": max(rollout // 4, 2)}
    if kind.__name__ in ("PPO", "MaskablePPO"):
        options["n_epochs"] = 2
    if kind.__name__ == "A2C":
        options = {}
    masked = kind.__name__ == "MaskablePPO"
    agent = kind(
        text_sb3.MaskableCausalLMPolicy if masked else text_sb3.CausalLMPolicy,
        TextVecEnv(task.environment()),
        learning_rate=config.learning_rate,
        n_steps=rollout // config.num_envs,
        gamma=1.0,
        gae_lambda=0.95,
        policy_kwargs={"model": task.policy()},
        rollout_buffer_class=(
            text_sb3.MaskableEpisodeRolloutBuffer if masked else EpisodeRolloutBuffer
        ),
        seed=seed,
        device="cpu",
        **options,
    )
    assert isinstance(agent.policy, TokenPolicy)
    return Subject(_sb3_learn(agent), _model_measure(task, agent.policy.model), _sb3_steps(agent))


def _stock(kind: type[OnPolicyAlgorithm | OffPolicyAlgorithm], task: Task, seed: int) -> Subject:
    """Make an unmodified MlpPolicy agent of SB3 that chooses among candidates."""
    config = task.config
    venv = VectorCandidateActions(task.environment(), k=config.candidates)
    tokens = config.episodes_per_iteration * config.max_completion_tokens
    options: dict[str, Any] = {"n_steps": tokens // config.num_envs, "gae_lambda": 0.95}
    if kind.__name__ == "PPO":
        options |= {"batch_size": max(tokens // 4, 2), "n_epochs": 4}
    if issubclass(kind, OffPolicyAlgorithm):
        options = {
            "buffer_size": 50_000,
            "learning_starts": 2_000,
            "train_freq": 1,
            "gradient_steps": 4,
            "batch_size": 256,
            "target_update_interval": 200,
            "exploration_fraction": 0.4,
            "exploration_final_eps": 0.02,
        }
    agent = kind(
        "MlpPolicy",
        TextVecEnv(venv),
        learning_rate=config.mlp_learning_rate,
        gamma=1.0,
        seed=seed,
        device="cpu",
        **options,
    )
    heldout = VectorCandidateActions(task.environment(heldout=True), k=config.candidates)
    if isinstance(agent, OnPolicyAlgorithm):
        act: Act = functools.partial(_drawn, agent)
    else:
        act = functools.partial(_greedy, agent)
    return Subject(_sb3_learn(agent), _acting_measure(heldout, act), _sb3_steps(agent))


def _reference(task: Task, seed: int) -> Subject:
    return Subject(lambda tokens: None, _model_measure(task, task.policy()))


def _random(task: Task, seed: int) -> Subject:
    count, rng = task.config.candidates, np.random.default_rng(seed)
    heldout = VectorCandidateActions(task.environment(heldout=True), k=count)

    def act(states: Observation) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(count, size=len(states)), np.full(len(states), -np.log(count))

    return Subject(lambda tokens: None, _acting_measure(heldout, act))


def _sb3_learn(agent: BaseAlgorithm) -> Callable[[int], Any]:
    """Return what trains for some tokens more; on-policy agents pay their half of the KL."""
    callback = SubtractPolicyKL() if isinstance(agent, OnPolicyAlgorithm) else None
    return lambda tokens: agent.learn(tokens, callback=callback, reset_num_timesteps=False)


def _sb3_steps(agent: BaseAlgorithm) -> Callable[[], int]:
    return lambda: int(agent.num_timesteps)


def _unknown(agent: Agent, seen: Observation) -> tuple[np.ndarray, None]:
    """Act; nobody knows the log-probs."""
    return agent.predict(seen)[0], None


def _greedy(agent: BaseAlgorithm, states: Observation) -> tuple[np.ndarray, np.ndarray]:
    """Take the best action for certain: its log-prob is 0."""
    return agent.predict(states, deterministic=True)[0], np.zeros(len(states))


def _drawn(agent: OnPolicyAlgorithm, states: Observation) -> tuple[np.ndarray, np.ndarray]:
    """Draw an action from the policy."""
    with torch.no_grad():
        distribution = agent.policy.get_distribution(torch.as_tensor(states))
        actions = distribution.get_actions()
        return actions.numpy(), distribution.log_prob(actions).numpy()


def _model_measure(task: Task, policy: PreTrainedModel) -> Measure:
    """Return what measures a language model: one sampled episode of every held-out row."""
    venv = task.environment(heldout=True)

    def measure() -> tuple[float, float | None]:
        venv.reset(seed=MEASURE_SEED)
        generator = torch.Generator().manual_seed(MEASURE_SEED)
        rollout = collect(split_lm(policy), TextEnv(venv), generator)
        return float(rollout.scores.mean()), float(rollout.sequence_kl.mean())

    return measure


def _acting_measure(
    venv: TextRLHFVectorEnv | VectorCandidateActions, act: Act, known_kl: float | None = None
) -> Measure:
    """Return what measures any agent: it acts in one episode of every held-out row."""

    def measure() -> tuple[float, float | None]:
        observation, _ = venv.reset(seed=MEASURE_SEED)
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
