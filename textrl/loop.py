"""The one small training loop: batches in, updates out.

`Updater` does one optimiser step from several micro-batches, exactly: each micro-batch's loss is a
sum, divided by the count of the whole step over all processes, so that neither the micro-batch
size nor the number of processes changes the result. `fit` runs it over a fixed data set, resumable
bit for bit. SFT, reward and DPO trainers pass a loss; the agents have a loop of their own and share
`Updater`.
"""

import atexit
import ctypes
import gc
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn

from textrl.batching import epoch_minibatches, filled_batches
from textrl.checkpoint import check_finite
from textrl.config import TrainingConfig
from textrl.errors import UserError
from textrl.metrics import StageProgress, log
from textrl.precision import autocast, pick_precision
from textrl.resuming import States, run_identity, uninterrupted

MAX_SKIPPED = 5
"""Updates in a row with a non-finite gradient after which a run stops."""


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of returning it to the system at every step.

    By default each large tensor is a fresh mapping whose pages fault in again on every update.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, 1 << 30)


def release_memory() -> None:
    """Collect garbage and give what `keep_freed_memory` kept back to the system."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def make_accelerator(device: torch.device) -> Accelerator:
    """Return the accelerator of this process (one of several under torchrun)."""
    if device.type == "cpu":
        keep_freed_memory()
    accelerator = Accelerator(cpu=device.type == "cpu")
    if accelerator.num_processes > 1:
        atexit.register(leave_process_group)
    return accelerator


def one_process(accelerator: Accelerator, what: str) -> Accelerator:
    """Return the accelerator, unless it is one of several processes'.

    Raises:
        UserError: it is; each process would train on the same data and their sum be wrong.
    """
    if accelerator.num_processes > 1:
        raise UserError(
            f"{what} trains in one process, got {accelerator.num_processes}; start it without "
            f"torchrun or `accelerate launch`"
        )
    return accelerator


def leave_process_group() -> None:
    """End the process group, where there is one: at exit its threads would abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
        max_grad_norm: float,
        weight_decay: float = 0.0,
        schedule: Callable[[int], float] = lambda update: 1.0,
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
        self.optimizer = torch.optim.AdamW(options, betas=(0.9, 0.99), eps=1e-8, fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.updates = self.skipped = self.skipped_in_a_row = 0

    def update(self, losses: Iterable[Tensor]) -> float:
        """Take one step on the sum of the micro-batch losses; return the gradient's norm.

        Each loss is this process's share of the step's loss: the sum over micro-batches and
        processes is what is minimised. A non-finite norm skips the step on all processes.

        Raises:
            UserError: too many steps in a row were skipped.
        """
        self.optimizer.zero_grad()
        for loss in losses:
            self.accelerator.backward(loss)
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

    def follow_schedule(self) -> float:
        """Set the learning rates to the schedule's present factor; return the first one."""
        factor = self.scheduler.lr_lambdas[0](self.scheduler.last_epoch)
        for group, base in zip(self.optimizer.param_groups, self.scheduler.base_lrs, strict=True):
            group["lr"] = base * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "counts": [self.updates, self.skipped, self.skipped_in_a_row],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.updates, self.skipped, self.skipped_in_a_row = state.get("counts", [0, 0, 0])


def warmup_cosine(total_updates: int, warmup_share: float) -> Callable[[int], float]:
    """Return the factor of the learning rate at each update: linear up, then a cosine to 0."""
    warmup = max(1, round(total_updates * warmup_share))

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (update - warmup) / max(1, total_updates - warmup))

    return factor


@dataclass(frozen=True, kw_only=True)
class FitTask:
    """A fixed data set and its loss, by example index."""

    stage: str
    lengths: Sequence[int]
    """Tokens of each example, for length-sorted minibatches and bounded micro-batches."""
    weights: Sequence[float]
    """What each example adds to the divisor of a step's loss: its tokens, or 1."""
    loss: Callable[[list[int]], LossSum]
    """Loss sum and metric sums of a micro-batch of examples."""
    examples: Sequence[object]
    """What is trained on, by which a resumed run knows its data; its `repr` tells all."""
    prepare: Callable[[list[int]], None] = lambda rows: None
    """Called with each minibatch before its losses."""


def fit(
    model: nn.Module,
    task: FitTask,
    config: TrainingConfig,
    *,
    accelerator: Accelerator,
    logger: Logger,
    state_dir: Path | None = None,
    resume: bool = False,
    shown: bool = True,
) -> None:
    """Minimise the task's weighted mean loss over the data, in shuffled epochs.

    Args:
        model: trained in place, in eval mode (dropout off, so that a log-prob is reproducible).
        task: the data and the loss.
        config: sizes, rates, seed.
        accelerator: of this process; each process takes every n-th row of each minibatch.
        logger: one row per 1% of the updates.
        state_dir: where resumable states go, the last one if Ctrl+C stops the run.
        resume: go on from the state in state_dir.
        shown: show progress.

    Raises:
        UserError: weights or last updates that are not finite; a state that is damaged or of
            another run.
    """
    model.eval()
    per_epoch = math.ceil(len(task.lengths) / config.minibatch_size)
    total = per_epoch * config.num_epochs
    updater = Updater(
        [(model, config.learning_rate)],
        accelerator=accelerator,
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        schedule=warmup_cosine(total, config.warmup_share),
    )
    states = None
    if state_dir is not None:
        identity = run_identity(task.stage, config, task.examples)
        states = States(model=model, updater=updater, folder=state_dir, identity=identity)
        if resume:
            states.restore()
    precision = pick_precision(config.precision, model, accelerator.device)
    config = replace(config, precision=precision)
    try:
        _fit_updates(task, config, updater, total, logger, states, shown)
    except KeyboardInterrupt:  # before an update's step or between updates, see `uninterrupted`
        if states is not None:
            states.save()
        raise
    accelerator.wait_for_everyone()  # nobody leaves while another still receives
    updater.finish()
    check_finite(model, "has learned nothing of use")


def _fit_updates(
    task: FitTask,
    config: TrainingConfig,
    updater: Updater,
    total: int,
    logger: Logger,
    states: States | None,
    shown: bool,
) -> None:
    accelerator, begin = updater.accelerator, updater.updates
    per_epoch = total // config.num_epochs
    save_every, log_every = config.save_every or per_epoch, max(1, total // 100)
    shown = shown and accelerator.is_main_process
    with StageProgress(task.stage, total, begin=begin, shown=shown) as progress:
        for update in range(begin, total):
            epoch, position = divmod(update, per_epoch)
            if position == 0 or update == begin:  # an epoch's order depends on the seed alone
                generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
                order = epoch_minibatches(task.lengths, config.minibatch_size, generator)
            with uninterrupted():
                numbers = _fit_update(order[position], task, config, updater)
                progress.show(update + 1, {name: numbers[name] for name in list(numbers)[:2]})
                logs = update % log_every == 0 or update + 1 == total
                if logs and accelerator.is_main_process:
                    log(logger, update + 1, {f"{task.stage}/{k}": v for k, v in numbers.items()})
            if states is not None and (update + 1) % save_every == 0 and update + 1 < total:
                states.save()


def _fit_update(
    rows: list[int], task: FitTask, config: TrainingConfig, updater: Updater
) -> dict[str, float]:
    accelerator = updater.accelerator
    divisor = sum(task.weights[row] for row in rows)
    own = rows[accelerator.process_index :: accelerator.num_processes]
    batches = filled_batches([task.lengths[row] for row in own], config.micro_batch_tokens)
    sums: dict[str, float] = {"loss": 0.0}

    def losses() -> Iterable[Tensor]:
        for batch in batches:
            with autocast(config.precision, accelerator.device):
                part = task.loss([own[i] for i in batch])
            sums["loss"] += part.loss.item()
            for name, value in part.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
            yield part.loss / divisor

    task.prepare(rows)
    learning_rate = updater.scheduler.get_last_lr()[0]
    norm = updater.update(losses())
    means: dict[str, float] = {}
    for part in gather_object([sums]):  # of every process; one may have had no row
        for name, value in part.items():
            means[name] = means.get(name, 0.0) + value / divisor
    rates = {"grad_norm": norm, "learning_rate": float(learning_rate)}
    return means | rates | {"skipped_updates": float(updater.skipped)}
