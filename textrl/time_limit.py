"""Limits on the time of code that others wrote: templates, reward functions, worlds."""

import asyncio
import concurrent.futures
import ctypes
import functools
import os
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
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


def together(
    calls: Sequence[Callable[[], Result]],
    at_once: int,
    beside: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Return what several calls return, in their order, of which some run at the same time.

    They run in threads that end with the process. Once a call raises, or Ctrl+C comes, no further
    call begins, and the error is raised at once; calls that are under way are left alone.

    Args:
        calls: The calls.
        at_once: How many of them run at the same time.
        beside: Runs in this thread meanwhile.
    """
    waiting = queue.SimpleQueue[tuple[int, Callable[[], Result]]]()
    ended = queue.SimpleQueue[tuple[int, Result | None, BaseException | None]]()
    stopped = threading.Event()
    gradients = torch.is_grad_enabled()  # a thread begins with gradients
    for number, call in enumerate(calls):
        waiting.put((number, call))

    def work() -> None:
        with torch.set_grad_enabled(gradients):
            while not stopped.is_set():
                try:
                    index, call = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    ended.put((index, call(), None))
                except BaseException as error:  # handed over to the thread that waits
                    ended.put((index, None, error))

    for _ in range(min(at_once, len(calls))):
        threading.Thread(target=work, daemon=True, name="beside").start()
    results: dict[int, Any] = {}
    try:
        beside()
        while len(results) < len(calls):
            index, result, error = ended.get()
            if error is not None:
                raise error
            results[index] = result
    finally:
        stopped.set()
    return [results[index] for index in range(len(calls))]


class Loop:
    """An event loop in a thread of its own, in which all coroutines of this process run.

    So a client that belongs to a loop, as those of HTTP do, is of use in the next call too.
    """

    def __init__(self) -> None:
        """Start the thread, which ends with the process."""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="coroutines").start()

    def result(self, found: Awaitable[Any], seconds: float) -> Any:
        """Return what a coroutine returns; it is cancelled when it is late, or at Ctrl+C.

        Args:
            found: The coroutine.
            seconds: What it may take; 0 is no limit.

        Raises:
            TooLongError: It is late.
        """
        future = asyncio.run_coroutine_threadsafe(_awaited(found), self._loop)
        try:
            return future.result(seconds or None)
        except concurrent.futures.TimeoutError:
            if future.done():  # the coroutine's own
                raise
            raise TooLongError(f"it takes longer than {seconds:g} s") from None
        finally:
            future.cancel()


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found


def the_loop() -> Loop:
    """Return the loop of this process."""
    return _loop_of(os.getpid())


@functools.cache
def _loop_of(process: int) -> Loop:  # a fork has none of its parent's threads
    return Loop()
