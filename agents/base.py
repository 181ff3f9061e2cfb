"""What every agent is to the command line and the benchmarks: Stable-Baselines3's verbs.

Here: the protocol, the registry, and `TextEnv`, all that our agents ask of a vector environment.
Next to read: `text_agent.py` (what our agents share), `collect.py` (episodes), then `ppo.py`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.errors import UserError, did_you_mean
from textrl.rewards import RewardModel

Observation = dict[str, np.ndarray]
AnyVectorEnv = VectorEnv[Any, Any, Any]


class Agent(Protocol):
    """Learns in an environment and acts; time is counted in tokens, as SB3 counts steps."""

    def learn(self, total_timesteps: int, progress_bar: bool = False) -> Self:
        """Train for at least this many tokens more; return the agent itself."""
        ...

    def predict(
        self, observation: Observation, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        """Return the next token for an observation [L] or a batch of them [B L]."""
        ...

    def save(self, path: str | Path) -> None:
        """Write the agent to a folder."""
        ...


AgentFactory = Callable[[PreTrainedModel, AnyVectorEnv], Agent]
"""(policy, vector environment) -> agent."""

_FACTORIES: dict[str, AgentFactory] = {}


def register(name: str, factory: AgentFactory) -> None:
    """Make an agent available by name to `make_agent` and to benchmarks that this process starts.

    The command line knows an outside agent as package.module:Name, without being registered.
    """
    _FACTORIES[name] = factory


def registered() -> list[str]:
    """Return the names of all agents."""
    return sorted(_FACTORIES)


def factory_of(name: str) -> AgentFactory:
    """Return what was registered under this name.

    Raises:
        UserError: nothing was.
    """
    if name not in _FACTORIES:
        hint = did_you_mean(name, _FACTORIES)
        raise UserError(f"no agent named {name!r}{hint}; registered: {registered()}")
    return _FACTORIES[name]


def make_agent(name: str, policy: PreTrainedModel, venv: AnyVectorEnv) -> Agent:
    """Return a new agent of this name.

    Raises:
        UserError: nobody registered it.
    """
    return factory_of(name)(policy, venv)


class TextEnv:
    """A vector environment seen through the Gymnasium interface, and its text attributes.

    The attributes are read from the vector environment itself where it has them (ours), else from
    its first sub-environment (a SyncVectorEnv of single ones).
    """

    def __init__(self, venv: AnyVectorEnv) -> None:
        """Look at an environment without changing it."""
        self.venv = venv
        self.num_envs = venv.num_envs
        self.tokenizer: PreTrainedTokenizerBase = self._get("tokenizer")
        self.reference: PreTrainedModel = self._get("reference")
        self.reward_model: RewardModel | None = self._get("reward_model")
        self.temperature = float(self._get("temperature"))
        self.max_completion_tokens = int(self._get("max_completion_tokens"))
        self.max_prompt_tokens = int(self._get("max_prompt_tokens"))
        self.group_size = int(self._get("group_size"))
        self.eos_token_id = int(self._get("eos_token_id"))

    @property
    def kl_coef(self) -> float:
        """Score units per nat."""
        return float(self._get("kl_coef"))

    @kl_coef.setter
    def kl_coef(self, value: float) -> None:
        base = self.venv.unwrapped
        if hasattr(base, "kl_coef"):
            base.kl_coef = value
        else:
            assert isinstance(base, SyncVectorEnv)
            base.set_attr("kl_coef", [value] * self.num_envs)

    def score_tokens(self, prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
        """Return what episodes of these token ids would score, float64 [N], taking no step."""
        found: np.ndarray = self._get("score_tokens")(prompts, completions)
        return found

    def check_groups(self, agent: str) -> None:
        """Raise UserError unless several rows share each prompt."""
        if self.group_size < 2:
            raise UserError(
                f"{agent} compares several samples of one prompt, but the environment's group_size "
                f"is {self.group_size}; make it with group_size=4 (and num_envs a multiple of it)"
            )
        if isinstance(self.venv.unwrapped, SyncVectorEnv):
            raise UserError(
                f"{agent} compares several samples of one prompt, but the rows of a SyncVectorEnv "
                f'have prompts of their own; use gym.make_vec("TextRLHF-v0", ...) as it comes'
            )

    def check(self, policy: PreTrainedModel, episodes_per_iteration: int) -> None:
        """Raise UserError unless the policy can be trained here with these many episodes."""
        if policy is self.reference:
            raise UserError(
                "the policy is the environment's frozen reference itself; train a copy "
                "(copy.deepcopy, or load it twice)"
            )
        if not any(parameter.requires_grad for parameter in policy.parameters()):
            raise UserError(
                "no parameter of the policy takes a gradient (a copy of the frozen reference is "
                "frozen too); call policy.requires_grad_(True)"
            )
        if episodes_per_iteration % self.num_envs:
            raise UserError(
                f"episodes_per_iteration is {episodes_per_iteration}; expected a multiple of the "
                f"environment's {self.num_envs} rows"
            )

    def _get(self, name: str) -> Any:
        base = self.venv.unwrapped
        if hasattr(base, name):
            return getattr(base, name)
        if isinstance(base, SyncVectorEnv):  # its get_attr would call a model or a tokenizer
            first = base.envs[0]
            if first.has_wrapper_attr(name):
                return first.get_wrapper_attr(name)
        raise UserError(
            f"the environment has no {name!r}: text agents act in TextRLHF-v0, got {self.venv}"
        )
