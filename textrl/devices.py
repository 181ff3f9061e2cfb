"""The choice of the device and of the dtype for a model."""

import torch

from textrl.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str | torch.device | None) -> torch.device:
    """Return the requested device; None stands for the GPU if there is one, else the CPU."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device is {device!r}; expected cpu, cuda, cuda:1, ...") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device is {device!r}, but torch finds no CUDA device here; use cpu")
    return found


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | str:
    """Return the dtype to load weights in.

    "auto" is float32 on a CPU, and the checkpoint's dtype on other devices.

    Raises:
        UserError: the name is unknown.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; use 'auto' or one of {list(DTYPES)}")
    return DTYPES[dtype]
