"""The episodes of an iteration: what they hold and what is logged of them.

Axes: B sequences, L their texts, T the policy's own tokens. Masks are Bool, True = this token
counts; masked slots hold 0. KL is in nats per sequence. Every mean that is logged is over real
tokens or whole episodes, never over padding. `collect.py` collects them.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from textrl.advantages import kl_shaped_rewards
from textrl.errors import UserError
from textrl.losses import approx_kl
from textrl.masking import masked_mean, masked_var

Spent = dict[str, tuple[float, int]]
"""Seconds and failed calls so far, by the name of a reward function; "" is all together."""


@dataclass(frozen=True, kw_only=True)
class TensorData:
    """Tensors with the same first axis B."""

    def rows(self, indices: Tensor) -> Self:
        """Return the same data of some rows only."""
        return replace(self, **{f.name: self.__dict__[f.name][indices] for f in fields(self)})

    def __repr__(self) -> str:
        """Show shapes, not numbers."""
        shapes = ", ".join(f"{f.name} {list(self.__dict__[f.name].shape)}" for f in fields(self))
        return f"{type(self).__name__}({shapes})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Rollout(TensorData):
    """Finished episodes that an agent has collected."""

    input_ids: Tensor
    """The whole texts, the policy's tokens and others', right-padded. Int64 [B L]."""
    prompt_lengths: Tensor
    """The number of tokens of each prompt. Int64 [B]."""
    text_lengths: Tensor
    """The number of tokens of each whole text. Int64 [B]."""
    positions: Tensor
    """The position of each action in input_ids; its state is at the one before. Int64 [B T]."""
    completion_ids: Tensor
    """The actions: input_ids at the positions. Int64 [B T]."""
    mask: Tensor
    """Bool [B T], True on the actions."""
    logprobs: Tensor
    """Log-probs of the actions under the policy that sampled, in nats. Shape [B T]."""
    entropies: Tensor
    """Entropies of that policy, in nats. Shape [B T]."""
    values: Tensor
    """The critic's value of the state before each token; 0 without a critic. Shape [B T]."""
    bootstrap_values: Tensor
    """The critic's value after the last token of a truncated episode, else 0. Shape [B]."""
    ref_logprobs: Tensor
    """Log-probs of the actions under the reference, in nats. Shape [B T]."""
    rewards: Tensor
    """The rewards that the environment paid. Shape [B T]."""
    scores: Tensor
    """The score of each episode, NaN if it has none. Shape [B]."""
    named_scores: Tensor
    """What each of K reward functions said of the episode, NaN where it has none. Shape [B K]."""
    truncated: Tensor
    """Whether the episode was truncated. Bool [B]."""
    failed: Tensor
    """Whether the reward function or the world failed on it, and that is masked. Bool [B]."""
    turns: Tensor
    """The number of turns of each episode. Int64 [B]."""
    ended_by_eos: Tensor
    """Whether an end token ended the last turn; False if the budget did. Bool [B]."""

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each text up to its last action, Int64 [B]."""
        return self.positions.masked_fill(~self.mask, 0).amax(1) + 1

    @property
    def sequence_kl(self) -> Tensor:
        """Sampled KL to the reference in nats per sequence, [B]: sum_t log pi - log pi_ref."""
        return (self.logprobs - self.ref_logprobs).masked_fill(~self.mask, 0.0).sum(1)


@dataclass(frozen=True, kw_only=True, repr=False)
class Targets(TensorData):
    """The advantages and returns of a PPO update."""

    advantages: Tensor
    """Advantages, whitened over all tokens that count. Shape [B T]."""
    returns: Tensor
    """Targets of the critic, in reward units. Shape [B T]."""


def concatenate(parts: list[Rollout]) -> Rollout:
    """Return several batches of episodes as one batch, padded to the longest."""
    width = max(part.input_ids.shape[1] for part in parts)
    steps = max(part.mask.shape[1] for part in parts)

    def joined(name: str) -> Tensor:
        tensors = [part.__dict__[name] for part in parts]
        if tensors[0].dim() == 1 or name == "named_scores":
            return torch.cat(tensors)
        target = width if name == "input_ids" else steps
        return torch.cat([torch.nn.functional.pad(t, (0, target - t.shape[1])) for t in tensors])

    return Rollout(**{name: joined(name) for name in parts[0].__dict__})


MOST_MASKED = 0.5
"""Share of an iteration's episodes that may be left out because the reward function or world
failed."""


def without_masked(rollout: Rollout, group_size: int) -> Rollout:
    """Return the episodes on which neither the reward function nor the world failed ("mask").

    Args:
        rollout: The episodes.
        group_size: Number of rows that are compared, which stay or go together; 1 for none.

    Raises:
        UserError: More than MOST_MASKED of them would be left out.
    """
    masked = rollout.failed
    if not masked.any():
        return rollout
    kept = (~masked).view(-1, group_size).all(1).repeat_interleave(group_size)
    if int(kept.sum()) < max(2, (1 - MOST_MASKED) * len(kept)):
        raise UserError(
            f"the reward function or the world failed on {int(masked.sum())} of {len(masked)} "
            f"episodes, so that {int((~kept).sum())} of an iteration would be left out, more than "
            f"half; mend it"
        )
    return rollout.rows(kept.nonzero().squeeze(1))


def check_groups(rollout: Rollout, group_size: int, agent: str) -> None:
    """Check that all rows of a group have the same prompt.

    Raises:
        UserError: a wrapper has mixed the rows.
    """
    groups = rollout.prompt_lengths.view(-1, group_size, 1)
    ids = rollout.input_ids.view(-1, group_size, rollout.input_ids.shape[1])
    read = torch.arange(ids.shape[2], device=ids.device) < groups[:, :1]
    if (groups != groups[:, :1]).any() or ((ids != ids[:, :1]) & read).any():
        raise UserError(
            f"{agent} compares the rows of a group, but the prompts of one group differ: a wrapper "
            f"mixes the rows or resets some of them; use the environment without it"
        )


def flat_groups(scores: Tensor, group_size: int) -> float:
    """Return the share of groups whose scores are all equal, so that nothing can be compared.

    >>> flat_groups(torch.tensor([1.0, 1.0, 0.0, 1.0]), 2)
    0.5
    """
    groups = scores.nan_to_num(nan=0.0).view(-1, group_size)
    return float((groups.amax(1) == groups.amin(1)).float().mean())


def rollout_report(
    rollout: Rollout, kl_coef: float, names: tuple[str, ...] = ()
) -> dict[str, float]:
    """Return statistics of an iteration's episodes.

    `names` are those of the reward functions; of several, each has a mean and a spread.

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
        "rollout/turns": float(rollout.turns.float().mean()),
        "rollout/eos_share": float(rollout.ended_by_eos.float().mean()),
        "rollout/env_return": float(rollout.rewards.sum(1).mean()),
        **_named_report(rollout, names),
    }


def _named_report(rollout: Rollout, names: tuple[str, ...]) -> dict[str, float]:
    """Return the mean and spread of what each of several reward functions said."""
    report: dict[str, float] = {}
    if len(names) < 2:
        return report
    for name, said in zip(names, rollout.named_scores.T, strict=True):
        known = said[~said.isnan()]
        report[f"rollout/scores/{name}"] = float(known.mean()) if len(known) else math.nan
        spread = float(known.std(unbiased=False)) if len(known) else math.nan
        report[f"rollout/scores/{name}_std"] = spread
    return report


def cost_report(before: Spent, now: Spent) -> dict[str, float]:
    """Return what is logged of the costs between two moments.

    `time/reward_seconds` is the wall-clock time in reward functions (or worlds), of several
    functions for each too. `rollout/reward_failures` is the number of calls that failed, further
    tries among them. The name of all together is "".
    """
    if not now:
        return {}
    seconds = {name: now[name][0] - before[name][0] for name in now}
    report = {"time/reward_seconds": seconds.pop("")}
    report["rollout/reward_failures"] = float(sum(now[name][1] - before[name][1] for name in now))
    if len(seconds) > 1:
        report |= {f"time/reward_seconds/{name}": value for name, value in seconds.items()}
    return report


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
