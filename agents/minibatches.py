"""The optimiser steps of an iteration: shuffled minibatches, split into micro-batches for memory.

All our agents run their losses through `Steps`. The losses are in each agent's file, the optimiser
is in `textrl/updater.py`.

    for step in steps.over(lengths=rollout.lengths, weights=rollout.mask.sum(1), minibatch_size=64):
        numbers = step.take(loss)
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from textrl.packing import filled_batches
from textrl.updater import Updater

Numbers = dict[str, float]
MinibatchLoss = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
"""A function from rows [n] to their differentiable mean loss and a dict of numbers to log."""

MoreLosses = Callable[[int], Iterable[Tensor]]
"""A function from the number of tokens in memory at once to losses of micro-batches."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The optimiser steps that an agent takes on the episodes or pairs of an iteration."""

    updater: Updater
    generator: torch.Generator
    """The random generator that shuffles the minibatches."""
    micro_batch_tokens: int
    """Number of tokens in one forward and backward pass; it never changes the result."""
    autocast: Callable[[], AbstractContextManager[object]]
    """Makes the context that sets the precision of a forward pass."""
    show: Callable[[float, Numbers], None] = lambda share, numbers: None
    """Called after each step with the share of the iteration that is done and the numbers."""

    def over(
        self, *, lengths: Tensor, weights: Tensor, minibatch_size: int, num_epochs: int = 1
    ) -> Iterator["Step"]:
        """Yield a step for each shuffled minibatch of each epoch; leave the loop to stop early.

        Args:
            lengths: Number of tokens of each item (an episode or a pair). Int64 [N].
            weights: What each item adds to the divisor of a step's loss: its number of tokens, or
                1. Shape [N].
            minibatch_size: Number of items per step.
            num_epochs: Number of passes over the items.
        """
        if len(lengths) == 0:
            return
        done, total = 0, num_epochs * -(-len(lengths) // minibatch_size)
        for _ in range(num_epochs):
            order = torch.randperm(len(lengths), generator=self.generator)
            for rows in order.split(minibatch_size):
                done += 1
                yield Step(
                    steps=self,
                    rows=rows,
                    lengths=lengths[rows],
                    weights=weights[rows],
                    share=done / total,
                )


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step."""

    steps: Steps
    rows: Tensor
    """The items of the minibatch, Int64 [n]."""
    lengths: Tensor
    """The number of tokens of each item, [n]."""
    weights: Tensor
    """What each item adds to the divisor of the loss, [n]."""
    share: float
    """The share of the iteration's steps that is done after this step."""

    def take(self, *losses: MinibatchLoss, more: MoreLosses = lambda tokens: ()) -> Numbers:
        """Update the weights; return the step's numbers, averaged over its micro-batches.

        Args:
            losses: Loss functions of a micro-batch of items. The backward pass of each loss is done
                before the next loss is computed. Each micro-batch has the weight of its share of
                the whole step.
            more: Further losses, already reduced, to add to the step.
        """
        sums: Numbers = {}
        lengths = self.lengths.tolist()

        def shares(tokens: int) -> Iterator[Tensor]:
            sums.clear()
            for batch in filled_batches(lengths, tokens):
                share = self.weights[batch].sum().item() / self.weights.sum().item()
                for loss in losses:
                    with self.steps.autocast():
                        value, numbers = loss(self.rows[batch])
                    for name, number in numbers.items():
                        sums[name] = sums.get(name, 0.0) + share * number.item()
                    yield share * value
            yield from more(tokens)

        tokens = self.steps.micro_batch_tokens
        norm = self.steps.updater.update(tokens, max(lengths), shares)
        numbers = sums | {"grad_norm": norm}
        self.steps.show(self.share, numbers)
        return numbers
