"""One optimiser step from several micro-batches, exactly, and the steps of an agent's iteration.

Each micro-batch's loss is a sum, divided by the count of the whole step over all processes, so that
neither the micro-batch size nor the number of processes changes the result. `loop.fit` runs
`Updater` over a fixed data set. All our agents run their losses through `Steps`, which shuffles the
episodes of an iteration:

    for step in steps.over(lengths=rollout.lengths, weights=rollout.mask.sum(1), minibatch_size=64):
        numbers = step.take(loss)
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from textrl.errors import UserError
from textrl.finite import check_finite
from textrl.memory import release_memory
from textrl.packing import filled_batches

MAX_SKIPPED = 5
"""Updates in a row with a non-finite gradient after which a run stops."""
Numbers = dict[str, float]
MinibatchLoss = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
"""A function from rows [n] to their differentiable mean loss and a dict of numbers to log."""
MoreLosses = Callable[[int], Iterable[Tensor]]
"""A function from the number of tokens in memory at once to losses of micro-batches."""


class SmallerMicroBatches(UserWarning):
    """Memory ran out; the run goes on with smaller micro-batches, which give equal gradients."""


class OutOfMemory(UserError):
    """One text alone does not fit into memory; the weights are those before the step."""


@dataclass(frozen=True, kw_only=True)
class LossSum:
    """A micro-batch's loss, summed and not averaged, and sums of what is worth logging."""

    loss: Tensor
    metrics: dict[str, float]


class Updater:
    """AdamW over micro-batches: backward, sum over processes, clip, step."""

    def __init__(
        self,
        groups: Sequence[tuple[nn.Module, float]],
        *,
        accelerator: Accelerator,
        betas: tuple[float, float],
        max_grad_norm: float,
        weight_decay: float = 0.0,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        """Make the optimiser of (module, learning rate) groups; matrices alone decay.

        Raises:
            UserError: there is nothing to train, or a weight is not finite.
        """
        for module, _ in groups:
            check_finite(module, "cannot be trained")
        self.accelerator, self._max_grad_norm = accelerator, max_grad_norm
        options: list[dict[str, Any]] = []
        seen: set[int] = set()
        for module, learning_rate in groups:
            fresh = [p for p in module.parameters() if p.requires_grad and id(p) not in seen]
            seen |= {id(p) for p in fresh}
            for decay, matrices in ((weight_decay, True), (0.0, False)):
                params = [p for p in fresh if (p.dim() >= 2) == matrices]
                if params:
                    options.append({"params": params, "lr": learning_rate, "weight_decay": decay})
        self.parameters = [p for group in options for p in group["params"]]
        if not self.parameters:
            raise UserError("the model has no parameter that takes a gradient")
        self.optimizer = torch.optim.AdamW(options, betas=betas, eps=1e-8, fused=True)
        self._factor = 1.0
        factors = schedule or (lambda update: self._factor)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factors)
        self.updates = self.skipped = self.skipped_in_a_row = 0
        self._most_tokens: int | None = None

    def update(self, tokens: int, longest: int, losses: Callable[[int], Iterable[Tensor]]) -> float:
        """Take one step on the sum of the micro-batch losses; return the gradient's norm.

        Each loss is this process's share of the step's loss: the sum over micro-batches and
        processes is what is minimised. A non-finite norm skips the step on all processes. Where
        memory runs out, the gradients are computed again from smaller micro-batches.

        Args:
            tokens: Number of tokens in memory at once.
            longest: Number of tokens of the longest text.
            losses: Function from a number of tokens to the losses of micro-batches of that size;
                it is called again after a failure.

        Raises:
            UserError: too many steps in a row were skipped.
            OutOfMemory: one text alone does not fit.
        """
        if self._most_tokens is not None:
            tokens = min(tokens, max(longest, self._most_tokens))
        fitting = halved_until_it_fits(lambda n: self._add_gradients(losses(n)), tokens, longest)
        if fitting < tokens:
            self._most_tokens = fitting
        return self._step()

    def _add_gradients(self, losses: Iterable[Tensor]) -> None:
        self.optimizer.zero_grad()
        for loss in losses:
            self.accelerator.backward(loss)

    def _step(self) -> float:
        for parameter in self.parameters:
            if parameter.grad is None:  # unused in this step: its momentum still counts
                parameter.grad = torch.zeros_like(parameter)
            if self.accelerator.num_processes > 1:
                parameter.grad.copy_(self.accelerator.reduce(parameter.grad, "sum"))
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self._max_grad_norm))
        self.updates += 1
        if math.isfinite(norm):
            self.skipped_in_a_row = 0
        else:
            self.optimizer.zero_grad()  # the step then changes nothing
            self.skipped += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= MAX_SKIPPED:
                raise self._not_finite(f"{self.skipped_in_a_row} updates in a row")
        self.optimizer.step()
        self.scheduler.step()
        return norm

    def finish(self) -> None:
        """Raise UserError if the run ends in updates that were skipped: its end taught nothing."""
        if self.skipped_in_a_row:
            raise self._not_finite(
                f"the last {self.skipped_in_a_row} updates, in {self.skipped} of {self.updates}"
            )

    def _not_finite(self, when: str) -> UserError:
        return UserError(
            f"the gradient was not finite in {when}; they were skipped and nothing is saved over "
            f"an earlier state. Lower learning_rate or look at the data"
        )

    def scale_learning_rates(self, factor: float) -> float:
        """Multiply the learning rates by a factor until the next call; return the first rate.

        It is for an updater without a schedule.
        """
        self._factor = factor
        for group, base in zip(self.optimizer.param_groups, self.scheduler.base_lrs, strict=True):
            group["lr"] = base * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "counts": [self.updates, self.skipped, self.skipped_in_a_row],
            "most_tokens": self._most_tokens,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.updates, self.skipped, self.skipped_in_a_row = state["counts"]
        self._most_tokens = state["most_tokens"]


def halved_until_it_fits(work: Callable[[int], None], tokens: int, longest: int) -> int:
    """Do some work, again with half the tokens each time memory runs out.

    Args:
        work: Function of the number of tokens in memory at once; it can be called again.
        tokens: Number of tokens to begin with.
        longest: Number of tokens of the longest text; below it halving changes nothing.

    Returns: The number of tokens that fitted.

    Raises:
        OutOfMemory: One text alone does not fit.
    """
    asked = tokens
    while True:
        try:
            work(tokens)
            break
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if tokens <= longest:
                raise OutOfMemory(
                    f"memory runs out with one text of {longest} tokens; use a smaller model, "
                    f"shorter texts or precision='bfloat16'"
                ) from error
        tokens = max(longest, tokens // 2)
        release_memory()
    if tokens < asked:
        warnings.warn(
            f"memory ran out: going on with micro_batch_tokens={tokens}, which gives equal "
            f"gradients; set it in the next run to spare the failed tries",
            SmallerMicroBatches,
            stacklevel=2,
        )
    return tokens


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether this is PyTorch's or Python's way to say that memory is out."""
    allocator = "not enough memory" in str(error)  # of PyTorch on a CPU: a plain RuntimeError
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or allocator


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


def update_report(updates: list[Numbers]) -> Numbers:
    """Return the means over an iteration's updates, and two checks on the first update.

    At the first minibatch the policy is still the one that sampled, so `first_ratio_error` (the
    mean |ratio - 1|) and `first_approx_kl` must be 0 up to rounding. Only agents that compute the
    ratio log these two.
    """
    report = {"train/updates": float(len(updates))}
    for name in updates[0] if updates else ():
        if name != "ratio_error":
            mean = torch.tensor([numbers[name] for numbers in updates]).mean()
            report[f"train/{name}"] = float(mean)
    if updates and "ratio_error" in updates[0]:
        report["train/first_ratio_error"] = updates[0]["ratio_error"]
        report["train/first_approx_kl"] = updates[0]["approx_kl"]
    return report


def warmup_cosine(total_updates: int, warmup_share: float) -> Callable[[int], float]:
    """Return the factor of the learning rate at each update: linear up, then a cosine to 0."""
    warmup = max(1, round(total_updates * warmup_share))

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (update - warmup) / max(1, total_updates - warmup))

    return factor
