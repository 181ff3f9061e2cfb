"""Log-probabilities and entropies of tokens, from logits or from hidden states.

No function shifts its arguments: `logits[:, t]` must be the prediction of `ids[:, t]`. There are
two forms. The plain form takes all logits [B T V]. The chunked form applies the LM head only at the
positions that count, one chunk at a time, forward and backward. Next to read: `models.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from textrl.masking import check_mask, check_shapes, full_precision

Restrict = Callable[[Tensor, Tensor], Tensor]
"""(logits [n V], positions in the completion [n]) -> logits of the allowed tokens only [n V]."""
CHUNK_SIZE = 1024
"""Number of positions per chunk: for a vocabulary of 50,000, one chunk of float32 logits takes
200 MB."""


def token_logprobs(logits: Tensor, ids: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the log-probability of each id under softmax(logits / temperature), in nats.

        logprobs[b, t] = log_softmax(logits[b, t] / temperature)[ids[b, t]]

    Args:
        logits: The predictions of ids, not shifted. Shape [B T V].
        ids: Token ids in [0, V). Shape [B T].
        temperature: The temperature that sampling used, > 0.

    Returns: float32 (float64 for float64 logits). Shape [B T].

    Raises:
        ValueError: the shapes do not fit or the temperature is not positive.

    >>> logits = torch.tensor([[[0.0, 0.0]]])
    >>> round(token_logprobs(logits, torch.tensor([[1]])).item(), 4)  # log(1/2)
    -0.6931
    """
    _check_logits(logits, ids)
    scaled = _scaled(logits, temperature).flatten(0, -2)
    # Cross-entropy does log-softmax and gather in one kernel, forward and backward.
    return -cross_entropy(scaled, ids.flatten().long(), reduction="none").view(ids.shape)


def token_entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the entropy of softmax(logits / temperature) at each position, in nats.

        H[b, t] = -sum_v p_v log p_v

    Args:
        logits: Shape [B T V].
        temperature: > 0.

    Returns: float32 (float64 for float64 logits). Shape [B T].

    Raises:
        ValueError: the temperature is not positive.

    >>> round(token_entropy(torch.zeros(1, 1, 2)).item(), 4)  # log 2
    0.6931
    """
    log_p = _scaled(logits, temperature).log_softmax(-1)
    return -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)


def token_kl(logits: Tensor, other_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the exact KL(p || q) over the whole vocabulary at each position, in nats.

        KL[b, t] = sum_v p_v (log p_v - log q_v),  p, q = softmax(logits / T), softmax(other / T)

    Args:
        logits: The logits of p (the policy). Shape [B T V].
        other_logits: The logits of q (the reference). Shape [B T V].
        temperature: The temperature of both distributions, > 0.

    Returns: float32 (float64 for float64 logits), >= 0 up to rounding. Shape [B T].

    Raises:
        ValueError: the shapes differ or the temperature is not positive.

    >>> x = torch.tensor([[[1.0, 0.0]]])
    >>> token_kl(x, x).item()
    0.0
    """
    check_shapes(logits=logits, other_logits=other_logits)
    log_p = _scaled(logits, temperature).log_softmax(-1)
    log_q = _scaled(other_logits, temperature).log_softmax(-1)
    ratio = (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)  # 0 log 0 = 0, not NaN
    return (log_p.exp() * ratio).sum(-1)


def chunked_token_logprobs(
    hidden: Tensor,
    lm_head: Callable[[Tensor], Tensor],
    ids: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
    restrict: Restrict | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Return `token_logprobs(lm_head(hidden), ids)` without all logits [B T V] in memory.

    The head runs on the True positions only, `chunk_size` of them at a time, and again in the
    backward pass, so the memory is chunk_size x V for all B and T. The result is differentiable in
    `hidden` and in the head's parameters.

    Args:
        hidden: The states that predict ids, not shifted. Shape [B T H].
        lm_head: A function from states [n H] to logits [n V].
        ids: Token ids in [0, V). Shape [B T].
        mask: Bool, True = counts. Shape [B T].
        temperature: The temperature, > 0.
        chunk_size: Number of positions per chunk.
        restrict: Removes tokens that are not allowed from logits (`AllowedTokens.restrict`).
        positions: Positions of the ids in the completion, for restrict; by default 0, 1, ...
            Shape [B T].

    Returns: float32 or float64, 0 where the mask is False. Shape [B T].

    Raises:
        ValueError: the shapes do not fit, the mask is not Bool, or chunk_size < 1.
    """

    def logprobs(states: Tensor, chunk_ids: Tensor, places: Tensor) -> Tensor:
        logits = lm_head(states)
        logits = logits if restrict is None else restrict(logits, places)
        return token_logprobs(logits, chunk_ids, temperature=temperature)

    places = counted_from_0(ids) if positions is None else positions
    return map_positions(logprobs, hidden, ids, places, mask=mask, chunk_size=chunk_size)


def counted_from_0(ids: Tensor) -> Tensor:
    """Return the position of each id in its row, [B T]."""
    return torch.arange(ids.shape[-1], device=ids.device).expand(ids.shape)


def map_positions(
    function: Callable[..., Tensor],
    hidden: Tensor,
    *extras: Tensor,
    mask: Tensor,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """Return function(hidden, *extras) at the True positions, computed in chunks, 0 elsewhere.

    Args:
        function: A function from [n H] and each extra's [n ...] to [n ...]. If there are several
            chunks, it is run again in the backward pass.
        hidden: The first argument of the function. Shape [B T H].
        extras: Further arguments of the function (ids, other states). Shape [B T ...] each.
        mask: Bool, True = counts. Shape [B T]; it has a True.
        chunk_size: Number of positions per chunk, >= 1.

    Raises:
        ValueError: the shapes do not fit, the mask is not Bool, or chunk_size < 1.
    """
    if hidden.dim() != 3:
        raise ValueError(f"hidden must have shape [B T H], got {tuple(hidden.shape)}")
    check_shapes(hidden=hidden[..., 0], mask=mask)
    for extra in extras:
        check_shapes(mask=mask, extra=extra if extra.dim() == 2 else extra.flatten(2)[..., 0])
    check_mask(mask)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    positions = mask.flatten().nonzero().squeeze(-1)
    inputs = [tensor.flatten(0, 1).index_select(0, positions) for tensor in (hidden, *extras)]
    if len(positions) <= chunk_size:
        values = function(*inputs)  # a single chunk fits in memory: do not recompute it
    else:
        chunks = zip(*(tensor.split(chunk_size) for tensor in inputs), strict=True)
        values = torch.cat([_recomputed(function, *chunk) for chunk in chunks])
    full = values.new_zeros(mask.numel(), *values.shape[1:])
    return full.index_copy(0, positions, values).view(*mask.shape, *values.shape[1:])


def _recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return function(*inputs)
    # The function draws no random numbers, so the global generators need not be saved and restored.
    result = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(result, Tensor)
    return result


def _check_logits(logits: Tensor, ids: Tensor) -> None:
    if logits.dim() != ids.dim() + 1 or logits.shape[:-1] != ids.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} but ids have shape {tuple(ids.shape)}; "
            f"logits must be ids' shape with the vocabulary appended"
        )


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    logits = full_precision(logits)
    return logits if temperature == 1.0 else logits / temperature
