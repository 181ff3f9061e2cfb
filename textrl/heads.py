"""The head of a language model: the function from last hidden states to logits.

Usually it is one matrix. Some models do more: Gemma-2 caps its logits, Cohere and Granite scale
them, BERT transforms the state first. `head_of` finds the head by running the model itself.
`models.py` uses it.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from textrl.packing import first_output
from textrl.trunks import FAILURES

Head = Callable[[Tensor], Tensor]
LOUD = 1000.0
"""Size of logits at which a cap or a scale is visible, whatever the present weights are."""


class _Given:
    """A trunk's output that has only the last hidden state."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, key: Any) -> Any:
        return (self.last_hidden_state,)[key]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _NoTrunk(nn.Module):
    """A replacement for the trunk that returns the states that it is given."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> _Given:
        return _Given(inputs_embeds)


class OwnHead:
    """A model's own computation of logits from last hidden states: its forward without its trunk.

    It shares the model's weights, so training changes it too.
    """

    def __init__(self, body: nn.Module, trunk: nn.Module) -> None:
        """Make the head of a model that has the trunk as one of its children."""
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
    """Return the head that maps these states to these logits, or None if no part of the model does.

    The output embedding alone is returned if it is equal to the model's own head, for large logits
    too: a soft cap changes small logits by less than rounding.

    Args:
        body: The model without adapters.
        trunk: The model's part without the head.
        states: The trunk's states for some text. Shape [B L H].
        logits: The whole model's logits for the same text. Shape [B L V].
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
        return False  # it takes its input in another form
    if found.shape != logits.shape:
        return False
    bound = torch.finfo(logits.dtype).eps ** 0.75 * logits.abs().max()
    return bool(((found - logits).abs() <= bound).all())
