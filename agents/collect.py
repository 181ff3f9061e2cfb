"""The collection of an iteration's episodes, turn by turn; `rollout.py` says what they hold.

Whole turns are sampled from the texts that the environment shows, and then it takes the actions
(`TextEnv.pay`) and may append a reply, until no row runs. Where an episode is one turn, that is one
round. A turn can be sampled as a whole because the state of this MDP is the tokens themselves, so
that within a turn no answer of the environment changes what the policy does.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from textrl.agents.base import Observation
from textrl.agents.rollout import Rollout
from textrl.agents.stepping import StepByStep
from textrl.agents.text_env import Paid, TextEnv, observed_texts
from textrl.errors import UserError
from textrl.generation import Sampler, Samples

ValuesAt = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A critic: (input_ids [B L], positions [B T], mask [B T]) -> values before the actions [B T]."""


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
    episodes = Episodes(env, observation)
    longest = min(episodes.max_length, int(episodes.lengths.max()) + env.max_completion_tokens)
    conversation = sampler.converse(env.num_envs, longest, generator)
    steps = None if env.by_sequence else StepByStep(env)
    while episodes.running.any():
        rows = episodes.running.nonzero().squeeze(1)
        begun, budget = episodes.begun_and_budget(rows)
        samples = conversation.sample(
            rows,
            episodes.input_ids[rows],
            episodes.lengths[rows],
            max_new_tokens=budget if steps is None else torch.ones_like(budget),
            end_ids=env.end_token_ids,
            temperature=env.temperature,
            allowed=env.allowed,
            begun=begun,
        )
        over = episodes.turn_is_over(samples, budget)
        actions, mask = (
            episodes.spread(rows, samples.completion_ids),
            episodes.spread(rows, samples.mask),
        )
        if steps is None:
            paid = env.pay(actions, mask)
        else:
            may_end = episodes.spread(rows, over)
            paid = steps.pay(actions, mask, episodes.lengths.cpu().numpy(), may_end)
        episodes.append(rows, samples, paid, over)
    return episodes.finished(values_at)


class Episodes:
    """The episodes of all rows while they are collected, turn by turn.

    Axes: B rows, C the token budget of an episode; a row's actions fill its slots from the left.
    """

    def __init__(self, env: TextEnv, observation: Observation) -> None:
        """Begin with the texts that a reset shows."""
        self.env, device = env, env.reference.device
        ids, lengths = observed_texts(observation)
        self.input_ids = torch.as_tensor(ids, device=device).long()
        self.lengths = torch.as_tensor(lengths, device=device)
        self.prompt_lengths = self.turn_starts = self.lengths
        self.max_length = ids.shape[1]
        rows, slots = env.num_envs, env.max_completion_tokens
        self.running = torch.ones(rows, dtype=torch.bool, device=device)
        self.truncated = torch.zeros_like(self.running)
        self.failed = torch.zeros_like(self.running)
        self.turns = torch.zeros(rows, dtype=torch.long, device=device)
        self.scores = torch.full((rows,), math.nan, device=device)
        self.named_scores = self.scores.unsqueeze(1).repeat(1, len(env.reward_names))
        self.counts = torch.zeros(rows, dtype=torch.long, device=device)
        numbers = torch.zeros(5, rows, slots, device=device)
        self._logprobs, self._entropies, self._observed, self._ref_logprobs, self._rewards = numbers
        self._positions = torch.zeros(rows, slots, dtype=torch.long, device=device)
        self._observes = False

    def begun_and_budget(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many tokens some rows' turns have, and how many more they may have, [R]."""
        begun = (self.lengths - self.turn_starts)[rows]
        room = (self.prompt_lengths + self.env.max_completion_tokens - self.lengths)[rows]
        return begun, (self.env.max_turn_tokens - begun).minimum(room)

    def turn_is_over(self, samples: Samples, budget: Tensor) -> Tensor:
        """Return whether the sampled tokens end the turns, Bool [R]."""
        counts = samples.mask.sum(1)
        last = samples.completion_ids.gather(1, counts.unsqueeze(1) - 1).squeeze(1)
        return torch.isin(last, last.new_tensor(self.env.end_token_ids)) | (counts >= budget)

    def spread(self, rows: Tensor, values: Tensor) -> np.ndarray:
        """Return what some rows have for all rows, 0 for the others: [B ...] from [R ...]."""
        everything = values.new_zeros(len(self.running), *values.shape[1:])
        spread: np.ndarray = everything.index_copy(0, rows, values).cpu().numpy()
        return spread

    def append(self, rows: Tensor, samples: Samples, paid: Paid, over: Tensor) -> None:
        """Take in what some rows said, what was paid for it, and what was appended to the texts."""
        device, counts = self.lengths.device, samples.mask.sum(1)
        index, step = samples.mask.nonzero(as_tuple=True)
        row = rows[index]
        slots = self.counts[row] + step
        self._positions[row, slots] = self.lengths[row] + step
        self._logprobs[row, slots] = samples.logprobs[index, step]
        self._entropies[row, slots] = samples.entropies[index, step]
        if samples.observed is not None:
            self._observes = True
            self._observed[row, slots] = samples.observed[index, step]
        for target, array in (
            (self._ref_logprobs, paid.ref_logprobs),
            (self._rewards, paid.rewards),
        ):
            target[row, slots] = torch.as_tensor(array, dtype=torch.float32, device=device)[
                row, step
            ]
        self.counts[rows] += counts
        self.turns[rows] += over.long()
        ids = torch.as_tensor(paid.input_ids, device=device).long()
        lengths = torch.as_tensor(paid.lengths, device=device)
        ended = torch.as_tensor(paid.ended, device=device)[rows]
        self.input_ids[row, self.lengths[row] + step] = samples.completion_ids[index, step]
        self._check_goes_on(ids, self.lengths.index_add(0, rows, counts), rows)
        self.input_ids = self.input_ids.index_copy(0, rows, ids[rows])
        self.lengths = self.lengths.index_copy(0, rows, lengths[rows])
        self.turn_starts = self.turn_starts.index_copy(
            0, rows, torch.where(over, self.lengths[rows], self.turn_starts[rows])
        )
        done = rows[ended]
        for target, array in ((self.scores, paid.scores), (self.named_scores, paid.named_scores)):
            target[done] = torch.as_tensor(array, dtype=torch.float32, device=device)[done]
        self.truncated[done] = torch.as_tensor(paid.truncated, device=device)[done]
        self.failed[done] = torch.as_tensor(paid.failed, device=device)[done]
        self.running[done] = False

    def _check_goes_on(self, ids: Tensor, lengths: Tensor, rows: Tensor) -> None:
        """Raise UserError unless the texts that are shown [B L] begin with those that were read."""
        read = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
        other = ((ids != self.input_ids) & read).any(1)[rows]
        if other.any():
            row = int(rows[other][0])
            raise UserError(
                f"row {row} does not go on from the text that it showed before: a wrapper mixes "
                f"the rows or changes what they show; use the environment without it"
            )

    def finished(self, values_at: ValuesAt | None) -> Rollout:
        """Return the episodes, all of which have ended."""
        longest = int(self.counts.max())
        mask = torch.arange(longest, device=self.counts.device) < self.counts.unsqueeze(1)
        positions = self._positions[:, :longest]
        input_ids = self.input_ids[:, : int(self.lengths.max())]
        chosen = input_ids.gather(1, positions).masked_fill(~mask, 0)
        last = chosen.gather(1, self.counts.unsqueeze(1) - 1).squeeze(1)
        if self._observes:
            values = self._observed[:, :longest]
        elif values_at is not None:
            values = values_at(input_ids, positions, mask)
        else:
            values = torch.zeros_like(self._logprobs[:, :longest])
        return Rollout(
            input_ids=input_ids,
            prompt_lengths=self.prompt_lengths,
            text_lengths=self.lengths,
            positions=positions,
            completion_ids=chosen,
            mask=mask,
            logprobs=self._logprobs[:, :longest],
            entropies=self._entropies[:, :longest],
            values=values.masked_fill(~mask, 0.0),
            bootstrap_values=self._bootstrap(input_ids, values_at),
            ref_logprobs=self._ref_logprobs[:, :longest],
            rewards=self._rewards[:, :longest],
            scores=self.scores,
            named_scores=self.named_scores,
            truncated=self.truncated,
            failed=self.failed,
            turns=self.turns,
            ended_by_eos=torch.isin(last, last.new_tensor(self.env.end_token_ids)),
        )

    def _bootstrap(self, input_ids: Tensor, values_at: ValuesAt | None) -> Tensor:
        """Return the critic's value of the state after each truncated episode, 0 elsewhere, [B]."""
        if values_at is None or not self.truncated.any():
            return torch.zeros(len(self.truncated), device=self.truncated.device)
        ends = self.lengths.unsqueeze(1)
        after = values_at(input_ids, ends, torch.ones_like(ends, dtype=torch.bool))[:, 0]
        return torch.where(self.truncated, after, 0.0)


def prompts_of(observation: Observation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the prompts that a reset shows: ids [B P] and lengths [B]."""
    lengths = torch.as_tensor(observation["prompt_length"][:, 0], device=device).long()
    ids = torch.as_tensor(observation["input_ids"], device=device).long()
    return ids[:, : int(lengths.max())], lengths
