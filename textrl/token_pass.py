"""What one pass of a language model says of some tokens: the path that every update takes.

Called by `SplitLM.token_logprobs` and `PolicyModule.forward`. Next to read: `packing.py` (how texts
share a pass), `logprobs.py` (the chunks of the head).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textrl.allowed import AllowedTokens
from textrl.logprobs import counted_from_0, map_positions, token_entropy, token_kl, token_logprobs
from textrl.packing import Packing, read_before, take


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an update needs of some tokens, each [B T], 0 where the mask is False."""

    logprobs: Tensor
    """In nats, differentiable."""
    values: Tensor | None
    """In reward units, differentiable; None where the policy has no value head."""
    entropies: Tensor | None
    """In nats, differentiable; None where nobody asked."""
    exact_kl: Tensor | None
    """KL(pi || pi_ref) over the vocabulary, in nats, differentiable; None without a reference."""


@dataclass(frozen=True, kw_only=True)
class ReferenceStates:
    """The reference's hidden states before the same tokens, and the head that reads them."""

    states: Tensor
    """[B T H]."""
    head: Callable[[Tensor], Tensor]


def token_pass(
    trunk: nn.Module,
    packing: Packing,
    head: Callable[[Tensor], Tensor],
    chunk_size: int,
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
    """Return the log-probs of some tokens, and what else is asked; see `PolicyModule.forward`.

    Args:
        trunk: of the language model.
        packing: how texts may share rows of a pass.
        head: maps states [n H] to logits [n V].
        chunk_size: positions whose logits are held at once.
        input_ids: whole texts, right-padded. Shape [B L].
        positions: where each token stands in its text, >= 1. Shape [B T].
        mask: Bool, True on the tokens that count. Shape [B T].
        temperature: of the policy's distribution, and of the reference's.
        allowed: the tokens that may be drawn; None for all.
        entropies: whether to compute these too (another pass over all logits).
        reference: the reference's states before the same tokens, for the exact KL.
        value_head: maps the policy's states [... H] to values [...].
    """
    positions = positions.masked_fill(~mask, 0)
    input_ids = input_ids[:, : int(positions.max()) + 1]  # nothing behind is read
    states, places = read_before(trunk, packing, input_ids, positions, mask)
    chosen, counts = input_ids.gather(1, positions), counted_from_0(positions)
    heads = [] if reference is None else [reference.head]
    others = [] if reference is None else [reference.states]

    def restricted(logits: Tensor, places: Tensor) -> Tensor:
        return logits if allowed is None else allowed.restrict(logits, places)

    def numbers(states: Tensor, chosen: Tensor, places: Tensor, *others: Tensor) -> Tensor:
        logits = restricted(head(states), places)
        columns = [token_logprobs(logits, chosen, temperature=temperature)]
        if entropies:
            columns.append(token_entropy(logits, temperature=temperature))
        for other, other_head in zip(others, heads, strict=True):
            other_logits = restricted(other_head(other), places)
            columns.append(token_kl(logits, other_logits, temperature=temperature))
        return torch.stack(columns, dim=-1)

    inputs, counted = [places, chosen, counts, *others], mask
    if value_head is None:  # texts may be ragged: only the states that count are held
        inputs = [tensor[mask].unsqueeze(0) for tensor in inputs]
        counted = mask[mask].unsqueeze(0)
    hidden = take(states, inputs[0])
    table = map_positions(numbers, hidden, *inputs[1:], mask=counted, chunk_size=chunk_size)
    if value_head is None:
        zeros = table.new_zeros(*mask.shape, table.shape[-1])
        table = zeros.masked_scatter(mask.unsqueeze(-1), table)
    values = None if value_head is None else value_head(hidden)
    return Evaluation(
        logprobs=table[..., 0],
        values=None if values is None else values.masked_fill(~mask, 0.0),
        entropies=table[..., 1] if entropies else None,
        exact_kl=None if reference is None else table[..., -1],
    )
