"""Numbers out: the run's logger (Stable-Baselines3's) and the live progress of a stage.

Every trainer and agent logs through one SB3 logger object, so that ours and SB3's agents write the
same files: `progress.csv`, `progress.json` (one JSON object a line), TensorBoard events. Progress
is a rich bar on a terminal and a plain line now and then elsewhere.
"""

import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    JSONOutputFormat,
    Logger,
    configure,
)

PLAIN_LINE_EVERY = 15.0
"""Seconds between progress lines where there is no terminal."""


@contextmanager
def open_logger(
    folder: Path | None, given: Logger | None = None, *, table: bool = False
) -> Iterator[Logger]:
    """Yield an SB3 logger that writes CSV, JSON lines and TensorBoard events to a folder.

    A run that goes on keeps its earlier rows (SB3's writers would begin an empty file).

    Args:
        folder: made if need be; None logs to memory only.
        given: the caller's own logger, used in its place and left open.
        table: also print SB3's table to the terminal.
    """
    if given is not None or folder is None:
        yield given or Logger(folder=None, output_formats=[])
        return
    earlier = read_progress(folder)
    tensorboard = importlib.util.find_spec("tensorboard") is not None
    names = ["csv", "json"] + ["tensorboard"] * tensorboard + ["stdout"] * table
    logger = configure(str(folder), names)
    for output in logger.output_formats:
        if isinstance(output, CSVOutputFormat | JSONOutputFormat):
            for row in earlier:
                output.write(dict(row), {name: () for name in row})
    try:
        yield logger
    finally:
        logger.close()


def read_progress(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a folder's progress.json; none where there is no file.

    Of rows with one `time/step` the last counts: a killed run takes its last steps again.
    """
    rows: dict[float, dict[str, float]] = {}
    for row in read_json_lines(folder / "progress.json"):
        rows[row["time/step"]] = rows.get(row["time/step"], {}) | row
    return list(rows.values())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, but one that was being written when its run was killed."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file, on a line of its own also after one that was cut off."""
    cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut + json.dumps(row) + "\n")


def log(logger: Logger, step: int, numbers: Mapping[str, float]) -> None:
    """Record the numbers and write them out as one row at this step."""
    for name, value in numbers.items():
        logger.record(name, value)
    logger.record("time/step", step)
    logger.dump(step)


class StageProgress:
    """Shows how far a stage is, its newest numbers and the time left; use as a context manager."""

    def __init__(self, stage: str, total: int, *, begin: int = 0, shown: bool = True) -> None:
        """Prepare the display of `total` steps, of which `begin` were done in an earlier run."""
        self._stage, self._total, self._begin, self._shown = stage, total, begin, shown
        self._began = self._last_line = time.monotonic()
        self._finished = False
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
            self._bar.add_task(self._stage, total=self._total, completed=self._begin, numbers="")
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, numbers: Mapping[str, float]) -> None:
        """Show that `done` steps are done and the newest numbers."""
        text = "  ".join(
            f"{name.split('/')[-1]} {_short(value)}" for name, value in numbers.items()
        )
        if self._bar is not None:
            self._bar.update(self._bar.tasks[0].id, completed=done, numbers=text)
            return
        now = time.monotonic()
        finished = done == self._total and not self._finished
        if self._shown and (now - self._last_line > PLAIN_LINE_EVERY or finished):
            self._last_line, self._finished = now, finished or self._finished
            left = (now - self._began) / max(done - self._begin, 1) * (self._total - done)
            print(f"[{self._stage}] {done}/{self._total}  {text}  {left:.0f} s left", flush=True)


def _short(value: float) -> str:
    """Return a number in three digits; what is 0 but for rounding is 0."""
    return f"{round(value, 6) + 0.0:.3g}"
