"""Collection of episodes: the policy samples completions, and the environment pays for them.

Whole completions are sampled from the prompts that a reset shows, and then the environment takes the
actions (`TextEnv.pay`). This is possible because the state of this MDP is the tokens themselves, so
that no answer of the environment changes what the policy does.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from textrl.agents.base import Observation
from textrl.agents.text_env import TextEnv
from textrl.errors import UserError
from textrl.generation import Sampler, Samples
from textrl.logprobs import completion_positions
from textrl.types import Rollout

ValuesAt = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A critic: (input_ids [B L], positions [B T], mask [B T]) -> values before the actions [B T]."""


def collect(
    sampler: Sampler,
    env: TextEnv,
    generator: torch.Generator,
    *,
    values_at: ValuesAt | None = None,
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
