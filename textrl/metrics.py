"""Numbers out: the run's logger (Stable-Baselines3's) and the live progress of a stage.

Every trainer and agent logs through one SB3 logger object, so that ours and SB3's agents write the
same files: `progress.csv`, `progress.json` (one JSON object a line), TensorBoard events. Progress
is a rich bar on a terminal and a plain line now and then elsewhere.
"""

import importlib.util
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from stable_baselines3.common.logger import Logger, configure, make_output_format

PLAIN_LINE_EVERY = 15.0
"""Seconds between progress lines where there is no terminal."""


def make_logger(folder: Path | None, *, table: bool = False) -> Logger:
    """Return an SB3 logger that writes CSV, JSON lines and TensorBoard events to a folder.

    Args:
        folder: made if need be; None logs to memory only.
        table: print SB3's table to the terminal at each dump as well.
    """
    if folder is None:
        formats = [make_output_format("stdout", "")] if table else []
        return Logger(folder=None, output_formats=formats)
    names = ["csv", "json"] + ["stdout"] * table
    if importlib.util.find_spec("tensorboard") is not None:
        names.append("tensorboard")
    return configure(str(folder), names)


def log(logger: Logger, step: int, numbers: Mapping[str, float]) -> None:
    """Record the numbers and write them out as one row at this step."""
    for name, value in numbers.items():
        logger.record(name, value)
    logger.dump(step)


class StageProgress:
    """Shows how far a stage is, its newest numbers and the time left; use as a context manager."""

    def __init__(self, stage: str, total: int, *, shown: bool = True) -> None:
        """Prepare the display of `total` steps."""
        self._stage, self._total, self._shown = stage, total, shown
        self._began = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> "StageProgress":
        """Start the bar, on a terminal."""
        if self._shown and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description:>10}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar.start()
            self._bar.add_task(self._stage, total=self._total, numbers="")
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, numbers: Mapping[str, float]) -> None:
        """Show that `done` steps are done and the newest numbers."""
        text = "  ".join(f"{name.split('/')[-1]} {value:.3g}" for name, value in numbers.items())
        if self._bar is not None:
            self._bar.update(self._bar.tasks[0].id, completed=done, numbers=text)
            return
        now = time.monotonic()
        if self._shown and (now - self._last_line > PLAIN_LINE_EVERY or done == self._total):
            self._last_line = now
            left = (now - self._began) / max(done, 1) * (self._total - done)
            print(f"[{self._stage}] {done}/{self._total}  {text}  {left:.0f} s left", flush=True)
