"""The optimiser steps of an iteration: shuffled minibatches, each in micro-batches that fit memory.

Here: `Steps`, over which every agent of ours runs its losses. Not here: the losses (in each agent's
file) and the optimiser (`textrl/updater.py`).

    for step in steps.over(lengths=rollout.lengths, weights=rollout.mask.sum(1), minibatch_size=64):
        numbers = step.take(loss)
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from textrl.batching import filled_batches
from textrl.updater import Updater

Numbers = dict[str, float]
MinibatchLoss = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
"""Maps rows [n] to their mean loss, differentiable, and what to log of it."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The optimiser steps that an agent takes on the episodes or pairs of an iteration."""

    updater: Updater
    generator: torch.Generator
    """Of the minibatches' order."""
    micro_batch_tokens: int
    """Tokens in one forward and backward pass; never changes the result."""
    autocast: Callable[[], AbstractContextManager[object]]
    """The precision of a forward pass."""
    show: Callable[[float, Numbers], None] = lambda share, numbers: None
    """Gets the share of the iteration's steps that is done, and each step's numbers."""

    def over(
        self, *, lengths: Tensor, weights: Tensor, minibatch_size: int, num_epochs: int = 1
    ) -> Iterator["Step"]:
        """Yield a step for each shuffled minibatch of each epoch; leave the loop to stop early.

        Args:
            lengths: tokens of each item (episode or pair), Int64 [N].
            weights: what each item adds to the divisor of a step's loss: its tokens, or 1; [N].
            minibatch_size: items in a step.
            num_epochs: passes over the items.
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
    """Their tokens, [n]."""
    weights: Tensor
    """What each adds to the divisor of the loss, [n]."""
    share: float
    """Of the iteration's steps that is done after this one."""

    def take(self, *losses: MinibatchLoss, more: Iterable[Tensor] = ()) -> Numbers:
        """Update the weights; return the step's numbers, means over its micro-batches.

        Args:
            losses: of a micro-batch of items; each one's backward pass is done before the next one
                is computed. Every micro-batch is weighed by its share of the whole step.
            more: whole losses to add.
        """
        sums: Numbers = {}

        def shares() -> Iterator[Tensor]:
            for batch in filled_batches(self.lengths.tolist(), self.steps.micro_batch_tokens):
                share = self.weights[batch].sum().item() / self.weights.sum().item()
                for loss in losses:
                    with self.steps.autocast():
                        value, numbers = loss(self.rows[batch])
                    for name, number in numbers.items():
                        sums[name] = sums.get(name, 0.0) + share * number.item()
                    yield share * value
            yield from more

        norm = self.steps.updater.update(shares())
        numbers = sums | {"grad_norm": norm}
        self.steps.show(self.share, numbers)
        return numbers
