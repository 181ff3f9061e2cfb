"""Diagnostics that an agent logs about its episodes and updates, to check that a run is sound.

KL is in nats per sequence. Every mean is over real tokens or whole episodes, never over padding.
"""

import math

import torch
from torch import Tensor

from textrl.advantages import kl_shaped_rewards
from textrl.losses import approx_kl
from textrl.masking import masked_mean, masked_var
from textrl.types import Rollout, Targets


def rollout_report(rollout: Rollout, kl_coef: float) -> dict[str, float]:
    """Return statistics of an iteration's episodes.

    `rollout/kl` is the sampled KL(pi || pi_ref) (k1: unbiased, but a single batch may be below 0).
    `rollout/kl_error` is its standard error over episodes. `rollout/objective` is what RLHF
    maximises: the score minus kl_coef times that KL. A truncated episode has no score; 0 is used.
    """
    scored = rollout.scores[~rollout.scores.isnan()]
    kl, mask = rollout.sequence_kl, rollout.mask
    objective = kl_shaped_rewards(
        rollout.scores.nan_to_num(nan=0.0),
        rollout.logprobs,
        rollout.ref_logprobs,
        mask,
        kl_coef=kl_coef,
    ).sum(1)
    return {
        "rollout/score": float(scored.mean()) if len(scored) else math.nan,
        "rollout/score_std": float(scored.std(unbiased=False)) if len(scored) else math.nan,
        "rollout/objective": float(objective.mean()),
        "rollout/kl": float(kl.mean()),
        "rollout/kl_error": float(kl.std(unbiased=False) / len(kl) ** 0.5),
        "rollout/length": float(mask.sum(1).float().mean()),
        "rollout/entropy": float(masked_mean(rollout.entropies, mask)),
        "rollout/eos_share": float(rollout.ended_by_eos.float().mean()),
        "rollout/env_return": float(rollout.rewards.sum(1).mean()),
    }


def explained_variance(rollout: Rollout, targets: Targets) -> float:
    """Return 1 - var(returns - values) / var(returns) over real tokens; 0 for useless values."""
    spread = masked_var(targets.returns, rollout.mask)
    if float(spread) == 0:
        return 0.0
    return float(1 - masked_var(targets.returns - rollout.values, rollout.mask) / spread)


@torch.no_grad()
def ratio_report(logprobs: Tensor, part: Rollout, clip_range: float) -> dict[str, Tensor]:
    """Return token means that tell how far the policy has moved from the one that sampled.

    Log-probs have shape [B T].
    """
    distance = ((logprobs - part.logprobs).exp() - 1).abs()
    return {
        "approx_kl": approx_kl(logprobs, part.logprobs, part.mask),
        "clip_fraction": masked_mean((distance > clip_range).float(), part.mask),
        "ratio_error": masked_mean(distance, part.mask),
    }


def update_report(updates: list[dict[str, float]]) -> dict[str, float]:
    """Return the means over an iteration's updates, and two checks on the first update.

    At the first minibatch the policy is still the one that sampled, so `first_ratio_error` (the
    mean |ratio - 1|) and `first_approx_kl` must be 0 up to rounding. Only agents that compute the
    ratio log these two.
    """
    report = {"train/updates": float(len(updates))}
    for name in updates[0] if updates else ():
        if name != "ratio_error":
            mean = torch.tensor([numbers[name] for numbers in updates]).mean()
            report[f"train/{name}"] = float(mean)
    if updates and "ratio_error" in updates[0]:
        report["train/first_ratio_error"] = updates[0]["ratio_error"]
        report["train/first_approx_kl"] = updates[0]["approx_kl"]
    return report
