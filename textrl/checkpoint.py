"""Checkpoints: models as plain transformers folders, resumable states, and the saves of a run.

run/checkpoints/000000120/   One save: all its files and their checksums (`durable.py`).
run/checkpoints/latest       The name of the newest save; it is written last.
run/best/                    The best save of a complete run, if one was asked for.

Nothing that is loaded here can run code: states hold tensors and plain data only, no pickles.
"""

import copy
import hashlib
import json
import math
import shutil
import statistics
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.adapters import is_adapted
from textrl.durable import check_files, finish_save, write_json, write_sealed, write_text
from textrl.errors import UserError, did_you_mean
from textrl.finite import check_finite
from textrl.metrics import JSON_FILE, logged, read_json_lines
from textrl.paths import expanded

STATE_FILE = "state.pt"
WINDOW = 10
BEST, VALUE_FILE = "best", "value.json"
"""In a run's folder: its best save. In a save: the metric by which it is the best or not."""
LOGGED_FILE = "logged.jsonl"
"""In a save: a copy of progress.json as it was then."""
RUN_FILE = "run.json"
"""Beside a finished agent: how many bytes of progress.json its run has logged."""


class DamagedSave(UserWarning):
    """The newest save of a run is damaged, and the one before it is used."""


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Write a plain transformers checkpoint: safetensors, config, tokenizer, generation config.

    A PEFT model is merged first (a copy of it), so that plain transformers loads the result.

    Raises:
        UserError: a weight is not finite.
    """
    if is_adapted(model):
        adapted: Any = copy.deepcopy(model)
        model = adapted.merge_and_unload()
    check_finite(model, "cannot be saved")
    model.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))


def save_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write a resumable state: tensors, numbers, texts, and lists and dicts of them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(dict(state), file)
    except RuntimeError as error:  # of torch's writer, which hides the system's own reason
        free = shutil.disk_usage(file.parent).free
        raise OSError(f"{file} cannot be written; the disk has {free:,} bytes left") from error


def load_state(file: Path) -> dict[str, Any]:
    """Return a resumable state.

    Raises:
        UserError: There is no file, or it is cut off or altered: the checksums of its parts do not
            hold.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            wrong = archive.testzip()
        if wrong is not None:
            raise zipfile.BadZipFile(f"the checksum of {wrong} is wrong")
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows as an error of any kind, by what it hits
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{file} is damaged ({reason}); delete it and start anew, or put back a copy"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{file} is not a state of textrl; delete it and start anew")
    return state


class Checkpoints:
    """The saves of a run, each whole or not there, of which the newest are kept."""

    def __init__(
        self,
        run: Path,
        *,
        every: int = 0,
        minutes: float = 0.0,
        keep: int = 2,
        best_by: str | None = None,
    ) -> None:
        """Look at a run's saves without touching them.

        Args:
            run: Folder of the run.
            every: Steps between two saves; 0 is never, by this rule.
            minutes: Minutes between two saves; 0 is never, by this rule.
            keep: Number of the newest saves that are kept, >= 1.
            best_by: Name of a logged metric. The save with the highest mean of it over the last
                `every` rows (10 if that is 0) is kept as well, and is `run/best` in the end.
        """
        self.run, self.folder, self.best_by = run, run / "checkpoints", best_by
        self._every, self._seconds, self._keep = every, 60 * minutes, keep
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Return whether it is time to save after this step."""
        by_steps = self._every > 0 and step % self._every == 0
        return by_steps or 0 < self._seconds <= time.monotonic() - self._last

    def save(self, step: int, write: Callable[[Path], None], *, is_last: bool = False) -> None:
        """Save what `write` puts into the folder that it is given, under the number of a step.

        A save of the same step that is whole stays: it holds the same. By `best_by` only those are
        compared that an undisturbed run has too: the saves after `every` steps, and the last.
        """
        self._last = time.monotonic()

        def with_value(folder: Path) -> None:
            write(folder)
            if self.best_by is not None and (
                is_last or self._every == 0 or step % self._every == 0
            ):
                window = read_json_lines(self.run / JSON_FILE)[-(self._every or WINDOW) :]
                values = [float(row[self.best_by]) for row in window if self.best_by in row]
                mean = statistics.fmean(values) if values else math.nan
                write_json(folder / VALUE_FILE, {self.best_by: mean})

        if not self._place(step).exists():
            fresh = self.folder / ".saving"
            write_sealed(fresh, partial(write_save, self.run, with_value))
            fresh.rename(self._place(step))
        write_text(self.folder / "latest", f"{self._place(step).name}\n")
        best = self._best()
        for old in self._steps()[: -self._keep]:
            if self._place(old) != best:
                shutil.rmtree(self._place(old), ignore_errors=True)

    def check_metric(self, numbers: Mapping[str, float]) -> None:
        """Raise UserError if the metric of `best_by` is not among what a step has logged."""
        if self.best_by is not None and self.best_by not in numbers:
            raise UserError(
                f"keep_best is {self.best_by!r}, which is not logged; logged are "
                f"{', '.join(sorted(numbers))}"
            )

    def _best(self) -> Path | None:
        """Return the folder of the best save, run/best of an earlier end of the run included."""
        places = [self.run / BEST, *map(self._place, self._steps())]
        values = {place: self._value(place) for place in places}
        best = max(places, key=lambda place: values[place])
        return best if values[best] > -math.inf else None

    def _value(self, place: Path) -> float:
        """Return the metric of a save, minus infinity where it is not known."""
        file = place / VALUE_FILE
        if self.best_by is None or not file.exists():
            return -math.inf
        try:
            value = float(json.loads(file.read_text(encoding="utf-8"))[self.best_by])
        except (ValueError, TypeError, KeyError):  # damaged, or by another metric
            return -math.inf
        return -math.inf if math.isnan(value) else value

    def newest(self) -> Path | None:
        """Return the folder of the newest save that is whole, None where there is no save.

        A damaged one is named in a warning, and its folder is called damaged_... from then on.

        Raises:
            UserError: There are saves, and none is whole.
        """
        damaged: dict[Path, UserError] = {}
        for step in reversed(self._steps()):
            place = self._place(step)
            try:
                check_files(place)
            except UserError as error:
                damaged[place] = error
                continue
            for other, found in damaged.items():
                warnings.warn(f"{found}. Going on from step {step}", DamagedSave, stacklevel=2)
                aside = other.with_name(f"damaged_{other.name}")
                shutil.rmtree(aside, ignore_errors=True)  # of the time before
                other.rename(aside)
            return place
        for found in damaged.values():
            raise found
        return None

    def exist(self) -> bool:
        """Return whether there is a save, whole or not."""
        return bool(self._steps())

    def clear(self) -> None:
        """Remove the saves of a run that is complete, all at once for whoever looks for them.

        The best one becomes run/best.
        """
        best = self._best()
        if best is not None and best != self.run / BEST:
            check_files(best)
            shutil.rmtree(self.run / BEST, ignore_errors=True)
            best.rename(self.run / BEST)
        aside = self.folder.with_name(f".{self.folder.name}.cleared")
        shutil.rmtree(aside, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _place(self, step: int) -> Path:
        return self.folder / f"{step:09d}"

    def _steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())


def write_save(run: Path, write: Callable[[Path], None], folder: Path) -> None:
    """Write a save of a run to a folder: its files, and a copy of what the run has logged so far.

    Args:
        run: Folder of the run.
        write: Function that writes the files to the folder that it is given.
        folder: Fresh folder for the save.
    """
    write(folder)
    (folder / LOGGED_FILE).write_bytes(logged(run))


def write_finished(run: Path, write: Callable[[Path], None], folder: Path) -> None:
    """Write the files of a finished run, and how many bytes it has logged; see `write_save`."""
    write(folder)
    rows = logged(run)
    digest = hashlib.sha256(rows).hexdigest()
    write_json(folder / RUN_FILE, {"metrics_size": len(rows), "metrics_sha256": digest})


def logged_by(save: Path) -> bytes | None:
    """Return the rows that a run had logged when it was saved, None where the save does not say.

    They come from the copy in the save, since the run may have logged more, and its own file may be
    damaged.

    Raises:
        UserError: The rows beside a finished agent are not those that it has logged.
    """
    if (save / LOGGED_FILE).exists():
        return (save / LOGGED_FILE).read_bytes()
    if (save / RUN_FILE).exists():
        run = json.loads((save / RUN_FILE).read_text(encoding="utf-8"))
        rows = logged(save)[: int(run["metrics_size"])]
        if rows and hashlib.sha256(rows).hexdigest() != run.get("metrics_sha256"):
            raise UserError(
                f"{save / JSON_FILE} is damaged (it is not what the run has logged); put back a "
                f"copy, or delete it to go on without the earlier rows"
            )
        return rows
    return None  # of `agent.save`, which knows of no run


def read_agent(path: str | Path, name: str, config_class: type[Any]) -> tuple[dict[str, Any], Any]:
    """Return what agent.json of a folder holds, and the configuration in it.

    Args:
        path: where an agent was saved.
        name: of the agent.
        config_class: of its configuration.

    Raises:
        UserError: there is none, it is damaged, or of another agent.
    """
    file = expanded(path) / "agent.json"
    finish_save(file.parent)
    if not file.exists():
        raise UserError(f"{file.parent} holds no saved agent ({file.name} is missing)")
    check_files(file.parent)
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        settings, found = dict(saved["config"]), saved["agent"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error}); put back a copy") from error
    if found != name:
        raise UserError(f"{file.parent} holds a {found} agent, not {name}")
    known = [field.name for field in fields(config_class)]
    for option in settings:
        if option not in known:
            hint = did_you_mean(option, known)
            raise UserError(f"{file}: {config_class.__name__} has no option {option!r}{hint}")
    return saved, config_class(**settings)
