"""A trained language model as one module with one forward, which every update calls.

One pass through the trunk and chunks of the head give all that a loss reads of some tokens:
log-probs, entropies, a value head's values, the exact KL to a reference. Next to read: `models.py`
(trunk and head), `logprobs.py` (the chunks).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from textrl.adapters import ADAPTER_FOLDER, SETTINGS, with_adapter
from textrl.allowed import AllowedTokens
from textrl.logprobs import counted_from_0, map_positions, token_entropy, token_kl, token_logprobs
from textrl.models import SplitLM, in_eval, load_causal_lm, moved
from textrl.packing import read_before, take
from textrl.types import Sequences


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


class PolicyModule(nn.Module):
    """A policy, and its value head where it has one."""

    def __init__(self, lm: SplitLM, value_head: nn.Module | None = None) -> None:
        """Take the parts of a policy.

        Args:
            lm: the language model.
            value_head: maps the policy's states [... H] to values [...].
        """
        super().__init__()
        self.lm, self.model, self.value_head = lm, lm.model, value_head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm.device

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        mask: Tensor,
        *,
        temperature: float = 1.0,
        allowed: AllowedTokens | None = None,
        entropies: bool = False,
        reference: ReferenceStates | None = None,
    ) -> Evaluation:
        """Return the log-probs of some tokens under the present weights, and what else is asked.

        Args:
            input_ids: whole texts, right-padded. Shape [B L].
            positions: where each token stands in its text, >= 1. Shape [B T].
            mask: Bool, True on the tokens that count. Shape [B T].
            temperature: of the policy's distribution, and of the reference's.
            allowed: the tokens that may be drawn; None for all.
            entropies: whether to compute these too (another pass over all logits).
            reference: the reference's states before the same tokens, for the exact KL.
        """
        positions = positions.masked_fill(~mask, 0)
        input_ids = input_ids[:, : int(positions.max()) + 1]  # nothing behind is read
        states, places = read_before(self.lm.trunk, self.lm.packing, input_ids, positions, mask)
        chosen, counts = input_ids.gather(1, positions), counted_from_0(positions)
        heads = [] if reference is None else [reference.head]
        others = [] if reference is None else [reference.states]

        def restricted(logits: Tensor, places: Tensor) -> Tensor:
            return logits if allowed is None else allowed.restrict(logits, places)

        def numbers(states: Tensor, chosen: Tensor, places: Tensor, *others: Tensor) -> Tensor:
            logits = restricted(self.lm.head(states), places)
            columns = [token_logprobs(logits, chosen, temperature=temperature)]
            if entropies:
                columns.append(token_entropy(logits, temperature=temperature))
            for other, head in zip(others, heads, strict=True):
                other_logits = restricted(head(other), places)
                columns.append(token_kl(logits, other_logits, temperature=temperature))
            return torch.stack(columns, dim=-1)

        inputs, counted = [places, chosen, counts, *others], mask
        if self.value_head is None:  # texts may be ragged: only the states that count are held
            inputs = [tensor[mask].unsqueeze(0) for tensor in inputs]
            counted = mask[mask].unsqueeze(0)
        hidden = take(states, inputs[0])
        table = map_positions(
            numbers, hidden, *inputs[1:], mask=counted, chunk_size=self.lm.chunk_size
        )
        if self.value_head is None:
            zeros = table.new_zeros(*mask.shape, table.shape[-1])
            table = zeros.masked_scatter(mask.unsqueeze(-1), table)
        values = None if self.value_head is None else self.value_head(hidden)
        return Evaluation(
            logprobs=table[..., 0],
            values=None if values is None else values.masked_fill(~mask, 0.0),
            entropies=table[..., 1] if entropies else None,
            exact_kl=None if reference is None else table[..., -1],
        )

    def logprobs_of(self, sequences: Sequences, temperature: float = 1.0) -> Tensor:
        """Return the log-probs of the tokens that count, in nats, [B L]; 0 elsewhere."""
        ids, mask = sequences.input_ids, sequences.mask
        found: Evaluation = self(ids, counted_from_0(ids), mask, temperature=temperature)
        return found.logprobs


def load_policy(folder: Path, device: torch.device, frozen: list[str]) -> PreTrainedModel:
    """Return the float32 policy that an agent saved to a folder, with its adapter if it had one.

    Args:
        folder: of the merged model, with the adapter beside it (`save_adapter`).
        device: where the policy goes.
        frozen: names of its parameters that were not trained.

    Raises:
        UserError: there is none, or `peft` is not installed.
    """
    adapter = folder / ADAPTER_FOLDER
    if adapter.exists():
        base = load_causal_lm(adapter / "base", dtype="float32", device=device)
        own = next(adapter.rglob(SETTINGS)).parent  # one with a name has a folder of that name
        policy = in_eval(moved(with_adapter(base, own), device))
    else:
        policy = load_causal_lm(folder, dtype="float32", device=device)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return policy
