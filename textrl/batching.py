"""Which examples share a batch: pure functions of lengths, so that little is spent on padding.

Padding to the longest of 32 random reviews nearly doubles the tokens. `epoch_minibatches` decides
which examples share an optimiser step, `token_batches` and `filled_batches` which of them share a
forward and backward pass (never a change of the result). docs/speed.md has the numbers.
"""

import math
from collections.abc import Sequence

import torch

POOL = 32
"""Minibatches in whose pool examples are sorted by length."""
LEAST_PASS_COST = 64
PASS_PARAMETERS = 1 << 28


def pass_cost(parameters: int) -> int:
    """Return what one more forward and backward pass of a model costs, in tokens.

    Launches and small matrices cost the same whatever the model, a token in proportion to its
    parameters: 64 tokens at 4.2M parameters and above, thousands for a model of a test.
    """
    return max(LEAST_PASS_COST, PASS_PARAMETERS // parameters)


def token_batches(lengths: Sequence[int], max_tokens: int, pass_cost: int) -> list[list[int]]:
    """Return the indices in batches of like lengths, at most max_tokens each, padding included.

    Of all splits of the sorted lengths it is the one with the least padded tokens plus pass_cost a
    batch. A sequence longer than max_tokens gets a batch of its own.

    >>> token_batches([5, 2, 2, 9], max_tokens=10, pass_cost=64)
    [[1, 2], [0], [3]]
    >>> token_batches([500, 30, 30, 500], 4096, pass_cost=64)  # not 940 tokens of padding
    [[1, 2], [0, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    ends = [0]  # a batch may end where a longer length begins
    for position in range(1, len(order) + 1):
        if position == len(order) or lengths[order[position]] > lengths[order[position - 1]]:
            ends.append(position)
    least, begins = [0.0], [0]  # of the first ends[j] rows: the cost, and where the last part began
    for end in ends[1:]:
        longest = lengths[order[end - 1]]
        room = max(1, max_tokens // longest)
        costs = [
            cost + (end - begin) * longest + pass_cost * math.ceil((end - begin) / room)
            for cost, begin in zip(least, ends, strict=False)
        ]
        best = min(range(len(costs)), key=costs.__getitem__)
        least.append(costs[best])
        begins.append(best)
    batches: list[list[int]] = []
    last = len(ends) - 1
    while last > 0:
        part = order[ends[begins[last]] : ends[last]]
        room = max(1, max_tokens // lengths[part[-1]])
        size = math.ceil(len(part) / math.ceil(len(part) / room))
        batches = [part[i : i + size] for i in range(0, len(part), size)] + batches
        last = begins[last]
    return batches


def filled_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return the indices sorted by length in batches of at most max_tokens, without padding.

    For examples of several sequences, whose loss splits them by `token_batches` itself.

    >>> filled_batches([5, 2, 2, 9], max_tokens=10)
    [[1, 2, 0], [3]]
    """
    batches: list[list[int]] = []
    held = 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and held + lengths[index] <= max_tokens:
            batches[-1].append(index)
            held += lengths[index]
        else:
            batches.append([index])
            held = lengths[index]
    return batches


def epoch_minibatches(
    lengths: Sequence[int], minibatch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """Return an epoch's minibatches: random, but each of examples of about one length.

    The shuffled examples are sorted by length within pools of 32 minibatches, with a random 20% on
    each length so that the company changes from epoch to epoch, and the minibatches are shuffled
    again.
    """
    size = len(lengths)
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    blur = (1 + 0.2 * torch.rand(size, generator=generator)).tolist()
    minibatches = []
    for start in range(0, size, POOL * minibatch_size):
        pool = order[start : start + POOL * minibatch_size]
        pool.sort(key=lambda i: lengths[i] * blur[i])
        parts = range(0, len(pool), minibatch_size)
        minibatches += [pool[begin : begin + minibatch_size] for begin in parts]
    shuffled = torch.randperm(len(minibatches), generator=generator).tolist()
    return [minibatches[i] for i in shuffled]
