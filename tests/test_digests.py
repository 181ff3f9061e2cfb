"""Digests of weights: equal for equal weights, another one for any change of a bit."""

import pytest
import torch
from torch import nn

from textrl.digests import weights_digest
from textrl.envs import tiny_model


def test_every_change_changes_it() -> None:
    digest = weights_digest(tiny_model())
    assert digest == weights_digest(tiny_model())
    changes = {
        "one bit": lambda w: w.view(torch.int32)[3, 2].bitwise_xor_(1),
        "two rows swapped": lambda w: w.copy_(w[torch.tensor([1, 0, *range(2, len(w))])]),
        "two columns swapped": lambda w: w.copy_(w[:, torch.tensor([1, 0, *range(2, w.shape[1])])]),
        "a sign of zero": lambda w: w[0].fill_(-0.0),
        "a NaN": lambda w: w[5, 5].fill_(torch.nan),
    }
    found = {digest}
    for change in changes.values():
        model = tiny_model()
        with torch.no_grad():
            change(model.model.layers[0].mlp.up_proj.weight)
        found.add(weights_digest(model))
    assert len(found) == 1 + len(changes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types_shapes_and_threads(dtype: torch.dtype) -> None:
    layer = nn.Linear(300, 200).to(dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = weights_digest(layer)
        torch.set_num_threads(2)
        assert weights_digest(layer) == one
    finally:
        torch.set_num_threads(threads)
    other = nn.Linear(200, 300).to(dtype)
    assert weights_digest(other) != one


def test_odd_tensors() -> None:
    module = nn.Module()
    module.register_buffer("scalar", torch.tensor(3.0))
    module.register_buffer("empty", torch.zeros(0, 4))
    module.register_buffer("flags", torch.tensor([True, False]))
    assert len(weights_digest(module)) == 64
