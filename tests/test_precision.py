"""The precision of matrix products: what runs in which, and that it matters to speed only."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from textrl import precision
from textrl.precision import autocast, has_bfloat16_units

CPU = torch.device("cpu")


def product() -> torch.dtype:
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_each_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for units in (True, False):
        monkeypatch.setattr(precision, "has_bfloat16_units", lambda device, units=units: units)
        with autocast("float32", CPU):
            assert product() == torch.float32
        with autocast("bfloat16", CPU):
            assert product() == torch.bfloat16
        with autocast("auto", CPU):
            assert product() == (torch.bfloat16 if units else torch.float32)
    assert product() == torch.float32


def test_bfloat16_units_of_this_cpu_are_those_that_it_names() -> None:
    info = Path("/proc/cpuinfo")
    named = info.exists() and "amx_bf16" in info.read_text()
    assert has_bfloat16_units(CPU) == (named and hasattr(torch.cpu, "get_capabilities"))
    assert not has_bfloat16_units(torch.device("meta"))


def test_attention_of_whole_texts_stays_in_float32() -> None:
    x = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = scaled_dot_product_attention(x, x, x, is_causal=True)
    mask = torch.zeros(3, 3)
    with autocast("bfloat16", CPU):
        found = scaled_dot_product_attention(x, x, x, is_causal=True)
        layer = (x.flatten(0, 2) @ torch.eye(4)).view(x.shape)  # bfloat16, as a layer gives it
        assert scaled_dot_product_attention(layer, layer, layer, mask).dtype == torch.float32
        step = layer[:, :, :1]  # a decoding step reads its cache as it lies
        assert scaled_dot_product_attention(step, layer, layer).dtype == torch.bfloat16
    assert torch.equal(found, expected)
