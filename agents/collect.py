"""Collection of episodes: the policy samples completions, and the environment pays for them.

Whole completions are sampled from the prompts that a reset shows. The environment then takes the
actions in one call of `step_sequence` if it has that method, and otherwise step by step; the
rewards are the same. This is possible because the state of this MDP is the tokens themselves, so
that no answer of the environment changes what the policy does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from textrl.agents.base import Observation
from textrl.agents.text_env import TextEnv
from textrl.errors import UserError
from textrl.generation import Sampler, Samples
from textrl.logprobs import completion_positions
from textrl.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Paid:
    """What the environment paid for one completion per row."""

    rewards: Tensor
    """The reward of each token. Shape [B T]."""
    ref_logprobs: Tensor
    """The reference's log-probs of the tokens, in nats. Shape [B T]."""
    scores: Tensor
    """The score of each completion, NaN where it was truncated. Shape [B]."""
    truncated: Tensor
    """Whether each episode was truncated. Bool [B]."""


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
    paid = _pay(env, samples)
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
        bootstrap_values=_bootstrap(input_ids, prompt_lengths, samples.mask, paid, values_at),
        ref_logprobs=paid.ref_logprobs,
        rewards=paid.rewards,
        scores=paid.scores,
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
    paid: Paid,
    values_at: ValuesAt | None,
) -> Tensor:
    """Return the critic's value of the state after each truncated episode, 0 elsewhere, [B]."""
    if values_at is None or not paid.truncated.any():
        return torch.zeros(len(mask), device=mask.device)
    ends = prompt_lengths + mask.sum(1)
    after = values_at(input_ids, ends.unsqueeze(1), torch.ones_like(mask[:, :1]))[:, 0]
    return torch.where(paid.truncated, after, 0.0)


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


def _pay(env: TextEnv, samples: Samples) -> Paid:
    """Let the environment take the actions, and return what it paid."""
    actions, mask = samples.completion_ids.cpu().numpy(), samples.mask.cpu().numpy()
    if hasattr(env.venv, "step_sequence"):  # a wrapped environment must see every step
        paid = _pay_at_once(env, actions, mask)
    else:
        paid = _pay_step_by_step(env, actions, mask)
    device = samples.mask.device
    rewards, ref_logprobs, scores = (
        torch.as_tensor(array, dtype=torch.float32, device=device) for array in paid[:3]
    )
    truncated = torch.as_tensor(paid[3], device=device)
    return Paid(rewards=rewards, ref_logprobs=ref_logprobs, scores=scores, truncated=truncated)


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Rewards, reference log-probs, scores and truncated flags, as in `Paid`."""


def _pay_at_once(env: TextEnv, actions: np.ndarray, mask: np.ndarray) -> Arrays:
    # step_sequence is not in Gymnasium's interface; _pay() has checked that the environment has it.
    rewards, infos = env.venv.step_sequence(actions, mask)  # type: ignore[attr-defined]
    return rewards, infos["ref_logprobs"], infos["score"], infos["truncated"]


def _pay_step_by_step(env: TextEnv, actions: np.ndarray, mask: np.ndarray) -> Arrays:
    """Take the actions step by step; finished rows keep stepping in an episode that is ignored.

    Unless the environment resets rows in the same step, the ignored episode gets a fixed prompt.
    Thus all rows of a group draw equally many prompts from their prompt streams.
    """
    rewards, ref_logprobs = np.zeros(mask.shape), np.zeros(mask.shape)
    scores = np.full(len(mask), np.nan)
    truncated_rows = np.zeros(len(mask), dtype=bool)
    same_step = env.venv.metadata.get("autoreset_mode") is AutoresetMode.SAME_STEP
    over = np.zeros(len(mask), dtype=bool)
    for t in range(mask.shape[1]):
        if over.any() and not same_step:
            env.venv.reset(options={"reset_mask": over, "index": 0})
        counts = mask[:, t]
        tokens = np.where(counts, actions[:, t], env.allowed.filler)
        observation, reward, terminated, truncated, infos = env.venv.step(tokens)
        if not isinstance(infos, dict):
            raise UserError(f"{env.venv} gives its infos in another form; leave that wrapper out")
        over = terminated | truncated
        rewards[counts, t] = reward[counts]
        ref_logprobs[counts, t] = _info(infos, "ref_logprob", over)[counts]
        ended = counts & terminated
        if ended.any():
            scores[ended] = _info(infos, "score", over)[ended]
        truncated_rows |= counts & truncated
        going_on = mask[:, t + 1] if t + 1 < mask.shape[1] else np.zeros_like(over)
        if (early := counts & over & going_on).any():
            raise UserError(
                f"a wrapper ended the episode of row {int(early.argmax())} after {t + 1} tokens, "
                f"but the agent samples whole completions: let the environment end them, by an end "
                f"token or max_completion_tokens"
            )
        _check_tokens(observation, tokens, counts & ~over)
        last = np.where(ended, scores, 0.0) - env.missing_eos_penalty * (
            ended & ~np.isin(tokens, env.end_token_ids)
        )
        _check_rewards(reward, env.kl_coef * ref_logprobs[:, t] + last, counts)
    return rewards, ref_logprobs, scores, truncated_rows


def _check_tokens(observation: Observation, tokens: np.ndarray, rows: np.ndarray) -> None:
    """Raise UserError if a row shows a different token from the one that the agent gave."""
    ends = np.asarray(observation["attention_mask"]).sum(1).astype(np.int64) - 1
    shown = np.asarray(observation["input_ids"])[np.arange(len(tokens)), ends]
    if (other := rows & (shown != tokens)).any():
        row = int(other.argmax())
        raise UserError(
            f"a wrapper took token {shown[row]} in row {row} where the agent gave {tokens[row]}, "
            f"so that it would learn of tokens never taken; leave that wrapper out"
        )


def _check_rewards(rewards: np.ndarray, expected: np.ndarray, rows: np.ndarray) -> None:
    """Raise UserError if a row's reward is not what the unwrapped environment pays."""
    far = np.abs(rewards - expected) > 1e-4 * (1 + np.abs(expected))
    if (other := rows & far).any():
        row = int(other.argmax())
        raise UserError(
            f"row {row} was paid {rewards[row]:.4g} where the environment pays "
            f"{expected[row]:.4g}: a wrapper that changes rewards changes half of the KL alone (or "
            f"the rows have settings of their own); change the reward function instead: "
            f"reward=[score, (bonus, 1.0)]"
        )


def _info(infos: dict[str, Any], name: str, over: np.ndarray) -> np.ndarray:
    """Return one entry of this step's infos, [B].

    With same-step autoreset, the entries of the rows that ended are in `final_info`.
    """
    values = np.array(infos.get(name, np.zeros(len(over))), dtype=np.float64)
    final = infos.get("final_info", {})
    if name in final:
        values[over] = np.asarray(final[name], dtype=np.float64)[over]
    return values
