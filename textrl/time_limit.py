"""Limits on the time of code that others wrote: templates, reward functions, worlds."""

import ctypes
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


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


def within(call: Callable[[], Any], seconds: float) -> Any:
    """Return what a call returns within so many seconds.

    It runs in a thread of its own, which is left alone when it is late and ends with the process.

    Raises:
        TooLongError: It is late.
    """
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    gradients = torch.is_grad_enabled()  # a thread begins with gradients

    def work() -> None:
        try:
            with torch.set_grad_enabled(gradients):
                answers.put((True, call()))
        except BaseException as error:  # handed over to the thread that waits
            answers.put((False, error))

    threading.Thread(target=work, daemon=True, name="limited").start()
    try:
        returned, value = answers.get(timeout=seconds)
    except queue.Empty:
        raise TooLongError(f"it takes longer than {seconds:g} s") from None
    if not returned:
        raise value
    return value


def together(calls: Sequence[Callable[[], Result]], at_once: int) -> list[Result]:
    """Return what several calls return, in their order, of which some run at the same time.

    They run in threads that end with the process. Where calls raise, the first of them in their
    order counts, and calls that have not begun are left out.

    Args:
        calls: The calls.
        at_once: How many of them run at the same time.
    """
    waiting = queue.SimpleQueue[tuple[int, Callable[[], Result]]]()
    results, errors = dict[int, Result](), dict[int, BaseException]()
    ended = queue.SimpleQueue[None]()
    gradients = torch.is_grad_enabled()  # a thread begins with gradients
    for number, call in enumerate(calls):
        waiting.put((number, call))

    def work() -> None:
        with torch.set_grad_enabled(gradients):
            while not errors:
                try:
                    index, call = waiting.get_nowait()
                except queue.Empty:
                    break
                try:
                    results[index] = call()
                except BaseException as error:  # handed over to the thread that waits
                    errors[index] = error
        ended.put(None)

    threads = min(at_once, len(calls))
    for _ in range(threads):
        threading.Thread(target=work, daemon=True, name="beside").start()
    for _ in range(threads):
        ended.get()
    if errors:
        raise errors[min(errors)]
    return [results[index] for index in range(len(calls))]
