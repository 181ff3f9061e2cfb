"""Memory: what the allocator keeps, and an update that does not fit."""

import ctypes
import gc
import platform
import warnings
from collections.abc import Callable

import torch

from textrl.errors import UserError


class SmallerMicroBatches(UserWarning):
    """Memory ran out; the run goes on with smaller micro-batches, which give equal gradients."""


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of returning it to the system at every step.

    By default each large tensor is a new memory mapping, whose pages fault in on every update.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, 1 << 30)


def release_memory() -> None:
    """Collect garbage and return the memory that `keep_freed_memory` kept to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def halved_until_it_fits(work: Callable[[int], None], tokens: int, longest: int) -> int:
    """Do some work, again with half the tokens each time memory runs out.

    Args:
        work: Function of the number of tokens in memory at once; it can be called again.
        tokens: Number of tokens to begin with.
        longest: Number of tokens of the longest text; below it halving changes nothing.

    Returns: The number of tokens that fitted.

    Raises:
        UserError: One text alone does not fit.
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
                raise UserError(
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
