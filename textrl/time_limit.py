"""A limit on the time of Python code that others wrote, such as the template of a tokenizer."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TooLongError(Exception):
    """A block has taken longer than its limit."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TooLongError` in this thread once the block has taken longer than so many seconds.

    It is raised between two steps of Python code; a single call into C cannot be cut short.
    """
    thread, ended, lock = threading.get_ident(), False, threading.Lock()

    def stop() -> None:
        with lock:
            if not ended:
                error = ctypes.py_object(TooLongError)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            ended = True
        timer.cancel()
