"""The commands that train a policy with an agent, and their options.

The text under each field is its help. This module imports the standard library only.
"""

from dataclasses import dataclass

from textrl.bounds import NotNegative, Positive, check_fields, require
from textrl.config import AGENT_COMMANDS, PPOConfig


@dataclass(frozen=True, kw_only=True)
class AgentRunConfig:
    """The policy, and the length of its training."""

    model: str
    """Folder or hub id of the policy to start from (the SFT model)."""
    total_timesteps: Positive[int]
    """Number of tokens to train for."""
    num_envs: Positive[int] = 64
    """Number of rows of the vector environment. For our agents, episodes_per_iteration must be a
    multiple of it."""
    device: str | None = None
    """Device of the models, such as cpu or cuda; the default is the GPU if there is one."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class StatesConfig:
    """The saves of a run of one of our agents."""

    save_every: NotNegative[int] = 10
    """Number of iterations between two saves to resume from; 0 saves by time alone."""
    save_minutes: NotNegative[float] = 10.0
    """Minutes between two saves to resume from; 0 saves by iterations alone."""
    keep_saves: Positive[int] = 2
    """Number of the newest saves that are kept while the run goes on."""
    keep_best: str | None = None
    """Name of a logged metric, such as rollout/score. The save with the highest mean of it over
    the last save_every iterations is kept too, and is in best/ in the end. Of a measurement on
    held-out prompts (heldout/score) it is the agent of the highest one."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class HeldoutConfig:
    """Measurements on held-out prompts while an agent of ours is trained."""

    heldout: str | None = None
    """File, or `hub:OWNER/NAME`, with held-out prompts; they are measured with the run's reward.
    Samples are in samples.jsonl."""
    eval_every: Positive[int] = 10
    """Number of iterations between two measurements."""
    eval_episodes: Positive[int] = 64
    """Number of episodes of a measurement."""
    stop_at_kl: float | None = None
    """KL of a measurement, in nats per sequence, above which the training ends."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range, or one that has no effect."""
        check_fields(self)
        for name in ("eval_every", "eval_episodes", "stop_at_kl"):
            default = type(self).__dataclass_fields__[name].default
            used = self.heldout is not None or self.__dict__[name] == default
            require(self, name, used, "nothing without heldout prompts to measure on")
        positive = self.stop_at_kl is None or self.stop_at_kl > 0
        require(self, "stop_at_kl", positive, "a positive number of nats")


@dataclass(frozen=True, kw_only=True)
class DemonstrationsConfig:
    """The demonstrations of PPO-ptx."""

    demonstrations: str | None = None
    """Demonstrations for PPO-ptx, in the format of the data of `textrl sft`; they need ptx_coef
    too."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class OutsideAgentConfig:
    """An agent from outside textrl."""

    agent: str
    """Agent as package.module:Name, which is called with (policy, vector environment). It keeps its
    own configuration."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)


AGENTS: dict[str, tuple[str, tuple[type, ...]]] = {
    name: (purpose, (config, DemonstrationsConfig) if config is PPOConfig else (config,))
    for name, (purpose, config) in AGENT_COMMANDS.items()
}
"""The agents that are commands, with their purpose and their own options."""
