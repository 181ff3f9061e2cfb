"""The episodes of an iteration: what they hold, how they are collected, what is logged of them.

Whole completions are sampled from the prompts that a reset shows, and then the environment takes
the actions (`TextEnv.pay`). This is possible because the state of this MDP is the tokens
themselves, so that no answer of the environment changes what the policy does.

Axes: B sequences, L prompt and completion, T completion. Masks are Bool, True = this token counts;
masked slots hold 0. KL is in nats per sequence. Every mean that is logged is over real tokens or
whole episodes, never over padding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from textrl.advantages import kl_shaped_rewards
from textrl.agents.base import Observation
from textrl.agents.text_env import TextEnv
from textrl.errors import UserError
from textrl.generation import Sampler, Samples
from textrl.logprobs import completion_positions
from textrl.losses import approx_kl
from textrl.masking import masked_mean, masked_var

ValuesAt = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A critic: (input_ids [B L], positions [B T], mask [B T]) -> values before the actions [B T]."""


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
    """Prompt and completion, right-padded. Int64 [B L]."""
    prompt_lengths: Tensor
    """The number of tokens of each prompt. Int64 [B]."""
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
    """The score of each episode, NaN if it was truncated. Shape [B]."""
    ended_by_eos: Tensor
    """Whether an end token ended the episode; False if the budget did. Bool [B]."""

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


def collect(
    sampler: Sampler, env: TextEnv, generator: torch.Generator, *, values_at: ValuesAt | None = None
) -> Rollout:
    """Return one finished episode of every row.

    Args:
        sampler: The policy's sampler. If it observes anything while sampling, that is the values.
        env: The environment. All its rows are reset here.
        generator: The only source of randomness.
        values_at: A critic. It gives the values of all actions if the sampler observed none, and
            the value of the state after a truncated episode.
    """
    observation, _ = env.venv.reset()
    prompt_ids, prompt_lengths = prompts_of(observation, env.reference.device)
    samples = sampler.sample(
        prompt_ids,
        prompt_lengths,
        max_new_tokens=env.max_completion_tokens,
        end_ids=env.end_token_ids,
        generator=generator,
        temperature=env.temperature,
        allowed=env.allowed,
    )
    paid = env.pay(samples.completion_ids.cpu().numpy(), samples.mask.cpu().numpy())
    ref_logprobs, rewards, scores = (
        torch.as_tensor(array, dtype=torch.float32, device=samples.mask.device)
        for array in (paid.ref_logprobs, paid.rewards, paid.scores)
    )
    truncated = torch.as_tensor(paid.truncated, device=samples.mask.device)
    input_ids = join(prompt_ids, prompt_lengths, samples.completion_ids, samples.mask)
    positions = completion_positions(prompt_lengths, samples.mask)
    last = samples.completion_ids.gather(1, samples.mask.sum(1, keepdim=True) - 1).squeeze(1)
    return Rollout(
        input_ids=input_ids,
        prompt_lengths=prompt_lengths,
        positions=positions,
        completion_ids=samples.completion_ids,
        mask=samples.mask,
        logprobs=samples.logprobs,
        entropies=samples.entropies,
        values=_values(samples, input_ids, positions, values_at),
        bootstrap_values=_bootstrap(input_ids, prompt_lengths, samples.mask, truncated, values_at),
        ref_logprobs=ref_logprobs,
        rewards=rewards,
        scores=scores,
        ended_by_eos=torch.isin(last, last.new_tensor(env.end_token_ids)),
    )


def _values(
    samples: Samples, input_ids: Tensor, positions: Tensor, values_at: ValuesAt | None
) -> Tensor:
    """Return the values [B T]: those that the sampler observed, else the critic's, else 0."""
    values = samples.observed
    if values is None and values_at is not None:
        values = values_at(input_ids, positions, samples.mask)
    if values is None:
        values = torch.zeros_like(samples.logprobs)
    return values.masked_fill(~samples.mask, 0.0)


def _bootstrap(
    input_ids: Tensor,
    prompt_lengths: Tensor,
    mask: Tensor,
    truncated: Tensor,
    values_at: ValuesAt | None,
) -> Tensor:
    """Return the critic's value of the state after each truncated episode, 0 elsewhere, [B]."""
    if values_at is None or not truncated.any():
        return torch.zeros(len(mask), device=mask.device)
    ends = prompt_lengths + mask.sum(1)
    after = values_at(input_ids, ends.unsqueeze(1), torch.ones_like(mask[:, :1]))[:, 0]
    return torch.where(truncated, after, 0.0)


def concatenate(parts: list[Rollout]) -> Rollout:
    """Return several batches of episodes as one batch, padded to the longest."""
    width = max(part.input_ids.shape[1] for part in parts)
    steps = max(part.mask.shape[1] for part in parts)

    def joined(name: str) -> Tensor:
        tensors = [part.__dict__[name] for part in parts]
        if tensors[0].dim() == 1:
            return torch.cat(tensors)
        target = width if name == "input_ids" else steps
        return torch.cat([torch.nn.functional.pad(t, (0, target - t.shape[1])) for t in tensors])

    return Rollout(**{name: joined(name) for name in parts[0].__dict__})


MOST_MASKED = 0.5
"""Share of an iteration's episodes that may be left out because the reward function failed."""


def without_masked(rollout: Rollout, on_length: str, group_size: int) -> Rollout:
    """Return the episodes that have a score or were truncated by the budget.

    The others are those on which the reward function failed (on_reward_error="mask").

    Args:
        rollout: The episodes.
        on_length: What the budget does to an episode.
        group_size: Number of rows that are compared, which stay or go together; 1 for none.

    Raises:
        UserError: More than MOST_MASKED of them would be left out.
    """
    scorable = rollout.ended_by_eos | (on_length == "score")
    masked = rollout.scores.isnan() & scorable
    if not masked.any():
        return rollout
    kept = (~masked).view(-1, group_size).all(1).repeat_interleave(group_size)
    if int(kept.sum()) < max(2, (1 - MOST_MASKED) * len(kept)):
        raise UserError(
            f"the reward function failed on {int(masked.sum())} of {len(masked)} episodes, so that "
            f"{int((~kept).sum())} of an iteration would be left out, more than half; mend it"
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


def prompts_of(observation: Observation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the prompts that a reset shows: ids [B P] and lengths [B]."""
    lengths = torch.as_tensor(observation["prompt_length"][:, 0], device=device).long()
    ids = torch.as_tensor(observation["input_ids"], device=device).long()
    return ids[:, : int(lengths.max())], lengths


def join(
    prompt_ids: Tensor, prompt_lengths: Tensor, completion_ids: Tensor, mask: Tensor
) -> Tensor:
    """Return prompt and completion joined without a gap, right-padded with 0, [B L]."""
    lengths = prompt_lengths + mask.sum(1)
    result = torch.zeros(
        len(lengths), int(lengths.max()), dtype=torch.long, device=prompt_ids.device
    )
    width = prompt_ids.shape[1]
    in_prompt = torch.arange(width, device=lengths.device) < prompt_lengths.unsqueeze(1)
    result[:, :width] = prompt_ids.masked_fill(~in_prompt, 0)[:, : result.shape[1]]
    rows, steps = mask.nonzero(as_tuple=True)
    result[rows, prompt_lengths[rows] + steps] = completion_ids[rows, steps]
    return result


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
