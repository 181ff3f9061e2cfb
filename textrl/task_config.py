"""The numbers of a text task: the environment's arguments that are neither a model nor data.

The signatures of the environments (`envs/core_config.py`) and the options of the command line
(`EnvConfig`, `BenchmarkConfig`) are built from it. It imports the standard library only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal

from textrl.bounds import NotNegative, Positive, check_fields, require

FAILURE_SETTINGS = ("reward_timeout", "reward_retries", "on_reward_error")
"""What a run may set anew after its reward function has failed; no score depends on it."""


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """What every environment over tokens has: lengths, the KL, the tokens that may be taken."""

    kl_coef: NotNegative[float] = 0.05
    """Weight of the KL to the reference, in score units per nat."""
    max_prompt_tokens: Positive[int] = 64
    """Maximum length of a prompt in tokens. Longer prompts are refused."""
    max_completion_tokens: Positive[int] = 48
    """Maximum number of tokens after the prompt (the token budget of an episode)."""
    temperature: Positive[float] = 1.0
    """Temperature of sampling and of all log-probs, including those of the reference."""
    banned_token_ids: Sequence[int] = ()
    """Token ids that are never valid actions. They are refused, and policy and reference are
    distributions over the other tokens."""
    group_size: Positive[int] = 1
    """Number of episodes per prompt. A single environment runs them one after another. A vector
    environment runs them in consecutive rows, and its number of rows must be a multiple of
    group_size."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range, naming field, value and what was expected."""
        check_fields(self)
        given = self.banned_token_ids
        listed = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
        ids = list(given) if listed else []
        whole = all(isinstance(t, Integral) and not isinstance(t, bool) for t in ids)
        require(self, "banned_token_ids", listed and whole, "a list of token ids")
        object.__setattr__(self, "banned_token_ids", tuple(int(token) for token in ids))


@dataclass(frozen=True, kw_only=True)
class TaskConfig(TokensConfig):
    """The definition of an episode of one turn and of its reward."""

    missing_eos_penalty: NotNegative[float] = 0.0
    """Penalty for an episode that ended at the token budget, without an end token. It is subtracted
    from the reward, in score units."""
    on_length: Literal["score", "truncate"] = "score"
    """How an episode ends at the token budget. `score` ends and scores it; `truncate` truncates it
    without a score."""
    min_completion_tokens: NotNegative[int] = 0
    """Number of completion tokens before which end tokens are not valid actions. They are refused,
    and policy and reference are distributions over the other tokens."""
    reward_timeout: NotNegative[float] = 0.0
    """Maximum number of seconds of one call of a reward function; 0 means no limit. Reward models
    are not limited."""
    reward_retries: NotNegative[int] = 0
    """Number of further tries of a reward function that fails: that raises, takes longer than
    reward_timeout, or returns a number that is not finite."""
    on_reward_error: Literal["stop", "mask"] = "stop"
    """What happens when a reward function fails after all tries. `stop` ends the run with an error
    and a save; `mask` truncates the episodes in question, which agents then leave out."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range, naming field, value and what was expected."""
        super().__post_init__()
        most = self.max_completion_tokens
        fits = self.min_completion_tokens <= most
        require(self, "min_completion_tokens", fits, f"at most max_completion_tokens, {most}")

    def arguments(self) -> dict[str, Any]:
        """Return the fields of the task as arguments of the environment."""
        return {field.name: self.__dict__[field.name] for field in fields(TaskConfig)}
