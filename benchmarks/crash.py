"""Kills a process at each of its file operations: an open for writing, a rename, a mkdir, a remove.

Python's audit events say when one is about to happen; the child of a fork then sends itself
SIGKILL, so that nothing is cleaned up and no buffer is flushed.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

OPERATIONS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link")
NEVER = -1
SECONDS = 60
"""A child that hangs must not hang its parent."""


def killed_at(work: Callable[[], object], folder: Path, operation: int) -> bool:
    """Do some work in a child that is killed before its n-th file operation below a folder.

    Returns: Whether it was killed; False where it has fewer operations and came to its end.
    """
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            kill_at(folder, operation)
            work()
        except BaseException:  # whatever it is, the parent must hear of it
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, "the work hangs"
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the work failed by itself"
    return False


def kill_at(folder: Path, operation: int) -> Callable[[], int]:
    """Kill this process before its n-th file operation below a folder, for the rest of its life.

    Returns: A function that tells how many operations there have been.
    """
    seen = 0

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event == "open":
            _, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if not (writes or (isinstance(mode, str) and set(mode) & set("wax+"))):
                return
        elif event not in OPERATIONS:
            return
        if not str(arguments[0]).startswith(str(folder)):
            return
        if seen == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    sys.addaudithook(hear)
    return lambda: seen
