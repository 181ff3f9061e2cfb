"""The loss functions for policy gradients, reward models and SFT.

They are pure functions in float32 or float64. Losses of tokens take a mask and return the mean over
tokens; losses of pairs and rankings return one value per row. The losses of DPO and its variants
are in `preference_losses.py`. Next to read: `preference_losses.py`, then `agents/ppo.py`.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from textrl.masking import check_mask, check_shapes, full_precision, masked_mean, zero_masked
from textrl.preference_losses import PREFERENCE_LOSSES, dpo_loss

__all__ = [
    "PREFERENCE_LOSSES",
    "approx_kl",
    "bradley_terry_loss",
    "dpo_loss",
    "plackett_luce_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "ranking_loss",
    "reinforce_loss",
    "sft_loss",
]


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float = 0.2,
) -> Tensor:
    """Return the clipped surrogate loss (to be minimised), averaged over tokens.

        ratio = exp(log pi - log pi_old)
        loss  = mean_t -min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A)

    Args:
        logprobs: Log-probs of the policy in training, in nats. Shape [B T].
        old_logprobs: Log-probs of the policy that sampled, in nats. Shape [B T].
        advantages: The advantages, usually whitened over the whole batch. Shape [B T].
        mask: Bool, True = counts. Shape [B T].
        clip_range: The clip range eps > 0.

    Raises:
        ValueError: shapes differ (both named) or the mask has no True.

    Source: Schulman et al. 2017, 1707.06347, eq. 7.

    >>> one = torch.ones(1, 1)
    >>> ppo_policy_loss(0 * one, 0 * one, 2 * one, one.bool()).item()
    -2.0
    """
    check_shapes(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    if not clip_range > 0:
        raise ValueError(f"clip_range must be positive, got {clip_range}")
    advantages = zero_masked(advantages, mask)
    ratio = zero_masked(logprobs - old_logprobs, mask).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -masked_mean(torch.minimum(ratio * advantages, clipped * advantages), mask)


def reinforce_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Return the REINFORCE loss, averaged over tokens; its gradient is that of -E[A log pi].

        loss = mean_t -A * log pi

    Args:
        logprobs: Log-probs of the policy that sampled and is trained, in nats. Shape [B T].
        advantages: The advantages. Shape [B T].
        mask: Bool, True = counts. Shape [B T].

    Raises:
        ValueError: shapes differ (both named) or the mask has no True.

    Source: Williams 1992, section 5 (episodic REINFORCE).

    >>> one = torch.ones(1, 1)
    >>> reinforce_loss(-0.5 * one, 2 * one, one.bool()).item()
    1.0
    """
    check_shapes(logprobs=logprobs, advantages=advantages, mask=mask)
    return -masked_mean(zero_masked(logprobs, mask) * zero_masked(advantages, mask), mask)


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip_range_vf: float | None = 0.2,
) -> Tensor:
    """Return half the token mean of the larger of the plain and the clipped squared error.

        V_clip = V_old + clip(V - V_old, -eps, eps)
        loss   = 0.5 * mean_t max((V - R)^2, (V_clip - R)^2)

    Args:
        values: Values of the critic in training, in reward units. Shape [B T].
        old_values: Values of the critic at collection. Shape [B T].
        returns: The targets of the values. Shape [B T].
        mask: Bool, True = counts. Shape [B T].
        clip_range_vf: The clip range eps in reward units; None for no clipping.

    Raises:
        ValueError: shapes differ (both named) or the mask has no True.

    Source: OpenAI baselines' ppo2 (not the PPO paper), and `PPOTrainer.loss` of 1909.08593's code:
    https://github.com/openai/lm-human-preferences/blob/f774e89b9e3762a03b7f3953189861979bee1775/lm_human_preferences/train_policy.py

    >>> one = torch.ones(1, 1)
    >>> ppo_value_loss(2 * one, 0 * one, 2 * one, one.bool()).item()  # 0.5 * (0.2 - 2)^2
    1.619999885559082
    """
    check_shapes(values=values, old_values=old_values, returns=returns, mask=mask)
    values, old_values = zero_masked(values, mask), zero_masked(old_values, mask)
    returns = zero_masked(returns, mask)
    error = (values - returns).square()
    if clip_range_vf is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range_vf, clip_range_vf)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * masked_mean(error, mask)


def approx_kl(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, estimator: str = "k3"
) -> Tensor:
    """Return an estimate of KL(pi_old || pi) per token from samples of pi_old, for logging only.

        d = log pi - log pi_old;   k1 = -d,   k2 = d^2 / 2,   k3 = exp(d) - 1 - d

    k1 and k3 are unbiased, k3 is never negative. For KL(pi || pi_ref) on samples of pi, pass the
    reference's log-probs first and the policy's second.

    Args:
        logprobs: Log-probs of pi, in nats. Shape [B T].
        old_logprobs: Log-probs of pi_old, the distribution that sampled. Shape [B T].
        mask: Bool, True = counts. Shape [B T].
        estimator: "k1", "k2" or "k3".

    Returns: token mean in nats, a scalar.

    Raises:
        ValueError: shapes differ, the mask has no True, or the estimator is unknown.

    Source: Schulman 2020, "Approximating KL divergence".

    >>> d = torch.tensor([[0.5]])
    >>> round(approx_kl(d, 0 * d, d.bool(), estimator="k2").item(), 4)
    0.125
    """
    check_shapes(logprobs=logprobs, old_logprobs=old_logprobs, mask=mask)
    d = zero_masked(logprobs - old_logprobs, mask)
    if estimator == "k1":
        return masked_mean(-d, mask)
    if estimator == "k2":
        return masked_mean(0.5 * d.square(), mask)
    if estimator == "k3":
        return masked_mean(d.expm1() - d, mask)
    raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', got {estimator!r}")


def sft_loss(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return the token mean of the negative log-likelihood, in nats per token.

    Args:
        logprobs: Log-probs of the demonstrations' tokens, in nats. Shape [B T].
        mask: Bool, True = counts. Shape [B T].

    Raises:
        ValueError: shapes differ or the mask has no True.

    >>> sft_loss(torch.tensor([[-1.0, -3.0]]), torch.tensor([[True, True]])).item()
    2.0
    """
    return -masked_mean(logprobs, mask)


def bradley_terry_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, margin: Tensor | None = None
) -> Tensor:
    """Return -log P(chosen beats rejected) of each pair, in nats.

        loss = -log sigmoid(s_chosen - s_rejected - margin)

    Args:
        chosen_scores: Scores of the chosen completions. Shape [B].
        rejected_scores: Scores of the rejected completions. Shape [B].
        margin: The desired difference of the scores, in score units. Shape [B].

    Raises:
        ValueError: shapes differ (both named).

    Source: Ouyang et al. 2022, 2203.02155, eq. 1; margin as in Llama 2, 2307.09288, eq. 2.

    >>> zero = torch.zeros(1)
    >>> round(bradley_terry_loss(zero, zero).item(), 4)  # log 2
    0.6931
    """
    check_shapes(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    gap = full_precision(chosen_scores) - full_precision(rejected_scores)
    if margin is not None:
        check_shapes(chosen_scores=chosen_scores, margin=margin)
        gap = gap - margin
    return -logsigmoid(gap)


def ranking_loss(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean Bradley-Terry loss over all pairs of each ranking.

        loss = mean over pairs (i better than j) of -log sigmoid(s_i - s_j)

    Args:
        scores: Scores of K completions per prompt. Shape [B K].
        ranks: Ranks of the completions: 0 is best; equal ranks are ties and make no pair.
            Shape [B K].
        mask: Bool, True = this completion exists. Shape [B K].

    Returns: Shape [B]; 0 for a ranking without pairs.

    Raises:
        ValueError: shapes differ (both named).

    Source: Ouyang et al. 2022, 2203.02155, eq. 1 (all K(K-1)/2 pairs in one batch element).

    >>> loss = ranking_loss(torch.zeros(1, 3), torch.tensor([[0, 1, 1]]))  # 2 pairs, each log 2
    >>> round(loss.item(), 4)
    0.6931
    """
    scores, mask = _ranking_inputs(scores, ranks, mask)
    better = ranks.unsqueeze(2) < ranks.unsqueeze(1)
    pairs = better & mask.unsqueeze(2) & mask.unsqueeze(1)
    losses = -logsigmoid(scores.unsqueeze(2) - scores.unsqueeze(1)).masked_fill(~pairs, 0.0)
    return losses.sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)


def plackett_luce_loss(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the negative log-likelihood of each ranking under the Plackett-Luce model.

        loss = -sum_i log( exp(s_i) / (exp(s_i) + sum_{j ranked below i} exp(s_j)) )

    Tied completions do not compete with each other; K = 2 is the Bradley-Terry loss.

    Args:
        scores: Scores of K completions per prompt. Shape [B K].
        ranks: Ranks of the completions: 0 is best; equal ranks are ties. Shape [B K].
        mask: Bool, True = this completion exists. Shape [B K].

    Returns: Shape [B], in nats.

    Raises:
        ValueError: shapes differ (both named).

    Source: Plackett 1975, Luce 1959; for DPO in 2305.18290, appendix A.3.

    >>> round(plackett_luce_loss(torch.zeros(1, 3), torch.tensor([[0, 1, 2]])).item(), 4)  # log 6
    1.7918
    """
    scores, mask = _ranking_inputs(scores, ranks, mask)
    below = ranks.unsqueeze(2) < ranks.unsqueeze(1)
    itself = torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device)
    rivals = (below | itself) & mask.unsqueeze(1)
    pool = scores.unsqueeze(1).expand(rivals.shape).masked_fill(~rivals, -torch.inf)
    pool = pool.masked_fill(~mask.unsqueeze(2), 0.0)
    return (pool.logsumexp(2) - scores).masked_fill(~mask, 0.0).sum(1)


def _ranking_inputs(scores: Tensor, ranks: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    check_shapes(scores=scores, ranks=ranks)
    mask = torch.ones_like(ranks, dtype=torch.bool) if mask is None else mask
    check_shapes(scores=scores, mask=mask)
    check_mask(mask)
    return zero_masked(scores, mask), mask
