"""`Record`: the logged numbers and the settings of a run; `Series`: one number over its rows."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from textrl.errors import UserError
from textrl.metrics import MACHINE_FILE, read_progress
from textrl.paths import expanded
from textrl.run_folder import CONFIG_FILE

TREND = 2.0
"""The Kendall statistic from which on a series is said to rise (5% of series without a trend)."""
CLEAR = 3.0
"""The number of standard errors from which on a change counts."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is wrong with a run."""

    name: str
    """A word for programs, such as "reward_flat"."""
    what: str
    """What is wrong, in a sentence."""
    how: str
    """How one knows, with the numbers and where they are."""
    remedies: tuple[str, ...]
    """What to try, the most likely remedy first."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One logged number over the rows that have it; without rows its numbers are NaN."""

    unit: str
    """What `places` counts: "iteration", "update" or "token"."""
    places: np.ndarray
    """Where the rows are. Shape [n]."""
    values: np.ndarray
    """Finite numbers. Float64 [n]."""

    def __len__(self) -> int:
        """Return n."""
        return len(self.values)

    @property
    def size(self) -> int:
        """The number of rows of the beginning, and of the end, that are compared."""
        return max(1, len(self) // 5)

    @property
    def first(self) -> float:
        """The mean of the first fifth of the rows."""
        return _mean(self.values[: self.size])

    @property
    def last(self) -> float:
        """The mean of the last fifth of the rows."""
        return _mean(self.values[-self.size :])

    @property
    def windows(self) -> np.ndarray:
        """The means of a fifth of the rows, from each row on. Shape [n - size + 1]."""
        return np.convolve(self.values, np.ones(self.size) / self.size, "valid")

    @property
    def error(self) -> float:
        """The standard error of `last - first`, from how far neighbouring rows lie apart."""
        if len(self) < 3:
            return math.inf
        spread = float(np.sqrt(np.mean(np.diff(self.values) ** 2) / 2))
        return spread * math.sqrt(2 / self.size)

    @property
    def trend(self) -> float:
        """Kendall's S over its standard deviation: beyond +-2 the series rises or falls."""
        n = len(self)
        if n < 3:
            return 0.0
        signs = np.sign(self.values[None, :] - self.values[:, None])
        deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
        return float(np.triu(signs, 1).sum()) / deviation

    @property
    def rises(self) -> bool:
        """Whether the end is clearly above the beginning."""
        higher = self.last > self.first
        return higher and (self.trend > TREND or self.last - self.first > CLEAR * self.error)

    @property
    def falls(self) -> bool:
        """Whether the end is clearly below the beginning."""
        lower = self.last < self.first
        return lower and (self.trend < -TREND or self.first - self.last > CLEAR * self.error)

    def told(self) -> str:
        """Return beginning and end with their places."""
        first, last = self.places[[0, self.size - 1]], self.places[[-self.size, -1]]
        return f"{self.first:.3g} {self._span(*first)}, {self.last:.3g} {self._span(*last)}"

    def _span(self, begin: float, end: float) -> str:
        if begin == end:
            return f"at {self.unit} {begin:g}"
        return f"over {self.unit}s {begin:g} to {end:g}"


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


@dataclass(frozen=True, kw_only=True)
class Record:
    """A run of an agent or of a trainer."""

    folder: Path
    rows: Sequence[dict[str, Any]]
    """The logged rows."""
    settings: dict[str, Any]
    """The content of config.yaml; empty where there is none."""
    machine: dict[str, Any]
    """The content of machine.json; empty where there is none."""

    @cached_property
    def names(self) -> list[str]:
        """The names of the logged numbers, in the order in which they came."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    @cached_property
    def stage(self) -> str:
        """The kind of the run: "agent", "sft", "reward" or "dpo"; "" for a run of something else.

        The stages of trainers are the first parts of the names that they log.
        """
        names = set(self.names)
        if {"rollout/score", "rollout/kl"} <= names:
            return "agent"
        return next((s for s in ("sft", "reward", "dpo") if f"{s}/loss" in names), "")

    def setting(self, name: str) -> float | None:
        """Return a setting that is a number, or None."""
        value = self.settings.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value)

    def series(self, name: str) -> Series:
        """Return a logged number; rows in which it is missing or not finite are left out."""
        unit, place = "update", "time/step"
        if self.stage == "agent":  # of held-out prompts nothing is logged but the tokens
            by_token = name.startswith("heldout/")
            unit = "token" if by_token else "iteration"
            place = "time/step" if by_token else "time/iteration"
        kept = [
            (row[place] if _is_finite(row.get(place)) else number, row[name])
            for number, row in enumerate(self.rows, 1)
            if _is_finite(row.get(name))
        ]
        places, values = zip(*kept, strict=True) if kept else ((), ())
        return Series(unit=unit, places=np.array(places), values=np.array(values, dtype=np.float64))

    def named(self, prefix: str) -> dict[str, Series]:
        """Return all series whose name begins so, without those of spreads, by the rest of it."""
        return {
            name.removeprefix(prefix): self.series(name)
            for name in self.names
            if name.startswith(prefix) and not name.endswith("_std")
        }


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def read_records(folder: str | Path) -> list[Record]:
    """Return the runs in a folder: its own, or those of its subfolders, as those of a demo.

    Raises:
        UserError: there is none.
    """
    path = expanded(folder)
    if not path.is_dir():
        raise UserError(f"{path} is no folder; name the folder of a run")
    places = [path, *sorted(part for part in path.iterdir() if part.is_dir())]
    found = [read_record(place) for place in places if (place / "progress.json").exists()]
    whole = [record for record in found if record.rows]
    if not whole:
        raise UserError(
            f"{path} holds no metrics (progress.json); name the --output_dir of a run that has "
            f"logged something"
        )
    return whole


def read_record(folder: Path) -> Record:
    """Return the run of one folder; without rows where nothing is logged."""
    return Record(
        folder=folder,
        rows=read_progress(folder),
        settings=_mapping(folder / CONFIG_FILE, yaml.safe_load),
        machine=_mapping(folder / MACHINE_FILE, json.loads),
    )


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); put back a copy, or delete it") from error
    return found if isinstance(found, dict) else {}
