"""Digests of what a run depends on, so that a resumed run can tell whether it has changed."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

PART = 1 << 20
"""Number of weights that are summed at once."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type of each element size, by which the bits of a weight are read."""


def data_digest(items: Iterable[object]) -> str:
    """Return a digest of plain data, whose `repr` tells all of it.

    >>> data_digest([[1, 2], "a"]) == data_digest([[1, 2], "b"])
    False
    """
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(item).encode(errors="replace") + b"\n")
    return digest.hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Return a digest of a model's weights and buffers: their names, shapes, types and bits.

    The bits are summed as integers, so that the order of the sum, and with it the number of
    threads, cannot matter.

    >>> layer = nn.Linear(2, 2)
    >>> weights_digest(layer) == weights_digest(layer)
    True
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            shown = f"{name} {tuple(tensor.shape)} {tensor.dtype} {_sum_of_bits(tensor)}\n"
            digest.update(shown.encode())
    return digest.hexdigest()


def _sum_of_bits(tensor: Tensor) -> int:
    """Return the sum of all bit patterns, each weighted by its place (modulo 2**64)."""
    total = 0
    bits = tensor.detach().contiguous().flatten().view(_INTEGERS[tensor.element_size()])
    for number, part in enumerate(bits.split(PART)):
        places = torch.arange(1, len(part) + 1, device=part.device)
        total += (2 * number + 1) * int((part.long() * places).sum())
    return total % 2**64
