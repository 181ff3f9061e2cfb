"""Creation of accelerate's `Accelerator`, for one or several training processes."""

import atexit

import torch
from accelerate import Accelerator

from textrl.errors import UserError
from textrl.memory import keep_freed_memory


def make_accelerator(device: torch.device) -> Accelerator:
    """Return the accelerator of this process (one of several under torchrun)."""
    if device.type == "cpu":
        keep_freed_memory()
    accelerator = Accelerator(cpu=device.type == "cpu")
    if accelerator.num_processes > 1:
        atexit.register(leave_process_group)
    return accelerator


def one_process(accelerator: Accelerator, what: str) -> Accelerator:
    """Return the accelerator after a check that there is only one process.

    Raises:
        UserError: there are several; each would train on the same data, and the sum of their
            gradients would be wrong.
    """
    if accelerator.num_processes > 1:
        raise UserError(
            f"{what} trains in one process, got {accelerator.num_processes}; start it without "
            f"torchrun or `accelerate launch`"
        )
    return accelerator


def leave_process_group() -> None:
    """End the process group, if there is one: at exit its threads would abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
