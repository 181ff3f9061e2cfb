"""`textrl probe`: a ladder of four tiny tasks that tells within minutes where an agent is broken.

Each rung is harder than the one before by one thing, so that the first rung on which an agent fails
says what it lacks. The tasks are `textrl.task_ids.PROBES`; the policy is the built-in model of
characters with random weights, which chooses among 103 tokens. An agent passes a rung if the median
of its seeds reaches the threshold of the task within the budget.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import gymnasium as gym
import torch
from stable_baselines3.common.utils import set_random_seed

from textrl.benchmark.agents import make_subject
from textrl.benchmark.config import BenchmarkConfig
from textrl.benchmark.task import Task
from textrl.errors import UserError
from textrl.task_ids import PROBES, TASKS

SEEDS = (0, 1, 2)
EPISODES = 256
"""Episodes of an iteration, and of a measurement."""
ITERATIONS = 56
"""The budget in iterations of episodes of full length."""
PARTS = 14
"""Number of measurements; the first that reaches the threshold ends the training."""
LEARNING_RATE, KL_COEF = 2e-3, 0.0
"""Without a KL, since GRPO scales the KL of groups that are paid nothing to the size of a reward,
and so slowly that the policy goes on trying the letters that it has not found."""

MEANINGS = {
    "TextRLHF/ProbeConstant-v0": "it does not learn from its rewards at all: no gradient reaches "
    "the policy, the advantage has the wrong sign, or the learning rate is far off",
    "TextRLHF/ProbePrompt-v0": "it learns, but not from what it reads: the prompt does not reach "
    "the policy, or the log-probs of the update are taken at other positions than the actions'",
    "TextRLHF/ProbeDelayed-v0": "a reward does not reach the tokens before the last: returns or "
    "GAE over tokens (lambda, discount), or a mask that leaves out tokens of the turn",
    "TextRLHF/ProbeLaterTurn-v0": "a reward does not reach the turns before the last: the return "
    "is cut at the end of a turn, or the world's tokens are taken for actions",
}
"""What a failure on a rung usually means, for an agent that passes those before it."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """How an agent did on one rung."""

    task: str
    threshold: float
    returns: tuple[float, ...]
    """The mean return of each seed at its last measurement."""
    tokens: tuple[int, ...]
    """The number of tokens that each seed was trained for."""
    seconds: float
    """The seconds that all seeds took."""

    @property
    def passed(self) -> bool:
        """Whether the median of the seeds reaches the threshold."""
        return statistics.median(self.returns) >= self.threshold

    def line(self) -> str:
        """Return the rung for a terminal."""
        seeds = ", ".join(f"{value:.3f}" for value in self.returns)
        word = "passed" if self.passed else "FAILED"
        return (
            f"{word}  {self.task}: mean return {statistics.median(self.returns):.3f} (seeds "
            f"{seeds}), threshold {self.threshold:g}, {max(self.tokens)} tokens, "
            f"{self.seconds:.0f} s"
        )


class _Passed(Exception):
    """The threshold is reached: the training need not go on."""


def climb(agent: str, seeds: tuple[int, ...] = SEEDS) -> Iterator[Rung]:
    """Yield the rungs of the ladder up to the first on which the agent fails.

    Args:
        agent: The name of an agent, as in `textrl benchmark`.
        seeds: The seeds of each rung.

    Raises:
        UserError: there is no such agent, or it cannot play turns.
    """
    if agent.startswith("mlp:"):
        raise UserError(
            f"{agent} chooses among the likeliest tokens of the reference, which here has random "
            f"weights, so that the right letter is seldom among them; probe sb3:PPO instead"
        )
    for task in PROBES:
        rung = _rung(agent, task, seeds)
        yield rung
        if not rung.passed:
            return


def settings(agent: str, task: str) -> BenchmarkConfig:
    """Return the configuration of an agent on a rung."""
    return BenchmarkConfig(
        task=task,
        agents=agent,
        total_timesteps=ITERATIONS * EPISODES * TASKS[task].own_tokens,
        learning_rate=LEARNING_RATE,
        kl_coef=KL_COEF,
        episodes_per_iteration=EPISODES,
        eval_episodes=EPISODES,
        evaluations=PARTS,
    )


def _rung(agent: str, task: str, seeds: tuple[int, ...]) -> Rung:
    spec = gym.spec(task)
    assert spec.reward_threshold is not None
    began = time.monotonic()
    found = [_trained(settings(agent, task), spec.reward_threshold, seed) for seed in seeds]
    return Rung(
        task=task,
        threshold=spec.reward_threshold,
        returns=tuple(score for score, _ in found),
        tokens=tuple(tokens for _, tokens in found),
        seconds=time.monotonic() - began,
    )


def _trained(config: BenchmarkConfig, threshold: float, seed: int) -> tuple[float, int]:
    """Train an agent until it reaches the threshold or has used up the budget.

    Returns: its mean return and the number of tokens that it was trained for.
    """
    torch.set_num_threads(1)  # more are slower on such small models
    set_random_seed(seed)  # for agents that use the global random generators of this process
    subject = make_subject(config.agents, Task(config), seed)
    if not subject.trains:
        raise UserError(f"{config.agents} has nothing to train; name an agent that learns")
    scores = [subject.measure()[0]]

    def measure() -> None:
        scores.append(subject.measure()[0])
        if scores[-1] >= threshold:
            raise _Passed

    with contextlib.suppress(_Passed):
        subject.train(config.total_timesteps, config.evaluations, measure)
    return scores[-1], subject.tokens
