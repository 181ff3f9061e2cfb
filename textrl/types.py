"""The data that travel between the parts: frozen, complete when built, never grown.

Axes: B sequences, L prompt and completion, T completion. Masks are Bool, True = this token counts;
masked slots hold 0. Each stage builds the next type instead of adding fields to the last.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


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
    """Finished episodes as an agent collected them."""

    input_ids: Tensor
    """Int64 [B L], prompt and completion, right-padded."""
    prompt_lengths: Tensor
    """Int64 [B]."""
    positions: Tensor
    """Int64 [B T], where each action stands in input_ids; the state that chose it is one before."""
    completion_ids: Tensor
    """Int64 [B T], the actions: input_ids at the positions."""
    mask: Tensor
    """Bool [B T], True on the actions."""
    logprobs: Tensor
    """[B T] of the policy that sampled, in nats."""
    entropies: Tensor
    """[B T] of that policy, in nats."""
    values: Tensor
    """[B T] of the critic at the state just before each token; 0 without a critic."""
    bootstrap_values: Tensor
    """[B], the critic after the last token where the episode was truncated, else 0."""
    ref_logprobs: Tensor
    """[B T], in nats."""
    rewards: Tensor
    """[B T], what the environment paid."""
    scores: Tensor
    """[B], the reward model's number (NaN where truncated)."""
    ended_by_eos: Tensor
    """Bool [B]; False where the budget ended the episode."""

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text up to its last action, Int64 [B]."""
        return self.positions.masked_fill(~self.mask, 0).amax(1) + 1

    @property
    def sequence_kl(self) -> Tensor:
        """Sampled KL to the reference, nats a sequence, [B]: sum_t log pi - log pi_ref."""
        return (self.logprobs - self.ref_logprobs).masked_fill(~self.mask, 0.0).sum(1)


@dataclass(frozen=True, kw_only=True, repr=False)
class Targets(TensorData):
    """What the PPO update aims at."""

    advantages: Tensor
    """[B T], whitened over all tokens that count."""
    returns: Tensor
    """[B T], in reward units."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Sequences(TensorData):
    """Prompts with one completion each, as a teacher-forced pass reads them."""

    input_ids: Tensor
    """Int64 [B L], right-padded."""
    mask: Tensor
    """Bool [B L], True on the tokens whose log-prob counts (never the first)."""


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One tokenised sequence before it is batched."""

    ids: list[int]
    counts: list[bool]
    """True on the tokens whose log-prob counts; the first token's is always False."""

    def __post_init__(self) -> None:
        """Check the lengths."""
        if len(self.ids) != len(self.counts) or len(self.ids) < 2 or self.counts[0]:
            raise ValueError("a sequence needs 2 tokens, one flag each, the first not counted")

    @property
    def num_counted(self) -> int:
        """How many tokens' log-probs count."""
        return sum(self.counts)


def completion_positions(prompt_lengths: Tensor, mask: Tensor) -> Tensor:
    """Return where the tokens of a completion right behind its prompt stand, Int64 [B T].

    >>> completion_positions(torch.tensor([3]), torch.tensor([[True, True, False]]))
    tensor([[3, 4, 0]])
    """
    steps = torch.arange(mask.shape[1], device=mask.device)
    return (prompt_lengths.unsqueeze(1) + steps).masked_fill(~mask, 0)


def stack_sequences(sequences: list[Sequence], device: torch.device) -> Sequences:
    """Return the sequences right-padded with 0 to the longest of them."""
    width = max(len(s.ids) for s in sequences)
    ids = [s.ids + [0] * (width - len(s.ids)) for s in sequences]
    mask = [s.counts + [False] * (width - len(s.counts)) for s in sequences]
    return Sequences(
        input_ids=torch.tensor(ids, dtype=torch.long, device=device),
        mask=torch.tensor(mask, dtype=torch.bool, device=device),
    )
