"""The agents of a benchmark by name, and how each is trained and measured on the task.

ppo, rloo, ...         a registered agent
sb3:PPO                SB3's PPO or A2C, sb3-contrib's TRPO or MaskablePPO, on the language model
mlp:PPO                an MlpPolicy of PPO, A2C, DQN or QRDQN on `VectorCandidateActions`
package.module:Name    any callable with the arguments (policy, vector environment)
reference, random      the starting policy; a uniform choice among the candidates
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from transformers import PreTrainedModel

from textrl.agents import Agent, BestOfN, OnlineDPO, registered
from textrl.agents.base import factory_of
from textrl.agents.text_agent import TextAgent
from textrl.benchmark.config import BenchmarkConfig
from textrl.benchmark.task import Act, Measure, Observation, Task, acting_measure, model_measure
from textrl.config import AgentConfig, BestOfNConfig
from textrl.envs import VectorCandidateActions
from textrl.envs import sb3 as text_sb3
from textrl.envs.sb3 import EpisodeRolloutBuffer, SubtractPolicyKL, TextVecEnv
from textrl.envs.sb3_policy import TokenPolicy
from textrl.errors import UserError, did_you_mean
from textrl.evaluation import best_of_kl
from textrl.resolve import resolve

LANGUAGE_MODEL = ("PPO", "A2C", "TRPO", "MaskablePPO")
STOCK = ("PPO", "A2C", "DQN", "QRDQN")


class Subject:
    """An agent in a benchmark: trains it, counts its tokens, and has the function to measure it."""

    def __init__(self, agent: Any, measure: Measure) -> None:
        """Keep an agent (None if nothing is trained) and the function that measures it."""
        self._agent, self.measure = agent, measure
        self.trains = agent is not None and not isinstance(agent, BestOfN)
        self._asked = 0

    def train(self, total: int, parts: int, after_part: Callable[[], None]) -> None:
        """Train for `total` tokens in `parts` parts; call `after_part` after each part.

        SB3's agents train in a single call, since their schedules span one call of `learn`.
        """
        if isinstance(self._agent, BaseAlgorithm):
            between = _AfterParts([total * part // parts for part in range(1, parts)], after_part)
            pays = [SubtractPolicyKL()] if isinstance(self._agent.policy, TokenPolicy) else []
            self._agent.learn(total, callback=[*pays, between])
            after_part()
            return
        for part in range(1, parts + 1):
            wanted = total * part // parts
            if self.trains and wanted > self.tokens:
                asked = wanted - self.tokens
                self._agent.learn(asked)
                self._asked += asked
            after_part()

    @property
    def tokens(self) -> int:
        """The number of tokens trained for: the agent's own count, or else the requested number."""
        for name in ("env_steps", "num_timesteps"):
            if hasattr(self._agent, name):
                return int(getattr(self._agent, name))
        return self._asked


class _AfterParts(BaseCallback):
    """Calls back as soon as each number of tokens is reached."""

    def __init__(self, marks: list[int], after_part: Callable[[], None]) -> None:
        super().__init__()
        self._marks, self._after_part = marks, after_part

    def _on_step(self) -> bool:
        if self._marks and self.num_timesteps >= self._marks[0]:
            self._marks.pop(0)
            self._after_part()
        return True


def make_subject(name: str, task: Task, seed: int) -> Subject:
    """Return a new agent of this name on a task.

    Raises:
        UserError: there is no such agent.
    """
    return find(name)(task, seed)


def find(name: str) -> Callable[[Task, int], Subject]:
    """Return the function that makes the agent of this name from a task and a seed.

    Raises:
        UserError: there is no such agent.
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
    """Return the class of this name from SB3 or sb3-contrib.

    Raises:
        UserError: the class needs sb3-contrib, which is not installed.
    """
    if hasattr(stable_baselines3, name):
        return getattr(stable_baselines3, name)
    try:
        return getattr(importlib.import_module("sb3_contrib"), name)
    except ImportError as error:
        raise UserError(f"{name} needs sb3-contrib: pip install 'textrl-gym[contrib]'") from error


def importable(name: str) -> str:
    """Return a name that another process can resolve: for an outside agent, package.module:Name."""
    factory: Any = factory_of(name) if name in registered() else None
    if factory is not None and not factory.__module__.startswith("textrl."):
        return f"{factory.__module__}:{factory.__qualname__}"
    return name


def _any(factory: Any, task: Task, seed: int) -> Subject:
    """Make one of our agents with the shared settings, or an outside agent from its factory.

    An outside factory gets policy and environment, and the seed if it has an argument `seed`.
    """
    heldout = task.environment(heldout=True)
    if factory is BestOfN:  # it scores in the environment in which it acts
        agent: Any = BestOfN(task.policy(), heldout, BestOfNConfig(seed=seed))
        kl = best_of_kl(agent.config.n)
        return Subject(agent, acting_measure(heldout, functools.partial(_unknown, agent), kl))
    venv = task.environment()
    venv.reset(seed=seed)
    if isinstance(factory, type) and issubclass(factory, TextAgent):
        agent = factory(task.policy(), venv, _shared_settings(factory, task.config, seed))
    elif "seed" in inspect.signature(factory).parameters:
        agent = factory(task.policy(), venv, seed=seed)
    else:
        agent = factory(task.policy(), venv)
    if isinstance(getattr(agent, "policy", None), PreTrainedModel):
        return Subject(agent, model_measure(heldout, lambda: agent.policy))
    return Subject(agent, acting_measure(heldout, functools.partial(_unknown, agent)))


def _shared_settings(factory: type[TextAgent], config: BenchmarkConfig, seed: int) -> AgentConfig:
    """Return an agent's configuration: four minibatches and two epochs per iteration."""
    items = config.episodes_per_iteration
    if issubclass(factory, OnlineDPO):
        items //= config.group_size  # pairs
    shared: dict[str, Any] = {
        "learning_rate": config.learning_rate,
        "episodes_per_iteration": config.episodes_per_iteration,
        "minibatch_size": max(items // 4, 1),
        "num_epochs": 2,
        "samples_per_prompt": config.group_size,
        "beta": config.kl_coef,
        "labels": "soft",
        "seed": seed,
    }
    names = {field.name for field in fields(factory.config_class)}
    return factory.config_class(**{k: v for k, v in shared.items() if k in names})


def _language_model(kind: type[OnPolicyAlgorithm], task: Task, seed: int) -> Subject:
    """Make an SB3 agent that trains the language model, with our sizes of rollout and minibatch."""
    config = task.config
    rollout = config.episodes_per_iteration * task.own_tokens
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
        n_steps=_steps(kind, task),
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
    model = agent.policy.model
    return Subject(agent, model_measure(task.environment(heldout=True), lambda: model))


def _stock(kind: type[OnPolicyAlgorithm | OffPolicyAlgorithm], task: Task, seed: int) -> Subject:
    """Make an unmodified MlpPolicy agent of SB3 that chooses among candidates."""
    config = task.config
    venv = VectorCandidateActions(task.environment(), k=config.candidates)
    tokens = config.episodes_per_iteration * task.own_tokens
    options: dict[str, Any] = {"n_steps": _steps(kind, task), "gae_lambda": 0.95}
    if kind.__name__ == "PPO":
        options |= {"batch_size": max(tokens // 4, 2), "n_epochs": 4}
    if kind.__name__ == "A2C":  # one small step per rollout, so use many short rollouts
        options["n_steps"] = max(8, task.own_tokens // 2)
    if issubclass(kind, OffPolicyAlgorithm):
        options = {
            "buffer_size": 50_000,
            "learning_starts": 2_000,
            "train_freq": 1,
            "gradient_steps": max(config.num_envs // 4, 1),
            "batch_size": 256,
            "target_update_interval": 10 * config.num_envs,
            "exploration_fraction": 0.4,
            "exploration_final_eps": 0.02,
        }
    if kind.__name__ == "QRDQN":  # the loss compares all pairs: 200 quantiles take ten times longer
        options["policy_kwargs"] = {"n_quantiles": 25}
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
    return Subject(agent, acting_measure(heldout, act))


def _steps(kind: type[Any], task: Task) -> int:
    """Return the steps per rollout for our agents' tokens; fewer for A2C, with one update each."""
    if kind.__name__ == "A2C":
        return 2 * task.own_tokens
    return task.config.episodes_per_iteration * task.own_tokens // task.config.num_envs


def _reference(task: Task, seed: int) -> Subject:
    policy = task.policy()
    return Subject(None, model_measure(task.environment(heldout=True), lambda: policy))


def _random(task: Task, seed: int) -> Subject:
    count, rng = task.config.candidates, np.random.default_rng(seed)
    heldout = VectorCandidateActions(task.environment(heldout=True), k=count)

    def act(states: Observation) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(count, size=len(states)), np.full(len(states), -np.log(count))

    return Subject(None, acting_measure(heldout, act))


def _unknown(agent: Agent, seen: Observation) -> tuple[np.ndarray, None]:
    """Act with an agent that gives no log-probs."""
    return agent.predict(seen)[0], None


def _greedy(agent: BaseAlgorithm, states: Observation) -> tuple[np.ndarray, np.ndarray]:
    """Take the best action deterministically, so that its log-prob is 0."""
    return agent.predict(states, deterministic=True)[0], np.zeros(len(states))


def _drawn(agent: OnPolicyAlgorithm, states: Observation) -> tuple[np.ndarray, np.ndarray]:
    """Sample an action from the policy."""
    with torch.no_grad():
        distribution = agent.policy.get_distribution(torch.as_tensor(states))
        actions = distribution.get_actions()
        return actions.numpy(), distribution.log_prob(actions).numpy()
