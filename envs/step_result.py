"""`StepResult`: what a step of `token_rows.py` leads to."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The result of one step (T = 1) or of a sequence of T steps; rows that ended have a score."""

    rewards: np.ndarray
    """The rewards, 0 where no action was taken. Float64 [B T]."""
    ref_logprobs: np.ndarray
    """The reference's log-probs in nats, 0 where no action was taken. Float64 [B T]."""
    terminated: np.ndarray
    """Whether each row's episode terminated. Bool [B]."""
    truncated: np.ndarray
    """Whether each row's episode was truncated. Bool [B]."""
    score: np.ndarray
    """The score of each row, NaN unless its episode ended with a score. Float64 [B]."""
    finish_reason: np.ndarray
    """Why each episode ended, None while it goes on. Object [B]."""
    extras: dict[str, tuple[np.ndarray, np.ndarray]]
    """What else infos show, by name: object [B], and the rows that have it, Bool [B]."""
