"""Scoring of texts by reward functions, frozen reward models, or weighted lists of both.

Reward functions follow TRL's convention: `f(prompts, completions, **columns) -> list of floats`,
with the data set's other columns by name. Prompts and completions are texts. For chat prompts, a
function with an argument `messages` gets the messages, and a reward model with a chat template
reads messages and completion rendered by its own template. `make_scorer` makes a `Scorer` of what a
user gives. Next to read: `reward_calls.py` (the calls and their checks), `reward_models.py`.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from textrl.chat import Messages
from textrl.errors import UserError
from textrl.reward_calls import Patience, called
from textrl.reward_calls import Scorer as Scorer
from textrl.reward_models import RewardModel as RewardModel


class RewardFunction(Protocol):
    """Scores a batch of texts; the columns of the prompt data set are keyword arguments."""

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> Sequence[float]:
        """Return one finite number per completion."""
        ...


Reward = str | Path | Callable[..., Any]
"""A folder or hub id of a sequence classifier, or a function."""


def make_scorer(
    reward: Reward | Sequence[Reward | tuple[Reward, float]],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    patience: Patience | None = None,
) -> Scorer:
    """Return the scorer of one reward, or of a list of rewards or (reward, weight) pairs.

    Raises:
        UserError: the list is empty, something is not a reward, or a model does not load.
    """
    entries = list(reward) if isinstance(reward, list | tuple) else [reward]
    if not entries:
        raise UserError("the list of rewards is empty; give at least one")
    functions, names, weights = [], [], []
    for entry in entries:
        source, weight = _with_weight(entry)
        if isinstance(source, str | Path):
            functions.append(RewardModel.from_pretrained(source, dtype=dtype, device=device))
            names.append(str(source))
        elif isinstance(source, nn.Module):
            raise UserError(
                f"a live {type(source).__name__} needs its tokenizer to score texts; give "
                f"textrl.rewards.RewardModel(model, tokenizer)"
            )
        elif callable(source):
            functions.append(source)
            names.append(str(getattr(source, "__name__", type(source).__name__)))
        else:
            raise UserError(f"a reward must be a model's name or a callable, got {source!r}")
        weights.append(weight)
    return Scorer(
        functions=tuple(functions),
        names=tuple(names),
        weights=tuple(weights),
        patience=patience or Patience(),
    )


def _with_weight(entry: Any) -> tuple[Any, float]:
    """Return a reward and its weight, which is 1 by default."""
    if not isinstance(entry, tuple | list):
        return entry, 1.0
    numbers = [isinstance(part, Real) and math.isfinite(part) for part in entry]
    if numbers != [False, True]:
        raise UserError(f"a reward with its weight is (reward, finite number), got {entry!r}")
    return entry[0], float(entry[1])


def conversational(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adapt a TRL reward function that reads messages, for use with chat prompts.

    It gets `prompts` as messages and each completion as `[{"role": "assistant", "content": text}]`.
    """

    def score(
        prompts: list[str],
        completions: list[str],
        messages: list[Messages | None] | None = None,
        **columns: list[Any],
    ) -> Any:
        if messages is None or None in messages:
            raise UserError("the prompts are plain text; a conversational function needs messages")
        replies = [[{"role": "assistant", "content": text.strip()}] for text in completions]
        return called(function, list(messages), replies, columns)

    score.__name__ = str(getattr(function, "__name__", type(function).__name__))
    return score
