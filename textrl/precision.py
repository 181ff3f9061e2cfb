"""The precision of matrix products: float32, or bfloat16 if the hardware has units for it.

Weights, log-softmax, losses and gradients are float32 in both cases. docs/speed.md has the numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from textrl.config import Precision

LEAST_PARAMETERS = 100_000_000
"""Minimum number of parameters of a model that is faster in bfloat16 on a CPU.

A model of 135M spends nearly all its time on matrix products. At 4M, batches of many shapes are
slower: oneDNN compiles and keeps a bfloat16 product for each new shape, which costs seconds and
gigabytes.
"""


def pick_precision(precision: Precision, model: nn.Module, device: torch.device) -> Precision:
    """Return the requested precision; "auto" is bfloat16 if that is faster, else float32."""
    if precision != "auto":
        return precision
    large = sum(p.numel() for p in model.parameters()) >= LEAST_PARAMETERS
    pays = has_bfloat16_units(device) and (large or device.type != "cpu")
    return "bfloat16" if pays else "float32"


def has_bfloat16_units(device: torch.device) -> bool:
    """Return whether the device has units for bfloat16 products (recent GPUs, CPUs with AMX).

    AVX512-BF16 without AMX does not count, since it is slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    try:
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    except AttributeError:  # torch 2.8 cannot tell, 2.13 can
        return False


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return a context for forward passes in a precision from `pick_precision`.

    Weights are cast once per context. So leave the context before the weights change, and enter a
    new one for passes with a gradient.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def attention_of_texts() -> AbstractContextManager[object]:
    """Return a context for passes over whole texts: on a CPU, attention stays in float32.

    On a CPU the backward pass of attention takes two to four times as long in bfloat16. Passes
    without a gradient use float32 attention too, so that PPO's ratio starts at 1.
    """
    return _Float32Attention() if torch.is_autocast_enabled("cpu") else nullcontext()


class _Float32Attention(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        called = _attention_in_float32 if func is scaled_dot_product_attention else func
        return called(*args, **(kwargs or {}))


def _attention_in_float32(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    if query.dtype == torch.float64:  # autocast does not change float64 either
        return scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    with torch.autocast("cpu", enabled=False):
        return scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask, *args, **kwargs
        )
