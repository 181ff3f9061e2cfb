"""Runs that differ in their seed alone are one group; the curve of a logged number of a group."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from textrl.doctor.records import Record
from textrl.report.charts import COLOURS, Line

OWN = ("seed", "output_dir", "log_table", "threads", "device")
"""Settings in which the runs of one group may differ: they are repetitions."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seed alone."""

    label: str
    colour: str
    records: Sequence[Record]


def names_of(records: Sequence[Record]) -> list[str]:
    """Return what the runs are called: the last parts of their paths that tell them apart."""
    paths = [record.folder.resolve() for record in records]
    longest = max(len(path.parts) for path in paths)
    for count in range(1, longest + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def groups_of(records: Sequence[Record]) -> list[Group]:
    """Return the runs by their settings but for the seed; runs without settings stay alone."""
    named: dict[str, list[tuple[str, Record]]] = {}
    for name, record in zip(names_of(records), records, strict=True):
        settings = {key: value for key, value in record.settings.items() if key not in OWN}
        key = json.dumps([record.stage, settings], sort_keys=True, default=str)
        named.setdefault(key if record.settings else name, []).append((name, record))
    groups = []
    for place, members in enumerate(named.values()):
        more = len(members) - 1
        several = f" and {more} more seed{'s' if more > 1 else ''}" if more else ""
        groups.append(
            Group(
                label=members[0][0] + several,
                colour=COLOURS[place % len(COLOURS)],
                records=[record for _, record in members],
            )
        )
    return groups


def line_of(group: Group, name: str) -> Line | None:
    """Return the mean of a group's runs at each step, with a band; None without numbers."""
    curves = [_steps_and_values(record, name) for record in group.records]
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        return None
    x = curves[0][0]
    if len(curves) > 1:
        end = min(curve[0][-1] for curve in curves)
        x = x[x <= end] if (x <= end).any() else x[:1]
    values = np.stack([np.interp(x, *curve) for curve in curves])
    low, high = values.min(0), values.max(0)
    y = values.mean(0)
    if len(curves) == 1:
        low = high = None
        error = _error(group.records[0], name)
        if error is not None and len(error) == len(y):
            low, high = y - 2 * error, y + 2 * error
    return Line(label=group.label, colour=group.colour, x=x, y=y, low=low, high=high)


def _error(record: Record, name: str) -> np.ndarray | None:
    """Return the standard error of each row's mean over its episodes, where it is known."""
    prefix, _, what = name.partition("/")
    if what == "kl":
        return record.series(f"{prefix}/kl_error").values
    heldout = prefix == "heldout"
    episodes = record.setting("eval_episodes" if heldout else "episodes_per_iteration")
    if what != "score" or not episodes:
        return None
    spread: np.ndarray = record.series(f"{prefix}/score_std").values / math.sqrt(episodes)
    return spread


def _steps_and_values(record: Record, name: str) -> tuple[np.ndarray, np.ndarray]:
    known = [
        (row.get("time/step", number), row[name])
        for number, row in enumerate(record.rows)
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]
    steps, values = zip(*known, strict=True) if known else ((), ())
    return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)
