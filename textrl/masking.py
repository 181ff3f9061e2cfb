"""Means, variances and standardisation over the tokens that a mask selects.

All masks of the library have the same meaning: Bool, True = this token counts. Slots where the mask
is False are replaced by 0 before any arithmetic, so their content (even NaN or inf) affects neither
the result nor its gradient. Next to read: `logprobs.py`, `advantages.py`, `losses.py`.
"""

import torch
from torch import Tensor


def check_shapes(**tensors: Tensor) -> None:
    """Raise ValueError, with both shapes, unless all tensors have that of the first (any shape)."""
    (first, reference), *rest = tensors.items()
    for name, tensor in rest:
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{first} has shape {tuple(reference.shape)} but {name} has shape "
                f"{tuple(tensor.shape)}; they must be equal"
            )


def check_mask(mask: Tensor) -> None:
    """Raise ValueError unless the mask, of any shape, is Bool."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be torch.bool (True = counts), got {mask.dtype}")


def full_precision(x: Tensor) -> Tensor:
    """Return x, of any shape, in float32; unchanged if it is float32 or float64 already."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def zero_masked(x: Tensor, mask: Tensor) -> Tensor:
    """Return x (any shape) in full precision, with 0 and no gradient where the mask is False."""
    check_mask(mask)
    return full_precision(x).masked_fill(~mask, 0.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of x over the True slots of the mask, a scalar.

        mean = sum(m * x) / sum(m)

    Args:
        x: A quantity in any unit. Shape [B T], or any other shape.
        mask: Bool, True = counts. It has the shape of x.

    Raises:
        ValueError: the shapes differ, the mask is not Bool, or it has no True.

    >>> masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False])).item()
    1.5
    """
    check_shapes(x=x, mask=mask)
    check_mask(mask)
    count = mask.sum()
    if count == 0:
        raise ValueError(f"mask of shape {tuple(mask.shape)} has no True: the mean is undefined")
    return zero_masked(x, mask).sum() / count


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Return the biased variance (divisor n) of x over the True slots of the mask, a scalar.

        var = sum(m * (x - mean)^2) / sum(m)

    Args:
        x: A quantity in any unit. Shape [B T], or any other shape.
        mask: Bool, True = counts. It has the shape of x.

    Raises:
        ValueError: the shapes differ, the mask is not Bool, or it has no True.

    >>> masked_var(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False])).item()
    1.0
    """
    mean = masked_mean(x, mask)
    return masked_mean((zero_masked(x, mask) - mean).square(), mask)


def whitening_divisor(x: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Return the number that `standardize` divides x by, a scalar in the unit of x.

        sqrt(var + eps)

    Other terms of a loss must be divided by it too if they are added to a standardised quantity.

    Args:
        x: A quantity in any unit. Shape [B T].
        mask: Bool, True = counts. Shape [B T].
        eps: A number added to the variance, in squared units of x.

    Raises:
        ValueError: the shapes differ, the mask is not Bool, or it has no True.

    >>> whitening_divisor(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False])).item()
    1.0
    """
    return (masked_var(x, mask) + eps).sqrt()


def standardize(x: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Return x with mean 0 and biased variance 1 over the True slots, 0 elsewhere.

        (x - mean) / sqrt(var + eps)

    Args:
        x: A quantity in any unit. Shape [B T].
        mask: Bool, True = counts. Shape [B T].
        eps: A number added to the variance, in squared units of x.

    Raises:
        ValueError: the shapes differ, the mask is not Bool, or it has no True.

    Source: `whiten` in the code of 1909.08593, over the whole batch:
    https://github.com/openai/lm-human-preferences/blob/f774e89b9e3762a03b7f3953189861979bee1775/lm_human_preferences/utils/core.py

    >>> standardize(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False])).tolist()
    [-1.0, 1.0, 0.0]
    """
    mean, divisor = masked_mean(x, mask), whitening_divisor(x, mask, eps=eps)
    return zero_masked((zero_masked(x, mask) - mean) / divisor, mask)
