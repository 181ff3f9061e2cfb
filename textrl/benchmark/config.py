"""The options of `textrl benchmark`. The text under each field is its help.

This module imports the standard library only.
"""

from dataclasses import asdict, dataclass
from typing import Any

from textrl.bounds import Positive, require
from textrl.errors import did_you_mean
from textrl.task_config import TaskConfig, TokensConfig
from textrl.task_ids import TASKS

OF_THE_TASK = (
    *("prompts", "reward", "heldout", "max_prompt_tokens", "max_completion_tokens"),
    *(name for name in TaskConfig.__dataclass_fields__ if name not in TokensConfig.__annotations__),
)
"""The options that a task id determines, which therefore cannot be given with one."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(TaskConfig):
    """The agents, the task that they share, and the budget of each."""

    agents: str
    """Comma-separated names of agents: registered ones (ppo, rloo), sb3:PPO, mlp:DQN,
    package.module:Class, reference, random."""
    task: str | None = None
    """Id of a task (`textrl tasks` lists them) in place of prompts and reward. The score is the
    return of its world."""
    model: str | None = None
    """Folder or hub id of the policy to start from, which is also the reference. Without it, the
    task is the tiny built-in one (letters in rising order). With a task id, the default is the
    reference of that task."""
    prompts: str | None = None
    """File, or `hub:OWNER/NAME`, with a `prompt` column."""
    reward: str | None = None
    """Folder or hub id of a reward model, package.module:function, or collect:labels.db, which asks
    the labelers of that database."""
    heldout: str | None = None
    """Prompts for the evaluation of agents; the default is the prompts of training."""
    max_completion_tokens: Positive[int] = 24
    """Maximum length of a completion in tokens (its token budget)."""
    group_size: Positive[int] = 4
    """Number of rows that share a prompt. num_envs must be a multiple of it."""
    total_timesteps: Positive[int] = 100_000
    """Number of tokens to train each agent for."""
    seeds: Positive[int] = 3
    """Number of seeds per agent; the seeds are 0, 1, ..."""
    num_envs: Positive[int] = 64
    """Number of rows of the vector environment."""
    episodes_per_iteration: Positive[int] = 256
    """Number of episodes per iteration of our agents. Agents of Stable-Baselines3 get rollouts of
    the same number of tokens."""
    learning_rate: Positive[float] = 1e-4
    """Learning rate of all agents that train the language model."""
    mlp_learning_rate: Positive[float] = 1e-3
    """Learning rate of the mlp agents."""
    candidates: Positive[int] = 8
    """Number of tokens that the mlp and random agents choose from."""
    evaluations: Positive[int] = 5
    """Number of points of a learning curve after its starting point."""
    eval_episodes: Positive[int] = 256
    """Number of episodes per evaluation, which uses the same prompts each time."""
    threads: Positive[int] = 2
    """Number of CPU threads."""

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
        if self.task is not None:
            self._check_task(self.task)
            return
        together = (self.model is None) == (self.prompts is None) == (self.reward is None)
        require(self, "model", together, "model, prompts and reward together, or none of them")

    def _check_task(self, task: str) -> None:
        """Raise UserError for a task that is not there, or an option that it would ignore."""
        hint = did_you_mean(task, TASKS)
        require(self, "task", task in TASKS, f"a task id{hint}; `textrl tasks` lists them")
        for name in OF_THE_TASK:
            left = self.__dict__[name] == type(self).__dataclass_fields__[name].default
            require(self, name, left, f"nothing, as the task {task} determines it; leave it out")

    def recorded(self) -> dict[str, Any]:
        """Return the settings that ran: with a task id, without those that it determines."""
        left_out = () if self.task is None else OF_THE_TASK
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def agent_names(self) -> list[str]:
        """Return the names of the agents without duplicates."""
        names = [name.strip() for name in self.agents.split(",")]
        return list(dict.fromkeys(name for name in names if name))
