"""`token_pass`, which computes log-probs and related numbers of some tokens in one forward pass.

Every update uses it, through `SplitLM.token_logprobs` or `PolicyModule.forward`. Next to read:
`packing.py` (how texts share a pass), `logprobs.py` (the chunks of the head).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from textrl.allowed import AllowedTokens
from textrl.logprobs import counted_from_0, map_positions, token_entropy, token_kl, token_logprobs
from textrl.packing import Packing, read_before, take


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an update needs about some tokens; each is [B T], 0 where the mask is False."""

    logprobs: Tensor
    """The tokens' log-probs in nats, differentiable."""
    values: Tensor | None
    """The values in reward units, differentiable; None if the policy has no value head."""
    entropies: Tensor | None
    """The entropies in nats, differentiable; None if they were not requested."""
    exact_kl: Tensor | None
    """KL(pi || pi_ref) over the vocabulary, in nats, differentiable; None without a reference."""


@dataclass(frozen=True, kw_only=True)
class ReferenceStates:
    """The reference's hidden states before the same tokens, and the head that reads them."""

    states: Tensor
    """The hidden states. Shape [B T H]."""
    head: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Numbers:
    """Computes log-prob, entropy and exact KL from the logits of some positions, one per column."""

    head: Callable[[Tensor], Tensor]
    temperature: float
    allowed: AllowedTokens | None
    entropies: bool
    reference: ReferenceStates | None

    def __call__(
        self, states: Tensor, chosen: Tensor, counts: Tensor, others: Tensor | None = None
    ) -> Tensor:
        """Map a chunk of [n H], [n], [n] and [n H] to [n columns]."""
        logits = self._logits(self.head, states, counts)
        columns = [token_logprobs(logits, chosen, temperature=self.temperature)]
        if self.entropies:
            columns.append(token_entropy(logits, temperature=self.temperature))
        if self.reference is not None and others is not None:
            other_logits = self._logits(self.reference.head, others, counts)
            columns.append(token_kl(logits, other_logits, temperature=self.temperature))
        return torch.stack(columns, dim=-1)

    def _logits(self, head: Callable[[Tensor], Tensor], states: Tensor, counts: Tensor) -> Tensor:
        logits = head(states)
        return logits if self.allowed is None else self.allowed.restrict(logits, counts)


class TokenModel(Protocol):
    """The interface of a language model for `token_pass`; `SplitLM` implements it."""

    @property
    def trunk(self) -> nn.Module:
        """The module that maps ids to hidden states."""

    @property
    def packing(self) -> Packing:
        """The rules by which texts may share rows of a pass."""

    @property
    def chunk_size(self) -> int:
        """The number of positions whose logits are in memory at once."""

    def head(self, states: Tensor) -> Tensor:
        """Map states [n H] to logits [n V]."""


def token_pass(
    lm: TokenModel,
    input_ids: Tensor,
    positions: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    allowed: AllowedTokens | None = None,
    entropies: bool = False,
    reference: ReferenceStates | None = None,
    value_head: nn.Module | None = None,
) -> Evaluation:
    """Return the log-probs of some tokens, and the optional numbers that are requested.

    Args:
        lm: The language model.
        input_ids: Prompts with completions, right-padded. Shape [B L].
        positions: The position of each token in its text, >= 1. Shape [B T].
        mask: Bool, True on the tokens that count. Shape [B T].
        temperature: Temperature of the policy's distribution and of the reference's.
        allowed: The tokens that may be sampled; None for all.
        entropies: Whether to compute entropies too (another pass over all logits).
        reference: The reference's states before the same tokens, for the exact KL.
        value_head: A module from the policy's states [... H] to values [...].
    """
    positions = positions.masked_fill(~mask, 0)
    input_ids = input_ids[:, : int(positions.max()) + 1]  # later tokens are not needed
    states, places = read_before(lm.trunk, lm.packing, input_ids, positions, mask)
    chosen, counts = input_ids.gather(1, positions), counted_from_0(positions)
    numbers = _Numbers(lm.head, temperature, allowed, entropies, reference)
    inputs, counted = [places, chosen, counts], mask
    if reference is not None:
        inputs.append(reference.states)
    if value_head is None:  # keep only the states that count: the texts may differ in length
        inputs = [tensor[mask].unsqueeze(0) for tensor in inputs]
        counted = mask[mask].unsqueeze(0)
    hidden = take(states, inputs[0])
    table = map_positions(numbers, hidden, *inputs[1:], mask=counted, chunk_size=lm.chunk_size)
    if value_head is None:
        zeros = table.new_zeros(*mask.shape, table.shape[-1])
        table = zeros.masked_scatter(mask.unsqueeze(-1), table)
    return Evaluation(
        logprobs=table[..., 0],
        values=None if value_head is None else value_head(hidden).masked_fill(~mask, 0.0),
        entropies=table[..., 1] if entropies else None,
        exact_kl=None if reference is None else table[..., -1],
    )
