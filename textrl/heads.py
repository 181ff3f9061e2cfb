"""The head of a language model, apart from its trunk: what makes logits of last hidden states.

Usually one matrix. Some models do more (Gemma-2 caps its logits, Cohere and Granite scale them,
BERT transforms the state first): `head_of` asks the model itself. Who uses it: `models.py`.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from textrl.trunks import FAILURES, first_output

Head = Callable[[Tensor], Tensor]
LOUD = 1000.0
"""Logits at which caps and scales show, whatever the weights are now."""


class _Given:
    """A trunk's output that holds its last hidden state and nothing else."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, key: Any) -> Any:
        return (self.last_hidden_state,)[key]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _NoTrunk(nn.Module):
    """Stands in the trunk's place and answers with the states that it is given."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> _Given:
        return _Given(inputs_embeds)


class OwnHead:
    """A model's own way from last hidden states to logits: its forward without its trunk.

    It shares the model's weights, so it follows their training.
    """

    def __init__(self, body: nn.Module, trunk: nn.Module) -> None:
        """Take a model that holds the trunk as one of its children."""
        self._shell = copy.copy(body)
        kept = {
            name: _NoTrunk() if child is trunk else child for name, child in body.named_children()
        }
        self._shell.__dict__["_modules"] = kept

    def __call__(self, states: Tensor) -> Tensor:
        """Return logits [... V] of states [... H]."""
        rows = states.reshape(1, -1, states.shape[-1])
        logits = first_output(self._shell(inputs_embeds=rows, use_cache=False))
        return logits.view(*states.shape[:-1], logits.shape[-1])


@torch.no_grad()
def head_of(body: Any, trunk: nn.Module, states: Tensor, logits: Tensor) -> Head | None:
    """Return what makes these logits of these states; None where nothing of the model does.

    The output embedding alone is taken where the model's own way is no other, loud logits
    included: a soft cap changes small ones by less than rounding.

    Args:
        body: the model without adapters around it.
        trunk: its part without the head.
        states: of some text, from the trunk. Shape [B L H].
        logits: of the same text, from the whole model. Shape [B L V].
    """
    matrix: Head = body.get_output_embeddings()
    plain = _close(matrix, states, logits)
    if any(child is trunk for child in body.children()):
        own = OwnHead(body, trunk)
        if _close(own, states, logits):
            if not plain:
                return own
            loud = states * (LOUD / logits.abs().max().clamp_min(1e-6))
            return matrix if _close(matrix, loud, own(loud)) else own
    return matrix if plain else None


def _close(head: Head, states: Tensor, logits: Tensor) -> bool:
    try:
        found = head(states)
    except FAILURES:
        return False  # it takes states in another way
    if found.shape != logits.shape:
        return False
    bound = torch.finfo(logits.dtype).eps ** 0.75 * logits.abs().max()
    return bool(((found - logits).abs() <= bound).all())
