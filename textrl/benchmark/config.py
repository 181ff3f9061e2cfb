"""The options of `textrl benchmark`.

Standard library only, as `textrl/config.py`; the text under each field is its help.
"""

from dataclasses import dataclass

from textrl.bounds import Positive, require
from textrl.task_config import TaskConfig


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(TaskConfig):
    """Agents, the task that they share, and what each may spend."""

    agents: str
    """Names with commas between: registered (ppo, rloo), sb3:PPO, mlp:DQN, package.module:Class,
    reference, random."""
    model: str | None = None
    """Folder or hub id of the policy to start from, also the reference; by default, a built-in tiny
    task (letters that must rise)."""
    prompts: str | None = None
    """File or hub name with a `prompt` column."""
    reward: str | None = None
    """Folder or hub id of a reward model, or package.module:function."""
    heldout: str | None = None
    """Prompts that agents are measured on; by default those that they are trained on."""
    max_completion_tokens: Positive[int] = 24
    """Token budget of a completion."""
    group_size: Positive[int] = 4
    """Rows that share a prompt; divides num_envs."""
    total_timesteps: Positive[int] = 100_000
    """Tokens for each agent."""
    seeds: Positive[int] = 3
    """Seeds 0, 1, ... of each agent."""
    num_envs: Positive[int] = 64
    """Rows of the vector environment."""
    episodes_per_iteration: Positive[int] = 256
    """Of our agents; Stable-Baselines3's get rollouts of as many tokens."""
    learning_rate: Positive[float] = 1e-4
    """Of all agents that train the language model."""
    mlp_learning_rate: Positive[float] = 1e-3
    """Of the mlp agents."""
    candidates: Positive[int] = 8
    """Tokens that the mlp and random agents choose from."""
    evaluations: Positive[int] = 5
    """Points of a learning curve after its start."""
    eval_episodes: Positive[int] = 256
    """Episodes of a measurement, on the same prompts each time."""
    threads: Positive[int] = 2
    """CPU threads."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        super().__post_init__()
        for name in ("seeds", "evaluations", "eval_episodes", "threads"):
            require(self, name, self.__dict__[name] >= 1, "at least 1")
        require(self, "candidates", self.candidates >= 2, "at least 2")
        require(self, "agents", bool(self.agent_names()), "at least one name")
        whole = self.episodes_per_iteration % self.num_envs == 0
        require(self, "episodes_per_iteration", whole, f"a multiple of num_envs {self.num_envs}")
        grouped = self.num_envs % self.group_size == 0
        require(self, "num_envs", grouped, f"a multiple of group_size {self.group_size}")
        require(self, "mlp_learning_rate", self.mlp_learning_rate >= 0, "0 or a positive number")
        together = (self.model is None) == (self.prompts is None) == (self.reward is None)
        require(self, "model", together, "model, prompts and reward together, or none of them")

    def agent_names(self) -> list[str]:
        """Return the agents, each once."""
        names = [name.strip() for name in self.agents.split(",")]
        return list(dict.fromkeys(name for name in names if name))
