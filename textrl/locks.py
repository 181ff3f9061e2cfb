"""Locks between processes: a folder or a file that one process holds at a time."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from textrl.durable import write_json
from textrl.errors import UserError


@contextlib.contextmanager
def held(what: Path, lock: Path, holder: Path) -> Iterator[None]:
    """Hold something for this process, so that no other process uses it at the same time.

    A process that holds it may hold it again. A process that was killed holds nothing.

    Args:
        what: The folder or file that is held, for the message.
        lock: The file that is locked; it stays.
        holder: The file that names the process that holds it; it is removed afterwards.

    Raises:
        UserError: Another process holds it; that process is named.
    """
    own = FileLock(lock.resolve(), timeout=0, is_singleton=True)
    try:
        own.acquire()
    except Timeout as error:
        raise UserError(
            f"{what} is in use by {_named(holder)}; wait for it, stop it, or name another one"
        ) from error
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"pid": os.getpid(), "host": platform.node(), "since": now})
        yield
    finally:
        if own.lock_counter == 1:
            holder.unlink(missing_ok=True)
        own.release()


def _named(holder: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    return "another process"
