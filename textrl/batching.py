"""Which examples share a batch: pure functions of lengths, so that little is spent on padding.

Padding to the longest of 32 random reviews nearly doubles the tokens. `epoch_minibatches` decides
which examples share an optimiser step, `filled_batches` which of them are held in memory together
(never a change of the result); `textrl.packing` lays those out. docs/speed.md has the numbers.
"""

import math
from collections.abc import Sequence

import torch

POOL = 32
"""Minibatches in whose pool examples are sorted by length."""


def like_lengths(lengths: Sequence[int], pass_cost: int) -> list[list[int]]:
    """Return the indices in batches of like lengths, to be padded each to its longest.

    Of all splits of the sorted lengths it is the one with the least padded tokens plus pass_cost a
    batch.

    >>> like_lengths([500, 30, 30, 500], pass_cost=64)  # not 940 tokens of padding
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
        costs = [
            cost + (end - begin) * longest + pass_cost
            for cost, begin in zip(least, ends, strict=False)
        ]
        best = min(range(len(costs)), key=costs.__getitem__)
        least.append(costs[best])
        begins.append(best)
    batches: list[list[int]] = []
    last = len(ends) - 1
    while last > 0:
        batches.insert(0, order[ends[begins[last]] : ends[last]])
        last = begins[last]
    return batches


def filled_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return the indices sorted by length in about equal batches of at most max_tokens.

    An example longer than that gets a batch of its own. Padding does not count: `textrl.packing`
    leaves little of it.

    >>> filled_batches([5, 2, 2, 9], max_tokens=10)
    [[1, 2, 0], [3]]
    """
    if not lengths:
        return []
    total = sum(lengths)
    even = total / max(1, math.ceil(total / max_tokens))  # not one full batch and a small rest
    batches: list[list[int]] = []
    held = 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        size = lengths[index]
        if batches and held + size <= max_tokens and held + size / 2 <= even:
            batches[-1].append(index)
            held += size
        else:
            batches.append([index])
            held = size
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
