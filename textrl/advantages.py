"""Per-token rewards and advantage estimates: KL-shaped rewards, GAE, RLOO and GRPO.

    completion   y0  y1  y2  EOS  pad     logprobs[t] = log pi(y_t | x, y_<t)
    mask          1   1   1   1    0      values[t]   = V(state just before y_t)
    rewards      r0  r1  r2  r3    0      rewards[t]  is paid after y_t; the score lands on r3

All are pure functions of tensors; no gradient flows through them. Next to read: `losses.py`.
"""

import torch
from torch import Tensor

from textrl.masking import check_mask, check_shapes, full_precision, zero_masked


def kl_shaped_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, kl_coef: float
) -> Tensor:
    """Return the per-token RLHF rewards: minus the sampled KL, plus the score on the last token.

        r_t = -kl_coef * (log pi(y_t) - log pi_ref(y_t)) + [t is the last True] * score

    Args:
        scores: One score per sequence, in score units. Shape [B].
        logprobs: The policy's log-probs, in nats. Shape [B T].
        ref_logprobs: The reference's log-probs, in nats. Shape [B T].
        mask: Bool, True = counts. Shape [B T]; every row has a True.
        kl_coef: The KL coefficient, in score units per nat.

    Returns: rewards, 0 where the mask is False. Shape [B T].

    Raises:
        ValueError: shapes do not fit (both are named), or a row has no True.

    Source: Ziegler et al. 2019, 1909.08593, eq. 2, paid token by token.

    >>> scores, mask = torch.tensor([1.0]), torch.tensor([[True, True, False]])
    >>> lp, ref = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-2.0, -2.0, 0.0]])
    >>> kl_shaped_rewards(scores, lp, ref, mask, kl_coef=0.5).tolist()
    [[-0.5, 1.0, 0.0]]
    """
    check_shapes(logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    rewards = -kl_coef * zero_masked(logprobs - ref_logprobs, mask)
    return rewards + score_on_last_token(scores, mask)


def score_on_last_token(scores: Tensor, mask: Tensor) -> Tensor:
    """Return zeros [B T] except for each row's score in its last True slot.

    Raises:
        ValueError: scores are not [B] for a mask [B T], or a row has no True.
    """
    check_mask(mask)
    if mask.dim() != 2 or scores.shape != mask.shape[:1]:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)} but mask has shape {tuple(mask.shape)}; "
            f"expected [B] and [B T]"
        )
    if not mask.any(dim=1).all():
        row = int((~mask.any(dim=1)).nonzero()[0])
        raise ValueError(f"mask row {row} has no True: its score has no token to land on")
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, steps, -1).amax(dim=1)
    scores = full_precision(scores)
    zeros = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device)
    return zeros.scatter(1, last.unsqueeze(1), scores.unsqueeze(1))


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    bootstrap_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return advantages and the critic's targets by GAE (Schulman et al. 2015, 1506.02438).

        delta_t = r_t + gamma * V_{t+1} - V_t
        A_t     = delta_t + gamma * lambda * A_{t+1}
        R_t     = A_t + V_t

    V after the last token is `bootstrap_values`: 0 (the default) if the episode terminated, the
    critic's value if it was truncated. Slots that do not count are skipped.

    Args:
        rewards: The reward paid after token t. Shape [B T].
        values: V(state just before token t), in the unit of rewards. Shape [B T].
        mask: Bool, True = counts. Shape [B T].
        gamma: Discount per token; 1 for RLHF.
        gae_lambda: GAE's lambda: 1 gives returns minus values, 0 gives one-step errors.
        bootstrap_values: V(state after the last token). Shape [B].

    Returns: (advantages, returns), each [B T], 0 where the mask is False.

    Raises:
        ValueError: shapes do not fit (both are named).

    >>> r, v = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
    >>> gae(r, v, torch.ones(1, 2, dtype=torch.bool), gae_lambda=1.0)  # returns (1, 1) less values
    (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """
    check_shapes(rewards=rewards, values=values, mask=mask)
    check_mask(mask)
    rewards, values = zero_masked(rewards, mask), zero_masked(values, mask)
    after = torch.zeros_like(values[:, 0]) if bootstrap_values is None else bootstrap_values
    check_shapes(row_of_values=values[:, 0], bootstrap_values=after)
    next_value, advantage = full_precision(after), torch.zeros_like(values[:, 0])
    columns: list[Tensor] = []
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        counts = mask[:, t]
        advantage = torch.where(counts, delta + gamma * gae_lambda * advantage, advantage)
        next_value = torch.where(counts, values[:, t], next_value)
        columns.append(advantage.masked_fill(~counts, 0.0))
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


def rloo_advantages(scores: Tensor, group_size: int) -> Tensor:
    """Return each score minus the mean of the other scores of its group.

        A_i = s_i - mean_{j != i} s_j = (s_i - group mean) * G / (G - 1)

    Args:
        scores: The scores; each G consecutive rows are a group. Shape [B], B a multiple of G.
        group_size: G >= 2, the number of samples per prompt.

    Returns: Shape [B].

    Raises:
        ValueError: scores are not [B] with B a multiple of G, or G < 2.

    Source: Ahmadian et al. 2024, 2402.14740, section 2.2.

    >>> rloo_advantages(torch.tensor([1.0, 3.0, 0.0, 0.0]), group_size=2).tolist()
    [-2.0, 2.0, 0.0, 0.0]
    """
    groups = _grouped(scores, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


def grpo_advantages(scores: Tensor, group_size: int, *, scale: bool = True) -> Tensor:
    """Return each score minus the group's mean and, with `scale`, divided by the group's std.

        A_i = (s_i - mean) / sqrt(var + 1e-8)      scale=True, biased variance (GRPO)
        A_i =  s_i - mean                          scale=False (Dr.GRPO)

    Args:
        scores: The scores; each G consecutive rows are a group. Shape [B], B a multiple of G.
        group_size: G >= 2, the number of samples per prompt.
        scale: Whether to divide by the group's standard deviation.

    Returns: Shape [B]; a group of equal scores gets 0.

    Raises:
        ValueError: scores are not [B] with B a multiple of G, or G < 2.

    Source: 2402.03300 section 4.1.2 (GRPO); 2503.20783 (Dr.GRPO, scale=False).

    >>> grpo_advantages(torch.tensor([1.0, 3.0]), group_size=2).tolist()
    [-1.0, 1.0]
    """
    groups = _grouped(scores, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    if scale:
        centred = centred * (centred.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    return centred.flatten()


def _grouped(scores: Tensor, group_size: int) -> Tensor:
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2 to compare samples, got {group_size}")
    if scores.dim() != 1 or scores.shape[0] % group_size:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}; expected [B] with B a multiple of "
            f"group_size {group_size}"
        )
    return full_precision(scores).view(-1, group_size)
