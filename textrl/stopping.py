"""How a run is stopped from outside: Ctrl+C and SIGTERM, at a moment that leaves its state whole.

SIGTERM is what SLURM, Kubernetes and `docker stop` send before they kill.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


class Terminated(SystemExit):
    """The process was asked to end by SIGTERM; uncaught, it ends it with exit status 143."""

    def __init__(self) -> None:
        """Take 128 + the number of the signal as exit status."""
        super().__init__(128 + signal.SIGTERM)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _may_handle() -> bool:
    """Return whether Python handles signals in this thread."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM inside the block, unless somebody handles that already."""
    if not _may_handle() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl+C and SIGTERM back until the block has ended, so that no update is half done."""
    if not _may_handle():
        yield
        return
    arrived: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: arrived.append(number))
        for number in STOPS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])
