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
        logprobs: Normalised log-probs, in nats. Shape [B V].
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


class Conversation(Protocol):
    """A batch of texts that go on, turn by turn: a turn is sampled, then others write, and so on.

    What a row draws depends on how many tokens were sampled in it, and not on when the turns of
    other rows end.
    """

    def sample(
        self,
        rows: Tensor,
        ids: Tensor,
        lengths: Tensor,
        *,
        max_new_tokens: Tensor,
        end_ids: Sequence[int],
        temperature: float = 1.0,
        allowed: AllowedTokens | None = None,
        begun: Tensor | None = None,
    ) -> Samples:
        """Return the next turn of some rows.

        Args:
            rows: The rows. Shape [R].
            ids: Their whole texts, each of which goes on from the one that was sampled before,
                right-padded. Shape [R L].
            lengths: The number of tokens of each text, >= 1. Shape [R].
            max_new_tokens: The token budget of each row, >= 1. Shape [R].
            end_ids: Tokens that end a turn; they are part of it (see `chat.end_ids`).
            temperature: The temperature of sampling and of the returned log-probs (nats).
            allowed: The tokens that may be sampled; None for all.
            begun: Number of tokens of each turn that are already in the text, by default 0.
                Shape [R].

        Raises:
            UserError: the temperature is not a positive number.
        """


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
        """Return one completion of each prompt; the arguments are those of `Conversation.sample`.

        Args:
            prompt_ids: The prompts, right-padded. Shape [B P].
            prompt_lengths: The number of tokens of each prompt, >= 1. Shape [B].
            max_new_tokens: The token budget.
            end_ids: Tokens that end a completion.
            generator: A CPU generator, the only source of randomness.
            temperature: The temperature of sampling and of the returned log-probs (nats).
            allowed: The tokens that may be sampled; None for all.
            begun: Number of completion tokens that are already in the prompt. Shape [B].

        Raises:
            UserError: the temperature is not a positive number.
        """

    def converse(self, num_rows: int, max_length: int, generator: torch.Generator) -> Conversation:
        """Return a conversation of this many rows, of texts of at most max_length tokens."""


@dataclass(frozen=True)
class ModelSampler:
    """Samples from a language model in this process, with its present weights."""

    lm: SplitLM
    observe: Callable[[Tensor], Tensor] | None = None
    """A function from states [n H] to one number per state [n], such as a value head."""

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
        """Return completions of prompts [B P], and what `observe` returns for each state."""
        batch, width = len(prompt_ids), int(prompt_lengths.max())
        return self.converse(batch, width + max_new_tokens, generator).sample(
            torch.arange(batch, device=prompt_ids.device),
            prompt_ids,
            prompt_lengths,
            max_new_tokens=torch.full_like(prompt_lengths, max_new_tokens),
            end_ids=end_ids,
            temperature=temperature,
            allowed=allowed,
            begun=begun,
        )

    def converse(
        self, num_rows: int, max_length: int, generator: torch.Generator
    ) -> "ModelConversation":
        """Return a conversation that keeps the KV cache of its texts; see `Sampler`."""
        return ModelConversation(self, num_rows, max_length, generator)


class ModelConversation:
    """A conversation with a `ModelSampler`: every token is read once."""

    def __init__(
        self, sampler: ModelSampler, num_rows: int, max_length: int, generator: torch.Generator
    ) -> None:
        """Begin with nothing read."""
        self.lm, self.observe = sampler.lm, sampler.observe
        self._num_rows, self._max_length = num_rows, max_length
        self._decoder: Decoder | None = None
        self._generator = generator
        self._uniforms = torch.zeros(0, num_rows, dtype=torch.float64)
        self._drawn = torch.zeros(num_rows, dtype=torch.long)

    @torch.no_grad()
    def sample(
        self,
        rows: Tensor,
        ids: Tensor,
        lengths: Tensor,
        *,
        max_new_tokens: Tensor,
        end_ids: Sequence[int],
        temperature: float = 1.0,
        allowed: AllowedTokens | None = None,
        begun: Tensor | None = None,
    ) -> Samples:
        """Return the next turn of some rows; see `Conversation`."""
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature is {temperature!r}; expected a positive number")
        count, device = len(rows), self.lm.device
        rows, budget = rows.to(device), max_new_tokens.to(device)
        most = int(budget.max())
        ends = torch.tensor(list(end_ids), dtype=torch.long, device=device)
        alive = torch.arange(count, device=device)
        done = torch.zeros_like(alive) if begun is None else begun.to(device)
        decoder, states = self._read(rows, ids.to(device), lengths.to(device))
        chosen = torch.zeros(count, most, dtype=torch.long, device=device)
        mask = torch.zeros(count, most, dtype=torch.bool, device=device)
        logprobs, entropies, observed = torch.zeros(3, count, most, device=device)
        for step in range(most):
            uniforms = self._draw(rows[alive])
            logits = self.lm.head(states).float()
            if allowed is not None:
                logits = allowed.restrict(logits, done[alive] + step)
            log_p = (logits / temperature).log_softmax(-1)
            tokens = draw(log_p, uniforms)
            chosen[alive, step], mask[alive, step] = tokens, True
            logprobs[alive, step] = log_p.gather(1, tokens.unsqueeze(1)).squeeze(1)
            entropies[alive, step] = _entropy(log_p)
            if self.observe is not None:
                observed[alive, step] = self.observe(states).float()
            going = (~torch.isin(tokens, ends) & (budget[alive] > step + 1)).nonzero().squeeze(1)
            if len(going) == 0:
                break
            alive, tokens = alive[going], tokens[going]
            states = decoder.step(tokens, rows[alive])
        longest = int(mask.sum(1).max())
        return Samples(
            completion_ids=chosen[:, :longest],
            mask=mask[:, :longest],
            logprobs=logprobs[:, :longest],
            entropies=entropies[:, :longest],
            observed=None if self.observe is None else observed[:, :longest],
        )

    def _read(self, rows: Tensor, ids: Tensor, lengths: Tensor) -> tuple[Decoder, Tensor]:
        """Read what is new in some texts; return the decoder and the states after them, [R H]."""
        if self._decoder is None:
            self._decoder, states = _prefilled(self.lm, ids, lengths, self._max_length)
            assert len(rows) == self._num_rows  # the first turn is one of all rows
            return self._decoder, states
        known = self._decoder.lengths[rows]
        counts = lengths - known
        steps = torch.arange(int(counts.max()), device=ids.device)
        places = (known.unsqueeze(1) + steps).clamp_max(ids.shape[1] - 1)
        return self._decoder, self._decoder.read_to_end(rows, ids.gather(1, places).long(), counts)

    def _draw(self, rows: Tensor) -> Tensor:
        """Return the next uniform number of some rows, float64 [R]."""
        rows = rows.cpu()
        places = self._drawn[rows]
        while int(places.max()) >= len(self._uniforms):
            more = torch.rand(self._num_rows, dtype=torch.float64, generator=self._generator)
            self._uniforms = torch.cat([self._uniforms, more.unsqueeze(0)])
        self._drawn[rows] = places + 1
        return self._uniforms[places, rows].to(self.lm.device)


def _entropy(logprobs: Tensor) -> Tensor:
    finite = logprobs.clamp_min(torch.finfo(logprobs.dtype).min)  # a banned token: 0 log 0 = 0
    return -(logprobs.exp() * finite).sum(-1)


def _prefilled(
    lm: SplitLM, prompt_ids: Tensor, prompt_lengths: Tensor, max_length: int
) -> tuple[Decoder, Tensor]:
    """Return a decoder that has read the prompts, and the states after them, [B H].

    Equal prompts (the samples of one group) are read once.
    """
    width = int(prompt_lengths.max())
    real = torch.arange(width, device=prompt_ids.device) < prompt_lengths.unsqueeze(1)
    rows = torch.cat([prompt_lengths.unsqueeze(1), prompt_ids[:, :width].long() * real], dim=1)
    distinct, places = rows.unique(dim=0, return_inverse=True)
    if len(distinct) == len(rows):
        distinct, places = rows, torch.arange(len(rows), device=rows.device)
    decoder = Decoder(lm, len(distinct), max_length)
    everything = torch.arange(len(distinct), device=rows.device)
    states = decoder.prefill(everything, distinct[:, 1:], distinct[:, 0])
    if len(distinct) < len(rows):
        decoder.select(places)
    return decoder, states[places]
