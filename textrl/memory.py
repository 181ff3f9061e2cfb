"""What the allocator does with freed memory."""

import ctypes
import gc
import platform


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
