"""Functions that the agents without a critic share (`rloo.py`, `grpo.py`, `reinforce.py`).

These agents treat a whole completion as one action. Its return is the sum of both halves of the
reward, and its advantage compares that return with the returns of other completions.
"""

import torch
from torch import Tensor

from textrl.agents.rollout import Rollout
from textrl.errors import UserError


def episode_returns(rollout: Rollout, kl_coef: float) -> Tensor:
    """Return score - kl_coef * sum_t (log pi - log pi_ref) of each episode, [B].

    Raises:
        UserError: an episode was truncated, so that it has no score and no return.
    """
    if rollout.scores.isnan().any():
        raise UserError(
            "an agent without a critic needs a score for every episode; make the environment with "
            "on_length='score'"
        )
    rewards = rollout.rewards - kl_coef * rollout.logprobs
    return rewards.masked_fill(~rollout.mask, 0.0).sum(1)


def spread_over_tokens(advantages: Tensor, mask: Tensor) -> Tensor:
    """Repeat each completion's advantage [B] on each of its tokens, [B T]."""
    return torch.where(mask, advantages.unsqueeze(1), 0.0)
