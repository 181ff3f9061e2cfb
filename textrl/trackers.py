"""`Tracker`: the metrics of a run to Weights & Biases or to trackio, beside the files of the run.

Nothing is sent anywhere unless it is asked for (`--track`). Where the numbers go is the tracker's
own business: `wandb login` or WANDB_MODE=offline, TRACKIO_DIR and so on.
"""

import importlib
import uuid
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

from textrl.config import TrackerName
from textrl.durable import write_text
from textrl.errors import needing
from textrl.run_folder import CONFIG_FILE

PROJECT = "textrl"
ID_FILE = ".tracked_as"
"""Holds the name by which a tracker knows the run, so that a resumed run is the same one there."""


class Tracker(KVWriter):
    """Writes each row of metrics to a tracker."""

    def __init__(self, name: TrackerName, folder: Path) -> None:
        """Begin a run of the tracker, or go on with that of the run folder.

        Raises:
            UserError: the package is missing; the extra to install is named.
        """
        with needing(name):
            self._module: Any = importlib.import_module(name)
        config = folder / CONFIG_FILE
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {}
        known = folder / ID_FILE
        if not known.exists():
            write_text(known, f"{folder.resolve().name}-{uuid.uuid4().hex[:8]}\n")
        run = known.read_text(encoding="utf-8").strip()
        options: dict[str, Any] = {"id": run, "dir": str(folder)} if name == "wandb" else {}
        self._module.init(project=PROJECT, name=run, config=settings, resume="allow", **options)

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        """Send the numbers of a row; texts and figures stay in the run folder."""
        shown = filter_excluded_keys(key_values, key_excluded, "csv")
        numbers = {
            name: float(value)
            for name, value in shown.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._module.log(numbers, step=int(step))

    def close(self) -> None:
        """End the tracker's run."""
        self._module.finish()


def trackers(name: TrackerName | None, folder: Path | None) -> list[Tracker]:
    """Return the tracker of a run folder, or none where none is asked for."""
    return [] if name is None or folder is None else [Tracker(name, folder)]
