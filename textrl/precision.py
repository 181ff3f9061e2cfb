"""The precision of matrix products: float32, or bfloat16 where the machine has units for it.

Weights, log-softmax, losses and gradients are float32 either way. docs/speed.md has the numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from textrl.config import Precision


def has_bfloat16_units(device: torch.device) -> bool:
    """Return whether bfloat16 matrix products are faster there: on new GPUs, on CPUs with AMX.

    AVX512-BF16 without AMX does not suffice: it is slower than float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    try:
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    except AttributeError:  # torch 2.8 cannot tell, 2.13 can
        return False


@contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run the forward passes inside in a precision; "auto" is bfloat16 where there are units.

    Weights are cast once a context, so it must be left before they change, and entered anew for
    passes with a gradient.
    """
    with ExitStack() as stack:
        if precision == "bfloat16" or (precision == "auto" and has_bfloat16_units(device)):
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
            if device.type == "cpu":
                stack.enter_context(_Float32Attention())
        yield


class _Float32Attention(TorchFunctionMode):
    """Keeps the attention of whole texts in float32; a decoding step has it in bfloat16.

    On a CPU its backward pass takes two to four times as long in bfloat16. Passes without a
    gradient must not differ: PPO's ratio starts at 1 because both compute the same.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is not scaled_dot_product_attention or args[0].shape[-2] == 1:
            return func(*args, **options)
        queries, keys, values, *rest = args
        with torch.autocast("cpu", enabled=False):
            return func(queries.float(), keys.float(), values.float(), *rest, **options)
