"""The commands that train a policy with an agent: which there are, and their options.

Standard library only, as `config.py`; the text under each field is its help.
"""

from dataclasses import dataclass

from textrl.bounds import NotNegative, Positive, check_fields, require
from textrl.config import (
    GRPOConfig,
    OnlineDPOConfig,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
)


@dataclass(frozen=True, kw_only=True)
class AgentRunConfig:
    """The policy and the length of an agent's run."""

    model: str
    """Folder or hub id of the policy to start from (the SFT model)."""
    total_timesteps: Positive[int]
    """Tokens to train for."""
    num_envs: Positive[int] = 64
    """Rows of the vector environment; divides episodes_per_iteration."""
    device: str | None = None
    """Such as cpu or cuda; by default the GPU if there is one."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class StatesConfig:
    """The resumable states of a run of one of our agents."""

    save_every: NotNegative[int] = 10
    """Iterations between resumable states."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)
        require(self, "save_every", self.save_every >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class DemonstrationsConfig:
    """The demonstrations of PPO-ptx."""

    demonstrations: str | None = None
    """Data of `textrl sft` for PPO-ptx; set ptx_coef too."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class OutsideAgentConfig:
    """An agent that is not ours."""

    agent: str
    """package.module:Name, called with (policy, vector environment); has a configuration of its
    own."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)


AGENTS: dict[str, tuple[str, tuple[type, ...]]] = {
    "ppo": ("train a policy with PPO", (PPOConfig, DemonstrationsConfig)),
    "rloo": ("train a policy with RLOO", (RLOOConfig,)),
    "grpo": ("train a policy with GRPO or Dr.GRPO", (GRPOConfig,)),
    "reinforce": ("train a policy with REINFORCE", (ReinforceConfig,)),
    "online_dpo": ("train a policy with DPO on its own samples", (OnlineDPOConfig,)),
}
"""Each of our agents is a command; its own options stand here, the shared ones in cli.py."""
