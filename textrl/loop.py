"""The small training loop over a fixed data set, resumable bit for bit.

SFT, reward and DPO trainers pass a loss; the agents have loops of their own. One optimiser step is
in `updater.py`.
"""

import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn

from textrl.callbacks import UpdateCallbacks
from textrl.checkpoint import Checkpoints
from textrl.config import TrainingConfig
from textrl.finite import check_finite
from textrl.metrics import StageProgress, log
from textrl.packing import filled_batches
from textrl.precision import autocast, pick_precision
from textrl.resuming import States, run_identity
from textrl.stopping import Terminated, uninterrupted
from textrl.updater import LossSum, Numbers, OutOfMemory, Updater, warmup_cosine

POOL = 32
"""Number of minibatches in a pool, within which examples are sorted by length."""


RISEN = 10.0
"""The last losses over the first one from which on a run is said to have ruined its model; below
it, texts of other kinds may be the reason."""


class LossRose(UserWarning):
    """A run ended with a higher loss than it began with."""


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
    """What is trained on and held out, by which a resumed run knows its data; its `repr` tells
    all."""
    evaluate: Callable[[], Numbers] | None = None
    """Measures the held-out part, at the end of each epoch; None where nothing is held out."""
    prepare: Callable[[list[int]], None] = lambda rows: None
    """Called with each minibatch before its losses."""


def fit(
    model: nn.Module,
    task: FitTask,
    config: TrainingConfig,
    *,
    accelerator: Accelerator,
    logger: Logger,
    callbacks: UpdateCallbacks,
    folder: Path | None = None,
    resume_from: Path | None = None,
    shown: bool = True,
) -> Numbers:
    """Minimise the task's weighted mean loss over the data, in shuffled epochs.

    Returns the last measurement of the held-out part; nothing where there was none.

    Args:
        model: trained in place, in eval mode (dropout off, so that a log-prob is reproducible).
        task: the data and the loss.
        config: sizes, rates, seed.
        accelerator: of this process; each process takes every n-th row of each minibatch.
        logger: one row per 1% of the updates and at the end of each epoch.
        callbacks: told of every update; one of them may end the training.
        folder: Folder of the run, where its saves go; a stop by Ctrl+C or SIGTERM leaves one.
        resume_from: The save in that folder to go on from.
        shown: show progress.

    Raises:
        UserError: weights or last updates that are not finite; a state that is damaged or of
            another run.
    """
    total = math.ceil(len(task.lengths) / config.minibatch_size) * config.num_epochs
    updater = _updater(model, config, accelerator, total)
    states = _states(model.eval(), updater, task, config, folder)
    if resume_from is not None and states is not None:
        states.restore(resume_from)
    config = replace(config, precision=pick_precision(config.precision, model, accelerator.device))
    try:
        heldout = _fit_updates(task, config, updater, total, logger, states, callbacks, shown)
    except (KeyboardInterrupt, Terminated, OutOfMemory) as stop:  # all of them between updates
        if states is not None:
            states.save()
            stop.add_note(f"the run is saved after update {updater.updates} of {total}")
        raise
    accelerator.wait_for_everyone()  # nobody leaves while another still receives
    updater.finish()
    check_finite(model, "has learned nothing of use")
    return heldout


def _updater(
    model: nn.Module, config: TrainingConfig, accelerator: Accelerator, total: int
) -> Updater:
    return Updater(
        [(model, config.learning_rate)],
        accelerator=accelerator,
        betas=(config.adam_beta1, config.adam_beta2),
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        schedule=warmup_cosine(total, config.warmup_share),
    )


def _states(
    model: nn.Module,
    updater: Updater,
    task: FitTask,
    config: TrainingConfig,
    folder: Path | None,
) -> States | None:
    """Return where a run's states go; None where none are kept."""
    if folder is None:
        return None
    identity = run_identity(task.stage, config, task.examples, model)
    checkpoints = Checkpoints(
        folder, every=config.save_every, minutes=config.save_minutes, keep=config.keep_saves
    )
    return States(model=model, updater=updater, checkpoints=checkpoints, identity=identity)


def _fit_updates(
    task: FitTask,
    config: TrainingConfig,
    updater: Updater,
    total: int,
    logger: Logger,
    states: States | None,
    callbacks: UpdateCallbacks,
    shown: bool,
) -> Numbers:
    accelerator, begin = updater.accelerator, updater.updates
    log_every = max(1, total // 100)
    shown = shown and accelerator.is_main_process
    losses, heldout = list[float](), Numbers()
    callbacks.begin(begin, total)
    with StageProgress(task.stage, total, begin=begin, shown=shown) as progress:
        for update, rows, ends_epoch in _minibatches(task, config, begin, total):
            if not callbacks.before():
                break
            with uninterrupted():
                numbers = _fit_update(rows, task, config, updater)
                losses.append(numbers["loss"])
                progress.show(update + 1, {name: numbers[name] for name in list(numbers)[:2]})
                if ends_epoch and task.evaluate is not None:
                    heldout = _evaluated(task.evaluate, states)
                    numbers |= heldout
                logs = update % log_every == 0 or ends_epoch
                if logs and accelerator.is_main_process:
                    log(logger, update + 1, {f"{task.stage}/{k}": v for k, v in numbers.items()})
            if states is not None and (ends_epoch or states.checkpoints.due(update + 1)):
                states.save()
            if not callbacks.after(update + 1, numbers):
                break
    callbacks.end()
    if losses and accelerator.is_main_process:
        _warn_if_it_rose(losses)
    return heldout


def _evaluated(evaluate: Callable[[], Numbers], states: States | None) -> Numbers:
    """Measure the held-out part; if that fails, the epoch is saved first."""
    try:
        return evaluate()
    except Exception:
        if states is not None:
            states.save()
        raise


def _minibatches(
    task: FitTask, config: TrainingConfig, begin: int, total: int
) -> Iterator[tuple[int, list[int], bool]]:
    """Yield the updates from `begin` on: number, examples, whether it is the last of its epoch."""
    per_epoch = total // config.num_epochs
    for update in range(begin, total):
        epoch, position = divmod(update, per_epoch)
        if position == 0 or update == begin:  # an epoch's order depends on the seed alone
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
            order = epoch_minibatches(task.lengths, config.minibatch_size, generator)
        yield update, order[position], position + 1 == per_epoch


def _warn_if_it_rose(losses: Sequence[float]) -> None:
    """Warn if the last tenth of a run's losses is far above its first loss."""
    first, last = losses[0], statistics.fmean(losses[-max(1, len(losses) // 10) :])
    if last > RISEN * first > 0:
        warnings.warn(
            f"the loss rose from {first:.3g} to {last:.3g}: the model is worse than it was before; "
            f"lower learning_rate, and look at the data and at grad_norm in the metrics",
            LossRose,
            stacklevel=2,
        )


def _fit_update(
    rows: list[int], task: FitTask, config: TrainingConfig, updater: Updater
) -> dict[str, float]:
    accelerator = updater.accelerator
    divisor = sum(task.weights[row] for row in rows)
    own = rows[accelerator.process_index :: accelerator.num_processes]
    lengths = [task.lengths[row] for row in own]
    sums: dict[str, float] = {}

    def losses(tokens: int) -> Iterable[Tensor]:
        sums.clear()
        sums["loss"] = 0.0
        for batch in filled_batches(lengths, tokens):
            with autocast(config.precision, accelerator.device):
                part = task.loss([own[i] for i in batch])
            sums["loss"] += part.loss.item()
            for name, value in part.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
            yield part.loss / divisor

    task.prepare(rows)
    learning_rate = updater.scheduler.get_last_lr()[0]
    norm = updater.update(config.micro_batch_tokens, max(lengths, default=1), losses)
    means: dict[str, float] = {}
    for part in gather_object([sums]):  # of every process; one may have had no row
        for name, value in part.items():
            means[name] = means.get(name, 0.0) + value / divisor
    rates = {"grad_norm": norm, "learning_rate": float(learning_rate)}
    return means | rates | {"skipped_updates": float(updater.skipped)}


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
