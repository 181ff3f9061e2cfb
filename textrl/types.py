"""Tokenised texts, one by one and in batches, with flags for the tokens that count."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sequences:
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
