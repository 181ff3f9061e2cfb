"""Log-probabilities and entropies of tokens, and which tokens may come next at all.

No function shifts its arguments: `logits[:, t]` must be the prediction of `ids[:, t]`. There are
two forms. The plain form takes all logits [B T V]. The chunked form applies the LM head only at the
positions that count, one chunk at a time, forward and backward.

A token that is not allowed (banned, or an end before the minimum length) has probability 0. All
code that turns logits into a distribution calls `AllowedTokens.restrict` first: sampling, the
environment's reference, and every update. So the probabilities of the remaining tokens sum to 1,
both for the policy and for the reference. Next to read: `policy.py`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from textrl.errors import UserError
from textrl.masking import check_mask, check_shapes, full_precision

Restrict = Callable[[Tensor, Tensor], Tensor]
"""(logits [n V], positions in the completion [n]) -> logits of the allowed tokens only [n V]."""
CHUNK_SIZE = 1024
"""Number of positions per chunk: for a vocabulary of 50,000, one chunk of float32 logits takes
200 MB."""
BANNED = -1e30
"""Logit of a token that is not allowed: its probability is exactly 0, without any infinity."""


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

    Returns: float32 or float64 in nats, 0 where the mask is False. Shape [B T].

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


def completion_positions(prompt_lengths: Tensor, mask: Tensor) -> Tensor:
    """Return the positions of completion tokens that directly follow a prompt, Int64 [B T].

    >>> completion_positions(torch.tensor([3]), torch.tensor([[True, True, False]]))
    tensor([[3, 4, 0]])
    """
    steps = torch.arange(mask.shape[1], device=mask.device)
    return (prompt_lengths.unsqueeze(1) + steps).masked_fill(~mask, 0)


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


class AllowedTokens:
    """The tokens that are valid actions of a task, by their position in the completion."""

    def __init__(
        self, *, width: int, banned: Sequence[int], end_ids: Sequence[int], min_tokens: int
    ) -> None:
        """Check and keep the restrictions.

        Args:
            width: The width of the logits.
            banned: Token ids that are never allowed.
            end_ids: Token ids that end a completion.
            min_tokens: Minimum length of a completion; no end token is allowed before it.

        Raises:
            UserError: a banned id is not a token id, or no token is allowed at some position.
        """
        strange = [token for token in banned if not 0 <= token < width]
        if strange:
            raise UserError(
                f"banned_token_ids holds {strange[0]}; expected token ids in [0, {width})"
            )
        self.min_tokens = min_tokens
        self._later = torch.ones(width, dtype=torch.bool)
        self._later[list(banned)] = False
        self._first = self._later.clone()
        self._first[list(end_ids)] = False
        self.everything = min_tokens == 0 and not banned
        """Whether all tokens are allowed everywhere."""
        if not self._later.any() or (min_tokens > 0 and not self._first.any()):
            raise UserError(
                f"banned_token_ids and min_completion_tokens={min_tokens} leave no token to take; "
                f"ban fewer of the {width} tokens"
            )
        self.filler = int((self._first if self._first.any() else self._later).int().argmax())
        """A token that is allowed at every position; one that ends no completion, if possible."""

    def mask(self, positions: Tensor) -> Tensor:
        """Return which tokens are allowed at these positions in the completion, Bool [n V].

        Args:
            positions: Positions in the completion, 0 for the first token. Shape [n].
        """
        first, later = self._first.to(positions.device), self._later.to(positions.device)
        return torch.where((positions < self.min_tokens).unsqueeze(-1), first, later)

    def restrict(self, logits: Tensor, positions: Tensor) -> Tensor:
        """Return the logits of a distribution over the allowed tokens only, [n V].

        Args:
            logits: The model's logits. Shape [n V].
            positions: Positions in the completion of the tokens that they predict. Shape [n].

        >>> allowed = AllowedTokens(width=3, banned=[0], end_ids=[2], min_tokens=1)
        >>> allowed.restrict(torch.zeros(2, 3), torch.tensor([0, 1])).softmax(-1).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.5, 0.5]]
        """
        if self.everything:
            return logits
        return full_precision(logits).masked_fill(~self.mask(positions), BANNED)

    def check(self, tokens: Tensor, positions: Tensor) -> None:
        """Raise UserError if one of the tokens [n] is none, or not allowed at its position [n]."""
        width = len(self._later)
        if len(tokens) and not (tokens.min() >= 0 and tokens.max() < width):
            raise UserError(
                f"an action is a token id in [0, {width}), got {int(tokens.min())} to "
                f"{int(tokens.max())}"
            )
        if self.everything or len(tokens) == 0:
            return
        allowed = self.mask(positions)[torch.arange(len(tokens)), tokens]
        if not allowed.all():
            index = int((~allowed).int().argmax())
            token, position = int(tokens[index]), int(positions[index])
            why = "is in banned_token_ids"
            if self._later[token]:
                why = f"ends the text before min_completion_tokens={self.min_tokens}"
            raise UserError(
                f"token {token} is no action at position {position} of a completion: it {why}; "
                f"action_masks() says which tokens may come next"
            )
