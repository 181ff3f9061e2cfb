"""The precision of matrix products: what runs in which, and that it matters to speed only."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attention

from textrl import precision
from textrl.precision import (
    attention_of_texts,
    autocast,
    has_bfloat16_units,
    pick_precision,
)

CPU = torch.device("cpu")


def product() -> torch.dtype:
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_each_precision() -> None:
    with autocast("float32", CPU):
        assert product() == torch.float32
    with autocast("bfloat16", CPU):
        assert product() == torch.bfloat16
        with autocast("float32", CPU):
            assert product() == torch.float32
    assert product() == torch.float32


def test_auto_is_bfloat16_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = nn.Linear(2, 2), nn.Linear(10_000, 10_000, device="meta")
    gpu = torch.device("cuda")
    for units in (True, False):
        monkeypatch.setattr(precision, "has_bfloat16_units", lambda device, units=units: units)
        faster = "bfloat16" if units else "float32"
        assert pick_precision("auto", large, CPU) == faster
        assert pick_precision("auto", small, CPU) == "float32"
        assert pick_precision("auto", small, gpu) == faster
        for asked in ("float32", "bfloat16"):
            assert pick_precision(asked, large, CPU) == asked


def test_bfloat16_units_of_this_cpu_are_those_that_it_names() -> None:
    info = Path("/proc/cpuinfo")
    named = info.exists() and "amx_bf16" in info.read_text()
    assert has_bfloat16_units(CPU) == (named and hasattr(torch.cpu, "get_capabilities"))
    assert not has_bfloat16_units(torch.device("meta"))


def test_attention_of_whole_texts_stays_in_float32() -> None:
    x = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    half, mask = x.bfloat16(), torch.zeros(3, 3)
    expected = attention(x, x, x, is_causal=True)
    with autocast("bfloat16", CPU):
        assert attention(x, x, x, is_causal=True).dtype == torch.bfloat16
        with attention_of_texts():
            assert torch.equal(attention(x, x, x, is_causal=True), expected)
            assert torch.equal(attention(query=x, key=x, value=x, is_causal=True), expected)
            for visible in (mask, mask.bfloat16(), mask.bool()):
                assert attention(half, half, half, visible).dtype == torch.float32
                assert attention(half, half, half, attn_mask=visible).dtype == torch.float32
            assert attention(x.double(), x.double(), x.double()).dtype == torch.float64
    with attention_of_texts():  # no autocast, no change
        assert attention(half, half, half).dtype == torch.bfloat16
