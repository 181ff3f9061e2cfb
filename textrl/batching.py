"""Batching by length, to spend little computation on padding; pure functions of the lengths.

Padding to the longest of 32 random reviews nearly doubles the tokens. `epoch_minibatches` decides
which examples share an optimiser step. `filled_batches` decides which of them are in memory at the
same time, which never changes the result. `textrl.packing` then arranges them in rows.
docs/speed.md has the numbers.
"""

import math
from collections.abc import Sequence

import torch

POOL = 32
"""Number of minibatches in a pool, within which examples are sorted by length."""


def like_lengths(lengths: Sequence[int], pass_cost: int) -> list[list[int]]:
    """Return the indices in batches of similar lengths, each to be padded to its longest.

    Of all splits of the sorted lengths, this one has the lowest cost: the padded tokens plus
    pass_cost per batch.

    >>> like_lengths([500, 30, 30, 500], pass_cost=64)  # not 940 tokens of padding
    [[1, 2], [0, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    ends = [0]  # positions where a batch may end: those where a longer length begins
    for position in range(1, len(order) + 1):
        if position == len(order) or lengths[order[position]] > lengths[order[position - 1]]:
            ends.append(position)
    least, begins = [0.0], [0]  # for the first ends[j] rows: least cost, start of the last batch
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
    """Return the indices, sorted by length, in batches of similar size of at most max_tokens.

    A longer example gets its own batch. Padding is not counted, since `textrl.packing` leaves
    little of it.

    >>> filled_batches([5, 2, 2, 9], max_tokens=10)
    [[1, 2, 0], [3]]
    """
    if not lengths:
        return []
    total = sum(lengths)
    even = total / max(1, math.ceil(total / max_tokens))  # equal sizes, not a small last batch
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
    """Return the minibatches of an epoch in random order, each with examples of similar length.

    The shuffled examples are sorted by length within pools of 32 minibatches, with up to 20% random
    jitter on each length, so that minibatches differ between epochs. Then the minibatches are
    shuffled.
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
