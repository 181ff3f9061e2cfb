"""What the batched core returns for a step or a sequence of steps."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step (T = 1) or one sequence of T steps paid; rows that ended have a score."""

    rewards: np.ndarray
    """Float64 [B T], 0 where no action counted."""
    ref_logprobs: np.ndarray
    """Float64 [B T], in nats, 0 where no action counted."""
    terminated: np.ndarray
    """Bool [B]."""
    truncated: np.ndarray
    """Bool [B]."""
    score: np.ndarray
    """Float64 [B], NaN where the row did not end scored."""
    finish_reason: np.ndarray
    """Object [B]: "eos", "length" or None while the episode goes on."""
    completion: np.ndarray
    """Object [B]: the text of the rows that ended, else None."""
