"""The interface of an agent (that of Stable-Baselines3), and the registry of agents by name.

The command line and the benchmarks use agents through this interface only. Next to read:
`text_env.py` (what our agents need from an environment), `text_agent.py` (what they share),
`collect.py` (episodes), then `ppo.py`.
"""

import math
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from gymnasium.vector import VectorEnv
from transformers import PreTrainedModel

from textrl.errors import UserError, did_you_mean

Observation = dict[str, np.ndarray]
State = tuple[np.ndarray, ...] | None
"""The hidden state of a recurrent agent in SB3's `predict`.

Our agents are not recurrent: they return the state that they are given.
"""
AnyVectorEnv = VectorEnv[Any, Any, Any]


class Agent(Protocol):
    """An agent that learns in an environment and acts in it.

    Time is counted in tokens, as SB3 counts environment steps.
    """

    def learn(self, total_timesteps: int, *, progress_bar: bool = False) -> Self:
        """Train for at least this many more tokens; return the agent itself."""
        ...

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, State]:
        """Return the next token for an observation [L] or a batch of them [B L], and the state."""
        ...

    def save(self, path: str | Path) -> None:
        """Write the agent to a folder."""
        ...


AgentFactory = Callable[[PreTrainedModel, AnyVectorEnv], Agent]
"""A function that makes an agent from a policy and a vector environment."""

_FACTORIES: dict[str, AgentFactory] = {}


def register(name: str, factory: AgentFactory) -> None:
    """Make an agent available by name to `make_agent` and to benchmarks that this process starts.

    The command line also accepts an agent that is not registered, as package.module:Name.

    Raises:
        UserError: another agent already has the name.
    """
    if _FACTORIES.get(name, factory) is not factory:
        raise UserError(f"the name {name!r} is taken by another agent; choose another one")
    _FACTORIES[name] = factory


def registered() -> list[str]:
    """Return the names of all agents."""
    return sorted(_FACTORIES)


def factory_of(name: str) -> AgentFactory:
    """Return the factory that was registered under this name.

    Raises:
        UserError: no agent was registered under it.
    """
    if name not in _FACTORIES:
        hint = did_you_mean(name, _FACTORIES)
        raise UserError(f"no agent named {name!r}{hint}; registered: {registered()}")
    return _FACTORIES[name]


def make_agent(name: str, policy: PreTrainedModel, venv: AnyVectorEnv) -> Agent:
    """Return a new agent of this name.

    Raises:
        UserError: no agent was registered under it.
    """
    return factory_of(name)(policy, venv)


def check_timesteps(total_timesteps: object) -> None:
    """Raise UserError unless the value is a number of tokens, 0 or more."""
    if not isinstance(total_timesteps, Real) or not 0 <= float(total_timesteps) < math.inf:
        raise UserError(f"total_timesteps is {total_timesteps!r}; expected a number of tokens")
