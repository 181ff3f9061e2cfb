"""Switches of sampling: finished rows, a group's prompt, ragged prompts, the cache."""

from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import torch
from switches_setup import PROMPT, Setup, Switch, with_packing
from torch import Tensor
from transformers import DynamicCache

from textrl import generation
from textrl.decoding import Decoder
from textrl.generation import ModelSampler, Samples
from textrl.models import SplitLM

ROWS, NEW = 64, 48


def sampling(setup: Setup) -> Iterator[Switch]:
    """Yield what generation leaves out, one by one."""
    yield equal_prompts(setup)
    yield finished_rows(setup)
    yield ragged_prompts(setup)
    yield one_cache(setup)


def equal_prompts(setup: Setup) -> Switch:
    """Return a group's prompt read once, against each sample's."""
    lm = setup.lm
    prompts = torch.tensor([s.ids[:PROMPT] for s in setup.prompted[:16]]).repeat_interleave(4, 0)
    lengths = torch.full((len(prompts),), PROMPT)

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        found = ModelSampler(lm).sample(
            prompts, lengths, max_new_tokens=4, end_ids=(), generator=generator
        )
        return found.logprobs

    def apart() -> Tensor:
        def prefilled(
            lm: SplitLM, ids: Tensor, lengths: Tensor, new: int
        ) -> tuple[Decoder, Tensor]:
            decoder = Decoder(lm, len(ids), int(lengths.max()) + new)
            return decoder, decoder.prefill(torch.arange(len(ids)), ids, lengths)

        with mock.patch.object(generation, "_prefilled", prefilled):
            return draw()

    return "a group's prompt read once (12 + 4 tokens, groups of 4)", draw, apart


def finished_rows(setup: Setup) -> Switch:
    """Return texts that leave the batch where they end, against all running to the last token.

    EOS has a chance of about one in twelve at each token.
    """
    eos = 2
    bias = torch.zeros(setup.lm.vocab_size)
    bias[eos] = torch.log(torch.tensor(setup.lm.vocab_size / 12))
    lm = replace(setup.lm, head=lambda states: setup.lm.head(states) + bias)
    prompts = torch.tensor([s.ids[:PROMPT] for s in setup.prompted[:ROWS]])

    def draw(*ends: int) -> Samples:
        return ModelSampler(lm).sample(
            prompts,
            torch.full((ROWS,), PROMPT),
            max_new_tokens=NEW,
            end_ids=ends,
            generator=torch.Generator().manual_seed(0),
        )

    counted = draw(eos).mask

    def to_the_end() -> Tensor:
        return draw(-1).logprobs[:, : counted.shape[1]].masked_fill(~counted, 0.0)

    return "finished rows leave (12 of 48 tokens)", lambda: draw(eos).logprobs, to_the_end


def ragged_prompts(setup: Setup) -> Switch:
    """Return prompts of many lengths read in passes of like lengths, against one padded pass."""
    lm, texts = setup.lm, setup.texts[:ROWS]
    lengths = torch.tensor([len(s.ids) for s in texts])
    width = int(lengths.max())
    padded = torch.tensor([s.ids + [0] * (width - len(s.ids)) for s in texts])

    def states(lm: SplitLM) -> Tensor:
        return Decoder(lm, ROWS, width).prefill(torch.arange(ROWS), padded, lengths)

    one_pass = with_packing(lm, pass_cost=1 << 40)
    return "prompts of like lengths read together", lambda: states(lm), lambda: states(one_pass)


def one_cache(setup: Setup) -> Switch:
    """Return one cache of the whole length, against transformers' that grows with each token."""
    lm, length = setup.lm, 256
    ids = torch.randint(
        3, lm.vocab_size, (ROWS, length), generator=torch.Generator().manual_seed(0)
    )

    @torch.no_grad()
    def ours() -> Tensor:
        decoder = Decoder(lm, ROWS, length)
        every = torch.arange(ROWS)
        states = decoder.prefill(every, ids[:, :PROMPT], torch.full((ROWS,), PROMPT))
        for column in ids[:, PROMPT:].T:
            states = decoder.step(column)
        return states

    @torch.no_grad()
    def growing() -> Tensor:
        cache = DynamicCache(config=setup.model.config)
        states = lm.cached_hidden(ids[:, :PROMPT], cache)
        for column in ids[:, PROMPT:].T:
            states = lm.cached_hidden(column.unsqueeze(1), cache)
        return states[:, -1]

    return f"one cache of the whole length ({PROMPT} to {length} tokens)", ours, growing
