"""Switches of the machine: threads, the allocator, AdamW's kernel, bfloat16, torch.compile."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from switches_setup import Setup, Switch, Work, gradient_step, loss_sum
from torch import Tensor

from textrl.config import SFTConfig, TrainingConfig
from textrl.engine import make_accelerator
from textrl.loop import FitTask, _fit_update
from textrl.memory import keep_freed_memory
from textrl.policy import PolicyModule
from textrl.types import Sequence, stack_sequences
from textrl.updater import LossSum, Updater


@contextmanager
def given_back() -> Iterator[None]:
    """Let glibc give freed memory back to the system, as it does by default."""
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    mallopt(-3, 128 * 1024)
    mallopt(-1, 128 * 1024)
    try:
        yield
    finally:
        keep_freed_memory()


def machine(setup: Setup) -> Iterator[Switch]:
    """Yield what is set on the machine: threads, the allocator, AdamW's kernel, bfloat16."""
    lm, batch = setup.lm, setup.texts[:32]
    length = sum(len(s.ids) for s in batch)

    def step(config: TrainingConfig, fused: bool = True) -> Work:
        task = FitTask(
            examples=(),
            stage="sft",
            lengths=[len(s.ids) for s in batch],
            weights=[float(s.num_counted) for s in batch],
            loss=lambda rows: LossSum(loss=loss_sum(lm, [batch[i] for i in rows]), metrics={}),
        )
        accelerator = make_accelerator(setup.model.device)
        updater = Updater(
            [(setup.model, 1e-9)], accelerator=accelerator, betas=(0.9, 0.99), max_grad_norm=1.0
        )
        updater.optimizer.param_groups[0]["fused"] = fused
        rows = list(range(len(batch)))
        return lambda: torch.tensor(_fit_update(rows, task, config, updater)["loss"])

    usual = step(SFTConfig())

    def with_default_allocator() -> Tensor | None:
        with given_back():
            return usual()

    def with_one_thread() -> Tensor | None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return usual()
        finally:
            torch.set_num_threads(threads)

    yield f"{torch.get_num_threads()} threads, against one", usual, with_one_thread
    yield f"freed memory kept ({length} tokens)", usual, with_default_allocator
    yield "fused AdamW", usual, step(SFTConfig(), fused=False)
    yield "bfloat16 matrix products", step(SFTConfig(precision="bfloat16")), usual


def compiled(setup: Setup) -> Iterator[Switch]:
    """Yield the trunk through torch.compile, at one shape, against the plain one."""
    lm = setup.lm
    same = [
        Sequence(ids=s.ids[:16], counts=s.counts[:16]) for s in setup.prompted[:64]
    ]  # one shape: a new one compiles anew
    batch = stack_sequences(same, lm.device)
    trunk = torch.compile(lm.trunk)
    fast = replace(lm, trunk=trunk)
    yield (
        "torch.compile of the trunk (one shape, compiled before)",
        gradient_step(setup.model, lambda: -PolicyModule(fast).logprobs_of(batch).sum()),
        gradient_step(setup.model, lambda: -PolicyModule(lm).logprobs_of(batch).sum()),
    )
