"""Logging of metrics with Stable-Baselines3's logger, and the progress display of a stage.

Every trainer and agent logs through one SB3 logger, so that our agents and SB3's write the same
files: `progress.csv`, `progress.json` (one JSON object per line) and TensorBoard events. Progress
is a rich bar on a terminal, and otherwise a plain line every 15 seconds.
"""

import contextlib
import csv
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from stable_baselines3.common.logger import (
    HumanOutputFormat,
    JSONOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
    filter_excluded_keys,
)

from textrl.durable import write_text
from textrl.errors import UserError
from textrl.machine import machine_text

JSON_FILE, CSV_FILE, MACHINE_FILE = "progress.json", "progress.csv", "machine.json"
PLAIN_LINE_EVERY = 15.0
"""Seconds between progress lines if there is no terminal."""


@contextmanager
def open_logger(
    folder: Path | None,
    given: Logger | None = None,
    *,
    table: bool = False,
    begin_with: bytes | None = None,
    more: Sequence[KVWriter] = (),
) -> Iterator[Logger]:
    """Yield an SB3 logger that writes CSV, JSON lines and TensorBoard events to a folder.

    machine.json beside them says what the run ran on.

    Args:
        folder: Folder that is made if need be; None logs to memory only.
        given: The caller's own logger, used in its place and left open.
        table: Whether SB3's table is printed to the terminal as well.
        begin_with: What progress.json begins with, the rows of the save that the run goes on from,
            so that the files become those of an uninterrupted run; None keeps the rows that are
            there.
        more: Further writers, which are closed with the logger.
    """
    if given is not None or folder is None:
        yield given or Logger(folder=None, output_formats=[])
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MACHINE_FILE, machine_text())
    there = logged(folder)
    rows = there[: there.rfind(b"\n") + 1] if begin_with is None else begin_with
    if rows != there:
        write_text(folder / JSON_FILE, rows.decode())
    earlier = read_json_lines(folder / JSON_FILE)
    outputs: list[KVWriter] = [_JSONLines(folder / JSON_FILE), _CSV(folder / CSV_FILE, earlier)]
    if importlib.util.find_spec("tensorboard") is not None:
        outputs.append(_TensorBoard(folder, earlier[-1]["time/step"] if earlier else None))
    if table:
        outputs.append(HumanOutputFormat(sys.stdout))
    outputs += more
    logger = Logger(folder=str(folder), output_formats=outputs)
    try:
        yield logger
    finally:
        logger.close()


def logged(folder: Path) -> bytes:
    """Return the content of a folder's progress.json, empty if there is none."""
    path = folder / JSON_FILE
    return path.read_bytes() if path.exists() else b""


class _JSONLines(JSONOutputFormat):
    """SB3's writer, which goes on behind the rows that are there."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        super().write({"time/step": step} | key_values, key_excluded, step)  # for SB3's callbacks


class _TensorBoard(TensorBoardOutputFormat):
    """SB3's writer, which hides the events of a killed run that come after the last step kept."""

    def __init__(self, folder: Path, last_step: float | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if last_step is None else int(last_step) + 1
        self.writer = SummaryWriter(log_dir=str(folder), purge_step=purge)
        self._is_closed = False


def no_formula(cell: Any) -> Any:
    """Return a cell of a CSV file that a spreadsheet does not compute: a text gets an apostrophe.

    >>> no_formula("=1+1"), no_formula("loss"), no_formula(-1.0)
    ("'=1+1", 'loss', -1.0)
    """
    starts = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{cell}" if starts else cell


def _without_formulas(row: Mapping[str, Any]) -> dict[str, Any]:
    return {no_formula(name): no_formula(value) for name, value in row.items()}


class _CSV(KVWriter):
    """Rows under one line of names; new names come behind the old ones, sorted.

    SB3's writer orders them as Python's hashes fall, another way in each process.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        self._path, self._names = path, list[str]()
        safe = [_without_formulas(row) for row in rows]
        for row in safe:
            self._names += sorted(row.keys() - set(self._names))
        self._rewrite(safe)

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        row = filter_excluded_keys({"time/step": step} | key_values, key_excluded, "csv")
        row = _without_formulas(row)
        fresh = sorted(row.keys() - set(self._names))
        if fresh:
            self._file.close()
            with self._path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            self._names += fresh
            self._rewrite([*rows, row])
        else:
            self._writer.writerow(row)
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        fresh = self._path.with_name(self._path.name + ".new")
        self._file = fresh.open("w", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, self._names, lineterminator="\n")
        if rows:
            self._writer.writeheader()
            self._writer.writerows(rows)
        self._file.flush()
        fresh.replace(self._path)


def read_progress(folder: str | Path) -> list[dict[str, float]]:
    """Return the rows of a folder's progress.json, or none if there is no file.

    Of several rows with the same `time/step` only the last is returned, because a killed run
    repeats its last steps. A row of another program has SB3's `time/total_timesteps` for it, or its
    number.
    """
    rows: dict[Any, dict[str, float]] = {}
    for number, row in enumerate(read_json_lines(Path(folder) / JSON_FILE), 1):
        step = row.get("time/step", row.get("time/total_timesteps", number))
        rows[step] = rows.get(step, {}) | {"time/step": step} | row
    return list(rows.values())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, without a row that was incomplete when the run was killed.

    Raises:
        UserError: The file is not text.
    """
    rows = []
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); put back a copy, or delete it") from error
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise UserError(f"{path} holds {row!r:.40}, which is no row; put back a copy")
            rows.append(row)
    return rows


def log(logger: Logger, step: int, numbers: Mapping[str, float]) -> None:
    """Record the numbers and write them out as one row at this step."""
    for name, value in numbers.items():
        logger.record(name, value)
    logger.record("time/step", step)
    logger.dump(step)


class StageProgress:
    """A context manager that shows a stage's progress, newest numbers and remaining time."""

    def __init__(self, stage: str, total: int, *, begin: int = 0, shown: bool = True) -> None:
        """Prepare the display of `total` steps, of which `begin` were done in an earlier run."""
        self._stage, self._total, self._begin, self._shown = stage, total, begin, shown
        self._began = self._last_line = time.monotonic()
        self._finished = False
        self._bar: Progress | None = None

    def __enter__(self) -> "StageProgress":
        """Start the bar if there is a terminal."""
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
    """Return a number with three digits; a number that is 0 up to rounding is shown as 0."""
    return f"{round(value, 6) + 0.0:.3g}"
