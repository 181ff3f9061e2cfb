"""The optimiser steps of an iteration: shuffled minibatches, each in micro-batches that fit memory.

Here: `Minibatches`, which every agent of ours runs its losses through. Not here: the losses (each
agent's own file) and the optimiser (`loop.Updater`).
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from textrl.batching import filled_batches
from textrl.updater import Updater

Numbers = dict[str, float]
MinibatchLoss = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
"""Row indices of a micro-batch -> (its mean loss, means to log)."""


class Minibatches:
    """Takes an agent's optimiser steps over the episodes or pairs of an iteration."""

    def __init__(
        self,
        updater: Updater,
        generator: torch.Generator,
        micro_batch_tokens: int,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Keep the agent's optimiser, its randomness, its memory limit and its precision."""
        self._updater, self._generator = updater, generator
        self._micro_batch_tokens, self._autocast = micro_batch_tokens, autocast

    def run(
        self,
        *losses: MinibatchLoss,
        lengths: Tensor,
        weights: Tensor,
        minibatch_size: int,
        num_epochs: int = 1,
        more_losses: Callable[[int], Iterable[Tensor]] = lambda size: (),
        stop: Callable[[Numbers], bool] = lambda numbers: False,
        after_step: Callable[[Numbers, float], None] = lambda numbers, share: None,
    ) -> list[Numbers]:
        """Take the optimiser steps of an iteration; return each one's numbers.

        Args:
            losses: of a micro-batch of items (episodes or pairs); each one's backward pass is
                done before the next one is computed.
            lengths: tokens of each item, Int64 [N].
            weights: what each item adds to the divisor of a step's loss: its tokens, or 1; [N].
            minibatch_size: items in a step.
            num_epochs: passes over the items.
            more_losses: whole losses to add to the step of a minibatch of this size.
            stop: whether to leave the rest of the iteration's steps after these numbers.
            after_step: gets each step's numbers and the share of the steps that is done.
        """
        rows: list[Numbers] = []
        if len(lengths) == 0:
            return rows
        steps = num_epochs * -(-len(lengths) // minibatch_size)
        for _ in range(num_epochs):
            order = torch.randperm(len(lengths), generator=self._generator)
            for chosen in order.split(minibatch_size):
                extra = more_losses(len(chosen))
                rows.append(self._step(chosen, lengths[chosen], weights[chosen], losses, extra))
                after_step(rows[-1], len(rows) / steps)
                if stop(rows[-1]):
                    return rows
        return rows

    def split(self, lengths: Tensor) -> list[list[int]]:
        """Return which of the items of these lengths share a forward and backward pass."""
        return filled_batches(lengths.tolist(), self._micro_batch_tokens)

    def _step(
        self,
        chosen: Tensor,
        lengths: Tensor,
        weights: Tensor,
        losses: Sequence[MinibatchLoss],
        more_losses: Iterable[Tensor],
    ) -> Numbers:
        """Take one optimiser step; every micro-batch is weighed by its share of the whole step."""
        sums: Numbers = {}

        def shares() -> Iterable[Tensor]:
            for batch in self.split(lengths):
                share = weights[batch].sum().item() / weights.sum().item()
                for loss in losses:
                    with self._autocast():
                        value, numbers = loss(chosen[batch])
                    for name, number in numbers.items():
                        sums[name] = sums.get(name, 0.0) + share * number.item()
                    yield share * value
            yield from more_losses

        norm = self._updater.update(shares())
        return sums | {"grad_norm": norm}
