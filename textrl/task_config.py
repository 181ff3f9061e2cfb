"""A text task in numbers: the environment's arguments that are neither a model nor data.

The environments' signatures (`envs/core_config.py`) and the options of the command line
(`EnvConfig`, `BenchmarkConfig`) are made of it. Standard library only, as `config.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal

from textrl.bounds import NotNegative, Positive, check_fields, require


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What an episode is, and what it pays."""

    kl_coef: NotNegative[float] = 0.05
    """Weight of the KL to the reference, in score units per nat."""
    max_prompt_tokens: Positive[int] = 64
    """Longest prompt; longer ones are refused."""
    max_completion_tokens: Positive[int] = 48
    """Token budget of a completion."""
    temperature: Positive[float] = 1.0
    """Temperature of sampling and of every log-prob, the reference's too."""
    missing_eos_penalty: NotNegative[float] = 0.0
    """Score units subtracted from the reward of an episode that the budget ended."""
    on_length: Literal["score", "truncate"] = "score"
    """What the budget does to an episode: it is scored, or truncated without a score."""
    min_completion_tokens: NotNegative[int] = 0
    """Tokens before which no end token is an action: it is refused, and policy and reference are
    distributions over the other tokens."""
    banned_token_ids: Sequence[int] = ()
    """Ids that are no actions, in the same sense."""
    group_size: Positive[int] = 1
    """How often each prompt comes: in a row, or in consecutive rows of a vector environment, whose
    number it divides."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range, naming field, value and what was expected."""
        check_fields(self)
        self._check_banned()
        most = self.max_completion_tokens
        fits = self.min_completion_tokens <= most
        require(self, "min_completion_tokens", fits, f"at most max_completion_tokens, {most}")

    def _check_banned(self) -> None:
        """Keep the banned ids as a tuple of whole numbers."""
        given = self.banned_token_ids
        listed = isinstance(given, Iterable) and not isinstance(given, str)
        ids = list(given) if listed else []
        whole = all(isinstance(t, Integral) and not isinstance(t, bool) for t in ids)
        require(self, "banned_token_ids", listed and whole, "a list of token ids")
        object.__setattr__(self, "banned_token_ids", tuple(int(token) for token in ids))

    def task(self) -> dict[str, Any]:
        """Return the fields that are the task's, as arguments of the environment."""
        return {field.name: self.__dict__[field.name] for field in fields(TaskConfig)}
