"""The checked arguments of the environment, shared by the single and the vector one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.bounds import NotNegative, Positive, check_fields
from textrl.envs.prompts import PromptSource
from textrl.errors import UserError
from textrl.rewards import Reward

Shaping = Literal["exact", "none", "potential"]
"""What a token earns beside the score; see `candidates.py`."""


@dataclass(frozen=True, kw_only=True)
class CoreConfig:
    """The keyword arguments of the environment; see `TextRLHFEnv` for each one's meaning."""

    reference: str | Path | PreTrainedModel | None = None
    reward: Reward | Sequence[Reward | tuple[Reward, float]] | None = None
    prompts: PromptSource | None = None
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None
    kl_coef: NotNegative[float] = 0.05
    max_prompt_tokens: Positive[int] = 64
    max_completion_tokens: Positive[int] = 48
    temperature: Positive[float] = 1.0
    missing_eos_penalty: NotNegative[float] = 0.0
    on_length: str = "score"
    min_completion_tokens: NotNegative[int] = 0
    banned_token_ids: Sequence[int] = ()
    group_size: Positive[int] = 1
    device: str | torch.device | None = None
    dtype: str | torch.dtype = "auto"

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range, naming field, value and what was expected."""
        check_fields(self)
        self._check_banned()
        if not 0 <= self.min_completion_tokens <= self.max_completion_tokens:
            raise UserError(
                f"min_completion_tokens must be 0 to max_completion_tokens "
                f"({self.max_completion_tokens}), got {self.min_completion_tokens}"
            )
        if self.on_length not in ("score", "truncate"):
            raise UserError(f"on_length must be 'score' or 'truncate', got {self.on_length!r}")
        if self.reference is not None:
            for field in ("reward", "prompts"):
                if self.__dict__[field] is None:
                    raise UserError(
                        f"{field} is missing: a task has a reference, a reward, prompts"
                    )
            if isinstance(self.reference, torch.nn.Module) and self.tokenizer is None:
                raise UserError("tokenizer is missing: a live reference needs tokenizer=")

    def _check_banned(self) -> None:
        """Keep the banned ids as a tuple of whole numbers."""
        given = self.banned_token_ids
        ids = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
        if isinstance(given, Integral | str | None) or not all(
            isinstance(token, Integral) and not isinstance(token, bool) for token in ids
        ):
            raise UserError(f"banned_token_ids is {given!r}; expected a list of token ids")
        object.__setattr__(self, "banned_token_ids", tuple(int(token) for token in ids))


def require_exact_shaping(name: str, shaping: Shaping) -> None:
    """Refuse to pay a policy's half of the KL where the other half is not paid.

    Raises:
        UserError: the shaping is another one.
    """
    if shaping != "exact":
        raise UserError(
            f"{name} pays the policy's half of the KL, but shaping {shaping!r} leaves the "
            f'other unpaid: make the environment with shaping="exact", or leave {name} out'
        )
