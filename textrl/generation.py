"""Sampling of completions from a language model, with the log-probs that an update needs.

Sampling is always from the full softmax at one temperature; the sampling settings in a model's
generation config are ignored. The token-by-token decoding is in `decoding.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from textrl.decoding import Decoder
from textrl.errors import UserError
from textrl.logprobs import AllowedTokens
from textrl.policy import SplitLM


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Return one token per row by inverting the cumulative distribution at the given uniforms.

    There is one float64 uniform per row, so a row's token does not depend on the other rows. A
    batch that shrinks while sampling gets the same tokens as one that does not.

    Args:
        logprobs: Normalised log-probs. Shape [B V].
        uniforms: Float64 numbers in [0, 1). Shape [B].

    >>> draw(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0.75], dtype=torch.float64)).item()
    1
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    targets = uniforms.unsqueeze(1) * cumulative[:, -1:]
    return (
        torch.searchsorted(cumulative, targets, right=True)
        .squeeze(1)
        .clamp_max(logprobs.shape[1] - 1)
    )


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Sampled completions with their log-probs and entropies; masked slots hold 0."""

    completion_ids: Tensor
    """The token ids. Int64 [B T]; T is the length of the longest completion."""
    mask: Tensor
    """Bool [B T], True up to and including the end token."""
    logprobs: Tensor
    """Log-probs under the distribution that was sampled from, in nats. Shape [B T]."""
    entropies: Tensor
    """Entropies of that distribution, in nats. Shape [B T]."""
    observed: Tensor | None
    """What the sampler observed in the state before each token, such as a critic's values. Shape
    [B T], or None if it observes nothing."""


class Sampler(Protocol):
    """A source of completions: `ModelSampler`, or another engine that returns log-probs."""

    def sample(
        self,
        prompt_ids: Tensor,
        prompt_lengths: Tensor,
        *,
        max_new_tokens: int,
        end_ids: Sequence[int],
        generator: torch.Generator,
        temperature: float = 1.0,
        allowed: AllowedTokens | None = None,
        begun: Tensor | None = None,
    ) -> Samples:
        """Return sampled completions with their log-probs and entropies.

        Args:
            prompt_ids: The prompts, right-padded. Shape [B P].
            prompt_lengths: The number of tokens of each prompt, >= 1. Shape [B].
            max_new_tokens: The token budget.
            end_ids: Tokens that end a completion; they are part of it (see `chat.end_ids`).
            generator: A CPU generator, the only source of randomness.
            temperature: The temperature of sampling and of the returned log-probs.
            allowed: The tokens that may be sampled; None for all.
            begun: Number of completion tokens that are already in the prompt, by default 0.
                Shape [B].

        Raises:
            UserError: the temperature is not a positive number.
        """


@dataclass(frozen=True)
class ModelSampler:
    """Samples from a language model in this process, with its present weights."""

    lm: SplitLM
    observe: Callable[[Tensor], Tensor] | None = None
    """A function from states [n H] to one number per state [n], such as a value head."""

    @torch.no_grad()
    def sample(
        self,
        prompt_ids: Tensor,
        prompt_lengths: Tensor,
        *,
        max_new_tokens: int,
        end_ids: Sequence[int],
        generator: torch.Generator,
        temperature: float = 1.0,
        allowed: AllowedTokens | None = None,
        begun: Tensor | None = None,
    ) -> Samples:
        """Return sampled completions, and what `observe` returns for each state; see `Sampler`."""
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature is {temperature!r}; expected a positive number")
        batch, device = prompt_ids.shape[0], self.lm.device
        ends = torch.tensor(list(end_ids), dtype=torch.long, device=device)
        alive = torch.arange(batch, device=device)
        done = torch.zeros_like(alive) if begun is None else begun.to(device)
        decoder, states = _prefilled(self.lm, prompt_ids, prompt_lengths, max_new_tokens)
        ids = torch.zeros(batch, max_new_tokens, dtype=torch.long, device=device)
        mask = torch.zeros(batch, max_new_tokens, dtype=torch.bool, device=device)
        logprobs, entropies, observed = torch.zeros(3, batch, max_new_tokens, device=device)
        for step in range(max_new_tokens):
            uniforms = torch.rand(batch, dtype=torch.float64, generator=generator).to(device)
            logits = self.lm.head(states).float()
            if allowed is not None:
                logits = allowed.restrict(logits, done[alive] + step)
            log_p = (logits / temperature).log_softmax(-1)
            tokens = draw(log_p, uniforms[alive])
            ids[alive, step], mask[alive, step] = tokens, True
            logprobs[alive, step] = log_p.gather(1, tokens.unsqueeze(1)).squeeze(1)
            entropies[alive, step] = _entropy(log_p)
            if self.observe is not None:
                observed[alive, step] = self.observe(states).float()
            going = (~torch.isin(tokens, ends)).nonzero().squeeze(1)
            if len(going) == 0 or step + 1 == max_new_tokens:
                break
            if len(going) < len(alive):
                decoder.select(going)
                alive, tokens = alive[going], tokens[going]
            states = decoder.step(tokens)
        longest = int(mask.sum(1).max())
        return Samples(
            completion_ids=ids[:, :longest],
            mask=mask[:, :longest],
            logprobs=logprobs[:, :longest],
            entropies=entropies[:, :longest],
            observed=None if self.observe is None else observed[:, :longest],
        )


def _entropy(logprobs: Tensor) -> Tensor:
    finite = logprobs.clamp_min(torch.finfo(logprobs.dtype).min)  # a banned token: 0 log 0 = 0
    return -(logprobs.exp() * finite).sum(-1)


def _prefilled(
    lm: SplitLM, prompt_ids: Tensor, prompt_lengths: Tensor, max_new_tokens: int
) -> tuple[Decoder, Tensor]:
    """Return a decoder that has read the prompts, and the states after them, [B H].

    Equal prompts (the samples of one group) are read once.
    """
    prompt_ids, prompt_lengths = prompt_ids.to(lm.device), prompt_lengths.to(lm.device)
    width = int(prompt_lengths.max())
    real = torch.arange(width, device=prompt_ids.device) < prompt_lengths.unsqueeze(1)
    rows = torch.cat([prompt_lengths.unsqueeze(1), prompt_ids[:, :width].long() * real], dim=1)
    distinct, places = rows.unique(dim=0, return_inverse=True)
    if len(distinct) == len(rows):
        distinct, places = rows, torch.arange(len(rows), device=rows.device)
    decoder = Decoder(lm, len(distinct), width + max_new_tokens)
    everything = torch.arange(len(distinct), device=rows.device)
    states = decoder.prefill(everything, distinct[:, 1:], distinct[:, 0])
    if len(distinct) < len(rows):
        decoder.select(places)
    return decoder, states[places]
