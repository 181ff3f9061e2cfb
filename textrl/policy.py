"""The forward pass: `SplitLM`, a language model as trunk and head, and `PolicyModule` on it.

`PolicyModule.forward` is what every update calls: it runs the trunk on every token, but the LM head
only on the tokens that count. Next to read: `packing.py` (how texts share a pass), `logprobs.py`
(the chunks of the head), `models.py` (where models come from).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from textrl.logprobs import (
    AllowedTokens,
    counted_from_0,
    map_positions,
    token_entropy,
    token_kl,
    token_logprobs,
)
from textrl.packing import Packing, action_states, first_output, read, read_before, take
from textrl.types import Sequences

CHUNK_BYTES = 1 << 27
"""Bytes of float32 logits in memory at once: 8,192 positions for a vocabulary of 4,096, 680 for
SmolLM2's.

If there are several chunks, each is computed again in the backward pass, so large chunks save time.
"""


@dataclass(frozen=True, kw_only=True)
class SplitLM:
    """A causal language model as trunk and head, so that logits are computed only where needed.

    Right padding needs no attention mask, since a causal model does not see later tokens.
    """

    model: PreTrainedModel
    trunk: nn.Module
    head: Callable[[Tensor], Tensor]
    vocab_size: int
    """The width of the logits."""
    state_size: int
    """The width of the states, which may differ from the model's hidden size."""
    packing: Packing
    """How texts of different lengths may share rows."""
    max_cached: int
    """The longest sequence that may be stepped with a KV cache; 0: always re-encode the prefix."""
    max_appended: int
    """The number of tokens that one pass may append to texts in a KV cache."""
    cache_argument: str
    """The name of the trunk's argument for a KV cache."""

    def cached_hidden(
        self,
        input_ids: Tensor,
        cache: Cache,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the last hidden states [B L H] of tokens that follow those in a KV cache.

        Args:
            input_ids: The token ids. Shape [B L].
            cache: The KV cache, which is read and extended.
            attention_mask: A mask that is added to the attention logits; None: plain causal
                attention. Shape [B 1 L S].
            position_ids: Positions of the tokens; None: they follow the cache. Shape [B L].
        """
        named: dict[str, Any] = {self.cache_argument: cache, "use_cache": True}
        return first_output(
            self.trunk(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **named,
            )
        )

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def chunk_size(self) -> int:
        """The number of positions whose logits fit in CHUNK_BYTES."""
        return max(1, CHUNK_BYTES // (4 * self.vocab_size))

    def hidden(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the last hidden states of right-padded ids, [B L H]; arbitrary after a row's end.

        Args:
            input_ids: The token ids, right-padded. Shape [B L].
            lengths: The number of tokens to read in each row; None: all slots. Shape [B].
        """
        if lengths is None:
            return first_output(self.trunk(input_ids=input_ids, use_cache=False))
        return take(*read(self.trunk, self.packing, input_ids, lengths))

    def token_logprobs(self, sequences: Sequences, temperature: float = 1.0) -> Tensor:
        """Return the log-probs of the tokens that count, in nats, [B L]; 0 elsewhere."""
        return PolicyModule(self).logprobs_of(sequences, temperature)

    def action_states(self, input_ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return the states that chose the actions, [B T H]; arbitrary where the mask is False.

        Args:
            input_ids: Prompts with completions, right-padded. Shape [B L].
            positions: The position of each action in its text, >= 1; the state that chose it is at
                the position before. Shape [B T].
            mask: Bool, True on the actions. Shape [B T].
        """
        return action_states(self.trunk, self.packing, input_ids, positions, mask)


class ValueHead(nn.Sequential):
    """Maps states to values in reward units; its last layer starts at zero, so V starts at 0."""

    def __init__(self, width: int, kind: str) -> None:
        """Make a head on states of this width: "linear", or "mlp" with one hidden layer."""
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(*([nn.Linear(width, width), nn.Tanh()] if kind == "mlp" else []), last)

    def forward(self, states: Tensor) -> Tensor:
        """Return values [...] of states [... H], in float32."""
        with torch.autocast(states.device.type, enabled=False):
            values = states.float()
            for layer in self:
                values = layer(values)
        return values.squeeze(-1)


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


class PolicyModule(nn.Module):
    """A policy, with its value head if it has one."""

    def __init__(self, lm: SplitLM, value_head: nn.Module | None = None) -> None:
        """Make a policy from its parts.

        Args:
            lm: The language model.
            value_head: A module from the policy's states [... H] to values [...].
        """
        super().__init__()
        self.lm, self.model, self.value_head = lm, lm.model, value_head

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
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
        """Return the log-probs of some tokens under the present weights, and optional numbers.

        Args:
            input_ids: Prompts with completions, right-padded. Shape [B L].
            positions: The position of each token in its text, >= 1. Shape [B T].
            mask: Bool, True on the tokens that count. Shape [B T].
            temperature: Temperature of the policy's distribution and of the reference's.
            allowed: The tokens that may be sampled; None for all.
            entropies: Whether to compute entropies too (another pass over all logits).
            reference: The reference's states before the same tokens, for the exact KL.
        """
        lm, value_head = self.lm, self.value_head
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

    def logprobs_of(self, sequences: Sequences, temperature: float = 1.0) -> Tensor:
        """Return the log-probs of the tokens that count, in nats, [B L]; 0 elsewhere."""
        ids, mask = sequences.input_ids, sequences.mask
        found: Evaluation = self(ids, counted_from_0(ids), mask, temperature=temperature)
        return found.logprobs
