"""Texts of different lengths in batches, passes and rows, to spend little computation on padding.

Padding to the longest of 32 random reviews nearly doubles the tokens. `filled_batches` decides
which texts are in memory at the same time, which never changes the result. `read` rearranges
right-padded texts. Texts of the same prompt form a family, whose common beginning is read once.
Families are concatenated in rows of about equal length; positions start again with each text, and a
mask prevents attention between texts. Every state is equal to that of the text in a row of its own
(a trial in `trunks.packing_of` checks this), and the caller gets it at the original place.
docs/speed.md has numbers.
"""

import heapq
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from textrl.precision import attention_of_texts


def first_output(output: Any) -> Tensor:
    """Return a transformers output's first field: the last hidden state, or the logits."""
    tensor = output[0]
    assert isinstance(tensor, Tensor)
    return tensor


def filled_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return the indices, sorted by length, in batches of similar size of at most max_tokens.

    A longer example gets its own batch. Padding is not counted, since `read` leaves little of
    it.

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


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Whether texts may be packed for a model, and the costs that decide how."""

    pass_cost: int
    """The cost of one more forward and backward pass, in tokens.

    Launches and small matrices cost the same for every model, but the cost of a token is
    proportional to the number of parameters. So a pass costs 64 tokens at 4.2M parameters and
    above, and thousands of tokens for a model in a test. Measured on CPUs; a forward pass alone
    costs about as many tokens.
    """
    attention_cost: float
    """The cost for each slot of one more slot in its row, in tokens."""
    max_length: int
    """The longest text that may share its row; 0: no text may."""
    alone_beyond: int = sys.maxsize
    """The longest text that may be read together with texts of another length."""

    def row_cost(self, width: int, *, shared: bool = True) -> float:
        """Return the cost of a row, in tokens; in a shared row each slot attends to all slots."""
        return width * (1 + self.attention_cost * width * (1.0 if shared else 0.5))


@dataclass(frozen=True, kw_only=True)
class Family:
    """Texts with a common beginning."""

    begin: int
    """The number of tokens that they share; for a single text, all its tokens."""
    members: list[int]
    num_tokens: int
    """The number of tokens that the family takes in a row: the beginning once, then each rest."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The input of one forward pass of a trunk, right-padded."""

    input_ids: Tensor
    """The token ids. Int64 [R W]."""
    position_ids: Tensor | None = None
    """The position of each token in its text; None: its position in the row. Int64 [R W]."""
    visible: Tensor | None = None
    """The slots that each slot attends to; None: all slots before it. Bool [R 1 W W]."""

    def to(self, device: torch.device) -> "Pass":
        """Return the pass on another device."""
        assert self.position_ids is not None
        assert self.visible is not None
        return Pass(
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            visible=self.visible.to(device),
        )

    def states(self, trunk: nn.Module) -> Tensor:
        """Return the states of all slots, with rows concatenated, [R W, H]."""
        options = {}
        if self.visible is not None:
            dtype = next(trunk.parameters()).dtype
            mask = torch.zeros(self.visible.shape, dtype=dtype, device=self.visible.device)
            lowest = torch.finfo(dtype).min
            options = {
                "attention_mask": mask.masked_fill(~self.visible, lowest),
                "position_ids": self.position_ids,
            }
        with attention_of_texts():
            states = trunk(input_ids=self.input_ids, use_cache=False, **options)[0]
        assert isinstance(states, Tensor)
        return states.flatten(0, 1)


def read(
    trunk: nn.Module, packing: Packing, input_ids: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the last hidden states of right-padded ids, [N H], and each token's index, [B L].

    `take(states, places)` gives the usual [B L H]; a caller that needs only some states can take
    just those. An index after a row's end is arbitrary.

    Args:
        trunk: A causal model without its head.
        packing: The packing of the trunk.
        input_ids: The token ids, right-padded. Shape [B L].
        lengths: The number of tokens to read in each row, 1 to L. Shape [B].
    """
    passes, places = plan(packing, input_ids, lengths)
    return torch.cat([one.states(trunk) for one in passes]), places


def action_states(
    trunk: nn.Module, packing: Packing, input_ids: Tensor, positions: Tensor, mask: Tensor
) -> Tensor:
    """Return the same as `SplitLM.action_states`, for any causal trunk (such as a critic's)."""
    return take(*read_before(trunk, packing, input_ids, positions, mask))


def read_before(
    trunk: nn.Module, packing: Packing, input_ids: Tensor, positions: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the states [N H] of some texts, and the index of each action's state, [B T]."""
    before = (positions - 1).masked_fill(~mask, 0)  # the last action's own state is not needed
    states, places = read(trunk, packing, input_ids, before.amax(1) + 1)
    return states, places.gather(1, before)


def take(states: Tensor, places: Tensor) -> Tensor:
    """Return states[places]: [... H] from [N H]; its backward pass is faster than indexing's."""
    return states.index_select(0, places.flatten()).view(*places.shape, -1)


def plan(packing: Packing, input_ids: Tensor, lengths: Tensor) -> tuple[list[Pass], Tensor]:
    """Return the cheapest passes over these texts, and the index of each token's state, [B L].

    The index counts the slots of all passes in order; an index after a row's end is arbitrary.
    """
    short = input_ids.shape[1] <= packing.alone_beyond
    if short and input_ids.numel() <= packing.pass_cost:  # nothing to gain
        slots = torch.arange(input_ids.numel(), device=input_ids.device)
        return [Pass(input_ids=input_ids)], slots.view(input_ids.shape)
    texts = [row[:length] for row, length in zip(input_ids.tolist(), lengths.tolist(), strict=True)]
    sizes = [len(text) for text in texts]
    batches = _batches(sizes, packing)
    apart = sum(
        packing.pass_cost
        + len(batch) * packing.row_cost(max(sizes[i] for i in batch), shared=False)
        for batch in batches
    )
    if max(sizes) <= packing.max_length:
        families = share_beginnings(texts, packing)
        rows = even_rows([family.num_tokens for family in families], packing)
        width = max(sum(families[i].num_tokens for i in row) for row in rows)
        if packing.pass_cost + len(rows) * packing.row_cost(width) < apart:
            one, places = packed_pass(texts, [[families[i] for i in row] for row in rows])
            device = input_ids.device
            return [one.to(device)], _table(places, input_ids.shape[1]).to(device)
    return passes_by_length(input_ids, sizes, batches)


def _batches(sizes: list[int], packing: Packing) -> list[list[int]]:
    """Return batches of texts of similar length, or of equal length if other texts matter."""
    usual = [i for i, size in enumerate(sizes) if size <= packing.alone_beyond]
    found = like_lengths([sizes[i] for i in usual], packing.pass_cost) if usual else []
    batches = [[usual[i] for i in batch] for batch in found]
    longer = sorted({size for size in sizes if size > packing.alone_beyond})
    return batches + [[i for i, size in enumerate(sizes) if size == length] for length in longer]


def passes_by_length(
    input_ids: Tensor, sizes: list[int], batches: list[list[int]]
) -> tuple[list[Pass], Tensor]:
    """Return a pass for each batch of texts, with one text per row, and each token's index."""
    passes, start = [], 0
    places: list[list[int]] = [[] for _ in sizes]
    for batch in batches:
        width = max(sizes[i] for i in batch)
        passes.append(Pass(input_ids=input_ids[batch, :width]))
        for index in batch:
            places[index] = list(range(start, start + sizes[index]))
            start += width
    return passes, _table(places, input_ids.shape[1]).to(input_ids.device)


def share_beginnings(texts: list[list[int]], packing: Packing) -> list[Family]:
    """Group texts into families; a text joins a family if sharing its beginning lowers the cost.

    >>> packing = Packing(pass_cost=0, attention_cost=0.0, max_length=99)
    >>> [(f.begin, f.members) for f in share_beginnings([[5, 6, 7], [9, 9], [5, 6, 8]], packing)]
    [(2, [0, 2]), (2, [1])]
    """
    families: list[Family] = []
    for index in sorted(range(len(texts)), key=lambda i: texts[i]):
        text = texts[index]
        alone = Family(begin=len(text), members=[index], num_tokens=len(text))
        if families:
            last = families[-1]
            begin = _common(texts[last.members[0]][: last.begin], text)
            members = [*last.members, index]
            tokens = begin + sum(len(texts[i]) - begin for i in members)
            apart = packing.row_cost(last.num_tokens) + packing.row_cost(len(text))
            if begin and packing.row_cost(tokens) < apart:
                families[-1] = Family(begin=begin, members=members, num_tokens=tokens)
                continue
        families.append(alone)
    return families


def even_rows(sizes: Sequence[int], packing: Packing) -> list[list[int]]:
    """Distribute the parts over rows so that the total cost is low.

    Several numbers of rows are tried. Parts are placed from large to small, each in the row with
    the most space.

    >>> even_rows([5, 3, 2], Packing(pass_cost=0, attention_cost=0.0, max_length=99))
    [[0], [1, 2]]
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    most = min(len(sizes), 1 + sum(sizes) // sizes[order[0]] * 5 // 4)
    best: tuple[float, list[list[int]]] = (float("inf"), [])
    for count in range(most, 0, -max(1, most // 12)):
        heap = [(0, row) for row in range(count)]
        rows: list[list[int]] = [[] for _ in range(count)]
        for index in order:
            filled, row = heap[0]
            rows[row].append(index)
            heapq.heapreplace(heap, (filled + sizes[index], row))
        cost = packing.row_cost(max(filled for filled, _ in heap)) * count
        if cost < best[0]:
            best = cost, rows
    return best[1]


def packed_pass(texts: list[list[int]], rows: list[list[Family]]) -> tuple[Pass, list[list[int]]]:
    """Return a pass over rows of families, and the slots of each text's tokens."""
    width = max(sum(family.num_tokens for family in row) for row in rows)
    places: list[list[int]] = [[] for _ in texts]
    ids, positions, families, branches = (
        torch.full((len(rows), width), filler) for filler in (0, 0, -1, -1)
    )
    for number, row in enumerate(rows):
        slot = 0
        for kin, family in enumerate(row):
            begin, first = family.begin, slot
            parts = [(-1, texts[family.members[0]][:begin], 0)]
            parts += [(b, texts[i][begin:], begin) for b, i in enumerate(family.members)]
            for branch, tokens, position in parts:
                end = slot + len(tokens)
                ids[number, slot:end] = torch.tensor(tokens, dtype=torch.long)
                positions[number, slot:end] = torch.arange(position, position + len(tokens))
                families[number, slot:end], branches[number, slot:end] = kin, branch
                if branch >= 0:
                    base = number * width
                    own = [
                        *range(base + first, base + first + begin),
                        *range(base + slot, base + end),
                    ]
                    places[family.members[branch]] = own
                slot = end
    slots = torch.arange(width)
    own_family = families.unsqueeze(2) == families.unsqueeze(1)
    of_beginning = (branches == -1).unsqueeze(1)
    own_branch = branches.unsqueeze(2) == branches.unsqueeze(1)
    seen = (slots.unsqueeze(1) >= slots) & own_family & (of_beginning | own_branch)
    return Pass(input_ids=ids, position_ids=positions, visible=seen.unsqueeze(1)), places


def _common(first: list[int], second: list[int]) -> int:
    """Return the length of the common beginning of two texts, in tokens."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def _table(rows: list[list[int]], width: int) -> Tensor:
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])
