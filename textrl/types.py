"""The data types that modules pass to each other: frozen dataclasses of tensors.

Axes: B sequences, L prompt and completion, T completion. Masks are Bool, True = this token counts;
masked slots hold 0. Each object is complete when it is made; a later stage makes an object of the
next type instead of adding fields.
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


@dataclass(frozen=True, kw_only=True, repr=False)
class Sequences(TensorData):
    """Prompts with one completion each, as input of a teacher-forced pass."""

    input_ids: Tensor
    """The token ids, right-padded. Int64 [B L]."""
    mask: Tensor
    """True on the tokens whose log-prob counts (never the first). Bool [B L]."""


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
        """The number of tokens whose log-prob counts."""
        return sum(self.counts)


def stack_sequences(sequences: list[Sequence], device: torch.device) -> Sequences:
    """Return the sequences right-padded with 0 to the longest of them."""
    width = max(len(s.ids) for s in sequences)
    ids = [s.ids + [0] * (width - len(s.ids)) for s in sequences]
    mask = [s.counts + [False] * (width - len(s.counts)) for s in sequences]
    return Sequences(
        input_ids=torch.tensor(ids, dtype=torch.long, device=device),
        mask=torch.tensor(mask, dtype=torch.bool, device=device),
    )
